//! Keeps upstream resolvers' answers for as long as they say, and never more than so many and so large.
//!
//! What expires first goes first when there is no room. Cluster names are never in here.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{answer::Ask, forward::Outcome};

/// Answers kept at once.
const MOST: usize = 4096;
/// Their size together.
const LARGEST: usize = 4 << 20;
/// What an entry costs besides its answer, twice its question included.
const OVERHEAD: usize = 256;

/// Answers by question. Keys come from whoever asks: the map's hash is keyed.
#[derive(Debug, Default)]
pub(super) struct Cache {
    kept: HashMap<Arc<Ask>, Kept>,
    /// The second number tells apart what expires at the same time.
    by_end: BTreeMap<(Instant, u64), Arc<Ask>>,
    size: usize,
    next: u64,
}

#[derive(Debug)]
struct Kept {
    outcome: Outcome,
    end: (Instant, u64),
}

impl Cache {
    /// The answer to `ask`, unless it has expired.
    pub(super) fn get(&self, ask: &Ask, now: Instant) -> Option<Outcome> {
        self.kept.get(ask).filter(|kept| now < kept.end.0).map(|kept| kept.outcome.clone())
    }

    /// Keeps an answer for so long, in place of the one before.
    pub(super) fn put(&mut self, ask: &Ask, outcome: Outcome, lifetime: Duration, now: Instant) {
        self.remove(ask);
        let size = size(ask, &outcome);
        if lifetime.is_zero() || size > LARGEST / 16 {
            return;
        }
        while self.kept.len() >= MOST || self.size + size > LARGEST {
            let Some((_, first)) = self.by_end.first_key_value() else { return };
            let first = Arc::clone(first);
            self.remove(&first);
        }
        let ask = Arc::new(ask.clone());
        self.next += 1;
        let end = (now + lifetime, self.next);
        self.by_end.insert(end, Arc::clone(&ask));
        self.kept.insert(ask, Kept { outcome, end });
        self.size += size;
    }

    fn remove(&mut self, ask: &Ask) {
        if let Some((ask, kept)) = self.kept.remove_entry(ask) {
            self.by_end.remove(&kept.end);
            self.size -= size(&ask, &kept.outcome);
        }
    }
}

fn size(ask: &Ask, outcome: &Outcome) -> usize {
    outcome.as_ref().map_or(0, |reply| reply.size()) + ask.asked.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::{reply::Reply, wire::HEADER};

    fn ask(number: usize) -> Ask {
        let name = format!("host{number}.example");
        let asked = [&crate::dns::wire::name(&name).unwrap()[..], &[0, 0, 1, 0, 1]].concat();
        Ask { asked: asked.into(), signatures: false, checking_disabled: false }
    }
    /// An answer without records, and `extra` bytes of one.
    fn reply(ask: &Ask, extra: u16) -> Arc<Reply> {
        let mut bytes = vec![0; HEADER];
        bytes[2] = 0x80;
        bytes[5] = 1;
        bytes.extend_from_slice(&ask.asked);
        if extra > 0 {
            bytes[7] = 1;
            let [e0, e1] = extra.to_be_bytes();
            bytes.extend_from_slice(&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60, e0, e1]);
            bytes.resize(bytes.len() + usize::from(extra), 0);
        }
        Arc::new(Reply::read(&bytes, 0, &ask.asked, Instant::now()).unwrap())
    }
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_is_kept_until_it_expires_and_the_newest_counts() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let (first, second) = (reply(&ask(1), 0), reply(&ask(1), 10));
        cache.put(&ask(1), Ok(Arc::clone(&first)), MINUTE, now);
        cache.put(&ask(1), Ok(Arc::clone(&second)), MINUTE * 2, now);
        let kept = |cache: &Cache, after| cache.get(&ask(1), now + after);
        assert!(Arc::ptr_eq(&kept(&cache, MINUTE).unwrap().unwrap(), &second));
        assert!(kept(&cache, MINUTE * 2).is_none());
        cache.put(&ask(1), Ok(first), Duration::ZERO, now);
        assert!(kept(&cache, Duration::ZERO).is_none(), "what may not be kept takes away what was");
        assert_eq!((cache.size, cache.by_end.len()), (0, 0));
    }

    #[test]
    fn there_is_never_too_much_and_what_expires_first_goes_first() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..MOST + 10 {
            cache.put(
                &ask(number),
                Ok(reply(&ask(number), 0)),
                MINUTE + Duration::from_secs(number as u64),
                now,
            );
        }
        assert_eq!((cache.kept.len(), cache.by_end.len()), (MOST, MOST));
        assert!(cache.get(&ask(9), now).is_none() && cache.get(&ask(10), now).is_some());
        for number in 0..MOST {
            cache.put(&ask(number), Ok(reply(&ask(number), 40_000)), MINUTE * 60, now);
            assert!(cache.size <= LARGEST);
        }
        let counted: usize = cache.kept.iter().map(|(ask, kept)| size(ask, &kept.outcome)).sum();
        assert_eq!(cache.size, counted);
        assert!(cache.kept.len() > 90);
    }
}
