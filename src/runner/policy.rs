//! The policy of one processor.
use super::{BuildError, FailedEvent, FailureAction, failed_event::OnFailure};
use crate::{RetryPolicy, StreamId, breaker::CircuitBreaker};
use std::{fmt, sync::Arc, time::Duration};

/// The consequence of a halted processor for the others of its runner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnHalt {
    /// The others go on. The halt is visible in
    /// [`RunnerHandle::health`](super::RunnerHandle::health) meanwhile.
    #[default]
    KeepOthers,
    /// The others stop in order, as at a shutdown. For a process that is then started again as a
    /// whole.
    StopAll,
}

/// The action for an event of a subscribed aggregate type under a name that this build does not
/// know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownEvents {
    /// Skipped: the handler never cared.
    #[default]
    Skip,
    /// Poison: the handler is older than the writer.
    Fail,
}

/// The place at which a processor starts in a partition that it has never read. Resolved once to
/// offsets, which are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// At offset 0 of every partition. A projector's default. A partition whose log starts at a
    /// higher offset is [`PositionLost`](super::RunnerError::PositionLost), also with an event
    /// store: a stream whose records are all gone would never be met.
    Beginning,
    /// At the oldest record that each partition still holds, whatever retention has deleted before
    /// it.
    Oldest,
    /// After the newest record. A listener's default: a new listener does not repeat old side
    /// effects.
    Now,
}

/// The guarantee of a processor about events that come again after a crash.
///
/// Within a process, order and duplicates are checked at every level. A process that has lost its
/// partition can repeat an effect at every level but the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryLevel {
    /// The committed offset alone is durable: events since the last commit come again. The default
    /// of listeners and projectors. It costs nothing.
    #[default]
    AtLeastOnce,
    /// The position of each stream is stored in the control store before the offset is committed:
    /// an event is repeated only if a crash falls between its effect and the checkpoint. It costs
    /// one read of each stream that is met, and one write of each stream that was touched since the
    /// last checkpoint. The checkpoints are 10 s apart by default.
    ///
    /// A position is one version. A service without the event store passes a gap that it cannot
    /// fill, and handles the missing events if they come later, but only until it restarts or the
    /// partition moves: the next owner takes what lies below the position for duplicates. Give the
    /// runner the event store, or choose [`AtLeastOnce`](Self::AtLeastOnce), where a topic may
    /// deliver the events of a stream out of order.
    ///
    /// Keep the level once you have chosen it. A processor that runs at another level for a while
    /// stores no positions meanwhile. Back at this level it fills what it takes for gaps from the
    /// event store, and so repeats the events that it has handled in between.
    Deduplicated,
    /// The projector stores its position together with its rows, as
    /// [`Projector::position`](super::Projector::position) says: an event has its effect exactly
    /// once. The processor halts if the projector does not.
    ExactlyOnceEffect,
}

/// The limits of what one instance of a processor gives up before it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct GiveUpLimits {
    pub(super) parked: usize,
    pub(super) parked_per_minute: usize,
    pub(super) dead_letters: usize,
}
impl GiveUpLimits {
    const DEFAULT: Self = Self {
        parked: 1000,
        parked_per_minute: 100,
        dead_letters: 10_000,
    };
}

/// A function from a stream to the name of its lane.
#[derive(Clone)]
pub(super) struct LaneOf(pub(super) Arc<dyn Fn(&StreamId) -> String + Send + Sync>);
impl fmt::Debug for LaneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneOf(..)")
    }
}

/// The way in which one processor is run. Starts from [`listener`](Self::listener) or
/// [`projector`](Self::projector).
#[derive(Clone, Debug)]
pub struct ProcessorPolicy {
    pub(super) name: Option<Arc<str>>,
    pub(super) instance_id: Option<Arc<str>>,
    pub(super) start: Start,
    pub(super) retry: RetryPolicy,
    pub(super) on_failure: OnFailure,
    pub(super) unknown_events: UnknownEvents,
    pub(super) concurrency: usize,
    pub(super) attempt_timeout: Duration,
    pub(super) drain: Duration,
    pub(super) level: DeliveryLevel,
    pub(super) lane: Option<LaneOf>,
    pub(super) dead_letter_topic: Option<Arc<str>>,
    pub(super) max_batch: usize,
    pub(super) checkpoint_interval: Option<Duration>,
    pub(super) max_records: usize,
    pub(super) max_bytes: usize,
    pub(super) max_total_bytes: usize,
    pub(super) limits: GiveUpLimits,
    pub(super) breaker: Option<CircuitBreaker>,
}

impl ProcessorPolicy {
    /// Starts [`Now`](Start::Now), handles 16 streams at a time, retries, then stores a dead
    /// letter.
    #[must_use]
    pub fn listener() -> Self {
        Self {
            name: None,
            instance_id: None,
            start: Start::Now,
            retry: RetryPolicy::default(),
            on_failure: OnFailure::default(),
            unknown_events: UnknownEvents::Skip,
            concurrency: 16,
            attempt_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(20),
            level: DeliveryLevel::AtLeastOnce,
            lane: None,
            dead_letter_topic: None,
            max_batch: 1,
            checkpoint_interval: None,
            max_records: 4000,
            max_bytes: 16 * 1024 * 1024,
            max_total_bytes: 64 * 1024 * 1024,
            limits: GiveUpLimits::DEFAULT,
            breaker: Some(CircuitBreaker::default()),
        }
    }
    /// Starts at the [`Beginning`](Start::Beginning), handles 16 streams at a time, retries, then
    /// parks the stream.
    #[must_use]
    pub fn projector() -> Self {
        Self {
            start: Start::Beginning,
            unknown_events: UnknownEvents::Fail,
            breaker: None,
            ..Self::listener()
        }
    }
    /// Sets another name, and so another consumer group, for a second instance of one type or for a
    /// model that is built again.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }
    /// Joins the consumer group as a static member with this id, which must be unique among the
    /// instances of the processor: after a restart within the session timeout the instance gets its
    /// partitions back, without a rebalance of the others. Such a member does not leave at a
    /// shutdown. Default: a dynamic member.
    #[must_use]
    pub fn with_instance_id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.instance_id = Some(id.into());
        self
    }
    /// Sets the place at which it starts in a partition that it has never read. Default
    /// [`Start::Now`] for a listener, [`Start::Beginning`] for a projector.
    #[must_use]
    pub const fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }
    /// Sets the way in which a failed event is retried. Default [`RetryPolicy::default`].
    #[must_use]
    pub const fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }
    /// Sets the action for an event whose retries are spent, or that must not be retried. Default
    /// [`FailedEvent::default_action`]: a projector parks the stream, a listener stores a dead
    /// letter. A failure of the class [`Fatal`](super::ErrorClass::Fatal) always halts, and so does
    /// a policy that panics.
    #[must_use]
    pub fn with_on_failure(
        mut self,
        action: impl Fn(&FailedEvent<'_>) -> FailureAction + Send + Sync + 'static,
    ) -> Self {
        self.on_failure = OnFailure(Arc::new(action));
        self
    }
    /// Sets the action for an event of a subscribed aggregate type under a name that this build
    /// does not know. Default [`UnknownEvents::Skip`] for a listener, and [`UnknownEvents::Fail`]
    /// for a projector: a newer build will know the event, and must find it.
    #[must_use]
    pub const fn with_unknown_events(mut self, unknown: UnknownEvents) -> Self {
        self.unknown_events = unknown;
        self
    }
    /// Sets the number of streams handled at the same time, from 1; within a stream it is always
    /// one event after the other. Default 16.
    #[must_use]
    pub const fn with_concurrency(mut self, streams: usize) -> Self {
        self.concurrency = streams;
        self
    }
    /// Sets the time that one call of a handler may take before it counts as a transient failure.
    /// Default 30 s.
    #[must_use]
    pub const fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout;
        self
    }
    /// Sets the most time that a shutdown or a rebalance waits for running handlers. Default 20 s.
    #[must_use]
    pub const fn with_drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }
    /// Sets the guarantee about events that come again after a crash. Default
    /// [`DeliveryLevel::AtLeastOnce`].
    #[must_use]
    pub const fn with_level(mut self, level: DeliveryLevel) -> Self {
        self.level = level;
        self
    }
    /// Sets the interval of checkpoints: read model flushed, positions stored, offsets committed. A
    /// longer one costs fewer writes and repeats more after a crash. Default 1 s, and 10 s at
    /// [`DeliveryLevel::Deduplicated`].
    #[must_use]
    pub const fn with_commit_interval(mut self, interval: Duration) -> Self {
        self.checkpoint_interval = Some(interval);
        self
    }
    /// Sets the most neighbouring events of a stream that one call of
    /// [`handle_batch`](super::Listener::handle_batch) or
    /// [`project_batch`](super::Projector::project_batch) gets. Default 1: the handler is called
    /// for each event. A batch ends where an event of another stream follows, also in a lane that
    /// several streams share.
    #[must_use]
    pub const fn with_max_batch(mut self, events: usize) -> Self {
        self.max_batch = events;
        self
    }
    /// Sets the lane of each stream: streams of one lane are handled one event after the other, so
    /// that a handler may, for example, read and write the row of a customer without a race between
    /// two orders of that customer. Default: a lane of its own for each stream.
    ///
    /// A lane is parked as a whole: when one of its streams fails, the others wait, too, each from
    /// the first record that is met on. A redrive of any of them redrives the lane, in the order of
    /// the records. Each deferred record of a shared lane costs one small row.
    ///
    /// The lanes of two instances are independent, so streams share a lane in earnest only if their
    /// records are in one partition. The part of a lane in another partition is not parked.
    #[must_use]
    pub fn with_lane(mut self, lane: impl Fn(&StreamId) -> String + Send + Sync + 'static) -> Self {
        self.lane = Some(LaneOf(Arc::new(lane)));
        self
    }
    /// Sets the records and bytes of each partition that are held without being committed. A
    /// partition that holds as many is paused, and resumed when it holds half as many. A checkpoint
    /// begins once a quarter of them is done. Each record counts 1 KiB beside its key, value and
    /// headers, which is about what the processor keeps with it.
    ///
    /// Raising them costs memory, and repeats more after a crash. Lowering them makes a fast
    /// handler wait for offset commits: what is handled while one is under way must fit in, too.
    /// Default 4,000 records and 16 MiB.
    #[must_use]
    pub const fn with_window(mut self, records: usize, bytes: usize) -> Self {
        (self.max_records, self.max_bytes) = (records, bytes);
        self
    }
    /// Sets the bytes that all partitions of the processor together hold without being committed.
    /// Default 64 MiB.
    #[must_use]
    pub const fn with_max_memory(mut self, bytes: usize) -> Self {
        self.max_total_bytes = bytes;
        self
    }

    /// Sets how much the processor gives up before it holds: parked streams, streams that are
    /// parked within a minute, and dead letters. A processor that holds pauses its partitions and
    /// keeps the failed events where they are; it goes on when operators have brought each number
    /// below half. So an error that concerns every event does not turn every event into a dead
    /// letter.
    ///
    /// The limits are for each instance, over the rows of its partitions. Default 1,000 parked
    /// streams, 100 within a minute, and 10,000 dead letters. A processor with a limit of zero
    /// never gets below half of it: it tries the failed events again once in a minute until they go
    /// well.
    #[must_use]
    pub const fn with_limits(
        mut self,
        parked: usize,
        parked_per_minute: usize,
        dead_letters: usize,
    ) -> Self {
        self.limits = GiveUpLimits {
            parked,
            parked_per_minute,
            dead_letters,
        };
        self
    }

    /// Sends a copy of each dead letter to a topic of the bus, for tools that read dead letters
    /// there. The topic must exist. Default: none.
    ///
    /// The copy is sent once the letter is stored, with best effort: it is counted if it could not
    /// be sent ([`ProcessorReport::dead_letters_not_sent`](super::ProcessorReport)), and no offset
    /// waits for it. A letter that is written again, by a redrive that fails or after a crash, is
    /// sent again. Operators list, redrive and discard the stored letters only.
    ///
    /// The copy has the key, the value and the headers of the record, and these headers:
    ///
    /// | header | value |
    /// |---|---|
    /// | `__connect.errors.topic`, `.partition`, `.offset` | the place of the record; no offset if the event was read from the event store |
    /// | `__connect.errors.exception.class.name` | the type of the error |
    /// | `__connect.errors.exception.message` | the error and its sources, at most 4 KiB |
    /// | `fs_processor`, `fs_attempts`, `fs_fingerprint` | as in the letter |
    /// | `fs_value_omitted` | the bytes of the value, which was left out since the copy is over the limit of the topic |
    ///
    /// It goes to the partition with the same number if the topic has as many, and otherwise to the
    /// one of its key.
    #[must_use]
    pub fn with_dead_letter_topic(mut self, topic: impl Into<Arc<str>>) -> Self {
        self.dead_letter_topic = Some(topic.into());
        self
    }

    /// Puts this circuit breaker around the calls of the handler. While it is open, the partitions
    /// are paused, an event that failed waits at the head of its stream with no attempt spent, and
    /// the time does not count towards the limits of retries: an outage of the service that the
    /// handler calls ends without dead letters. Default: a breaker with the default
    /// [`BreakerPolicy`](crate::breaker::BreakerPolicy) for a listener, none for a projector.
    ///
    /// Give processors that call the same service clones of one breaker.
    #[must_use]
    pub fn with_breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Some(breaker);
        self
    }
    /// Calls the handler without a circuit breaker.
    #[must_use]
    pub fn without_breaker(mut self) -> Self {
        self.breaker = None;
        self
    }

    /// The interval of checkpoints.
    pub(super) fn commit_interval(&self) -> Duration {
        self.checkpoint_interval.unwrap_or(match self.level {
            DeliveryLevel::Deduplicated => Duration::from_secs(10),
            DeliveryLevel::AtLeastOnce | DeliveryLevel::ExactlyOnceEffect => Duration::from_secs(1),
        })
    }

    pub(super) fn validate(&self) -> Result<(), BuildError> {
        let invalid = |field, reason: &str| {
            Err(BuildError::Invalid {
                field,
                reason: reason.into(),
            })
        };
        if self.concurrency == 0 {
            return invalid("concurrency", "at least 1 stream at a time");
        }
        if self.max_batch == 0 {
            return invalid("max_batch", "at least 1 event");
        }
        if self.max_total_bytes == 0 {
            return invalid("max_memory", "at least 1 byte");
        }
        if self.max_records == 0 || self.max_bytes == 0 {
            return invalid("window", "at least 1 record and 1 byte");
        }
        if self.attempt_timeout.is_zero() {
            return invalid("attempt_timeout", "longer than zero");
        }
        if self.commit_interval().is_zero() {
            return invalid("commit_interval", "longer than zero");
        }
        if let Some(topic) = &self.dead_letter_topic
            && let Err(error) = crate::adapter::check_topic(topic)
        {
            return invalid("dead_letter_topic", &error.to_string());
        }
        Ok(())
    }
}
