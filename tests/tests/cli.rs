//! The verbs of the command line, by what they print and exit with.

use std::sync::LazyLock;

use wharf_tests::{Fleet, items, skip, text};

/// One cluster for all tests here; each uses apps of its own.
static FLEET: LazyLock<Fleet> = LazyLock::new(|| Fleet::start(3));

#[test]
fn nodes_are_shown_ready_with_everything_known_of_them() {
    if skip() {
        return;
    }
    let nodes = FLEET.json(["node", "ls"]);
    let names: Vec<_> = items(&nodes).iter().map(|node| text(&node["name"])).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    println!("{}", FLEET.ok(["node", "ls"]));
}
