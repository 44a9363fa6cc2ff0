//! The attempts that run, and how long each may go on without a sign of life.
use super::{AttemptId, Effect, Ended, Outcome, input::Work, lanes::LaneKey};
use crate::{StreamId, breaker::Permit, ports::PartitionId};
use foldhash::HashMap;
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The time after a cancellation for which an attempt is waited for. A longer one blocks its
/// thread.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// The most attempts that are started ahead of those whose handlers may be called now.
const AHEAD: usize = 256;

#[derive(Debug)]
pub(super) struct Running {
    pub(super) work: Arc<Work>,
    /// The right to call, if a circuit breaker gives it.
    pub(super) permit: Option<Permit>,
    /// When it counts as stuck if nothing is heard of it; `None` if nothing says that it has begun.
    watch: Option<Instant>,
    cancel: Cancel,
    /// Its partition is gone. The partition may have come again since, and under the same epoch if
    /// the group was joined again.
    pub(super) is_void: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    No,
    /// It is waited for until then.
    Until(Instant),
    /// It is waited for no longer.
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Attempts {
    /// Only looked up, or iterated in an order that is sorted afterwards, so that the machine stays
    /// deterministic.
    running: HashMap<AttemptId, Running>,
    last: AttemptId,
    timeout: Duration,
    /// The attempt that has ended last got its work done, and did not wait.
    is_quick: bool,
    /// The attempts that were cancelled or are void.
    outdated: usize,
}

impl Running {
    fn is_outdated(&self) -> bool {
        self.is_void || self.cancel != Cancel::No
    }
    fn is_of(&self, partitions: &HashSet<PartitionId>) -> bool {
        partitions.contains(&self.work.partition)
    }
}

/// Returns the ids, the oldest first.
fn in_order(ids: impl IntoIterator<Item = AttemptId>) -> impl Iterator<Item = AttemptId> {
    let mut ids: Vec<_> = ids.into_iter().collect();
    ids.sort_unstable();
    ids.into_iter()
}

impl Attempts {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            running: HashMap::default(),
            last: AttemptId(0),
            timeout,
            is_quick: false,
            outdated: 0,
        }
    }

    pub(super) fn start(&mut self, work: Arc<Work>, permit: Option<Permit>) -> AttemptId {
        self.last = AttemptId(self.last.0 + 1);
        let running = Running {
            work,
            permit,
            watch: None,
            cancel: Cancel::No,
            is_void: false,
        };
        self.running.insert(self.last, running);
        self.last
    }

    /// A call of a handler ends with the attempt timeout, unless it blocks its thread.
    fn watch_from(&self, records: usize, now: Instant) -> Instant {
        let calls = u32::try_from(records + 1).unwrap_or(u32::MAX);
        let each = self.timeout.saturating_add(CANCEL_GRACE);
        super::later(now, each.saturating_mul(calls))
    }

    pub(super) fn advanced(&mut self, id: AttemptId, now: Instant) {
        let watch = |running: &Running| self.watch_from(running.work.records().len(), now);
        if let Some(watch) = self.running.get(&id).map(watch)
            && let Some(running) = self.running.get_mut(&id)
        {
            running.watch = Some(watch);
        }
    }

    pub(super) fn finished(&mut self, id: AttemptId, ended: &Ended) -> Option<Running> {
        self.is_quick = !ended.has_waited && matches!(ended.result, Outcome::Done);
        let running = self.running.remove(&id)?;
        self.outdated -= usize::from(running.is_outdated());
        Some(running)
    }

    /// Returns true if an attempt may be started, where handlers are called for `concurrency`
    /// streams at a time. While attempts do not wait, some are started ahead: the next ones are
    /// then there when these have ended.
    pub(super) fn has_room(&self, concurrency: usize, may_be_ahead: bool) -> bool {
        let ahead = if may_be_ahead && self.is_quick {
            AHEAD
        } else {
            0
        };
        self.running.len() < concurrency.saturating_add(ahead)
    }

    /// Returns the number of attempts that have not ended, those that are abandoned included.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Returns true if an attempt of these partitions runs and is waited for.
    pub(super) fn any_of(&self, partitions: &HashSet<PartitionId>) -> bool {
        let mut running = self.running.values();
        running.any(|r| r.cancel != Cancel::Abandoned && r.is_of(partitions))
    }

    /// Returns true if an attempt at one of these streams runs and is waited for.
    pub(super) fn any_at(&self, streams: &BTreeSet<StreamId>) -> bool {
        let mut running = self.running.values();
        running.any(|r| {
            r.cancel != Cancel::Abandoned && r.work.stream().is_some_and(|s| streams.contains(s))
        })
    }

    /// Returns true if an attempt of this lane runs, also one that is waited for no longer.
    ///
    /// A lane is ready again only if the attempt at its records has ended, or is outdated.
    pub(super) fn runs_in(&self, lane: &LaneKey) -> bool {
        self.outdated > 0 && self.running.values().any(|r| r.work.lane == *lane)
    }

    /// Returns true if any attempt runs and is waited for.
    pub(super) fn any(&self) -> bool {
        let mut running = self.running.values();
        running.any(|r| r.cancel != Cancel::Abandoned)
    }

    /// Returns true if an attempt of these partitions runs that was not cancelled.
    pub(super) fn waits_for(&self, partitions: &HashSet<PartitionId>) -> bool {
        let mut running = self.running.values();
        running.any(|r| r.cancel == Cancel::No && r.is_of(partitions))
    }

    /// Returns true if any attempt runs that was not cancelled.
    pub(super) fn any_uncancelled(&self) -> bool {
        self.running.values().any(|r| r.cancel == Cancel::No)
    }

    /// Tells attempts to end after their current record; `None` tells all.
    pub(super) fn finish(&self, partitions: Option<&HashSet<PartitionId>>, out: &mut Vec<Effect>) {
        let running = self.running.iter();
        let told = running.filter(|(_, r)| partitions.is_none_or(|p| r.is_of(p)));
        out.extend(in_order(told.map(|(id, _)| *id)).map(Effect::Finish));
    }

    /// Cancels attempts; `None` cancels all.
    pub(super) fn cancel(
        &mut self,
        partitions: Option<&HashSet<PartitionId>>,
        now: Instant,
        out: &mut Vec<Effect>,
    ) {
        let mut cancelled = Vec::new();
        for (id, running) in &mut self.running {
            if running.cancel == Cancel::No && partitions.is_none_or(|p| running.is_of(p)) {
                // The result no longer counts: another call may be the probe.
                running.permit = None;
                self.outdated += usize::from(!running.is_outdated());
                running.cancel = Cancel::Until(now + CANCEL_GRACE);
                cancelled.push(*id);
            }
        }
        out.extend(in_order(cancelled).map(Effect::Cancel));
    }

    /// Lets the results of attempts count no more, since their partitions are gone.
    pub(super) fn void(&mut self, partitions: &HashSet<PartitionId>) {
        for running in self.running.values_mut() {
            if running.is_of(partitions) {
                self.outdated += usize::from(!running.is_outdated());
                running.is_void = true;
            }
        }
    }

    /// Gives up attempts that have not ended although they were cancelled. Returns their number.
    pub(super) fn abandon(&mut self, now: Instant, out: &mut Vec<Effect>) -> u64 {
        let mut abandoned = Vec::new();
        for (id, running) in &mut self.running {
            if matches!(running.cancel, Cancel::Until(until) if until <= now) {
                running.cancel = Cancel::Abandoned;
                abandoned.push(*id);
            }
        }
        let number = abandoned.len() as u64;
        out.extend(in_order(abandoned).map(Effect::Abandon));
        number
    }

    /// Returns the number of attempts of which nothing was heard for too long.
    pub(super) fn stuck(&self, now: Instant) -> usize {
        let running = self.running.values();
        running
            .filter(|r| r.watch.is_some_and(|watch| watch <= now))
            .count()
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        let running = self.running.values().filter_map(|r| match r.cancel {
            Cancel::Until(until) => Some(until),
            Cancel::No | Cancel::Abandoned => None,
        });
        running.min()
    }
}
