//! Sends one session the assignments of its node, and after the first set what changes of them.
//!
//! - A difference starts from the last set that this sent and the node took. Whatever goes otherwise, the next set is sent whole: after no answer
//!   or a refusal, to a node that has something else, to an agent of an older build.
//! - Once differences have come to as many bytes as the whole set it is sent whole again: it costs no more than they did, and whatever
//!   might have gone wrong unnoticed does not last.

use std::sync::Arc;

use wharf_api::transport::{CallError, Sent, node::ChangeAssignments};
use wharf_model::{AssignmentSet, difference::Differ};

use super::{NodeSession, Pushed};

/// What the node of a session was told.
#[derive(Debug, Default)]
pub struct Telling {
    base: Option<Base>,
    /// How many sets were sent whole and taken, and how many by what was different.
    counts: (u64, u64),
}

/// The last set that was sent and taken.
#[derive(Debug)]
struct Base {
    set: Arc<AssignmentSet>,
    /// How.
    sent: Sent,
}

impl Telling {
    /// Sends the set, by what is different from the one before if that can be.
    ///
    /// # Errors
    /// If the node does not answer or refuses the set for another reason than its age.
    pub async fn push(
        &mut self,
        session: &NodeSession,
        set: &Arc<AssignmentSet>,
    ) -> Result<Pushed, CallError> {
        if let Some(base) = self.base.take()
            && let Some((content, next)) = base.next(session, set)?
        {
            match session.patch_assignments(content).await? {
                Some(pushed) => {
                    if is_taken(pushed) {
                        self.base = Some(next);
                        self.counts.1 += 1;
                    }
                    return Ok(pushed);
                }
                None => tracing::warn!(node = %session.node(), revision = set.revision.0,
                    "the node does not have the assignments that a difference starts from; it is sent all"),
            }
        }
        let content = session.written(&**set)?;
        let sent = Sent::whole(&content);
        let (pushed, differs) = session.put_assignments(content).await?;
        if is_taken(pushed) {
            self.base = differs.then(|| Base { set: Arc::clone(set), sent });
            self.counts.0 += 1;
        }
        Ok(pushed)
    }

    /// How many sets were sent whole and taken, and how many by what was different.
    pub const fn counts(&self) -> (u64, u64) {
        self.counts
    }
}

impl Base {
    /// What is different, and what it leads to. Nothing if there is nothing, or if the whole set is due.
    fn next(
        self,
        session: &NodeSession,
        set: &Arc<AssignmentSet>,
    ) -> Result<Option<(Vec<u8>, Self)>, CallError> {
        let Some(change) = self.set.diff(set) else { return Ok(None) };
        let content = session.written(&ChangeAssignments { base: self.sent.sum(), change })?;
        let sent = self.sent.then(&content);
        Ok(sent.map(|sent| (content, Self { set: Arc::clone(set), sent })))
    }
}

const fn is_taken(pushed: Pushed) -> bool {
    match pushed {
        Pushed::Accepted(_) => true,
        Pushed::Older(_) => false,
    }
}
