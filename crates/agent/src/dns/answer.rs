//! Decides what to answer to a DNS message: from the table, by refusing, or by asking another resolver.
//!
//! - Without input or output: the message, who asked and what is known go in, the answer's bytes come out.
//! - A name with one label is ours alone: what the table does not have does not exist, and nobody is asked.
//! - Who has resolvers of its own is told of everything that we do not have that we cannot say: they are asked next.
//! - A name the table has exists for every type; for types we have nothing of, the answer is empty.
//! - Answers from the table allocate nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use wharf_model::NetworkId;

use super::{
    reply::aliases,
    wire::{self, INTERNET, QUESTION_NAME, Question, Request, Section, Writer, code, flag, kind},
    zone::{Addresses, Entry, Zone},
};

/// How long an answer of ours may be kept, and one that there is nothing: a task that has ended is asked no longer than that.
pub(super) const TTL: u32 = wharf_model::NAME_TTL;
/// The largest answer by UDP to a client that announces more: what fits a packet everywhere.
pub(super) const LARGEST: u16 = 1232;
/// What a client takes that announces nothing.
const SMALLEST: u16 = 512;
/// How many names may lead on to another.
const LONGEST_CHAIN: usize = 8;
/// Types that are no types of records: transfers, and what signs messages.
const NO_RECORDS: std::ops::RangeInclusive<u16> = 249..=254;

/// Where a question came from and in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) address: Ipv4Addr,
    /// The network of the address that was asked.
    pub(super) network: NetworkId,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) zone: Zone,
    /// Networks whose addresses nobody else can name.
    pub(super) ours: Vec<Ipv4Net>,
}

/// How a message came, and goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// The most bytes that an asker takes.
    pub(super) fn limit(self, question: &Question<'_>) -> usize {
        let announced = question.extension.map_or(SMALLEST, |extension| extension.payload);
        match self {
            Self::Udp => announced.clamp(SMALLEST, LARGEST).into(),
            Self::Tcp => u16::MAX.into(),
        }
    }
}

/// What to do about a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Send what was written.
    Send,
    /// Ask an upstream resolver.
    Forward(Forward),
    /// It is no question.
    Nothing,
}

/// What to ask an upstream resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) ask: Ask,
    /// The names that the question's name leads to, one after the other; the last is what is asked for. Usually none.
    pub(super) chain: Vec<Box<[u8]>>,
}

/// A question for an upstream resolver: all that its answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    /// Name, type and class as they stand in a message, the name in lower case.
    pub(super) asked: Box<[u8]>,
    pub(super) signatures: bool,
    pub(super) checking_disabled: bool,
}

impl Ask {
    fn new(name: &[u8], question: &Question<'_>) -> Self {
        let [k0, k1] = question.kind.to_be_bytes();
        Self {
            asked: [name, &[0, k0, k1, 0, 1]].concat().into(),
            signatures: question.extension.is_some_and(|extension| extension.signatures),
            checking_disabled: question.flags & flag::CHECKING_DISABLED != 0,
        }
    }
    pub(super) fn kind(&self) -> u16 {
        wire::number(&self.asked, self.asked.len() - 4).unwrap_or(0)
    }
}

/// Writes the answer to `message` behind what `out` has, or says what else to do; then nothing is written.
pub(super) fn answer(
    message: &[u8],
    asker: Asker,
    transport: Transport,
    known: &Known,
    out: &mut Vec<u8>,
) -> Answer {
    let question = match Request::read(message) {
        Request::Question(question) => question,
        Request::OtherOperation(header) => return refuse(header, code::NOT_IMPLEMENTED, out),
        Request::Malformed(header) => return refuse(header, code::FORMAT, out),
        Request::Nothing => return Answer::Nothing,
    };
    let found = find(&question, asker, known);
    if let Found::Upstream(forward) = found {
        return Answer::Forward(forward);
    }
    let mut writer = Writer::new(&question, transport.limit(&question), out);
    match found {
        Found::Refused(code) => writer.code(code),
        Found::NoName => write_nothing(&mut writer, code::NO_SUCH_NAME, known),
        Found::NoRecords => write_nothing(&mut writer, code::NO_ERROR, known),
        Found::Host(name) => write_host(&mut writer, name),
        Found::Entry(entry, chain) => write_entry(&mut writer, &question, entry, &chain, asker, known),
        Found::Upstream(_) => {}
    }
    writer.finish();
    Answer::Send
}

/// The answer without records to a question that came with `message`.
pub(super) fn fail(message: &[u8], transport: Transport, code: u16, out: &mut Vec<u8>) {
    if let Request::Question(question) = Request::read(message) {
        let mut writer = Writer::new(&question, transport.limit(&question), out);
        writer.code(code);
        writer.finish();
    }
}

enum Found<'a> {
    /// What the question's name leads to, after the names between.
    Entry(&'a Entry, Vec<Box<[u8]>>),
    /// The name of the address that the question's name stands for.
    Host(&'a [u8]),
    /// The name exists, without records of that type.
    NoRecords,
    NoName,
    Refused(u16),
    /// Not for us to say.
    Upstream(Forward),
}

fn find<'a>(question: &Question<'_>, asker: Asker, known: &'a Known) -> Found<'a> {
    if question.extension.is_some_and(|extension| extension.version > 0) {
        return Found::Refused(code::BAD_VERSION);
    }
    if question.class != INTERNET || NO_RECORDS.contains(&question.kind) {
        return Found::Refused(code::REFUSED);
    }
    if known.zone.version.is_none() {
        // What is ours is not known yet, so that nothing can be said of any name.
        return Found::Refused(code::SERVER_FAILURE);
    }
    let name = question.name.as_bytes();
    if let Some(entry) = known.zone.find(asker.address, asker.network, name) {
        return follow(entry, question, asker, known);
    }
    let elsewhere = || {
        if known.zone.asks_others(asker.address) {
            // What makes an engine's resolver ask the next one.
            return Found::Refused(code::SERVER_FAILURE);
        }
        upstream(name, Vec::new(), question)
    };
    if let Some(address) = reverse(name) {
        return match known.zone.host(asker.address, asker.network, address) {
            Some(name) if matches!(question.kind, kind::PTR | kind::ANY) => Found::Host(name),
            Some(_) => Found::NoRecords,
            None if known.ours.iter().any(|network| network.contains(&address)) => Found::NoName,
            None => elsewhere(),
        };
    }
    if let Some(address) = reverse6(name) {
        return match known.zone.host6(asker.address, asker.network, address) {
            Some(name) if matches!(question.kind, kind::PTR | kind::ANY) => Found::Host(name),
            Some(_) => Found::NoRecords,
            None if known.zone.is_ours6(address) => Found::NoName,
            None => elsewhere(),
        };
    }
    let alone = is_ours_alone(name, question.kind) && !known.zone.asks_others(asker.address);
    if alone || is_below_ours(name, asker, known) {
        return Found::NoName;
    }
    elsewhere()
}

/// What is behind a name that may lead on to others, of ours or of the world.
fn follow<'a>(first: &'a Entry, question: &Question<'_>, asker: Asker, known: &'a Known) -> Found<'a> {
    let mut chain = Vec::new();
    let mut entry = first;
    while let Entry::Alias(target) = entry {
        if chain.len() == LONGEST_CHAIN {
            return Found::Refused(code::SERVER_FAILURE);
        }
        chain.push(target.clone());
        if question.kind == kind::CNAME {
            break;
        }
        match known.zone.find(asker.address, asker.network, target) {
            Some(next) => entry = next,
            None => return upstream(target, chain, question),
        }
    }
    Found::Entry(entry, chain)
}

fn upstream<'a>(name: &[u8], chain: Vec<Box<[u8]>>, question: &Question<'_>) -> Found<'a> {
    if question.flags & flag::RECURSION_DESIRED == 0 {
        return Found::Refused(code::REFUSED);
    }
    Found::Upstream(Forward { ask: Ask::new(name, question), chain })
}

/// A single label that the table does not have is nobody else's. The root and the top-level domains have servers and keys, though, and
/// resolvers ask for them.
fn is_ours_alone(name: &[u8], asked: u16) -> bool {
    let of_domains = matches!(asked, kind::NS | kind::SOA | kind::DS | kind::DNSKEY);
    wire::labels(name).count() == 1 && !of_domains
}

/// Whether a name is a port that a service of ours does not have, such as `_nonesuch._tcp.web`.
fn is_below_ours(name: &[u8], asker: Asker, known: &Known) -> bool {
    let mut parent = name;
    while let [length, b'_', ..] = parent {
        parent = parent.get(usize::from(*length) + 1..).unwrap_or_default();
    }
    parent.len() < name.len() && known.zone.find(asker.address, asker.network, parent).is_some()
}

/// The address that a name under `in-addr.arpa` stands for.
fn reverse(name: &[u8]) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(b"\x07in-addr\x04arpa")?;
    let mut octets = [0; 4];
    let mut places = octets.iter_mut().rev();
    for label in wire::labels(digits) {
        *places.next()? = std::str::from_utf8(label).ok()?.parse().ok()?;
    }
    places.next().is_none().then(|| octets.into())
}

/// The address that a name under `ip6.arpa` stands for.
fn reverse6(name: &[u8]) -> Option<Ipv6Addr> {
    let digits = name.strip_suffix(b"\x03ip6\x04arpa")?;
    // Each digit is a label of its own, the last of the address first.
    let mut number = 0_u128;
    let mut count = 0;
    for label in wire::labels(digits) {
        let [digit] = *label else { return None };
        number = number >> 4 | u128::from(char::from(digit).to_digit(16)?) << 124;
        count += 1;
    }
    (count == 32).then(|| number.into())
}

fn write_entry(
    writer: &mut Writer<'_>,
    question: &Question<'_>,
    entry: &Entry,
    chain: &[Box<[u8]>],
    asker: Asker,
    known: &Known,
) {
    let mut whole = aliases(writer, chain, TTL);
    let end: Vec<u8>;
    let owner = match chain.last() {
        Some(name) => {
            end = [name, [0].as_slice()].concat();
            &end
        }
        None => QUESTION_NAME.as_slice(),
    };
    let wants = |of: u16| question.kind == of || question.kind == kind::ANY;
    match entry {
        Entry::Tasks(addresses) => {
            if wants(kind::A) && chain.is_empty() {
                whole &= writer.own_addresses(addresses.rotated(), TTL);
            } else if wants(kind::A) {
                let mut all = addresses.rotated();
                whole &= all.all(|address| writer.address(address.into(), TTL, owner, Section::Answer));
            }
            if wants(kind::AAAA) {
                let mut all = addresses.rotated6();
                whole &= all.all(|address| writer.address(address.into(), TTL, owner, Section::Answer));
            }
        }
        Entry::Port(port, addresses) if wants(kind::SRV) => {
            whole &= write_port(writer, *port, addresses, asker, known);
        }
        Entry::Outside(address) if wants(if address.is_ipv4() { kind::A } else { kind::AAAA }) => {
            whole &= writer.address(*address, TTL, owner, Section::Answer);
        }
        Entry::Port(..) | Entry::Outside(_) | Entry::Alias(_) => {}
    }
    if !whole {
        writer.set(flag::TRUNCATED);
    }
    if writer.answers() > 0 {
        writer.set(flag::AUTHORITATIVE);
    } else if whole {
        write_nothing(writer, code::NO_ERROR, known);
    }
}

/// Where a port of each task is, and, as far as there is room, each task's address.
fn write_port(
    writer: &mut Writer<'_>,
    port: u16,
    addresses: &Addresses,
    asker: Asker,
    known: &Known,
) -> bool {
    let mut hosts = Vec::new();
    for address in addresses.rotated() {
        let Some(name) = known.zone.host(asker.address, asker.network, address) else { continue };
        // Behind the record's head and priority, weight and port. Pointers reach so far.
        let position = writer.position() + QUESTION_NAME.len() + 10 + 6;
        let pointer =
            u16::try_from(position).ok().filter(|at| *at < 0x4000).map(|at| (0xc000 | at).to_be_bytes());
        let written = writer.record(Section::Answer, &QUESTION_NAME, kind::SRV, TTL, |out| {
            let [p0, p1] = port.to_be_bytes();
            out.extend_from_slice(&[0, 0, 0, 1, p0, p1]);
            out.extend_from_slice(name);
            out.push(0);
            Some(())
        });
        if !written {
            return false;
        }
        hosts.extend(pointer.map(|pointer| (pointer, address)));
    }
    for (pointer, address) in hosts {
        writer.address(IpAddr::V4(address), TTL, &pointer, Section::Addition);
        if let Some(address) = addresses.ipv6_of(address) {
            writer.address(IpAddr::V6(address), TTL, &pointer, Section::Addition);
        }
    }
    true
}

fn write_host(writer: &mut Writer<'_>, name: &[u8]) {
    writer.set(flag::AUTHORITATIVE);
    writer.record(Section::Answer, &QUESTION_NAME, kind::PTR, TTL, |out| {
        out.extend_from_slice(name);
        out.push(0);
        Some(())
    });
}

/// Says that there is nothing, and how long that may be kept: as short as a positive answer, because a task may be about to start.
/// The serial number of the zone is the version that says so.
fn write_nothing(writer: &mut Writer<'_>, code: u16, known: &Known) {
    writer.code(code);
    writer.set(flag::AUTHORITATIVE);
    let [.., s0, s1, s2, s3] = known.zone.version.map_or(0, |version| version.0).to_be_bytes();
    let [t0, t1, t2, t3] = TTL.to_be_bytes();
    writer.record(Section::Authority, &[0], kind::SOA, TTL, |out| {
        out.extend_from_slice(&[0, 0, s0, s1, s2, s3]);
        out.extend_from_slice(&[0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0, 60, t0, t1, t2, t3]);
        Some(())
    });
}

fn refuse(header: &[u8], code: u16, out: &mut Vec<u8>) -> Answer {
    wire::refuse(header, code, out);
    Answer::Send
}
