//! The circuit breakers that processes share: epoch, votes, and who probes.
use super::{OperateError, Operator};
use crate::{
    breaker::rows::{self, NameRow, RowsRead},
    ports::{RangeQuery, Revision},
};
use std::{fmt, time::Duration};

/// The state of a [`DistributedBreaker`](crate::breaker::DistributedBreaker), as its rows tell it.
///
/// A vote counts only for a process that has seen it being renewed, since the vote of a process
/// that crashed stays in the store for an hour. One read can therefore not tell whether a circuit
/// is open. Read twice, [`renew`](Self::renew) apart, and compare the reads.
///
/// # Example
/// ```
/// use foldstream::breaker::{BreakerPolicy, DistributedBreaker};
/// use foldstream::operate::{Operator, VoteState};
/// use foldstream_testkit::InMemoryControlStore;
/// use std::time::Duration;
/// use tokio_util::sync::CancellationToken;
///
/// # let mut runtime = tokio::runtime::Builder::new_current_thread();
/// # runtime.enable_time().start_paused(true).build()?.block_on(async {
/// let control = InMemoryControlStore::new();
/// let member =
///     DistributedBreaker::new("payments", "node-1", BreakerPolicy::default(), control.clone())?;
/// let breaker = member.breaker();
/// tokio::spawn(member.run(CancellationToken::new()));
/// for _ in 0..5 {
///     let failed = breaker.call_when(async { Err::<(), _>("busy") }, |_| true).await;
///     assert!(failed.is_err());
/// }
/// tokio::time::sleep(Duration::from_secs(1)).await;
///
/// let operator = Operator::new(control);
/// let first = operator.breaker("payments").await?;
/// assert_eq!(first.quorum, Some(2));
/// assert_eq!(first.votes[0].instance, "node-1");
/// assert_eq!(first.votes[0].state, VoteState::Unknown);
///
/// tokio::time::sleep(first.renew.unwrap_or(Duration::from_secs(5))).await;
/// let second = operator.breaker("payments").await?.compared_with(&first);
/// assert_eq!(second.votes[0].state, VoteState::Counts);
/// // One vote of two: the other processes go on calling.
/// assert_eq!((second.counting(), second.is_open()), (1, false));
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerStatus {
    /// The name of the breaker.
    pub name: String,
    /// The number of votes at which the circuits of all processes are open, as the process that
    /// started last has it. `None` if only processes of an older build have run.
    pub quorum: Option<u64>,
    /// The time between two renewals of a vote, as the process that started last has it. `None` if
    /// only processes of an older build have run.
    pub renew: Option<Duration>,
    /// The number of times that the service was found to be reachable again on behalf of all
    /// processes.
    pub epoch: u64,
    /// The votes of processes whose circuits have opened, ordered by instance.
    pub votes: Vec<BreakerVote>,
    /// The lease for the probe on behalf of all; `None` if no process has ever taken it.
    pub probe: Option<ProbeStatus>,
}

/// The vote of a process that has found the service failing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerVote {
    /// The name of the process, as it was given to
    /// [`DistributedBreaker::new`](crate::breaker::DistributedBreaker::new).
    pub instance: String,
    /// The epoch in which the circuit of the process opened.
    pub epoch: u64,
    /// Tells whether the vote counts, as far as the reads show it.
    pub state: VoteState,
    /// The write that stored the vote. Each renewal has another one.
    revision: Revision,
}

/// Tells whether a vote counts, as far as the reads of an operator show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VoteState {
    /// The vote was read once. It may be renewed, or may be left from a process that crashed.
    Unknown,
    /// The vote was renewed between two reads, so it counts.
    Counts,
    /// The vote was not renewed between two reads. If these lie more than a renew period apart, its
    /// process has most likely crashed. It ceases to count after three periods.
    Still,
    /// The vote is from an epoch that has ended. It never counts again, and its process writes
    /// another one or deletes it.
    Outdated,
}

impl fmt::Display for VoteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "read once",
            Self::Counts => "counts",
            Self::Still => "not renewed",
            Self::Outdated => "of an ended epoch",
        })
    }
}

/// The lease of the process that tries the service on behalf of all.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeStatus {
    /// The instance that took the lease last and has not released it; `None` if it was released.
    /// Only reads of several renew periods show whether the instance still lives.
    pub owner: Option<String>,
    /// The number of times that the lease was taken.
    pub epoch: u64,
    /// The time between two probes, which doubles with each probe that fails.
    pub open_time: Duration,
    /// The time without a renewal after which another process with waiting callers takes the lease.
    pub lease_time: Duration,
}

impl BreakerStatus {
    fn new(name: &str, settings: Option<NameRow>, rows: RowsRead) -> Self {
        let epoch = rows.epoch.map_or(0, |(row, _)| row.epoch);
        let votes = rows.votes.into_iter();
        let mut votes: Vec<_> = votes
            .map(|(instance, row, revision)| BreakerVote {
                instance,
                epoch: row.epoch,
                state: match row.epoch == epoch {
                    true => VoteState::Unknown,
                    false => VoteState::Outdated,
                },
                revision,
            })
            .collect();
        votes.sort_by(|a, b| a.instance.cmp(&b.instance));
        Self {
            name: name.into(),
            quorum: settings.as_ref().map(|row| row.quorum),
            renew: settings.map(|row| Duration::from_millis(row.renew_millis)),
            epoch,
            votes,
            probe: rows.probe.map(|(row, _)| ProbeStatus {
                owner: row.owner.map(instance_of),
                epoch: row.epoch,
                open_time: Duration::from_millis(row.open_millis),
                lease_time: Duration::from_millis(row.lease_millis),
            }),
        }
    }

    /// Returns this read, with the votes that an earlier read of the same breaker has found as well
    /// marked as [`Counts`](VoteState::Counts) or [`Still`](VoteState::Still).
    #[must_use]
    pub fn compared_with(mut self, earlier: &Self) -> Self {
        for vote in &mut self.votes {
            let is_same = |before: &&BreakerVote| before.instance == vote.instance;
            let Some(before) = earlier.votes.iter().find(is_same) else {
                continue;
            };
            vote.state = match vote.state {
                VoteState::Outdated => VoteState::Outdated,
                _ if before.revision == vote.revision => VoteState::Still,
                _ => VoteState::Counts,
            };
        }
        self
    }

    /// Returns the number of votes that are known to count.
    #[must_use]
    pub fn counting(&self) -> usize {
        let counts = |vote: &&BreakerVote| vote.state == VoteState::Counts;
        self.votes.iter().filter(counts).count()
    }

    /// Returns true if at least [`quorum`](Self::quorum) votes are known to count, so that the
    /// circuits of all processes are open. Always false for one read alone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let counting = u64::try_from(self.counting()).unwrap_or(u64::MAX);
        self.quorum.is_some_and(|quorum| counting >= quorum)
    }
}

/// Returns the instance of a process, whose name in this life has a random part after it.
fn instance_of(owner: String) -> String {
    match owner.rsplit_once('#') {
        Some((instance, _)) => instance.into(),
        None => owner,
    }
}

impl Operator {
    /// Returns the state of every distributed breaker that a process has started on this control
    /// store. A breaker that no process uses any more stays in the list.
    ///
    /// A breaker of one process alone writes no rows.
    /// [`ProcessorHealth`](crate::runner::ProcessorHealth) shows it in its own process.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn breakers(&self) -> Result<Vec<BreakerStatus>, OperateError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (names, next) = self.breaker_names(after).await?;
            for (name, settings) in names {
                let rows = rows::read(&*self.control, &name).await?;
                all.push(BreakerStatus::new(&name, Some(settings), rows));
            }
            after = next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Returns the state of one distributed breaker.
    ///
    /// # Errors
    /// - [`OperateError::UnknownBreaker`] if there is no such breaker.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn breaker(&self, name: &str) -> Result<BreakerStatus, OperateError> {
        if !name.is_empty() {
            let settings = self.rows.get::<NameRow>(&rows::name_key(name)).await?;
            let found = rows::read(&*self.control, name).await?;
            let has_rows =
                found.epoch.is_some() || found.probe.is_some() || !found.votes.is_empty();
            if settings.is_some() || has_rows {
                let settings = settings.map(|row| row.value);
                return Ok(BreakerStatus::new(name, settings, found));
            }
        }
        let known = self.breaker_names(None).await?.0;
        Err(OperateError::UnknownBreaker {
            name: name.into(),
            known: known.into_iter().map(|(name, _)| name).take(20).collect(),
        })
    }

    /// Returns one page of breakers with their settings, and the start of the next page.
    async fn breaker_names(
        &self,
        after: Option<String>,
    ) -> Result<(Vec<(String, NameRow)>, Option<String>), OperateError> {
        let query = RangeQuery::new(rows::NAMES).with_after(after);
        let name_of = |sort: &str| Some(sort.to_owned());
        let page = self.rows.page::<_, NameRow>(&query, name_of).await?;
        let names = page.rows.into_iter().map(|(name, row)| (name, row.value));
        Ok((names.collect(), page.next))
    }
}
