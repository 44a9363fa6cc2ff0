//! Repeats a call that is safe to repeat while its failure may pass.
use foldstream::{RetryPolicy, chain};
use std::{error::Error, time::Instant};

/// Calls until it succeeds, fails for good, or the policy gives up: the answer is the last one.
///
/// # Errors
/// The last error.
pub async fn patiently<T, E: Error + 'static>(
    mut call: impl AsyncFnMut() -> Result<T, E>,
    is_transient: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let (policy, started) = (RetryPolicy::default(), Instant::now());
    let mut failed = 0;
    loop {
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failed += 1;
        let wait = policy
            .next_delay(failed, started.elapsed())
            .filter(|_| is_transient(&error));
        let Some(wait) = wait else { return Err(error) };
        tracing::info!(error = chain(&error), "once more");
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, io};

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_what_may_not_is_an_error_at_once() {
        let calls = Cell::new(0);
        let third_time = async || {
            calls.set(calls.get() + 1);
            if calls.get() < 3 {
                Err(io::Error::other("busy"))
            } else {
                Ok(calls.get())
            }
        };
        assert_eq!(patiently(third_time, |_| true).await.unwrap(), 3);
        calls.set(0);
        patiently(third_time, |_| false).await.unwrap_err();
        assert_eq!(calls.get(), 1);
    }
}
