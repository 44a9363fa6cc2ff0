//! What cases of several ports need.
use foldstream::CommitId;
use std::{future::Future, time::Duration};
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
