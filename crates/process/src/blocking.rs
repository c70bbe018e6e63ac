//! The one helper for work that blocks its thread.

use std::{cell::RefCell, future::pending, rc::Rc, time::Duration};

use tracing::Span;

/// How long a piece of work takes on a simulated disk: until it is done, and from then until its caller hears of it.
type Pauses = Rc<dyn Fn() -> (Duration, Duration)>;

thread_local! {
    static INLINE: RefCell<Option<Pauses>> = const { RefCell::new(None) };
}

/// From now on this thread does blocking work itself, between two pauses on its runtime's clock: for simulations, where one thread with
/// paused time is a whole cluster, and everything must happen in the same order each time. Whoever is dropped in the first pause has not
/// done the work, in the second has.
pub fn inline(pauses: impl Fn() -> (Duration, Duration) + 'static) {
    INLINE.set(Some(Rc::new(pauses)));
}

/// Runs `work` on a thread where blocking is allowed, inside the caller's span.
///
/// Dropping the future does not stop the work: what was started runs to its end. A panic in the work
/// goes on in the caller. If the runtime is shutting down before the work began, this never
/// returns, and neither does anything else on that runtime.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let inline = INLINE.with_borrow(|inline| inline.as_ref().map(|pauses| pauses()));
    if let Some((before, after)) = inline {
        pause(before).await;
        let result = work();
        pause(after).await;
        return result;
    }
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => pending().await,
        },
    }
}

async fn pause(duration: Duration) {
    if duration.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(duration).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_runs_on_another_thread_and_answers() {
        let here = std::thread::current().id();
        let there = blocking(|| std::thread::current().id()).await;
        assert_ne!(here, there);
    }

    #[tokio::test(start_paused = true)]
    async fn inline_work_is_done_here_between_its_pauses_and_not_if_it_is_dropped_in_the_first() {
        inline(|| (Duration::from_secs(2), Duration::from_secs(3)));
        let (here, began) = (std::thread::current().id(), tokio::time::Instant::now());
        assert_eq!(blocking(|| std::thread::current().id()).await, here);
        assert_eq!(began.elapsed(), Duration::from_secs(5));

        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        for (patience, expected) in [(1, false), (3, true)] {
            let note = std::sync::Arc::clone(&done);
            let work = blocking(move || note.store(true, std::sync::atomic::Ordering::Relaxed));
            assert!(tokio::time::timeout(Duration::from_secs(patience), work).await.is_err());
            assert_eq!(done.load(std::sync::atomic::Ordering::Relaxed), expected);
        }
        INLINE.set(None);
    }

    #[tokio::test]
    async fn a_panic_in_the_work_is_a_panic_of_the_caller() {
        let outcome = std::panic::AssertUnwindSafe(blocking(|| panic!("broken"))).catch_unwind().await;
        assert_eq!(outcome.expect_err("it panics").downcast_ref::<&str>(), Some(&"broken"));
    }
}
