//! The network between simulated machines: connections as TCP gives them, over lines that are slow, cut in one direction or both, or broken.
//!
//! - Bytes of one connection arrive in order or not at all. What is on its way when a line is cut arrives when it is mended, if anybody
//!   still waits for it by then.
//! - A process that ends closes its connections; a machine that loses power does not, and the other end hears nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::chance::Dice;

/// Bytes on their way before who sends has to wait.
const WINDOW: usize = 1 << 18;

/// A machine on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The server of that number.
    Server(usize),
    /// The node of that number.
    Node(usize),
}

/// All lines.
pub struct Net {
    dice: Dice,
    lines: Mutex<Lines>,
}
#[derive(Default)]
struct Lines {
    /// Directions in which nothing gets through, and for how many reasons.
    cut: BTreeMap<(End, End), u32>,
    /// Machines without power.
    dark: BTreeSet<End>,
    /// Who is to be woken when something is mended.
    waiting: Vec<Waker>,
    flows: BTreeMap<(End, End), Vec<Weak<Mutex<Flow>>>>,
    /// Of a thousand pieces so many are sent again after a while.
    lossy: u32,
}

/// One direction of a connection.
#[derive(Default)]
struct Flow {
    /// What is on its way, and when it arrives.
    queue: VecDeque<(Instant, Piece)>,
    under_way: usize,
    last: Option<Instant>,
    /// Nobody reads any more.
    deaf: bool,
    /// The connection was reset.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}
enum Piece {
    Bytes(bytes::Bytes),
    End,
}
impl Flow {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Net {
    /// A network on which nothing is cut.
    pub fn new(dice: Dice) -> Arc<Self> {
        Arc::new(Self { dice, lines: Mutex::default() })
    }
    /// Cuts a direction until it is mended as often.
    pub fn cut(&self, from: End, to: End) {
        *self.lines.lock().cut.entry((from, to)).or_default() += 1;
    }
    /// Takes back one cut of a direction.
    pub fn mend(&self, from: End, to: End) {
        let mut lines = self.lines.lock();
        if let Some(reasons) = lines.cut.get_mut(&(from, to)) {
            *reasons -= 1;
            if *reasons == 0 {
                lines.cut.remove(&(from, to));
            }
        }
        std::mem::take(&mut lines.waiting).into_iter().for_each(Waker::wake);
    }
    /// Of a thousand pieces so many are lost and sent again.
    pub fn set_lossy(&self, permille: u32) {
        self.lines.lock().lossy = permille;
    }
    /// A machine has no power, or has it again.
    pub fn set_dark(&self, machine: End, dark: bool) {
        let mut lines = self.lines.lock();
        if dark {
            lines.dark.insert(machine);
        } else {
            lines.dark.remove(&machine);
        }
    }
    /// Whether a machine's kernel answers another that asks it now.
    pub fn answers(&self, asking: End, asked: End) -> bool {
        let lost = {
            let lines = self.lines.lock();
            let cut = [(asking, asked), (asked, asking)].iter().any(|line| lines.cut.contains_key(line));
            if cut || lines.dark.contains(&asking) || lines.dark.contains(&asked) {
                return false;
            }
            lines.lossy
        };
        lost == 0 || !self.dice.permille(lost)
    }
    /// Whether anything gets through in that direction.
    pub fn is_cut(&self, from: End, to: End) -> bool {
        self.lines.lock().cut.contains_key(&(from, to))
    }
    /// Breaks every connection between two machines.
    pub fn reset(&self, a: End, b: End) {
        let mut lines = self.lines.lock();
        for pair in [(a, b), (b, a)] {
            for flow in lines.flows.remove(&pair).into_iter().flatten().filter_map(|flow| flow.upgrade()) {
                let mut flow = flow.lock();
                flow.reset = true;
                flow.wake();
            }
        }
    }
    /// Breaks every connection of a machine.
    pub fn reset_all(&self, of: End) {
        let others: BTreeSet<_> = {
            let lines = self.lines.lock();
            let pairs = lines.flows.keys().filter(|(from, to)| *from == of || *to == of);
            pairs.map(|(from, to)| if *from == of { *to } else { *from }).collect()
        };
        for other in others {
            self.reset(of, other);
        }
    }
    /// Nothing is cut or lost any more.
    pub fn heal(&self) {
        let mut lines = self.lines.lock();
        lines.cut.clear();
        lines.lossy = 0;
        std::mem::take(&mut lines.waiting).into_iter().for_each(Waker::wake);
    }

    /// A connection: the end of who asked for it, and the other.
    pub fn connect(self: &Arc<Self>, from: End, to: End, dead: [Arc<AtomicBool>; 2]) -> (Socket, Socket) {
        let (there, back) = (Arc::<Mutex<Flow>>::default(), Arc::<Mutex<Flow>>::default());
        {
            let mut lines = self.lines.lock();
            for (pair, flow) in [((from, to), &there), ((to, from), &back)] {
                let flows = lines.flows.entry(pair).or_default();
                flows.retain(|flow| flow.strong_count() > 0);
                flows.push(Arc::downgrade(flow));
            }
        }
        let [mine, other] = dead;
        let socket = |reads: &Arc<Mutex<Flow>>, writes: &Arc<Mutex<Flow>>, here, there, dead| Socket {
            net: Arc::clone(self),
            reads: Arc::clone(reads),
            writes: Arc::clone(writes),
            here,
            there,
            dead,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        (socket(&back, &there, from, to, mine), socket(&there, &back, to, from, other))
    }

    fn delay(&self) -> Duration {
        let lossy = self.lines.lock().lossy;
        let lost = if lossy > 0 && self.dice.permille(lossy) { self.dice.between(200, 3000) } else { 0 };
        Duration::from_millis(self.dice.below(3) + lost)
    }
}

/// One end of a connection.
pub struct Socket {
    net: Arc<Net>,
    reads: Arc<Mutex<Flow>>,
    writes: Arc<Mutex<Flow>>,
    here: End,
    there: End,
    /// The machine has no power: nothing is said to anybody.
    dead: Arc<AtomicBool>,
    timer: Pin<Box<Sleep>>,
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flow = Arc::clone(&this.reads);
        let mut flow = flow.lock();
        if flow.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        flow.reader = Some(context.waker().clone());
        let Some((at, _)) = flow.queue.front() else { return Poll::Pending };
        {
            let mut lines = this.net.lines.lock();
            if lines.cut.contains_key(&(this.there, this.here)) {
                lines.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        if *at > Instant::now() {
            this.timer.as_mut().reset(*at);
            if this.timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        let Some((at, piece)) = flow.queue.pop_front() else { return Poll::Pending };
        match piece {
            Piece::End => {
                // And every time from now on.
                flow.queue.push_front((at, Piece::End));
            }
            Piece::Bytes(mut bytes) => {
                let some = bytes.split_to(bytes.len().min(buffer.remaining()));
                buffer.put_slice(&some);
                flow.under_way -= some.len();
                if !bytes.is_empty() {
                    flow.queue.push_front((at, Piece::Bytes(bytes)));
                }
                flow.writer.take().into_iter().for_each(Waker::wake);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let delay = self.net.delay();
        let mut flow = self.writes.lock();
        if flow.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if flow.deaf && !self.net.is_cut(self.here, self.there) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if flow.under_way >= WINDOW {
            flow.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let at = (Instant::now() + delay).max(flow.last.unwrap_or_else(Instant::now));
        flow.last = Some(at);
        flow.under_way += data.len();
        flow.queue.push_back((at, Piece::Bytes(bytes::Bytes::copy_from_slice(data))));
        flow.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(data.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.say_the_end();
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    fn say_the_end(&self) {
        let mut flow = self.writes.lock();
        let at = flow.last.unwrap_or_else(Instant::now);
        flow.queue.push_back((at, Piece::End));
        flow.reader.take().into_iter().for_each(Waker::wake);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.dead.load(Ordering::Relaxed) {
            return;
        }
        self.say_the_end();
        let mut flow = self.reads.lock();
        flow.deaf = true;
        flow.wake();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    const A: End = End::Node(1);
    const B: End = End::Server(1);

    fn pair(net: &Arc<Net>) -> (Socket, Socket, [Arc<AtomicBool>; 2]) {
        let dead = [Arc::default(), Arc::default()];
        let (a, b) = net.connect(A, B, dead.clone());
        (a, b, dead)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_over_a_cut_line_arrives_when_it_is_mended() {
        let net = Net::new(Dice::new(1, "net"));
        let (mut a, mut b, _dead) = pair(&net);
        net.cut(A, B);
        a.write_all(b"hello").await.unwrap();
        b.write_all(b"back").await.unwrap();
        let mut text = [0; 5];
        a.read_exact(&mut text[..4]).await.unwrap();
        assert_eq!(&text[..4], b"back", "the other direction is not cut");
        assert!(timeout(Duration::from_secs(60), b.read_exact(&mut text)).await.is_err());
        net.mend(A, B);
        timeout(Duration::from_secs(1), b.read_exact(&mut text)).await.unwrap().unwrap();
        assert_eq!(&text, b"hello");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_ends_is_heard_and_a_machine_without_power_is_not() {
        let net = Net::new(Dice::new(1, "net"));
        let (a, mut b, _dead) = pair(&net);
        drop(a);
        assert_eq!(timeout(Duration::from_secs(1), b.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
        assert!(b.write_all(b"x").await.is_err());

        let (a, mut b, dead) = pair(&net);
        dead[0].store(true, Ordering::Relaxed);
        drop(a);
        b.write_all(b"x").await.unwrap();
        assert!(timeout(Duration::from_secs(60), b.read(&mut [0; 8])).await.is_err());
    }
}
