//! How entries and history look inside the database, each row with a checksum of its own.
//!
//! - A row is read whole and proven, or it is an error that names it. The checksum covers the row's
//!   key as well, so a row that turns up in another's place is noticed.
//! - The forms are part of the file's schema: a change here is a new [`SCHEMA`].

use redb::TableDefinition;

use crate::{Entry, Event, Revision, StoreError};

/// The schema of the file. A file with a higher one is refused.
pub(super) const SCHEMA: u32 = 1;

/// Key → the present value.
pub(super) const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
/// Revision → what changed in it.
pub(super) const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");
/// The numbers below.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Names of numbers in [`META`].
pub(super) mod meta {
    pub(crate) const SCHEMA: &str = "schema";
    /// The latest revision.
    pub(crate) const REVISION: &str = "revision";
    /// The latest revision whose history is gone.
    pub(crate) const COMPACTED: &str = "compacted";
    /// How many bytes the rows of the history have.
    pub(crate) const HISTORY_BYTES: &str = "history_bytes";
}

const CHECKSUM: usize = 4;

pub(super) fn encode_entry(key: &str, revision: Revision, value: &[u8]) -> Vec<u8> {
    seal(key.as_bytes(), [&revision.0.to_be_bytes()[..], value])
}

pub(super) fn decode_entry(key: &str, row: &[u8]) -> Result<Entry, StoreError> {
    let body = open(key.as_bytes(), row).ok_or_else(|| damaged(key, "its checksum does not match"))?;
    let (revision, value) = body.split_first_chunk().ok_or_else(|| damaged(key, "it is cut short"))?;
    Ok(Entry { value: value.to_vec(), written_at: Revision(u64::from_be_bytes(*revision)) })
}

/// Only the revision that wrote the entry, for expectations.
pub(super) fn decode_revision(key: &str, row: &[u8]) -> Result<Revision, StoreError> {
    let body = open(key.as_bytes(), row).ok_or_else(|| damaged(key, "its checksum does not match"))?;
    let revision = body.first_chunk().ok_or_else(|| damaged(key, "it is cut short"))?;
    Ok(Revision(u64::from_be_bytes(*revision)))
}

pub(super) fn encode_changes(revision: Revision, events: &[Event]) -> Vec<u8> {
    let mut body = Vec::new();
    for event in events {
        push(&mut body, event.key.as_bytes());
        match &event.value {
            None => body.push(0),
            Some(value) => {
                body.push(1);
                push(&mut body, value);
            }
        }
    }
    seal(&revision.0.to_be_bytes(), [&[], &body])
}

pub(super) fn decode_changes(revision: Revision, row: &[u8]) -> Result<Vec<Event>, StoreError> {
    let name = || format!("history of revision {revision}");
    let mut body = open(&revision.0.to_be_bytes(), row)
        .ok_or_else(|| damaged(&name(), "its checksum does not match"))?;
    let mut events = Vec::new();
    while !body.is_empty() {
        let event = take_event(revision, &mut body);
        events.push(event.ok_or_else(|| damaged(&name(), "it is cut short"))?);
    }
    Ok(events)
}

fn take_event(revision: Revision, body: &mut &[u8]) -> Option<Event> {
    let key = String::from_utf8(take(body)?.to_vec()).ok()?;
    let (written, rest) = body.split_first()?;
    *body = rest;
    let value = match written {
        0 => None,
        1 => Some(take(body)?.to_vec()),
        _ => return None,
    };
    Some(Event { revision, key, value })
}

fn push(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    body.extend_from_slice(bytes);
}

fn take<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = body.split_first_chunk()?;
    let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    *body = rest;
    Some(bytes)
}

fn seal(name: &[u8], body: [&[u8]; 2]) -> Vec<u8> {
    let checksum = checksum([name, body[0], body[1]]);
    [&checksum.to_be_bytes()[..], body[0], body[1]].concat()
}

fn open<'a>(name: &[u8], row: &'a [u8]) -> Option<&'a [u8]> {
    let (stored, body) = row.split_first_chunk::<CHECKSUM>()?;
    (u32::from_be_bytes(*stored) == checksum([name, body, &[]])).then_some(body)
}

fn damaged(key: &str, reason: &str) -> StoreError {
    StoreError::DamagedValue { key: key.to_owned(), reason: reason.to_owned() }
}

/// CRC-32C (Castagnoli) of the parts one after the other. Finds every burst of up to 32 flipped bits.
fn checksum(parts: [&[u8]; 3]) -> u32 {
    !parts.iter().copied().flatten().fold(!0, |crc: u32, byte| {
        let [low, ..] = crc.to_le_bytes();
        TABLE[usize::from(low ^ byte)] ^ (crc >> 8)
    })
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    let mut start = 0;
    while byte < table.len() {
        let mut crc: u32 = start;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
        start += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_the_one_everybody_calls_crc_32c() {
        assert_eq!(checksum([b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(checksum([&[0; 32], b"", b""]), 0x8a91_36aa);
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
        let event = ("[a-zé/]{0,12}", value);
        proptest::collection::vec(event, 0..6).prop_map(|events| {
            let event = |(key, value)| Event { revision: Revision(9), key, value };
            events.into_iter().map(event).collect()
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(events in events()) {
            let row = encode_changes(Revision(9), &events);
            prop_assert_eq!(decode_changes(Revision(9), &row).unwrap(), events);
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(
            value in proptest::collection::vec(any::<u8>(), 0..60),
            position in any::<proptest::sample::Index>(),
        ) {
            let mut row = encode_entry("node/a", Revision(5), &value);
            let bit = position.index(row.len() * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            let error = decode_entry("node/a", &row).unwrap_err();
            prop_assert!(error.to_string().contains("`node/a`"), "{}", error);
            prop_assert!(decode_revision("node/a", &row).is_err());
        }

        #[test]
        fn a_row_cut_short_is_noticed(events in events(), cut in any::<proptest::sample::Index>()) {
            let row = encode_changes(Revision(9), &events);
            let cut = cut.index(row.len());
            prop_assert!(decode_changes(Revision(9), &row[..cut]).is_err());
        }
    }

    #[test]
    fn a_row_under_anothers_key_is_noticed() {
        let row = encode_entry("node/a", Revision(5), b"x");
        assert!(decode_entry("node/b", &row).is_err());
    }
}
