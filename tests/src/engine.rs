//! A node's Docker Engine, asked over its socket without a client program: for what is measured, and for what is asked many times.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use wharf_testkit::cluster::Node;

/// How long an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the engine of a node; an answer other than a success is an error with what it said.
pub fn ask(node: &Node, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    ask_within(node, method, path, body, PATIENCE)
}

/// As [`ask`], of an engine that may not answer.
pub fn ask_within(
    node: &Node,
    method: &str,
    path: &str,
    body: Option<&Value>,
    patience: Duration,
) -> Result<Value> {
    let what = || format!("{method} {path} on {}", node.name());
    let exchange = || -> Result<Vec<u8>> {
        let mut stream = UnixStream::connect(node.socket())?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().with_context(what)?;
    let text = String::from_utf8_lossy(&answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("{}: it answers {text:?}", what()) };
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "{}: {status} {}", what(), body.trim());
    Ok(serde_json::from_str(body).unwrap_or_default())
}
