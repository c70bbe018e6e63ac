//! Asks a gRPC server for its health: one call of `grpc.health.v1.Health/Check`, in HTTP/2 without TLS.
//!
//! The two messages have one field each, so they are written and read here byte by byte. Of the answer a bounded part is
//! read.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{ANSWER, Outcome, connect};

/// Calls the health service; `service` is whose health is asked for, empty for the server's.
pub(super) async fn check(address: SocketAddr, service: &str) -> Outcome {
    let stream = connect(address).await?;
    let no_http2 = |error: hyper::Error| format!("{address} does not speak HTTP/2 without TLS: {error}");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(no_http2)?;
    let call = async {
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(question(service)))
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(no_http2)?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            return Err(format!("the health service answered {}", head.status));
        }
        let body = Limited::new(body, ANSWER).collect().await;
        let body = body.map_err(|error| format!("{address} broke off: {error}"))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        // An answer that is an error and nothing else has its status in the head.
        let field = |name| trailers.get(name).or_else(|| head.headers.get(name));
        let text = |name| field(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        verdict(text("grpc-status"), text("grpc-message"), &body.to_bytes(), service)
    };
    // Dropping the connection's side ends it: the call is done, or its time is up.
    tokio::select! {
        outcome = call => outcome,
        ended = connection => Err(match ended {
            Err(error) => no_http2(error),
            Ok(()) => format!("{address} closed the connection without an answer"),
        }),
    }
}

/// `HealthCheckRequest { service }`, with the head that gRPC puts before a message.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a); // field 1, a text
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or_default());
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0]; // not compressed
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

fn verdict(status: &str, message: &str, body: &[u8], service: &str) -> Outcome {
    let whose = if service.is_empty() { "the server".to_owned() } else { format!("`{service}`") };
    match (status, body) {
        ("" | "0", [0, _, _, _, _, message @ ..]) => match serving(message) {
            1 => Ok(()),
            0 => Err(format!("{whose} says that its health is unknown")),
            2 => Err(format!("{whose} says that it is not serving")),
            3 => Err(format!("the server knows no service {whose}")),
            other => Err(format!("{whose} answered with health {other}")),
        },
        ("5", _) => Err(format!("the server knows no service {whose}")),
        ("12", _) => Err("the server has no health service (grpc.health.v1.Health)".to_owned()),
        ("" | "0", _) => Err("the health service's answer has no message".to_owned()),
        (code, _) => Err(format!("the health service answered with gRPC status {code}: {message}")),
    }
}

/// Field 1 of a `HealthCheckResponse`, a small number; 0 where it is absent.
fn serving(message: &[u8]) -> u8 {
    match message {
        [0x08, value, ..] => *value,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::{body::Frame, server::conn::http2 as server, service::service_fn};
    use tokio::net::TcpListener;
    use wharf_process::{Shutdown, Tasks};

    use super::*;

    /// A server that answers with this message and status, and says what it was asked.
    async fn answering(message: &'static [u8], status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Tasks::new(&Shutdown::new()).spawn("health", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(asked, question("shop.Cart"));
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    let frames = [Frame::data(Bytes::from_static(message)), Frame::trailers(trailers)];
                    let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
                    Ok::<_, Infallible>(http::Response::new(body))
                });
                let _ = server::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_server_is_healthy_while_it_says_that_it_serves() {
        let serving = answering(&[0, 0, 0, 0, 2, 8, 1], "0").await;
        assert_eq!(check(serving, "shop.Cart").await, Ok(()));
        let stopped = answering(&[0, 0, 0, 0, 2, 8, 2], "0").await;
        let said = check(stopped, "shop.Cart").await.unwrap_err();
        assert_eq!(said, "`shop.Cart` says that it is not serving");
        let unknown = answering(&[], "5").await;
        assert!(check(unknown, "shop.Cart").await.unwrap_err().contains("knows no service `shop.Cart`"));
        let without = answering(&[], "12").await;
        assert!(check(without, "shop.Cart").await.unwrap_err().contains("has no health service"));
    }

    #[tokio::test]
    async fn what_speaks_no_http2_is_not_healthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Tasks::new(&Shutdown::new()).spawn("mail", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example ESMTP\r\n").await;
            }
        });
        let said = check(address, "").await.unwrap_err();
        assert!(said.contains("does not speak HTTP/2") || said.contains("closed the connection"), "{said}");
    }

    #[test]
    fn long_names_have_long_lengths() {
        let name = "a".repeat(300);
        let bytes = question(&name);
        assert_eq!(&bytes[..5], &[0, 0, 0, 1, 47]);
        assert_eq!(&bytes[5..8], &[0x0a, 0xac, 0x02]);
    }
}
