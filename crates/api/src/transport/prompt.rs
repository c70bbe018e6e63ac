//! A stream whose other side has to begin in time.
//!
//! HTTP/2 probes a silent peer only once both have greeted; a peer that dies between the TLS handshake and its greeting would be
//! waited for without end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A stream of which the first byte has to come within a deadline; after that it is as it was.
#[derive(Debug)]
pub struct Prompt<I> {
    inner: I,
    due: Option<Pin<Box<Sleep>>>,
}

impl<I> Prompt<I> {
    /// Expects the first byte within `patience` from now.
    pub fn new(inner: I, patience: Duration) -> Self {
        Self { inner, due: Some(Box::pin(sleep(patience))) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Prompt<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(context, buffer) {
            this.due = None;
            return Poll::Ready(read);
        }
        let Some(due) = &mut this.due else { return Poll::Pending };
        ready!(due.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the other side did not begin in time")))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Prompt<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, data)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_begins_is_not_waited_for() {
        let (near, _far) = duplex(64);
        let error = Prompt::new(near, PATIENCE).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_begun_may_be_silent() {
        let (near, mut far) = duplex(64);
        let mut near = Prompt::new(near, PATIENCE);
        far.write_u8(1).await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), 1);
        assert!(tokio::time::timeout(PATIENCE * 100, near.read_u8()).await.is_err());
        far.write_u8(2).await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), 2);
    }
}
