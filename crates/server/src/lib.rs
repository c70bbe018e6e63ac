//! The control plane: keeps the state, decides, and serves people.
//!
//! State is read from one watch of the store ([`state`]); controllers decide by the pure functions of `wharf-engine` and commit
//! conditionally ([`controllers`]); agents are called over the connections they opened ([`sessions`]).

mod acme;
pub mod controllers;
mod diagnose;
pub mod http;
mod ids;
pub mod join;
pub mod leader;
pub mod listener;
mod onward;
pub mod pki;
pub mod records;
pub mod roster;
pub mod seal;
pub mod server;
pub mod sessions;
pub mod settings;
pub mod state;
mod witness;

pub use http::openapi::openapi_json;
pub use server::{
    InitOptions, Initialised, JoinServerOptions, Parts, RunOptions, Server, ServerError, Works, init,
    join_cluster,
};
