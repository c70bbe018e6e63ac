//! Streams of JSON values, one per line.
//!
//! An empty line is a sign of life: writers send one when they have had nothing else to say for a while, readers skip it.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, StreamBody};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{Body, BodyError, frame::KeepAlive};

/// The content type of such a stream.
pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// The longest line a reader takes.
pub const MAX_LINE: usize = 16 << 20;

/// Why a stream of lines cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// A line nobody sends.
    #[error("a line of more than {MAX_LINE} bytes came in")]
    TooLong,
    /// A line that is not what was expected.
    #[error("an unreadable line came in")]
    Content(#[source] serde_json::Error),
    /// The stream ended in the middle of a line.
    #[error("the stream was cut off in the middle of a line")]
    CutOff,
    /// The connection broke.
    #[error("the stream was cut off")]
    Lost(#[source] BodyError),
    /// Not even a sign of life came for too long.
    #[error("nothing was heard for {} s", .0.as_secs())]
    Silent(Duration),
}

/// Reads values of type `T` from a body.
pub struct LineReader<T> {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
    patience: Duration,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> LineReader<T> {
    /// Reads `body`, and gives up after `patience` without any sign of life.
    pub fn new<B>(body: B, patience: Duration) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let body = body.map_err(Into::into).boxed_unsync();
        Self { body, buffer: BytesMut::new(), searched: 0, patience, of: PhantomData }
    }

    /// The next value; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// If the stream breaks off, falls silent, or holds something else.
    pub async fn next(&mut self) -> Result<Option<T>, LineError> {
        loop {
            match self.line()? {
                Some(line) if line.trim_ascii().is_empty() => {}
                Some(line) => return serde_json::from_slice(&line).map(Some).map_err(LineError::Content),
                None if self.read().await? => {}
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(LineError::CutOff),
            }
        }
    }

    /// The values as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<T, LineError>> + Send
    where
        T: Send,
    {
        futures::stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(value)) => Some((Ok(value), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn line(&mut self) -> Result<Option<BytesMut>, LineError> {
        let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return if self.searched > MAX_LINE { Err(LineError::TooLong) } else { Ok(None) };
        };
        let line = self.buffer.split_to(self.searched + at + 1);
        self.searched = 0;
        Ok(Some(line))
    }

    /// Takes in more bytes; whether there were any. Cancel-safe: what arrived is in the buffer before anything is awaited again.
    async fn read(&mut self) -> Result<bool, LineError> {
        let next = timeout(self.patience, self.body.frame()).await;
        let Some(part) = next.map_err(|_| LineError::Silent(self.patience))? else { return Ok(false) };
        if let Ok(data) = part.map_err(LineError::Lost)?.into_data() {
            self.buffer.extend_from_slice(&data);
        }
        Ok(true)
    }
}

/// A body of one line for each value, and of an empty line after every `keepalive` without one. It ends after the first error.
pub fn json_lines<T, E>(
    values: impl Stream<Item = Result<T, E>> + Send + 'static,
    keepalive: Duration,
) -> Body
where
    T: Serialize + 'static,
    E: Into<BodyError> + 'static,
{
    let lines = values.map(|value| line_of(&value.map_err(Into::into)?));
    let outgoing = Outgoing { lines: Box::pin(lines), alive: KeepAlive::every(keepalive) };
    StreamBody::new(outgoing.map(|line| line.map(http_body::Frame::data))).boxed_unsync()
}

fn line_of(value: &impl Serialize) -> Result<Bytes, BodyError> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line.into())
}

struct Outgoing {
    lines: Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>,
    alive: KeepAlive,
}

impl Stream for Outgoing {
    type Item = Result<Bytes, BodyError>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(line) = self.lines.as_mut().poll_next(context) {
            self.alive.restart();
            return Poll::Ready(line);
        }
        self.alive.poll_due(context).map(|()| Some(Ok(Bytes::from_static(b"\n"))))
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn body_of(parts: Vec<&'static [u8]>) -> impl HttpBody<Data = Bytes, Error = BodyError> + Send {
        let frames = parts.into_iter().map(|part| Ok(http_body::Frame::data(Bytes::from_static(part))));
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn values_are_read_however_the_network_cuts_them() {
        let mut reader = LineReader::<u32>::new(body_of(vec![b"1\n2", b"3\n\n", b"\n4\r\n"]), LONG);
        for expected in [1, 23, 4] {
            assert_eq!(reader.next().await.unwrap(), Some(expected));
        }
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn half_a_line_at_the_end_is_an_error() {
        let mut reader = LineReader::<u32>::new(body_of(vec![b"1\n2"]), LONG);
        assert_eq!(reader.next().await.unwrap(), Some(1));
        assert!(matches!(reader.next().await, Err(LineError::CutOff)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_nothing_to_say_is_survived() {
        let late = stream::once(async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok::<_, BodyError>(7_u32)
        });
        let mut reader = LineReader::<u32>::new(json_lines(late, Duration::from_secs(15)), LONG);
        assert_eq!(reader.next().await.unwrap(), Some(7));
        assert_eq!(reader.next().await.unwrap(), None);
    }
}
