//! Identifiers made from random bits.

use rand::Rng;
use wharf_engine::Ids;

/// Draws from the thread's random generator, which the operating system seeds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RandomIds;

impl Ids for RandomIds {
    fn random(&mut self) -> [u8; 10] {
        let mut bytes = [0; 10];
        rand::rng().fill_bytes(&mut bytes);
        bytes
    }
}
