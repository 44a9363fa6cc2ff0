//! The state of a processor as others see it. Nothing here decides anything.
use super::{Machine, Member, partition::Phase, window::Window};
use crate::{
    StreamId, Timestamp, Version,
    breaker::CircuitState,
    ports::{ControlStoreError, MessageBusError, Offset, PartitionId},
    runner::{ErrorClass, HandlerError, TroubleSource, error::class_of},
};
use std::{error::Error, sync::Arc};
use tokio::time::Instant;

/// A failure as others are told of it.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Noted {
    pub(in crate::runner) source: TroubleSource,
    pub(in crate::runner) class: ErrorClass,
    /// The error and its sources as one line.
    pub(in crate::runner) error: Arc<str>,
    /// The stream whose event has failed.
    pub(in crate::runner) stream: Option<StreamId>,
}

impl Noted {
    /// Notes the failure of a step that needs a backend.
    pub(in crate::runner) fn of_backend(error: &(dyn Error + Send + Sync + 'static)) -> Self {
        let first: &(dyn Error + 'static) = error;
        let mut chain = std::iter::successors(Some(first), |e| (*e).source());
        let source = chain.find_map(|e| {
            if e.is::<MessageBusError>() {
                Some(TroubleSource::Bus)
            } else {
                e.is::<ControlStoreError>()
                    .then_some(TroubleSource::ControlStore)
            }
        });
        Self {
            source: source.unwrap_or(TroubleSource::ReadModel),
            class: class_of(error),
            error: crate::chain(error).into(),
            stream: None,
        }
    }
    pub(super) fn of_flush(error: &HandlerError) -> Self {
        Self {
            source: TroubleSource::ReadModel,
            class: error.class(),
            error: crate::chain(error.source()).into(),
            stream: None,
        }
    }
    pub(super) fn of_event(error: &HandlerError, stream: &StreamId) -> Self {
        Self {
            source: TroubleSource::Handler,
            stream: Some(stream.clone()),
            ..Self::of_flush(error)
        }
    }
}

/// A failure that lasts.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Failing {
    pub(in crate::runner) noted: Noted,
    /// The time of the first failure.
    pub(in crate::runner) since: Instant,
    /// The version of the event that has failed.
    pub(in crate::runner) version: Option<Version>,
    pub(in crate::runner) partition: Option<PartitionId>,
    /// The number of attempts at the event.
    pub(in crate::runner) attempts: u32,
}

impl Failing {
    pub(in crate::runner) const fn step(noted: Noted, since: Instant) -> Self {
        Self {
            noted,
            since,
            version: None,
            partition: None,
            attempts: 0,
        }
    }
}

/// The state of a processor at one moment.
#[derive(Clone, Debug, Default)]
pub(in crate::runner) struct Snapshot {
    /// The processor is a member of its group, and no partition waits for its start.
    pub(in crate::runner) is_serving: bool,
    pub(in crate::runner) is_ending: bool,
    /// The time since which new events are not handled, since too much is parked or dead.
    pub(in crate::runner) held_since: Option<Instant>,
    /// An operator has paused the processor.
    pub(in crate::runner) is_paused: bool,
    /// The low watermark of each partition that is owned.
    pub(in crate::runner) low: Vec<(PartitionId, Offset)>,
    /// Attempts that run.
    pub(in crate::runner) in_flight: usize,
    /// Attempts of which nothing was heard for too long.
    pub(in crate::runner) stuck: usize,
    pub(in crate::runner) waiting_lanes: usize,
    /// Records that were received and are not committed, and their bytes.
    pub(in crate::runner) held_records: usize,
    pub(in crate::runner) held_bytes: usize,
    /// When the oldest event was recorded that has arrived and is not handled.
    pub(in crate::runner) oldest_event: Option<Timestamp>,
    /// Failures of the bus, of stores and of the read model.
    pub(in crate::runner) failing: Vec<Failing>,
    pub(in crate::runner) oldest_retry: Option<Failing>,
    /// `None` if nobody counts them.
    pub(in crate::runner) parked: Option<u64>,
    pub(in crate::runner) dead_letters: Option<u64>,
    pub(in crate::runner) breaker: Option<CircuitState>,
}

impl Machine {
    /// Returns the state of the processor. The cost grows with its partitions and lanes, so the
    /// driver does not ask after each input.
    pub(in crate::runner) fn snapshot(&self, now: Instant) -> Snapshot {
        let owned = &self.partitions.owned;
        let windows = || owned.values().map(|owned| &owned.window);
        let is_starting = owned
            .values()
            .any(|o| matches!(o.phase, Phase::Starting(_)));
        // The rows of a partition that starts are not read yet.
        let is_loaded = self.membership.state == Member::In && !is_starting;
        let count = |rows: usize| u64::try_from(rows).unwrap_or(u64::MAX);
        Snapshot {
            is_serving: is_loaded,
            is_ending: self.ending.as_ref().is_some_and(|ending| ending.is_end()),
            held_since: self.holding.since,
            is_paused: self.polling.is_paused,
            low: owned
                .iter()
                .map(|(p, owned)| (p.clone(), owned.window.low()))
                .collect(),
            in_flight: self.attempts.len().min(self.rules.policy.concurrency),
            stuck: self.attempts.stuck(now),
            waiting_lanes: self.lanes.waiting(),
            held_records: windows().map(Window::len).sum(),
            held_bytes: self.partitions.bytes(),
            oldest_event: self.oldest_event(),
            failing: self.failing(),
            oldest_retry: self.oldest_retry(),
            parked: is_loaded.then(|| count(self.parked())),
            dead_letters: is_loaded.then(|| count(self.letters())),
            breaker: (self.rules.breaker.as_ref()).map(|breaker| breaker.state_at(now)),
        }
    }

    fn oldest_event(&self) -> Option<Timestamp> {
        let arrived = self.partitions.owned.values().flat_map(|o| match &o.phase {
            Phase::Starting(starting) => &starting.arrived[..],
            _ => &[],
        });
        let records = self.lanes.heads().chain(arrived);
        records.map(|r| r.event.header.recorded_at).min()
    }

    fn failing(&self) -> Vec<Failing> {
        let mut failing = Vec::new();
        let step = |(noted, since): (&Noted, Instant)| Failing::step(noted.clone(), since);
        failing.extend(self.membership.failures().map(step));
        for (partition, owned) in &self.partitions.owned {
            if let Phase::Starting(starting) = &owned.phase {
                failing.extend(starting.patience.noted().map(|noted| Failing {
                    partition: Some(partition.clone()),
                    ..step(noted)
                }));
            }
        }
        failing.extend(self.polling.failures().map(step));
        let tasks = self.tasks.running.values();
        failing.extend(tasks.filter_map(|task| task.noted()).map(step));
        // What could not be made durable may be gone with its partition.
        let mut owned = self.partitions.owned.values();
        if owned.any(|owned| owned.window.to_commit().is_some()) {
            failing.extend(self.checkpoint.failures().map(step));
        }
        failing
    }

    fn oldest_retry(&self) -> Option<Failing> {
        let retries = self.lanes.retries();
        let noted = retries.filter_map(|retry| Some((retry.noted()?, retry.attempts())));
        // Lanes come in no order: the stream decides between two that failed at the same time.
        let oldest = noted.min_by(|((a, since, _), _), ((b, other, _), _)| {
            (since, &a.stream).cmp(&(other, &b.stream))
        });
        oldest.map(|((noted, since, version), attempts)| Failing {
            noted: noted.clone(),
            since,
            version: Some(version),
            partition: None,
            attempts,
        })
    }

    /// The bus answers. Receiving may have nothing to say for as long as there are no records.
    pub(super) fn reachable(&mut self) {
        if self.membership.receive_at.is_none() {
            self.membership.receives.reset();
        }
    }
}
