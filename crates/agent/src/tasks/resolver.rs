//! What a container's C library reads of how names are looked up: its `/etc/resolv.conf`.
//!
//! The engine would write one that names its own resolver, which runs in the engine: while the engine is away, nobody in a container finds anybody.
//! Ours names the node's DNS itself, and says everything else as the engine says it.

use std::{fmt::Write as _, net::Ipv4Addr};

use wharf_model::{ContainerSpec, MountSpec, NetworkMode, TaskAssignment};

use crate::runtime::RESOLV_CONF;

/// The lines for a container whose node answers at `server`; none for one that has its own, or that of another. `of_node` is the node's
/// own file: what it says goes where the container says nothing.
pub fn resolv_conf(task: &TaskAssignment, server: Ipv4Addr, of_node: &str) -> Option<String> {
    let ContainerSpec { dns, dns_search, dns_opt, mounts, .. } = &task.spec.container;
    let mut targets = mounts.iter().map(|MountSpec { target, .. }| target.as_str());
    let is_its_own = !dns.is_empty()
        || targets.any(|target| target == RESOLV_CONF)
        || task.files.iter().any(|file| file.mount.target == RESOLV_CONF);
    if is_its_own || !matches!(task.spec.network_mode, NetworkMode::Networks) {
        return None;
    }
    let said = |own: &[String], word: &[&str]| -> Vec<String> {
        if own.is_empty() { words(of_node, word) } else { own.to_vec() }
    };
    let mut search = said(dns_search, &["search", "domain"]);
    // The only way to say that there are none.
    search.retain(|domain| domain != ".");
    let mut options = said(dns_opt, &["options"]);
    if dns_opt.is_empty() {
        options.retain(|option| !option.starts_with("ndots:"));
    }
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = format!("nameserver {server}\n");
    if !search.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let _ = writeln!(text, "options {}", options.join(" "));
    Some(text)
}

/// What the last line that begins with one of these says (`resolv.conf(5)`).
fn words(text: &str, keys: &[&str]) -> Vec<String> {
    let lines = text.lines().map(|line| line.split(['#', ';']).next().unwrap_or_default());
    let mut said = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        keys.contains(&words.next()?).then(|| words.map(str::to_owned).collect())
    });
    said.next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use wharf_model::{FileAssignment, FileMount, MountSource};

    use super::*;
    use crate::runtime::contract::sample_task;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 192, 15, 254);
    const NODE: &str = "nameserver 127.0.0.53 # stub\ndomain old.example\nsearch a.example b.example ; two\noptions edns0 ndots:2 trust-ad\n";

    fn text(task: &TaskAssignment, of_node: &str) -> Option<String> {
        resolv_conf(task, SERVER, of_node)
    }

    #[test]
    fn what_the_container_does_not_say_is_as_on_the_node() {
        let mut task = sample_task(1, "web", "img");
        task.spec.network_mode = NetworkMode::Networks;
        let with = |rest: &str| Some(format!("nameserver 10.192.15.254\n{rest}"));
        assert_eq!(text(&task, ""), with("options ndots:0\n"));
        assert_eq!(text(&task, NODE), with("search a.example b.example\noptions edns0 trust-ad ndots:0\n"));
        assert_eq!(
            text(&task, "search a.example\ndomain b.example\n"),
            with("search b.example\noptions ndots:0\n")
        );

        task.spec.container.dns_search = vec!["corp.example".into()];
        task.spec.container.dns_opt = vec!["timeout:1".into(), "ndots:3".into()];
        assert_eq!(text(&task, NODE), with("search corp.example\noptions timeout:1 ndots:3\n"));
        task.spec.container.dns_search = vec![".".into()];
        assert_eq!(text(&task, NODE), with("options timeout:1 ndots:3\n"));
    }

    #[test]
    fn who_has_its_own_or_anothers_is_left_alone() {
        let mut task = sample_task(1, "web", "img");
        task.spec.network_mode = NetworkMode::Networks;
        let changed = |change: &dyn Fn(&mut TaskAssignment)| {
            let mut task = task.clone();
            change(&mut task);
            text(&task, NODE)
        };
        assert!(changed(&|_| {}).is_some());
        let target = || RESOLV_CONF.to_owned();
        let mount = || MountSpec {
            source: MountSource::Tmpfs { size: None, mode: None },
            target: target(),
            read_only: false,
        };
        let file = || FileMount { source: "dns".into(), target: target(), uid: None, gid: None, mode: None };
        assert_eq!(changed(&|task| task.spec.container.dns = vec![[9, 9, 9, 9].into()]), None);
        assert_eq!(changed(&|task| task.spec.container.mounts = vec![mount()]), None);
        let config = || FileAssignment { mount: file(), secret: false, content: String::new() };
        assert_eq!(changed(&|task| task.files = vec![config()]), None);
        for mode in [NetworkMode::Host, NetworkMode::None, NetworkMode::Service("db".parse().unwrap())] {
            assert_eq!(changed(&|task| task.spec.network_mode = mode.clone()), None, "{mode:?}");
        }
    }
}
