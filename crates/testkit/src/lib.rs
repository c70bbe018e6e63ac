//! What tests of the whole system stand on: a cluster of real nodes on one machine, and a simulated one in one process.
//!
//! - A real node is a set of namespaces with its own Docker Engine; see [`cluster`]. Nothing there links Wharf's crates: the binary is driven
//!   from outside, as its users drive it. Everything started is removed again, whichever way the owner ends.
//! - A simulated cluster ([`sim`], with the feature `simulation`) is made of the real control plane and the real agents on virtual time.
//! - A [`puppet`] (with the same feature) is a node of a real cluster that has no containers.

pub mod cluster;
#[cfg(feature = "simulation")]
pub mod puppet;
#[cfg(feature = "simulation")]
pub mod sim;
