//! The example as anybody would write it, unchanged, on three machines; run with `--nocapture` for a transcript.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test prints what it saw, and fails where it cannot go on"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use wharf_testkit::cluster::{Cluster, Seed};
use wharf_tests::{Fleet, Output, skip, text, wait_until};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/wordpress/compose.yaml");
const TITLE: &str = "Ships and harbours";

/// Archives of the example's images, made from Debian packages where no registry answers.
fn archives() -> Result<Vec<PathBuf>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/images/build");
    let output =
        Command::new(script).arg("--print-archives").stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "examples/images/build ended with {}", output.status);
    let paths = String::from_utf8(output.stdout).context("the paths of the archives")?;
    Ok(paths.lines().map(PathBuf::from).collect())
}

/// Runs a command and prints it as it would look in a terminal.
fn shown(fleet: &Fleet, args: &[&str]) -> Output {
    let since = Instant::now();
    let output = fleet.wharf(args);
    let seconds = since.elapsed().as_secs_f64();
    let words: Vec<_> =
        args.iter().map(|word| word.strip_suffix(EXAMPLE).map_or(*word, |_| "compose.yaml")).collect();
    println!(
        "$ wharf {}\n{}{}# exit {}, {seconds:.2} s\n",
        words.join(" "),
        output.stdout,
        output.stderr,
        output.code
    );
    output
}

#[test]
fn wordpress_with_its_database_runs_on_three_machines_from_the_file_as_it_is() {
    if skip() {
        return;
    }
    let seed = archives().and_then(|archives| Seed::prepare("wordpress", &archives)).unwrap();
    let fleet = Fleet::try_start(Cluster::builder().nodes(3).seed(seed)).unwrap();
    shown(&fleet, &["node", "ls"]);

    let up = shown(&fleet, &["up", "-y", "-f", EXAMPLE]);
    assert_eq!(up.code, 0);
    shown(&fleet, &["ps", "-p", "wordpress"]);
    let tasks = fleet.tasks("wordpress").unwrap();
    let node_of = |service: &str| {
        let task = tasks.iter().find(|task| task["service"] == service);
        text(&task.expect("every service has a task")["node"]).to_owned()
    };
    let (db, wordpress) = (node_of("db"), node_of("wordpress"));
    assert_ne!(db, wordpress, "tasks are spread over machines");

    // By a gateway that runs neither of them.
    let entry =
        fleet.cluster.nodes().into_iter().find(|node| ![&db, &wordpress].contains(&&node.name())).unwrap();
    let site = format!("http://{}:8080", entry.address());
    println!("# {site} is a gateway on {}, which runs none of the tasks", entry.name());
    let install = format!(
        "weblog_title={}&user_name=ada&admin_password=Long-enough-1815&admin_password2=Long-enough-1815&pw_weak=1&admin_email=ada%40example.org&Submit=Install&language=",
        TITLE.replace(' ', "+")
    );
    let installed = wait_until(Duration::from_secs(60), "WordPress installs itself", || {
        let answer = fleet.request("POST", &format!("{site}/wp-admin/install.php?step=2"), &install)?;
        ensure!(answer.status == 200, "{} {}", answer.head, answer.body);
        Ok::<_, anyhow::Error>(answer)
    });
    assert!(installed.body.contains("Success!"), "{}", installed.body);
    let front = || fleet.http(&format!("{site}/"));
    let page = front().unwrap();
    assert!(page.contains(TITLE) && page.contains("Hello world!"), "{page}");
    println!("# installed over HTTP; the front page says {TITLE:?}, which is in the database\n");

    let again = shown(&fleet, &["up", "-y", "-f", EXAMPLE]);
    assert_eq!(again.code, 0);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);

    // Node 1 is the server's machine, too; that it goes is for other tests.
    let (service, node) = if wordpress == "n1" { ("db", &db) } else { ("wordpress", &wordpress) };
    lose_the_machine_of(&fleet, service, node);
    wait_until(Duration::from_secs(90), "the site is back with its machine", || {
        let page = front()?;
        ensure!(page.contains(TITLE), "{page}");
        Ok(())
    });
    println!("# the front page is back, with everything in it");
    shown(&fleet, &["ps", "-p", "wordpress"]);
    shown(&fleet, &["events", "--no-follow", "--since", "10m"]);
}

/// The power of a machine fails and comes back; what is on its disk is not started elsewhere without it.
fn lose_the_machine_of(fleet: &Fleet, service: &str, node: &str) {
    let lost = fleet.cluster.nodes().into_iter().find(|found| found.name() == node).unwrap();
    println!("# power of {node} is cut\n");
    lost.power_off().unwrap();
    let since = Instant::now();
    let verdict = wait_until(Duration::from_secs(90), "the loss is told with what can be done", || {
        let output = fleet.try_wharf(["ps", "-p", "wordpress"])?;
        ensure!(output.stderr.contains("which is down"), "{}{}", output.stdout, output.stderr);
        Ok::<_, anyhow::Error>(output.stderr)
    });
    // Without its data it must not start elsewhere by itself: people are told what they can do.
    assert!(verdict.contains(&format!("{service}.1 waits for {node}")), "{verdict}");
    assert!(
        verdict.contains(&format!(
            "hint: bring {node} back, or have it start elsewhere with an empty volume: `wharf volume release "
        )),
        "{verdict}"
    );
    println!("# {:.0} s later", since.elapsed().as_secs_f64());
    shown(fleet, &["node", "ls"]);
    shown(fleet, &["ps", "-p", "wordpress"]);
    println!("# power of {node} is back\n");
    lost.boot().unwrap();
}
