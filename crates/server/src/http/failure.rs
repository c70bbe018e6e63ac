//! What a request that fails is answered with: the one place where errors become HTTP.
//!
//! Internal causes are logged here, once, and not sent.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use wharf_api::v1::{Code, Problem};
use wharf_store::StoreError;

/// A request that was not carried out.
#[derive(Debug, Clone)]
pub struct Failure(pub Problem);

impl Failure {
    /// A failure of this kind with a sentence for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Problem::new(code, message))
    }
    /// The same with a hint what to do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.hint(hint))
    }
    /// The request asks for something impossible.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }
    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }
    /// A bug, logged with its cause.
    pub fn internal(context: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(context, error = %wharf_process::errors::chain(error), "request failed");
        Self::new(Code::Internal, format!("internal error: {context}"))
            .hint("this is a bug; the server's log has the cause")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0.code.status(), Json(self.0)).into_response()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_conflict() {
            return Self::new(Code::Moved, "the data changed while it was being worked on").hint("try again");
        }
        let text = wharf_process::errors::chain(&error);
        tracing::warn!(error = %text, "the store did not carry out a request");
        let code = if error.is_retryable() { Code::Unavailable } else { Code::Internal };
        let failure = Self::new(code, text);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// What handlers answer with.
pub type Answer<T> = Result<T, Failure>;
