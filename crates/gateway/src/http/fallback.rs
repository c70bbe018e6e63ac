//! Says what is answered when no task can.
//!
//! - It stands in for tasks, not for rules: who is not let in, or asks too often, is told so.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use wharf_model::Fallback;

use super::Refusal;

/// What stands in, as the route says it.
#[derive(Debug)]
pub(crate) enum StandIn {
    Answer(StatusCode, HeaderValue, Bytes),
    /// Tasks of another service.
    Service,
}

impl StandIn {
    pub(crate) fn new(fallback: &Fallback) -> Self {
        match fallback {
            Fallback::Service { .. } => Self::Service,
            Fallback::Answer { status, body, content_type } => Self::Answer(
                StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                HeaderValue::try_from(content_type)
                    .unwrap_or(HeaderValue::from_static("text/plain; charset=utf-8")),
                Bytes::copy_from_slice(body.as_bytes()),
            ),
        }
    }
}

/// Whether something may stand in where this would be said.
pub(crate) fn may_replace(refusal: &Refusal) -> bool {
    refusal.status.is_server_error() && refusal.reason != "passwords_busy"
}
