//! Tickets: what a client shows to resume a session, with any gateway of the cluster.
//!
//! - A ticket is a session sealed (ChaCha20-Poly1305, RFC 8439) with a key that gateways alone have. Its first bytes name the key.
//! - The keys come with the table, and so are the same at every gateway; the newest seals, all of them open. How long a ticket is good is how long
//!   its key stays in the table: who gets hold of the keys of today reads no session of last week.
//! - Without keys in the table each gateway process makes up its own.

use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};
use rustls::{crypto::ring::Ticketer, server::ProducesTickets};
use wharf_model::TicketKey;

const NAME: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
/// No session is as long; longer ones are not even tried to open.
const LONGEST: usize = 16 << 10;
/// What clients are told; keys go when the table no longer has them.
const LIFETIME: u32 = 12 * 60 * 60;

/// Seals and opens tickets.
pub(super) struct Tickets {
    keys: ArcSwap<Vec<Key>>,
    /// For want of keys in the table. Absent if the system has no randomness: then no session is resumed.
    own: Option<Arc<dyn ProducesTickets>>,
    random: SystemRandom,
}

struct Key {
    name: [u8; NAME],
    key: LessSafeKey,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self { keys: ArcSwap::default(), own: Ticketer::new().ok(), random: SystemRandom::new() }
    }

    /// The newest first.
    pub(super) fn set(&self, keys: &[TicketKey]) {
        self.keys.store(Arc::new(keys.iter().map(|key| Key::new(&key.0)).collect()));
    }

    fn seal(&self, key: &Key, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME + NONCE + plain.len() + TAG);
        ticket.extend(key.name);
        ticket.extend(nonce);
        ticket.extend(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut ticket[NAME + NONCE..];
        let tag = key.key.seal_in_place_separate_tag(nonce, Aad::from(key.name), sealed).ok()?;
        ticket.extend(tag.as_ref());
        Some(ticket)
    }
}

impl Key {
    fn new(secret: &[u8; 32]) -> Self {
        let hash = digest::digest(&digest::SHA256, &[&b"wharf ticket key name"[..], secret].concat());
        let mut name = [0; NAME];
        name.copy_from_slice(&hash.as_ref()[..NAME]);
        let key = UnboundKey::new(&CHACHA20_POLY1305, secret).expect("32 bytes are a key");
        Self { name, key: LessSafeKey::new(key) }
    }

    fn open(&self, rest: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, Aad::from(self.name), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.own.is_some()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        match self.keys.load().first() {
            Some(key) => self.seal(key, plain),
            None => self.own.as_ref()?.encrypt(plain),
        }
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > LONGEST {
            return None;
        }
        let keys = self.keys.load();
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        match keys.iter().find(|key| key.name == *name) {
            Some(key) => key.open(rest),
            // One that this process sealed before it was given keys.
            None => self.own.as_ref()?.decrypt(ticket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(keys: &[u8]) -> Tickets {
        let tickets = Tickets::new();
        tickets.set(&keys.iter().map(|byte| TicketKey([*byte; 32])).collect::<Vec<_>>());
        tickets
    }

    #[test]
    fn a_ticket_of_one_gateway_is_good_at_all_of_them_while_its_key_is_there() {
        let ticket = tickets(&[1]).encrypt(b"session").unwrap();
        assert!(!ticket.windows(7).any(|window| window == b"session"));
        assert_eq!(tickets(&[2, 1]).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets(&[2]).decrypt(&ticket), None);
        assert_eq!(tickets(&[]).decrypt(&ticket), None);
    }

    #[test]
    fn a_damaged_ticket_is_none() {
        let tickets = tickets(&[1]);
        let ticket = tickets.encrypt(b"session").unwrap();
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(tickets.decrypt(&damaged), None, "{at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "{at}");
        }
    }

    #[test]
    fn without_keys_a_process_opens_its_own_tickets() {
        let tickets = Tickets::new();
        let before = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&before).as_deref(), Some(&b"session"[..]));
        tickets.set(&[TicketKey([1; 32])]);
        assert_eq!(tickets.decrypt(&before).as_deref(), Some(&b"session"[..]));
    }
}
