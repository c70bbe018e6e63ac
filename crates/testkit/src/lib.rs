//! What tests of the whole system stand on: a cluster of real nodes on one machine.
//!
//! - A node is a set of namespaces with its own Docker Engine; see [`cluster`].
//! - Nothing here links Wharf's crates: the binary is driven from outside, as its users drive it.
//! - Everything started is removed again, whichever way the owner ends.

pub mod cluster;
