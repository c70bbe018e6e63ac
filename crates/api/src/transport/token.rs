//! Join tokens: one string that says which cluster, and proves that its holder was asked in.
//!
//! - `wharf1-<id>-<secret>-<hash of the authority's certificate>-<check>`, all hexadecimal.
//! - The check notices a mistyped or cut-off token before anything is dialled; blanks and line ends inside are ignored, since
//!   terminals wrap.
//! - The secret leaves the token only to be hashed: servers keep [`JoinToken::secret_hash`].

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};
use wharf_model::TokenId;

const PREFIX: &str = "wharf1";

/// A whole join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: TokenId,
    secret: [u8; 16],
    ca_hash: [u8; 32],
}

/// Why a text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It does not look like one at all.
    #[error("this is no join token: one starts with `wharf1-`")]
    NotAToken,
    /// Something is missing, or too much.
    #[error("the join token is incomplete: it has {found} of {} parts", Self::PARTS)]
    Incomplete {
        /// Parts there are.
        found: usize,
    },
    /// A character is wrong or missing.
    #[error("the join token is mistyped or cut off: its check digits do not match")]
    Mistyped,
}
impl InvalidToken {
    const PARTS: usize = 5;

    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::NotAToken | Self::Incomplete { .. } | Self::Mistyped => {
                "copy the whole line that `wharf token create` prints on a server"
            }
        }
    }
}

impl JoinToken {
    /// A token for the cluster whose authority's certificate has this hash.
    pub const fn new(id: TokenId, secret: [u8; 16], ca_hash: [u8; 32]) -> Self {
        Self { id, secret, ca_hash }
    }
    /// Which token it is; no secret.
    pub const fn id(&self) -> TokenId {
        self.id
    }
    /// The SHA-256 of the authority's certificate.
    pub const fn ca_hash(&self) -> [u8; 32] {
        self.ca_hash
    }
    /// The SHA-256 of the secret in hexadecimal: all that servers keep.
    pub fn secret_hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret))
    }
    fn body(&self) -> String {
        let id = self.id.uuid().simple();
        format!("{PREFIX}-{id}-{}-{}", hex::encode(self.secret), hex::encode(self.ca_hash))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{body}-{}", check(&body))
    }
}
impl fmt::Debug for JoinToken {
    /// Never shows the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase();
        let parts: Vec<&str> = text.split('-').collect();
        if parts[0] != PREFIX {
            return Err(InvalidToken::NotAToken);
        }
        let [_, id, secret, ca_hash, digits] = parts[..] else {
            return Err(InvalidToken::Incomplete { found: parts.len() });
        };
        let body = &text[..text.len() - digits.len() - 1];
        if check(body) != digits {
            return Err(InvalidToken::Mistyped);
        }
        let parsed = || {
            let id = format!("token_{id}").parse().ok()?;
            Some(Self::new(id, bytes(secret)?, bytes(ca_hash)?))
        };
        parsed().ok_or(InvalidToken::Mistyped)
    }
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex::decode(text).ok()?.try_into().ok()
}

fn check(body: &str) -> String {
    hex::encode(&Sha256::digest(body)[..4])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(TokenId::from_parts(1_700_000_000_000, [7; 10]), [9; 16], [0xab; 32])
    }

    #[test]
    fn a_token_reads_back_also_when_the_terminal_wrapped_it() {
        let text = token().to_string();
        assert!(text.starts_with("wharf1-"), "{text}");
        assert_eq!(text.parse(), Ok(token()));
        let wrapped = format!("  {}\n   {}\r\n", &text[..70], &text[70..]);
        assert_eq!(wrapped.parse(), Ok(token()));
    }

    #[test]
    fn what_is_no_token_is_told_apart_from_what_is_a_damaged_one() {
        assert_eq!("hello".parse::<JoinToken>(), Err(InvalidToken::NotAToken));
        assert_eq!("".parse::<JoinToken>(), Err(InvalidToken::NotAToken));
        let text = token().to_string();
        assert_eq!(text[..80].parse::<JoinToken>(), Err(InvalidToken::Incomplete { found: 4 }));
        assert_eq!(text[..text.len() - 1].parse::<JoinToken>(), Err(InvalidToken::Mistyped));
    }

    #[test]
    fn debugging_shows_no_secret() {
        assert!(!format!("{:?}", token()).contains(&hex::encode([9; 16])));
    }

    proptest! {
        #[test]
        fn any_single_wrong_character_is_noticed(at in 7_usize..148, wrong in "[0-9a-f]") {
            let text = token().to_string();
            prop_assume!(at < text.len() && text[at..=at] != *wrong);
            let mistyped = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
            prop_assert!(mistyped.parse::<JoinToken>().is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(wharf1)?(-[0-9a-fäß]{0,70}){0,6}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
