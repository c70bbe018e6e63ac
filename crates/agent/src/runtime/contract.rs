//! x
use super::Runtime;
pub async fn check(_: &dyn Runtime) {}
