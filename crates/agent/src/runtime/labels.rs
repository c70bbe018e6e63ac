//! The labels by which the agent knows what is its own, and the names of containers.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use wharf_model::{
    Dependency, DependencyCondition, NetworkId, ServiceName, ServiceSpec, Slot, TaskAssignment, TaskId,
    VolumeId,
};

/// The cluster that an object belongs to. Nothing without it is ever touched.
pub(crate) const CLUSTER: &str = "wharf.cluster";
pub(crate) const TASK: &str = "wharf.task";
pub(crate) const NETWORK: &str = "wharf.network";
pub(crate) const VOLUME: &str = "wharf.volume";

/// Makes and reads the labels of one cluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    cluster: String,
}

impl Labels {
    /// Those of this cluster.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into() }
    }
    /// The engine's filter for this cluster's objects.
    pub fn filter(&self) -> String {
        format!("{CLUSTER}={}", self.cluster)
    }
    /// The labels of a task's container; the file's own labels give way to them.
    pub fn of_task(&self, task: &TaskAssignment) -> HashMap<String, String> {
        let app = &task.service.app;
        let mut labels: HashMap<_, _> = task.spec.container.labels.clone().into_iter().collect();
        let number = if task.slot == Slot(0) { "1".to_owned() } else { task.slot.to_string() };
        labels.extend(
            [
                (CLUSTER, self.cluster.clone()),
                (TASK, task.id.to_string()),
                ("wharf.app", app.name.to_string()),
                ("wharf.environment", app.environment.to_string()),
                ("wharf.service", task.service.name.to_string()),
                ("wharf.slot", task.slot.to_string()),
                ("wharf.generation", task.generation.to_string()),
                ("com.docker.compose.project", app.name.to_string()),
                ("com.docker.compose.service", task.service.name.to_string()),
                ("com.docker.compose.container-number", number),
                ("com.docker.compose.oneoff", "False".to_owned()),
                // Tools that list Compose projects look for it, and compare it with nothing.
                ("com.docker.compose.config-hash", config_hash(&task.spec)),
                ("com.docker.compose.depends_on", depends_on(&task.spec)),
                ("com.docker.compose.version", env!("CARGO_PKG_VERSION").to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        labels
    }
    /// The labels of a network.
    pub fn of_network(&self, network: NetworkId) -> HashMap<String, String> {
        self.of(NETWORK, network.to_string())
    }
    /// The labels of a volume.
    pub fn of_volume(&self, volume: VolumeId) -> HashMap<String, String> {
        self.of(VOLUME, volume.to_string())
    }
    /// The task whose container carries these labels, if it is this cluster's.
    pub fn task(&self, labels: &HashMap<String, String>) -> Option<TaskId> {
        self.read(TASK, labels)?.parse().ok()
    }
    /// The network that carries these labels, if it is this cluster's.
    pub fn network(&self, labels: &HashMap<String, String>) -> Option<NetworkId> {
        self.read(NETWORK, labels)?.parse().ok()
    }
    /// The volume that carries these labels, if it is this cluster's.
    pub fn volume(&self, labels: &HashMap<String, String>) -> Option<VolumeId> {
        self.read(VOLUME, labels)?.parse().ok()
    }

    fn of(&self, key: &str, value: String) -> HashMap<String, String> {
        HashMap::from([(CLUSTER.to_owned(), self.cluster.clone()), (key.to_owned(), value)])
    }
    fn read<'a>(&self, key: &str, labels: &'a HashMap<String, String>) -> Option<&'a String> {
        (labels.get(CLUSTER) == Some(&self.cluster)).then(|| labels.get(key)).flatten()
    }
}

/// Equal for equal specifications.
fn config_hash(spec: &ServiceSpec) -> String {
    // Plain data in ordered collections always serialises.
    hex::encode(Sha256::digest(serde_json::to_vec(spec).unwrap_or_default()))
}

/// `db:service_healthy:true`, the last for whether it is restarted with that service.
fn depends_on(spec: &ServiceSpec) -> String {
    let one = |(name, on): (&ServiceName, &Dependency)| {
        let condition = match on.condition {
            DependencyCondition::ServiceStarted => "service_started",
            DependencyCondition::ServiceHealthy => "service_healthy",
            DependencyCondition::ServiceCompletedSuccessfully => "service_completed_successfully",
        };
        format!("{name}:{condition}:{}", on.restart)
    };
    spec.depends_on.iter().map(one).collect::<Vec<_>>().join(",")
}

/// What a task's container is called: unique over time, so that a new one never waits for an old one's name.
pub fn container_name(task: &TaskAssignment) -> String {
    let short = task.id.short();
    if task.name.ends_with(&short) { task.name.clone() } else { format!("{}-{short}", task.name) }
}
