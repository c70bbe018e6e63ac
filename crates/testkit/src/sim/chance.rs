//! The one source of chance of a simulated cluster.
//!
//! - [`Dice`] are thrown by the simulation itself: each part has its own, so that what one does changes nothing for another.
//! - The product draws identifiers from the system's generator, hash maps and `select!` are seeded by it. On a thread that was given a seed
//!   ([`seed_thread`]) this process's `getrandom` answers from that seed, so that the same thread does the same each time.

use std::{cell::Cell, ffi::c_void, io::Read as _};

use parking_lot::Mutex;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on everything on this thread that asks the system for randomness gets what follows from `seed`.
pub fn seed_thread(seed: u64) {
    SEED.set(Some(seed));
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The system's source of randomness, as the standard library and the crates that draw from it know it: a symbol of the program comes
/// before that of the C library.
#[expect(unsafe_code, reason = "the C library's function has raw pointers, and is replaced by its name")]
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: u32) -> isize {
    let mut place = buffer.cast::<u8>();
    let mut left = length;
    while left > 0 {
        let mut piece = [0; 256];
        let some = left.min(piece.len());
        match SEED.get() {
            Some(mut state) => {
                for eight in piece[..some.next_multiple_of(8).min(256)].chunks_mut(8) {
                    eight.copy_from_slice(&next(&mut state).to_le_bytes());
                }
                SEED.set(Some(state));
            }
            None => {
                let read = std::fs::File::open("/dev/urandom")
                    .and_then(|mut file| file.read_exact(&mut piece[..some]));
                if read.is_err() {
                    return -1;
                }
            }
        }
        // SAFETY: the caller gives `length` writable bytes at `buffer`; of those `left` are still to be written, from `place` on.
        unsafe {
            std::ptr::copy_nonoverlapping(piece.as_ptr(), place, some);
            place = place.add(some);
        }
        left -= some;
    }
    isize::try_from(length).unwrap_or(-1)
}

/// Dice that always fall the same way for the same seed and name.
#[derive(Debug)]
pub struct Dice(Mutex<u64>);
impl Dice {
    /// The dice of that name.
    pub fn new(seed: u64, name: &str) -> Self {
        let named = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(Mutex::new(seed ^ named))
    }
    /// Any number.
    pub fn any(&self) -> u64 {
        next(&mut self.0.lock())
    }
    /// A number below `end`; 0 if that is 0.
    pub fn below(&self, end: u64) -> u64 {
        let any = self.any();
        if end == 0 { 0 } else { any % end }
    }
    /// A number from `first` up to and without `end`.
    pub fn between(&self, first: u64, end: u64) -> u64 {
        first + self.below(end.saturating_sub(first))
    }
    /// True in so many of a thousand cases.
    pub fn permille(&self, cases: u32) -> bool {
        // Thrown also if nothing depends on it, so that the next throw is the same either way.
        self.below(1000) < u64::from(cases)
    }
    /// One of these.
    pub fn one<'t, T>(&self, of: &'t [T]) -> &'t T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_draws_the_same_each_time_whoever_draws() {
        use std::hash::{BuildHasher as _, RandomState};
        let draw = |seed| {
            let drawing = move || {
                seed_thread(seed);
                let mut bytes = [0_u8; 40];
                getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0);
                (RandomState::new().hash_one(7), RandomState::new().hash_one(7), bytes)
            };
            std::thread::spawn(drawing).join().unwrap()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert_ne!(RandomState::new().hash_one(7), draw(5).0, "other threads draw from the system");
    }

    #[test]
    fn dice_of_one_name_know_nothing_of_others() {
        let (a, again, b) = (Dice::new(1, "a"), Dice::new(1, "a"), Dice::new(1, "b"));
        let throw = |dice: &Dice| (0..5).map(|_| dice.below(1000)).collect::<Vec<_>>();
        assert_eq!(throw(&a), throw(&again));
        assert_ne!(throw(&a), throw(&b));
    }
}
