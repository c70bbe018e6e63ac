//! Certificates that gateways show, and who issues them: seen, asked for and set.

use std::collections::{BTreeMap, BTreeSet};

use axum::{Extension, extract::State};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use wharf_api::{transport::Peer, v1};
use wharf_engine::{hosts_to_certify, service_routes};
use wharf_model::{AppKey, EventKind, RouteTls, Subject, Timestamp};
use wharf_store::Batch;

use super::{
    Shared, closest,
    extract::{Json, Path},
    failure::{Answer, Failure},
    require_user,
};
use crate::{
    acme,
    records::{AcmeRecord, CertificateRecord, Key, Method, encode},
    state::Inner,
};

/// The authority that is asked if nobody names another.
const USUAL_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Every certificate that gateways show or wait for.
#[utoipa::path(get, path = "/v1/certificates", responses((status = 200, body = Vec<v1::Certificate>)))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<Vec<v1::Certificate>>> {
    require_user(&peer)?;
    Ok(Json(all(&shared.state.read(), shared.now())))
}

/// The certificate for a host.
#[utoipa::path(get, path = "/v1/certificates/{host}", params(("host" = String, Path)),
    responses((status = 200, body = v1::Certificate), (status = 404, body = v1::Problem)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(host): Path<String>,
) -> Answer<Json<v1::Certificate>> {
    require_user(&peer)?;
    find(&shared.state.read(), &host, shared.now()).map(Json)
}

/// Has a new certificate obtained for a host, whenever it was tried last.
#[utoipa::path(post, path = "/v1/certificates/{host}/renew", params(("host" = String, Path)),
    responses((status = 200, body = v1::Certificate), (status = 404, body = v1::Problem), (status = 409, body = v1::Problem)))]
pub(super) async fn renew(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path(host): Path<String>,
) -> Answer<Json<v1::Certificate>> {
    let user = require_user(&peer)?;
    let host = host.to_ascii_lowercase();
    let batch = {
        let inner = shared.state.read();
        let found = find(&inner, &host, shared.now())?;
        if found.source != "acme" {
            return Err(Failure::new(
                v1::Code::Conflict,
                format!("the certificate of {host} is given by a secret"),
            )
            .hint("give the secret a new content and deploy the app: `wharf up`"));
        }
        if found.apps.is_empty() {
            return Err(Failure::new(v1::Code::Conflict, format!("no route needs a certificate for {host}"))
                .hint("what no route needs is not renewed"));
        }
        if inner.acme.as_ref().is_none_or(|authority| !authority.terms_agreed) {
            return Err(Failure::new(v1::Code::Conflict, found.why));
        }
        let known = inner.certificates.get(&host).cloned().unwrap_or_else(|| CertificateRecord::new(&host));
        let record = CertificateRecord { asked: Some(shared.now()), ..known };
        let key = Key::Certificate(host.clone());
        let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &record));
        let message = format!("a new certificate for {host} was asked for");
        shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(user))
    };
    shared.state.commit(batch).await?;
    find(&shared.state.read(), &host, shared.now()).map(Json)
}

/// Who issues certificates.
#[utoipa::path(get, path = "/v1/acme", responses((status = 200, body = v1::AcmeSettings)))]
pub(super) async fn settings(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
) -> Answer<Json<v1::AcmeSettings>> {
    require_user(&peer)?;
    Ok(Json(view(&shared.state.read())))
}

/// Changes who issues certificates.
#[utoipa::path(put, path = "/v1/acme", request_body = v1::AcmeChange,
    responses((status = 200, body = v1::AcmeSettings), (status = 409, body = v1::Problem)))]
pub(super) async fn change(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Json(wish): Json<v1::AcmeChange>,
) -> Answer<Json<v1::AcmeSettings>> {
    let user = require_user(&peer)?;
    let batch = {
        let inner = shared.state.read();
        let before = inner.acme.clone().unwrap_or_else(|| AcmeRecord::new(USUAL_DIRECTORY));
        let mut after = changed(&before, &wish)?;
        if let Some(key) = &wish.external_key {
            let Some((_, sealed)) = &mut after.external else {
                return Err(Failure::invalid(
                    "the key of an external account needs the account's identifier",
                )
                .hint("give both: `--eab-id … --eab-key-file …`"));
            };
            *sealed = hex::encode(acme::sealed(shared.state.seal(), &Key::Acme, &plain_key(key)?));
        }
        if after.external.as_ref().is_some_and(|(_, key)| key.is_empty()) {
            return Err(Failure::invalid("an external account needs its key")
                .hint("give both: `--eab-id … --eab-key-file …`"));
        }
        let key = Key::Acme;
        let batch = inner.expecting(Batch::new(), &key).put(key.to_string(), encode(&key, &after));
        let terms =
            if after.terms_agreed { "its terms are agreed to" } else { "nobody has agreed to its terms" };
        let message = format!("certificates are obtained from {}; {terms}", after.directory);
        shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(user))
    };
    shared.state.commit(batch).await?;
    Ok(Json(view(&shared.state.read())))
}

/// The settings as they are asked for.
fn changed(before: &AcmeRecord, wish: &v1::AcmeChange) -> Answer<AcmeRecord> {
    let mut after = before.clone();
    if let Some(directory) = &wish.directory {
        let is_https = directory.parse::<http::Uri>().is_ok_and(|uri| {
            uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !is_https {
            return Err(Failure::invalid(format!("`{directory}` is no address of an authority's directory"))
                .hint(format!("it begins with https://, such as {USUAL_DIRECTORY}")));
        }
        if after.directory != *directory {
            // Each authority has terms, and accounts, of its own.
            (after.directory, after.terms_agreed, after.external) = (directory.clone(), false, None);
        }
    }
    if let Some(email) = &wish.email {
        let is_address =
            email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.'));
        if !email.is_empty() && (!is_address || email.contains(char::is_whitespace)) {
            return Err(Failure::invalid(format!("`{email}` is no address of mail"))
                .hint("authorities write to it when a certificate is about to expire"));
        }
        after.email = Some(email.clone()).filter(|email| !email.is_empty());
    }
    if let Some(agreed) = wish.terms_agreed {
        after.terms_agreed = agreed;
    }
    if let Some(roots) = &wish.roots {
        let found = acme::own_roots(roots).map_err(Failure::invalid)?;
        if found.is_empty() && !roots.trim().is_empty() {
            return Err(Failure::invalid("there is no certificate in the root that was given")
                .hint("it begins with -----BEGIN CERTIFICATE-----"));
        }
        after.roots.clone_from(roots);
    }
    if let Some(challenges) = &wish.challenges {
        let methods: Result<Vec<Method>, String> = challenges.iter().map(|text| text.parse()).collect();
        after.methods = methods.map_err(Failure::invalid)?;
        if after.methods.is_empty() {
            return Err(
                Failure::invalid("hosts have to be proven somehow").hint("name http-01, tls-alpn-01 or both")
            );
        }
    }
    if let Some(id) = &wish.external_account {
        let known = after.external.take().filter(|(known, _)| known == id).map(|(_, key)| key);
        after.external = Some((id.clone(), known.unwrap_or_default())).filter(|(id, _)| !id.is_empty());
    }
    Ok(after)
}

/// The key of an external account without padding, in the usual alphabet.
fn plain_key(text: &str) -> Answer<String> {
    let text = text.trim().trim_end_matches('=');
    let bytes = URL_SAFE_NO_PAD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text));
    let bytes = bytes.map_err(|_| Failure::invalid("the key of the external account is not base64"))?;
    Ok(STANDARD_NO_PAD.encode(bytes))
}

fn view(inner: &Inner) -> v1::AcmeSettings {
    let usual = || AcmeRecord::new(USUAL_DIRECTORY);
    let record = inner.acme.clone().unwrap_or_else(usual);
    v1::AcmeSettings {
        account: inner.acme_accounts.contains_key(&acme::account_key(&record.directory)),
        roots: acme::own_roots(&record.roots).map_or(0, |roots| roots.len()),
        directory: record.directory,
        email: record.email,
        terms_agreed: record.terms_agreed,
        challenges: record.methods.iter().map(ToString::to_string).collect(),
        external_account: record.external.map(|(id, _)| id),
    }
}

fn find(inner: &Inner, host: &str, now: Timestamp) -> Answer<v1::Certificate> {
    let host = host.to_ascii_lowercase();
    let all = all(inner, now);
    let names: Vec<String> = all.iter().map(|certificate| certificate.host.clone()).collect();
    all.into_iter().find(|certificate| certificate.host == host).ok_or_else(|| {
        let failure = Failure::not_found(format!("there is no certificate for {host}, and none is wanted"));
        match closest(&host, &names) {
            Some(other) => failure.hint(format!("did you mean `{other}`?")),
            None => {
                failure.hint("a route with `tls` and this `host` makes it wanted: `wharf certificate ls`")
            }
        }
    })
}

/// By host; those that are obtained before those that are given.
fn all(inner: &Inner, now: Timestamp) -> Vec<v1::Certificate> {
    let wanted = hosts_to_certify(&inner.world);
    let hosts: BTreeSet<&String> = wanted.keys().chain(inner.certificates.keys()).collect();
    let nobody = BTreeSet::new();
    let obtained =
        hosts.into_iter().map(|host| obtained(inner, host, wanted.get(host).unwrap_or(&nobody), now));
    obtained.chain(given(inner, now)).collect()
}

fn obtained(inner: &Inner, host: &str, apps: &BTreeSet<AppKey>, now: Timestamp) -> v1::Certificate {
    let record = inner.certificates.get(host);
    let standing = acme::standing(record, inner.acme.as_ref(), !apps.is_empty(), now);
    let issued = record.and_then(|record| record.issued.as_ref());
    let failed = record.and_then(|record| record.failed.as_ref());
    v1::Certificate {
        host: host.to_owned(),
        source: "acme".to_owned(),
        state: standing.state.to_owned(),
        why: standing.why,
        apps: apps.iter().map(ToString::to_string).collect(),
        issuer: issued.map(|issued| issued.issuer.clone()),
        serial: issued.map(|issued| issued.serial.clone()),
        not_before: issued.map(|issued| issued.not_before.0),
        not_after: issued.map(|issued| issued.not_after.0),
        obtained_at: issued.map(|issued| issued.at.0),
        directory: issued.map(|issued| issued.directory.clone()),
        challenge: issued.map(|issued| issued.method.to_string()),
        next_attempt: standing.next.map(|at| at.0),
        failures: failed.map_or(0, |failed| failed.failures),
        failed_at: failed.map(|failed| failed.at.0),
    }
}

/// Certificates that files give.
fn given(inner: &Inner, now: Timestamp) -> Vec<v1::Certificate> {
    let mut wanted = BTreeMap::<String, BTreeSet<AppKey>>::new();
    for route in service_routes(&inner.world) {
        if let RouteTls::Certificate(_) = &route.spec.tls {
            let any = ["*".to_owned()];
            let hosts = if route.spec.hosts.is_empty() { &any[..] } else { &route.spec.hosts };
            for host in hosts {
                wanted.entry(host.clone()).or_default().insert(route.id.service.app.clone());
            }
        }
    }
    let shown = wharf_engine::given_certificates(&inner.world);
    let certificate = |(host, apps): (String, BTreeSet<AppKey>)| {
        let of_host = shown.iter().find(|shown| match host.as_str() {
            "*" => shown.hosts.is_empty(),
            host => shown.hosts.iter().any(|other| other == host),
        });
        let described = of_host.map(|shown| acme::describe_given(&shown.chain));
        let (state, why) = match &described {
            None => ("waiting", "its secret is not there, or has no chain and key in PEM".to_owned()),
            Some(Err(why)) => ("failing", why.clone()),
            Some(Ok(issued)) if issued.not_after <= now => {
                ("expired", "give its secret a new content and deploy the app".to_owned())
            }
            Some(Ok(_)) => ("valid", String::new()),
        };
        let issued = described.and_then(Result::ok);
        v1::Certificate {
            host,
            source: "secret".to_owned(),
            state: state.to_owned(),
            why,
            apps: apps.iter().map(ToString::to_string).collect(),
            issuer: issued.as_ref().map(|issued| issued.issuer.clone()),
            serial: issued.as_ref().map(|issued| issued.serial.clone()),
            not_before: issued.as_ref().map(|issued| issued.not_before.0),
            not_after: issued.as_ref().map(|issued| issued.not_after.0),
            obtained_at: None,
            directory: None,
            challenge: None,
            next_attempt: None,
            failures: 0,
            failed_at: None,
        }
    };
    wanted.into_iter().map(certificate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before() -> AcmeRecord {
        AcmeRecord { terms_agreed: true, ..AcmeRecord::new(USUAL_DIRECTORY) }
    }

    #[test]
    fn another_authority_has_terms_of_its_own_to_agree_to() {
        let directory = Some("https://other.example/dir".to_owned());
        let after =
            changed(&before(), &v1::AcmeChange { directory: directory.clone(), ..Default::default() })
                .unwrap();
        assert!(!after.terms_agreed);
        let wish = v1::AcmeChange { directory, terms_agreed: Some(true), ..Default::default() };
        assert!(changed(&before(), &wish).unwrap().terms_agreed);
        let same = v1::AcmeChange { directory: Some(USUAL_DIRECTORY.into()), ..Default::default() };
        assert!(changed(&before(), &same).unwrap().terms_agreed, "it is the same authority");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        let refused = |wish: v1::AcmeChange| changed(&before(), &wish).unwrap_err().0.message;
        let directory = |text: &str| v1::AcmeChange { directory: Some(text.into()), ..Default::default() };
        assert!(
            refused(directory("http://ca.example/dir")).contains("no address of an authority's directory")
        );
        assert!(refused(directory("ca.example")).contains("no address"));
        let email = v1::AcmeChange { email: Some("me".into()), ..Default::default() };
        assert!(refused(email).contains("no address of mail"));
        let challenges = v1::AcmeChange { challenges: Some(vec!["dns-01".into()]), ..Default::default() };
        assert!(refused(challenges).contains("`dns-01` is not a way to prove a host"));
        let roots = v1::AcmeChange { roots: Some("nonsense".into()), ..Default::default() };
        assert!(refused(roots).contains("no certificate in the root"));
    }

    #[test]
    fn the_key_of_an_external_account_may_be_in_either_alphabet() {
        assert_eq!(plain_key("-_8=").unwrap(), plain_key("+/8").unwrap());
        assert!(plain_key("?").is_err());
    }
}
