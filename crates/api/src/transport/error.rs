//! Why a server cannot be reached or did not answer, in words for whoever asked, with what to do about it.

use std::{fmt, io, time::Duration};

use http::StatusCode;
use rustls::{AlertDescription, CertificateError};
use wharf_model::Timestamp;

use super::{BodyError, Peer, ServerAddress};
use crate::v1::Problem;

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address was given.
    #[error("no server address is known")]
    NoAddress,
    /// The host name has no address.
    #[error("the host name of {address} cannot be resolved")]
    NoSuchHost {
        /// Where.
        address: ServerAddress,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// Nothing listens there.
    #[error("{address} refuses connections")]
    Refused {
        /// Where.
        address: ServerAddress,
    },
    /// The network does not get there.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Where.
        address: ServerAddress,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// Where.
        address: ServerAddress,
        /// How long was waited.
        after: Duration,
    },
    /// Its certificate is of another authority.
    #[error("the server at {address} belongs to another cluster")]
    OtherCluster {
        /// Where.
        address: ServerAddress,
    },
    /// By this machine's clock its certificate is not in force.
    #[error("by this machine's clock the certificate of the server at {address} {clocks}")]
    ServerCertificate {
        /// Where.
        address: ServerAddress,
        /// What the clock says and what it should.
        clocks: Clocks,
    },
    /// The server does not take our certificate.
    #[error("the server at {address} refuses this certificate: {why}")]
    Rejected {
        /// Where.
        address: ServerAddress,
        /// Why.
        why: Rejection,
    },
    /// What answers there is something else.
    #[error("what answers at {address} is no Wharf server")]
    NotWharf {
        /// Where.
        address: ServerAddress,
        /// What TLS says.
        #[source]
        source: io::Error,
    },
}

/// A clock and the time for which a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clocks {
    /// The certificate begins later than now.
    Before {
        /// The clock.
        now: Timestamp,
        /// The beginning.
        begins: Timestamp,
    },
    /// The certificate ended before now.
    After {
        /// The clock.
        now: Timestamp,
        /// The end.
        ended: Timestamp,
    },
}
impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Before { now, begins } => {
                let off = Rough(begins.since(now));
                write!(
                    f,
                    "is not valid yet: the clock says {}, it begins at {}, {off} later",
                    Time(now),
                    Time(begins)
                )
            }
            Self::After { now, ended } => {
                let off = Rough(now.since(ended));
                write!(
                    f,
                    "has expired: the clock says {}, it ended at {}, {off} earlier",
                    Time(now),
                    Time(ended)
                )
            }
        }
    }
}

/// Why a server does not take a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It has expired, by this machine's clock as well.
    #[error("it expired at {}", Time(*.at))]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// By the server's clock it is not in force, by this machine's clock it is.
    #[error("by the server's clock it is not valid, by this machine's clock ({}) it is", Time(*.now))]
    Clock {
        /// This machine's clock.
        now: Timestamp,
    },
    /// It was revoked: its node was removed, or it was replaced by a newer one.
    #[error("it was revoked")]
    Revoked,
    /// It is of another authority.
    #[error("it is of another cluster")]
    Foreign,
    /// For another reason.
    #[error("TLS alert {0:?}")]
    Other(AlertDescription),
}

impl DialError {
    /// What to do about it, as far as is known.
    pub fn hint(&self) -> Option<String> {
        let clock = || "compare the clocks of both machines (`timedatectl`), and let chrony or systemd-timesyncd keep them right";
        Some(match self {
            Self::NoAddress => "name a server: HOST or HOST:PORT".to_owned(),
            Self::NoSuchHost { address, .. } => format!("is `{}` spelt right? `getent hosts {0}` asks the resolver", address.host()),
            Self::Refused { address } => format!("is `wharf server run` running on {}?", address.host()),
            Self::Unreachable { address, .. } | Self::TimedOut { address, .. } => {
                format!("is {} up, and is port {} open in its firewall?", address.host(), address.port())
            }
            Self::OtherCluster { .. } => {
                "this context or token belongs to another cluster than the server; `wharf context ls` shows which".to_owned()
            }
            Self::ServerCertificate { .. } => clock().to_owned(),
            Self::Rejected { why: Rejection::Clock { .. }, .. } => clock().to_owned(),
            Self::Rejected { why: Rejection::Expired { .. }, .. } => {
                "it was not renewed in time: join again with `wharf agent join --force`, or have a new context written on a server".to_owned()
            }
            Self::Rejected { why: Rejection::Revoked, .. } => {
                "a removed node joins again with `wharf agent join --force` and a new token".to_owned()
            }
            Self::Rejected { why: Rejection::Foreign, .. } => "this context or identity belongs to another cluster".to_owned(),
            Self::Rejected { why: Rejection::Other(_), .. } => return None,
            Self::NotWharf { .. } => "is the port right? A server's is 7420 unless it was given another".to_owned(),
        })
    }

    /// Whether trying again later may help without anybody doing anything else.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::NoSuchHost { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. } => true,
            Self::NoAddress
            | Self::OtherCluster { .. }
            | Self::ServerCertificate { .. }
            | Self::Rejected { .. }
            | Self::NotWharf { .. } => false,
        }
    }

    pub(super) fn from_connect(address: &ServerAddress, source: io::Error) -> Self {
        let address = address.clone();
        match source.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { address },
            _ => Self::Unreachable { address, source },
        }
    }

    /// Why a TLS handshake, or the first use of the connection it made, failed.
    pub(super) fn from_tls(
        address: &ServerAddress,
        source: io::Error,
        me: Option<&Peer>,
        now: Timestamp,
    ) -> Self {
        let address = address.clone();
        match tls_error(&source) {
            Some(error) => match TlsFault::of(error, me, now) {
                TlsFault::OtherCluster => Self::OtherCluster { address },
                TlsFault::Clocks(clocks) => Self::ServerCertificate { address, clocks },
                TlsFault::Rejected(why) => Self::Rejected { address, why },
                TlsFault::Other => Self::NotWharf { address, source },
            },
            None if is_hang_up(&source) => Self::NotWharf { address, source },
            None => Self::Unreachable { address, source },
        }
    }
}

/// What rustls has to say in an I/O error.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

enum TlsFault {
    OtherCluster,
    Clocks(Clocks),
    Rejected(Rejection),
    Other,
}
impl TlsFault {
    fn of(error: &rustls::Error, me: Option<&Peer>, now: Timestamp) -> Self {
        match error {
            rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => Self::OtherCluster,
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                Self::Clocks(Clocks::Before {
                    now: of_secs(time.as_secs()),
                    begins: of_secs(not_before.as_secs()),
                })
            }
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                Self::Clocks(Clocks::After {
                    now: of_secs(time.as_secs()),
                    ended: of_secs(not_after.as_secs()),
                })
            }
            rustls::Error::AlertReceived(alert) => Self::Rejected(rejection(*alert, me, now)),
            _ => Self::Other,
        }
    }
}

fn rejection(alert: AlertDescription, me: Option<&Peer>, now: Timestamp) -> Rejection {
    match (alert, me) {
        (AlertDescription::CertificateExpired, Some(me)) if me.expires < now => {
            Rejection::Expired { at: me.expires }
        }
        (AlertDescription::CertificateExpired, _) => Rejection::Clock { now },
        (AlertDescription::CertificateRevoked, _) => Rejection::Revoked,
        // A certificate that is signed by a key of the same name but another cluster is reported as badly signed.
        (
            AlertDescription::UnknownCA | AlertDescription::DecryptError | AlertDescription::BadCertificate,
            _,
        ) => Rejection::Foreign,
        (other, _) => Rejection::Other(other),
    }
}

fn of_secs(seconds: u64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1000))
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke before the answer, so that nobody knows whether the request was carried out.
    #[error("the connection to {peer} was lost")]
    Lost {
        /// To whom.
        peer: String,
        /// What broke.
        #[source]
        source: BodyError,
    },
    /// The answer took too long.
    #[error("{peer} did not answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// Who.
        peer: String,
        /// How long was waited.
        after: Duration,
    },
    /// It was answered with a refusal.
    #[error("{problem}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// Why.
        problem: Box<Problem>,
    },
    /// The answer is none that we can read.
    #[error("{peer} gave an unreadable answer (status {status})")]
    Answer {
        /// Who.
        peer: String,
        /// The answer's status.
        status: StatusCode,
        /// What is wrong with it.
        #[source]
        source: BodyError,
    },
}

impl CallError {
    /// What to do about it, as far as is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dial(error) => error.hint(),
            Self::Refused { problem, .. } => problem.hint.clone(),
            Self::Lost { .. } | Self::TimedOut { .. } | Self::Answer { .. } => None,
        }
    }
    /// The refusal, if it is one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused { problem, .. } => Some(problem),
            Self::Dial(_) | Self::Lost { .. } | Self::TimedOut { .. } | Self::Answer { .. } => None,
        }
    }
    /// Whether it is the connection, and not the request, that something is wrong with.
    pub const fn is_connection(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::Refused { .. } | Self::Answer { .. } => false,
        }
    }
}

/// A time as people and programs read it: `2026-11-21T15:04:05Z`.
#[derive(Debug, Clone, Copy)]
pub struct Time(pub Timestamp);
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.0 / 1000;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// The date so many days after 1970-01-01, by Howard Hinnant's `civil_from_days`: years begin in March there, so that leap days come last.
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// A length of time in its largest unit: `59 minutes`.
#[derive(Debug, Clone, Copy)]
pub struct Rough(pub Duration);
impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (count, unit) = match seconds {
            0..120 => (seconds, "second"),
            120..7200 => (seconds / 60, "minute"),
            7200..172_800 => (seconds / 3600, "hour"),
            _ => (seconds / 86_400, "day"),
        };
        write!(f, "{count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_273_445, "2026-11-21T15:04:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Time(of_secs(seconds)).to_string(), text);
        }
    }

    #[test]
    fn an_expired_certificate_and_a_wrong_clock_are_told_apart() {
        let mut me = Peer::anonymous();
        me.expires = Timestamp(1_000);
        let alert = AlertDescription::CertificateExpired;
        assert_eq!(
            rejection(alert, Some(&me), Timestamp(2_000)),
            Rejection::Expired { at: Timestamp(1_000) }
        );
        assert_eq!(rejection(alert, Some(&me), Timestamp(500)), Rejection::Clock { now: Timestamp(500) });
    }

    #[test]
    fn lengths_of_time_are_said_in_one_unit() {
        assert_eq!(Rough(Duration::from_secs(1)).to_string(), "1 second");
        assert_eq!(Rough(Duration::from_secs(3599)).to_string(), "59 minutes");
        assert_eq!(Rough(Duration::from_secs(3 * 86_400)).to_string(), "3 days");
    }
}
