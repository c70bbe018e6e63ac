//! Names, parsed once at the edge; inside, a name is always legal.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Text that is not a legal name; its message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a legal {what}: use {rule}")]
pub struct InvalidName {
    /// What was given.
    pub text: String,
    /// What it should have been the name of.
    pub what: &'static str,
    /// What is allowed.
    pub rule: &'static str,
}

/// As the Compose Specification has project names: `[a-z0-9][a-z0-9_-]*`.
fn project(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'))
}
/// As the Compose Specification has keys of services, networks and volumes: `[a-zA-Z0-9._-]+`.
fn key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
/// The same, beginning with a letter or digit.
fn named(text: &str) -> bool {
    key(text) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}
/// As RFC 1123 has host names, in lower case.
fn host(text: &str) -> bool {
    text.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    })
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident $what:literal $legal:ident $rule:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if text.len() <= 63 && $legal(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName { text: text.to_owned(), what: $what, rule: $rule })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}
names! {
    /// The name of an app: a Compose project name.
    AppName "app name" project "1 to 63 of a-z, 0-9, `_` and `-`, starting with a letter or digit";
    /// The name of an environment, such as `prod`.
    EnvironmentName "environment name" project "1 to 63 of a-z, 0-9, `_` and `-`, starting with a letter or digit";
    /// The key of a service in a Compose file.
    ServiceName "service name" key "1 to 63 of a-z, A-Z, 0-9, `.`, `_` and `-`";
    /// The key of a network in a Compose file.
    NetworkName "network name" key "1 to 63 of a-z, A-Z, 0-9, `.`, `_` and `-`";
    /// The key of a volume in a Compose file.
    VolumeName "volume name" key "1 to 63 of a-z, A-Z, 0-9, `.`, `_` and `-`";
    /// The name of a config or secret of an environment.
    FileName "name of a config or secret" named "1 to 63 of a-z, A-Z, 0-9, `.`, `_` and `-`, starting with a letter or digit";
    /// The name of a node: its host name unless it was given another.
    NodeName "node name" host "1 to 63 of a-z, 0-9, `-` and `.`, as a host name";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_allowed() {
        assert!("my_app-1".parse::<AppName>().is_ok());
        let error = "My App".parse::<AppName>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`My App` is not a legal app name: use 1 to 63 of a-z, 0-9, `_` and `-`, starting with a letter or digit"
        );
        assert!("-x".parse::<NodeName>().is_err());
        assert!("db_password".parse::<FileName>().is_ok());
        assert!("..".parse::<FileName>().is_err());
        assert!("".parse::<ServiceName>().is_err());
        assert!("a".repeat(64).parse::<ServiceName>().is_err());
    }
}
