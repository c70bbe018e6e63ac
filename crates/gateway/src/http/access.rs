//! Says who may pass: clients by their addresses, and users by their passwords.
//!
//! - `deny` wins over `allow`. An IPv4 address is the same one when it comes mapped into IPv6.
//! - Passwords are compared with the hashes that `htpasswd` writes: bcrypt, `$apr1$` and `{SHA}`. A line with another kind lets nobody in, and
//!   is said.
//! - A hash is computed once for each password that comes, on a thread for blocking work, and only so many at a time; what came of it is
//!   remembered by a keyed hash. A user who does not exist takes as long as one who does.
//! - Neither passwords nor hashes are ever printed.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE},
};
use ipnet::IpNet;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use ring::{digest, hmac, rand::SystemRandom};
use tokio::sync::Semaphore;
use wharf_model::{BasicAuth, Users};

use super::Refusal;

/// Passwords whose outcome is remembered.
const REMEMBERED: usize = 4096;
/// Hashes that are computed at once, and that wait for it.
const AT_ONCE: usize = 2;
const WAITING: usize = 64;
/// Nobody's user and password are longer, and nothing longer is looked at.
const LONGEST: usize = 1024;

// --- addresses ---

/// A set of addresses: ranges that do not touch, in order. IPv4 is where it is mapped to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Networks {
    ranges: Vec<(u128, u128)>,
}

impl Networks {
    pub(crate) fn new(networks: &[IpNet]) -> Self {
        let mut all: Vec<(u128, u128)> =
            networks.iter().map(|network| (bits(network.network()), bits(network.broadcast()))).collect();
        all.sort_unstable();
        let mut ranges: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        Self { ranges }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = bits(address);
        let after = self.ranges.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.ranges[after - 1].1
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Which clients a route lets in.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// All if absent.
    allow: Option<Networks>,
    deny: Networks,
}

impl Clients {
    pub(crate) fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        let some = Some(allow).filter(|allow| !allow.is_empty());
        Self { allow: some.map(Networks::new), deny: Networks::new(deny) }
    }

    pub(crate) fn admit(&self, client: IpAddr) -> Result<(), Refusal> {
        let is_let_in = self.allow.as_ref().is_none_or(|allow| allow.contains(client));
        if is_let_in && !self.deny.contains(client) {
            return Ok(());
        }
        let text = "Forbidden: the route does not let in this client's address.\n";
        Err(Refusal::new(StatusCode::FORBIDDEN, "denied", text))
    }
}

// --- passwords ---

/// Whose passwords open a route.
pub(crate) struct Passwords {
    realm: Option<String>,
    users: HashMap<String, Arc<Hash>>,
    /// What a user is compared with who does not exist.
    nobody: Option<Arc<Hash>>,
    verified: Arc<Verified>,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

/// What `htpasswd` wrote.
enum Hash {
    Bcrypt(String),
    /// Salt and the hash's text.
    Apr1(String, String),
    Sha1(Vec<u8>),
}

impl Passwords {
    /// Reads the lines; those that say nothing that can be compared are complained about.
    pub(crate) fn new(basic: &BasicAuth, lines: &Users, verified: Arc<Verified>) -> (Self, Vec<String>) {
        let mut users = HashMap::new();
        let mut problems = Vec::new();
        for (number, line) in (1..).zip(&lines.0) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once(':').map(|(user, hash)| (user, Hash::read(hash))) {
                Some((user, Some(hash))) => drop(users.insert(user.to_owned(), Arc::new(hash))),
                _ => problems.push(format!(
                    "line {number} of the secret `{}` lets nobody in: write lines of `user:hash`, as `htpasswd -B` does",
                    basic.secret
                )),
            }
        }
        // Whichever takes longest to compute, so that all take as long.
        let nobody = users.values().max_by_key(|hash| hash.effort()).cloned();
        (Self { realm: basic.realm.clone(), users, nobody, verified }, problems)
    }

    /// Whether the request has a password that opens the route.
    pub(crate) async fn admit(&self, headers: &HeaderMap, host: &str) -> Result<(), Refusal> {
        let Some((user, password)) = credentials(headers) else { return Err(self.refusal(host)) };
        let known = self.users.get(&user);
        let Some(hash) = known.or(self.nobody.as_ref()) else { return Err(self.refusal(host)) };
        let mark = self.verified.mark(known.is_some(), hash, &password);
        let matches = match self.verified.recall(&mark) {
            Some(matches) => matches,
            None => self.verified.verify(mark, hash, password).await?,
        };
        if matches && known.is_some() { Ok(()) } else { Err(self.refusal(host)) }
    }

    fn refusal(&self, host: &str) -> Refusal {
        let text = "Unauthorised: this needs a user and a password.\n";
        let mut refusal = Refusal::new(StatusCode::UNAUTHORIZED, "unauthorised", text);
        let realm = self.realm.as_deref().unwrap_or(host).replace('\\', "\\\\").replace('"', "\\\"");
        let challenge = HeaderValue::try_from(format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
        let challenge = challenge.unwrap_or(HeaderValue::from_static("Basic realm=\"\", charset=\"UTF-8\""));
        refusal.headers = vec![(WWW_AUTHENTICATE, challenge)];
        refusal
    }
}

/// User and password of a request.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    // Some clients leave out the padding.
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") || encoded.len() > 2 * LONGEST {
        return None;
    }
    let decoded = LENIENT.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

impl Hash {
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(encoded) = text.strip_prefix("{SHA}") {
            let digest = STANDARD.decode(encoded).ok()?;
            return (digest.len() == 20).then_some(Self::Sha1(digest));
        }
        if let Some(rest) = text.strip_prefix("$apr1$") {
            let (salt, hash) = rest.split_once('$')?;
            return (salt.len() <= 8 && hash.len() == 22)
                .then(|| Self::Apr1(salt.to_owned(), hash.to_owned()));
        }
        let is_bcrypt = ["$2y$", "$2b$", "$2a$", "$2x$"].iter().any(|kind| text.starts_with(kind));
        is_bcrypt.then(|| text.parse::<bcrypt::HashParts>().ok())??;
        Some(Self::Bcrypt(text.to_owned()))
    }

    fn text(&self) -> &[u8] {
        match self {
            Self::Bcrypt(text) | Self::Apr1(_, text) => text.as_bytes(),
            Self::Sha1(digest) => digest,
        }
    }

    /// How long it takes, roughly.
    fn effort(&self) -> u32 {
        match self {
            Self::Bcrypt(text) => text.parse::<bcrypt::HashParts>().map_or(0, |parts| 10 + parts.get_cost()),
            Self::Apr1(..) => 2,
            Self::Sha1(_) => 1,
        }
    }

    fn matches(&self, password: &[u8]) -> bool {
        match self {
            Self::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
            Self::Apr1(salt, hash) => is_same(apr1(password, salt.as_bytes()).as_bytes(), hash.as_bytes()),
            Self::Sha1(digest) => {
                is_same(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, password).as_ref(), digest)
            }
        }
    }
}

/// Compares in a time that says nothing about where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

/// Apache's variant of the MD5 that crypt(3) had: a thousand rounds.
fn apr1(password: &[u8], salt: &[u8]) -> String {
    let round = |parts: &[&[u8]]| -> [u8; 16] {
        let mut hash = Md5::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    };
    let inner = round(&[password, salt, password]);
    let mut hash = Md5::new();
    hash.update(password);
    hash.update(b"$apr1$");
    hash.update(salt);
    let repeated: Vec<u8> = inner.iter().copied().cycle().take(password.len()).collect();
    hash.update(&repeated);
    let mut length = password.len();
    while length > 0 {
        let first = if length & 1 == 1 { &[0_u8][..] } else { password.get(..1).unwrap_or_default() };
        hash.update(first);
        length >>= 1;
    }
    let mut last: [u8; 16] = hash.finalize().into();
    for number in 0..1000 {
        let odd = number % 2 == 1;
        let before: &[u8] = if odd { password } else { &last };
        let after: &[u8] = if odd { &last } else { password };
        let salt = if number % 3 == 0 { &[][..] } else { salt };
        let again = if number % 7 == 0 { &[][..] } else { password };
        last = round(&[before, salt, again, after]);
    }
    let mut text = String::with_capacity(22);
    for [high, middle, low] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        let group = u32::from(last[high]) << 16 | u32::from(last[middle]) << 8 | u32::from(last[low]);
        push_base64(&mut text, group, 4);
    }
    push_base64(&mut text, u32::from(last[11]), 2);
    text
}

/// Six bits each, the lowest first, in the alphabet of crypt(3).
fn push_base64(text: &mut String, mut bits: u32, letters: usize) {
    const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for _ in 0..letters {
        text.push(char::from(ALPHABET[(bits & 63) as usize]));
        bits >>= 6;
    }
}

type Mark = [u8; 32];

/// What came of passwords that were compared, for all routes; outlives tables.
pub(crate) struct Verified {
    /// Made when it is first needed.
    key: OnceLock<hmac::Key>,
    outcomes: Mutex<HashMap<Mark, bool>>,
    room: Arc<Semaphore>,
    waiting: Semaphore,
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").finish_non_exhaustive()
    }
}

impl Default for Verified {
    fn default() -> Self {
        let (key, outcomes) = Default::default();
        let room = Arc::new(Semaphore::new(AT_ONCE));
        Self { key, outcomes, room, waiting: Semaphore::new(AT_ONCE + WAITING) }
    }
}

impl Verified {
    /// What stands for this password at this hash. A hash that is replaced has other marks.
    fn mark(&self, known: bool, hash: &Hash, password: &[u8]) -> Mark {
        #[expect(clippy::expect_used, reason = "the kernel has random numbers, or nothing at all works")]
        let made = || hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("random numbers");
        let mut mark = hmac::Context::with_key(self.key.get_or_init(made));
        mark.update(&[u8::from(known)]);
        mark.update(hash.text());
        mark.update(&[0]);
        mark.update(password);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(mark.sign().as_ref());
        bytes
    }

    fn recall(&self, mark: &Mark) -> Option<bool> {
        self.outcomes.lock().get(mark).copied()
    }

    async fn verify(&self, mark: Mark, hash: &Arc<Hash>, password: Vec<u8>) -> Result<bool, Refusal> {
        let Ok(_waiting) = self.waiting.try_acquire() else { return Err(too_many()) };
        let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { return Err(too_many()) };
        // Another request with the same password may have been first.
        if let Some(matches) = self.recall(&mark) {
            return Ok(matches);
        }
        let hash = Arc::clone(hash);
        let matches = wharf_process::blocking(move || {
            // Until it is done, though the client may be gone.
            let _room = room;
            hash.matches(&password)
        })
        .await;
        self.remember(mark, matches);
        Ok(matches)
    }

    fn remember(&self, mark: Mark, matches: bool) {
        let mut outcomes = self.outcomes.lock();
        if outcomes.len() >= REMEMBERED {
            // Guesses go first, whole: those who know their password are few, and go on without a hash.
            outcomes.retain(|_, matches| *matches);
        }
        if outcomes.len() >= REMEMBERED {
            outcomes.clear();
        }
        outcomes.insert(mark, matches);
    }
}

fn too_many() -> Refusal {
    let text = "Too many passwords are being checked. Try again later.\n";
    let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "passwords_busy", text);
    refusal.headers = vec![(RETRY_AFTER, HeaderValue::from(1))];
    refusal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn who_is_denied_stays_out_though_allowed() {
        let clients = Clients::new(&networks(&["10.0.0.0/8", "2001:db8::/32"]), &networks(&["10.1.0.0/16"]));
        let is_in = |client: &str| clients.admit(client.parse().unwrap()).is_ok();
        assert!(is_in("10.2.0.1") && is_in("::ffff:10.2.0.1") && is_in("2001:db8::7"));
        assert!(
            !is_in("10.1.255.255")
                && !is_in("::ffff:10.1.0.0")
                && !is_in("11.0.0.0")
                && !is_in("9.255.255.255")
        );
        assert!(!is_in("2001:db9::"), "the next after");
        let all = Clients::new(&[], &networks(&["0.0.0.0/0"]));
        assert!(
            all.admit("2001:db8::1".parse().unwrap()).is_ok()
                && all.admit("1.2.3.4".parse().unwrap()).is_err()
        );
        assert_eq!(all.admit("1.2.3.4".parse().unwrap()).unwrap_err().status, StatusCode::FORBIDDEN);
    }

    proptest! {
        #[test]
        fn a_set_of_networks_has_what_one_of_them_has(
            nets in prop::collection::vec((any::<u8>(), any::<u8>(), 0_u8..=32), 0..12), probes in prop::collection::vec(any::<u32>(), 40),
        ) {
            let nets: Vec<IpNet> =
                nets.into_iter().map(|(a, b, length)| format!("{a}.{b}.0.0/{length}").parse().unwrap()).collect();
            let set = Networks::new(&nets);
            let edges = nets.iter().flat_map(|net| {
                let (first, last) = (net.network(), net.broadcast());
                let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else { unreachable!() };
                [first.to_bits(), last.to_bits(), first.to_bits().wrapping_sub(1), last.to_bits().wrapping_add(1)]
            });
            for bits in edges.chain(probes) {
                let address = IpAddr::V4(bits.into());
                prop_assert_eq!(set.contains(address), nets.iter().any(|net| net.contains(&address)), "{}", address);
            }
        }
    }

    // As `openssl passwd -apr1` and `htpasswd -nbB` wrote them.
    const LINES: [&str; 5] = [
        "alice:$apr1$RandSalt$PgCXHRrkpSt4cbyC2C6bm/",
        "bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        "carol:$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe",
        "dave:plain",
        "# nobody",
    ];

    fn passwords() -> Passwords {
        let users = Users(LINES.iter().map(|line| (*line).to_owned()).collect());
        let basic = BasicAuth { secret: "users".into(), realm: None };
        let (passwords, problems) = Passwords::new(&basic, &users, Arc::default());
        assert_eq!(
            problems,
            [
                "line 4 of the secret `users` lets nobody in: write lines of `user:hash`, as `htpasswd -B` does"
            ]
        );
        passwords
    }

    fn basic(user: &str, password: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(value).unwrap())])
    }

    #[tokio::test]
    async fn passwords_of_each_kind_open_the_route_and_no_others_do() {
        let passwords = passwords();
        for round in 0..2 {
            for (user, password) in [("alice", "password"), ("bob", "password"), ("carol", "password")] {
                assert!(passwords.admit(&basic(user, password), "h").await.is_ok(), "{user} {round}");
                assert!(passwords.admit(&basic(user, "Password"), "h").await.is_err(), "{user} {round}");
            }
            assert!(passwords.admit(&basic("dave", "plain"), "h").await.is_err());
            // Nobody, with the password of the one that nobody is compared with.
            assert!(passwords.admit(&basic("erin", "password"), "h").await.is_err());
            assert!(passwords.admit(&HeaderMap::new(), "h").await.is_err());
        }
        let refusal = passwords.admit(&basic("alice", ""), "shop.example").await.unwrap_err();
        assert_eq!(refusal.status, StatusCode::UNAUTHORIZED);
        assert_eq!(refusal.headers[0].1, "Basic realm=\"shop.example\", charset=\"UTF-8\"");
    }

    #[tokio::test]
    async fn a_password_is_computed_once_and_not_again_after_its_hash_was_replaced() {
        let verified = Arc::new(Verified::default());
        let read = |lines: &[&str]| {
            let users = Users(lines.iter().map(|line| (*line).to_owned()).collect());
            let basic = BasicAuth { secret: "users".into(), realm: Some("a \"b\"".into()) };
            Passwords::new(&basic, &users, Arc::clone(&verified)).0
        };
        assert!(read(&LINES).admit(&basic("alice", "password"), "").await.is_ok());
        assert_eq!(verified.outcomes.lock().len(), 1);
        // No hash can be computed any more.
        verified.room.close();
        assert!(read(&LINES).admit(&basic("alice", "password"), "").await.is_ok(), "remembered");
        assert_eq!(read(&LINES).admit(&basic("alice", "x"), "").await.unwrap_err().reason, "passwords_busy");
        let gone = read(&LINES[1..]).admit(&basic("alice", "password"), "").await;
        assert!(gone.is_err(), "who left the file is out at once");
        let replaced = read(&["alice:$apr1$RandSalt$PgCXHRrkpSt4cbyC2C6bm."])
            .admit(&basic("alice", "password"), "")
            .await;
        assert!(replaced.is_err());
        let nobody = read(&[]).admit(&basic("alice", "password"), "").await.unwrap_err();
        assert_eq!(nobody.reason, "unauthorised", "nobody gets in if there are none");
        assert_eq!(nobody.headers[0].1, "Basic realm=\"a \\\"b\\\"\", charset=\"UTF-8\"");
    }

    #[test]
    fn guesses_do_not_push_out_those_who_know_their_password() {
        let verified = Verified::default();
        let mark = |number: usize| {
            let mut mark = [0; 32];
            mark[..8].copy_from_slice(&number.to_be_bytes());
            mark
        };
        verified.remember(mark(0), true);
        (1..3 * REMEMBERED).for_each(|number| verified.remember(mark(number), false));
        assert_eq!(verified.recall(&mark(0)), Some(true));
        assert!(verified.outcomes.lock().len() <= REMEMBERED);
    }

    #[test]
    fn nothing_of_passwords_is_printed() {
        let printed = format!("{:?} {:?}", passwords(), Verified::default());
        assert!(!printed.contains("apr1") && !printed.contains("alice"), "{printed}");
    }
}
