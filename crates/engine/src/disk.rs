//! What a node's disks mean: whether it takes new tasks, and what people are told of them.
//!
//! - A node that has not said how full its disks are takes tasks.
//! - What runs on a full disk goes on: nothing is moved or stopped for it.

use wharf_model::{DiskFacts, NodeFacts, NodeRecord};

use crate::Node;

/// The fullest disk of a node that is so full that it takes no new tasks, and the mark it is at.
pub fn full_disk(node: &Node) -> Option<(&DiskFacts, u8)> {
    let mark = node.record.disk_marks.full;
    fullest(node.facts()?).filter(|disk| disk.percent() >= mark).map(|disk| (disk, mark))
}

/// What people should know of a node's disks, as sentences.
pub fn disk_problems(record: &NodeRecord, facts: &NodeFacts) -> Vec<String> {
    let marks = record.disk_marks;
    let above = facts.disks.iter().filter(|disk| disk.percent() >= marks.high);
    let sentence = |disk: &DiskFacts| {
        let holds = disk.holds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let what = if disk.lacks_inodes() { "the files that it can have" } else { "its space" };
        let mut text = format!(
            "the disk of {} ({holds}) has used {} % of {what}, {} are free",
            disk.path,
            disk.percent(),
            if disk.lacks_inodes() { format!("{} files", disk.inodes_free) } else { disk.free.to_string() }
        );
        if let Some(hours) = disk.full_in_hours {
            text.push_str(&format!(", and it is full in about {}", in_hours(hours)));
        }
        if disk.percent() >= marks.full {
            text.push_str(&format!(": above {} % the node takes no new tasks", marks.full));
        }
        let name = &record.name;
        text.push_str(&format!(
            "; hint: `wharf node prune {name} --dry-run` shows what Wharf can remove, `docker system df` on the node what else is there"
        ));
        text
    };
    above.map(sentence).collect()
}

fn fullest(facts: &NodeFacts) -> Option<&DiskFacts> {
    facts.disks.iter().max_by_key(|disk| disk.percent())
}

fn in_hours(hours: u32) -> String {
    match hours {
        0 | 1 => "an hour".to_owned(),
        2..=47 => format!("{hours} hours"),
        _ => format!("{} days", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use wharf_model::{Bytes, DiskMarks, DiskUse};

    use super::*;
    use crate::fixtures::{self, Cluster, app, node_id, service};

    fn disk(free: u64) -> DiskFacts {
        DiskFacts {
            path: "/var/lib/docker".into(),
            holds: vec![DiskUse::Engine],
            total: Bytes(1000 << 20),
            free: Bytes(free << 20),
            inodes: 0,
            inodes_free: 0,
            full_in_hours: None,
        }
    }
    fn set(cluster: &mut Cluster, n: u8, free: u64) {
        let mut status = cluster.world.node(node_id(n)).unwrap().status.clone().unwrap();
        status.facts.as_mut().unwrap().disks = vec![disk(free)];
        cluster.world.set_node_status(node_id(n), status);
    }

    #[test]
    fn a_full_disk_takes_no_new_tasks_and_keeps_what_runs() {
        let mut cluster = Cluster::of(1);
        cluster.up(&app(&[("web", service("web"))]));
        cluster.settle();
        set(&mut cluster, 1, 100);
        cluster.settle();
        assert_eq!(cluster.ready("web").len(), 1, "what runs goes on");
        cluster.up(&app(&[("web", service("web")), ("more", service("more"))]));
        cluster.settle_for(std::time::Duration::from_secs(5), &mut |_| {});
        insta::assert_snapshot!(cluster.waiting(), @"no node can take more.1: 1 has a disk that is 90 % full (from 90 % on it takes no new tasks); hint: `wharf node prune NODE` removes images that nobody needs; `wharf node ls` shows how full disks are");
        set(&mut cluster, 1, 110);
        cluster.settle();
        assert_eq!(cluster.ready("more").len(), 1, "room on a disk is reason to look again");
    }

    #[test]
    fn people_are_told_from_the_high_mark_on() {
        let node = fixtures::node(1);
        let mut facts = node.facts().unwrap().clone();
        facts.disks = vec![disk(160)];
        assert_eq!(disk_problems(&node.record, &facts), Vec::<String>::new());
        facts.disks = vec![DiskFacts { full_in_hours: Some(5), ..disk(150) }];
        insta::assert_snapshot!(disk_problems(&node.record, &facts)[0], @"the disk of /var/lib/docker (images and containers) has used 85 % of its space, 150 MiB are free, and it is full in about 5 hours; hint: `wharf node prune n1 --dry-run` shows what Wharf can remove, `docker system df` on the node what else is there");
        let record = NodeRecord { disk_marks: DiskMarks { low: 50, high: 90, full: 95 }, ..node.record };
        assert_eq!(disk_problems(&record, &facts), Vec::<String>::new(), "each node has its own marks");
    }
}
