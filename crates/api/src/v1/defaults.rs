//! What holds for networks whose files say nothing else.

use serde::{Deserialize, Serialize};

/// What holds for networks whose files say nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NetworkDefaults {
    /// How packets travel between nodes: `vxlan`, `routed` or `wireguard`.
    pub backend: String,
    /// Where networks get their subnets from.
    pub pool: String,
    /// The program that makes routes outside the nodes, and its first arguments; none where nodes share a segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_command: Option<Vec<String>>,
    /// The most routes it can make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_limit: Option<u32>,
    /// How many routes there should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes_wanted: Option<usize>,
    /// How many there are, as the program said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes_programmed: Option<u32>,
    /// Why there are not more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes_error: Option<String>,
}

/// Other defaults for networks; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkDefaultsChange {
    /// How packets travel between nodes: `vxlan`, `routed` or `wireguard`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Where networks that are made from now on get their subnets from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The program that makes routes outside the nodes, and its first arguments; none if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_command: Option<Vec<String>>,
    /// The most routes it can make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_limit: Option<u32>,
    /// Only say what it would do.
    pub dry_run: bool,
    /// The plan that is to be carried out; refused if it is another by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// What other defaults do to the networks that are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NetworkDefaultsPlan {
    /// The defaults as they are then.
    pub defaults: NetworkDefaults,
    /// One line for each network that changes.
    pub changes: Vec<String>,
    /// Names this plan.
    pub fingerprint: String,
}
