//! The store of a cluster with several servers: an etcd that is there already.
//!
//! - A revision is etcd's own; one transaction of etcd is one batch.
//! - Endpoints are used one at a time. A read that fails goes on at the next one until its deadline; a
//!   commit does so only while it certainly has not been sent.
//! - A watch carries on by itself at the next endpoint, from where it had come to.
//! - Keys have a prefix of their own, so one etcd can serve others as well. Revisions then have gaps.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, GetResponse, Identity,
    KvClient, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
    WatchResponse, WatchStream,
};
use futures::{StreamExt, stream};
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use wharf_process::Backoff;

use crate::{AnyError, Backend, Batch, Changes, Entry, Event, Revision, Snapshot, StoreError};

/// How many bytes a page of a large read is meant to have, and the bounds on how many keys that is.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
const PAGE_KEYS: (usize, usize) = (16, 4096);
/// The largest message from etcd; its values are bounded by its own limit on requests.
const LARGEST_MESSAGE: usize = 1 << 30;
/// How often a read that was overtaken by a compaction begins again.
const READ_ATTEMPTS: usize = 5;
/// etcd answers pings that come more often than every five seconds by hanging up.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_CEILING: Duration = Duration::from_secs(3);

/// How to reach etcd, and where in it to keep things.
#[derive(Clone)]
pub struct Options {
    /// `http://host:port` or `https://host:port` of each member.
    pub endpoints: Vec<String>,
    /// What all keys begin with; ends with `/`.
    pub prefix: String,
    /// How long a request may take, over all endpoints.
    pub deadline: Duration,
    /// How long one endpoint may take to answer before another is asked.
    pub attempt: Duration,
    /// Certificates, for `https` endpoints.
    pub tls: Option<Tls>,
    /// A user's name and password, if etcd has authentication turned on.
    pub user: Option<(String, String)>,
    /// How many comparisons and how many operations etcd takes in a transaction (`--max-txn-ops`).
    pub batch_keys: usize,
    /// How many bytes of keys and values a batch may have; etcd takes a little more than that in a request
    /// (`--max-request-bytes`).
    pub batch_bytes: usize,
    /// Spreads the attempts of several servers to reconnect; each has its own.
    pub seed: u64,
}

impl Options {
    /// The usual options for these endpoints.
    #[must_use]
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: "/wharf/".to_owned(),
            deadline: Duration::from_secs(10),
            attempt: Duration::from_secs(3),
            tls: None,
            user: None,
            batch_keys: crate::PORTABLE_KEYS,
            batch_bytes: crate::PORTABLE_BYTES + crate::PORTABLE_BYTES / 4,
            seed: 0,
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        let wrong = |reason: String| Err(StoreError::Misconfigured { reason });
        if self.endpoints.is_empty() {
            return wrong("etcd has no endpoints".to_owned());
        }
        if !self.prefix.ends_with('/') {
            return wrong(format!("the key prefix `{}` does not end with `/`", self.prefix));
        }
        for endpoint in &self.endpoints {
            let secure = endpoint.starts_with("https://");
            if !secure && !endpoint.starts_with("http://") {
                return wrong(format!("the endpoint `{endpoint}` does not begin with http:// or https://"));
            }
            if !secure && self.tls.is_some() {
                return wrong(format!(
                    "there are certificates, but the endpoint `{endpoint}` is not https://"
                ));
            }
        }
        Ok(())
    }

    fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(self.attempt)
            .with_require_leader(true)
            .with_auto_token_refresh(self.user.is_some());
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.options());
        }
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        options
    }
}

/// Shows everything but secrets.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .finish_non_exhaustive()
    }
}

/// Whom to trust, and who we are, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The authority that signed the members' certificates.
    pub authority: String,
    /// Our certificate and its key, if etcd asks for one.
    pub identity: Option<(String, String)>,
}

impl Tls {
    fn options(&self) -> TlsOptions {
        let options = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.authority));
        match &self.identity {
            Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key)),
            None => options,
        }
    }
}

/// A store in etcd. Clones share their connections.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    /// One per endpoint, in their order.
    clients: Vec<Client>,
    /// The endpoint that is used; taken modulo their number.
    current: AtomicUsize,
    /// Gives each watch a seed of its own.
    watches: AtomicU64,
}

impl Etcd {
    /// Connects, and makes sure that etcd answers.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`] if the options make no sense, [`StoreError::Unavailable`] if no
    /// endpoint answers before the deadline.
    pub async fn connect(options: Options) -> Result<Self, StoreError> {
        options.check()?;
        let mut clients = Vec::new();
        let deadline = Instant::now() + options.deadline;
        for endpoint in &options.endpoints {
            let connecting = Client::connect([endpoint], Some(options.connect_options()));
            let client = timeout_at(deadline, connecting)
                .await
                .map_err(|_late| StoreError::unavailable(endpoint, "it did not answer in time"))?
                .map_err(|error| StoreError::unavailable(endpoint, error))?;
            clients.push(client);
        }
        let (current, watches) = (AtomicUsize::new(0), AtomicU64::new(options.seed));
        let etcd = Self { shared: Arc::new(Shared { options, clients, current, watches }) };
        etcd.revision().await?;
        Ok(etcd)
    }

    /// The latest revision of this etcd.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if no endpoint answers before the deadline.
    pub async fn revision(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only();
        let response = self.get(self.shared.options.prefix.clone().into_bytes(), options).await;
        Ok(revision_of(response.map_err(|failure| self.error(failure))?.header()))
    }

    /// Forgets the history up to and including `through`, except that etcd keeps its latest revision.
    /// Concerns the whole etcd, not only our keys. Watches that have not come so far end with
    /// [`StoreError::Compacted`]. Forgetting what is forgotten already is no error.
    ///
    /// # Errors
    /// As for a read.
    pub async fn compact(&self, through: Revision) -> Result<(), StoreError> {
        let latest = self.revision().await?;
        // etcd keeps what it is compacted at and forgets what was before.
        let at = through.0.saturating_add(1).min(latest.0).cast_signed();
        let compacted = self
            .anywhere(|mut kv| async move {
                kv.compact(at, None).await.map(drop).or_else(|error| match is_compacted(&error) {
                    true => Ok(()),
                    false => Err(error),
                })
            })
            .await;
        compacted.map_err(|failure| self.error(failure))
    }

    /// Forgets all history but the latest `revisions`.
    ///
    /// # Errors
    /// As for a read.
    pub async fn compact_keeping(&self, revisions: u64) -> Result<(), StoreError> {
        let latest = self.revision().await?;
        match latest.0.checked_sub(revisions) {
            None | Some(0) => Ok(()),
            Some(through) => self.compact(Revision(through)).await,
        }
    }

    async fn get(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, Failure> {
        self.anywhere(|mut kv| {
            let (key, options) = (key.clone(), options.clone());
            async move { kv.get(key, Some(options)).await }
        })
        .await
    }

    /// Makes a request that may be repeated, at one endpoint after another, until the deadline.
    async fn anywhere<T, F>(&self, request: impl Fn(KvClient) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.attempts(request, |failure| failure.is_temporary()).await
    }

    /// Makes a request at one endpoint after another while `again` says so, until the deadline.
    async fn attempts<T, F>(
        &self,
        request: impl Fn(KvClient) -> F,
        again: impl Fn(&Failure) -> bool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let shared = &self.shared;
        let deadline = Instant::now() + shared.options.deadline;
        let mut random = shared.random();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CEILING);
        loop {
            let (at, client) = shared.client();
            let kv = client.kv_client().max_decoding_message_size(LARGEST_MESSAGE);
            let until = deadline.min(Instant::now() + shared.options.attempt);
            let failure = match timeout_at(until, request(kv)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Failure::Answer(error),
                Err(_late) => Failure::Late,
            };
            if failure.is_temporary() {
                shared.leave(at);
            }
            // The first round goes straight through all endpoints.
            let pause = match usize::try_from(backoff.failures()).unwrap_or(usize::MAX) {
                failures if failures + 1 < shared.clients.len() => {
                    let _ = backoff.next_delay(&mut random);
                    Duration::ZERO
                }
                _ => backoff.next_delay(&mut random),
            };
            if !again(&failure) || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
        }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.shared.options.prefix.as_bytes(), key.as_bytes()].concat()
    }

    fn name(&self, key: &[u8]) -> Result<String, StoreError> {
        let prefix = self.shared.options.prefix.as_bytes();
        let name = key.strip_prefix(prefix).and_then(|name| String::from_utf8(name.to_vec()).ok());
        name.ok_or_else(|| StoreError::DamagedValue {
            key: String::from_utf8_lossy(key).into_owned(),
            reason: "its key is not text, so it is not Wharf's".to_owned(),
        })
    }

    fn error(&self, failure: Failure) -> StoreError {
        let place = self.shared.place();
        match failure {
            Failure::Late => StoreError::unavailable(place, "no answer in time"),
            Failure::Answer(error) => {
                let text = message(&error);
                if text.contains("database space exceeded") || text.contains("no space") {
                    StoreError::Full { place, source: error.into() }
                } else {
                    StoreError::unavailable(place, Cause::of(&error))
                }
            }
        }
    }

    async fn read_once(&self, prefix: &str) -> Result<Snapshot, Failure> {
        let mut start = self.key(prefix);
        let end = after_all(&start);
        let mut limit = PAGE_KEYS.0 * 4;
        let mut pages: Vec<GetResponse> = Vec::new();
        let mut revision = None;
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit as i64);
            if let Some(Revision(revision)) = revision {
                options = options.with_revision(revision.cast_signed());
            }
            let page = self.get(start.clone(), options).await?;
            let at = *revision.get_or_insert_with(|| revision_of(page.header()));
            let bytes: usize = page.kvs().iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            limit = (PAGE_BYTES / (bytes / page.kvs().len().max(1)).max(1)).clamp(PAGE_KEYS.0, PAGE_KEYS.1);
            let next = page.kvs().last().filter(|_| page.more()).map(|last| [last.key(), &[0]].concat());
            pages.push(page);
            match next {
                Some(next) => start = next,
                None => return Ok(self.snapshot(at, &pages)),
            }
        }
    }

    fn snapshot(&self, revision: Revision, pages: &[GetResponse]) -> Snapshot {
        let mut entries = BTreeMap::new();
        for kv in pages.iter().flat_map(GetResponse::kvs) {
            let entry = Entry { value: kv.value().to_vec(), written_at: rev(kv.mod_revision()) };
            // A key beside ours that is not text is nobody's record.
            if let Ok(name) = self.name(kv.key()) {
                entries.insert(name, entry);
            }
        }
        Snapshot { revision, entries }
    }

    fn transaction(&self, batch: &Batch) -> Txn {
        // Absent keys have a modification revision of 0, so one comparison serves both.
        let expectations = batch.expectations().iter();
        let compare = expectations.clone().map(|(key, revision)| {
            let revision = revision.map_or(0, |revision| revision.0.cast_signed());
            Compare::mod_revision(self.key(key), CompareOp::Equal, revision)
        });
        let found =
            expectations.map(|(key, _)| TxnOp::get(self.key(key), Some(GetOptions::new().with_keys_only())));
        let writes = batch.writes().iter().map(|(key, value)| match value {
            Some(value) => TxnOp::put(self.key(key), value.clone(), None),
            None => TxnOp::delete(self.key(key), None),
        });
        Txn::new()
            .when(compare.collect::<Vec<_>>())
            .and_then(writes.collect::<Vec<_>>())
            .or_else(found.collect::<Vec<_>>())
    }

    fn check_size(&self, batch: &Batch) -> Result<(), StoreError> {
        let limit = self.shared.options.batch_keys;
        let (expected, written) = (batch.expectations().len(), batch.writes().len());
        if expected > limit {
            return Err(StoreError::TooLarge { what: format!("expects {expected} keys"), limit });
        }
        if written > limit {
            return Err(StoreError::TooLarge { what: format!("writes {written} keys"), limit });
        }
        let limit = self.shared.options.batch_bytes;
        if batch.size() > limit {
            return Err(StoreError::TooLarge { what: format!("has {} bytes", batch.size()), limit });
        }
        Ok(())
    }

    /// What etcd means that takes less than our options say.
    fn too_large(&self, batch: &Batch, failure: &Failure) -> Option<StoreError> {
        let Failure::Answer(error) = failure else { return None };
        let (keys, bytes) = (batch.expectations().len().max(batch.writes().len()), batch.size());
        let text = message(error);
        if text.contains("too many operations") {
            let what = format!("has {keys} keys, which this etcd refuses (--max-txn-ops)");
            Some(StoreError::TooLarge { what, limit: keys - 1 })
        } else if text.contains("request is too large") || text.contains("larger than max") {
            let what = format!("has {bytes} bytes, which this etcd refuses (--max-request-bytes)");
            Some(StoreError::TooLarge { what, limit: bytes - 1 })
        } else {
            None
        }
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Shared {
    fn client(&self) -> (usize, &Client) {
        let at = self.current.load(Ordering::Relaxed);
        (at, &self.clients[at % self.clients.len()])
    }

    /// Turns to the next endpoint, unless somebody has left this one already.
    fn leave(&self, at: usize) {
        let _ = self.current.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    fn place(&self) -> String {
        self.options.endpoints.join(", ")
    }

    fn random(&self) -> StdRng {
        StdRng::seed_from_u64(self.watches.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }
}

#[async_trait]
impl Backend for Etcd {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let mut attempt = 1;
        loop {
            match self.read_once(prefix).await {
                // A compaction between two pages: what the first ones showed cannot be completed.
                Err(Failure::Answer(error)) if is_compacted(&error) && attempt < READ_ATTEMPTS => {
                    attempt += 1;
                }
                outcome => return outcome.map_err(|failure| self.error(failure)),
            }
        }
    }

    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.check_size(&batch)?;
        let transaction = self.transaction(&batch);
        let response = self
            .attempts(
                |mut kv| {
                    let transaction = transaction.clone();
                    async move { kv.txn(transaction).await }
                },
                Failure::was_not_sent,
            )
            .await
            .map_err(|failure| self.too_large(&batch, &failure).unwrap_or_else(|| self.error(failure)))?;
        match response.succeeded() {
            true => Ok(revision_of(response.header())),
            false => Err(conflict(&batch, &response)),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        let (random, backoff) = (self.shared.random(), Backoff::new(RETRY_FIRST, RETRY_CEILING));
        let mut place = Place {
            etcd: self.clone(),
            prefix: self.key(prefix),
            through: after,
            pending: VecDeque::new(),
            stream: None,
            random,
            backoff,
        };
        let first = timeout(self.shared.options.deadline, place.connect()).await;
        first.map_err(|_late| self.error(Failure::Late))?;
        let changes = stream::unfold(Some(place), |place| async {
            let mut place = place?;
            match place.next().await {
                Ok(event) => Some((Ok(event), Some(place))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(changes.boxed())
    }
}

/// One watcher's place in the order of revisions.
struct Place {
    etcd: Etcd,
    prefix: Vec<u8>,
    /// Everything up to here was taken.
    through: Revision,
    /// Taken, and not yet handed out.
    pending: VecDeque<Event>,
    /// Absent when the connection was lost.
    stream: Option<(usize, WatchStream)>,
    random: StdRng,
    backoff: Backoff,
}

impl Place {
    async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let Some((at, stream)) = &mut self.stream else {
                self.connect().await;
                continue;
            };
            match stream.message().await {
                Ok(Some(response)) if response.compact_revision() > 0 => {
                    return Err(StoreError::Compacted { after: self.through });
                }
                Ok(Some(response)) if !response.canceled() => self.take(&response)?,
                Ok(_) | Err(_) => {
                    let at = *at;
                    self.lose(at).await;
                }
            }
        }
    }

    /// Opens the watch again where it had come to, at whichever endpoint answers first.
    async fn connect(&mut self) {
        while self.stream.is_none() {
            let (at, client) = self.etcd.shared.client();
            let options = WatchOptions::new()
                .with_range(after_all(&self.prefix))
                .with_start_revision(self.through.0.cast_signed() + 1)
                .with_progress_notify();
            let mut watcher = client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
            let opening = watcher.watch(self.prefix.clone(), Some(options));
            match timeout(self.etcd.shared.options.attempt, opening).await {
                Ok(Ok(stream)) => self.stream = Some((at, stream)),
                Ok(Err(_)) | Err(_) => self.lose(at).await,
            }
        }
    }

    async fn lose(&mut self, at: usize) {
        self.stream = None;
        self.etcd.shared.leave(at);
        let pause = self.backoff.next_delay(&mut self.random);
        tracing::debug!(through = %self.through, "lost a watch; opening it again");
        sleep(pause).await;
    }

    fn take(&mut self, response: &WatchResponse) -> Result<(), StoreError> {
        self.backoff.reset();
        let announced = revision_of(response.header());
        if response.events().is_empty() && !response.created() {
            // A sign of life: there is nothing for us up to here.
            self.through = self.through.max(announced);
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = rev(kv.mod_revision());
            self.through = self.through.max(revision);
            let value = match event.event_type() {
                EventType::Put => Some(kv.value().to_vec()),
                EventType::Delete => None,
            };
            self.pending.push_back(Event { revision, key: self.etcd.name(kv.key())?, value });
        }
        // etcd tells the changes of one revision in the order in which they were written, which for a
        // batch is the order of keys.
        Ok(())
    }
}

/// Why a request has no answer we can use.
enum Failure {
    Late,
    Answer(etcd_client::Error),
}

/// Codes of gRPC that say that asking again, or elsewhere, may help.
const TEMPORARY: [i32; 5] = [1, 4, 10, 13, 14];
const UNAVAILABLE: i32 = 14;

impl Failure {
    /// Whether another endpoint may answer where this one did not.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Late => true,
            Self::Answer(etcd_client::Error::GRpcStatus(status)) => {
                TEMPORARY.contains(&(status.code() as i32))
            }
            Self::Answer(error) => {
                matches!(error, etcd_client::Error::TransportError(_) | etcd_client::Error::IoError(_))
            }
        }
    }

    /// Whether the request certainly did not reach a member: there was no connection to send it on.
    fn was_not_sent(&self) -> bool {
        match self {
            Self::Answer(etcd_client::Error::GRpcStatus(status)) => {
                status.code() as i32 == UNAVAILABLE
                    && causes(status).any(|cause| cause.contains("connect error"))
            }
            Self::Late | Self::Answer(_) => false,
        }
    }
}

/// The texts of an error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = String> + 'a {
    let next: fn(&&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> = |error| (*error).source();
    std::iter::successors(Some(error), next).map(ToString::to_string)
}

/// What etcd says went wrong, without the client's decorations.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

impl Cause {
    fn of(error: &etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                let source = status.source().map(wharf_process::errors::chain);
                Self(match source {
                    Some(source) if !source.contains(status.message()) => {
                        format!("{}: {source}", status.message())
                    }
                    Some(source) => source,
                    None => status.message().to_owned(),
                })
            }
            error => Self(error.to_string()),
        }
    }
}

impl From<Failure> for AnyError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Late => "no answer in time".into(),
            Failure::Answer(error) => Cause::of(&error).into(),
        }
    }
}

fn message(error: &etcd_client::Error) -> &str {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message(),
        _ => "",
    }
}

fn is_compacted(error: &etcd_client::Error) -> bool {
    message(error).contains("required revision has been compacted")
}

/// The first expectation that does not hold, by what the failed transaction found.
fn conflict(batch: &Batch, response: &TxnResponse) -> StoreError {
    let found = response.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| rev(kv.mod_revision())),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    });
    let mut broken =
        batch.expectations().iter().zip(found).filter(|((_, expected), found)| expected != found);
    let ((key, expected), found) =
        broken.next().expect("a transaction only fails if what it compares differs, in the same state");
    StoreError::Conflict { key: key.clone(), expected: *expected, found }
}

/// The end of the range of all keys that begin with `prefix`.
fn after_all(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Every key: etcd's word for "no end".
    vec![0]
}

fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    rev(header.map_or(0, ResponseHeader::revision))
}

fn rev(revision: i64) -> Revision {
    Revision(revision.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_its_keys_and_before_all_others() {
        assert_eq!(after_all(b"/wharf/"), b"/wharf0");
        assert_eq!(after_all(b"a\xff\xff"), b"b");
        assert_eq!(after_all(b"\xff"), b"\0");
    }

    #[test]
    fn options_that_make_no_sense_are_refused_with_the_reason() {
        let reason = |options: Options| options.check().unwrap_err().to_string();
        let none: [&str; 0] = [];
        assert!(reason(Options::new(none)).contains("no endpoints"));
        assert!(
            reason(Options::new(["localhost:2379"])).contains("`localhost:2379` does not begin with http")
        );
        let prefix = Options { prefix: "wharf".into(), ..Options::new(["http://localhost:2379"]) };
        assert!(reason(prefix).contains("`wharf` does not end with `/`"));
        let tls = Some(Tls { authority: String::new(), identity: None });
        let mixed = Options { tls, ..Options::new(["http://localhost:2379"]) };
        assert!(reason(mixed).contains("not https://"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let user = Some(("root".to_owned(), "geheim".to_owned()));
        let options = Options { user, ..Options::new(["http://localhost:2379"]) };
        let printed = format!("{options:?}");
        assert!(printed.contains("root") && !printed.contains("geheim"), "{printed}");
    }
}
