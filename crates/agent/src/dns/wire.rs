//! DNS messages as bytes: reads questions, writes answers, and walks the records of answers.
//!
//! - Reading never panics and never allocates; whatever is not as the standards say is `None`.
//! - A name is its labels, each behind its length, in lower case and without the final zero: two names are the same if and only if
//!   their bytes are.
//! - Every pointer in a message leads backwards, so that following them ends.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

/// Bytes before the question.
pub(super) const HEADER: usize = 12;
/// The longest name, its final zero included.
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;
/// What every record has besides its name and its data.
const RECORD: usize = 10;
/// An extension record without options.
pub(super) const EXTENSION: usize = 11;
/// A name that is the question's.
pub(super) const QUESTION_NAME: [u8; 2] = [0xc0, 12];

/// Types of records that we know.
pub(super) mod kind {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const NS: u16 = 2;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const TXT: u16 = 16;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const SRV: u16 = 33;
    pub(in super::super) const OPT: u16 = 41;
    pub(in super::super) const DS: u16 = 43;
    pub(in super::super) const DNSKEY: u16 = 48;
    pub(in super::super) const SVCB: u16 = 64;
    pub(in super::super) const HTTPS: u16 = 65;
    pub(in super::super) const ANY: u16 = 255;
    pub(in super::super) const CAA: u16 = 257;
}
/// The class of the Internet.
pub(super) const INTERNET: u16 = 1;

/// What an answer says of itself. The upper eight of twelve bits travel in the extension record.
pub(super) mod code {
    pub(in super::super) const NO_ERROR: u16 = 0;
    pub(in super::super) const FORMAT: u16 = 1;
    pub(in super::super) const SERVER_FAILURE: u16 = 2;
    pub(in super::super) const NO_SUCH_NAME: u16 = 3;
    pub(in super::super) const NOT_IMPLEMENTED: u16 = 4;
    pub(in super::super) const REFUSED: u16 = 5;
    pub(in super::super) const BAD_VERSION: u16 = 16;
}

/// Bits of the header's flags.
pub(super) mod flag {
    pub(in super::super) const RESPONSE: u16 = 0x8000;
    pub(in super::super) const OPCODE: u16 = 0x7800;
    pub(in super::super) const AUTHORITATIVE: u16 = 0x0400;
    pub(in super::super) const TRUNCATED: u16 = 0x0200;
    pub(in super::super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in super::super) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(in super::super) const AUTHENTIC: u16 = 0x0020;
    pub(in super::super) const CHECKING_DISABLED: u16 = 0x0010;
    pub(in super::super) const CODE: u16 = 0x000f;
}

/// A name in lower case, of up to 254 bytes; its final zero is left out.
#[derive(Clone, Copy)]
pub(super) struct Name {
    bytes: [u8; LONGEST_NAME],
    length: u8,
}

impl Name {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Reads the uncompressed name at `at`; answers where it ends.
    fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self { bytes: [0; LONGEST_NAME], length: 0 };
        let mut position = at;
        loop {
            let length = usize::from(*message.get(position)?);
            if length == 0 {
                name.length = u8::try_from(position - at).ok()?;
                return Some((name, position + 1));
            }
            let label = message.get(position..=position + length).filter(|_| length <= LONGEST_LABEL)?;
            // One byte is left for the final zero.
            let into = name.bytes[..LONGEST_NAME - 1].get_mut(position - at..)?.get_mut(..=length)?;
            into.copy_from_slice(label);
            // A length is below 64, where no letter is.
            into.make_ascii_lowercase();
            position += length + 1;
        }
    }
}

/// A name from text, in lower case; none if it is no legal name.
pub(super) fn name(text: &str) -> Option<Box<[u8]>> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    for label in text.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    (bytes.len() < LONGEST_NAME).then(|| bytes.into())
}

/// The labels of a name.
pub(super) fn labels(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first()?;
        let (label, behind) = behind.split_at_checked((*length).into())?;
        rest = behind;
        Some(label)
    })
}

/// Makes an answer one without records that says that it was cut, on which an asker comes by TCP; what is left of it.
pub(super) fn cut(answer: &mut [u8]) -> &[u8] {
    let question = answer.get(HEADER..).unwrap_or_default();
    let name: usize =
        labels(question).take_while(|label| !label.is_empty()).map(|label| label.len() + 1).sum();
    let end = (HEADER + name + 1 + 4).min(answer.len());
    if let Some(header) = answer.get_mut(..HEADER) {
        header[2] |= flag::TRUNCATED.to_be_bytes()[0];
        // Neither answers, nor authorities, nor what is said beside.
        header[6..].fill(0);
    }
    &answer[..end]
}

/// What an asker said in its extension record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extension {
    /// The largest datagram it takes.
    pub(super) payload: u16,
    pub(super) version: u8,
    /// Whether it wants signatures.
    pub(super) signatures: bool,
}

/// A question, and the message it came in.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// As it was asked: name, type and class.
    pub(super) asked: &'a [u8],
    pub(super) extension: Option<Extension>,
}

/// What a message is to us.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack; a box would be an allocation for each question"
)]
pub(super) enum Request<'a> {
    Question(Question<'a>),
    /// It asks for something that is no question about a name.
    OtherOperation(&'a [u8]),
    /// It cannot be read.
    Malformed(&'a [u8]),
    /// Too short to be answered, or an answer itself: answering that could go on for ever.
    Nothing,
}

impl<'a> Request<'a> {
    pub(super) fn read(message: &'a [u8]) -> Self {
        let Some((header, _)) = message.split_at_checked(HEADER) else { return Self::Nothing };
        let flags = number(header, 2).unwrap_or(flag::RESPONSE);
        if flags & flag::RESPONSE != 0 {
            Self::Nothing
        } else if flags & flag::OPCODE != 0 {
            Self::OtherOperation(header)
        } else {
            Question::read(message).map_or(Self::Malformed(header), Self::Question)
        }
    }
}

impl<'a> Question<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let (id, flags) = (number(message, 0)?, number(message, 2)?);
        if number(message, 4)? != 1 {
            return None;
        }
        let (name, end) = Name::read(message, HEADER)?;
        let (kind, class) = (number(message, end)?, number(message, end + 2)?);
        let asked = message.get(HEADER..end + 4)?;
        let [answers, authorities, additions] = [6, 8, 10].map(|at| number(message, at).unwrap_or(0));
        let mut extension = None;
        let mut at = end + 4;
        for index in 0..u32::from(answers) + u32::from(authorities) + u32::from(additions) {
            let record = Record::read(message, at)?;
            at = record.data.end;
            let is_addition = index >= u32::from(answers) + u32::from(authorities);
            if record.kind == kind::OPT && is_addition {
                // There is one at most, and it is nobody's.
                if extension.is_some() || message.get(record.start) != Some(&0) {
                    return None;
                }
                let [_, version, high, _] = record.ttl.to_be_bytes();
                let signatures = high & 0x80 != 0;
                extension = Some(Extension { payload: record.class, version, signatures });
            }
        }
        (at == message.len()).then_some(Self { id, flags, name, kind, class, asked, extension })
    }
}

/// Where a record lies in a message.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) start: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Where its time to live stands.
    pub(super) ttl_at: usize,
    pub(super) data: Range<usize>,
}

impl Record {
    pub(super) fn read(message: &[u8], start: usize) -> Option<Self> {
        let fixed = skip_name(message, start)?;
        let high = u32::from(number(message, fixed + 4)?) << 16;
        let ttl = high | u32::from(number(message, fixed + 6)?);
        let data = fixed + RECORD..fixed + RECORD + usize::from(number(message, fixed + 8)?);
        message.get(data.clone())?;
        let (kind, class) = (number(message, fixed)?, number(message, fixed + 2)?);
        Some(Self { start, kind, class, ttl, ttl_at: fixed + 4, data })
    }
}

/// The number of two bytes at `at`.
pub(super) fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

/// Where the name at `at` ends, in the record it stands in.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if usize::from(length) <= LONGEST_LABEL => at += usize::from(length) + 1,
            pointer if pointer >= 0xc0 => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// Writes the name at `at`, whole, with its final zero. `None`, with part of it written, if it is no legal name.
pub(super) fn expand_name(message: &[u8], mut at: usize, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    // Where the last pointer stood: the next leads further back.
    let mut bound = at;
    loop {
        let length = usize::from(*message.get(at)?);
        if length >= 0xc0 {
            let target = usize::from(number(message, at)? & 0x3fff);
            if target >= bound {
                return None;
            }
            (at, bound) = (target, target);
            continue;
        }
        let label = message.get(at..=at + length).filter(|_| length <= LONGEST_LABEL)?;
        if out.len() - start + label.len() > LONGEST_NAME {
            return None;
        }
        out.extend_from_slice(label);
        at += length + 1;
        if length == 0 {
            return Some(());
        }
    }
}

/// Writes one answer behind what a buffer has already, and keeps it within a length.
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    /// Up to which length records may go; the extension record has its place behind it.
    end: usize,
    extension: Option<Extension>,
    flags: u16,
    code: u16,
    counts: [u16; 3],
}

/// The sections of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Answer,
    Authority,
    Addition,
}

impl<'a> Writer<'a> {
    /// An answer to `question` of up to `limit` bytes.
    pub(super) fn new(question: &Question<'_>, limit: usize, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&question.id.to_be_bytes());
        out.extend_from_slice(&[0; HEADER - 2]);
        out.extend_from_slice(question.asked);
        let kept = flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | question.flags & kept;
        let extension = question.extension;
        let end = start + limit - if extension.is_some() { EXTENSION } else { 0 };
        Self { out, start, end, extension, flags, code: code::NO_ERROR, counts: [0; 3] }
    }

    pub(super) fn set(&mut self, flags: u16) {
        self.flags |= flags;
    }
    pub(super) fn code(&mut self, code: u16) {
        self.code = code;
    }
    /// How many answers it has.
    pub(super) fn answers(&self) -> u16 {
        self.counts[0]
    }
    /// Where in the message the next record begins.
    pub(super) fn position(&self) -> usize {
        self.out.len() - self.start
    }

    /// Adds a record whose data `write` adds, unless it does not fit or `write` fails: then nothing is added.
    pub(super) fn record(
        &mut self,
        section: Section,
        name: &[u8],
        kind: u16,
        ttl: u32,
        write: impl FnOnce(&mut Vec<u8>) -> Option<()>,
    ) -> bool {
        let before = self.out.len();
        self.out.extend_from_slice(name);
        let [k0, k1] = kind.to_be_bytes();
        let [t0, t1, t2, t3] = ttl.to_be_bytes();
        self.out.extend_from_slice(&[k0, k1, 0, 1, t0, t1, t2, t3, 0, 0]);
        let data = self.out.len();
        let length = write(self.out).and_then(|()| u16::try_from(self.out.len() - data).ok());
        match length.filter(|_| self.out.len() <= self.end) {
            Some(length) => {
                self.out[data - 2..data].copy_from_slice(&length.to_be_bytes());
                self.counts[section as usize] += 1;
                true
            }
            None => {
                self.out.truncate(before);
                false
            }
        }
    }

    /// Adds addresses of the question's name as long as they fit; whether all did. The most frequent answer of all: records of one
    /// length, written as they are.
    pub(super) fn own_addresses(&mut self, addresses: impl Iterator<Item = Ipv4Addr>, ttl: u32) -> bool {
        let [n0, n1] = QUESTION_NAME;
        let [t0, t1, t2, t3] = ttl.to_be_bytes();
        for address in addresses {
            let [a, b, c, d] = address.octets();
            if self.out.len() + 16 > self.end {
                return false;
            }
            self.out.extend_from_slice(&[n0, n1, 0, 1, 0, 1, t0, t1, t2, t3, 0, 4, a, b, c, d]);
            self.counts[Section::Answer as usize] += 1;
        }
        true
    }

    /// Adds an address of a name.
    pub(super) fn address(&mut self, address: IpAddr, ttl: u32, name: &[u8], section: Section) -> bool {
        match address {
            IpAddr::V4(v4) => self.record(section, name, kind::A, ttl, |out| {
                out.extend_from_slice(&v4.octets());
                Some(())
            }),
            IpAddr::V6(v6) => self.record(section, name, kind::AAAA, ttl, |out| {
                out.extend_from_slice(&v6.octets());
                Some(())
            }),
        }
    }

    /// Ends the message.
    pub(super) fn finish(self) {
        let Self { out, start, end: _, extension, flags, code, counts } = self;
        let [answers, authorities, mut additions] = counts;
        if let Some(extension) = extension {
            additions += 1;
            write_extension(extension, code, out);
        }
        let numbers = [flags | code & flag::CODE, 1, answers, authorities, additions];
        for (number, into) in numbers.iter().zip(out[start + 2..start + HEADER].chunks_exact_mut(2)) {
            into.copy_from_slice(&number.to_be_bytes());
        }
    }
}

/// Writes our extension record, for an asker that sent `extension`.
pub(super) fn write_extension(extension: Extension, code: u16, out: &mut Vec<u8>) {
    let [p0, p1] = super::answer::LARGEST.to_be_bytes();
    let high = u8::try_from(code >> 4).unwrap_or(u8::MAX);
    let signatures = if extension.signatures { 0x80 } else { 0 };
    out.extend_from_slice(&[0, 0, 41, p0, p1, high, 0, signatures, 0, 0, 0]);
}

/// The answer to a message that has no readable question: its header, and why.
pub(super) fn refuse(header: &[u8], code: u16, out: &mut Vec<u8>) {
    let flags = number(header, 2).unwrap_or(0) & (flag::OPCODE | flag::RECURSION_DESIRED);
    out.extend_from_slice(&header[..2]);
    out.extend_from_slice(&(flags | flag::RESPONSE | flag::RECURSION_AVAILABLE | code).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}
