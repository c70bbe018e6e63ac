//! Connections that stop speaking HTTP (WebSocket and others): what both ends send from then on is passed on as it is.
//!
//! - Each direction ends for itself; an end that is done with sending may go on receiving.
//! - It is under way with its endpoint until both directions have ended, or neither has sent anything for the route's idle time, or the task is
//!   gone with its node.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    entry::Entry,
    forward::UNHEARD,
    table::Lease,
    worker::{Watch, Worker},
};

/// What is read at once, each way.
const BUFFER: usize = 16 << 10;

/// The task's half of an upgraded connection.
pub(crate) struct Tunnel {
    pub(crate) stream: TcpStream,
    /// What the task said already.
    pub(crate) read: Bytes,
    pub(crate) lease: Lease,
    pub(crate) idle: Duration,
    pub(crate) entry: Entry,
}

impl Tunnel {
    /// Passes bytes on until both have ended; `read` is what the client said already.
    pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut client: S,
        read: Bytes,
        worker: &Worker,
        watch: &Watch,
    ) -> io::Result<()> {
        let Self { mut stream, read: said, lease, idle, entry } = self;
        let (mut up, mut down) = (Way::new(read), Way::new(said));
        watch.set(worker.now().plus(idle));
        let ended = std::future::poll_fn(|cx| {
            watch.register(cx.waker());
            let before = up.passed + down.passed;
            let (there, back) =
                (up.poll(&mut client, &mut stream, cx), down.poll(&mut stream, &mut client, cx));
            if up.passed + down.passed > before {
                watch.set(worker.now().plus(idle));
            }
            match (there, back) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                _ if lease.backend().is_gone() => {
                    entry.because(UNHEARD);
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
                _ if watch.is_due(worker.now()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                _ => Poll::Pending,
            }
        })
        .await;
        lease.passed(up.passed, down.passed);
        entry.passed(up.passed, down.passed);
        ended
    }
}

/// One direction.
struct Way {
    /// What is still to be passed on of what was read before.
    first: Bytes,
    /// Only there while something is in it: most of these connections are silent most of the time.
    buffer: Vec<u8>,
    at: usize,
    state: State,
    /// Something was written that may not have been sent yet.
    unflushed: bool,
    passed: u64,
}

enum State {
    Open,
    Closing,
    Closed,
}

impl Way {
    fn new(first: Bytes) -> Self {
        Self { first, buffer: Vec::new(), at: 0, state: State::Open, unflushed: false, passed: 0 }
    }

    /// Ready when this direction has ended.
    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        from: &mut R,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Closing => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Closed;
                }
                State::Open => {
                    if !self.first.is_empty() {
                        let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.first))?;
                        self.wrote(written)?;
                        bytes::Buf::advance(&mut self.first, written);
                    } else if self.at < self.buffer.len() {
                        let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.at..]))?;
                        self.wrote(written)?;
                        self.at += written;
                    } else {
                        match self.read(from, cx)? {
                            Poll::Ready(0) => self.state = State::Closing,
                            Poll::Ready(_) => {}
                            Poll::Pending => {
                                (self.buffer, self.at) = (Vec::new(), 0);
                                if self.unflushed {
                                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                                    self.unflushed = false;
                                }
                                return Poll::Pending;
                            }
                        }
                    }
                }
            }
        }
    }

    fn wrote(&mut self, length: usize) -> io::Result<()> {
        if length == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.passed += length as u64;
        self.unflushed = true;
        Ok(())
    }

    fn read<R: AsyncRead + Unpin>(&mut self, from: &mut R, cx: &mut Context<'_>) -> io::Result<Poll<usize>> {
        let mut space = [MaybeUninit::uninit(); BUFFER];
        let mut space = ReadBuf::uninit(&mut space);
        match Pin::new(from).poll_read(cx, &mut space) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) => {
                self.buffer.clear();
                self.buffer.extend_from_slice(space.filled());
                self.at = 0;
                Ok(Poll::Ready(self.buffer.len()))
            }
        }
    }
}
