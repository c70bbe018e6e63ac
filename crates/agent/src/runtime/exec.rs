//! Starts commands in containers over a connection of their own.
//!
//! The client library guesses from the first byte whether output is multiplexed; here it is known from the request, so
//! that a terminal may print any byte, and closing the input closes only that.

use std::{path::Path, pin::Pin, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::UnixStream,
    time::timeout,
};

use super::{LogFrame, LogSource, LogStream, Result, RuntimeError, spec::ApiVersion};

const DEADLINE: Duration = Duration::from_secs(30);
/// Read at once.
const PIECE: usize = 16 * 1024;

/// Both ends of a started command.
pub(super) struct Streams {
    pub(super) input: Pin<Box<dyn AsyncWrite + Send>>,
    pub(super) output: LogStream,
}

/// Starts the prepared command and takes over its connection.
pub(super) async fn start(socket: &Path, api: ApiVersion, id: &str, tty: bool) -> Result<Streams> {
    let failed = |error: &dyn std::error::Error| {
        RuntimeError::unreachable(format!(
            "cannot start the command: {}",
            wharf_process::errors::chain(error)
        ))
    };
    let connecting = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| failed(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v{api}/exec/{id}/start"))
            .header(header::HOST, "engine")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .body(Full::new(Bytes::from(serde_json::json!({"Detach": false, "Tty": tty}).to_string())))
            .map_err(|error| failed(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(response);
            }
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
            let message = serde_json::from_slice::<serde_json::Value>(&body)
                .ok()
                .and_then(|body| body["message"].as_str().map(str::to_owned))
                .unwrap_or_else(|| status.to_string());
            Err(RuntimeError::fatal(format!("cannot start the command: {message}")))
        };
        // The connection is driven here until the engine switches protocols; then it hands over its socket and ends.
        let connection = connection.with_upgrades();
        tokio::pin!(connection);
        tokio::pin!(exchange);
        let mut connected = true;
        let response = loop {
            tokio::select! {
                // Not dropped: polled again until it answers.
                response = &mut exchange => break response?,
                // Not dropped: pinned outside the loop.
                _ = &mut connection, if connected => connected = false,
            }
        };
        let upgrade = hyper::upgrade::on(response);
        let upgraded = if connected {
            let (upgraded, _) = tokio::join!(upgrade, &mut connection);
            upgraded
        } else {
            upgrade.await
        };
        upgraded.map_err(|error| failed(&error))
    };
    let upgraded = timeout(DEADLINE, connecting)
        .await
        .map_err(|_elapsed| RuntimeError::unreachable("the engine did not start the command in time"))??;
    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
    Ok(Streams { input: Box::pin(write), output: frames(read, tty) })
}

/// Output as frames: a terminal's bytes as they come, otherwise the engine's multiplexing taken apart.
fn frames(read: impl AsyncRead + Send + Unpin + 'static, tty: bool) -> LogStream {
    stream::unfold((read, BytesMut::new(), false), move |(mut read, mut buffer, ended)| async move {
        if ended {
            return None;
        }
        loop {
            let frame = if tty { take_all(&mut buffer) } else { take_frame(&mut buffer) };
            if let Some(frame) = frame {
                return Some((Ok(frame), (read, buffer, false)));
            }
            buffer.reserve(PIECE);
            match read.read_buf(&mut buffer).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => {
                    let error = RuntimeError::unreachable(format!("the command's output broke off: {error}"));
                    return Some((Err(error), (read, buffer, true)));
                }
            }
        }
    })
    .boxed()
}

fn take_all(buffer: &mut BytesMut) -> Option<LogFrame> {
    (!buffer.is_empty()).then(|| frame(LogSource::Stdout, buffer.split().freeze()))
}

/// One frame: a byte for the stream, three of padding, four of length, the text.
fn take_frame(buffer: &mut BytesMut) -> Option<LogFrame> {
    let [source, _, _, _, a, b, c, d] = *buffer.first_chunk::<8>()?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    if buffer.len() < 8 + length {
        return None;
    }
    buffer.advance(8);
    let source = if source == 2 { LogSource::Stderr } else { LogSource::Stdout };
    Some(frame(source, buffer.split_to(length).freeze()))
}

fn frame(source: LogSource, bytes: Bytes) -> LogFrame {
    LogFrame { at: None, source, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn multiplexed_output_is_taken_apart_wherever_it_is_cut() {
        let text = b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\x03\x01no";
        let (mut write, read) = tokio::io::duplex(3);
        let feed = async move {
            use tokio::io::AsyncWriteExt;
            write.write_all(text).await.unwrap();
        };
        let (frames, ()) = tokio::join!(frames(read, false).map(Result::unwrap).collect::<Vec<_>>(), feed);
        let expected = [(LogSource::Stdout, &b"hi"[..]), (LogSource::Stderr, &b"\x01no"[..])];
        assert_eq!(frames.iter().map(|frame| (frame.source, &frame.bytes[..])).collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn a_terminal_may_print_any_byte() {
        let frames: Vec<_> = frames(&b"\x01\x02\0bell"[..], true).map(Result::unwrap).collect().await;
        assert_eq!(
            frames.iter().map(|frame| &frame.bytes[..]).collect::<Vec<_>>().concat(),
            b"\x01\x02\0bell"
        );
    }
}
