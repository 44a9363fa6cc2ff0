//! The sweep: dirty streams are tried again.
use super::{DirtyReason, PublishError, Publisher, budget::Budget, notice::Notices};
use crate::{
    Backoff, StreamId,
    control::{DirtyRow, Lease, Leases, PublisherRows, Stored},
    ports::ControlStoreError,
    resilience::{Failure, Retryable},
};
use futures::FutureExt;
use std::{collections::BTreeMap, future::Future, num::NonZeroU32, pin::pin, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The time before a deadline that is left for the rows of a sweep.
const LAST_ROWS: Duration = Duration::from_secs(1);

/// The settings of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepConfig {
    /// The time between two sweeps of [`Publisher::sweep_every`]. Default 5 min.
    pub interval: Duration,
    /// The pause before a stream is tried again. Default: 1 min, doubling up to 1 h.
    pub backoff: Backoff,
    /// The time after which the lease of a process that has died may be taken over. Default 30 s.
    pub lease: Duration,
}
impl Default for SweepConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            backoff: Backoff::new(Duration::from_secs(60), Duration::from_secs(3600)),
            lease: Duration::from_secs(30),
        }
    }
}
impl SweepConfig {
    /// Sets the time between two sweeps.
    #[must_use]
    pub const fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }
    /// Sets the pause before a stream is tried again.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
    /// Sets the time after which the lease of a process that has died may be taken over.
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }
}

/// The result of a sweep.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct SweepReport {
    /// True if another process is sweeping. Then this one has done nothing.
    pub is_elsewhere: bool,
    /// The number of dirty streams that were found.
    pub found: u64,
    /// The number of streams whose next attempt is later.
    pub not_due: u64,
    /// The number of streams that are published now and not dirty any more.
    pub published: u64,
    /// The number of streams that were tried and are still dirty.
    pub still_dirty: u64,
    /// The number of records that the bus has acknowledged.
    pub messages: u64,
    /// True if the deadline came first, so that some dirty streams may not have been tried to the
    /// end.
    pub is_cut_short: bool,
}

/// The error returned by a sweep that could not read or write its rows. The streams stay dirty.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SweepError {
    /// The control store refuses or fails.
    #[error("the dirty streams cannot be read or noted")]
    Control(#[from] ControlStoreError),
    /// No stream can be published until an operator changes the set-up.
    #[error("nothing can be published")]
    Refused {
        /// The error of the first stream.
        #[source]
        source: PublishError,
    },
}

impl Publisher {
    /// The dirty streams that are read and tried at once.
    const SWEEP_PAGE: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

    /// Tries the dirty streams again whose time has come, and deletes the rows of those that are
    /// published. One process sweeps at a time, under the lease `pub/sweep`. If that lease seems to
    /// be held, the call waits until it is free, or until its holder was silent for the lease time
    /// or has renewed it.
    ///
    /// Call it every few minutes in every service that publishes, or let
    /// [`sweep_every`](Self::sweep_every) do that.
    ///
    /// # Errors
    /// - [`SweepError::Control`] if rows cannot be read or written, after repeats.
    /// - [`SweepError::Refused`] if no stream can be published.
    pub async fn sweep(&self, config: &SweepConfig) -> Result<SweepReport, SweepError> {
        let mut report = SweepReport::default();
        self.sweep_within(config, &Budget::default(), &mut report)
            .await?;
        Ok(report)
    }

    /// Sweeps as [`sweep`](Self::sweep) does, and returns at the deadline at the latest. No other
    /// stream begins in the last 4 s, or in the last five eighths of the time if there is less of
    /// it. What was published until then stays published, and the next sweep continues.
    ///
    /// # Errors
    /// The same as [`sweep`](Self::sweep).
    pub async fn sweep_until(
        &self,
        config: &SweepConfig,
        deadline: Instant,
    ) -> Result<SweepReport, SweepError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // The rest of the time is for the rows and the lease.
        let budget = Budget::until(deadline - LAST_ROWS.min(left / 4));
        let mut report = SweepReport::default();
        let sweep = budget.run(self.sweep_within(config, &budget, &mut report));
        match timeout_at(deadline, sweep).await {
            Ok(swept) => swept?,
            Err(_) => report.is_cut_short = true,
        }
        Ok(report)
    }

    async fn sweep_within(
        &self,
        config: &SweepConfig,
        budget: &Budget,
        report: &mut SweepReport,
    ) -> Result<(), SweepError> {
        let Some(mut lease) = self.take_sweep(config).await? else {
            report.is_elsewhere = true;
            return Ok(());
        };
        let swept = self.sweep_under(&mut lease, config, budget, report).await;
        if let Err(error) = lease.release().await {
            tracing::debug!(
                error = crate::chain(&error),
                "the lease of the sweep expires"
            );
        }
        swept
    }

    /// Sweeps at each interval until `shutdown` is ready. Errors are logged, and the next interval
    /// tries again.
    pub async fn sweep_every(
        &self,
        config: SweepConfig,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let mut shutdown = pin!(shutdown.fuse());
        loop {
            let sweep = async {
                match self.sweep(&config).await {
                    Ok(report) if report.still_dirty > 0 => {
                        // Alerts look for this field. The Lambda function logs the same one.
                        let still_dirty = report.still_dirty;
                        tracing::warn!(still_dirty, "streams stay unpublished");
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(
                            error = crate::chain(&error),
                            "dirty streams were not tried"
                        );
                    }
                }
                tokio::time::sleep(config.interval).await;
            };
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = sweep => {}
            }
        }
    }

    async fn take_sweep(&self, config: &SweepConfig) -> Result<Option<Lease>, ControlStoreError> {
        let mut contender = self.state.sweeper.lock().await;
        let contender = contender.get_or_insert_with(|| {
            let leases = Leases::new(self.control.clone(), self.ids.clone(), config.lease);
            let owner = format!("{:032x}", self.ids.revision().as_u128());
            leases.contender(self.rows.single_key("sweep"), owner)
        });
        let until = Instant::now() + config.lease + config.lease / 2;
        loop {
            if let Some(lease) = contender.try_take().await? {
                return Ok(Some(lease));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(config.lease / 4).await;
        }
    }

    async fn sweep_under(
        &self,
        lease: &mut Lease,
        config: &SweepConfig,
        budget: &Budget,
        report: &mut SweepReport,
    ) -> Result<(), SweepError> {
        for shard in 0..PublisherRows::SHARDS {
            let mut after: Option<String> = None;
            loop {
                if !budget.may_begin() {
                    report.is_cut_short = true;
                    return Ok(());
                }
                let read = || self.rows.dirty_page(shard, after.clone(), Self::SWEEP_PAGE);
                let page = read
                    .retry(self.retry)
                    .when(Failure::failure_class)
                    .run()
                    .await?;
                let found = page.rows.len() as u64;
                report.found += found;
                let now = self.clock.now();
                let due = |row: &Stored<DirtyRow>| row.value.due_at(config.backoff) <= now;
                let due: BTreeMap<_, _> = page.rows.into_iter().filter(|(_, r)| due(r)).collect();
                report.not_due += found - due.len() as u64;
                if !due.is_empty() {
                    self.sweep_streams(due, budget, report).await?;
                    // Another process sweeps: it goes on from here, or has done the same.
                    if !lease.renew().await? {
                        return Ok(());
                    }
                }
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn sweep_streams(
        &self,
        due: BTreeMap<StreamId, Stored<DirtyRow>>,
        budget: &Budget,
        report: &mut SweepReport,
    ) -> Result<(), SweepError> {
        let notices = due.iter().map(|(stream, row)| {
            let notices = Notices::of_version(stream.clone(), row.value.known);
            (stream.clone(), notices)
        });
        let done = self.publish_all(notices.collect(), budget).await;
        report.messages += done.messages;
        for stream in done.published.keys() {
            // A row that was written again meanwhile is of a later finding, and stays.
            if let Some(row) = due.get(stream) {
                let _ = self.rows.dirty_delete(stream, row.revision).await?;
                self.state.marks.set_dirty(stream, false);
            }
            report.published += 1;
        }
        for failure in done.failed {
            report.still_dirty += 1;
            if matches!(failure.error, PublishError::Interrupted { .. }) {
                // The next sweep continues at once.
                report.is_cut_short = true;
                continue;
            }
            if failure.error.is_set_up_wrong() {
                return Err(SweepError::Refused {
                    source: failure.error,
                });
            }
            if !failure.is_dirty
                && let Some(row) = due.get(&failure.stream)
            {
                // The attempt counts, so that the next one is later.
                let (known, why) = (row.value.known, row.value.why);
                let why = if why == DirtyReason::Stuck {
                    DirtyReason::Backlog
                } else {
                    why
                };
                let text = crate::chain(&failure.error).to_string();
                self.note_dirty(&failure.stream, known, why, Some(&text))
                    .await?;
            }
        }
        Ok(())
    }
}
