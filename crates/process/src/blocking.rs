//! The one helper for work that blocks its thread.

use std::future::pending;

use tracing::Span;

/// Runs `work` on a thread where blocking is allowed, inside the caller's span.
///
/// Dropping the future does not stop the work: what was started runs to its end. A panic in the work
/// goes on in the caller. If the runtime is shutting down before the work began, this never
/// returns, and neither does anything else on that runtime.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => pending().await,
        },
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

    #[tokio::test]
    async fn a_panic_in_the_work_is_a_panic_of_the_caller() {
        let outcome = std::panic::AssertUnwindSafe(blocking(|| panic!("broken"))).catch_unwind().await;
        assert_eq!(outcome.expect_err("it panics").downcast_ref::<&str>(), Some(&"broken"));
    }
}
