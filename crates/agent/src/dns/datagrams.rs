//! Answers what comes to one address by UDP, on a thread of its own: a flood on one network holds up no other's questions, and several
//! processors take part.
//!
//! - The thread is in the socket's wait queue only while there is nothing to do. Where `epoll` watches a socket, somebody always is, whom the kernel
//!   goes to wake with each answer that has left: a twentieth of what a question costs.
//! - It ends between two batches: what was received is answered, or waits in `Tasks` for an upstream resolver.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, atomic::Ordering},
    thread,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    ATTEMPTS, PAUSE, Server,
    answer::{Answer, Forward, Known, Transport, answer, fail},
    batch::{self, Batch},
    settle,
    wire::code,
    write,
};

/// Several times what is used of it. Only what is used is real.
const STACK: usize = 128 * 1024;

/// A question that waits for an upstream resolver.
struct Waiting {
    message: Box<[u8]>,
    client: SocketAddrV4,
    forward: Forward,
    _permit: OwnedSemaphorePermit,
}

/// When a thread is to end, also while it waits.
struct Over {
    is_so: CancellationToken,
    wakes: EventFd,
}

impl Over {
    fn new(is_so: CancellationToken) -> io::Result<Self> {
        let wakes = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { is_so, wakes })
    }

    /// Waits until it is so or there is something to receive, for as long as that takes.
    fn or_readable(&self, socket: &OwnedFd) -> io::Result<()> {
        let [over, socket] =
            [self.wakes.as_fd(), socket.as_fd()].map(|of| PollFd::new(of, PollFlags::POLLIN));
        wait(&mut [over, socket], PollTimeout::NONE)
    }

    /// Waits until it is so, for a while.
    fn or_pause(&self) {
        let pause = PAUSE.try_into().unwrap_or(PollTimeout::MAX);
        let _ = wait(&mut [PollFd::new(self.wakes.as_fd(), PollFlags::POLLIN)], pause);
    }
}

fn wait(of: &mut [PollFd<'_>], most: PollTimeout) -> io::Result<()> {
    match poll(of, most) {
        // A signal: who waits looks again.
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends a thread once this is dropped.
struct EndsThread(Arc<Over>);

impl Drop for EndsThread {
    fn drop(&mut self) {
        self.0.is_so.cancel();
        // It adds to a number that is far from its end.
        let _ = self.0.wakes.write(1);
    }
}

/// Answers what comes in on `socket` until `receive` is cancelled. A task is there for as long as the thread is.
pub(super) fn serve(
    server: Arc<Server>,
    socket: Arc<OwnedFd>,
    address: SocketAddr,
    receive: CancellationToken,
) -> io::Result<()> {
    let over = Arc::new(Over::new(receive.child_token())?);
    let ends_thread = EndsThread(Arc::clone(&over));
    let (ends, mut ended) = oneshot::channel();
    let (runtime, tasks) = (Handle::current(), server.tasks.clone());
    let answer = move || {
        let _in_runtime = runtime.enter();
        let datagrams = Datagrams { server, socket, batch: Batch::new(), waiting: Vec::new() };
        datagrams.answer_until(&over);
    };
    // What does not fit in a thread's name is cut.
    let thread = thread::Builder::new().name(format!("dns {}", address.ip())).stack_size(STACK);
    thread.spawn(move || drop(ends.send(catch_unwind(AssertUnwindSafe(answer)))))?;
    tasks.spawn(format!("dns udp {address}"), async move {
        // Dropped anywhere, it ends the thread, too.
        let outcome = match receive.run_until_cancelled(&mut ended).await {
            Some(outcome) => outcome,
            None => {
                drop(ends_thread);
                ended.await
            }
        };
        if let Ok(Err(panic)) = outcome {
            resume_unwind(panic);
        }
    });
    Ok(())
}

/// What a thread works with.
struct Datagrams {
    server: Arc<Server>,
    /// Perhaps another process's, too.
    socket: Arc<OwnedFd>,
    batch: Batch,
    waiting: Vec<Waiting>,
}

impl Datagrams {
    fn answer_until(mut self, over: &Over) {
        while !over.is_so.is_cancelled() {
            let served = self.serve_batch();
            for waiting in self.waiting.drain(..) {
                let (server, socket) = (Arc::clone(&self.server), Arc::clone(&self.socket));
                let task = async move { server.answer_later(&socket, waiting).await };
                let stop = self.server.stop.child_token();
                self.server.tasks.spawn("dns question", stop.run_until_cancelled_owned(task));
            }
            let waited = match served {
                // More have come meanwhile, most likely: to look costs less than to wait.
                Ok(2..) => continue,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                Ok(_) | Err(_) => over.or_readable(&self.socket),
            };
            if let Err(error) = waited {
                tracing::debug!(%error, address = %self.server.listen.address, "datagrams not received");
                over.or_pause();
            }
        }
    }

    /// Receives what is there, and sends what can be answered at once; how many questions there were.
    fn serve_batch(&mut self) -> io::Result<usize> {
        let Self { server, socket, batch, waiting } = self;
        let (shared, socket) = (&server.shared, socket.as_raw_fd());
        let count = batch.receive(socket)?;
        shared.questions.fetch_add(count as u64, Ordering::Relaxed);
        let known = shared.known.read();
        batch.answer(|message, client, out| server.answer(&known, message, client, waiting, out));
        let unsent = batch.send(socket);
        drop(known);
        if unsent > 0 {
            shared.unsent.fetch_add(unsent as u64, Ordering::Relaxed);
        }
        Ok(count)
    }
}

impl Server {
    fn answer(
        &self,
        known: &Known,
        message: &[u8],
        client: SocketAddrV4,
        waiting: &mut Vec<Waiting>,
        out: &mut Vec<u8>,
    ) {
        let Some(asker) = self.asker(client.ip()) else { return };
        let Answer::Forward(forward) = answer(message, asker, Transport::Udp, known, out) else { return };
        self.shared.forwarded.fetch_add(1, Ordering::Relaxed);
        if let Some(outcome) = self.shared.forwarder.cached(&forward.ask) {
            return write(&outcome, message, &forward, Transport::Udp, out);
        }
        match Arc::clone(&self.shared.waiting).try_acquire_owned() {
            Ok(permit) => waiting.push(Waiting { message: message.into(), client, forward, _permit: permit }),
            Err(_) => fail(message, Transport::Udp, code::SERVER_FAILURE, out),
        }
    }

    async fn answer_later(&self, socket: &OwnedFd, waiting: Waiting) {
        let Waiting { message, client, mut forward, _permit } = waiting;
        let Some(asker) = self.asker(client.ip()) else { return };
        let mut out = Vec::new();
        for attempt in 1..=ATTEMPTS {
            let outcome = self.resolve(&forward).await;
            let known = self.shared.known.read();
            let asked = (attempt < ATTEMPTS).then_some((&forward, &outcome));
            match settle(&known, &message, asker, Transport::Udp, asked, &mut out) {
                Some(changed) => forward = changed,
                None => {
                    // Still behind the lock: nothing newer can have been published.
                    if batch::send(socket.as_raw_fd(), &mut out, &client.into()).is_err() {
                        self.shared.unsent.fetch_add(1, Ordering::Relaxed);
                    }
                    return;
                }
            }
        }
    }
}
