//! What handlers take from a request, with refusals that are answers of the API like any other.

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use wharf_api::v1::Code;

use super::failure::Failure;

/// The largest body that is read: an app with all its configs and secrets.
pub(super) const MAX_BODY: usize = 32 << 20;

/// A body of JSON, of a request or an answer.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(error)) if error.status() == 413 => {
                let limit = MAX_BODY >> 20;
                Err(Failure::invalid(format!("the request is larger than {limit} MiB"))
                    .hint("configs and secrets travel with the file: keep large data in volumes or images"))
            }
            Err(error) => Err(Failure::invalid(format!("the request cannot be read: {}", error.body_text()))
                .hint("are client and server of the same version? `wharf version` shows both")),
        }
    }
}
impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// What stands behind the question mark.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(value)| Self(value)).map_err(|error| {
            Failure::invalid(format!("`?{}`: {}", parts.uri.query().unwrap_or_default(), error.body_text()))
        })
    }
}

/// What stands in the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|error| {
            Failure::new(Code::NotFound, format!("`{}`: {}", parts.uri.path(), error.body_text()))
        })
    }
}
