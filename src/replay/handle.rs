//! [`ReplayHandle`]: a replay that runs in this process.
use super::{CancelOutcome, ReplayError, ReplayProgress, RunId, driver::RunEnd};
use crate::control::Rows;
use futures::Stream;
use tokio::{sync::watch, task::JoinHandle};

/// The result of a replay whose scan is whole.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReplayReport {
    /// The id of the replay.
    pub run: RunId,
    /// True for a replay of a part of the history, which is done. False for a full one: runners
    /// now bring the new generations up to the end of the topics, and switch to them.
    pub is_partial: bool,
    /// The last numbers.
    pub progress: ReplayProgress,
}

/// A replay that runs in this process.
///
/// If the handle is dropped, the replay ends as in a crash:
/// [`Replay::resume`](super::Replay::resume) goes on with it.
#[derive(Debug)]
pub struct ReplayHandle {
    pub(super) run: RunId,
    pub(super) rows: Rows,
    pub(super) progress: watch::Receiver<ReplayProgress>,
    pub(super) task: Abort<Result<RunEnd, ReplayError>>,
}

/// A task that ends with its handle.
#[derive(Debug)]
pub(super) struct Abort<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Abort<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ReplayHandle {
    /// Returns the id of the replay, by which other processes know it.
    pub const fn run(&self) -> RunId {
        self.run
    }

    /// Returns the progress as it is now.
    pub fn now(&self) -> ReplayProgress {
        self.progress.borrow().clone()
    }

    /// Returns the progress as it changes, at most once per checkpoint. The stream ends with the
    /// replay. Values that are not taken in time are left out.
    pub fn progress(&self) -> impl Stream<Item = ReplayProgress> + Send + Unpin + use<> {
        let mut progress = self.progress.clone();
        progress.mark_changed();
        Box::pin(futures::stream::unfold(progress, |mut progress| async {
            progress.changed().await.ok()?;
            let value = progress.borrow_and_update().clone();
            Some((value, progress))
        }))
    }

    /// Cancels the replay. The generations of before serve, as they do anyway.
    ///
    /// # Errors
    /// [`ReplayError::Control`] if the rows cannot be read or written.
    pub async fn cancel(&self) -> Result<CancelOutcome, ReplayError> {
        super::cancel(&self.rows, self.run).await
    }

    /// Waits for the end of the scan.
    ///
    /// # Errors
    /// [`ReplayError`] if the replay was cancelled, taken over, or cannot go on. Unless it was
    /// cancelled, it can be resumed.
    pub async fn wait(mut self) -> Result<ReplayReport, ReplayError> {
        let ended = (&mut self.task.0).await;
        let ended = ended.map_err(|error| ReplayError::Broken {
            reason: error.to_string(),
        })??;
        Ok(ReplayReport {
            run: self.run,
            is_partial: matches!(ended, RunEnd::Done),
            progress: self.now(),
        })
    }
}
