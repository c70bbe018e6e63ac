//! Devices that nodes have are given to tasks one by one: what engines and machines say they have, what services ask for, and what
//! containers are told.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use wharf_testkit::cluster::{Cluster, Seed, try_wait_until};
use wharf_tests::{Fleet, items, skip, text};

const SOON: Duration = Duration::from_secs(90);

const APP: &str = r"
name: lab
x-still: &still {image: 'busybox:1', command: sleep 10000, stop_grace_period: 0s}
services:
  train:
    <<: *still
    deploy:
      replicas: 3
      resources: &one_gpu {reservations: {generic_resources: [{discrete_resource_spec: {kind: gpu, value: 1}}]}}
  serve: {<<: *still, deploy: {resources: *one_gpu}}
  cache:
    <<: *still
    deploy:
      resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: ssd, value: 2}}]}}
";

#[test]
fn no_two_tasks_get_the_same_device() {
    if skip() {
        return;
    }
    // Each engine has two GPUs that it knows by name, and one agent says what disks its machine has.
    let machines = Cluster::builder().nodes(2).seed(Seed::basic().unwrap());
    let machines = machines
        .engine_arg("--node-generic-resource=NVIDIA-GPU=GPU-a")
        .engine_arg("--node-generic-resource=NVIDIA-GPU=GPU-b");
    let fleet = Fleet::try_start(machines).unwrap();
    let agent = fleet.node(2).service("wharf");
    agent.stop().unwrap();
    agent.run(["wharf", "agent", "run", "--device", "ssd=2"]).unwrap();
    let file = fleet.file("lab", APP);
    fleet.ok(["up", "-y", "-f", &file]);

    let mut whole = BTreeSet::new();
    for task in fleet.tasks("lab").unwrap() {
        let (name, node) = (text(&task["name"]), text(&task["node"]));
        let number: u8 = node.trim_start_matches('n').parse().unwrap();
        let script = format!("docker exec $(docker ps -q --filter name={name}) env");
        let environment = fleet.node(number).run(["sh", "-c", &script]).unwrap();
        let variable = |name: &str| {
            let found = environment.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("no {name} in {environment}")).to_owned()
        };
        match text(&task["service"]) {
            "train" | "serve" => {
                let gpu = format!("{node} {}", variable("NVIDIA_VISIBLE_DEVICES"));
                assert!(whole.insert(gpu.clone()), "{gpu} is given out twice");
                assert_eq!(gpu, format!("{node} {}", variable("DOCKER_RESOURCE_NVIDIA-GPU")));
            }
            _ => {
                assert_eq!((node, variable("DOCKER_RESOURCE_SSD").as_str()), ("n2", "2"));
            }
        }
    }
    assert_eq!(whole.len(), 4, "{whole:?}");
    for node in items(&fleet.json(["node", "ls"])) {
        assert!(node["devices"].to_string().contains("2 NVIDIA-GPU"), "{node}");
    }

    // One more is one too many, and says so.
    fleet.ok(["scale", "-p", "lab", "--detach", "train=4"]);
    try_wait_until(SOON, "the fourth task says what it waits for", || {
        let said = fleet.ok(["explain", "lab/train"]);
        ensure!(said.contains("too few free devices of kind gpu"), "{said}");
        Ok(())
    })
    .unwrap();
}
