//! Chooses among equals: one of several weights, and one of several endpoints.
//!
//! - Shares are exact over time, however they are mixed: a choice by weight never strays from its share by more than a few requests, and
//!   requests that come in a rhythm do not all fall to one side.
//! - The same key leads to the same endpoint in every gateway, while it is there and not much busier than the others; what leaves
//!   moves its own keys only.
//! - Nothing here waits, locks or allocates.

use std::{cell::Cell, net::IpAddr};

use http::{HeaderMap, header::COOKIE};
use wharf_model::HashBy;

use super::Ask;

/// Up to so many endpoints are all looked at; of more, two.
const FEW: usize = 16;
/// Draws of two before all are looked at.
const DRAWS: usize = 4;
/// How much busier than the mean an endpoint may be, in quarters, before its keys go elsewhere: 5/4.
const BOUND: u64 = 5;

/// A position in `0..total` for the choice with this number. Over consecutive numbers positions are spread evenly: multiples of the
/// golden ratio.
pub(crate) fn position(number: u64, total: u64) -> u64 {
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let position = (u128::from(spread) * u128::from(total)) >> 64;
    u64::try_from(position).unwrap_or(0)
}

/// Which of these weights a position falls to, if they are laid end to end.
pub(crate) fn portion(weights: impl Iterator<Item = u64>, mut position: u64) -> Option<usize> {
    for (at, weight) in weights.enumerate() {
        if position < weight {
            return Some(at);
        }
        position -= weight;
    }
    None
}

/// The one with the least load, among equals the first from `turn` on; of many, the better of two that are drawn. `load` is none for
/// those that cannot be chosen.
pub(crate) fn least(count: usize, turn: u64, load: impl Fn(usize) -> Option<u64>) -> Option<usize> {
    if count > FEW {
        let mut draw = mix(turn);
        for _ in 0..DRAWS {
            draw = mix(draw);
            let (one, other) = (below(count, draw), below(count, draw.rotate_left(32)));
            match (load(one), load(other)) {
                (Some(first), Some(second)) => return Some(if second < first { other } else { one }),
                (Some(_), None) => return Some(one),
                (None, Some(_)) => return Some(other),
                (None, None) => {}
            }
        }
    }
    from(count, turn).filter_map(|at| Some((load(at)?, at))).min_by_key(|(load, _)| *load).map(|(_, at)| at)
}

/// The next from `turn` on.
pub(crate) fn next(count: usize, turn: u64, load: impl Fn(usize) -> Option<u64>) -> Option<usize> {
    from(count, turn).find(|at| load(*at).is_some())
}

/// The one that this key belongs to (the highest of hashes of key and endpoint), except those that are much busier than the mean.
pub(crate) fn hashed(
    count: usize,
    key: u64,
    identity: impl Fn(usize) -> u64,
    load: impl Fn(usize) -> Option<u64>,
) -> Option<usize> {
    let loads = || (0..count).filter_map(&load);
    let (sum, able) = loads().fold((0, 0), |(sum, able), load| (sum + load, able + 1));
    // With the one that is to come; a single endpoint is never too busy.
    let most = ((sum + 1) * BOUND).div_ceil(4 * able.max(1));
    let able = (0..count).filter(|at| load(*at).is_some_and(|load| load < most));
    able.max_by_key(|at| mix(key ^ identity(*at)))
}

fn from(count: usize, turn: u64) -> impl Iterator<Item = usize> {
    let start = usize::try_from(turn % count.max(1) as u64).unwrap_or(0);
    (start..count).chain(0..start)
}

fn below(count: usize, draw: u64) -> usize {
    usize::try_from(((draw & u64::from(u32::MAX)) * count as u64) >> 32).unwrap_or(0)
}

/// A number of this thread's own that is another one each time: for choices that need not be coordinated.
pub(crate) fn own_turn() -> u64 {
    thread_local! {
        static TURN: Cell<u64> = const { Cell::new(0) };
    }
    TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)))
}

/// Spreads the bits of a number: close ones end far apart.
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A number for these bytes that is the same in every gateway.
pub(crate) fn stable(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fnv))
}

/// What tells one client from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key<'r> {
    Address(u128),
    Text(&'r [u8]),
}

impl<'r> Key<'r> {
    /// The key of a request. Who lacks the header or cookie counts by the address; an IPv6 client is its /64, which it has whole.
    pub(crate) fn of(ask: &Ask<'r>, by: &HashBy) -> Self {
        let text = match by {
            HashBy::Client => None,
            HashBy::Header(name) => ask.headers.get(name).map(http::HeaderValue::as_bytes),
            HashBy::Cookie(name) => cookies(ask.headers, name).next(),
            HashBy::Path => Some(ask.path.as_bytes()),
        };
        text.map_or_else(|| Self::of_address(ask.client), Self::Text)
    }

    fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Address(u128::from(address.to_bits())),
            IpAddr::V6(address) => Self::Address(address.to_bits() >> 64 << 64),
        }
    }

    /// The same in every gateway.
    pub(crate) fn stable(&self) -> u64 {
        match self {
            Self::Address(address) => stable(&address.to_be_bytes()),
            Self::Text(text) => stable(text),
        }
    }
}

/// The values of a request's cookies with this name: usually one, and more where their paths overlap.
pub(crate) fn cookies<'r>(headers: &'r HeaderMap, name: &str) -> impl Iterator<Item = &'r [u8]> {
    let pairs =
        headers.get_all(COOKIE).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_exact_over_time(weights in prop::collection::vec(0_u64..101, 1..5), start in any::<u64>()) {
            let total: u64 = weights.iter().sum();
            prop_assume!(total > 0);
            let mut taken = vec![0_u64; weights.len()];
            for number in 0..2000_u64 {
                let position = position(start.wrapping_add(number), total);
                taken[portion(weights.iter().copied(), position).unwrap()] += 1;
                for (taken, weight) in taken.iter().zip(&weights) {
                    let share = (number + 1) as f64 * *weight as f64 / total as f64;
                    prop_assert!((*taken as f64 - share).abs() < 6.0, "{taken} of {number}, should be {share}");
                }
            }
            prop_assert!(taken.iter().zip(&weights).all(|(taken, weight)| *weight > 0 || *taken == 0));
        }

        #[test]
        fn a_rhythm_does_not_fall_to_one_side(rhythm in 1_u64..40, start in any::<u64>()) {
            // One kind of request in each `rhythm`: it, too, is split as the weights say.
            let mut taken = [0_u64; 2];
            for number in 0..1000 {
                let position = position(start.wrapping_add(number * rhythm), 100);
                taken[portion([50, 50].into_iter(), position).unwrap()] += 1;
            }
            prop_assert!(taken[0].abs_diff(taken[1]) < 100, "{taken:?}");
        }

        #[test]
        fn the_least_busy_of_few_is_chosen(loads in prop::collection::vec(prop::option::of(0_u64..5), 1..=FEW), turn in any::<u64>()) {
            let chosen = least(loads.len(), turn, |at| loads[at]);
            prop_assert_eq!(chosen.map(|at| loads[at].unwrap()), loads.iter().flatten().min().copied());
        }

        #[test]
        fn of_many_one_that_can_is_chosen_if_there_is_one(count in FEW + 1..200, able in any::<prop::sample::Index>(), turn in any::<u64>()) {
            let able = able.index(count);
            prop_assert_eq!(least(count, turn, |at| (at == able).then_some(9)), Some(able));
            prop_assert_eq!(least(count, turn, |_| None), None);
        }

        #[test]
        fn what_leaves_moves_its_own_keys_only(count in 2_usize..20, gone in any::<prop::sample::Index>(), keys in prop::collection::vec(any::<u64>(), 50)) {
            let gone = gone.index(count);
            let identity = |at: usize| stable(&[u8::try_from(at).unwrap()]);
            for key in keys {
                let before = hashed(count, key, identity, |_| Some(0)).unwrap();
                let after = hashed(count, key, identity, |at| (at != gone).then_some(0)).unwrap();
                prop_assert!(before == gone || before == after);
                prop_assert!(after != gone);
            }
        }

        #[test]
        fn no_endpoint_gets_much_more_than_the_mean(count in 1_usize..20, keys in prop::collection::vec(0_u64..3, 1..200)) {
            let mut loads = vec![0_u64; count];
            for key in keys {
                let chosen = hashed(count, stable(&key.to_be_bytes()), |at| mix(at as u64), |at| Some(loads[at])).unwrap();
                loads[chosen] += 1;
                let sum: u64 = loads.iter().sum();
                prop_assert!(loads[chosen] <= (sum * 5).div_ceil(4 * count as u64), "{loads:?}");
            }
        }
    }

    #[test]
    fn many_endpoints_are_loaded_almost_evenly() {
        let mut loads = vec![0_u64; 100];
        for turn in 0..10_000 {
            let chosen = least(loads.len(), turn, |at| Some(loads[at])).unwrap();
            loads[chosen] += 1;
        }
        // One random choice would stray by about 30.
        assert!(loads.iter().all(|load| load.abs_diff(100) < 10), "{loads:?}");
    }

    #[test]
    fn keys_are_spread_over_all() {
        let mut taken: BTreeMap<usize, u32> = BTreeMap::new();
        for key in 0_u32..10_000 {
            let key = stable(&key.to_be_bytes());
            let chosen = hashed(10, key, |at| stable(&[u8::try_from(at).unwrap()]), |_| Some(0));
            *taken.entry(chosen.unwrap()).or_default() += 1;
        }
        assert!(taken.len() == 10 && taken.values().all(|taken| (800..1200).contains(taken)), "{taken:?}");
    }

    #[test]
    fn a_key_means_the_same_in_every_release_of_the_gateway() {
        assert_eq!(stable(b"alice"), 0x1A04_6F57_3E1E_5475);
    }

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let order: Vec<_> = (5..11).filter_map(|turn| next(3, turn, |_| Some(0))).collect();
        assert_eq!(order, [2, 0, 1, 2, 0, 1]);
        assert_eq!(next(3, 1, |at| (at != 1).then_some(0)), Some(2));
        assert_eq!(next(0, 1, |_| Some(0)), None);
    }

    #[test]
    fn cookies_are_found_wherever_they_stand() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1; TASK=x;b=2".parse().unwrap());
        headers.append(COOKIE, "MYTASK=no;TASK=y".parse().unwrap());
        assert_eq!(cookies(&headers, "TASK").collect::<Vec<_>>(), [b"x", b"y"]);
        assert_eq!(cookies(&headers, "TAS").count(), 0);
    }

    #[test]
    fn clients_are_told_apart_as_the_route_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-tenant", "acme".parse().unwrap());
        let ask = Ask {
            port: 80,
            secure: false,
            client: "2001:db8::1".parse().unwrap(),
            method: &http::Method::GET,
            host: "",
            path: "/a",
            headers: &headers,
            now: super::super::Moment(0),
        };
        let key = |client: &str, by: &HashBy| Key::of(&Ask { client: client.parse().unwrap(), ..ask }, by);
        let header = HashBy::Header("x-tenant".into());
        assert_eq!(key("192.0.2.1", &header), Key::Text(b"acme"));
        assert_eq!(key("192.0.2.1", &HashBy::Path), Key::Text(b"/a"));
        let cookie = HashBy::Cookie("none".into());
        assert_eq!(key("192.0.2.1", &cookie), key("::ffff:192.0.2.1", &HashBy::Client));
        assert_ne!(key("192.0.2.1", &cookie), key("192.0.2.2", &cookie));
        assert_eq!(key("2001:db8::1", &HashBy::Client), key("2001:db8::ffff:2", &HashBy::Client));
        assert_ne!(key("2001:db8::1", &HashBy::Client), key("2001:db8:0:1::1", &HashBy::Client));
    }
}
