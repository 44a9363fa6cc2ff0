//! Helpers for the cases of several ports.
use foldstream::CommitId;
use std::{future::Future, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The time that a case waits for something that may lag: 45 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);

/// Returns a name that no other test uses.
pub(super) fn unique() -> String {
    CommitId::random().to_string()
}

/// Asks until the answer is `Ok`. Panics with the last refusal after [`PATIENCE`].
pub(super) async fn eventually<T, F, A>(what: &str, mut ask: F) -> T
where
    F: FnMut() -> A,
    A: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(10);
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {PATIENCE:?}: {reason}")
            }
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Runs a future for a while and drops it, unless it ended before.
///
/// The future is polled 0, 1, 2, ... times, and then for longer and longer times. 12 attempts span
/// the latencies of a local and a remote backend.
pub(super) async fn drop_midway(attempt: u32, future: impl Future) {
    let mut future = pin!(future);
    if attempt < 6 {
        for _ in 0..attempt {
            if futures::poll!(future.as_mut()).is_ready() {
                return;
            }
            tokio::task::yield_now().await;
        }
    } else {
        // An answer in time is as good as a drop, since the case checks the outcome and not the
        // future.
        let patience = Duration::from_micros(100 << (attempt - 6).min(10));
        let _ = tokio::time::timeout(patience, future).await;
    }
}

/// Runs one task per number, all started at the same moment, and returns their answers.
pub(super) async fn at_once<T, F>(tasks: usize, job: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(tasks));
    let running: Vec<_> = (0..tasks)
        .map(|n| {
            let (start, job) = (start.clone(), job(n));
            tokio::spawn(async move {
                start.wait().await;
                job.await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in running {
        answers.push(task.await.unwrap());
    }
    answers
}

/// The number of pages that no test's data needs. A walk with this many pages does not end.
pub(super) const ENDLESS: usize = 100_000;
