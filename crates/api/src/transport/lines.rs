//! Streams of JSON values, one per line.
//!
//! An empty line is a sign of life: writers send one when they have had nothing else to say for a while, readers skip it.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, StreamBody};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{Body, BodyError, frame::KeepAlive};

/// The content type of such a stream.
pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// The longest line a reader takes.
pub const MAX_LINE: usize = 16 << 20;

/// How many bytes of lines travel together, give or take a line.
const BATCH: usize = 32 << 10;

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

/// The value in a body's first line, and the body that comes after it.
///
/// # Errors
/// If there is no such line, or it holds something else.
pub async fn first_line<T, B>(body: B, patience: Duration) -> Result<(T, Body), LineError>
where
    T: DeserializeOwned,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let mut reader = LineReader::<T>::new(body, patience);
    let value = reader.next().await?.ok_or(LineError::CutOff)?;
    let rest = reader.buffer.freeze();
    let begun = futures::stream::iter((!rest.is_empty()).then(|| Ok(http_body::Frame::data(rest))));
    let frames = begun.chain(http_body_util::BodyStream::new(reader.body));
    Ok((value, StreamBody::new(frames).boxed_unsync()))
}

/// A body that is a value in one line, and after it another body.
///
/// # Errors
/// If the value cannot be written as JSON.
pub fn after_line<B>(value: &impl Serialize, body: B) -> Result<Body, serde_json::Error>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let line = futures::stream::iter([Ok(http_body::Frame::data(Bytes::from(line)))]);
    let rest = http_body_util::BodyStream::new(body.map_err(Into::into));
    Ok(StreamBody::new(line.chain(rest)).boxed_unsync())
}

/// A body of one line for each value, and of an empty line after every `keepalive` without one. It ends after the first error.
///
/// Lines that are ready at once travel together: one frame for each would cost more than the lines.
pub fn json_lines<T, E>(
    values: impl Stream<Item = Result<T, E>> + Send + 'static,
    keepalive: Duration,
) -> Body
where
    T: Serialize + 'static,
    E: Into<BodyError> + 'static,
{
    let outgoing = Outgoing {
        values: Some(values.boxed()),
        batch: BytesMut::new(),
        failure: None,
        alive: KeepAlive::every(keepalive),
    };
    StreamBody::new(outgoing.map(|lines| lines.map(http_body::Frame::data))).boxed_unsync()
}

struct Outgoing<T, E> {
    /// Absent once they have ended.
    values: Option<BoxStream<'static, Result<T, E>>>,
    batch: BytesMut,
    /// Said after the lines before it.
    failure: Option<BodyError>,
    alive: KeepAlive,
}
impl<T, E> Unpin for Outgoing<T, E> {}

impl<T: Serialize, E: Into<BodyError>> Outgoing<T, E> {
    /// Takes lines as long as there are any at once; whether there may be more later.
    fn gather(&mut self, context: &mut Context<'_>) -> bool {
        while self.batch.len() < BATCH {
            let Some(values) = &mut self.values else { return false };
            let line = match values.as_mut().poll_next(context) {
                Poll::Pending => return true,
                Poll::Ready(None) => {
                    self.values = None;
                    return false;
                }
                Poll::Ready(Some(value)) => value.map_err(Into::into).and_then(|value| self.append(&value)),
            };
            if let Err(error) = line {
                self.failure = Some(error);
                self.values = None;
            }
        }
        true
    }

    fn append(&mut self, value: &T) -> Result<(), BodyError> {
        let whole = self.batch.len();
        if let Err(error) = serde_json::to_writer((&mut self.batch).writer(), value) {
            self.batch.truncate(whole);
            return Err(error.into());
        }
        self.batch.put_u8(b'\n');
        Ok(())
    }
}

impl<T: Serialize, E: Into<BodyError>> Stream for Outgoing<T, E> {
    type Item = Result<Bytes, BodyError>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let more = self.gather(context);
        if !self.batch.is_empty() {
            self.alive.restart();
            return Poll::Ready(Some(Ok(self.batch.split().freeze())));
        }
        if !more {
            return Poll::Ready(self.failure.take().map(Err));
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

    #[tokio::test]
    async fn lines_before_a_failure_arrive_and_the_failure_after_them() {
        let values = [Ok(1), Ok(2), Err(BodyError::from("the engine went away"))];
        let mut body = json_lines(stream::iter(values), LONG);
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(&first[..], b"1\n2\n", "together");
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "the engine went away");
        assert!(body.frame().await.is_none());
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
