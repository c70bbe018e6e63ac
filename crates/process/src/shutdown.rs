//! The root of the shutdown tree, and the signals that cut it.
//!
//! - The first SIGTERM or SIGINT asks everything to stop; the second stops waiting for it.
//! - Both are one-way: what was asked to stop is never asked to go on.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Two flags every part of a process watches. Clones are the same shutdown.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    immediate: CancellationToken,
}

impl Shutdown {
    /// A shutdown nobody has asked for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything to stop, gently. Asking twice is asking once.
    pub fn request(&self) {
        self.requested.cancel();
    }

    /// Asks everything to stop and nobody to wait for it.
    pub fn request_immediate(&self) {
        self.requested.cancel();
        self.immediate.cancel();
    }

    /// Cancelled when a shutdown was requested. Hand out children of it, not itself.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.requested.child_token()
    }

    /// Whether a shutdown was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// Whether waiting is over as well.
    #[must_use]
    pub fn is_immediate(&self) -> bool {
        self.immediate.is_cancelled()
    }

    /// Returns when a shutdown was requested. Cancel-safe.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Returns when grace periods are over by request. Cancel-safe.
    pub async fn immediate(&self) {
        self.immediate.cancelled().await;
    }
}

/// SIGTERM and SIGINT of this process, from the moment of [`Signals::listen`].
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both signals over; from here on they no longer end the process by themselves.
    ///
    /// # Errors
    /// If the system refuses to register a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Turns signals into requests to `shutdown`. Returns after the second one.
    pub async fn forward(mut self, shutdown: &Shutdown) {
        let first = self.next().await;
        tracing::info!(signal = first, "shutdown requested");
        shutdown.request();
        let second = self.next().await;
        tracing::warn!(signal = second, "stopping at once");
        shutdown.request_immediate();
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            // Both arms are cancel-safe: a signal that is not received stays pending.
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
