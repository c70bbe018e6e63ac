//! What every runtime must do, as a suite that each implementation runs.
//!
//! Containers of the suite run a few words of shell, which a fake understands as well.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, time::timeout};
use wharf_model::{
    AppKey, ContainerSpec, EndpointMode, Exit, Health, Healthcheck, Image, Millis, NetworkAssignment,
    NetworkId, PortSpec, Progress, Protocol, PublishMode, PullPolicy, ServiceKey, ServiceSpec, Slot, Target,
    TaskAssignment, TaskId, VolumeAssignment, VolumeId, VolumeSpec, mac_for,
};

use super::{
    Connection, Container, ContainerId, ContainerState, ExecRequest, LogQuery, LogSource, NewContainer,
    Runtime, Surroundings, container_name,
};

/// How long anything in the suite may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A process that must not end by itself.
const FOREVER: &str = "while :; do sleep 0.1; done";

/// What an engine must have for the suite.
#[derive(Debug, Clone)]
pub struct World {
    /// An image with a shell, loaded on the node and in no registry.
    pub image: String,
    /// A reference that no registry and no node has.
    pub missing: String,
    /// Distinguishes runs on one engine.
    pub run: u64,
}

/// Runs the whole suite.
///
/// # Panics
/// If the runtime breaks the contract.
pub async fn check(runtime: &dyn Runtime, world: &World) {
    let suite = Suite { runtime, world, made: AtomicU64::new(0) };
    suite.facts_are_given().await;
    suite.images_are_pinned_and_missing_ones_are_named().await;
    suite.images_that_containers_are_made_from_stay().await;
    suite.a_container_lives_from_create_to_remove().await;
    suite.every_call_may_be_made_twice().await;
    suite.exits_are_told().await;
    suite.a_process_that_does_not_listen_is_killed_after_its_grace().await;
    suite.what_cannot_start_is_fatal_with_a_hint().await;
    suite.output_is_read_by_tail_and_source_and_followed().await;
    suite.commands_have_input_output_signals_and_exit_codes().await;
    suite.checks_of_the_engine_are_told().await;
    suite.events_say_what_happened_to_ours().await;
    suite.usage_is_measured().await;
    suite.networks_give_the_addresses_that_were_asked_for().await;
    suite.volumes_keep_their_data_until_they_are_removed().await;
}

/// A task for tests: `number` makes its identifier.
pub fn sample_task(number: u64, service: &str, image: &str) -> TaskAssignment {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let legal = "a name for tests is legal";
    let app = AppKey { environment: "test".parse().expect(legal), name: "shop".parse().expect(legal) };
    TaskAssignment {
        id: TaskId::from_parts(1_700_000_000_000, random),
        service: ServiceKey { app, name: service.parse().expect(legal) },
        slot: Slot(1),
        generation: wharf_model::Generation(1),
        name: format!("shop-{service}-1"),
        target: Target::Run,
        spec: ServiceSpec {
            image: image.to_owned(),
            pull_policy: PullPolicy::default(),
            mode: wharf_model::Mode::default(),
            container: ContainerSpec::default(),
            depends_on: BTreeMap::new(),
            network_mode: wharf_model::NetworkMode::default(),
            endpoint_mode: EndpointMode::Dnsrr,
            networks: BTreeMap::new(),
            ports: Vec::new(),
            expose: Vec::new(),
            restart: wharf_model::RestartPolicy::default(),
            update: wharf_model::UpdatePolicy::default(),
            rollback: None,
            placement: wharf_model::PlacementSpec::default(),
            resources: wharf_model::Resources::default(),
            healthcheck: None,
            probe: None,
            labels: BTreeMap::new(),
            configs: Vec::new(),
            secrets: Vec::new(),
            policy: wharf_model::ServicePolicy::default(),
        },
        image: Image::named(image),
        attachments: Vec::new(),
        volumes: BTreeMap::new(),
        files: Vec::new(),
        devices: Vec::new(),
        companions: BTreeMap::new(),
        fenced: false,
    }
}

fn shell(script: &str) -> ContainerSpec {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ContainerSpec { command: Some(command), ..ContainerSpec::default() }
}

/// Runs until it is asked to stop, and then ends well.
fn obedient() -> ContainerSpec {
    shell(&format!("trap 'exit 0' TERM; {FOREVER}"))
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} within {} s", PATIENCE.as_secs()))
}

struct Suite<'a> {
    runtime: &'a dyn Runtime,
    world: &'a World,
    made: AtomicU64,
}

impl Suite<'_> {
    fn task(&self, service: &str, container: ContainerSpec) -> TaskAssignment {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut task = sample_task(self.world.run * 1000 + number, service, &self.world.image);
        task.spec.container = container;
        task
    }

    async fn surroundings(&self) -> Surroundings {
        let image = Image::named(self.world.image.clone());
        let local = self.runtime.ensure_image(&image, PullPolicy::Missing, None, &|_| {}).await;
        Surroundings { image_id: local.expect("the image is loaded").id, ..Surroundings::default() }
    }

    async fn create(&self, task: &TaskAssignment) -> ContainerId {
        self.create_in(task, &self.surroundings().await).await
    }

    async fn create_in(&self, task: &TaskAssignment, surroundings: &Surroundings) -> ContainerId {
        self.runtime.create(&NewContainer { task, surroundings }).await.expect("it is made")
    }

    async fn run(&self, task: &TaskAssignment) -> ContainerId {
        let id = self.create(task).await;
        self.runtime.start(&id).await.expect("it starts");
        id
    }

    async fn look(&self, id: &ContainerId) -> Container {
        self.runtime.inspect(id).await.expect("the engine answers").expect("it is there")
    }

    async fn until(&self, what: &str, id: &ContainerId, wanted: impl Fn(&Container) -> bool) -> Container {
        soon(what, async {
            loop {
                let container = self.look(id).await;
                if wanted(&container) {
                    return container;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    async fn output(&self, id: &ContainerId, query: LogQuery) -> String {
        let stream = self.runtime.logs(id, query).await.expect("its output can be read");
        let frames = soon("its output ends", stream.collect::<Vec<_>>()).await;
        let bytes: Vec<u8> =
            frames.into_iter().flat_map(|frame| frame.expect("no break").bytes.to_vec()).collect();
        String::from_utf8(bytes).expect("it is text")
    }

    async fn facts_are_given(&self) {
        let facts = self.runtime.facts().await.expect("the engine answers");
        assert!(!facts.engine.version.is_empty() && facts.cpus > 0 && facts.memory > 0, "{facts:?}");
        assert!(matches!(facts.cgroup_version, 1 | 2), "{facts:?}");
    }

    async fn images_are_pinned_and_missing_ones_are_named(&self) {
        let World { image, missing, .. } = self.world;
        let pinned =
            self.runtime.resolve_image(image, PullPolicy::Missing, None).await.expect("it is loaded");
        let id = pinned.id.clone().expect("what no registry has is pinned by the engine's identifier");
        let told = Mutex::new(Vec::<Progress>::new());
        let sink = |progress| told.lock().push(progress);
        let found =
            self.runtime.ensure_image(&pinned, PullPolicy::Missing, None, &sink).await.expect("it is here");
        assert_eq!(found.id, id);
        assert!(told.lock().is_empty(), "what is here is not pulled");

        let error =
            self.runtime.resolve_image(missing, PullPolicy::Missing, None).await.expect_err("nobody has it");
        assert!(!error.is_temporary() && error.to_string().contains(missing.as_str()), "{error}");
        let elsewhere = Image { id: Some(format!("sha256:{}", "0".repeat(64))), ..pinned };
        let error = self.runtime.ensure_image(&elsewhere, PullPolicy::Missing, None, &sink).await;
        let error = error.expect_err("an identifier that this engine does not know cannot be pulled");
        assert!(!error.is_temporary() && error.hint().is_some(), "{error}");
        let never = Image::named(missing.clone());
        let error = self
            .runtime
            .ensure_image(&never, PullPolicy::Never, None, &sink)
            .await
            .expect_err("never pulled");
        assert!(!error.is_temporary(), "{error}");
    }

    async fn a_container_lives_from_create_to_remove(&self) {
        let task = self.task("life", obedient());
        let id = self.create(&task).await;
        let made = self.look(&id).await;
        assert_eq!((made.task, &made.state), (task.id, &ContainerState::Created));
        assert_eq!(made.name, container_name(&task));
        assert_eq!(self.look(&ContainerId(made.name.clone())).await.id, id, "it is found by its name");

        self.runtime.start(&id).await.expect("it starts");
        assert!(self.look(&id).await.state.is_running());
        let listed = self.runtime.list().await.expect("the engine answers");
        assert!(listed.iter().any(|container| container.task == task.id && container.state.is_running()));
        let raw = self.runtime.inspect_raw(&id).await.expect("it is there");
        assert_eq!(raw["Id"].as_str(), Some(id.0.as_str()));

        self.runtime.stop(&id, Duration::from_secs(20)).await.expect("it stops");
        let ContainerState::Exited { exit, ended_at, .. } = self.look(&id).await.state else {
            panic!("it runs")
        };
        assert!(exit.is_success() && ended_at.0 > 0, "its stop signal was heard: {exit}");
        self.runtime.remove(&id).await.expect("it goes");
        assert_eq!(self.runtime.inspect(&id).await.expect("the engine answers"), None);
        let listed = self.runtime.list().await.expect("the engine answers");
        assert!(listed.iter().all(|container| container.task != task.id));
    }

    async fn every_call_may_be_made_twice(&self) {
        let task = self.task("twice", obedient());
        let id = self.run(&task).await;
        assert_eq!(self.create(&task).await, id, "the same container again");
        let before = self.look(&id).await.state;
        self.runtime.start(&id).await.expect("it runs already");
        assert_eq!(self.look(&id).await.state, before, "and goes on as it was");
        for _ in 0..2 {
            self.runtime.stop(&id, Duration::from_secs(20)).await.expect("it stops, or has stopped");
        }
        self.runtime.kill(&id, "SIGKILL").await.expect("nothing is left to be killed");
        for _ in 0..2 {
            self.runtime.remove(&id).await.expect("it goes, or is gone");
        }
        self.runtime.stop(&id, Duration::from_secs(1)).await.expect("what is gone has stopped");
        assert!(self.runtime.start(&id).await.expect_err("it is gone").is_not_found());
    }

    async fn exits_are_told(&self) {
        let id = self.run(&self.task("exits", shell("exit 3"))).await;
        let exit = soon("it ends", self.runtime.wait(&id)).await.expect("it is waited for");
        assert_eq!(exit, Exit { code: 3, oom: false });
        self.runtime.remove(&id).await.expect("it goes");

        let id = self.run(&self.task("killed", obedient())).await;
        self.runtime.kill(&id, "SIGKILL").await.expect("it is killed");
        let exit = soon("it ends", self.runtime.wait(&id)).await.expect("it is waited for");
        assert_eq!(exit.code, 137);
        self.runtime.remove(&id).await.expect("it goes");
    }

    async fn a_process_that_does_not_listen_is_killed_after_its_grace(&self) {
        let id = self.run(&self.task("deaf", shell(FOREVER))).await;
        soon("it stops", self.runtime.stop(&id, Duration::from_secs(1))).await.expect("it is stopped");
        let ContainerState::Exited { exit, .. } = self.look(&id).await.state else { panic!("it runs") };
        assert_eq!(exit.code, 137);
        self.runtime.remove(&id).await.expect("it goes");
    }

    async fn what_cannot_start_is_fatal_with_a_hint(&self) {
        let command = Some(vec!["/no/such/program".to_owned()]);
        let id =
            self.create(&self.task("absent", ContainerSpec { command, ..ContainerSpec::default() })).await;
        let error = self.runtime.start(&id).await.expect_err("there is no such program");
        assert!(!error.is_temporary() && error.to_string().contains("/no/such/program"), "{error}");
        assert!(error.hint().is_some());
        assert!(!self.look(&id).await.state.is_running());
        self.runtime.remove(&id).await.expect("it goes");
    }

    async fn output_is_read_by_tail_and_source_and_followed(&self) {
        let script = "echo one; echo two; echo oops >&2; echo three; exit 1";
        let id = self.run(&self.task("output", shell(script))).await;
        soon("it ends", self.runtime.wait(&id)).await.expect("it is waited for");
        let only = |stdout| LogQuery { stdout, stderr: !stdout, ..LogQuery::default() };
        assert_eq!(self.output(&id, only(true)).await, "one\ntwo\nthree\n");
        assert_eq!(self.output(&id, only(false)).await, "oops\n");
        let two = LogQuery { tail: Some(2), ..LogQuery::default() };
        assert_eq!(self.output(&id, two.clone()).await.lines().count(), 2);
        assert_eq!(
            self.output(&id, LogQuery { follow: true, ..two }).await.lines().count(),
            2,
            "it ends with it"
        );
        let all = self.runtime.logs(&id, LogQuery::default()).await.expect("it can be read");
        let frames: Vec<_> = soon("it ends", all.map(|frame| frame.expect("no break")).collect()).await;
        assert!(frames.iter().all(|frame| frame.at.is_some()), "every line has its time");
        let late = frames.iter().filter_map(|frame| frame.at).max().expect("there are some");
        let after = LogQuery { since: Some(late + Duration::from_millis(1)), ..LogQuery::default() };
        assert_eq!(self.output(&id, after).await, "");
        self.runtime.remove(&id).await.expect("it goes");

        let ticking = "trap 'exit 0' TERM; while :; do echo tick; sleep 0.1; done";
        let id = self.run(&self.task("ticking", shell(ticking))).await;
        let follow = LogQuery { follow: true, ..LogQuery::default() };
        let mut stream = self.runtime.logs(&id, follow).await.expect("it can be followed");
        for _ in 0..3 {
            let frame = soon("the next line", stream.next()).await.expect("it goes on").expect("no break");
            assert_eq!((&frame.bytes[..], frame.source), (&b"tick\n"[..], LogSource::Stdout));
        }
        self.runtime.remove(&id).await.expect("it goes");
        soon("the stream ends with it", async { while stream.next().await.is_some() {} }).await;
    }

    async fn commands_have_input_output_signals_and_exit_codes(&self) {
        let id = self.run(&self.task("exec", obedient())).await;
        let command = |words: &[&str]| ExecRequest {
            command: words.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecRequest::default()
        };

        let request = command(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
        let session = self.runtime.exec(&id, &request).await.expect("it runs");
        let frames: Vec<_> =
            soon("it ends", session.output.map(|frame| frame.expect("no break")).collect()).await;
        let of = |source| -> Vec<u8> {
            frames
                .iter()
                .filter(|frame| frame.source == source)
                .flat_map(|frame| frame.bytes.to_vec())
                .collect()
        };
        assert_eq!((of(LogSource::Stdout), of(LogSource::Stderr)), (b"out\n".to_vec(), b"err\n".to_vec()));
        assert_eq!(soon("its code is known", session.control.exit_code()).await.expect("it ended"), 7);

        let request = ExecRequest { stdin: true, ..command(&["cat"]) };
        let mut session = self.runtime.exec(&id, &request).await.expect("it runs");
        session.input.write_all(b"to and fro").await.expect("it listens");
        session.input.shutdown().await.expect("its input ends");
        let frames: Vec<_> =
            soon("it ends", session.output.map(|frame| frame.expect("no break")).collect()).await;
        let text: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.to_vec()).collect();
        assert_eq!(text, b"to and fro", "the end of the input is not the end of the output");
        assert_eq!(soon("its code is known", session.control.exit_code()).await.expect("it ended"), 0);

        let request =
            ExecRequest { tty: true, stdin: true, size: Some((80, 24)), ..command(&["sleep", "1000"]) };
        let session = self.runtime.exec(&id, &request).await.expect("it runs");
        session.control.resize(120, 40).await.expect("its terminal has a size");
        session.control.signal("SIGKILL").await.expect("it is killed");
        soon("it ends", session.output.collect::<Vec<_>>()).await;
        assert_eq!(soon("its code is known", session.control.exit_code()).await.expect("it ended"), 137);
        session.control.signal("SIGTERM").await.expect("what has ended hears nothing");
        self.runtime.remove(&id).await.expect("it goes");
    }

    async fn images_that_containers_are_made_from_stay(&self) {
        let id = self.run(&self.task("image", obedient())).await;
        let image = self.look(&id).await.image_id;
        let listed = self.runtime.list_images().await.expect("the engine answers");
        let found = listed.iter().find(|found| found.id == image).expect("it has the image");
        assert!(found.used && found.size > 0, "{found:?}");
        let error = self.runtime.remove_image(&image).await.expect_err("it is used");
        assert!(error.is_temporary(), "{error}");
        let listed = self.runtime.list_images().await.expect("the engine answers");
        assert_eq!(listed.iter().find(|again| again.id == image), Some(found), "it has kept its names");
        self.runtime.remove(&id).await.expect("it goes");
        self.runtime.remove_image("sha256:0123").await.expect("what is gone is gone");
    }

    async fn checks_of_the_engine_are_told(&self) {
        let check = |script: &str| {
            Some(Healthcheck {
                test: Some(vec!["CMD-SHELL".to_owned(), script.to_owned()]),
                interval: Some(Millis(100)),
                timeout: Some(Millis(5_000)),
                retries: Some(2),
                ..Healthcheck::default()
            })
        };
        for (script, wanted) in [("exit 0", Health::Healthy), ("echo too bad; exit 1", Health::Unhealthy)] {
            let mut task = self.task("check", obedient());
            task.spec.healthcheck = check(script);
            let id = self.run(&task).await;
            let told =
                |container: &Container| container.check.as_ref().is_some_and(|check| check.health == wanted);
            let container = self.until(&format!("it is {wanted}"), &id, told).await;
            if wanted == Health::Unhealthy {
                assert_eq!(container.check.expect("it has one").output, "too bad");
            }
            self.runtime.remove(&id).await.expect("it goes");
        }
        let id = self.run(&self.task("unchecked", obedient())).await;
        assert_eq!(self.look(&id).await.check, None);
        self.runtime.remove(&id).await.expect("it goes");
    }

    async fn events_say_what_happened_to_ours(&self) {
        let mut events = self.runtime.events(None).await.expect("the engine answers");
        // Whether the engine counts us among its listeners yet is only seen in an event.
        let task = self.task("events", shell("exit 5"));
        let seen = async {
            let mut actions = Vec::new();
            while let Some(event) = events.next().await {
                let event = event.expect("no break");
                if event.task == Some(task.id) {
                    actions.push(event.action.clone());
                }
                if event.task == Some(task.id) && event.action == "destroy" {
                    return actions;
                }
            }
            panic!("the events ended");
        };
        let act = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let id = self.run(&task).await;
            self.runtime.wait(&id).await.expect("it ends");
            self.runtime.remove(&id).await.expect("it goes");
        };
        let (actions, ()) = soon("the events come", async { tokio::join!(seen, act) }).await;
        assert_eq!(actions, ["create", "start", "die", "destroy"]);
    }

    async fn usage_is_measured(&self) {
        let id = self.run(&self.task("usage", obedient())).await;
        let mut once = self.runtime.stats(&id, false).await.expect("it is measured");
        let stats = soon("a measurement", once.next()).await.expect("there is one").expect("no break");
        assert!(stats.memory_limit > 0 && stats.cpu_nanos > 0 && stats.at.0 > 0, "{stats:?}");
        assert!(soon("only one", once.next()).await.is_none());
        let mut stream = self.runtime.stats(&id, true).await.expect("it is measured");
        let first = soon("a measurement", stream.next()).await.expect("there is one").expect("no break");
        let second = soon("another", stream.next()).await.expect("there is one").expect("no break");
        assert!(second.at >= first.at && second.cpu_nanos >= first.cpu_nanos, "{first:?} {second:?}");
        self.runtime.remove(&id).await.expect("it goes");
    }

    fn network(&self, number: u8, name: &str) -> NetworkAssignment {
        let vni = u32::try_from(self.world.run % 1000).unwrap_or_default() * 10 + u32::from(number);
        let mut random = [9, 9, number, 0, 0, 0, 0, 0, 0, 0];
        random[3..7].copy_from_slice(&vni.to_be_bytes());
        let (id, name) = (NetworkId::from_parts(1, random), format!("{name}-{}", self.world.run));
        let subnet = format!("10.213.{number}.0/24").parse().expect("it is a subnet");
        NetworkAssignment::new(id, name, vni, subnet, Ipv4Addr::new(10, 213, number, 1))
    }

    async fn networks_give_the_addresses_that_were_asked_for(&self) {
        let (front, back) = (self.network(1, "z-front"), self.network(2, "a-back"));
        let mut surroundings = self.surroundings().await;
        for network in [&front, &back] {
            let local = self.runtime.ensure_network(network, 1450).await.expect("it is made");
            assert_eq!(self.runtime.ensure_network(network, 1450).await.expect("it is there"), local);
            let [a, b, c, _] = network.gateway.octets();
            let address = Ipv4Addr::new(a, b, c, 77);
            surroundings.networks.push(Connection {
                network: local.name,
                address,
                address6: network.subnet6.map(|subnet| wharf_model::ipv6_for(subnet, address)),
                gateway: network.gateway,
                endpoint: wharf_model::EndpointSpec::default(),
            });
        }
        let listed = self.runtime.list_networks().await.expect("the engine answers");
        assert!(listed.contains(&front.id) && listed.contains(&back.id));
        let twin = NetworkAssignment { id: NetworkId::from_parts(2, [7; 10]), ..self.network(3, "z-front") };
        let other = self.runtime.ensure_network(&twin, 1450).await.expect("it is made");
        assert_ne!(other.name, surroundings.networks[0].network, "two networks of one name are kept apart");
        self.runtime.remove_network(twin.id).await.expect("it goes");

        let mut task = self.task("addresses", obedient());
        task.attachments = [&front, &back]
            .iter()
            .zip(&surroundings.networks)
            .map(|(network, on)| wharf_model::Attachment {
                network: network.id,
                address: on.address,
                address6: None,
                endpoint: on.endpoint.clone(),
            })
            .collect();
        task.spec.ports = vec![PortSpec {
            target: 80,
            published: None,
            published_to: None,
            protocol: Protocol::Tcp,
            mode: PublishMode::Host,
            host_ip: None,
            name: None,
            app_protocol: None,
        }];
        let id = self.create_in(&task, &surroundings).await;
        self.runtime.start(&id).await.expect("it starts");
        let running = self.look(&id).await;
        let expected: BTreeMap<_, _> =
            surroundings.networks.iter().map(|on| (on.network.clone(), on.address.into())).collect();
        assert_eq!(running.addresses, expected);
        assert!(running.host_ports.get(&80).is_some_and(|port| *port > 0), "{:?}", running.host_ports);
        let raw = self.runtime.inspect_raw(&id).await.expect("it is there");
        // A fake has no such detail.
        if let Some(networks) = raw["NetworkSettings"]["Networks"].as_object() {
            for on in &surroundings.networks {
                let mac = networks[&on.network]["MacAddress"].as_str().unwrap_or_default();
                assert_eq!(mac, super::spec::mac_text(mac_for(on.address)), "on {}", on.network);
            }
        }
        assert!(self.runtime.remove_network(front.id).await.expect_err("it is in use").is_temporary());
        self.runtime.remove(&id).await.expect("it goes");
        for network in [front.id, back.id, back.id] {
            self.runtime.remove_network(network).await.expect("it goes, or is gone");
        }
        assert!(!self.runtime.list_networks().await.expect("the engine answers").contains(&front.id));
    }

    async fn volumes_keep_their_data_until_they_are_removed(&self) {
        let mut random = [8; 10];
        random[2..].copy_from_slice(&self.world.run.to_be_bytes());
        let volume = VolumeAssignment {
            id: VolumeId::from_parts(1, random),
            name: format!("shop_data-{}", self.world.run),
            spec: VolumeSpec::default(),
        };
        let local = self.runtime.ensure_volume(&volume).await.expect("it is made");
        assert_eq!(self.runtime.ensure_volume(&volume).await.expect("it is there"), local);
        let twin = VolumeAssignment { id: VolumeId::from_parts(2, random), ..volume.clone() };
        let other = self.runtime.ensure_volume(&twin).await.expect("it is made");
        assert_ne!(other, local, "two volumes of one name are kept apart");
        self.runtime.remove_volume(twin.id).await.expect("it goes");
        let guest = VolumeAssignment {
            id: VolumeId::from_parts(3, random),
            spec: VolumeSpec { external: true, ..VolumeSpec::default() },
            ..volume.clone()
        };
        let shared = self.runtime.ensure_volume(&guest).await.expect("somebody else made it");
        assert_eq!(shared, local, "what is external is used as it is");
        let nowhere = VolumeAssignment { name: format!("nowhere-{}", self.world.run), ..guest.clone() };
        let missing = self.runtime.ensure_volume(&nowhere).await.expect_err("nobody made it");
        assert!(missing.hint().is_some_and(|hint| hint.contains("docker volume create")), "{missing}");
        self.runtime.remove_volume(guest.id).await.expect("it was never ours");

        let name: wharf_model::VolumeName = "data".parse().expect("a name for tests is legal");
        let mut task = self.task("volume", shell("echo kept > /data/file; exit 0"));
        task.spec.container.mounts = vec![wharf_model::MountSpec {
            source: wharf_model::MountSource::Volume { volume: name.clone(), nocopy: false, subpath: None },
            target: "/data".to_owned(),
            read_only: false,
        }];
        task.volumes = BTreeMap::from([(name.clone(), volume.id)]);
        let surroundings =
            Surroundings { volumes: BTreeMap::from([(name, local.name)]), ..self.surroundings().await };
        let id = self.create_in(&task, &surroundings).await;
        assert!(self.runtime.remove_volume(volume.id).await.expect_err("it is in use").is_temporary());
        self.runtime.start(&id).await.expect("it starts");
        let exit = soon("it ends", self.runtime.wait(&id)).await.expect("it is waited for");
        assert!(exit.is_success(), "the volume is writable: {exit}");
        self.runtime.remove(&id).await.expect("it goes");
        for _ in 0..2 {
            self.runtime.remove_volume(volume.id).await.expect("it goes, or is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wharf_process::{Shutdown, SystemClock, Tasks};

    use super::*;
    use crate::runtime::{FakeRuntime, fake::FakeImage};

    #[tokio::test(start_paused = true)]
    async fn the_fake_keeps_the_contract() {
        let tasks = Tasks::new(&Shutdown::new());
        let runtime = FakeRuntime::new(&tasks, Arc::new(SystemClock::new()));
        runtime.load_image("wharf/shell:1", FakeImage::loaded("wharf/shell:1"));
        let world = World { image: "wharf/shell:1".to_owned(), missing: "wharf/absent:1".to_owned(), run: 1 };
        check(&runtime, &world).await;
    }
}
