//! What a node says of its tasks to other nodes while servers cannot: which of them are alive.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use uuid::Uuid;
use wharf_model::TaskId;

/// What a signature of it is about: see [`wharf_api::transport::signed`].
pub(crate) const CONTEXT: &str = "wharf: tasks that are alive";

/// Of the messages.
pub(crate) const FORM: u8 = 1;
/// Tasks in one message, which fits into 1,280 bytes with a certificate and a signature.
const MOST: usize = 32;

/// A statement of one node about its tasks in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alive {
    /// Grows with each thing that this node says. Parts of one thing have the same.
    pub(crate) number: u64,
    /// Whether a server hears it. One that none hears tells everybody, and wants to be told.
    pub(crate) served: bool,
    /// How long it is good for, in steps of a millisecond.
    pub(crate) holds: Duration,
    /// The address at which others have the node's tasks, beside that of its tunnels.
    pub(crate) at: IpAddr,
    /// The tasks that it is about: from the first to the last of these.
    pub(crate) range: (TaskId, TaskId),
    /// Which of them are alive. What is in the range and not here has ended.
    pub(crate) tasks: BTreeSet<TaskId>,
}

impl Alive {
    /// All that there is to say of these tasks, in as many messages as it takes.
    pub(crate) fn all(
        number: u64,
        served: bool,
        holds: Duration,
        at: IpAddr,
        tasks: &BTreeSet<TaskId>,
    ) -> Vec<Self> {
        let sorted: Vec<_> = tasks.iter().copied().collect();
        let mut parts: Vec<&[TaskId]> = sorted.chunks(MOST).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let last = parts.len() - 1;
        let mut from = TaskId::new(Uuid::nil());
        let part = |(index, tasks): (usize, &[TaskId])| {
            let to = match tasks.last() {
                Some(to) if index < last => *to,
                _ => TaskId::new(Uuid::max()),
            };
            let after = to.uuid().as_u128().saturating_add(1);
            let range = (std::mem::replace(&mut from, TaskId::new(Uuid::from_u128(after))), to);
            Self { number, served, holds, at, range, tasks: tasks.iter().copied().collect() }
        };
        parts.into_iter().enumerate().map(part).collect()
    }

    /// Whether it is about a task.
    pub(crate) fn is_about(&self, task: TaskId) -> bool {
        (self.range.0..=self.range.1).contains(&task)
    }

    /// As it is sent.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = vec![FORM, u8::from(self.served)];
        out.extend(self.number.to_be_bytes());
        out.extend(u32::try_from(self.holds.as_millis()).unwrap_or(u32::MAX).to_be_bytes());
        match self.at {
            IpAddr::V4(at) => out.extend(at.to_ipv6_mapped().octets()),
            IpAddr::V6(at) => out.extend(at.octets()),
        }
        for task in [self.range.0, self.range.1].iter().chain(&self.tasks) {
            out.extend(task.uuid().as_bytes());
        }
        out
    }

    /// What was sent; nothing if it is no such message.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let (&[form, served], rest) = message.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (holds, rest) = rest.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk::<16>()?;
        let (ids, []) = rest.as_chunks::<16>() else { return None };
        let mut ids = ids.iter().map(|id| TaskId::new(Uuid::from_bytes(*id)));
        let range = (ids.next()?, ids.next()?);
        if form != FORM || served > 1 {
            return None;
        }
        Some(Self {
            number: u64::from_be_bytes(*number),
            served: served == 1,
            holds: Duration::from_millis(u32::from_be_bytes(*holds).into()),
            at: IpAddr::V6((*at).into()).to_canonical(),
            range,
            tasks: ids.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const AT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 12));

    fn task(number: u8) -> TaskId {
        TaskId::from_parts(1, [number; 10])
    }

    #[test]
    fn what_is_written_is_read_and_anything_else_is_not() {
        let tasks: BTreeSet<_> = (1..5).map(task).collect();
        for at in [AT, "fd77::12".parse().unwrap()] {
            let [alive] = &Alive::all(7, false, Duration::from_secs(5), at, &tasks)[..] else { panic!() };
            let written = alive.write();
            assert_eq!(Alive::read(&written).as_ref(), Some(alive));
            for length in 0..written.len() {
                let read = Alive::read(&written[..length]);
                // Without its last tasks it is another message, which nobody has signed.
                assert!(read.is_none_or(|read| read.tasks.len() < 4), "{length}");
            }
            let mut other = written;
            other[0] = FORM + 1;
            assert_eq!(Alive::read(&other), None);
        }
    }

    #[test]
    fn many_tasks_come_in_parts_that_leave_nothing_out() {
        for many in [0, 1, 32, 33, 200] {
            let tasks: BTreeSet<_> = (0..many).map(task).collect();
            let parts = Alive::all(7, true, Duration::from_secs(5), AT, &tasks);
            assert!(parts.iter().all(|part| part.write().len() <= 30 + 34 * 16), "each fits");
            for number in 0..=255 {
                let about: Vec<_> = parts.iter().filter(|part| part.is_about(task(number))).collect();
                let [about] = about[..] else { panic!("{number} is in {} of {many}", about.len()) };
                assert_eq!(about.tasks.contains(&task(number)), number < many, "{number} of {many}");
            }
        }
    }
}
