//! Certificates that gateways show, and who issues them.

use serde::{Deserialize, Serialize};

/// A certificate that gateways show, or that is to be obtained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Certificate {
    /// For which host; `*` for any.
    pub host: String,
    /// Where it is from: `acme`, or `secret` if a file gives it.
    pub source: String,
    /// `valid`, `renewing`, `failing`, `waiting`, `expired`, or `unused` if no route needs it.
    pub state: String,
    /// Why it is not simply valid; empty if it is.
    #[serde(default)]
    pub why: String,
    /// The apps whose routes need it: `ENVIRONMENT/APP`.
    pub apps: Vec<String>,
    /// Who signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Its serial number, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// From when it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// Until when it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// When it was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obtained_at: Option<u64>,
    /// The directory of the authority that it was obtained from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// How the host was proven: `http-01` or `tls-alpn-01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
    /// When it is obtained or renewed next, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<u64>,
    /// How many attempts in a row have failed.
    #[serde(default)]
    pub failures: u32,
    /// When the last of these was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<u64>,
}

/// Who issues certificates for routes with `tls: auto`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AcmeSettings {
    /// The URL of the authority's directory.
    pub directory: String,
    /// Whom the authority may write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Somebody has agreed to the authority's terms; nothing is obtained before.
    pub terms_agreed: bool,
    /// How many certificates vouch for the authority's own server, beside those that machines trust.
    pub roots: usize,
    /// How hosts are proven, the preferred way first.
    pub challenges: Vec<String>,
    /// The account that the authority knew before, if it wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account: Option<String>,
    /// There is an account with the authority.
    pub account: bool,
}

/// Other settings; what is absent stays.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AcmeChange {
    /// The URL of the authority's directory. Another authority than before has terms of its own to agree to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Whom the authority may write to; nobody if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Whether the authority's terms are agreed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terms_agreed: Option<bool>,
    /// Certificates in PEM that vouch for the authority's own server; none if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roots: Option<String>,
    /// How hosts are proven, the preferred way first: `http-01`, `tls-alpn-01`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenges: Option<Vec<String>>,
    /// The identifier of an account that the authority knows already; none if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_account: Option<String>,
    /// Its key as the authority gives it, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_key: Option<String>,
}
impl std::fmt::Debug for AcmeChange {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcmeChange").field("directory", &self.directory).finish_non_exhaustive()
    }
}
