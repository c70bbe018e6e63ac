//! Why an engine did not do something, and whether asking again can help.

/// Why the engine did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unreachable,
    Temporary,
    NotFound,
    Fatal,
}

impl RuntimeError {
    /// The engine does not answer: everything about it is unknown, and asking again can help.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }
    /// Asking again can help.
    pub fn temporary(message: impl Into<String>) -> Self {
        Self::new(Kind::Temporary, message)
    }
    /// What was asked about does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }
    /// Asking again would fail again.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::new(Kind::Fatal, message)
    }
    /// The same with what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The same, told by somebody who knows what it was for.
    #[must_use]
    pub fn while_doing(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
    /// Whether asking again can help.
    pub const fn is_temporary(&self) -> bool {
        match self.kind {
            Kind::Unreachable | Kind::Temporary => true,
            Kind::NotFound | Kind::Fatal => false,
        }
    }
    /// Whether the engine did not answer at all.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self.kind, Kind::Unreachable)
    }
    /// Whether what was asked about does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self.kind, Kind::NotFound)
    }
    /// What to do about it, if anything is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }
}
