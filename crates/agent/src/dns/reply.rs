//! Answers of upstream resolvers: checked when they come, and passed on later, cut and aged as the asker needs it.
//!
//! - An answer that cannot be walked to its end is no answer.
//! - What is passed on keeps its layout, so that its pointers stay right; our own extension record replaces the resolver's.

use std::{ops::Range, time::Duration};

use tokio::time::Instant;

use super::wire::{
    self, EXTENSION, HEADER, INTERNET, QUESTION_NAME, Question, Record, Section, Writer, code, flag, kind,
    number,
};

/// The longest that an answer is kept, whatever it says.
const LONGEST: u32 = 3600;

/// An upstream resolver's answer.
#[derive(Debug)]
pub(super) struct Reply {
    bytes: Box<[u8]>,
    received: Instant,
    /// Where its records begin.
    records: usize,
    parts: Vec<(Section, Record)>,
    flags: u16,
    /// All twelve bits.
    code: u16,
}

impl Reply {
    /// Reads an answer to the question `asked` (name, type, class); none if it is something else.
    pub(super) fn read(bytes: &[u8], id: u16, asked: &[u8], received: Instant) -> Option<Self> {
        let flags = number(bytes, 2)?;
        let records = HEADER + asked.len();
        let is_ours = number(bytes, 0)? == id
            && flags & flag::RESPONSE != 0
            && flags & flag::OPCODE == 0
            && number(bytes, 4)? == 1
            // Names may come back in another case; the lengths of labels are no letters.
            && bytes.get(HEADER..records)?.eq_ignore_ascii_case(asked)
            && bytes.get(records - 4..records) == asked.get(asked.len() - 4..);
        if !is_ours {
            return None;
        }
        let mut parts = Vec::new();
        let (mut at, mut high) = (records, 0);
        for (section, count) in [(Section::Answer, 6), (Section::Authority, 8), (Section::Addition, 10)] {
            for _ in 0..number(bytes, count)? {
                let record = Record::read(bytes, at)?;
                at = record.data.end;
                if record.kind == kind::OPT {
                    high = u16::from(record.ttl.to_be_bytes()[0]) << 4;
                }
                parts.push((section, record));
            }
        }
        let code = flags & flag::CODE | high;
        Some(Self { bytes: bytes.get(..at)?.into(), received, records, parts, flags, code })
    }

    /// Whether it was cut, and is whole by TCP.
    pub(super) fn is_cut(&self) -> bool {
        self.flags & flag::TRUNCATED != 0
    }

    /// Whether the resolver did not understand what we said besides the question.
    pub(super) fn is_puzzled(&self) -> bool {
        matches!(self.code, code::FORMAT | code::NOT_IMPLEMENTED | code::BAD_VERSION)
    }

    /// Whether another resolver cannot be expected to know better.
    pub(super) fn settles(&self) -> bool {
        matches!(self.code, code::NO_ERROR | code::NO_SUCH_NAME)
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len() + self.parts.len() * size_of::<(Section, Record)>()
    }

    /// How long it may be kept: as long as each of its answers, or, if there is nothing of what was asked for, as its zone says of
    /// such. Nothing that is cut or failed is kept.
    pub(super) fn lifetime(&self, asked: u16) -> Duration {
        if !self.settles() || self.is_cut() {
            return Duration::ZERO;
        }
        let answers = || self.of(Section::Answer);
        let shortest = answers().map(|record| record.ttl).min();
        let found =
            self.code == code::NO_ERROR && answers().any(|record| record.kind == asked || asked == kind::ANY);
        let negative = || {
            let record = self.of(Section::Authority).find(|record| record.kind == kind::SOA)?;
            let minimum = self.bytes.get(record.data.clone())?.last_chunk()?;
            Some(record.ttl.min(u32::from_be_bytes(*minimum)))
        };
        let seconds = if found {
            shortest.unwrap_or(0)
        } else {
            negative().unwrap_or(0).min(shortest.unwrap_or(LONGEST))
        };
        Duration::from_secs(seconds.min(LONGEST).into())
    }

    fn of(&self, section: Section) -> impl Iterator<Item = &Record> {
        self.parts.iter().filter(move |(of, _)| *of == section).map(|(_, record)| record)
    }

    /// Writes it as the answer to `question`, in up to `limit` bytes. Each name of `chain` is an alias of the next, and the last is
    /// what the resolver was asked for.
    pub(super) fn write(
        &self,
        question: &Question<'_>,
        chain: &[Box<[u8]>],
        limit: usize,
        now: Instant,
        out: &mut Vec<u8>,
    ) {
        if chain.is_empty() {
            self.pass_on(question, limit, now, out);
        } else {
            self.write_behind(question, chain, limit, now, out);
        }
    }

    /// The same records, at the same place: the question's name is as long as the one the resolver was asked for.
    fn pass_on(&self, question: &Question<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) {
        let start = out.len();
        let room = limit - if question.extension.is_some() { EXTENSION } else { 0 };
        // With its extension record in the midst, nothing of the last section is passed on.
        let misplaced = self.parts.iter().rev().skip(1).any(|(_, record)| record.kind == kind::OPT);
        let mut counts = [0_u16; 3];
        let (mut end, mut cut) = (self.records, false);
        for (section, record) in &self.parts {
            if record.kind == kind::OPT || misplaced && *section == Section::Addition {
                continue;
            }
            if record.data.end > room {
                // What is only added is not missed.
                cut = *section != Section::Addition;
                break;
            }
            end = record.data.end;
            counts[*section as usize] += 1;
        }
        let wants_proof = question.flags & flag::AUTHENTIC != 0
            || question.extension.is_some_and(|extension| extension.signatures);
        let mut flags = question.flags & (flag::RECURSION_DESIRED | flag::CHECKING_DISABLED)
            | self.flags & (flag::TRUNCATED | if wants_proof { flag::AUTHENTIC } else { 0 });
        if cut {
            flags |= flag::TRUNCATED;
        }
        let header = Header { flags, code: self.code, counts };
        header.write(question, &self.bytes[self.records..end], out);
        let age = self.age(now);
        for (_, record) in self.parts.iter().filter(|(_, record)| record.data.end <= end) {
            let at = start + record.ttl_at;
            out[at..at + 4].copy_from_slice(&record.ttl.saturating_sub(age).to_be_bytes());
        }
    }

    /// What it says of the last name of `chain`, behind the aliases. Records whose data we could not move are left out.
    fn write_behind(
        &self,
        question: &Question<'_>,
        chain: &[Box<[u8]>],
        limit: usize,
        now: Instant,
        out: &mut Vec<u8>,
    ) {
        let age = self.age(now);
        let mut writer = Writer::new(question, limit, out);
        writer.code(self.code);
        let mut whole = aliases(&mut writer, chain, super::answer::TTL);
        for record in self.of(Section::Answer).filter(|record| record.class == INTERNET) {
            let mut owner = Vec::new();
            let named = wire::expand_name(&self.bytes, record.start, &mut owner);
            let plain = match record.kind {
                kind::CNAME => None,
                kind::A | kind::AAAA | kind::TXT | kind::HTTPS | kind::SVCB | kind::CAA => {
                    Some(record.data.clone())
                }
                _ => continue,
            };
            let ttl = record.ttl.saturating_sub(age);
            whole &= named.is_none()
                || writer
                    .record(Section::Answer, &owner, record.kind, ttl, |out| self.data(plain, record, out));
        }
        if !whole {
            writer.set(flag::TRUNCATED);
        }
        writer.finish();
    }

    fn data(&self, plain: Option<Range<usize>>, record: &Record, out: &mut Vec<u8>) -> Option<()> {
        match plain {
            Some(range) => {
                out.extend_from_slice(self.bytes.get(range)?);
                Some(())
            }
            None => wire::expand_name(&self.bytes, record.data.start, out),
        }
    }

    fn age(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.received).as_secs()).unwrap_or(u32::MAX)
    }
}

/// Writes that the question's name is the first of `chain`, and each of it the next. Whether all of it fitted.
pub(super) fn aliases(writer: &mut Writer<'_>, chain: &[Box<[u8]>], ttl: u32) -> bool {
    // The first owner is short, and where there is no chain nothing is allocated.
    let mut owner = if chain.is_empty() { Vec::new() } else { QUESTION_NAME.to_vec() };
    chain.iter().all(|name| {
        let mut target = name.to_vec();
        target.push(0);
        let written = writer.record(Section::Answer, &owner, kind::CNAME, ttl, |out| {
            out.extend_from_slice(&target);
            Some(())
        });
        owner = target;
        written
    })
}

/// The head of an answer that is passed on.
struct Header {
    flags: u16,
    code: u16,
    counts: [u16; 3],
}

impl Header {
    fn write(&self, question: &Question<'_>, records: &[u8], out: &mut Vec<u8>) {
        let [answers, authorities, additions] = self.counts;
        let flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | self.flags | self.code & flag::CODE;
        let additions = additions + u16::from(question.extension.is_some());
        for number in [question.id, flags, 1, answers, authorities, additions] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(question.asked);
        out.extend_from_slice(records);
        if let Some(extension) = question.extension {
            wire::write_extension(extension, self.code, out);
        }
    }
}
