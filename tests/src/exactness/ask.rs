//! Asks the nodes' DNS from inside a container's network, with messages written and read here.
//!
//! - One thread per node, in the network namespace of whatever task of the observing service runs there.
//! - Questions go to the node's responder by UDP, in bursts; an answer that has not come within a second is silence.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

use super::{
    check::{Heard, Moment, Question, Said},
    truth::{Tracked, Truth},
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const A: u16 = 1;
const PTR: u16 = 12;

/// Asks on one node until `stop`.
pub struct Observer<'a> {
    /// Which node.
    pub node: u8,
    /// The service whose tasks' networks it asks from.
    pub service: &'a str,
    /// What runs.
    pub truth: &'a Truth,
    /// What is asked in each round.
    pub questions: &'a [Question],
    /// Between rounds.
    pub pause: Duration,
    /// Where answers go.
    pub heard: &'a Mutex<Vec<Heard>>,
}

impl Observer<'_> {
    /// Asks until `stop`.
    pub fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if let Some(place) = self.place() {
                // Ends with the container; then there is another one.
                let _ = self.ask_from(&place, stop);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn place(&self) -> Option<Tracked> {
        let here = |tracked: &Tracked| tracked.life.node == self.node && tracked.life.service == self.service;
        self.truth.running().into_iter().find(here)
    }

    fn ask_from(&self, place: &Tracked, stop: &AtomicBool) -> io::Result<()> {
        let resolver = resolver(place.pid)?;
        setns(File::open(format!("/proc/{}/ns/net", place.pid))?, CloneFlags::CLONE_NEWNET)?;
        let mut id = 0_u16;
        let mut turn = 0;
        while !stop.load(Ordering::Relaxed) && self.place().is_some_and(|now| now.pid == place.pid) {
            let begin = Instant::now();
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(SocketAddr::from((resolver, 53)))?;
            let mut questions = self.questions.to_vec();
            questions.extend(self.addresses(&mut turn));
            let heard = self.round(&socket, questions, &mut id);
            // A node without power has nobody to ask.
            if self.place().is_some_and(|now| now.pid == place.pid) {
                self.heard.lock().unwrap_or_else(PoisonError::into_inner).extend(heard);
            }
            thread::sleep(self.pause.saturating_sub(begin.elapsed()));
        }
        Ok(())
    }

    /// A few addresses that tasks have or had lately, in turn.
    fn addresses(&self, turn: &mut usize) -> Vec<Question> {
        let lives = self.truth.lives();
        let recent: Vec<_> = lives.iter().rev().take(16).map(|life| life.address).collect();
        *turn += 2;
        let chosen = (0..2).filter_map(|n| recent.get((*turn + n) % recent.len().max(1)));
        chosen.map(|address| Question::Address(*address)).collect()
    }

    fn round(&self, socket: &UdpSocket, questions: Vec<Question>, id: &mut u16) -> Vec<Heard> {
        let mut open = HashMap::<u16, (Moment, Question)>::new();
        let mut heard = Vec::new();
        for question in questions {
            *id = id.wrapping_add(1);
            let asked = self.truth.now();
            // One that the kernel does not take is one that is not answered.
            let _ = socket.send(&write(*id, &question));
            open.insert(*id, (asked, question));
        }
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while !open.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = socket.set_read_timeout(Some(left));
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    let answered = self.truth.now();
                    let Some((id, said)) = read(&buffer[..length]) else { continue };
                    let Some((asked, question)) = open.remove(&id) else { continue };
                    heard.push(Heard { node: self.node, asked, answered, question, said });
                }
                // Nobody listens there: told at once, and again for each question.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(_) => {}
            }
        }
        let answered = self.truth.now();
        heard.extend(open.into_values().map(|(asked, question)| Heard {
            node: self.node,
            asked,
            answered,
            question,
            said: Said::Silence,
        }));
        heard
    }
}

/// How many addresses each of these names is answered with; none if nothing was answered in the socket's time.
pub fn count_addresses(socket: &UdpSocket, names: &[String]) -> io::Result<Vec<Option<usize>>> {
    for (id, name) in (0..).zip(names) {
        let question = Question::Service { name: name.clone(), service: String::new() };
        socket.send(&write(id, &question))?;
    }
    let mut counts = vec![None; names.len()];
    let mut buffer = [0; 2048];
    for _ in names {
        let Ok(length) = socket.recv(&mut buffer) else { break };
        let Some((id, said)) = read(&buffer[..length]) else { continue };
        let count = match said {
            Said::Addresses(addresses) => addresses.len(),
            _ => 0,
        };
        if let Some(place) = counts.get_mut(usize::from(id)) {
            *place = Some(count);
        }
    }
    Ok(counts)
}

/// Whom a container's C library asks for names.
pub fn resolver(pid: u32) -> io::Result<Ipv4Addr> {
    let text = fs::read_to_string(format!("/proc/{pid}/root/etc/resolv.conf"))?;
    let first = text.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    first.ok_or_else(|| io::Error::other(format!("no name server in: {text}")))
}

/// A question as DNS has it.
fn write(id: u16, question: &Question) -> Vec<u8> {
    let (name, kind) = match question {
        Question::Service { name, .. } | Question::Task { name, .. } => (name.clone(), A),
        Question::Address(address) => {
            let [a, b, c, d] = address.octets();
            (format!("{d}.{c}.{b}.{a}.in-addr.arpa"), PTR)
        }
    };
    let mut message = Vec::new();
    // A question with recursion desired, and nothing else.
    for number in [id, 0x0100, 1, 0, 0, 0] {
        message.extend(number.to_be_bytes());
    }
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or_default());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(1_u16.to_be_bytes());
    message
}

/// The identifier and the content of an answer.
fn read(message: &[u8]) -> Option<(u16, Said)> {
    let number = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let (id, flags, questions, answers) = (number(0)?, number(2)?, number(4)?, number(6)?);
    match flags & 0x000F {
        0 => {}
        3 => return Some((id, Said::Nothing)),
        _ => return Some((id, Said::Failure)),
    }
    let mut at = 12;
    for _ in 0..questions {
        at = name(message, at)?.1 + 4;
    }
    let (mut addresses, mut called) = (Vec::new(), None);
    for _ in 0..answers {
        at = name(message, at)?.1;
        let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
        let content = message.get(at + 10..at + 10 + length)?;
        match (kind, content) {
            (A, [a, b, c, d]) => addresses.push(Ipv4Addr::new(*a, *b, *c, *d)),
            (PTR, _) => called = Some(name(message, at + 10)?.0),
            _ => {}
        }
        at += 10 + length;
    }
    let said = match called {
        Some(called) => Said::Name(called.split('.').next().unwrap_or_default().to_owned()),
        None if addresses.is_empty() => Said::Nothing,
        None => Said::Addresses(addresses),
    };
    Some((id, said))
}

/// A name, and where it ends.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut labels, mut end) = (Vec::new(), None);
    for _ in 0..64 {
        let length = usize::from(*message.get(at)?);
        if length == 0 {
            return Some((labels.join("."), end.unwrap_or(at + 1)));
        }
        if length >= 0xC0 {
            end.get_or_insert(at + 2);
            at = (length & 0x3F) << 8 | usize::from(*message.get(at + 1)?);
        } else {
            labels.push(String::from_utf8_lossy(message.get(at + 1..at + 1 + length)?).into_owned());
            at += 1 + length;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_their_compressed_names() {
        let question = Question::Service { name: "web.shop".into(), service: "web".into() };
        let mut message = write(7, &question);
        message[2..4].copy_from_slice(&0x8180_u16.to_be_bytes());
        assert_eq!(read(&message), Some((7, Said::Nothing)));
        message[6..8].copy_from_slice(&2_u16.to_be_bytes());
        for last in [2, 3] {
            message.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 0, 0, last]);
        }
        let addresses = vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)];
        assert_eq!(read(&message), Some((7, Said::Addresses(addresses))));
        message[3] = 0x82;
        assert_eq!(read(&message), Some((7, Said::Failure)));
    }

    #[test]
    fn a_name_of_an_address_is_read_to_its_first_label() {
        let mut message = write(8, &Question::Address(Ipv4Addr::new(10, 0, 0, 2)));
        assert!(message.windows(9).any(|window| window == b"\x012\x010\x010\x0210"), "{message:?}");
        message[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        message.extend([0xC0, 12, 0, 12, 0, 1, 0, 0, 0, 1, 0, 12]);
        message.extend(b"\x0ashop-web-1\0");
        assert_eq!(read(&message), Some((8, Said::Name("shop-web-1".into()))));
    }
}
