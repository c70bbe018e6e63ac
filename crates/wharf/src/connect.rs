//! Speaking to a cluster as the context says.

use anyhow::{Context as _, Result};
use wharf_api::transport::{
    CallError, Client, Identity, ServerAddress, Timing,
    client::Dialer,
    tls::{Anchor, Protocol, system_time},
    wire,
};
use wharf_model::{AppKey, AppName, EnvironmentName};

use crate::{cli::Global, context::Contexts};

/// A cluster one has dialled.
pub(crate) struct Cluster {
    dialer: Dialer,
    servers: Vec<ServerAddress>,
    /// The connection.
    pub(crate) client: Client,
    /// The environment commands work in.
    pub(crate) environment: EnvironmentName,
}

impl Cluster {
    /// Dials the cluster that flags and contexts name.
    pub(crate) async fn dial(global: &Global) -> Result<Self> {
        let mut contexts = Contexts::load(&crate::commands::paths().contexts)?;
        let (name, context) = contexts.pick(global.context.as_deref())?;
        let (name, context) = (name.to_owned(), context.clone());
        let anchor = Anchor::Authority(context.trust.clone());
        let dialer =
            Dialer::new(&anchor, Some(&context.identity), Protocol::Api, Timing::default(), system_time())
                .with_context(|| format!("the context `{name}` is damaged"))?;
        let client = dialer
            .dial(&context.servers)
            .await
            .with_context(|| format!("cannot reach the cluster of context `{name}`"))?;
        let environment =
            global.environment.as_deref().or(context.environment.as_deref()).unwrap_or("default");
        let environment = environment.parse()?;
        renew_in_time(&client, &mut contexts, &name).await;
        Ok(Self { dialer, servers: context.servers.clone(), client, environment })
    }

    /// Another connection, after the first has broken.
    pub(crate) async fn redial(&self) -> Result<Client> {
        Ok(self.dialer.dial(&self.servers).await?)
    }

    /// The key of an app in the environment.
    pub(crate) fn app(&self, name: AppName) -> AppKey {
        AppKey { environment: self.environment.clone(), name }
    }
}

/// Renews the context's certificate once two thirds of its life are over, so that one in use never ends. If that fails the present one
/// still does, and the next command tries again.
async fn renew_in_time(client: &Client, contexts: &mut Contexts, name: &str) {
    let Some(context) = contexts.contexts.get_mut(name) else { return };
    let due = context.identity.peer().is_ok_and(|peer| peer.renew_at().0 <= crate::commands::now());
    if !due {
        return;
    }
    let Ok((key, csr)) = wharf_agent::session::new_key() else { return };
    let wish = wire::RenewRequest { csr };
    let Ok(renewed) = client.call::<wire::RenewResponse>(http::Method::POST, wire::RENEW, &wish).await else {
        return;
    };
    let identity = Identity { certificate: renewed.certificate, key };
    // One that cannot be used would lock its holder out.
    if identity.certified().is_ok() {
        context.identity = identity;
        // A file that cannot be written keeps the present certificate, which is good for months.
        let _ = contexts.save();
    }
}

/// The path of an app's resource.
pub(crate) fn app_path(app: &AppKey, rest: &str) -> String {
    format!("/v1/apps/{}/{}{rest}", app.environment, app.name)
}

/// Text as it may stand in the query of a URL (RFC 3986, section 3.4).
pub(crate) fn query(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Whether an answer says that there is no such thing.
pub(crate) fn is_not_found(error: &CallError) -> bool {
    error.problem().is_some_and(|problem| problem.code == wharf_api::v1::Code::NotFound)
}
