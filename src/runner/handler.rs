//! [`Listener`] and [`Projector`]: what users write, and what they are told about an event.
use super::{
    HandlerError, HandlerResult,
    signals::{Cancel, Signals},
};
use crate::{
    BoxError, CausationId, CommandId, CommitId, EventHeader, EventId, EventSet, Metadata, StreamId,
    Timestamp, Version,
    ports::{Offset, PartitionId},
};
use std::{fmt, future::Future, str::FromStr, sync::Arc};

/// Reacts to events with side effects: sends a mail, calls a service, executes a command on another
/// aggregate.
///
/// At least once: after a crash an event may come again, with the same [`EventContext::event_id`].
/// Never run by a replay.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Listener`",
    note = "a `Projector` is registered with `projector(..)`"
)]
pub trait Listener: Send + Sync + 'static {
    /// Part of the consumer group's name, 1 to 64 characters of `[A-Za-z0-9_.-]`. Stored: never
    /// change it.
    const NAME: &'static str;
    /// The events that it receives: one [`DomainEvent`](crate::DomainEvent), or several by
    /// [`event_set!`](crate::event_set).
    type Events: EventSet;
    /// Handles one event; the events of a stream come in order, one after the other.
    fn handle(
        &self,
        event: &Self::Events,
        ctx: &EventContext,
    ) -> impl Future<Output = HandlerResult> + Send;
    /// Handles neighbouring events of one stream with one call, in order. The runner calls it if
    /// [`ProcessorPolicy::with_max_batch`](super::ProcessorPolicy::with_max_batch) allows more than
    /// one event.
    ///
    /// A call that panics or takes too long does not say which of its events has failed: each of
    /// them is then handled by a call of its own, before any is given up.
    ///
    /// The default calls [`handle`](Self::handle) for one event after the other, until one fails.
    fn handle_batch(
        &self,
        events: &[(Self::Events, EventContext)],
    ) -> impl Future<Output = BatchResult> + Send {
        async move {
            for (done, (event, ctx)) in events.iter().enumerate() {
                if let Err(error) = self.handle(event, ctx).await {
                    return BatchResult::failed(done, error);
                }
            }
            BatchResult::done(events.len())
        }
    }
}

/// The result of a batch: the number of events that were handled, and the error of the next one.
///
/// # Example
/// ```
/// use foldstream::runner::{BatchResult, HandlerError};
///
/// // Of five events, three were handled, and the fourth failed.
/// let result = BatchResult::failed(3, HandlerError::transient("the database is down"));
/// assert_eq!(result.done, 3);
/// assert!(BatchResult::done(5).error.is_none());
/// ```
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub struct BatchResult {
    /// The number of events that were handled, from the first.
    pub done: usize,
    /// The error of the event after those; `None` if all events were handled.
    pub error: Option<HandlerError>,
}
impl BatchResult {
    /// Creates the result of a batch of this many events that were all handled.
    pub const fn done(events: usize) -> Self {
        Self {
            done: events,
            error: None,
        }
    }
    /// Creates the result of a batch in which the event after the first `done` ones has failed.
    pub const fn failed(done: usize, error: HandlerError) -> Self {
        Self {
            done,
            error: Some(error),
        }
    }
}

/// Maintains a read model that can be built again from the events.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `Projector`",
    note = "only projectors can be replayed; a `Listener` is registered with `listener(..)`"
)]
pub trait Projector: Send + Sync + 'static {
    /// Part of the consumer group's name, 1 to 64 characters of `[A-Za-z0-9_.-]`. Stored: never
    /// change it.
    const NAME: &'static str;
    /// The number of the read model's shape and meaning. Raise it when one of them changes: a build
    /// works only on generations of its own number, waits until a replay has built
    /// one, and does nothing once a greater number serves.
    const MODEL: u32 = 1;
    /// The events that it receives: one [`DomainEvent`](crate::DomainEvent), or several by
    /// [`event_set!`](crate::event_set).
    type Events: EventSet;
    /// Takes one event into the read model; the events of a stream come in order, one after the
    /// other.
    ///
    /// An older version applied late must change nothing: a write of a process that has lost its
    /// partition cannot be recalled.
    fn project(
        &self,
        event: &Self::Events,
        ctx: &EventContext,
    ) -> impl Future<Output = HandlerResult> + Send;
    /// Projects neighbouring events of one stream with one call, in order. The runner calls it if
    /// [`ProcessorPolicy::with_max_batch`](super::ProcessorPolicy::with_max_batch) allows more than
    /// one event.
    ///
    /// A call that panics or takes too long does not say which of its events has failed: each of
    /// them is then projected by a call of its own, before any is given up.
    ///
    /// The default calls [`project`](Self::project) for one event after the other, until one fails.
    fn project_batch(
        &self,
        events: &[(Self::Events, EventContext)],
    ) -> impl Future<Output = BatchResult> + Send {
        async move {
            for (done, (event, ctx)) in events.iter().enumerate() {
                if let Err(error) = self.project(event, ctx).await {
                    return BatchResult::failed(done, error);
                }
            }
            BatchResult::done(events.len())
        }
    }
    /// Creates or checks what the model needs, such as tables or a schema. The runner calls it
    /// before the first event of each run. The default does nothing.
    fn prepare(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        let _ = model;
        async { Ok(()) }
    }
    /// Empties a model, before a full [replay](crate::replay) builds it. The model is that of a
    /// new generation, and nothing reads it before it is built.
    ///
    /// A reset that has failed or taken too long is not repeated: the replay takes another
    /// generation, since the late effect of the first call would empty what was built since.
    fn reset(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send;
    /// Deletes a model that does not serve any more, at least ten minutes after another generation
    /// has taken its place. The model may be gone already, and it may be one that another build has
    /// written.
    ///
    /// The default does nothing: a projector that keeps all generations in the same rows would lose
    /// the rows that serve. A projector that keeps them apart deletes those of `model`, or they
    /// stay for good.
    fn delete_model(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        let _ = model;
        async { Ok(()) }
    }
    /// The way in which the live model can take a part of the history once more. Default
    /// [`PartialReplay::Refused`].
    const PARTIAL_REPLAY: PartialReplay = PartialReplay::Refused;
    /// Removes from the live model what came from this part of the history, before a filtered
    /// replay repeats that part. It must leave alone what other events have done. It is called
    /// only if [`PARTIAL_REPLAY`](Self::PARTIAL_REPLAY) is [`PartialReplay::ScopedReset`]. The
    /// default fails.
    fn reset_part(
        &self,
        model: &ModelId,
        part: &ReplayPart,
    ) -> impl Future<Output = HandlerResult> + Send {
        let _ = (model, part);
        async {
            Err(HandlerError::fatal(
                "the projector declares a scoped reset: implement Projector::reset_part",
            ))
        }
    }
    /// Makes durable what `project` only buffered; called before an offset is committed.
    fn flush(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        let _ = model;
        async { Ok(()) }
    }
    /// Drops what `project` has buffered of these streams and no `flush` has stored: their
    /// partitions were taken away, and another process handles the events now. Whatever the model
    /// keeps of these streams in memory is read again afterwards. The default does nothing, which
    /// is right for a projector that buffers nothing.
    ///
    /// The runner calls it neither during a `flush` nor during a `project` of one of the streams.
    fn forget_buffered(
        &self,
        model: &ModelId,
        streams: &[StreamId],
    ) -> impl Future<Output = HandlerResult> + Send {
        let _ = (model, streams);
        async { Ok(()) }
    }
    /// The last version of `stream` in the read model, if the projector stores it together with its
    /// rows.
    fn position(
        &self,
        model: &ModelId,
        stream: &StreamId,
    ) -> impl Future<Output = Result<Position, HandlerError>> + Send {
        let _ = (model, stream);
        async { Ok(Position::KeptByRunner) }
    }
}

/// The ways in which a projector can take a part of the history once more into its live model.
///
/// A filtered replay changes the model that serves. Most projectors would count twice, or undo what
/// later events have done, so that the default refuses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartialReplay {
    /// Only full replays are possible. The default.
    #[default]
    Refused,
    /// An event that is projected once more changes nothing that it must not, whatever was
    /// projected since: each row keeps the version of its last event, for example, or the effect of
    /// an event does not depend on its place.
    Reapplicable,
    /// [`Projector::reset_part`] removes what came from the part first.
    ScopedReset,
}

/// The part of the history that a filtered replay repeats. Each `None` stands for everything that
/// the projector subscribes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayPart {
    /// The names of event types.
    pub events: Option<Vec<String>>,
    /// The streams.
    pub streams: Option<Vec<StreamId>>,
    /// The aggregate types.
    pub aggregates: Option<Vec<String>>,
    /// The first time of events that are repeated.
    pub from: Option<Timestamp>,
    /// The first time after those of events that are repeated.
    pub until: Option<Timestamp>,
}

/// One generation of a projector's read model, shown `<name>.g<N>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId {
    processor: Arc<str>,
    generation: u32,
}
impl ModelId {
    /// The model of a processor's generation, from 1.
    #[must_use]
    pub fn new(processor: impl Into<Arc<str>>, generation: u32) -> Self {
        Self {
            processor: processor.into(),
            generation,
        }
    }
    /// The processor's name.
    pub fn processor(&self) -> &str {
        &self.processor
    }
    /// From 1; a full replay builds the next.
    pub const fn generation(&self) -> u32 {
        self.generation
    }
}
impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.g{}", self.processor, self.generation)
    }
}

/// A projector's position in a stream, and the place where it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Position {
    /// The runner. A crash between `project` and the commit of the offset repeats events.
    KeptByRunner,
    /// The read model, in the transaction of its rows: each event takes effect exactly once.
    Stored {
        /// The last version taken in; 0: nothing yet.
        version: Version,
        /// The commit of that event, if the model keeps it: then a forked history is noticed.
        commit_id: Option<CommitId>,
    },
}
impl Position {
    /// A stored position without a commit id.
    #[must_use]
    pub const fn stored(version: Version) -> Self {
        Self::Stored {
            version,
            commit_id: None,
        }
    }
}

/// The source of an event: the bus, or the event store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventSource {
    /// A record on the bus.
    Bus {
        /// From which partition.
        partition: PartitionId,
        /// Its place there.
        offset: Offset,
    },
    /// The event store, since the bus skipped it.
    History,
}

/// The header and source of an event, and the state of this attempt. Cloning is a few reference
/// counts.
#[derive(Clone, Debug)]
pub struct EventContext {
    model: ModelId,
    header: EventHeader,
    attempt: u32,
    source: EventSource,
    cancel: Cancel,
    /// The trace context of this attempt's span.
    trace: Option<Arc<str>>,
}

impl EventContext {
    /// For tests and own drivers: a first attempt that nobody cancels.
    #[must_use]
    pub fn new(model: ModelId, header: EventHeader, source: EventSource) -> Self {
        let cancel = Cancel::of_first(Signals::default());
        Self::of_attempt(model, header, source, 1, cancel)
    }
    pub(super) const fn of_attempt(
        model: ModelId,
        header: EventHeader,
        source: EventSource,
        attempt: u32,
        cancel: Cancel,
    ) -> Self {
        Self {
            model,
            header,
            attempt,
            source,
            cancel,
            trace: None,
        }
    }
    pub(super) fn set_trace(&mut self, trace: Option<Arc<str>>) {
        self.trace = trace;
    }
    /// The same on every delivery: the key to deduplicate by.
    pub const fn event_id(&self) -> EventId {
        self.header.event_id
    }
    /// The stream.
    pub const fn stream(&self) -> &StreamId {
        &self.header.stream
    }
    /// The aggregate's id, typed.
    ///
    /// # Errors
    /// `Poison` if the stream's id does not parse.
    pub fn id<I: FromStr<Err: Into<BoxError>>>(&self) -> Result<I, HandlerError> {
        let id = self.header.stream.id();
        id.parse().map_err(HandlerError::poison)
    }
    /// Place in the stream.
    pub const fn version(&self) -> Version {
        self.header.version
    }
    /// Returns the time at which the event was recorded, by the writer's clock.
    pub const fn recorded_at(&self) -> Timestamp {
        self.header.recorded_at
    }
    /// All of the header.
    pub const fn header(&self) -> &EventHeader {
        &self.header
    }
    /// From 1.
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }
    /// Returns the read model that this attempt is for, with its generation.
    pub const fn model(&self) -> &ModelId {
        &self.model
    }
    /// Returns the source of the event.
    pub const fn source(&self) -> &EventSource {
        &self.source
    }
    /// Ready once the result no longer counts: the attempt timed out, the partition was taken away,
    /// or the process is to end. For work that the handler has started elsewhere; the handler
    /// itself is dropped.
    pub async fn cancelled(&self) {
        self.cancel.token().cancelled().await;
    }
    /// Returns true if the result no longer counts.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
    /// Returns the id of the command that this event causes in a step of its handler, made of
    /// processor, event and `step`.
    ///
    /// Every delivery of the event yields the same id, so that a repository with
    /// [idempotent commands](crate::Repository::with_idempotency) executes the command once. Two
    /// commands of one handler need two steps. The step is stored with the command: never change
    /// it, and keep it short, since a command id has at most 256 bytes.
    ///
    /// # Example
    /// ```
    /// # use foldstream::{CommitId, EventHeader, StreamId, Timestamp, Version};
    /// # use foldstream::runner::{EventContext, EventSource, ModelId};
    /// # let id = CommitId::from_u128(7).event_id(0);
    /// # let stream = StreamId::new("cart", "c1")?;
    /// # let (version, at) = (Version::new(3), Timestamp::from_micros(0));
    /// # let header = EventHeader::new(id, stream, version, "CheckedOut", at);
    /// # let ctx = EventContext::new(ModelId::new("payments", 1), header, EventSource::History);
    /// let request = ctx.command_id("request");
    /// assert_eq!(request.as_str(), "payments/00000000-0000-0000-0000-000000000007/0/request");
    /// assert_ne!(request, ctx.command_id("record"));
    /// # Ok::<(), foldstream::InvalidStreamId>(())
    /// ```
    #[must_use]
    pub fn command_id(&self, step: &str) -> CommandId {
        let (processor, event) = (&self.model.processor, self.event_id());
        CommandId::from(format!("{processor}/{event}/{step}"))
    }
    /// Returns the metadata for a command that this event causes: correlation and trace of the
    /// event, the event as the cause, and the [command id](Self::command_id) of `step`.
    ///
    /// A saga, which is a listener that executes commands, passes it to
    /// [`Repository::execute_with`](crate::Repository::execute_with).
    #[must_use]
    pub fn caused(&self, step: &str) -> Metadata {
        let mut metadata = Metadata::new()
            .with_command_id(self.command_id(step))
            .with_causation_id(CausationId::from(self.event_id().to_string()));
        if let Some(id) = self.header.metadata.correlation_id() {
            metadata = metadata.with_correlation_id(id.clone());
        }
        let trace = self.trace.as_deref();
        if let Some(trace) = trace.or_else(|| self.header.metadata.traceparent()) {
            metadata = metadata.with_traceparent(trace);
        }
        metadata
    }
}

/// Lets one instance serve several builders, and tests look into it.
#[deny(clippy::missing_trait_methods)]
impl<P: Projector> Projector for Arc<P> {
    const NAME: &'static str = P::NAME;
    const MODEL: u32 = P::MODEL;
    type Events = P::Events;
    fn project(
        &self,
        event: &Self::Events,
        ctx: &EventContext,
    ) -> impl Future<Output = HandlerResult> + Send {
        (**self).project(event, ctx)
    }
    fn project_batch(
        &self,
        events: &[(Self::Events, EventContext)],
    ) -> impl Future<Output = BatchResult> + Send {
        (**self).project_batch(events)
    }
    fn prepare(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        (**self).prepare(model)
    }
    fn forget_buffered(
        &self,
        model: &ModelId,
        streams: &[StreamId],
    ) -> impl Future<Output = HandlerResult> + Send {
        (**self).forget_buffered(model, streams)
    }
    fn reset(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        (**self).reset(model)
    }
    fn delete_model(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        (**self).delete_model(model)
    }
    const PARTIAL_REPLAY: PartialReplay = P::PARTIAL_REPLAY;
    fn reset_part(
        &self,
        model: &ModelId,
        part: &ReplayPart,
    ) -> impl Future<Output = HandlerResult> + Send {
        (**self).reset_part(model, part)
    }
    fn flush(&self, model: &ModelId) -> impl Future<Output = HandlerResult> + Send {
        (**self).flush(model)
    }
    fn position(
        &self,
        model: &ModelId,
        stream: &StreamId,
    ) -> impl Future<Output = Result<Position, HandlerError>> + Send {
        (**self).position(model, stream)
    }
}
#[deny(clippy::missing_trait_methods)]
impl<L: Listener> Listener for Arc<L> {
    const NAME: &'static str = L::NAME;
    type Events = L::Events;
    fn handle(
        &self,
        event: &Self::Events,
        ctx: &EventContext,
    ) -> impl Future<Output = HandlerResult> + Send {
        (**self).handle(event, ctx)
    }
    fn handle_batch(
        &self,
        events: &[(Self::Events, EventContext)],
    ) -> impl Future<Output = BatchResult> + Send {
        (**self).handle_batch(events)
    }
}
