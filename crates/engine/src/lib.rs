//! Every decision the control plane takes, as functions of what is handed in.
//!
//! Nothing here does I/O, reads a clock, draws random numbers or is asynchronous. A pass reads one [`World`], and answers
//! with a [`Decision`]: what to commit, what is not as desired and why, and when to look again. Collections are ordered, and
//! ids come from a generator, so the same input always gives the same answer.

mod change;
mod place;
mod waiting;
mod world;

pub use change::{Change, Decision, Ids, SeededIds};
pub use waiting::{About, Reason, Waiting};
pub use world::{Load, Node, World};
