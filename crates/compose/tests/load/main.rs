//! The loader from outside: files in, an app and complaints out.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod build;
mod engine;
mod folder;
mod honoured;
mod ipv6;
mod merging;
mod messages;
mod mistakes;
mod networks;
mod normal;
mod robust;
mod variables;
mod wharf;
mod wordpress;
