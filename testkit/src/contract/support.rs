//! What cases of several ports need.
use foldstream::CommitId;
use std::{future::Future, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a case waits for something that may lag.
pub(super) const PATIENCE: Duration = Duration::from_secs(45);

/// A name that nobody else uses.
pub(super) fn unique() -> String {
    CommitId::random().to_string()
}

/// Asks until the answer is `Ok`; panics with the last refusal once [`PATIENCE`] is over.
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

/// Runs a future for a while and drops it, unless it ended before: polled 0, 1, 2, ... times, then for longer and
/// longer times. 12 attempts span what a local and a remote backend take.
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
        // An answer in time is as good as a drop: what follows checks the outcome, not the future.
        let patience = Duration::from_micros(100 << (attempt - 6).min(10));
        let _ = tokio::time::timeout(patience, future).await;
    }
}

/// Runs one task a number, all let go at the same moment, and returns their answers.
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

/// Pages of one walk that no test's data needs: a walk that comes so far does not end.
pub(super) const ENDLESS: usize = 100_000;
