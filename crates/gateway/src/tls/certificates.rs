//! The certificates of a table, ready to be shown, and which of them is shown for a name.
//!
//! - For a name: those for just this name, else those for a wildcard of its parent, else those for any name. Of several the first in the
//!   table whose key the client understands.
//! - A client that names no host is shown one for any name, else the first of the table.
//! - A certificate that cannot be used is a problem in words, and takes nothing from the others.
//! - A host that should have one and has none is shown one that nobody vouches for, so that clients say so instead of hanging up.
//! - What stays from one table to the next is not read again.

use std::{collections::HashMap, fmt, sync::Arc};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    SignatureScheme,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use wharf_model::ShownCertificate;

/// For one name: of several, the first that the client understands.
type Keys = Vec<Arc<CertifiedKey>>;

/// Certificates by the names they are for.
#[derive(Default)]
pub(crate) struct Certificates {
    read: Vec<Read>,
    exact: HashMap<String, Keys>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Keys>,
    /// For any name.
    any: Keys,
    /// Of hosts that have none, by the host or `*.` and its parent.
    own: HashMap<String, Arc<CertifiedKey>>,
    problems: Vec<String>,
}

struct Read {
    shown: ShownCertificate,
    key: Arc<CertifiedKey>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.read.iter().map(|read| &read.shown.hosts).collect();
        f.debug_struct("Certificates").field("hosts", &hosts).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads what is not in `before`. `needed` are the hosts for which there should be some.
    pub(crate) fn read<'a>(
        shown: &[ShownCertificate],
        needed: impl IntoIterator<Item = &'a str>,
        before: &Self,
        provider: &CryptoProvider,
    ) -> Self {
        let known: HashMap<(&str, &str), &Arc<CertifiedKey>> =
            before.read.iter().map(|read| ((&*read.shown.chain, &*read.shown.key), &read.key)).collect();
        let mut all = Self::default();
        for certificate in shown {
            let key = match known.get(&(&*certificate.chain, &*certificate.key)) {
                Some(key) => Ok(Arc::clone(key)),
                None => read(certificate, provider).map(Arc::new),
            };
            match key {
                Ok(key) => all.add(certificate, &key),
                Err(why) => all.problems.push(format!(
                    "the certificate for {} cannot be used: {why}",
                    listed(&certificate.hosts)
                )),
            }
        }
        for host in needed {
            if all.find(Some(host)).is_empty() && !all.own.contains_key(host) {
                let key = before.own.get(host).map(|key| Ok(Arc::clone(key)));
                match key.unwrap_or_else(|| own(host, provider).map(Arc::new)) {
                    Ok(key) => drop(all.own.insert(host.to_owned(), key)),
                    Err(why) => all.problems.push(format!("no certificate can be made up for {host}: {why}")),
                }
            }
        }
        all
    }

    fn add(&mut self, shown: &ShownCertificate, key: &Arc<CertifiedKey>) {
        self.read.push(Read { shown: shown.clone(), key: Arc::clone(key) });
        if shown.hosts.is_empty() {
            self.any.push(Arc::clone(key));
        }
        for host in &shown.hosts {
            let keys = match host.strip_prefix("*.") {
                Some(parent) => self.wildcard.entry(parent.to_owned()).or_default(),
                None => self.exact.entry(host.clone()).or_default(),
            };
            keys.push(Arc::clone(key));
        }
    }

    /// What is wrong, in words.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Which to show to a client that names this host, in lower case, and understands these signatures.
    pub(crate) fn choose(
        &self,
        name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<&Arc<CertifiedKey>> {
        let understood = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let found = self.find(name);
        found.iter().find(understood).or(found.first()).or_else(|| self.own(name))
    }

    fn find(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let Some(name) = name else {
            let first = || self.read.first().map_or(&[][..], |read| std::slice::from_ref(&read.key));
            return if self.any.is_empty() { first() } else { &self.any };
        };
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let wildcard = || parent.and_then(|parent| self.wildcard.get(parent));
        self.exact.get(name).or_else(wildcard).unwrap_or(&self.any)
    }

    /// One that nobody vouches for.
    fn own(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let name = name?;
        // A wildcard of a route stands for any number of labels.
        let parents = name.match_indices('.').map(|(at, _)| &name[at..]);
        self.own.get(name).or_else(|| parents.filter_map(|parent| self.own.get(&format!("*{parent}"))).next())
    }

    /// Whether there is anything to show to a client that names this host.
    pub(crate) fn has(&self, name: Option<&str>) -> bool {
        !self.find(name).is_empty() || self.own(name).is_some()
    }
}

fn listed(hosts: &[String]) -> String {
    if hosts.is_empty() { "any host".to_owned() } else { hosts.join(", ") }
}

/// Reads what an authority is shown. It says something that only authorities understand, so it is not looked into.
pub(super) fn read_challenge(
    shown: &ShownCertificate,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, String> {
    let (chain, key) = parts(shown)?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| error.to_string())?;
    Ok(CertifiedKey::new(chain, key))
}

fn parts(shown: &ShownCertificate) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(shown.chain.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("its chain is not PEM ({error})"))?;
    if chain.is_empty() {
        return Err("there is no certificate in its chain".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes())
        .map_err(|_| "its key is no private key in PEM".to_owned())?;
    Ok((chain, key))
}

/// Reads chain and key, and makes sure that they belong together.
fn read(shown: &ShownCertificate, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let (chain, key) = parts(shown)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "its key belongs to another certificate".to_owned(),
        rustls::Error::InvalidCertificate(_) => "what its chain begins with is no certificate".to_owned(),
        _ => "its key is of a kind that is not supported: use RSA, or the curves P-256, P-384 or Ed25519"
            .to_owned(),
    })
}

/// A certificate that nobody vouches for.
fn own(host: &str, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let text = |error: rcgen::Error| error.to_string();
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(text)?;
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(text)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Wharf");
    name.push(DnType::CommonName, "no certificate has been obtained yet");
    params.distinguished_name = name;
    let certificate = params.self_signed(&pair).map_err(text)?;
    let key = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    CertifiedKey::from_der(vec![certificate.der().clone()], key, provider).map_err(|error| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A certificate for these hosts, signed by itself.
    pub(crate) fn shown(hosts: &[&str]) -> ShownCertificate {
        let names: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = CertificateParams::new(names.clone()).unwrap().self_signed(&pair).unwrap();
        ShownCertificate { hosts: names, chain: certificate.pem(), key: pair.serialize_pem() }
    }

    fn provider() -> CryptoProvider {
        rustls::crypto::ring::default_provider()
    }
    fn read_all(shown: &[ShownCertificate]) -> Certificates {
        Certificates::read(shown, [], &Certificates::default(), &provider())
    }
    const SCHEMES: [SignatureScheme; 1] = [SignatureScheme::ECDSA_NISTP256_SHA256];

    /// Which of the certificates is shown for a name.
    fn which(all: &Certificates, shown: &[ShownCertificate], name: Option<&str>) -> Option<usize> {
        let chosen = all.choose(name, &SCHEMES)?;
        let is = |shown: &ShownCertificate| {
            let first = CertificateDer::from_pem_slice(shown.chain.as_bytes()).unwrap();
            chosen.cert[0] == first
        };
        shown.iter().position(is)
    }

    #[test]
    fn the_most_exact_certificate_is_shown() {
        let mut any = shown(&["whatever.example"]);
        any.hosts.clear();
        let list = [shown(&["*.example.com"]), shown(&["shop.example.com", "example.com"]), any];
        let all = read_all(&list);
        let which = |name| which(&all, &list, name);
        assert_eq!(which(Some("shop.example.com")), Some(1));
        assert_eq!(which(Some("other.example.com")), Some(0));
        assert_eq!(which(Some("example.com")), Some(1));
        assert_eq!(which(Some("a.b.example.com")), Some(2), "a wildcard is one label");
        assert_eq!(which(None), Some(2));
        let few = read_all(&list[..2]);
        assert_eq!(super::tests::which(&few, &list, Some("elsewhere.org")), None);
        assert_eq!(super::tests::which(&few, &list, None), Some(0), "the first for who names nobody");
    }

    #[test]
    fn of_several_for_a_host_the_first_is_shown_that_the_client_understands() {
        let ecdsa = shown(&["a.example"]);
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate =
            CertificateParams::new(vec!["a.example".into()]).unwrap().self_signed(&pair).unwrap();
        let edwards = ShownCertificate {
            hosts: vec!["a.example".into()],
            chain: certificate.pem(),
            key: pair.serialize_pem(),
        };
        let list = [edwards, ecdsa];
        let all = read_all(&list);
        assert_eq!(all.problems(), [""; 0]);
        assert_eq!(which(&all, &list, Some("a.example")), Some(1));
    }

    #[test]
    fn one_that_cannot_be_used_is_named_and_the_others_are_shown() {
        let good = shown(&["good.example"]);
        let mixed = ShownCertificate { key: good.key.clone(), ..shown(&["mixed.example"]) };
        let no_chain = ShownCertificate { chain: "x".into(), ..shown(&["empty.example", "void.example"]) };
        let no_key = ShownCertificate { key: good.chain.clone(), ..shown(&["keyless.example"]) };
        let all = read_all(&[mixed, no_chain, no_key, good.clone()]);
        assert_eq!(
            all.problems(),
            [
                "the certificate for mixed.example cannot be used: its key belongs to another certificate",
                "the certificate for empty.example, void.example cannot be used: there is no certificate in its chain",
                "the certificate for keyless.example cannot be used: its key is no private key in PEM",
            ]
        );
        assert_eq!(which(&all, &[good], Some("good.example")), Some(0));
        assert!(!all.has(Some("mixed.example")));
    }

    #[test]
    fn a_host_without_a_certificate_gets_one_of_our_own_until_it_has_one() {
        let before =
            Certificates::read(&[], ["a.example", "*.b.example"], &Certificates::default(), &provider());
        assert!(before.has(Some("a.example")) && before.has(Some("x.y.b.example")));
        assert!(!before.has(Some("b.example")) && !before.has(Some("c.example")) && !before.has(None));
        let list = [shown(&["a.example"])];
        let after = Certificates::read(&list, ["a.example", "*.b.example"], &before, &provider());
        assert_eq!(which(&after, &list, Some("a.example")), Some(0));
        let own = |all: &Certificates| Arc::clone(all.choose(Some("x.b.example"), &SCHEMES).unwrap());
        assert!(Arc::ptr_eq(&own(&before), &own(&after)), "it is not made anew with every table");
    }

    #[test]
    fn what_stays_is_not_read_again() {
        let list = [shown(&["a.example"]), shown(&["b.example"])];
        let before = read_all(&list);
        let after = Certificates::read(&list[1..], [], &before, &provider());
        let key = |all: &Certificates| Arc::clone(all.choose(Some("b.example"), &SCHEMES).unwrap());
        assert!(Arc::ptr_eq(&key(&before), &key(&after)));
        assert!(!after.has(Some("a.example")));
    }
}
