//! Connections to tasks that wait for the next request.

/// One endpoint's idle connections, a list for each worker.
#[derive(Default)]
pub(crate) struct Pools {}

impl Pools {
    /// Empty ones for so many workers.
    pub(crate) fn new(_workers: usize) -> Self {
        Self {}
    }

    /// Closes all, whoever's they are, and keeps none from now on.
    pub(crate) fn close(&self) {}
}
