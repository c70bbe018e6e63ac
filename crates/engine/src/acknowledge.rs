//! Decides whether a node serves a table of names and routes yet, before what it no longer has may go.
//!
//! - Sets are sent to a node only when they say something else than the one before. So a node acknowledges a revision by serving the latest set it was
//!   sent, if that set is still right at the revision; it need not have seen the revision itself.
//! - Epoch and revision count together: what a node served before the store was restored says nothing about what came after.
//! - Nobody waits for the dead: who is waited for at all is for [`crate::World::set_serving`] to find out.

use wharf_model::Revision;

/// Orders sets of assignments: epoch, then revision.
pub type Version = (u64, Revision);

/// What one node was told, and what it says it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Serving {
    /// The latest set that it was sent or is being sent; none if this leader has not come to it.
    pub told: Option<Version>,
    /// The newest revision at which that set was still what the node should do.
    pub right_at: Revision,
    /// The set whose names and routes it says it serves; none if it has not said anything to this server.
    pub serves: Option<Version>,
}

/// Why a node has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unacknowledged {
    /// Its set at that revision has not been made yet.
    NotTold,
    /// It was told, and still serves an older set, or nothing.
    Behind {
        /// What it serves.
        serves: Option<Version>,
        /// What it was told.
        told: Version,
    },
    /// It is not connected, and may serve what it last had until its lease ends.
    Away,
}

impl std::fmt::Display for Unacknowledged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotTold => f.write_str("it has not been told yet"),
            Self::Behind { serves: None, told } => {
                write!(f, "it has not said that it serves the names and routes of revision {}", told.1)
            }
            Self::Behind { serves: Some(serves), told } => {
                write!(
                    f,
                    "it serves the names and routes of revision {}, and was told those of {}",
                    serves.1, told.1
                )
            }
            Self::Away => f.write_str("it is not connected, and is waited for until its lease ends"),
        }
    }
}

impl Serving {
    /// The newest version that it acknowledges: the newest at which what it serves is right, as far as is known.
    pub fn acknowledges(&self) -> Option<Version> {
        let told = self.told.filter(|told| self.serves.is_some_and(|serves| serves >= *told))?;
        Some((told.0, self.right_at))
    }
    /// Why a connected node has not acknowledged a revision of that epoch; none if it has.
    pub fn unacknowledged(&self, epoch: u64, revision: Revision) -> Option<Unacknowledged> {
        let Some(told) = self.told.filter(|told| told.0 == epoch && self.right_at >= revision) else {
            return Some(Unacknowledged::NotTold);
        };
        let is_served = self.serves.is_some_and(|serves| serves >= told);
        (!is_served).then_some(Unacknowledged::Behind { serves: self.serves, told })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Revision = Revision(50);

    fn serving(told: u64, right_at: u64, serves: (u64, u64)) -> Serving {
        Serving {
            told: Some((2, Revision(told))),
            right_at: Revision(right_at),
            serves: Some((serves.0, Revision(serves.1))),
        }
    }
    fn of(serving: Serving) -> Option<Unacknowledged> {
        let why = serving.unacknowledged(2, R);
        let acknowledges = serving.acknowledges().is_some_and(|version| version >= (2, R));
        assert_eq!(why.is_none(), acknowledges, "both say the same");
        why
    }

    #[test]
    fn a_node_whose_set_has_not_changed_since_need_not_see_the_revision() {
        assert_eq!(of(serving(40, 50, (2, 40))), None);
        assert_eq!(of(serving(40, 50, (2, 45))), None, "a newer set than told is newer names");
    }

    #[test]
    fn a_node_is_waited_for_until_it_is_told_and_serves_what_it_was_told() {
        assert_eq!(of(Serving::default()), Some(Unacknowledged::NotTold));
        assert_eq!(of(serving(40, 49, (2, 40))), Some(Unacknowledged::NotTold));
        let told = (2, R);
        let behind = Unacknowledged::Behind { serves: Some((2, Revision(49))), told };
        assert_eq!(of(serving(50, 50, (2, 49))), Some(behind));
        assert_eq!(of(serving(50, 50, (2, 50))), None);
    }

    #[test]
    fn what_was_served_in_an_older_epoch_counts_for_nothing() {
        assert!(of(serving(50, 50, (1, 99))).is_some());
        let told_before = Serving { told: Some((1, Revision(99))), ..serving(0, 99, (1, 99)) };
        assert_eq!(of(told_before), Some(Unacknowledged::NotTold));
    }
}
