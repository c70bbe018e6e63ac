//! Wharf's own settings of apps and services: what Compose has no key for, and `x-wharf` carries.
//!
//! Nothing here is about how a container is made: none of it is part of what decides whether a container must be replaced.
//! Units stand in the fields' names or types; every field's documentation gives its range and its default.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Where something outside the cluster answers: an address, or a domain name.
///
/// Written and sent as one string, `10.0.0.7` or `db.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ExternalHost {
    /// An IPv4 or IPv6 address.
    Address(IpAddr),
    /// A domain name: lower case, without the final dot.
    Domain(String),
}
impl fmt::Display for ExternalHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => fmt::Display::fmt(address, f),
            Self::Domain(domain) => f.pad(domain),
        }
    }
}
impl From<ExternalHost> for String {
    fn from(host: ExternalHost) -> Self {
        host.to_string()
    }
}
impl TryFrom<String> for ExternalHost {
    type Error = InvalidHost;
    fn try_from(text: String) -> Result<Self, InvalidHost> {
        text.parse()
    }
}
impl FromStr for ExternalHost {
    type Err = InvalidHost;
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let unbracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Some(address) = unbracketed.and_then(|text| text.parse::<Ipv6Addr>().ok()) {
            return Ok(Self::Address(address.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let domain = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // What ends in a number is a mistyped address.
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let fits = domain.len() <= 253 && domain.split('.').all(is_dns_label);
        if fits && !domain.rsplit('.').next().is_some_and(is_number) {
            return Ok(Self::Domain(domain));
        }
        Err(InvalidHost(text.to_owned()))
    }
}

/// One part of a domain name; underscores are common in practice and harmless to resolvers.
fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// A text that is neither an address nor a domain name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidHost(
    /// The text.
    pub String,
);
impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is neither an IP address nor a domain name", self.0)
    }
}
impl std::error::Error for InvalidHost {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_outside_are_addresses_or_domain_names() {
        let host = |text: &str| text.parse::<ExternalHost>();
        assert_eq!(host("10.0.0.7"), Ok(ExternalHost::Address([10, 0, 0, 7].into())));
        assert_eq!(host("[::1]"), Ok(ExternalHost::Address(Ipv6Addr::LOCALHOST.into())));
        assert_eq!(host("DB.example.com."), Ok(ExternalHost::Domain("db.example.com".into())));
        assert_eq!(host("database"), Ok(ExternalHost::Domain("database".into())));
        for text in ["", "10.0.0", "10.0.0.256", "a..b", "-a.b", "a b", "http://a", "a:80", "a/b", "*.a"] {
            assert_eq!(host(text), Err(InvalidHost(text.into())));
        }
        let long = format!("{}.com", "a".repeat(64));
        assert!(host(&long).is_err());
    }

    #[test]
    fn hosts_travel_as_text() {
        use serde::de::{IntoDeserializer, value};
        let read = |text: &'static str| {
            let text: value::StrDeserializer<'_, value::Error> = text.into_deserializer();
            ExternalHost::deserialize(text)
        };
        for text in ["10.0.0.7", "fd00::1", "db.example.com"] {
            assert_eq!(String::from(read(text).unwrap()), text);
        }
        assert!(read("a b").is_err());
    }
}
