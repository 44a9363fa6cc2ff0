//! [`Rebuild`]: one generation of a projector's read model, as a replay builds it.
//!
//! The events of a replay take the same steps as those of the bus: they pass the outbox and the
//! skipped versions, are opened, lifted and decoded, and are handled one after the other within a
//! stream. What is different is who carries out the policy: a replay retries in place, and parks
//! streams by rows of the new generation, which the runner finds when it begins to serve it.
mod give_up;
mod parked;

pub(crate) use super::attempt::Only;
use super::{
    DeliveryLevel, Entry, ErrorClass, HandlerError, HandlerResult, ModelId, PartialReplay,
    ProcessorPolicy, ReplayPart, Runner, RunnerBuilder, Start,
    attempt::{self, Attempt, AttemptRules, Buffers, KnownSkips, Shared, panic_message},
    driver::within,
    group_name,
    machine::{Ended, Failure, FailureOf, Outcome, Work},
    report::Counts,
    signals::Signals,
    spans::Spans,
    streams::Progress,
};
use crate::{
    BoxError, Clock, CommitId, IdSource, RetryPolicy, StreamId, Version, chain,
    control::{ProcessorRows, StreamPositions},
    kafka_partition,
    ports::{Commit, ControlStore, ControlStoreError, EventStore, MessageBus, PartitionId},
    publisher::TopicRoute,
    resilience::{FailureClass, Retryable, Retrying},
};
use futures::{FutureExt, StreamExt, TryStreamExt};
use parked::ParkedStreams;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The positions that are written at the same time.
const WRITES: usize = 32;

/// The most skipped versions that a replay keeps in memory. With more, those of a stream are read
/// when its events are.
const SKIPS: usize = 10_000;

/// The most streams whose positions wait for a checkpoint. With more, the projector waits, so that
/// a replay whose positions are written slowly takes no more memory.
const TOUCHED: usize = 10_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A processor of a runner that may be replayed.
#[derive(Clone)]
pub(crate) struct Candidate {
    runner: Arc<RunnerBuilder>,
    index: usize,
}

/// The ports of a runner.
pub(crate) struct RunnerPorts {
    pub(crate) bus: Arc<dyn MessageBus>,
    pub(crate) control: Arc<dyn ControlStore>,
    pub(crate) store: Option<Arc<dyn EventStore>>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) topics: Vec<Arc<str>>,
    /// The name of this process.
    pub(crate) label: Arc<str>,
}

impl Runner {
    /// Returns the registered processors, in the order of their registration.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let indices = 0..self.shared.entries.len();
        let of = |index| Candidate {
            runner: self.shared.clone(),
            index,
        };
        indices.map(of).collect()
    }
    /// Returns the ports.
    pub(crate) fn ports(&self) -> RunnerPorts {
        let of = &self.shared;
        RunnerPorts {
            bus: of.bus.clone(),
            control: of.control.clone(),
            store: of.history.clone(),
            ids: of.ids.clone(),
            clock: of.clock.clone(),
            topics: of.topics.clone(),
            label: of.label.clone(),
        }
    }
    /// Reads the events that operators keep out of the topic; `None` if they are too many to keep.
    pub(crate) async fn known_skips(&self) -> Result<Option<KnownSkips>, ControlStoreError> {
        let rows = self.shared.public_history().rows;
        let skips = rows.all_skips(SKIPS).await?;
        Ok(skips.map(Arc::new))
    }
}

impl Candidate {
    fn entry(&self) -> &Entry {
        &self.runner.entries[self.index]
    }
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.entry().name
    }
    pub(crate) fn is_projector(&self) -> bool {
        self.entry().processor.is_projector()
    }
    /// Returns `Projector::MODEL`.
    pub(crate) fn model(&self) -> u32 {
        self.entry().model
    }
    pub(crate) fn partial_replay(&self) -> PartialReplay {
        self.entry().processor.partial_replay()
    }
    /// Returns the subscribed aggregate types, each with the names of its event types.
    pub(crate) fn subscriptions(&self) -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        let mut types: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for selector in self.entry().processor.selectors() {
            let names = selector.types.iter().map(crate::EventType::name);
            types.entry(selector.aggregate).or_default().extend(names);
        }
        types
    }
    pub(crate) fn concurrency(&self) -> usize {
        self.entry().policy.concurrency
    }
    pub(crate) fn has_shared_lanes(&self) -> bool {
        self.entry().policy.lane.is_some()
    }
    /// Returns the name of the lane of a stream.
    pub(crate) fn lane(&self, stream: &StreamId) -> String {
        let lane = self.entry().policy.lane.as_ref();
        lane.map_or_else(|| stream.as_str().to_owned(), |lane| (lane.0)(stream))
    }
}

/// The places at which the streams are in the topics, for the rows about failed events.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) route: TopicRoute,
    /// The pinned number of partitions of each topic.
    pub(crate) partitions: BTreeMap<Arc<str>, u32>,
}

impl Places {
    fn of(&self, stream: &StreamId) -> PartitionId {
        let topic = self.route.topic(stream);
        let count = self.partitions.get(&topic).copied().unwrap_or(1).max(1);
        PartitionId::new(topic, kafka_partition(stream.as_str().as_bytes(), count))
    }
    fn all(&self) -> impl Iterator<Item = PartitionId> {
        let topics = self.partitions.iter();
        topics.flat_map(|(topic, count)| {
            (0..*count).map(|number| PartitionId::new(topic.clone(), number))
        })
    }
}

/// The progress of a replay in one stream.
#[derive(Debug)]
pub(crate) struct StreamProgress(Progress);

impl Default for StreamProgress {
    fn default() -> Self {
        Self(Progress::Unknown)
    }
}

/// The numbers of one call of [`Rebuild::apply`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) handled: u64,
    pub(crate) duplicates: u64,
    /// Events that were read from the store because the scan met later ones first.
    pub(crate) filled: u64,
}

/// The error of a generation that cannot be built any further. What was applied stays applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RebuildError {
    /// The policy of the processor halts at an event.
    #[error("version {version} of {stream} could not be projected")]
    Halted {
        stream: StreamId,
        version: Version,
        #[source]
        source: BoxError,
    },
    /// As many events are given up as the policy allows.
    #[error(
        "{limit} {what}, which is the limit of ProcessorPolicy::with_limits: mend the projector, then resume the replay, or cancel it and start another one"
    )]
    TooManyGivenUp { what: &'static str, limit: usize },
    /// The events or the positions of a stream could not be read.
    #[error("the events or the position of {stream} could not be read")]
    Store {
        stream: StreamId,
        #[source]
        source: BoxError,
    },
    /// A call about the whole model has failed.
    #[error("{what} has failed")]
    Model {
        what: &'static str,
        #[source]
        source: BoxError,
    },
    #[error("the rows of the processor could not be read or written")]
    Control(#[from] ControlStoreError),
}

/// The positions of the streams that were touched since the last checkpoint.
type Touched = HashMap<StreamId, (Version, Option<CommitId>)>;

/// A projector whose generation is being built.
pub(crate) struct Rebuild {
    pub(crate) of: Candidate,
    shared: Arc<Shared>,
    policy: ProcessorPolicy,
    places: Arc<Places>,
    clock: Arc<dyn Clock>,
    /// The aggregate types that the projector subscribes to.
    aggregates: Vec<&'static str>,
    parked: ParkedStreams,
    /// The number of dead letters that this process has written.
    letters: AtomicUsize,
    /// Held while a stream is parked, so that the limit holds.
    parking: tokio::sync::Mutex<()>,
    touched: Mutex<Touched>,
    /// Tells that a checkpoint has taken what was touched.
    taken: Notify,
}

impl Rebuild {
    pub(crate) fn new(
        of: &Candidate,
        generation: u32,
        places: Arc<Places>,
        skips: Option<KnownSkips>,
        only: Option<Only>,
    ) -> Self {
        let (runner, entry) = (&of.runner, of.entry());
        let policy = &entry.policy;
        let (control, ids) = (runner.control.clone(), runner.ids.clone());
        let positions = (policy.level == DeliveryLevel::Deduplicated && only.is_none())
            .then(|| StreamPositions::new(control.clone(), ids.clone(), &entry.name, generation));
        let clock = runner.clock.clone();
        let rows = ProcessorRows::over(control, ids, clock, entry.name.clone(), generation);
        let shared = Shared {
            rows,
            processor: entry.processor.clone(),
            model: ModelId::new(entry.name.clone(), generation),
            history: runner.history.clone(),
            public: attempt::PublicHistory {
                skips,
                ..runner.public_history()
            },
            positions,
            upcasters: entry.upcasters.clone(),
            codecs: runner.codecs.clone(),
            spans: Spans {
                group: group_name(&runner.group_prefix, &entry.name, generation).into(),
                context: runner.trace.clone(),
            },
            rules: AttemptRules {
                unknown_events: policy.unknown_events,
                start: Start::Beginning,
                timeout: policy.attempt_timeout,
                max_batch: policy.max_batch,
                counts_calls: false,
                needs_position: policy.level == DeliveryLevel::ExactlyOnceEffect,
            },
            only,
        };
        Self {
            of: of.clone(),
            shared: Arc::new(shared),
            policy: policy.clone(),
            places,
            clock: runner.clock.clone(),
            aggregates: of.subscriptions().into_keys().collect(),
            parked: ParkedStreams::default(),
            letters: AtomicUsize::new(0),
            parking: tokio::sync::Mutex::default(),
            touched: Mutex::default(),
            taken: Notify::new(),
        }
    }

    /// Returns the number of the generation.
    pub(crate) fn generation(&self) -> u32 {
        self.shared.model.generation()
    }

    /// Returns true if the projector subscribes to this aggregate type.
    pub(crate) fn subscribes(&self, aggregate: &str) -> bool {
        self.aggregates.contains(&aggregate)
    }

    /// Creates or checks what the model needs.
    pub(crate) async fn prepare(&self) -> Result<(), RebuildError> {
        let call = || self.shared.processor.prepare(&self.shared.model);
        self.of_model("prepare", self.policy.attempt_timeout, call)
            .await
    }

    /// Empties the model, with one call: see [`Projector::reset`](super::Projector::reset).
    pub(crate) async fn reset(&self, timeout: Duration) -> HandlerResult {
        let reset = self.shared.processor.reset(&self.shared.model);
        within("reset", reset, timeout, "").await
    }

    /// Removes a part of the history from the live model, with one call.
    pub(crate) async fn reset_part(&self, part: &ReplayPart, timeout: Duration) -> HandlerResult {
        let model = &self.shared.model;
        let reset = self.shared.processor.reset_part(model, part);
        within("reset of a part", reset, timeout, "").await
    }

    /// Makes durable what was projected.
    pub(crate) async fn flush(&self) -> Result<(), RebuildError> {
        let call = || self.shared.processor.flush(&self.shared.model);
        self.of_model("flush", self.policy.attempt_timeout, call)
            .await
    }

    /// Calls the projector about its whole model, again and again as its policy says.
    async fn of_model<'a>(
        &self,
        what: &'static str,
        timeout: Duration,
        mut call: impl FnMut() -> futures::future::BoxFuture<'a, HandlerResult>,
    ) -> Result<(), RebuildError> {
        let call = || within(what, call(), timeout, "");
        let called = call
            .retry(self.policy.retry)
            .when(|error: &HandlerError| FailureClass::from(error.class()))
            .run();
        called.await.map_err(|error| RebuildError::Model {
            what,
            source: error.into_source(),
        })
    }

    /// Reads which streams a former process of this run has parked.
    pub(crate) async fn load_parked(&self) -> Result<(), RebuildError> {
        for partition in self.places.all() {
            self.parked.load(&self.shared.rows, &partition).await?;
        }
        Ok(())
    }

    /// Takes what [`store_positions`](Self::store_positions) is to store. Call it before the flush:
    /// what is projected later is not flushed.
    pub(crate) fn take_touched(&self) -> Vec<(StreamId, Version, Option<CommitId>)> {
        let touched = std::mem::take(&mut *lock(&self.touched));
        self.taken.notify_waiters();
        let touched = touched.into_iter();
        let touched = touched.map(|(stream, (version, id))| (stream, version, id));
        let mut touched: Vec<_> = touched.collect();
        // A seed of a simulation has one history.
        touched.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
        touched
    }

    /// Stores positions, after the flush, and the versions that wait in parked streams.
    pub(crate) async fn store_positions(
        &self,
        touched: Vec<(StreamId, Version, Option<CommitId>)>,
    ) -> Result<(), RebuildError> {
        if let Some(positions) = &self.shared.positions {
            let writes = futures::stream::iter(touched).map(|(stream, version, id)| async move {
                let write = || positions.advance(&stream, version, id);
                controlled(write).await
            });
            let mut writes = writes.buffer_unordered(WRITES);
            while writes.try_next().await?.is_some() {}
        }
        Ok(self.parked.raise(&self.shared.rows).await?)
    }

    /// Projects commits of one stream, in order, with what is missing before them. Retries in
    /// place, and does what the policy says about an event that cannot be projected.
    pub(crate) async fn apply(
        &self,
        mut commits: Vec<Arc<Commit>>,
        progress: &mut StreamProgress,
    ) -> Result<Applied, RebuildError> {
        let mut applied = Applied::default();
        let Some(stream) = commits.first().map(|commit| commit.stream.clone()) else {
            return Ok(applied);
        };
        let partition = self.places.of(&stream);
        let mut failing = Failing::new(self.policy.retry);
        while !commits.is_empty() {
            let high = commits.last().map_or(Version::NONE, |c| c.last_version());
            if self.parked.defer(&stream, high) {
                return Ok(applied);
            }
            self.wait_for_checkpoint().await;
            let (known, failed) = (progress.0.clone(), failing.failed());
            let work = Work::of_replay(partition.clone(), commits.clone(), known, failed);
            let ended = self.attempt(work).await;
            progress.0 = ended.progress.clone();
            applied.add(&ended.counts);
            self.touch(&stream, &ended);
            if ended.done > 0 || ended.counts.has_moved() {
                failing = Failing::new(self.policy.retry);
            }
            commits.drain(..ended.done.min(commits.len()));
            let Outcome::Failed(failure) = ended.result else {
                continue;
            };
            if !failing.wait(&failure).await {
                self.give_up(&stream, &partition, failure, &failing, progress)
                    .await?;
                failing = Failing::new(self.policy.retry);
            }
        }
        Ok(applied)
    }

    async fn attempt(&self, work: Work) -> Ended {
        let progress = work.progress.clone();
        let work = Arc::new(work);
        let attempt = Attempt::new(self.shared.clone(), work, Signals::default());
        let mut buffers = Buffers::default();
        let attempt = AssertUnwindSafe(attempt.run(&mut buffers));
        let ended = attempt.catch_unwind().await;
        ended.unwrap_or_else(|panic| {
            let error = HandlerError::permanent(panic_message("attempt", &*panic));
            let failure = Failure::new(Version::NONE, error, FailureOf::Store);
            Ended {
                progress,
                ..Ended::with_nothing_done(Outcome::Failed(failure))
            }
        })
    }

    /// Returns true if so many positions wait for a checkpoint that the projector waits, too.
    pub(crate) fn needs_checkpoint(&self) -> bool {
        self.shared.positions.is_some() && lock(&self.touched).len() >= TOUCHED
    }

    /// Waits for a checkpoint if the projector needs one.
    async fn wait_for_checkpoint(&self) {
        loop {
            // A checkpoint may take the positions right after the look. It is not missed, since
            // notices count from here on.
            let taken = self.taken.notified();
            if !self.needs_checkpoint() {
                return;
            }
            taken.await;
        }
    }

    fn touch(&self, stream: &StreamId, ended: &Ended) {
        if self.shared.positions.is_none() || !ended.counts.has_moved() {
            return;
        }
        if let Progress::At(at) = &ended.progress {
            let position = (at.version, at.commit_id);
            lock(&self.touched).insert(stream.clone(), position);
        }
    }
}

impl Applied {
    const fn add(&mut self, counts: &Counts) {
        self.handled += counts.handled;
        self.duplicates += counts.duplicates;
        self.filled += counts.filled;
    }
}

/// The failures of one event in a row.
struct Failing {
    retrying: Retrying,
    since: Option<Instant>,
}

impl Failing {
    const fn new(policy: RetryPolicy) -> Self {
        Self {
            retrying: Retrying::new(policy),
            since: None,
        }
    }
    const fn failed(&self) -> u32 {
        self.retrying.attempts()
    }
    /// Waits before the next attempt. Returns false if there must be none.
    async fn wait(&mut self, failure: &Failure) -> bool {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let class = FailureClass::from(failure.error.class());
        let class = self.retrying.cut_to_limit(class);
        match self.retrying.next(class, now.duration_since(since)) {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                true
            }
            None => false,
        }
    }
}

/// Repeats an operation on a row while the control store is away, for a limited time.
async fn controlled<T, F>(operation: impl FnMut() -> F) -> Result<T, ControlStoreError>
where
    F: Future<Output = Result<T, ControlStoreError>>,
{
    operation
        .retry(RetryPolicy::default())
        .when(crate::resilience::Failure::failure_class)
        .run()
        .await
}

/// Returns the text of an error with its causes.
fn text_of(error: &HandlerError) -> String {
    chain(error.source()).to_string()
}

/// Returns true if a failure is not one of the event.
const fn is_of_store(failure: &Failure) -> bool {
    matches!(failure.of, FailureOf::Store | FailureOf::Record)
        && !matches!(failure.error.class(), ErrorClass::Fatal)
}
