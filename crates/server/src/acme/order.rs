//! One order: asks an authority for a host's certificate, and proves that the host is ours.
//!
//! - The private key is made here and never leaves the cluster.
//! - The authority is told to look only after whoever publishes the challenge has said that every gateway answers it.
//! - Whatever happens, the challenge is taken back, and a failure says what was attempted, what the authority said of it and what to look at.

use std::time::Duration;

use async_trait::async_trait;
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Error,
    ExternalAccountKey, Identifier, KeyAuthorization, NewAccount, NewOrder, Order, OrderStatus, Problem,
    RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use wharf_model::{AcmeChallenge, ShownCertificate, Timestamp};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, time::ASN1Time};

use super::client::ToldToWait;
use crate::records::{AcmeRecord, IssuedCertificate, Method};

/// How long an authority may take to look, and to issue.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes challenges known to whoever an authority may ask.
#[async_trait]
pub(crate) trait Publisher: Send + Sync {
    /// Returns once every live gateway answers this challenge.
    ///
    /// # Errors
    /// Who does not, and why, for people.
    async fn publish(&self, host: &str, challenge: AcmeChallenge) -> Result<(), String>;
    /// Takes a host's challenge back.
    async fn withdraw(&self, host: &str);
}

/// Why there is no certificate, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotIssued {
    pub(crate) why: String,
    /// The authority said for how long there is no point in asking again.
    pub(crate) told_to_wait: Option<Duration>,
    /// The account is of no use any more.
    pub(crate) account_is_gone: bool,
}

impl NotIssued {
    pub(crate) fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), told_to_wait: None, account_is_gone: false }
    }

    /// What an authority answered to an attempt to do something.
    fn of(doing: &str, error: &Error, told_to_wait: &ToldToWait) -> Self {
        let told = told_to_wait.lock().take();
        let Error::Api(problem) = error else { return Self::because(format!("{doing}: {error}")) };
        let kind = kind(problem);
        let told_to_wait = match kind {
            // Without a time an hour is the shortest that public authorities count by.
            "rateLimited" => Some(told.unwrap_or(Duration::from_secs(3600))),
            _ => told,
        };
        let account_is_gone = kind == "accountDoesNotExist";
        Self { why: format!("{doing}: {}", said(problem)), told_to_wait, account_is_gone }
    }
}

fn kind(problem: &Problem) -> &str {
    problem.r#type.as_deref().unwrap_or_default().trim_start_matches("urn:ietf:params:acme:error:")
}

/// What an authority said, and what to do about it if that is known.
fn said(problem: &Problem) -> String {
    let kind = kind(problem);
    let mut text = problem.detail.clone().unwrap_or_else(|| "it gives no reason".to_owned());
    for part in &problem.subproblems {
        text.push_str(&format!("; {}", part.detail.as_deref().unwrap_or_default()));
    }
    let hint = match kind {
        "rateLimited" => "; it is tried again when the authority allows it",
        "caa" => "; the domain's CAA records must allow this authority",
        "dns" => "; the host's name must lead to a node with the gateway role in public DNS",
        "rejectedIdentifier" => "; this authority issues no certificates for this name",
        "externalAccountRequired" => {
            "; this authority wants an account of its own: `wharf certificate acme --eab-id … --eab-key-file …`"
        }
        "userActionRequired" => "; somebody has to visit the authority's site and agree again",
        _ => "",
    };
    text.push_str(hint);
    if kind.is_empty() { text } else { format!("{text} ({kind})") }
}

/// An account with an authority.
pub(crate) struct Authority {
    account: Account,
    told_to_wait: ToldToWait,
}

impl Authority {
    /// The account that was made before.
    pub(crate) async fn known(
        credentials: AccountCredentials,
        (builder, told_to_wait): (AccountBuilder, ToldToWait),
    ) -> Result<Self, NotIssued> {
        let account = builder.from_credentials(credentials).await;
        let account =
            account.map_err(|error| NotIssued::of("the authority does not answer", &error, &told_to_wait))?;
        Ok(Self { account, told_to_wait })
    }

    /// A new account, and what it is used with later.
    pub(crate) async fn register(
        record: &AcmeRecord,
        external: Option<ExternalAccountKey>,
        (builder, told_to_wait): (AccountBuilder, ToldToWait),
    ) -> Result<(Self, AccountCredentials), NotIssued> {
        let contact = record.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<&str> = contact.as_deref().into_iter().collect();
        let wish = NewAccount {
            contact: &contact,
            terms_of_service_agreed: record.terms_agreed,
            only_return_existing: false,
        };
        let made = builder.create(&wish, record.directory.clone(), external.as_ref()).await;
        let (account, credentials) = made.map_err(|error| {
            NotIssued::of("no account was opened with the authority", &error, &told_to_wait)
        })?;
        Ok((Self { account, told_to_wait }, credentials))
    }

    /// Obtains a certificate for a host, proving it in this way.
    pub(crate) async fn certify(
        &self,
        host: &str,
        method: Method,
        publisher: &dyn Publisher,
    ) -> Result<ShownCertificate, NotIssued> {
        let identifiers = [Identifier::Dns(host.to_owned())];
        let mut order = self
            .account
            .new_order(&NewOrder::new(&identifiers))
            .await
            .map_err(|error| self.failed("the authority does not take the order", &error))?;
        let proven = self.prove(&mut order, host, method, publisher).await;
        publisher.withdraw(host).await;
        proven?;
        self.collect(&mut order, host).await
    }

    fn failed(&self, doing: &str, error: &Error) -> NotIssued {
        NotIssued::of(doing, error, &self.told_to_wait)
    }

    async fn prove(
        &self,
        order: &mut Order,
        host: &str,
        method: Method,
        publisher: &dyn Publisher,
    ) -> Result<(), NotIssued> {
        let kind = match method {
            Method::Http01 => ChallengeType::Http01,
            Method::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization
                .map_err(|error| self.failed("the authority does not say what it wants to see", &error))?;
            match authorization.status {
                // Proven lately: authorities remember.
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                _ => return Err(NotIssued::because("the authority offers nothing that could be proven")),
            }
            let Some(mut challenge) = authorization.challenge(kind.clone()) else {
                let why = format!(
                    "the authority does not offer to prove a host by {method}; choose another way: \
                                   `wharf certificate acme --challenge …`"
                );
                return Err(NotIssued::because(why));
            };
            let answer = answer(host, method, &challenge.token, &challenge.key_authorization())
                .map_err(|error| NotIssued::because(format!("the challenge cannot be answered: {error}")))?;
            publisher.publish(host, answer).await.map_err(NotIssued::because)?;
            challenge
                .set_ready()
                .await
                .map_err(|error| self.failed("the authority does not come to look", &error))?;
        }
        let patience =
            RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(PATIENCE);
        let looked = order.poll_ready(&patience).await;
        match looked {
            Ok(OrderStatus::Ready | OrderStatus::Valid) => Ok(()),
            Ok(_) | Err(Error::Api(_)) => Err(self.why_not(order, host, method, looked).await),
            Err(error) => Err(self.failed("the authority did not come to look in time", &error)),
        }
    }

    /// What the authority found where it looked.
    async fn why_not(
        &self,
        order: &mut Order,
        host: &str,
        method: Method,
        looked: Result<OrderStatus, Error>,
    ) -> NotIssued {
        let port = method.port();
        let doing = format!("{host} could not be proven by {method} (port {port})");
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if authorization.refresh().await.is_err() {
                continue;
            }
            let found = authorization.challenges.iter().find_map(|challenge| challenge.error.clone());
            if let Some(problem) = found {
                return NotIssued::of(&doing, &Error::Api(problem), &self.told_to_wait);
            }
        }
        match looked {
            Err(error) => self.failed(&doing, &error),
            Ok(_) => NotIssued::because(format!("{doing}: the authority gives no reason")),
        }
    }

    async fn collect(&self, order: &mut Order, host: &str) -> Result<ShownCertificate, NotIssued> {
        let made = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::new(vec![host.to_owned()])?;
            params.distinguished_name = DistinguishedName::new();
            let request = params.serialize_request(&key)?;
            Ok((key, request))
        };
        let (key, request) =
            made().map_err(|error| NotIssued::because(format!("no key can be made for {host}: {error}")))?;
        order
            .finalize_csr(request.der())
            .await
            .map_err(|error| self.failed("the authority does not issue the certificate", &error))?;
        let patience =
            RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(PATIENCE);
        let chain = order
            .poll_certificate(&patience)
            .await
            .map_err(|error| self.failed("the authority did not hand the certificate out", &error))?;
        Ok(ShownCertificate { hosts: vec![host.to_owned()], chain, key: key.serialize_pem() })
    }
}

/// What an authority is to find.
fn answer(
    host: &str,
    method: Method,
    token: &str,
    authorization: &KeyAuthorization,
) -> Result<AcmeChallenge, rcgen::Error> {
    match method {
        Method::Http01 => Ok(AcmeChallenge::Http01 {
            host: host.to_owned(),
            token: token.to_owned(),
            answer: authorization.as_str().to_owned(),
        }),
        Method::TlsAlpn01 => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::new(vec![host.to_owned()])?;
            let digest = authorization.digest();
            params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
            let chain = params.self_signed(&key)?.pem();
            let certificate =
                ShownCertificate { hosts: vec![host.to_owned()], chain, key: key.serialize_pem() };
            Ok(AcmeChallenge::TlsAlpn01 { certificate })
        }
    }
}

/// What a certificate says of itself.
///
/// # Errors
/// In words, if it is none, or not for the host.
pub(crate) fn describe(
    shown: &ShownCertificate,
    host: &str,
    (directory, method): (&str, Method),
    now: Timestamp,
) -> Result<IssuedCertificate, String> {
    let read = read(&shown.chain, |certificate| {
        let names = certificate.subject_alternative_name().ok().flatten();
        let is_for_host = names.is_some_and(|names| {
            names
                .value
                .general_names
                .iter()
                .any(|name| matches!(name, GeneralName::DNSName(name) if name.eq_ignore_ascii_case(host)))
        });
        (is_for_host, said_by(certificate))
    });
    let (is_for_host, said) =
        read.map_err(|why| format!("the authority's answer is no certificate: {why}"))?;
    if !is_for_host {
        return Err(format!("the authority's certificate is not for {host}"));
    }
    Ok(IssuedCertificate {
        directory: directory.to_owned(),
        issuer: said.issuer,
        serial: said.serial,
        not_before: said.not_before,
        not_after: said.not_after,
        at: now,
        method,
    })
}

/// What a certificate says of itself that a file gives.
///
/// # Errors
/// In words, if it is none.
pub(crate) fn describe_given(chain: &str) -> Result<Said, String> {
    read(chain, said_by).map_err(|why| format!("what its secret begins with is no certificate: {why}"))
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) issuer: String,
    pub(crate) serial: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

fn read<T>(chain: &str, of: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    Ok(of(&certificate))
}

fn said_by(certificate: &X509Certificate<'_>) -> Said {
    let at = |time: ASN1Time| Timestamp(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000));
    let (validity, issuer) = (certificate.validity(), certificate.issuer());
    let name = issuer.iter_common_name().next().and_then(|name| name.as_str().ok());
    Said {
        issuer: name.map_or_else(|| issuer.to_string(), str::to_owned),
        serial: hex::encode(certificate.raw_serial()),
        not_before: at(validity.not_before),
        not_after: at(validity.not_after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, detail: &str) -> Error {
        let text = format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}", "detail": "{detail}"}}"#);
        Error::Api(serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn what_an_authority_says_is_said_with_what_to_do_about_it() {
        let told = ToldToWait::default();
        let refused =
            NotIssued::of("a.example could not be proven", &problem("dns", "NXDOMAIN looking up A"), &told);
        assert_eq!(
            refused,
            NotIssued::because(
                "a.example could not be proven: NXDOMAIN looking up A; the host's name must lead to a node with the \
                 gateway role in public DNS (dns)"
            )
        );
    }

    #[test]
    fn rate_limits_are_waited_for_as_long_as_the_authority_says_or_an_hour() {
        let told = ToldToWait::default();
        let limited = |told: &ToldToWait| {
            NotIssued::of("x", &problem("rateLimited", "too many"), told).told_to_wait.unwrap().as_secs()
        };
        assert_eq!(limited(&told), 3600);
        *told.lock() = Some(Duration::from_secs(9000));
        assert_eq!(limited(&told), 9000);
        assert_eq!(limited(&told), 3600, "it was said of one refusal");
    }

    #[test]
    fn an_account_that_the_authority_forgot_is_opened_anew() {
        let gone = NotIssued::of("x", &problem("accountDoesNotExist", "who?"), &ToldToWait::default());
        assert!(gone.account_is_gone);
    }

    #[test]
    fn a_certificate_says_until_when_it_is_good_and_must_be_for_its_host() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let chain = params.self_signed(&key).unwrap().pem();
        let shown = ShownCertificate { hosts: vec![], chain, key: String::new() };
        let of = |host| describe(&shown, host, ("https://ca", Method::Http01), Timestamp(7));
        let issued = of("a.example").unwrap();
        assert_eq!(issued.not_after.since(issued.not_before), Duration::from_secs(90 * 86_400));
        assert_eq!(issued.not_before, Timestamp(1_767_225_600_000));
        assert!(of("b.example").unwrap_err().contains("not for b.example"));
    }
}
