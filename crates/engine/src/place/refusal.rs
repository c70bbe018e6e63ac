//! Why a node refuses a task, and why no node takes one: as data, in words, and with what can be done about it.

use std::fmt;

use wharf_model::{Bytes, Constraint, Cpus, NodeId, NodeState, ServiceName, Taint, Timestamp, VolumeName};

use super::devices::Lack;

/// Why a task may only run on certain nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Those nodes.
    pub nodes: Vec<NodeId>,
    /// What ties it to them.
    pub by: PinnedBy,
}

/// What ties a task to certain nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinnedBy {
    /// Data of this volume is there.
    Volume(VolumeName),
    /// A task of the service with which it shares that is there.
    Service(wharf_model::Shared, ServiceName),
    /// It is the task of a global service for that node.
    Global,
}

/// Why one node refuses one task. The order is the order of the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is being drained.
    Draining,
    /// It takes no new tasks.
    Paused,
    /// Somebody works on it.
    Maintenance {
        /// Until when.
        until: Timestamp,
    },
    /// It is not ready.
    NotReady(NodeState),
    /// Those who watch it do not hear it.
    Suspected,
    /// It went away too often, and has to be steady for a while before it gets new tasks.
    HeldBack,
    /// It is of another pool than the service asks for.
    Pool {
        /// The pool wanted, or nodes of no pool.
        wanted: Option<String>,
        /// The pool it is of, if of any.
        has: Option<String>,
    },
    /// It has a taint that the service does not bear.
    Taint(Taint),
    /// A constraint does not hold for it.
    Constraint(Constraint),
    /// It runs another platform than the image is for.
    Platform {
        /// The platform wanted.
        wanted: String,
    },
    /// Its engine is too old for something that the service uses.
    Engine {
        /// What.
        what: &'static str,
    },
    /// Tasks have to be in more places, and it is in none that has no task yet.
    Places {
        /// What is one place.
        over: String,
        /// In so many.
        at_least: u32,
        /// So many have tasks.
        used: usize,
    },
    /// No task of the service that tasks have to be near runs anywhere.
    NearNobody {
        /// The service.
        service: ServiceName,
    },
    /// No task of the service that tasks have to be near is there.
    NotNear {
        /// The service.
        service: ServiceName,
        /// What is one place.
        scope: String,
    },
    /// Somebody is there who must not be.
    NotApart(Apartness),
    /// The image that tasks have to be near is not there.
    NoImage {
        /// The image.
        image: String,
        /// What is one place.
        scope: String,
    },
    /// It has as many tasks of the service as may be on one node.
    PerNode {
        /// How many that is.
        max: u32,
    },
    /// With another one too few tasks of the service would be on other nodes.
    Elsewhere {
        /// How many have to be.
        at_least: u32,
        /// How many may be on one node, therefore.
        most: u32,
    },
    /// A port of the node that the task publishes is in use.
    HostPort {
        /// Which.
        port: u16,
    },
    /// Every port of the node is in use of those from which the task is to get one.
    HostPorts {
        /// The first of them.
        from: u16,
        /// The last.
        to: u16,
    },
    /// Too little processor time is unreserved.
    Cpus {
        /// How much the task reserves.
        need: Cpus,
        /// How much is free.
        free: Cpus,
    },
    /// Too little memory is unreserved.
    Memory {
        /// How much the task reserves.
        need: Bytes,
        /// How much is free.
        free: Bytes,
    },
    /// Too little disk is unreserved.
    Disk {
        /// How much the task reserves.
        need: Bytes,
        /// How much is free.
        free: Bytes,
    },
    /// The limits of its tasks would add up to more processor time than the node allows.
    LimitCpus {
        /// The task's limit.
        need: Cpus,
        /// How much there may be more.
        free: Cpus,
    },
    /// The limits of its tasks would add up to more memory than the node allows.
    LimitMemory {
        /// The task's limit.
        need: Bytes,
        /// How much there may be more.
        free: Bytes,
    },
    /// It cannot give the devices that the task wants.
    Devices(Lack),
    /// A disk of it is so full that it takes no new tasks.
    DiskFull {
        /// How full, in per cent.
        percent: u8,
        /// From how many on.
        mark: u8,
    },
}

/// Two services that must not be in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apartness {
    /// Who is there already.
    pub service: ServiceName,
    /// What is one place.
    pub scope: String,
    /// Whose file says so.
    pub asked_by: ServiceName,
}

/// No node takes the task: how many refused it, for each reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPlace {
    /// What ties the task to certain nodes, if anything does, and their names.
    pub pinned: Option<(PinnedBy, Vec<String>)>,
    /// Each reason with the number of nodes, the most frequent first. Of amounts, the one of the node with most free.
    pub refusals: Vec<(Refusal, usize)>,
}

/// Counts a refusal with those for the same reason; of amounts, keeps the one nearest to enough.
pub(crate) fn count(refusals: &mut Vec<(Refusal, usize)>, refusal: Refusal) {
    let Some((kept, nodes)) = refusals.iter_mut().find(|(kept, _)| kept.same_reason(&refusal)) else {
        return refusals.push((refusal, 1));
    };
    *nodes += 1;
    match (kept, refusal) {
        (Refusal::Cpus { free: kept, .. }, Refusal::Cpus { free, .. })
        | (Refusal::LimitCpus { free: kept, .. }, Refusal::LimitCpus { free, .. }) => *kept = free.max(*kept),
        (Refusal::Memory { free: kept, .. }, Refusal::Memory { free, .. })
        | (Refusal::Disk { free: kept, .. }, Refusal::Disk { free, .. })
        | (Refusal::LimitMemory { free: kept, .. }, Refusal::LimitMemory { free, .. }) => {
            *kept = free.max(*kept);
        }
        (Refusal::DiskFull { percent: kept, .. }, Refusal::DiskFull { percent, .. }) => {
            *kept = percent.min(*kept);
        }
        (Refusal::Devices(kept), Refusal::Devices(lack)) => kept.keep_nearer(&lack),
        (Refusal::Maintenance { until: kept }, Refusal::Maintenance { until }) => *kept = until.min(*kept),
        _ => {}
    }
}

/// `on one node`, `in one zone`: what a scope is called.
fn place(scope: &str) -> &str {
    match scope {
        "node" => "node",
        other => other.rsplit('.').next().unwrap_or(other),
    }
}

impl Refusal {
    /// Whether two are for the same reason, however much is missing.
    pub(crate) fn same_reason(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpus { .. }, Self::Cpus { .. })
            | (Self::Memory { .. }, Self::Memory { .. })
            | (Self::Disk { .. }, Self::Disk { .. })
            | (Self::LimitCpus { .. }, Self::LimitCpus { .. })
            | (Self::LimitMemory { .. }, Self::LimitMemory { .. })
            | (Self::DiskFull { .. }, Self::DiskFull { .. })
            | (Self::Maintenance { .. }, Self::Maintenance { .. }) => true,
            (Self::Pool { wanted: Some(_), .. }, Self::Pool { wanted: Some(_), .. }) => true,
            (Self::Devices(one), Self::Devices(other)) => one.same_reason(other),
            (one, other) => one == other,
        }
    }
    /// The number of its rule.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Draining => 0,
            Self::Paused => 1,
            Self::Maintenance { .. } => 2,
            Self::NotReady(_) | Self::Suspected | Self::HeldBack => 3,
            Self::Pool { .. } => 4,
            Self::Taint(_) => 5,
            Self::Constraint(_) => 6,
            Self::Platform { .. } => 7,
            Self::Engine { .. } => 8,
            Self::Places { .. } => 9,
            Self::NearNobody { .. } => 10,
            Self::NotNear { .. } => 11,
            Self::NotApart(_) => 12,
            Self::NoImage { .. } => 13,
            Self::PerNode { .. } => 14,
            Self::Elsewhere { .. } => 15,
            Self::HostPort { .. } => 16,
            Self::HostPorts { .. } => 17,
            Self::Cpus { .. } => 18,
            Self::Memory { .. } => 19,
            Self::Disk { .. } => 20,
            Self::LimitCpus { .. } => 21,
            Self::LimitMemory { .. } => 22,
            Self::Devices(_) => 23,
            Self::DiskFull { .. } => 24,
        }
    }
    /// Whether other tasks are in the way, rather than what the node or the service is.
    pub const fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Draining
            | Self::Paused
            | Self::Maintenance { .. }
            | Self::NotReady(_)
            | Self::Suspected
            | Self::HeldBack
            | Self::Pool { .. }
            | Self::Taint(_)
            | Self::Constraint(_)
            | Self::Platform { .. }
            | Self::Engine { .. }
            | Self::DiskFull { .. }
            | Self::NoImage { .. } => false,
            Self::Places { .. }
            | Self::NearNobody { .. }
            | Self::NotNear { .. }
            | Self::NotApart(_)
            | Self::PerNode { .. }
            | Self::Elsewhere { .. }
            | Self::HostPort { .. }
            | Self::HostPorts { .. }
            | Self::Cpus { .. }
            | Self::Memory { .. }
            | Self::Disk { .. }
            | Self::LimitCpus { .. }
            | Self::LimitMemory { .. } => true,
            Self::Devices(lack) => lack.is_for_want_of_room(),
        }
    }
    /// The rule in a few words, for tables: `memory`, `constraint node.labels.disk == ssd`.
    pub fn rule(&self) -> String {
        match self {
            Self::Draining | Self::Paused => "availability".into(),
            Self::Maintenance { .. } => "maintenance".into(),
            Self::NotReady(_) | Self::Suspected | Self::HeldBack => "state".into(),
            Self::Pool { wanted: Some(pool), .. } => format!("pool {pool}"),
            Self::Pool { wanted: None, .. } => "pool".into(),
            Self::Taint(taint) => format!("taint {taint}"),
            Self::Constraint(constraint) => format!("constraint {constraint}"),
            Self::Platform { wanted } => format!("platform {wanted}"),
            Self::Engine { what } => format!("engine with {what}"),
            Self::Places { over, at_least, .. } => format!("at least {at_least} of {over}"),
            Self::NearNobody { service } | Self::NotNear { service, .. } => format!("near {service}"),
            Self::NotApart(apart) if apart.asked_by == apart.service => {
                format!("{} wants to be apart", apart.service)
            }
            Self::NotApart(apart) => format!("apart {}", apart.service),
            Self::NoImage { image, .. } => format!("near image {image}"),
            Self::PerNode { .. } => "max_replicas_per_node".into(),
            Self::Elsewhere { at_least, .. } => format!("at least {at_least} elsewhere"),
            Self::HostPort { port } => format!("port {port}"),
            Self::HostPorts { from, to } => format!("ports {from}-{to}"),
            Self::Cpus { .. } => "cpus".into(),
            Self::Memory { .. } => "memory".into(),
            Self::Disk { .. } => "disk".into(),
            Self::LimitCpus { .. } => "limits of cpus".into(),
            Self::LimitMemory { .. } => "limits of memory".into(),
            Self::Devices(lack) => lack.kind().to_string(),
            Self::DiskFull { .. } => "full disk".into(),
        }
    }
    /// What follows the number of nodes: `has too little memory (…)`, of one node or several.
    pub fn phrase(&self, one: bool) -> String {
        let (is, has, most) = if one { ("is", "has", "") } else { ("are", "have", "most ") };
        match self {
            Self::Draining => format!("{is} being drained"),
            Self::Paused => format!("{is} paused"),
            Self::Maintenance { .. } => format!("{is} in maintenance"),
            Self::NotReady(NodeState::Joining) => format!("{is} still joining"),
            Self::NotReady(NodeState::Ready) => format!("{is} ready"),
            Self::NotReady(NodeState::EngineDown) => format!("{has} an engine that does not answer"),
            Self::NotReady(NodeState::Unreachable) => format!("{is} unreachable"),
            Self::NotReady(NodeState::Down) => format!("{is} down"),
            Self::Suspected => format!("{is} not heard by other nodes"),
            Self::HeldBack => format!("{has} gone away too often and must be steady for a while"),
            Self::Pool { wanted: Some(wanted), .. } => format!("{is} not of pool {wanted}"),
            Self::Pool { wanted: None, has: Some(pool) } => format!("{is} kept for pool {pool}"),
            Self::Pool { wanted: None, has: None } => format!("{is} of no pool"),
            Self::Taint(taint) => format!("{has} the taint `{taint}`"),
            Self::Constraint(constraint) => {
                format!("{} not meet the constraint `{constraint}`", if one { "does" } else { "do" })
            }
            Self::Platform { wanted } => format!("{is} not {wanted}"),
            Self::Engine { what } => format!("{has} an engine that does not know {what}"),
            Self::Places { over, at_least, used } => format!(
                "{is} in no further {} (tasks have to be in {at_least}, and are in {used})",
                place(over)
            ),
            Self::NearNobody { service } => format!("{is} not near {service}, which runs nowhere yet"),
            Self::NotNear { service, scope } => {
                format!("{has} no task of {service} on the same {}", place(scope))
            }
            Self::NotApart(Apartness { service, scope, asked_by }) if service == asked_by => {
                format!("{has} a task of {service} on the same {}, which wants to be apart", place(scope))
            }
            Self::NotApart(Apartness { service, scope, .. }) => {
                format!("{has} a task of {service} on the same {}", place(scope))
            }
            Self::NoImage { image, .. } => {
                format!("{} not have the image {image}", if one { "does" } else { "do" })
            }
            Self::PerNode { max } => {
                format!("{has} {max} of its tasks already, the most allowed on one node")
            }
            Self::Elsewhere { at_least, most } => {
                format!("{has} {most} of its tasks already ({at_least} have to be elsewhere)")
            }
            Self::HostPort { port } => format!("{has} port {port} in use"),
            Self::HostPorts { from, to } => format!("{has} every port from {from} to {to} in use"),
            Self::Cpus { need, free } => format!("{has} too little CPU (need {need}, {most}free is {free})"),
            Self::Memory { need, free } => {
                format!("{has} too little memory (need {need}, {most}free is {free})")
            }
            Self::Disk { need, free } => format!("{has} too little disk (need {need}, {most}free is {free})"),
            Self::LimitCpus { need, free } => {
                format!("would let limits of CPU go too far (limit {need}, {most}left is {free})")
            }
            Self::LimitMemory { need, free } => {
                format!("would let limits of memory go too far (limit {need}, {most}left is {free})")
            }
            Self::Devices(lack) => lack.phrase(one),
            Self::DiskFull { percent, mark } => {
                let (a_disk, least) = if one { ("a disk", "") } else { ("disks", ", the least full") };
                let (is, it, takes) =
                    if one { ("that is", "it", "takes") } else { ("that are", "they", "take") };
                format!(
                    "{has} {a_disk} {is} {percent} % full{least} (from {mark} % on {it} {takes} no new tasks)"
                )
            }
        }
    }
    /// What can be done about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Draining | Self::Paused => {
                Some("`wharf node activate NODE` lets one take tasks again".into())
            }
            Self::Maintenance { .. } => Some("wait until it is over, or take the window away".into()),
            Self::NotReady(_) | Self::Suspected => {
                Some("`wharf node ls` shows why a node is not ready".into())
            }
            Self::HeldBack => Some("`wharf node ls` shows until when a node is held back".into()),
            Self::Pool { wanted: Some(pool), .. } => {
                Some(format!("`wharf node update NODE --pool {pool}` puts one there"))
            }
            Self::Pool { wanted: None, has } => {
                let pool = has.as_deref().unwrap_or("NAME");
                Some(format!("join a node of no pool, or write `x-wharf: {{pool: {pool}}}` into the service"))
            }
            Self::Taint(taint) => {
                Some(format!("write `x-wharf: {{tolerations: [{}]}}` into the service", taint.key))
            }
            Self::Constraint(constraint) => {
                constraint.key.strip_prefix("node.labels.").filter(|_| constraint.equal).map(|label| {
                    format!("`wharf node label NODE {label}={}` makes one fit", constraint.value)
                })
            }
            Self::Platform { .. } => {
                Some("join a node of that platform, or use an image for this one".into())
            }
            Self::Engine { what } => Some(format!("update Docker Engine on a node, or leave {what} out")),
            Self::Places { over, .. } => {
                let label = over.strip_prefix("node.labels.").unwrap_or(over);
                Some(format!(
                    "label a node with another `{label}`, or write `soft: true` into `availability`"
                ))
            }
            Self::NearNobody { service } => {
                Some(format!("see why {service} does not run: `wharf explain {service}`"))
            }
            Self::NotNear { service, .. } => {
                Some(format!("make room where {service} runs, or write `soft: true` into the affinity"))
            }
            Self::NotApart(_) => Some("join another node, or write `soft: true` into the affinity".into()),
            Self::NoImage { .. } => Some(
                "pull the image on a node that is to take it, or write `soft: true` into the affinity".into(),
            ),
            Self::PerNode { .. } => Some("join another node, or raise `max_replicas_per_node`".into()),
            Self::Elsewhere { .. } => Some("join another node, or lower `slots.elsewhere`".into()),
            Self::HostPort { .. } => {
                Some("join another node, free the port, or publish it in `mode: ingress`".into())
            }
            Self::HostPorts { .. } => Some("join another node, or publish from a larger range".into()),
            Self::Cpus { .. } => Some("join another node, or lower `reservations.cpus`".into()),
            Self::Memory { .. } => Some("join another node, or lower `reservations.memory`".into()),
            Self::DiskFull { .. } => Some(
                "`wharf node prune NODE` removes images that nobody needs; `wharf node ls` shows how full disks are"
                    .into(),
            ),
            Self::Disk { .. } => Some("join another node, or lower `x-wharf.disk`".into()),
            Self::LimitCpus { .. } | Self::LimitMemory { .. } => {
                Some("join another node, lower the limit, or let the node's limits go further".into())
            }
            Self::Devices(lack) => Some(lack.hint()),
        }
    }
}

impl NoPlace {
    /// Whether another task's coming may help: who waits for company, or for a place to be used.
    pub(crate) fn may_pass_with_company(&self) -> bool {
        let company = |refusal: &Refusal| {
            matches!(
                refusal,
                Refusal::NearNobody { .. }
                    | Refusal::NotNear { .. }
                    | Refusal::NoImage { .. }
                    | Refusal::Places { .. }
            )
        };
        self.refusals.iter().any(|(refusal, _)| company(refusal))
    }
    /// The refusals as one phrase: `2 have too little memory (…), 1 is being drained`.
    pub fn refused(&self) -> String {
        if self.refusals.is_empty() {
            return match self.pinned {
                Some(_) => "no such node is in the cluster".to_owned(),
                None => "the cluster has no nodes".to_owned(),
            };
        }
        let phrases = self.refusals.iter().map(|(refusal, nodes)| {
            if self.pinned.is_some() && self.refusals.len() == 1 && *nodes == 1 {
                format!("it {}", refusal.phrase(true))
            } else {
                format!("{nodes} {}", refusal.phrase(*nodes == 1))
            }
        });
        phrases.collect::<Vec<_>>().join(", ")
    }
    /// What can be done about the most frequent reason.
    pub fn hint(&self) -> Option<String> {
        self.refusals.first().map_or_else(
            || Some("`wharf agent join` on a machine adds it to the cluster".to_owned()),
            |(refusal, _)| refusal.hint(),
        )
    }
    /// Whether a node that gave up some load could take the task, rather than only a changed cluster or file.
    pub fn is_for_want_of_room(&self) -> bool {
        self.refusals.iter().any(|(refusal, _)| refusal.is_for_want_of_room())
    }
}

/// What is said of a task that finds no place: starts with its name.
pub(crate) fn sentence(f: &mut fmt::Formatter<'_>, task: &dyn fmt::Display, no: &NoPlace) -> fmt::Result {
    match &no.pinned {
        None => write!(f, "no node can take {task}: {}", no.refused())?,
        Some((PinnedBy::Volume(volume), nodes)) => write!(
            f,
            "{task} must run on {}, which holds the data of its volume {volume}: {}",
            nodes.join(" or "),
            no.refused()
        )?,
        Some((PinnedBy::Service(shared, service), nodes)) if nodes.is_empty() => {
            return write!(f, "{task} shares the {shared} of {service}, which runs nowhere yet");
        }
        Some((PinnedBy::Service(shared, service), nodes)) => write!(
            f,
            "{task} must run on {}, where {service} is whose {shared} it shares: {}",
            nodes.join(" or "),
            no.refused()
        )?,
        Some((PinnedBy::Global, _)) => write!(f, "{task} cannot start: {}", no.refused())?,
    }
    no.hint().map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
}
