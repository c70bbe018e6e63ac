//! Asks servers for images that other nodes have, and which of this node's are needed.
//!
//! Each question and each transfer has a connection of its own: a large image never stands in the way of a session.

use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use http_body_util::BodyExt;
use wharf_api::transport::{
    Body, CallError, Client, ServerAddress,
    client::{Dialer, request},
    full,
    node::{AskNeeded, FetchImage, FindImage, FoundImage, NeededImages},
    tls::{Anchor, Protocol},
    wire,
};

use super::{Shared, tls_time};
use crate::images::ImageSource;

/// Until the first byte of an archive: the engine that has the image writes it to its disk before.
const ARCHIVE: std::time::Duration = std::time::Duration::from_secs(3600);

/// The other nodes of the cluster, through its servers.
pub(super) struct OtherNodes {
    shared: Arc<Shared>,
}

impl OtherNodes {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn dial(&self) -> Result<Client, CallError> {
        let membership = Arc::clone(&self.shared.membership.borrow());
        let servers = self.shared.servers.borrow().clone();
        let addresses: Vec<ServerAddress> = servers
            .servers
            .iter()
            .flat_map(|server| &server.addresses)
            .filter_map(|text| text.parse().ok())
            .collect();
        let anchor = Anchor::Authority(membership.trust.clone());
        let time = tls_time(&self.shared.clock);
        let dialer =
            Dialer::new(&anchor, Some(&membership.identity), Protocol::Api, self.shared.timing, time)
                .map_err(|error| CallError::Lost { peer: "the servers".to_owned(), source: error.into() })?;
        Ok(dialer.dial(&addresses).await?)
    }
}

#[async_trait]
impl ImageSource for OtherNodes {
    async fn find(&self, wish: &FindImage) -> Result<FoundImage, CallError> {
        self.dial().await?.call(Method::POST, wire::FIND_IMAGE, wish).await
    }

    async fn fetch(&self, wish: &FetchImage) -> Result<Body, CallError> {
        let server = self.dial().await?;
        let content = serde_json::to_vec(wish).unwrap_or_default();
        let response = server.send(request(Method::POST, wire::FETCH_IMAGE, full(content)), ARCHIVE).await?;
        if !response.status().is_success() {
            return Err(server.refusal(response).await);
        }
        Ok(response.into_body().map_err(Into::into).boxed_unsync())
    }

    async fn needed(&self, wish: &AskNeeded) -> Result<NeededImages, CallError> {
        self.dial().await?.call(Method::POST, wire::NEEDED_IMAGES, wish).await
    }
}
