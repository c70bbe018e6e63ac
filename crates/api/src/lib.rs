//! The wire contract: the types of API v1, the transport that carries it and what servers and agents say to each other.

pub mod transport;
pub mod v1;
