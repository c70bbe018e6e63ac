//! Requests of HTTPS to a certificate authority.
//!
//! - Each request has a connection of its own and thirty seconds: there are a dozen of them in two months.
//! - Whom to believe is what the machine trusts, and what the cluster's setting adds for a private authority.
//! - Answers are small; larger ones are refused.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(30);
const LARGEST: usize = 1 << 20;
/// Where systems keep what they trust, in PEM.
const TRUSTED: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long an authority said to wait in its last refusal.
pub(crate) type ToldToWait = Arc<Mutex<Option<Duration>>>;

/// A client for authorities whose servers these certificates, or those of the machine, vouch for.
pub(crate) struct Client {
    tls: Arc<ClientConfig>,
    told_to_wait: ToldToWait,
}

impl Client {
    /// Reads what the machine trusts, and adds these certificates in PEM.
    ///
    /// # Errors
    /// In words, if nobody could be believed.
    pub(crate) async fn new(roots: &str) -> Result<(Self, ToldToWait), String> {
        let mut store = own_roots(roots)?;
        for path in TRUSTED {
            let Ok(pem) = tokio::fs::read(path).await else { continue };
            let found = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
            store.add_parsable_certificates(found);
            break;
        }
        if store.is_empty() {
            return Err("this server's machine trusts no certificate authority at all: install the package \
                        `ca-certificates`, or give the authority's root: `wharf certificate acme --ca-root FILE`"
                .to_owned());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(store)
            .with_no_client_auth();
        let told_to_wait = ToldToWait::default();
        Ok((Self { tls: Arc::new(tls), told_to_wait: Arc::clone(&told_to_wait) }, told_to_wait))
    }
}

/// The certificates in a text of PEM.
///
/// # Errors
/// In words, if one of them is none.
pub(crate) fn own_roots(pem: &str) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("the root certificate is not PEM: {error}"))?;
        store.add(certificate).map_err(|error| format!("the root certificate cannot be used: {error}"))?;
    }
    Ok(store)
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (tls, told_to_wait) = (Arc::clone(&self.tls), Arc::clone(&self.told_to_wait));
        let place = request.uri().host().unwrap_or_default().to_owned();
        async move {
            let answer = tokio::time::timeout(PATIENCE, exchange(tls, request)).await;
            let answer = answer.unwrap_or_else(|_| {
                let text = format!("no answer within {} s", PATIENCE.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            });
            let answer =
                answer.map_err(|error| Error::Other(format!("{place} cannot be asked: {error}").into()))?;
            if answer.status().is_client_error() || answer.status().is_server_error() {
                *told_to_wait.lock() = wait_of(answer.headers().get(header::RETRY_AFTER));
            }
            Ok(answer.into())
        }
        .boxed()
    }
}

/// What `Retry-After` says in seconds. A date is not looked at: our own pause holds then.
fn wait_of(value: Option<&HeaderValue>) -> Option<Duration> {
    value?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn exchange(
    tls: Arc<ClientConfig>,
    request: Request<BodyWrapper<Bytes>>,
) -> io::Result<Response<Full<Bytes>>> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_or_else(|never| match never {}, http_body_util::Collected::to_bytes);
    if parts.uri.scheme_str() != Some("https") {
        return Err(io::Error::other("its address does not begin with https://"));
    }
    let host = parts.uri.host().unwrap_or_default().to_owned();
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = parts.uri.port_u16().unwrap_or(443);
    let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    let stream = TcpStream::connect((bare.as_str(), port)).await?;
    let name = ServerName::try_from(bare).map_err(|_| io::Error::other("its address has no host name"))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;

    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    parts.uri = path.parse::<Uri>().map_err(io::Error::other)?;
    parts.headers.insert(header::HOST, authority.parse().map_err(io::Error::other)?);
    let request = Request::from_parts(parts, Full::new(body));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let answer = async {
        let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, LARGEST).collect().await.map_err(io::Error::other)?;
        Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
    };
    let (mut answer, mut connection) = (pin!(answer), pin!(connection));
    tokio::select! {
        // Dropped with the connection.
        answer = &mut answer => answer,
        // The answer may have come with the end.
        ended = &mut connection => {
            ended.map_err(io::Error::other)?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_none_is_refused_in_words() {
        assert!(own_roots("").unwrap().is_empty());
        let damaged = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert!(own_roots(damaged).unwrap_err().contains("not PEM"));
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(own_roots(nonsense).unwrap_err().contains("cannot be used"));
    }

    #[test]
    fn an_authority_says_in_seconds_how_long_to_wait() {
        let wait = |text| wait_of(Some(&HeaderValue::from_static(text)));
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Fri, 31 Dec 1999 23:59:59 GMT"), None);
        assert_eq!(wait_of(None), None);
    }

    #[tokio::test]
    async fn only_https_is_spoken() {
        let lifetime = Duration::from_secs(3600);
        let authority = crate::pki::Authority::create("test", wharf_model::Timestamp(0), lifetime).unwrap();
        let (client, _) = Client::new(&authority.trust().ca).await.unwrap();
        let request = Request::get("http://127.0.0.1:1/dir").body(BodyWrapper::default()).unwrap();
        let Err(error) = client.request(request).await else { panic!("it was asked") };
        assert!(error.to_string().contains("does not begin with https://"), "{error}");
    }
}
