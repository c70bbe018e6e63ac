//! Makes one node match its assignments: images, networks, volumes, files, containers, probes, and what is reported of them.
//!
//! Containers outlive the agent: nothing here changes a container because the agent stops, starts or loses its servers,
//! and no container, network or volume that does not carry this cluster's labels is ever changed or removed.

pub mod assignments;
pub mod departed;
mod diagnose;
pub mod dns;
pub mod facts;
pub mod fence;
pub mod housekeeping;
pub mod images;
pub mod lease;
mod listening;
pub mod network;
pub mod node;
pub mod peers;
pub mod probe;
pub mod registry;
pub mod reports;
pub mod runtime;
pub mod serve;
pub mod session;
pub mod tasks;
