//! Serves one TCP connection: questions may follow one another without waiting for answers, and those that wait for an upstream
//! resolver hold up no others.
//!
//! An answer is decided and handed to the kernel in one go. If the reader is too slow for that, the rest follows only as long as the table
//! is the same; otherwise the connection is closed, and nobody takes an older answer for whole.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    ATTEMPTS, Server,
    answer::{Answer, Asker, Forward, Known, Transport, answer},
    settle,
};

/// How long a connection may say nothing, and an answer may take to be taken.
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection may say nothing once another process answers.
const LEAVING: Duration = Duration::from_millis(250);
/// Questions of one connection that wait for upstream resolvers.
const WAITING: usize = 32;

pub(super) struct Connection {
    reader: OwnedReadHalf,
    sender: Arc<Sender>,
    waiting: Arc<Semaphore>,
}

/// The half that answers. Lives until the last one is sent.
struct Sender {
    server: Arc<Server>,
    writer: Mutex<OwnedWriteHalf>,
    asker: Asker,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        server: Arc<Server>,
        stream: TcpStream,
        asker: Asker,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        // Without it answers wait for what the client acknowledges.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        let sender = Sender { server, writer: Mutex::new(writer), asker, _permit: permit };
        Self { reader, sender: Arc::new(sender), waiting: Arc::new(Semaphore::new(WAITING)) }
    }

    /// Serves until the client ends it, is silent for too long, or does not take its answers.
    pub(super) async fn serve(mut self) {
        if let Err(error) = self.serve_questions().await {
            tracing::trace!(%error, "connection ended");
        }
    }

    async fn serve_questions(&mut self) -> io::Result<()> {
        loop {
            let message = timeout(IDLE, self.read()).await??;
            let Some(forward) = self.sender.answer(&message).await? else { continue };
            let Ok(permit) = Arc::clone(&self.waiting).acquire_owned().await else { return Ok(()) };
            let sender = Arc::clone(&self.sender);
            let task = async move {
                let _permit = permit;
                if let Err(error) = sender.answer_later(&message, forward).await {
                    tracing::trace!(%error, "answer not sent");
                }
            };
            let server = &self.sender.server;
            server.tasks.spawn("dns question", server.stop.child_token().run_until_cancelled_owned(task));
        }
    }

    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let leaves = self.sender.server.shared.retired.clone();
        let mut first = [0];
        tokio::select! {
            biased;
            // Both arms are cancel-safe: what they see is still to be read.
            peeked = self.reader.peek(&mut first) => drop(peeked?),
            () = leaves.cancelled() => {
                timeout(LEAVING, self.reader.peek(&mut [0])).await??;
            }
        }
        let mut message = vec![0; usize::from(self.reader.read_u16().await?)];
        self.reader.read_exact(&mut message).await?;
        Ok(message)
    }
}

impl Sender {
    /// Answers at once, or says what has to be asked first.
    async fn answer(&self, message: &[u8]) -> io::Result<Option<Forward>> {
        use std::sync::atomic::Ordering::Relaxed;
        self.server.shared.questions.fetch_add(1, Relaxed);
        let mut forwarded = None;
        self.send(|known, out| match answer(message, self.asker, Transport::Tcp, known, out) {
            Answer::Send => Ok(()),
            Answer::Nothing => Err(io::Error::other("no question")),
            Answer::Forward(forward) => {
                forwarded = Some(forward);
                Ok(())
            }
        })
        .await?;
        if forwarded.is_some() {
            self.server.shared.forwarded.fetch_add(1, Relaxed);
        }
        Ok(forwarded)
    }

    async fn answer_later(&self, message: &[u8], mut forward: Forward) -> io::Result<()> {
        for attempt in 1..=ATTEMPTS {
            let outcome = self.server.resolve(&forward).await;
            let mut changed = None;
            self.send(|known, out| {
                let asked = (attempt < ATTEMPTS).then_some((&forward, &outcome));
                changed = settle(known, message, self.asker, Transport::Tcp, asked, out);
                Ok(())
            })
            .await?;
            match changed {
                Some(changed) => forward = changed,
                None => break,
            }
        }
        Ok(())
    }

    /// Sends what `decide` writes, which may be nothing. It is asked again if the table changes before anything is sent.
    async fn send(&self, mut decide: impl FnMut(&Known, &mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let writer = self.writer.lock().await;
        let (mut bytes, mut sent, mut version) = (Vec::new(), 0, None);
        loop {
            let more = {
                let known = self.server.shared.known.read();
                if bytes.is_empty() || version != known.zone.version {
                    if sent > 0 {
                        return Err(io::Error::other("the table changed while an answer was being sent"));
                    }
                    version = known.zone.version;
                    bytes = vec![0, 0];
                    decide(&known, &mut bytes)?;
                    let length = bytes.len() - 2;
                    if length == 0 {
                        return Ok(());
                    }
                    bytes[..2]
                        .copy_from_slice(&u16::try_from(length).map_err(io::Error::other)?.to_be_bytes());
                }
                match writer.try_write(&bytes[sent..]) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                sent < bytes.len()
            };
            if !more {
                return Ok(());
            }
            timeout(IDLE, writer.writable()).await??;
        }
    }
}
