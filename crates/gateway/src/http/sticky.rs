//! Keeps a client on one task by a cookie.
//!
//! - The cookie names the task and the generation it was of by hashes: every gateway understands it, none has to remember it, and nothing of
//!   the cluster can be read from it.
//! - A client whose task is gone goes to another of the same generation, so that what it was shown stays, and if there is none, to any.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;
use ring::digest::{Context, SHA256};
use wharf_model::{Generation, RouteSpec, ServiceKey, Sticky, TaskId};

/// A task, as a cookie has it.
pub(crate) type TaskMark = [u8; 16];
/// A generation of a service, as a cookie has it.
pub(crate) type GenerationMark = [u8; 8];

/// What a cookie asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) task: TaskMark,
    pub(crate) generation: GenerationMark,
}

impl Wish {
    /// Reads a cookie's value; none if it is none of ours.
    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        let (task, generation) = value.split_first_chunk()?;
        Some(Self { task: *task, generation: generation.try_into().ok()? })
    }
}

/// The name of a task in cookies.
pub(crate) fn task_mark(task: &TaskId) -> TaskMark {
    let mut hash = Context::new(&SHA256);
    hash.update(b"wharf sticky task ");
    hash.update(task.uuid().as_bytes());
    encoded::<12, 16>(hash)
}

/// The name of a generation in cookies.
pub(crate) fn generation_mark(service: &ServiceKey, generation: Generation) -> GenerationMark {
    let mut hash = Context::new(&SHA256);
    hash.update(b"wharf sticky generation ");
    hash.update(service.to_string().as_bytes());
    hash.update(&generation.0.to_be_bytes());
    encoded::<6, 8>(hash)
}

fn encoded<const BYTES: usize, const LETTERS: usize>(hash: Context) -> [u8; LETTERS] {
    let mut text = [0; LETTERS];
    let digest = hash.finish();
    let length = URL_SAFE_NO_PAD.encode_slice(&digest.as_ref()[..BYTES], &mut text);
    debug_assert_eq!(length, Ok(LETTERS));
    text
}

/// The header that has a client come back to this task.
pub(crate) fn set_cookie(sticky: &Sticky, spec: &RouteSpec, wish: Wish, secure: bool) -> Option<HeaderValue> {
    let (task, generation) =
        (std::str::from_utf8(&wish.task).ok()?, std::str::from_utf8(&wish.generation).ok()?);
    // Only where the route is: others at the same host have their own.
    let path = spec.path.as_deref().filter(|path| !path.contains(';')).unwrap_or("/");
    let (name, seconds) = (&sticky.cookie, sticky.max_age.0.div_ceil(1000));
    let secure = if secure { "; Secure" } else { "" };
    let text =
        format!("{name}={task}{generation}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u8) -> TaskId {
        TaskId::from_parts(1, [number; 10])
    }

    #[test]
    fn marks_tell_tasks_apart_and_are_the_same_everywhere() {
        assert_eq!(task_mark(&task(1)), task_mark(&task(1)));
        assert_ne!(task_mark(&task(1)), task_mark(&task(2)));
        let text = String::from_utf8(task_mark(&task(1)).to_vec()).unwrap();
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
        assert!(!text.contains(&task(1).short()));
    }

    #[test]
    fn only_what_was_set_is_read() {
        let wish = Wish { task: task_mark(&task(1)), generation: *b"abcdefgh" };
        let value = [wish.task.as_slice(), &wish.generation].concat();
        assert_eq!(Wish::read(&value), Some(wish));
        for other in [&value[1..], &[value.as_slice(), b"x"].concat(), b"", b"1"] {
            assert_eq!(Wish::read(other), None);
        }
    }
}
