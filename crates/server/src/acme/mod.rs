//! Obtains and renews the certificates of routes with `tls: auto`, by ACME (RFC 8555).
//!
//! - Only the leader does. What it obtained is in the store, sealed: every gateway shows it, whoever is gone meanwhile.
//! - A challenge is a record like any other: it reaches every gateway in its table, and the authority is told to look once all live gateways
//!   have acknowledged one that has it.
//! - An order that was cut off leaves nothing behind but its challenge, which the next leader takes back; the host is tried again.
//! - When what is decided is in [`plan`]; how one order goes is in [`order`].

mod client;
mod order;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use instant_acme::{Account, AccountCredentials, ExternalAccountKey};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use wharf_engine::{Ids as _, hosts_to_certify};
use wharf_model::{
    AcmeChallenge, Event, EventId, EventKind, NodeState, Revision, RouteTls, ShownCertificate, Subject,
    TicketKey, Timestamp,
};
use wharf_process::errors::chain;
use wharf_store::{Batch, StoreError};

use self::{
    client::Client,
    order::{Authority, NotIssued, Publisher},
};
pub(crate) use self::{client::own_roots, order::describe_given};
use crate::{
    controllers::Context,
    ids::RandomIds,
    leader::Lead,
    records::{AcmeRecord, CertificateRecord, Key, Method, TicketKeyRecord, encode},
    seal::{CannotOpen, SealKey},
    state::State,
};

/// How many hosts are proven at once.
const AT_ONCE: usize = 4;
/// How long gateways have to take a challenge.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(100);
/// After a store that does not answer.
const RETRY: Duration = Duration::from_secs(5);
/// What changes together is looked at once.
const GATHER: Duration = Duration::from_millis(200);
/// Between looks that nothing brought about.
const IDLE: Duration = Duration::from_secs(600);
/// A key of tickets seals for so long,
const TICKET_KEY_SEALS: Duration = Duration::from_secs(12 * 3600);
/// and opens for as long again.
const TICKET_KEY_LIVES: Duration = Duration::from_secs(24 * 3600);

/// The key of the account with an authority.
pub(crate) fn account_key(directory: &str) -> Key {
    Key::AcmeAccount(hex::encode(ring::digest::digest(&ring::digest::SHA256, directory.as_bytes())))
}

/// A thing as it lies in the store under a key.
pub(crate) fn sealed<T: Serialize>(seal: &SealKey, key: &Key, thing: &T) -> Vec<u8> {
    let mut nonce = [0; 12];
    rand::rng().fill_bytes(&mut nonce);
    let text = serde_json::to_vec(thing).expect("what is sealed has a JSON form");
    seal.seal(&key.to_string(), &text, nonce)
}

/// What lies in the store under a key.
///
/// # Errors
/// If it does not open, or is of a version that this one does not understand.
pub(crate) fn opened<T: for<'a> Deserialize<'a>>(
    seal: &SealKey,
    key: &Key,
    bytes: &[u8],
) -> Result<T, CannotOpen> {
    let text = seal.open(&key.to_string(), bytes)?;
    serde_json::from_slice(&text).map_err(|_| CannotOpen::of(&key.to_string()))
}

/// How the certificate of a host stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// `valid`, `renewing`, `failing`, `waiting`, `expired` or `unused`.
    pub(crate) state: &'static str,
    /// Why it is not simply valid; empty if it is.
    pub(crate) why: String,
    /// When it is obtained or renewed next, if that is known.
    pub(crate) next: Option<Timestamp>,
}

/// How the certificate of a host stands.
pub(crate) fn standing(
    record: Option<&CertificateRecord>,
    authority: Option<&AcmeRecord>,
    is_wanted: bool,
    now: Timestamp,
) -> Standing {
    let issued = record.and_then(|record| record.issued.as_ref());
    let failed = record.and_then(|record| record.failed.as_ref());
    let due = plan::due(record, authority, now);
    let next = match due {
        plan::Due::Now => Some(now),
        plan::Due::At(at) => Some(at),
        plan::Due::Never => None,
    };
    let set_up = "nobody has agreed to the terms of a certificate authority: `wharf certificate acme --agree-tos --email ADDRESS`";
    let why = match (failed, authority.filter(|authority| authority.terms_agreed)) {
        (_, None) => set_up.to_owned(),
        (Some(failed), _) => format!("attempt {} failed: {}", failed.failures, failed.why),
        (None, _) if issued.is_none() => "it is being obtained".to_owned(),
        (None, _) if due == plan::Due::Now => "a new one is being obtained".to_owned(),
        (None, _) => String::new(),
    };
    let state = match issued {
        Some(issued) if issued.not_after <= now => "expired",
        _ if !is_wanted => "unused",
        Some(_) if failed.is_some() => "failing",
        Some(_) if due == plan::Due::Now => "renewing",
        Some(_) => "valid",
        None if failed.is_some() => "failing",
        None => "waiting",
    };
    if !is_wanted {
        return Standing { state, why: "no route needs it".to_owned(), next: None };
    }
    Standing { state, why, next }
}

/// Obtains and renews certificates until `shutdown`, while this server leads.
pub(crate) async fn keep(mut context: Context, shutdown: CancellationToken) {
    let mut concerns = context.state.concerns();
    let mut under_way: FuturesUnordered<BoxFuture<'static, String>> = FuturesUnordered::new();
    let mut hosts = BTreeSet::<String>::new();
    let mut account: SharedAccount = Arc::default();
    let mut leads = None;
    loop {
        concerns.borrow_and_update();
        let lead = *context.lead.borrow_and_update();
        if lead != leads {
            // What was begun under another term cannot be written any more.
            under_way.clear();
            hosts.clear();
            account = Arc::default();
            leads = lead;
        }
        let mut pause = IDLE;
        if let Some(lead) = lead {
            let now = context.now();
            match tidy(&context, lead, &hosts, now).await {
                Ok(()) => {}
                Err(error) if error.is_conflict() => context.state.see_what_was_faster(&error).await,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "certificates cannot be looked after");
                    pause = RETRY;
                }
            }
            let (plan, authority) = {
                let inner = context.state.read();
                let wanted = hosts_to_certify(&inner.world).into_keys().collect();
                let authority = inner.acme.clone();
                (plan::plan(&wanted, &inner.certificates, authority.as_ref(), now), authority)
            };
            if let Some(at) = plan.wake_at {
                pause = pause.min(at.since(now));
            }
            let new: Vec<_> = plan.obtain.into_iter().filter(|host| !hosts.contains(host)).collect();
            for (host, authority) in new.into_iter().zip(std::iter::repeat(authority)) {
                let (Some(authority), true) = (authority, hosts.len() < AT_ONCE) else { break };
                hosts.insert(host.clone());
                let attempt = Attempt {
                    context: context.clone(),
                    lead,
                    host,
                    authority,
                    account: Arc::clone(&account),
                };
                under_way.push(attempt.run().boxed());
            }
        }
        tokio::select! {
            // Cancel-safe, all of them: flags, counters and a timer. Orders go on in `under_way`.
            () = shutdown.cancelled() => return,
            changed = concerns.changed() => if changed.is_err() { return },
            changed = context.lead.changed() => if changed.is_err() { return },
            Some(host) = under_way.next(), if !under_way.is_empty() => drop(hosts.remove(&host)),
            () = context.clock.sleep(pause.max(Duration::from_millis(100))) => {}
        }
        let clock = Arc::clone(&context.clock);
        let mut gathered = std::pin::pin!(clock.sleep(GATHER));
        loop {
            tokio::select! {
                // Cancel-safe: likewise.
                () = shutdown.cancelled() => return,
                () = &mut gathered => break,
                Some(host) = under_way.next(), if !under_way.is_empty() => drop(hosts.remove(&host)),
            }
        }
    }
}

/// Takes back challenges of orders that are no longer under way, forgets what nobody needs, and renews keys of tickets.
async fn tidy(
    context: &Context,
    lead: Lead,
    under_way: &BTreeSet<String>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let batch = {
        let inner = context.state.read();
        let mut batch = lead.batch();
        let stale = inner.world.obtained.challenges.keys().filter(|host| !under_way.contains(*host));
        for host in stale.take(100) {
            batch = batch.delete(Key::Challenge(host.clone()).to_string());
        }
        let wanted = hosts_to_certify(&inner.world).into_keys().collect();
        let plan = plan::plan(&wanted, &inner.certificates, inner.acme.as_ref(), now);
        for host in plan.forget.into_iter().filter(|host| !under_way.contains(host)).take(100) {
            let key = Key::Certificate(host.clone());
            batch = inner.expecting(batch, &key).delete(key.to_string());
            batch = batch.delete(Key::CertificateKey(host).to_string());
        }
        let ends_tls = inner.world.services().any(|service| {
            let revision = inner.world.revision_of(&service.key, service.generation);
            let routes = revision.iter().flat_map(|revision| &revision.spec.policy.routes);
            routes.into_iter().any(|route| matches!(route.tls, RouteTls::Auto | RouteTls::Certificate(_)))
        });
        if let Some(keys) = ends_tls.then(|| rotate(&inner.ticket_keys, now)).flatten() {
            let key = Key::TicketKeys;
            let bytes = sealed(context.state.seal(), &key, &keys);
            batch = inner.expecting(batch, &key).put(key.to_string(), bytes);
        }
        batch
    };
    if batch.writes().is_empty() {
        return Ok(());
    }
    context.state.commit(batch).await.map(drop)
}

/// The keys of tickets as they should be, the newest first, if that is not what there is.
fn rotate(keys: &[TicketKeyRecord], now: Timestamp) -> Option<Vec<TicketKeyRecord>> {
    let is_fresh = |key: &&TicketKeyRecord| now.since(key.made_at) < TICKET_KEY_SEALS;
    if keys.first().filter(is_fresh).is_some() {
        return None;
    }
    let mut key = [0; 32];
    rand::rng().fill_bytes(&mut key);
    let new = TicketKeyRecord { made_at: now, key: TicketKey(key) };
    let kept = keys.iter().filter(|key| now.since(key.made_at) < TICKET_KEY_LIVES).cloned();
    Some(std::iter::once(new).chain(kept).collect())
}

/// The account that attempts share once one has made it, with the directory it is for.
type SharedAccount = Arc<tokio::sync::Mutex<Option<(String, Arc<Authority>)>>>;

/// One attempt to obtain a certificate for a host.
struct Attempt {
    context: Context,
    lead: Lead,
    host: String,
    authority: AcmeRecord,
    /// The account that other attempts use as well, with the directory it is for.
    account: SharedAccount,
}

impl Attempt {
    /// Answers the host, once the outcome is stored.
    async fn run(self) -> String {
        let record = self.context.state.read().certificates.get(&self.host).cloned();
        let method = plan::method(record.as_ref(), &self.authority);
        tracing::info!(host = self.host, directory = self.authority.directory, %method, "certificate ordered");
        let outcome = self.obtain(method).await;
        let now = self.context.now();
        let outcome = outcome.and_then(|shown| {
            let source = (&*self.authority.directory, method);
            let issued = order::describe(&shown, &self.host, source, now).map_err(NotIssued::because)?;
            Ok((shown, issued))
        });
        if let Err(error) = &outcome {
            tracing::warn!(host = self.host, why = error.why, "no certificate");
            if error.account_is_gone {
                self.forget_account().await;
            }
        }
        loop {
            let batch = self.outcome(&outcome, method, now);
            match self.context.state.commit(batch).await {
                Ok(_) => break,
                // Somebody asked for a renewal meanwhile; or this server leads no more, and its attempts are dropped.
                Err(error) if error.is_conflict() => self.context.state.see_what_was_faster(&error).await,
                Err(error) => {
                    tracing::warn!(host = self.host, error = %chain(&error), "what came of an order was not stored");
                    self.context.clock.sleep(RETRY).await;
                }
            }
            if *self.context.lead.borrow() != Some(self.lead) {
                break;
            }
        }
        self.host
    }

    /// What is written of an outcome.
    fn outcome(
        &self,
        outcome: &Result<(ShownCertificate, crate::records::IssuedCertificate), NotIssued>,
        method: Method,
        now: Timestamp,
    ) -> Batch {
        let inner = self.context.state.read();
        let known = inner.certificates.get(&self.host);
        let key = Key::Certificate(self.host.clone());
        let mut batch = inner.expecting(self.lead.batch(), &key);
        batch = batch.delete(Key::Challenge(self.host.clone()).to_string());
        let (record, message) = match outcome {
            Ok((shown, issued)) => {
                let content = Key::CertificateKey(self.host.clone());
                let bytes = sealed(self.context.state.seal(), &content, shown);
                batch = batch.put(content.to_string(), bytes);
                let record =
                    CertificateRecord { issued: Some(issued.clone()), ..CertificateRecord::new(&self.host) };
                (record, format!("the certificate of {} was obtained from {}", self.host, issued.issuer))
            }
            Err(error) => {
                let source = (&*self.authority.directory, method);
                let why = (error.why.clone(), error.told_to_wait);
                let record = plan::failed(known, &self.host, source, why, now);
                (record, format!("no certificate for {}: {}", self.host, error.why))
            }
        };
        batch = batch.put(key.to_string(), encode(&key, &record));
        let app = hosts_to_certify(&inner.world).remove(&self.host).and_then(|mut apps| apps.pop_first());
        let event = Event {
            id: RandomIds.id(now),
            at: now,
            kind: if app.is_some() { EventKind::App } else { EventKind::Server },
            subject: Subject { app, ..Subject::default() },
            message,
            by: None,
        };
        put_event(batch, &event)
    }

    async fn obtain(&self, method: Method) -> Result<ShownCertificate, NotIssued> {
        let authority = self.authority().await?;
        let publisher = InTables { context: &self.context, lead: self.lead };
        authority.certify(&self.host, method, &publisher).await
    }

    /// The account with the authority; opened at the first attempt.
    async fn authority(&self) -> Result<Arc<Authority>, NotIssued> {
        let mut held = self.account.lock().await;
        if let Some((directory, account)) = &*held
            && *directory == self.authority.directory
        {
            return Ok(Arc::clone(account));
        }
        let (client, told_to_wait) = Client::new(&self.authority.roots).await.map_err(NotIssued::because)?;
        let builder = (Account::builder_with_http(Box::new(client)), told_to_wait);
        let key = account_key(&self.authority.directory);
        let seal = self.context.state.seal();
        let stored = self.context.state.read().acme_accounts.get(&key).cloned();
        let known: Option<AccountCredentials> = match stored {
            Some(bytes) => {
                Some(opened(seal, &key, &bytes).map_err(|error| NotIssued::because(error.to_string()))?)
            }
            None => None,
        };
        let account = match known {
            Some(credentials) => Authority::known(credentials, builder).await?,
            None => {
                let external = self.external()?;
                let (account, credentials) = Authority::register(&self.authority, external, builder).await?;
                let bytes = sealed(seal, &key, &credentials);
                let batch = self.lead.batch().put(key.to_string(), bytes);
                let stored = self.context.state.commit(batch).await;
                stored.map_err(|error| {
                    NotIssued::because(format!("the account is not kept: {}", chain(&error)))
                })?;
                tracing::info!(
                    directory = self.authority.directory,
                    "account with a certificate authority opened"
                );
                account
            }
        };
        let account = Arc::new(account);
        *held = Some((self.authority.directory.clone(), Arc::clone(&account)));
        Ok(account)
    }

    fn external(&self) -> Result<Option<ExternalAccountKey>, NotIssued> {
        let Some((id, key)) = &self.authority.external else { return Ok(None) };
        let cannot = |what: &str| NotIssued::because(format!("the key of the external account {what}"));
        let bytes = hex::decode(key).map_err(|_| cannot("is damaged"))?;
        let key: String =
            opened(self.context.state.seal(), &Key::Acme, &bytes).map_err(|_| cannot("does not open"))?;
        let key = STANDARD_NO_PAD.decode(key).map_err(|_| cannot("is damaged"))?;
        Ok(Some(ExternalAccountKey::new(id.clone(), &key)))
    }

    /// The authority does not know it any more: the next attempt opens another.
    async fn forget_account(&self) {
        *self.account.lock().await = None;
        let batch = self.lead.batch().delete(account_key(&self.authority.directory).to_string());
        if let Err(error) = self.context.state.commit(batch).await {
            tracing::debug!(error = %chain(&error), "account not forgotten");
        }
    }
}

/// Adds an event to a batch.
fn put_event(batch: Batch, event: &Event) -> Batch {
    let key = Key::Event(EventId::clone(&event.id));
    batch.put(key.to_string(), encode(&key, event))
}

/// Publishes challenges in the tables of gateways.
struct InTables<'a> {
    context: &'a Context,
    lead: Lead,
}

#[async_trait]
impl Publisher for InTables<'_> {
    async fn publish(&self, host: &str, challenge: AcmeChallenge) -> Result<(), String> {
        let key = Key::Challenge(host.to_owned());
        let bytes = sealed(self.context.state.seal(), &key, &challenge);
        let batch = self.lead.batch().put(key.to_string(), bytes);
        let stored = self.context.state.commit(batch).await;
        let revision = stored.map_err(|error| format!("the challenge is not kept: {}", chain(&error)))?;
        let revision = Revision(revision.0);
        let until = self.context.clock.monotonic() + PATIENCE;
        loop {
            let behind = lagging(&self.context.state, revision)?;
            let Some((name, why)) = behind.first_key_value() else { return Ok(()) };
            if self.context.clock.monotonic() >= until {
                return Err(format!(
                    "{} of the gateways have not taken the challenge within {} s; {name}: {why}",
                    behind.len(),
                    PATIENCE.as_secs()
                ));
            }
            self.context.clock.sleep(LOOK).await;
        }
    }

    async fn withdraw(&self, host: &str) {
        let batch = self.lead.batch().delete(Key::Challenge(host.to_owned()).to_string());
        if let Err(error) = self.context.state.commit(batch).await {
            // It is taken back with the next look.
            tracing::debug!(host, error = %chain(&error), "challenge not taken back");
        }
    }
}

/// The live gateways that do not serve what is true at a revision, by name, and why.
fn lagging(state: &State, revision: Revision) -> Result<BTreeMap<String, String>, String> {
    let inner = state.read();
    let mut gateways = inner
        .world
        .nodes()
        .filter(|node| {
            node.record.roles.gateway && matches!(node.state(), NodeState::Ready | NodeState::EngineDown)
        })
        .peekable();
    if gateways.peek().is_none() {
        return Err(
            "no node with the gateway role is ready to answer the authority: `wharf node ls`".to_owned()
        );
    }
    let behind = gateways.filter_map(|node| {
        let why = state.serving(node.record.id).unacknowledged(inner.world.epoch, revision)?;
        Some((node.record.name.to_string(), why.to_string()))
    });
    Ok(behind.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(made_at: u64) -> TicketKeyRecord {
        TicketKeyRecord { made_at: Timestamp(made_at), key: TicketKey([1; 32]) }
    }
    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_key_of_tickets_seals_for_half_a_day_and_opens_for_a_day() {
        let first = rotate(&[], Timestamp(0)).unwrap();
        assert_eq!(first.len(), 1);
        assert!(rotate(&first, Timestamp(11 * HOUR)).is_none());
        let second = rotate(&[key(0)], Timestamp(12 * HOUR)).unwrap();
        let ages: Vec<_> = second.iter().map(|key| key.made_at.0 / HOUR).collect();
        assert_eq!(ages, [12, 0], "the newest first");
        let third = rotate(&second, Timestamp(24 * HOUR)).unwrap();
        assert_eq!(third.iter().map(|key| key.made_at.0 / HOUR).collect::<Vec<_>>(), [24, 12]);
    }

    #[test]
    fn what_is_sealed_opens_under_its_key_only() {
        let seal = SealKey::new([3; 32]);
        let key = Key::CertificateKey("a.example".into());
        let shown =
            ShownCertificate { hosts: vec!["a.example".into()], chain: "chain".into(), key: "SECRET".into() };
        let bytes = sealed(&seal, &key, &shown);
        assert!(!bytes.windows(6).any(|window| window == b"SECRET"));
        assert_eq!(opened::<ShownCertificate>(&seal, &key, &bytes).unwrap(), shown);
        assert!(opened::<ShownCertificate>(&seal, &Key::CertificateKey("b.example".into()), &bytes).is_err());
    }

    #[test]
    fn people_are_told_why_there_is_no_certificate() {
        let nobody = standing(None, None, true, Timestamp(0));
        assert_eq!((nobody.state, nobody.next), ("waiting", None));
        assert!(nobody.why.contains("wharf certificate acme --agree-tos"), "{nobody:?}");
        let authority = AcmeRecord { terms_agreed: true, ..AcmeRecord::new("https://ca") };
        let source = ("https://ca", Method::Http01);
        let record = plan::failed(None, "a", source, ("port 80 is closed".into(), None), Timestamp(5));
        let failing = standing(Some(&record), Some(&authority), true, Timestamp(6));
        assert_eq!(failing.state, "failing");
        assert_eq!(failing.why, "attempt 1 failed: port 80 is closed");
        assert_eq!(failing.next, Some(Timestamp(60_005)));
        let unused = standing(Some(&record), Some(&authority), false, Timestamp(6));
        assert_eq!((unused.state, unused.why.as_str()), ("unused", "no route needs it"));
    }
}
