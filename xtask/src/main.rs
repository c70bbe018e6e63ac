//! Developer tasks with logic.
fn main() {}
