//! Decisions as the store gets them: which keys, on which conditions, in which portions.

use std::collections::BTreeSet;

use serde_json::json;
use wharf_engine::{Change, SeededIds};
use wharf_model::{AppRecord, Phase, RolloutState, StopReason, Timestamp};
use wharf_server::{
    controllers::commit::Committer,
    leader::Lead,
    records::{Key, Record},
};
use wharf_store::{Batch, PORTABLE_BYTES, PORTABLE_KEYS, Revision};

use crate::state::{World, node, node_id, says, task};

const LEAD: Lead = Lead { term: 3, fence: Revision(77) };
const NOW: Timestamp = Timestamp(1_000);

fn app() -> AppRecord {
    serde_json::from_value(json!({
        "key": { "environment": "prod", "name": "shop" }, "generation": 2, "release": 1, "created_at": 1,
        "rollout": { "generation": 2, "what": "release 1", "by": { "user": "ada", "client": "" }, "started_at": 1, "state": "progressing" },
    }))
    .unwrap()
}

fn batches(world: &World, changes: Vec<Change>) -> Vec<Batch> {
    let inner = world.state.read();
    let mut ids = SeededIds::new(1);
    let mut committer = Committer::new(&inner, LEAD, NOW);
    for change in changes {
        committer.change(change, &mut ids);
    }
    committer.finish()
}
/// What a batch writes, but for events; `-` in front of what it removes.
fn keys(batch: &Batch) -> Vec<String> {
    let writes = batch.writes().iter().filter(|(key, _)| !key.starts_with("events/"));
    writes.map(|(key, value)| if value.is_some() { key.clone() } else { format!("-{key}") }).collect()
}
fn expected(batch: &Batch) -> BTreeSet<(String, Option<u64>)> {
    let expected = batch.expectations().iter().filter(|(key, _)| !key.starts_with("events/"));
    expected.map(|(key, revision)| (key.clone(), revision.map(|revision| revision.0))).collect()
}
fn value(batch: &Batch, key: &Key) -> Record {
    Record::decode(key, batch.writes()[&key.to_string()].as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn every_change_stands_on_what_it_was_decided_by() {
    let world = World::new().await;
    let id = world.task(1, node_id(1)).await;
    world.put(Key::Node(node_id(1)), &node(1)).await;
    let (of_task, of_status) = (Key::Task(id), Key::TaskStatus(id));
    let fence = ("leader".to_owned(), Some(77));
    let at = |key: &Key| (key.to_string(), world.state.read().revision_of(key).map(|revision| revision.0));

    let batch = &batches(&world, vec![Change::StopTask { task: id, reason: StopReason::ScaledDown }])[0];
    assert_eq!(keys(batch), [of_task.to_string()]);
    assert_eq!(expected(batch), [fence.clone(), at(&of_task)].into());
    assert!(at(&of_task).1.is_some());

    let batch = &batches(&world, vec![Change::RemoveTask(id)])[0];
    assert_eq!(keys(batch), [format!("-{of_status}"), format!("-{of_task}")]);
    assert_eq!(expected(batch), [fence.clone(), at(&of_task), (of_status.to_string(), None)].into());

    let new = task(2, node_id(1));
    let batch = &batches(&world, vec![Change::CreateTask(new.clone().into())])[0];
    assert_eq!(expected(batch), [fence.clone(), (Key::Task(new.id).to_string(), None)].into());

    let lose = Change::LoseTask { task: id, message: "n1 is down".into(), at: NOW };
    let batch = &batches(&world, vec![lose])[0];
    assert_eq!(expected(batch), [fence.clone(), (of_status.to_string(), None)].into());
    let Record::TaskStatus(_, status) = value(batch, &of_status) else { panic!() };
    assert_eq!((status.phase, status.sequence, status.ended_at), (Phase::Lost, 1, Some(NOW)));

    let status = world.state.read().world.node(node_id(1)).unwrap().status.clone();
    assert!(status.is_none());
    let status = serde_json::from_value(json!({ "state": "ready", "since": 1, "reason": "" })).unwrap();
    let batch = &batches(&world, vec![Change::SetNodeStatus { node: node_id(1), status }])[0];
    let about = Key::NodeStatus(node_id(1));
    assert_eq!(
        expected(batch),
        [fence.clone(), at(&Key::Node(node_id(1))), (about.to_string(), None)].into()
    );

    let inner = world.state.read();
    let mut committer = Committer::new(&inner, LEAD, NOW);
    committer.report(id, &says(Phase::Running, 4), &mut SeededIds::new(1));
    let batch = &committer.finish()[0];
    assert_eq!(keys(batch), [of_status.to_string()]);
    drop(inner);
    assert_eq!(expected(batch), [fence, at(&of_task), (of_status.to_string(), None)].into());
}

#[tokio::test]
async fn large_decisions_come_in_portions_every_store_takes_each_under_the_fence() {
    let world = World::new().await;
    let changes: Vec<_> = (0..=250).map(|n| Change::CreateTask(task(n, node_id(1)).into())).collect();
    let batches = batches(&world, changes);
    assert!(batches.len() > 2);
    assert_eq!(batches.iter().map(|batch| keys(batch).len()).sum::<usize>(), 251);
    for batch in &batches {
        assert!(batch.writes().len() <= PORTABLE_KEYS && batch.expectations().len() <= PORTABLE_KEYS);
        assert!(batch.size() <= PORTABLE_BYTES);
        assert!(expected(batch).contains(&("leader".to_owned(), Some(77))));
    }
}

#[tokio::test]
async fn what_is_changed_twice_keeps_both_changes_and_never_crosses_a_portion() {
    let world = World::new().await;
    world.put(Key::App(app().key), &app()).await;
    let moved = AppRecord { removed: true, ..app() };
    let rollout = wharf_model::Rollout { state: RolloutState::Done, ..app().rollout };
    let twice = |between: Vec<Change>| {
        let mut changes = vec![Change::PutApp(moved.clone())];
        changes.extend(between);
        changes.push(Change::SetRollout { app: app().key, rollout: rollout.clone() });
        batches(&world, changes)
    };
    let together = twice(vec![]);
    assert_eq!(together.len(), 1);
    let Record::App(record) = value(&together[0], &Key::App(app().key)) else { panic!() };
    assert_eq!((record.removed, record.rollout.state), (true, RolloutState::Done));

    let apart = twice((0..=250).map(|n| Change::CreateTask(task(n, node_id(1)).into())).collect());
    let writing = apart.iter().filter(|batch| keys(batch).contains(&Key::App(app().key).to_string())).count();
    assert_eq!(writing, 1, "the second change is left to the next pass");
}

/// What the diary says of a batch.
fn told(batch: &Batch) -> Vec<String> {
    let events = batch.writes().iter().filter(|(key, _)| key.starts_with("events/"));
    let text = events.filter_map(|(_, value)| {
        let record: serde_json::Value = serde_json::from_slice(value.as_ref()?).unwrap();
        Some(record.pointer("/value/message").or(record.get("message"))?.as_str()?.to_owned())
    });
    text.collect()
}

#[tokio::test]
async fn the_diary_has_what_a_node_did_by_itself() {
    let world = World::new().await;
    let id = world.task(1, node_id(1)).await;
    world.put(Key::Node(node_id(1)), &node(1)).await;
    let exit = wharf_model::Exit { code: 3, oom: false };
    let restarts = wharf_model::Restarts { times: 2, in_a_row: 2, ended_at: NOW, exit };
    let status =
        wharf_model::TaskStatus { restarts: Some(restarts), oom_kills: 1, ..says(Phase::Preparing, 4) };
    let inner = world.state.read();
    let mut committer = Committer::new(&inner, LEAD, NOW);
    committer.report(id, &status, &mut SeededIds::new(1));
    let said = told(&committer.finish()[0]);
    drop(inner);
    assert_eq!(said.len(), 2, "{said:?}");
    for part in [
        "was started again 2 times by its node while no server answered; it had ended with: exit code 3",
        "is out of memory: the kernel has ended one of its processes",
    ] {
        assert!(said.iter().any(|message| message.contains(part)), "{said:?}");
    }

    let facts = json!({
        "hostname": "n1", "address": "10.0.0.1", "platform": { "os": "linux", "arch": "amd64" }, "cpus": 1, "memory": 1,
        "kernel": "6", "cgroup_version": 2, "agent_version": "1", "engine": null,
        "disks": [{ "path": "/", "holds": ["engine"], "total": 100, "free": 9 }],
        "cleanup": { "at": 1, "said": "removed 1 image that nobody needs: a:1", "freed": 2048 },
    });
    let status = json!({ "state": "joining", "since": 1, "reason": "", "facts": facts });
    let status = serde_json::from_value(status).unwrap();
    let said = told(&batches(&world, vec![Change::SetNodeStatus { node: node_id(1), status }])[0]);
    assert_eq!(said.len(), 2, "{said:?}");
    for part in [
        "node n1 removed 1 image that nobody needs: a:1 (2 KiB are free again)",
        "a disk of node n1 is 91 % full: it takes no new tasks",
    ] {
        assert!(said.iter().any(|message| message == part), "{said:?}");
    }
}
