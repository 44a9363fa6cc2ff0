//! [`ReadModels`]: the generation of a read model that queries read, and the wait for one's own
//! writes.
use super::{
    DeliveryLevel, Entry, HandlerError, ModelId, Position, RunnerBuilder, driver::in_time_of,
    generations::Idle,
};
use crate::{
    StreamHead, StreamId, Version,
    adapter::kafka_partition,
    control::{Generations, ProcessorRows, Rows, StreamPositions},
    ports::{ControlStoreError, MessageBusError, PartitionId},
    resilience::{Failure, FailureClass},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The first and the longest pause between two looks at a position.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The time for which a build keeps to the generation that it read before a newer build's model
/// took its place. The generation is not deleted earlier.
const KEPT: Duration = Duration::from_secs(600);

/// The read models of a runner's projectors, for those who query them.
///
/// A replay builds another generation of a read model beside the one that serves, and a switch
/// makes it the one to read. Queries therefore ask for the [active
/// model](Self::active_model). A caller that must see what it has just written
/// [waits for it](Self::wait_for), and reads the model that the answer names.
///
/// Clones share a cache. The processors need not run in this process: a service that only answers
/// queries builds the same [`Runner`](super::Runner) and does not start it.
///
/// # Example
/// ```
/// # use foldstream::{DomainEvent, ports::ControlStore};
/// # use foldstream::runner::{EventContext, HandlerResult, ModelId, Projector, Runner};
/// # use foldstream_testkit::{InMemoryControlStore, InMemoryMessageBus};
/// # use std::time::Duration;
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "order")]
/// # enum OrderEvent { Placed {} }
/// # struct Orders;
/// # impl Projector for Orders {
/// #     const NAME: &'static str = "orders";
/// #     type Events = OrderEvent;
/// #     async fn project(&self, _: &OrderEvent, _: &EventContext) -> HandlerResult { Ok(()) }
/// #     async fn reset(&self, _: &ModelId) -> HandlerResult { Ok(()) }
/// # }
/// # let mut runtime = tokio::runtime::Builder::new_current_thread();
/// # runtime.enable_time().start_paused(true).build()?.block_on(async {
/// # let bus = InMemoryMessageBus::new();
/// # bus.create_topic("GlobalEvents", 1);
/// let runner = Runner::builder(bus, InMemoryControlStore::new(), "shop")
///     .projector(Orders)
///     .build()?;
/// let handle = runner.start();
/// tokio::time::sleep(Duration::from_secs(5)).await;
/// let model = runner.read_models().active_model("orders").await?;
/// assert_eq!(model.to_string(), "orders.g1");
/// # drop(handle);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone)]
pub struct ReadModels {
    shared: Arc<RunnerBuilder>,
    rows: Rows,
    cache: Arc<Mutex<BTreeMap<Arc<str>, Cached>>>,
}

impl fmt::Debug for ReadModels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// The active generation of this build's model, as it was read last.
#[derive(Clone, Copy, Debug)]
struct Cached {
    generation: u32,
    read_at: Instant,
    /// The time since which the model of another build serves.
    replaced_since: Option<Instant>,
}

/// The error returned when a read model or its position is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadModelError {
    /// The runner has no projector of this name.
    #[error("there is no projector {name:?}: the runner has {known:?}")]
    Unknown {
        /// The name that was given.
        name: String,
        /// The names of the projectors.
        known: Vec<Arc<str>>,
    },
    /// The projector has never been started on this control store.
    #[error("projector {processor} has not been started yet")]
    NotStarted {
        /// The projector.
        processor: Arc<str>,
    },
    /// The model of another build serves.
    #[error("projector {processor}: {reason}")]
    OtherModel {
        /// The projector.
        processor: Arc<str>,
        /// A description of what serves, and of what to do.
        reason: String,
    },
    /// A replay in place builds the model again, so that nothing is known of it until it has ended.
    #[error(
        "a replay builds the read model of projector {processor} again in place, or has emptied it and was cancelled"
    )]
    Rebuilding {
        /// The projector.
        processor: Arc<str>,
    },
    /// The projector does not subscribe to the stream.
    #[error("projector {processor} does not subscribe to {stream}")]
    NotSubscribed {
        /// The projector.
        processor: Arc<str>,
        /// The stream.
        stream: StreamId,
    },
    /// The projector stores no positions: its level is
    /// [`AtLeastOnce`](DeliveryLevel::AtLeastOnce), or its
    /// [`position`](super::Projector::position) leaves them to the runner.
    #[error(
        "projector {processor} stores no positions: choose DeliveryLevel::Deduplicated or ExactlyOnceEffect to wait for it"
    )]
    NoPositions {
        /// The projector.
        processor: Arc<str>,
    },
    /// The stream is parked at this version or before it, and waits for an operator.
    #[error("projector {processor} has parked {stream} at version {from}")]
    Parked {
        /// The projector.
        processor: Arc<str>,
        /// The stream.
        stream: StreamId,
        /// The first version that is not in the model.
        from: Version,
    },
    /// The version was not reached in time.
    #[error(
        "projector {processor} has not reached version {version} of {stream} in time: it is at {reached}"
    )]
    TimedOut {
        /// The projector.
        processor: Arc<str>,
        /// The stream.
        stream: StreamId,
        /// The version that was waited for.
        version: Version,
        /// The last position; 0 if there was none.
        reached: Version,
    },
    /// The control store refuses or fails.
    #[error("the state of projector {processor} cannot be read")]
    Control {
        /// The projector.
        processor: Arc<str>,
        /// The cause.
        #[source]
        source: ControlStoreError,
    },
    /// The bus refuses or fails.
    #[error("the partitions of the topics of projector {processor} cannot be read")]
    Bus {
        /// The projector.
        processor: Arc<str>,
        /// The cause.
        #[source]
        source: MessageBusError,
    },
    /// The read model cannot tell its position.
    #[error("the read model of projector {processor} cannot tell its position: {reason}")]
    Position {
        /// The projector.
        processor: Arc<str>,
        /// The error of the projector, as one line.
        reason: String,
        /// True if the projector may tell it later.
        is_transient: bool,
    },
}

/// The result of one look at a position.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// The model of this generation has the version.
    Yes(u32),
    NotYet,
    /// Another generation serves than the one whose position was read.
    Again,
}

/// Judges a position that was read between two reads of the row `proc`.
///
/// A switch may come between the position and the caller's query. The caller is told the
/// generation, and a generation that was left is kept for a while, so what counts is that the
/// generation of the position was still active *after* the position was read.
fn judge(before: u32, position: Version, version: Version, after: u32) -> Look {
    if position < version {
        return Look::NotYet;
    }
    if before != after {
        return Look::Again;
    }
    Look::Yes(before)
}

impl ReadModels {
    /// The time for which the active model is remembered. A generation that was left is kept for
    /// ten minutes at least, so a query that asks the one before finds it complete up to the
    /// switch.
    pub const CACHED_FOR: Duration = Duration::from_secs(1);

    pub(super) fn new(shared: Arc<RunnerBuilder>) -> Self {
        Self {
            rows: Rows::new(shared.control.clone(), shared.ids.clone()),
            shared,
            cache: Arc::default(),
        }
    }

    /// Returns the read model that queries of a projector read now. It is at most
    /// [one second](Self::CACHED_FOR) old, so that most calls cost no request.
    ///
    /// After the switch to the model of a newer build, a build keeps for ten minutes to the
    /// generation that it read before, so that a rolling deployment goes on answering queries.
    ///
    /// # Errors
    /// - [`ReadModelError::Unknown`] if the runner has no projector of this name.
    /// - [`ReadModelError::NotStarted`] if the projector has never been started.
    /// - [`ReadModelError::OtherModel`] if there is no generation that this build can read.
    /// - [`ReadModelError::Control`] if the control store refuses or fails.
    pub async fn active_model(&self, projector: &str) -> Result<ModelId, ReadModelError> {
        let entry = self.entry(projector)?;
        let now = Instant::now();
        let known = self.cached(&entry.name);
        if let Some(known) = known
            && now.duration_since(known.read_at) < Self::CACHED_FOR
        {
            return Ok(ModelId::new(entry.name.clone(), known.generation));
        }
        let row = self.generations(entry).await?;
        let cached = if row.model == entry.model {
            Cached {
                generation: row.active,
                read_at: now,
                replaced_since: None,
            }
        } else {
            let since = |known: &Cached| known.replaced_since.unwrap_or(now);
            let known = known.filter(|known| now.duration_since(since(known)) < KEPT);
            let known = known.ok_or_else(|| other_model(entry, &row))?;
            Cached {
                read_at: now,
                replaced_since: Some(since(&known)),
                ..known
            }
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(entry.name.clone(), cached);
        Ok(ModelId::new(entry.name.clone(), cached.generation))
    }

    /// Waits until the active read model has taken in a version of a stream, and returns that
    /// model: read your writes.
    ///
    /// The caller queries the model that is returned. A switch may make another generation the
    /// active one at any time, and the answer says nothing about that one. The position is looked
    /// at every 20 to 500 ms. With [`Deduplicated`](DeliveryLevel::Deduplicated) it moves with the
    /// checkpoints of the processor, every 10 s by default. A version of events that the projector
    /// never gets, such as private events, is not reached.
    ///
    /// # Errors
    /// At once:
    /// - [`ReadModelError::Unknown`] if the runner has no projector of this name.
    /// - [`ReadModelError::NotSubscribed`] if the projector does not subscribe to the stream.
    /// - [`ReadModelError::NoPositions`] if the projector stores no positions.
    /// - [`ReadModelError::Parked`] if the stream is parked at the version or before it.
    /// - [`ReadModelError::Rebuilding`] if a replay in place builds the model again.
    /// - [`ReadModelError::OtherModel`] if the model of another build serves.
    /// - [`ReadModelError::Control`], [`ReadModelError::Bus`] or [`ReadModelError::Position`] if
    ///   the control store, the bus or the read model refuses.
    ///
    /// After the time:
    /// - [`ReadModelError::TimedOut`] if the version was not reached.
    /// - [`ReadModelError::NotStarted`] if the projector has not been started yet.
    /// - [`ReadModelError::Control`], [`ReadModelError::Bus`] or [`ReadModelError::Position`] if
    ///   the control store, the bus or the read model was still away.
    pub async fn wait_for(
        &self,
        projector: &str,
        stream: &StreamId,
        version: Version,
        timeout: Duration,
    ) -> Result<ModelId, ReadModelError> {
        let entry = self.entry(projector)?;
        self.check(entry, stream)?;
        let by = super::machine::later(Instant::now(), timeout);
        let ((mut pause, longest), mut places) = (PAUSES, None);
        loop {
            let mut last = Version::NONE;
            let looked = self.look(entry, (stream, version), &mut last, &mut places);
            let error = match looked.await {
                Ok(Look::Yes(generation)) => {
                    return Ok(ModelId::new(entry.name.clone(), generation));
                }
                Ok(Look::Again) if Instant::now() < by => continue,
                Ok(Look::NotYet | Look::Again) => None,
                // The first instance may be about to start.
                Err(error @ ReadModelError::NotStarted { .. }) => Some(error),
                Err(error) if error.is_transient() => Some(error),
                Err(error) => return Err(error),
            };
            let now = Instant::now();
            if now >= by {
                return Err(error.unwrap_or_else(|| ReadModelError::TimedOut {
                    processor: entry.name.clone(),
                    stream: stream.clone(),
                    version,
                    reached: last,
                }));
            }
            tokio::time::sleep_until(by.min(now + pause)).await;
            pause = longest.min(pause * 2);
        }
    }

    /// Waits as [`wait_for`](Self::wait_for) does, for what a command has written: pass the
    /// [head](crate::Executed::head) that the command has returned.
    ///
    /// # Errors
    /// Those of [`wait_for`](Self::wait_for).
    pub async fn wait_for_head(
        &self,
        projector: &str,
        head: &StreamHead,
        timeout: Duration,
    ) -> Result<ModelId, ReadModelError> {
        let (stream, version) = (head.stream(), head.version());
        self.wait_for(projector, stream, version, timeout).await
    }

    fn cached(&self, name: &str) -> Option<Cached> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(name).copied()
    }

    fn entry(&self, name: &str) -> Result<&Entry, ReadModelError> {
        let projectors = || {
            self.shared
                .entries
                .iter()
                .filter(|e| e.processor.is_projector())
        };
        let found = projectors().find(|entry| &*entry.name == name);
        found.ok_or_else(|| ReadModelError::Unknown {
            name: name.into(),
            known: projectors().map(|entry| entry.name.clone()).collect(),
        })
    }

    /// Checks what is known without a request.
    fn check(&self, entry: &Entry, stream: &StreamId) -> Result<(), ReadModelError> {
        let processor = entry.name.clone();
        let selectors = entry.processor.selectors();
        if !selectors.iter().any(|s| s.aggregate == stream.aggregate()) {
            let stream = stream.clone();
            return Err(ReadModelError::NotSubscribed { processor, stream });
        }
        if entry.policy.level == DeliveryLevel::AtLeastOnce {
            return Err(ReadModelError::NoPositions { processor });
        }
        Ok(())
    }

    async fn generations(&self, entry: &Entry) -> Result<Generations, ReadModelError> {
        let row = self.rows.generations(&entry.name).await;
        let row = row.map_err(|e| control(entry, e))?;
        row.map(|row| row.value)
            .ok_or_else(|| ReadModelError::NotStarted {
                processor: entry.name.clone(),
            })
    }

    /// Returns the generation whose position may be asked for.
    async fn active(&self, entry: &Entry) -> Result<u32, ReadModelError> {
        let row = self.generations(entry).await?;
        if row.stop == Some(true) {
            let processor = entry.name.clone();
            return Err(ReadModelError::Rebuilding { processor });
        }
        if row.model != entry.model {
            return Err(other_model(entry, &row));
        }
        Ok(row.active)
    }

    async fn look(
        &self,
        entry: &Entry,
        (stream, version): (&StreamId, Version),
        reached: &mut Version,
        places: &mut Option<Vec<PartitionId>>,
    ) -> Result<Look, ReadModelError> {
        let before = self.active(entry).await?;
        *reached = self.position(entry, before, stream).await?;
        let look = judge(before, *reached, version, self.active(entry).await?);
        if look == Look::NotYet {
            // A topic keeps its partitions while a stream of it is parked: they are asked for once.
            let places = match places {
                Some(places) => places,
                None => places.insert(self.places(entry, stream).await?),
            };
            self.check_parked(entry, before, (stream, version), places)
                .await?;
        }
        Ok(look)
    }

    async fn position(
        &self,
        entry: &Entry,
        generation: u32,
        stream: &StreamId,
    ) -> Result<Version, ReadModelError> {
        if entry.policy.level == DeliveryLevel::Deduplicated {
            let (control_store, ids) = (self.shared.control.clone(), self.shared.ids.clone());
            let positions = StreamPositions::new(control_store, ids, &entry.name, generation);
            let found = positions.get(stream).await;
            let found = found.map_err(|e| control(entry, e))?;
            return Ok(found.map_or(Version::NONE, |(version, _)| version));
        }
        let model = ModelId::new(entry.name.clone(), generation);
        let position = entry.processor.position(&model, stream);
        let position = in_time_of("position", position, entry.policy.attempt_timeout);
        match position.await {
            Ok(Position::Stored { version, .. }) => Ok(version),
            Ok(Position::KeptByRunner) => Err(ReadModelError::NoPositions {
                processor: entry.name.clone(),
            }),
            Err(error) => Err(position_error(entry, &error)),
        }
    }

    /// Returns the partition of each topic in which a stream would be parked.
    async fn places(
        &self,
        entry: &Entry,
        stream: &StreamId,
    ) -> Result<Vec<PartitionId>, ReadModelError> {
        let pinned = self.rows.pinned_topics().await;
        let pinned: BTreeMap<_, _> = pinned.map_err(|e| control(entry, e))?.into_iter().collect();
        let mut places = Vec::new();
        for topic in &self.shared.topics {
            let count = match pinned.get(&**topic) {
                Some(count) => *count,
                None => {
                    let described = self.shared.bus.describe_topic(topic).await;
                    described
                        .map_err(|source| ReadModelError::Bus {
                            processor: entry.name.clone(),
                            source,
                        })?
                        .partitions
                }
            };
            let number = kafka_partition(stream.as_str().as_bytes(), count);
            places.push(PartitionId::new(topic.clone(), number));
        }
        Ok(places)
    }

    /// Returns an error if the stream waits for an operator at the version or before it.
    async fn check_parked(
        &self,
        entry: &Entry,
        generation: u32,
        (stream, version): (&StreamId, Version),
        places: &[PartitionId],
    ) -> Result<(), ReadModelError> {
        let (control_store, ids) = (self.shared.control.clone(), self.shared.ids.clone());
        let (clock, name) = (self.shared.clock.clone(), entry.name.clone());
        let rows = ProcessorRows::over(control_store, ids, clock, name, generation);
        for partition in places {
            let row = rows.park_get(partition, stream).await;
            let row = row.map_err(|e| control(entry, e))?;
            if let Some(row) = row.filter(|row| row.value.from <= version) {
                return Err(ReadModelError::Parked {
                    processor: entry.name.clone(),
                    stream: stream.clone(),
                    from: row.value.from,
                });
            }
        }
        Ok(())
    }
}

impl ReadModelError {
    /// Returns true if a backend was away or busy, so that the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Control { source, .. } => source.failure_class() != FailureClass::Permanent,
            Self::Bus { source, .. } => source.is_transient(),
            Self::Position { is_transient, .. } => *is_transient,
            _ => false,
        }
    }
}

fn control(entry: &Entry, source: ControlStoreError) -> ReadModelError {
    ReadModelError::Control {
        processor: entry.name.clone(),
        source,
    }
}

fn position_error(entry: &Entry, error: &HandlerError) -> ReadModelError {
    ReadModelError::Position {
        processor: entry.name.clone(),
        reason: crate::chain(error.source()),
        is_transient: FailureClass::from(error.class()) != FailureClass::Permanent,
    }
}

fn other_model(entry: &Entry, row: &Generations) -> ReadModelError {
    let reason = Idle::of(entry.model, row.model).map_or_else(String::new, |idle| idle.to_string());
    ReadModelError::OtherModel {
        processor: entry.name.clone(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_of_the_generation_before_is_not_an_answer() {
        let (five, six) = (Version::new(5), Version::new(6));
        assert_eq!(judge(1, five, five, 1), Look::Yes(1));
        assert_eq!(judge(1, six, five, 1), Look::Yes(1));
        assert_eq!(judge(1, five, six, 1), Look::NotYet);
        assert_eq!(judge(1, five, five, 2), Look::Again);
    }
}
