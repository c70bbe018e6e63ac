//! A whole server on loopback, with a store in a file, asked as clients ask it; its nodes are made up.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod apps;
mod catalogue;
mod certificates;
mod cluster;
mod committer;
mod files;
mod fixture;
mod handover;
mod leader;
mod leaks;
mod releases;
mod scheduling;
mod state;
mod streams;
mod survival;
mod trials;
