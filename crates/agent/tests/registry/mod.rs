//! A registry with one image, for whoever knows the login `ada:secret`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::Engine;
use http::{StatusCode, header};
use sha2::Digest;
use wharf_process::Tasks;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A registry at work.
pub(crate) struct Registry {
    address: SocketAddr,
    digest: String,
    requests: Arc<AtomicUsize>,
}

/// Content by path, with its type.
type Content = BTreeMap<String, (&'static str, Vec<u8>)>;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

impl Registry {
    /// Serves `team/shell:1`, made from a folder, on loopback.
    pub(crate) async fn serve(tasks: &Tasks, folder: &Path) -> Self {
        let layer = Command::new("tar").arg("-C").arg(folder).args(["-c", "."]).output().unwrap().stdout;
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        })
        .to_string()
        .into_bytes();
        let part = |kind: &str, bytes: &[u8]| {
            serde_json::json!({
                "mediaType": format!("application/vnd.docker.{kind}"), "size": bytes.len(), "digest": digest(bytes),
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": part("container.image.v1+json", &config),
            "layers": [part("image.rootfs.diff.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        let pinned = digest(&manifest);
        let blob = "application/octet-stream";
        let content = Content::from([
            ("/v2/".to_owned(), ("application/json", b"{}".to_vec())),
            ("/v2/team/shell/manifests/1".to_owned(), (MANIFEST, manifest.clone())),
            (format!("/v2/team/shell/manifests/{pinned}"), (MANIFEST, manifest)),
            (format!("/v2/team/shell/blobs/{}", digest(&config)), (blob, config)),
            (format!("/v2/team/shell/blobs/{}", digest(&layer)), (blob, layer)),
        ]);
        let requests = Arc::new(AtomicUsize::new(0));
        let router = Router::new().fallback(answer).with_state((Arc::new(content), Arc::clone(&requests)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn("registry", async move { axum::serve(listener, router).await });
        Self { address, digest: pinned, requests }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
    /// The digest of its image.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }
    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn answer(
    State((content, requests)): State<(Arc<Content>, Arc<AtomicUsize>)>,
    request: Request,
) -> Response<Body> {
    requests.fetch_add(1, Ordering::Relaxed);
    let login = base64::engine::general_purpose::STANDARD.encode("ada:secret");
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let answer = Response::builder();
    let problem = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"{code}"}}]}}"#);
    let answer = if given != Some(format!("Basic {login}").as_str()) {
        answer
            .status(StatusCode::UNAUTHORIZED)
            .header(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")
            .body(Body::from(problem("UNAUTHORIZED")))
    } else if let Some((kind, bytes)) = content.get(request.uri().path()) {
        answer
            .header(header::CONTENT_TYPE, *kind)
            .header("Docker-Content-Digest", digest(bytes))
            .header(header::CONTENT_LENGTH, bytes.len())
            .body(Body::from(bytes.clone()))
    } else {
        answer.status(StatusCode::NOT_FOUND).body(Body::from(problem("MANIFEST_UNKNOWN")))
    };
    answer.unwrap()
}
