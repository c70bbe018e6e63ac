//! The frames of a full-duplex stream, such as a command running in a task.
//!
//! - A frame is one byte of kind, four bytes of length (big endian) and that many bytes, at most [`MAX_PAYLOAD`]. Longer data
//!   becomes several frames; nobody may rely on where data is cut.
//! - A request begins with [`Frame::Start`]; an answer ends with [`Frame::Exit`] or [`Frame::Error`], and a stream that ends
//!   without either was cut off.
//! - Both sides say [`Frame::KeepAlive`] when they have had nothing else to say for a while, so that silence always means trouble.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, StreamBody};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep_until, timeout},
};

use super::{Body, BodyError};
use crate::v1::{ExecRequest, Problem};

/// The most bytes one frame carries.
pub const MAX_PAYLOAD: usize = 1 << 20;
const HEAD: usize = 5;
/// Frames a sender may be ahead of the network; then it waits.
const QUEUE: usize = 16;

/// One message of a full-duplex stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// For the process's standard input.
    Stdin(Bytes),
    /// From its standard output, or its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// The terminal has another size.
    Resize(Size),
    /// Send the process a signal.
    Signal(SignalName),
    /// The process has ended; nothing follows.
    Exit(ExitCode),
    /// The sender is still there.
    KeepAlive,
    /// It went wrong; nothing follows.
    Error(Problem),
    /// Standard input ends here.
    StdinEnd,
    /// What to run; the first frame of a request.
    Start(ExecRequest),
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A signal by its name: `SIGINT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalName {
    /// The name.
    pub signal: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCode {
    /// Exit code; 128 + n for a process ended by signal n.
    pub code: i64,
}

/// Why a stream of frames cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Another version, or no frame at all.
    #[error("a frame of unknown kind {0} came in")]
    UnknownKind(u8),
    /// A length nobody sends.
    #[error("a frame of {0} bytes came in; the most is {MAX_PAYLOAD}")]
    TooLong(u32),
    /// A payload that is not what its kind says.
    #[error("a frame of kind {kind} with unreadable content came in")]
    Content {
        /// The frame's kind.
        kind: u8,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream was cut off in the middle of a frame")]
    CutOff,
    /// The connection broke.
    #[error("the stream was cut off")]
    Lost(#[source] BodyError),
    /// Not even a sign of life came for too long.
    #[error("nothing was heard for {} s", .0.as_secs())]
    Silent(Duration),
}

impl Frame {
    const fn kind(&self) -> u8 {
        match self {
            Self::Stdin(_) => 0,
            Self::Stdout(_) => 1,
            Self::Stderr(_) => 2,
            Self::Resize(_) => 3,
            Self::Signal(_) => 4,
            Self::Exit(_) => 5,
            Self::KeepAlive => 6,
            Self::Error(_) => 7,
            Self::StdinEnd => 8,
            Self::Start(_) => 9,
        }
    }

    /// Appends this frame, or the several it takes.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Stdin(data) | Self::Stdout(data) | Self::Stderr(data) => put_data(self.kind(), data, out),
            Self::Resize(size) => put_json(self.kind(), size, out),
            Self::Signal(signal) => put_json(self.kind(), signal, out),
            Self::Exit(exit) => put_json(self.kind(), exit, out),
            Self::Error(problem) => put_json(self.kind(), problem, out),
            Self::Start(request) => put_json(self.kind(), request, out),
            Self::KeepAlive | Self::StdinEnd => put(self.kind(), &[], out),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            0 => Self::Stdin(payload),
            1 => Self::Stdout(payload),
            2 => Self::Stderr(payload),
            3 => Self::Resize(json(kind, &payload)?),
            4 => Self::Signal(json(kind, &payload)?),
            5 => Self::Exit(json(kind, &payload)?),
            6 => Self::KeepAlive,
            7 => Self::Error(json(kind, &payload)?),
            8 => Self::StdinEnd,
            9 => Self::Start(json(kind, &payload)?),
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }

    /// This frame as bytes.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }
}

fn put_data(kind: u8, data: &[u8], out: &mut BytesMut) {
    data.chunks(MAX_PAYLOAD).for_each(|part| put(kind, part, out));
}

fn put_json(kind: u8, content: &impl Serialize, out: &mut BytesMut) {
    let content = serde_json::to_vec(content).expect("frames contain nothing that JSON cannot say");
    put(kind, &content, out);
}

fn put(kind: u8, payload: &[u8], out: &mut BytesMut) {
    out.reserve(HEAD + payload.len());
    out.put_u8(kind);
    out.put_u32(u32::try_from(payload.len()).expect("a payload is cut to less than a MiB"));
    out.put_slice(payload);
}

fn json<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|source| FrameError::Content { kind, source })
}

/// Turns bytes, however they are cut, back into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes in what arrived.
    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// If what arrived is no frame. Nothing after that can be read.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((head, _)) = self.buffer.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [kind, length @ ..] = *head;
        let announced = u32::from_be_bytes(length);
        let length = usize::try_from(announced).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(announced));
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        Frame::decode(kind, self.buffer.split_to(length).freeze()).map(Some)
    }

    /// Whether nothing is left over: a stream that ends then was not cut off within a frame.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Reads the frames of a body; signs of life are consumed here.
pub struct FrameReader {
    body: Body,
    decoder: Decoder,
    patience: Duration,
}

impl FrameReader {
    /// Reads `body`, and gives up after `patience` without any sign of life ([`super::Timing::stream_silence`]).
    pub fn new<B>(body: B, patience: Duration) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        Self { body: body.map_err(Into::into).boxed_unsync(), decoder: Decoder::default(), patience }
    }

    /// The next frame that is not a mere sign of life; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// If the stream breaks off, falls silent, or is none of frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.decoder.next_frame()? {
                Some(Frame::KeepAlive) => {}
                Some(frame) => return Ok(Some(frame)),
                None if self.read().await? => {}
                None if self.decoder.is_empty() => return Ok(None),
                None => return Err(FrameError::CutOff),
            }
        }
    }

    /// Takes in more bytes; whether there were any. Cancel-safe: what arrived is in the decoder before anything is awaited again.
    async fn read(&mut self) -> Result<bool, FrameError> {
        let next = timeout(self.patience, self.body.frame()).await;
        let Some(part) = next.map_err(|_| FrameError::Silent(self.patience))? else { return Ok(false) };
        if let Ok(data) = part.map_err(FrameError::Lost)?.into_data() {
            self.decoder.push(&data);
        }
        Ok(true)
    }
}

/// Sends frames into a body. Clones send into the same one, which ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct FrameSender {
    queue: mpsc::Sender<Frame>,
}

/// The reader of the frames is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side has hung up")]
pub struct HungUp;

impl FrameSender {
    /// A sender, and the body to send: it says [`Frame::KeepAlive`] after every `keepalive` without a frame.
    pub fn channel(keepalive: Duration) -> (Self, Body) {
        let (queue, frames) = mpsc::channel(QUEUE);
        let encoded = Outgoing { frames, alive: KeepAlive::every(keepalive) };
        let body = StreamBody::new(encoded.map(|bytes| Ok(http_body::Frame::data(bytes))));
        (Self { queue }, body.boxed_unsync())
    }

    /// Sends a frame; waits while the reader is behind. Cancel-safe: a frame is sent as a whole or not at all.
    ///
    /// # Errors
    /// If the reader is gone.
    pub async fn send(&self, frame: Frame) -> Result<(), HungUp> {
        self.queue.send(frame).await.map_err(|_| HungUp)
    }

    /// Returns when the reader is gone. Cancel-safe.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

struct Outgoing {
    frames: mpsc::Receiver<Frame>,
    alive: KeepAlive,
}

impl Stream for Outgoing {
    type Item = Bytes;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Poll::Ready(next) = self.frames.poll_recv(context) {
            self.alive.restart();
            return Poll::Ready(next.map(|frame| frame.to_bytes()));
        }
        self.alive.poll_due(context).map(|()| Some(Frame::KeepAlive.to_bytes()))
    }
}

/// Says when a stream has been silent for long enough to give a sign of life.
pub(super) struct KeepAlive {
    every: Duration,
    due: Pin<Box<Sleep>>,
}
impl KeepAlive {
    pub(super) fn every(every: Duration) -> Self {
        Self { every, due: Box::pin(sleep_until(Instant::now() + every)) }
    }
    pub(super) fn restart(&mut self) {
        let next = Instant::now() + self.every;
        self.due.as_mut().reset(next);
    }
    /// Ready each time a sign of life is due.
    pub(super) fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.due.as_mut().poll(context).map(|()| self.restart())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::Code;

    fn decode(bytes: &[u8], cut: usize) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for part in bytes.chunks(cut.max(1)) {
            decoder.push(part);
            while let Some(frame) = decoder.next_frame().expect("these are frames") {
                frames.push(frame);
            }
        }
        assert!(decoder.is_empty());
        frames
    }

    #[test]
    fn data_longer_than_a_frame_arrives_whole_in_several() {
        let data = Bytes::from((0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>());
        let frames = decode(&Frame::Stdout(data.clone()).to_bytes(), 70_000);
        assert_eq!(frames.len(), 3);
        let parts: Vec<u8> = frames
            .into_iter()
            .flat_map(|frame| match frame {
                Frame::Stdout(part) => part.to_vec(),
                other => panic!("{other:?} was never sent"),
            })
            .collect();
        assert_eq!(parts, data);
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_is_waited_for() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0xff, 0, 0, 0]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
        let mut decoder = Decoder::default();
        decoder.push(&[77, 0, 0, 0, 0]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::UnknownKind(77))));
        let mut decoder = Decoder::default();
        decoder.push(&[3, 0, 0, 0, 2, b'{', b']']);
        assert!(matches!(decoder.next_frame(), Err(FrameError::Content { kind: 3, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_gives_signs_of_life_and_one_that_does_not_is_given_up() {
        let (sender, body) = FrameSender::channel(Duration::from_secs(15));
        let mut reader = FrameReader::new(body, Duration::from_secs(60));
        let silent = tokio::time::timeout(Duration::from_secs(3600), reader.next()).await;
        assert!(silent.is_err(), "an hour of silence is no reason to give up: {silent:?}");
        sender.send(Frame::StdinEnd).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(Frame::StdinEnd));
        drop(sender);
        assert_eq!(reader.next().await.unwrap(), None);

        let dead = StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, BodyError>>());
        let mut reader = FrameReader::new(dead, Duration::from_secs(60));
        assert!(matches!(reader.next().await, Err(FrameError::Silent(_))));
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_was_cut_off() {
        let body = super::super::full(vec![1, 0, 0, 0, 9, b'x']);
        let mut reader = FrameReader::new(body, Duration::from_secs(60));
        assert!(matches!(reader.next().await, Err(FrameError::CutOff)));
    }

    fn data() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 1..200).prop_map(Bytes::from)
    }
    fn frame() -> impl Strategy<Value = Frame> {
        let problem = |message| Problem { code: Code::NotFound, message, hint: None, holder: None };
        prop_oneof![
            data().prop_map(Frame::Stdin),
            data().prop_map(Frame::Stdout),
            data().prop_map(Frame::Stderr),
            (any::<u16>(), any::<u16>()).prop_map(|(columns, rows)| Frame::Resize(Size { columns, rows })),
            "SIG[A-Z]{3,4}".prop_map(|signal| Frame::Signal(SignalName { signal })),
            any::<i64>().prop_map(|code| Frame::Exit(ExitCode { code })),
            Just(Frame::KeepAlive),
            ".{0,40}".prop_map(move |message| Frame::Error(problem(message))),
            Just(Frame::StdinEnd),
            proptest::collection::vec(".{0,9}", 0..4).prop_map(|command| Frame::Start(ExecRequest {
                command,
                tty: true,
                ..Default::default()
            })),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_however_the_network_cuts_them(
            frames in proptest::collection::vec(frame(), 0..20),
            cut in 1_usize..300,
        ) {
            let mut bytes = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            prop_assert_eq!(decode(&bytes, cut), frames);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
