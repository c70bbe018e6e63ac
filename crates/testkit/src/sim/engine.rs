//! The engine of a simulated node: the agent's own fake, which outlives agents, with the faults of real ones.
//!
//! It may be slow, away, out of space, cut off in the middle of a call that is done all the same; it may tell of what is over as if it were
//! not, tell twice, or tell nothing.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use wharf_agent::runtime::{
    Container, ContainerId, Credentials, ExecRequest, ExecSession, FakeRuntime, FirstProcess, LocalImage,
    LocalNetwork, LocalVolume, LogQuery, LogStream, NewContainer, ProgressSink, Result, Runtime,
    RuntimeError, RuntimeEvent, RuntimeFacts, Stats,
};
use wharf_model::{
    Exit, Image, NetworkAssignment, NetworkId, PublishMode, PullPolicy, TaskAssignment, Timestamp,
    VolumeAssignment, VolumeId,
};

use super::{chance::Dice, life::Life};

/// Told whenever a container may have started.
type Witness = Box<dyn Fn() + Send + Sync>;

/// An engine, and how well it does.
pub struct Engine {
    /// What it really does.
    pub real: FakeRuntime,
    condition: Mutex<Condition>,
    dice: Dice,
    witness: Mutex<Option<Witness>>,
    /// What was last said of each container, for lies.
    said: Mutex<BTreeMap<String, Container>>,
}
#[derive(Debug, Default, Clone, Copy)]
struct Condition {
    /// Calls take up to so many milliseconds.
    slow: u64,
    /// Of a thousand calls so many fail, before or after they are done.
    flaky: u32,
    /// Of a thousand answers so many are what was true before; of as many events some come twice and some never.
    lying: u32,
    full: bool,
}

impl Engine {
    /// One that does well.
    pub fn new(real: FakeRuntime, dice: Dice) -> Arc<Self> {
        let (condition, witness, said) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { real, condition, dice, witness, said })
    }
    /// Has somebody look whenever a container may have started.
    pub fn show(&self, witness: impl Fn() + Send + Sync + 'static) {
        *self.witness.lock() = Some(Box::new(witness));
    }
    /// Calls take up to so many milliseconds.
    pub fn set_slow(&self, millis: u64) {
        self.condition.lock().slow = millis;
    }
    /// Of a thousand calls so many fail.
    pub fn set_flaky(&self, permille: u32) {
        self.condition.lock().flaky = permille;
    }
    /// Of a thousand answers so many are not true any more.
    pub fn set_lying(&self, permille: u32) {
        self.condition.lock().lying = permille;
    }
    /// It has no space left.
    pub fn set_full(&self, full: bool) {
        self.condition.lock().full = full;
    }
    /// Everything is well.
    pub fn heal(&self) {
        *self.condition.lock() = Condition::default();
    }
    fn started(&self) {
        if let Some(witness) = &*self.witness.lock() {
            witness();
        }
    }
}

/// How one run of an agent reaches its engine.
pub struct Reach {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The agent.
    pub life: Life,
}
impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reach")
    }
}

impl Reach {
    /// The way there or back. Every call is an await on which the agent may die.
    async fn way(&self) -> Result<()> {
        self.life.gate().await;
        let now = *self.engine.condition.lock();
        if now.slow > 0 {
            tokio::time::sleep(Duration::from_millis(self.engine.dice.below(now.slow))).await;
        }
        if now.flaky > 0 && self.engine.dice.permille(now.flaky) {
            return Err(RuntimeError::unreachable("the connection to the engine broke"));
        }
        self.life.gate().await;
        Ok(())
    }
    /// A call, which is done or not if it fails.
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.way().await?;
        let answer = call.await;
        self.way().await?;
        answer
    }
    /// The same of one that needs space.
    async fn writing<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        if self.engine.condition.lock().full {
            return Err(RuntimeError::temporary("no space left on device"));
        }
        self.call(call).await
    }
    fn lies(&self) -> bool {
        let lying = self.engine.condition.lock().lying;
        lying > 0 && self.engine.dice.permille(lying)
    }
    /// A port of the node that a container should have, and that another has whose process runs.
    async fn held_port(&self, container: &ContainerId) -> Option<u16> {
        let task = self.real().inspect(container).await.ok()??.task;
        let (assignment, _) = self.real().made_from(task)?;
        let ports = |task: &TaskAssignment| -> Vec<_> {
            let host = task.spec.ports.iter().filter(|port| port.mode == PublishMode::Host);
            host.filter_map(|port| Some((port.published?, port.protocol))).collect()
        };
        let held = self.real().running(|other| if other.id == task { Vec::new() } else { ports(other) });
        let held: Vec<_> = held.into_iter().flatten().collect();
        ports(&assignment).into_iter().find(|port| held.contains(port)).map(|(port, _)| port)
    }
    fn real(&self) -> &FakeRuntime {
        &self.engine.real
    }
}

#[async_trait]
impl Runtime for Reach {
    async fn facts(&self) -> Result<RuntimeFacts> {
        self.call(self.real().facts()).await
    }
    async fn ensure_image(
        &self,
        image: &Image,
        policy: PullPolicy,
        credentials: Option<&Credentials>,
        progress: ProgressSink<'_>,
    ) -> Result<LocalImage> {
        self.writing(self.real().ensure_image(image, policy, credentials, progress)).await
    }
    async fn resolve_image(
        &self,
        reference: &str,
        policy: PullPolicy,
        credentials: Option<&Credentials>,
    ) -> Result<Image> {
        self.call(self.real().resolve_image(reference, policy, credentials)).await
    }
    async fn create(&self, container: &NewContainer<'_>) -> Result<ContainerId> {
        self.writing(self.real().create(container)).await
    }
    async fn start(&self, container: &ContainerId) -> Result<()> {
        let starting = async {
            if let Some(port) = self.held_port(container).await {
                // As the Docker Engine says it; the agent's fake lets everything start.
                return Err(RuntimeError::fatal(format!(
                    "Bind for {port} failed: port is already allocated"
                )));
            }
            let answer = self.real().start(container).await;
            self.engine.started();
            answer
        };
        self.call(starting).await
    }
    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<()> {
        self.call(self.real().stop(container, grace)).await
    }
    async fn kill(&self, container: &ContainerId, signal: &str) -> Result<()> {
        self.call(self.real().kill(container, signal)).await
    }
    async fn remove(&self, container: &ContainerId) -> Result<()> {
        self.call(self.real().remove(container)).await
    }
    async fn wait(&self, container: &ContainerId) -> Result<Exit> {
        self.call(self.real().wait(container)).await
    }
    async fn inspect(&self, container: &ContainerId) -> Result<Option<Container>> {
        let found = self.call(self.real().inspect(container)).await?;
        let mut said = self.engine.said.lock();
        let before = said.get(&container.0).cloned();
        if let (Some(now), Some(before)) = (&found, before)
            && *now != before
            // Of the same container only, and never that it runs before it does.
            && now.id == before.id
            && before.state.is_running()
            && self.lies()
        {
            return Ok(Some(before));
        }
        match &found {
            Some(now) => drop(said.insert(container.0.clone(), now.clone())),
            None => drop(said.remove(&container.0)),
        }
        Ok(found)
    }
    async fn first_process(&self, container: &Container) -> io::Result<Option<FirstProcess>> {
        self.real().first_process(container).await
    }
    async fn inspect_raw(&self, container: &ContainerId) -> Result<serde_json::Value> {
        self.call(self.real().inspect_raw(container)).await
    }
    async fn list(&self) -> Result<Vec<Container>> {
        self.call(self.real().list()).await
    }
    async fn logs(&self, container: &ContainerId, query: LogQuery) -> Result<LogStream> {
        self.call(self.real().logs(container, query)).await
    }
    async fn exec(&self, container: &ContainerId, request: &ExecRequest) -> Result<ExecSession> {
        self.call(self.real().exec(container, request)).await
    }
    async fn stats(
        &self,
        container: &ContainerId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Stats>>> {
        self.call(self.real().stats(container, follow)).await
    }
    async fn events(&self, since: Option<Timestamp>) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        let events = self.call(self.real().events(since)).await?;
        let reach = Self { engine: Arc::clone(&self.engine), life: self.life.clone() };
        let told = events.flat_map(move |event| {
            let times = match (&event, reach.lies()) {
                (Ok(_), true) if reach.engine.dice.permille(500) => 0,
                (Ok(_), true) => 2,
                (Ok(_), false) | (Err(_), _) => 1,
            };
            futures::stream::iter(std::iter::repeat_n(event, times))
        });
        Ok(told.boxed())
    }
    async fn ensure_network(&self, network: &NetworkAssignment, mtu: u32) -> Result<LocalNetwork> {
        self.call(self.real().ensure_network(network, mtu)).await
    }
    async fn remove_network(&self, network: NetworkId) -> Result<()> {
        self.call(self.real().remove_network(network)).await
    }
    async fn list_networks(&self) -> Result<Vec<NetworkId>> {
        self.call(self.real().list_networks()).await
    }
    async fn ensure_volume(&self, volume: &VolumeAssignment) -> Result<LocalVolume> {
        self.writing(self.real().ensure_volume(volume)).await
    }
    async fn remove_volume(&self, volume: VolumeId) -> Result<()> {
        self.call(self.real().remove_volume(volume)).await
    }
}
