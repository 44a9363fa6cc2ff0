//! Time travel step by step: the state of a stream after each of its events.
use super::{Difference, LoadError, Repository, StepEffect, fold::Fold};
use crate::{
    Aggregate, BoxError, EventHeader, StreamHead, StreamId, Upcasters, Version,
    ports::{BoxStream, Commit, EventData, EventStoreError, ReadFrom},
};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::VecDeque,
    marker::PhantomData,
    ops::{Bound, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// One event of a history, and the state after it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateStep<A> {
    /// The event: its version, stored name, time, and the metadata of its commit.
    pub header: EventHeader,
    /// The effect of the event on the state.
    pub effect: StepEffect,
    /// The state after the event.
    pub state: A,
}

/// One event of a history, the state after it as JSON, and the differences from the state before.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TimelineStep {
    /// The event: its version, stored name, time, and the metadata of its commit.
    pub header: EventHeader,
    /// The effect of the event on the state.
    pub effect: StepEffect,
    /// The state after the event.
    pub state: Value,
    /// The differences from the state before the event. Before the first event that is the default
    /// state.
    pub differences: Vec<Difference>,
}

/// The error returned when the history of a stream cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineError {
    /// The id is not valid, the store cannot be read, or an event cannot be decoded or folded:
    /// [`LoadError::Codec`] names its version. The steps before that event come first.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no such stream.
    #[error("there is no stream {stream}")]
    UnknownStream {
        /// The stream.
        stream: StreamId,
    },
    /// The aggregate was deleted: its events are stored, but the keys of all of them are gone. The
    /// steps of these events come first, with the default state.
    #[error("stream {stream} was deleted: every event up to version {version} is shredded")]
    Deleted {
        /// The stream.
        stream: StreamId,
        /// The version of the last event that was read.
        version: Version,
    },
    /// The state cannot be written as JSON.
    #[error("the state of {stream} at version {version} cannot be written as JSON")]
    State {
        /// The stream.
        stream: StreamId,
        /// The version of the state.
        version: Version,
        /// The error of the state's `Serialize`.
        #[source]
        source: BoxError,
    },
}

impl TimelineError {
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Load(e) => e.is_transient(),
            Self::UnknownStream { .. } | Self::Deleted { .. } | Self::State { .. } => false,
        }
    }
}

impl From<EventStoreError> for TimelineError {
    fn from(e: EventStoreError) -> Self {
        Self::Load(e.into())
    }
}

impl<A: Aggregate> Repository<A> {
    /// Returns the state after each event of a range of versions, with the differences from one to
    /// the next, lazily and oldest first.
    ///
    /// A range that begins later is folded from the first event, too: snapshots and the cache are
    /// not used. Nothing is read after its end. A range after the end of the stream has no steps.
    /// One commit and two states are in memory, and each step costs one serialization of the state.
    ///
    /// Events that are retired or shredded have steps without differences. A state holds personal
    /// data as the events do.
    ///
    /// # Errors
    /// The last item is a [`TimelineError`] if the stream does not exist or was deleted, if the
    /// store cannot be read, or if an event or a state cannot be read, folded or written.
    ///
    /// # Example
    /// ```
    /// use foldstream::{TimelineStep, Version};
    /// use foldstream_testkit::InMemoryEventStore;
    /// use futures::TryStreamExt;
    /// use serde::Serialize;
    /// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Repository, id};
    /// # id!(CounterId);
    /// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// # #[event(aggregate = "counter")]
    /// # enum CounterEvent { Counted { by: u64 } }
    ///
    /// #[derive(Clone, Default, Serialize)]
    /// struct Counter {
    ///     total: u64,
    /// }
    /// # impl Aggregate for Counter {
    /// #     type Id = CounterId;
    /// #     type Event = CounterEvent;
    /// #     fn evolve(&mut self, event: &CounterEvent) {
    /// #         let CounterEvent::Counted { by } = event;
    /// #         self.total += by;
    /// #     }
    /// # }
    /// # struct Count(u64);
    /// # impl Decide<Count> for Counter {
    /// #     type Error = std::convert::Infallible;
    /// #     fn decide(&self, command: &Count, _: &Context) -> Decision<Self, Self::Error> {
    /// #         Ok(vec![CounterEvent::Counted { by: command.0 }])
    /// #     }
    /// # }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let counters = Repository::<Counter>::new(InMemoryEventStore::new());
    /// for by in [2, 3] {
    ///     counters.execute(&"visits".into(), Count(by)).await?;
    /// }
    /// let second = Version::new(2)..=Version::new(2);
    /// let steps: Vec<TimelineStep> =
    ///     counters.timeline(&"visits".into(), second).try_collect().await?;
    /// let total = &steps[0].differences[0];
    /// assert_eq!(total.path, "/total");
    /// assert_eq!((total.before.clone(), total.after.clone()), (Some(2.into()), Some(5.into())));
    /// # Ok::<(), foldstream::BoxError>(()) })?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub fn timeline(
        &self,
        id: &A::Id,
        versions: impl RangeBounds<Version>,
    ) -> BoxStream<'_, Result<TimelineStep, TimelineError>>
    where
        A: Serialize,
    {
        self.walk(id, &versions, AsJson::default())
    }

    /// Returns the state after each event of a range of versions, lazily and oldest first. It is
    /// [`timeline`](Self::timeline) for states that are not JSON: each step has a clone of the
    /// state, and no differences.
    ///
    /// # Errors
    /// As those of [`timeline`](Self::timeline).
    pub fn states(
        &self,
        id: &A::Id,
        versions: impl RangeBounds<Version>,
    ) -> BoxStream<'_, Result<StateStep<A>, TimelineError>> {
        self.walk(id, &versions, AsIs(PhantomData))
    }

    fn walk<V: View<A>>(
        &self,
        id: &A::Id,
        versions: &impl RangeBounds<Version>,
        view: V,
    ) -> BoxStream<'_, Result<V::Step, TimelineError>> {
        match Walk::new(self, id, versions, view) {
            Ok(walk) => futures::stream::unfold(Some(walk), |walk| async {
                let mut walk = walk?;
                match walk.next().await {
                    Ok(Some(step)) => Some((Ok(step), Some(walk))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            })
            .boxed(),
            Err(error) => futures::stream::once(async { Err(error.into()) }).boxed(),
        }
    }
}

/// Makes steps of states.
trait View<A>: Send + 'static {
    type Step: Send + 'static;
    /// Takes the state before the first step.
    fn begin(&mut self, state: &A) -> Result<(), BoxError>;
    /// Takes the state after an event.
    fn step(
        &mut self,
        header: EventHeader,
        effect: StepEffect,
        state: &A,
    ) -> Result<Self::Step, BoxError>;
}

/// Clones states.
struct AsIs<A>(PhantomData<fn() -> A>);

impl<A: Aggregate> View<A> for AsIs<A> {
    type Step = StateStep<A>;
    fn begin(&mut self, _: &A) -> Result<(), BoxError> {
        Ok(())
    }
    fn step(
        &mut self,
        header: EventHeader,
        effect: StepEffect,
        state: &A,
    ) -> Result<StateStep<A>, BoxError> {
        let state = state.clone();
        Ok(StateStep {
            header,
            effect,
            state,
        })
    }
}

/// Serializes states, and compares each with the one before.
#[derive(Default)]
struct AsJson {
    before: Value,
}

impl<A: Aggregate + Serialize> View<A> for AsJson {
    type Step = TimelineStep;
    fn begin(&mut self, state: &A) -> Result<(), BoxError> {
        self.before = json_of(state)?;
        Ok(())
    }
    fn step(
        &mut self,
        header: EventHeader,
        effect: StepEffect,
        state: &A,
    ) -> Result<TimelineStep, BoxError> {
        let (state, differences) = if effect == StepEffect::Folded {
            let state = json_of(state)?;
            let differences = Difference::between(&self.before, &state);
            self.before.clone_from(&state);
            (state, differences)
        } else {
            (self.before.clone(), Vec::new())
        };
        Ok(TimelineStep {
            header,
            effect,
            state,
            differences,
        })
    }
}

/// Serializes a state. A panic in its `Serialize` is an error, too.
fn json_of<A: Serialize>(state: &A) -> Result<Value, BoxError> {
    let written = catch_unwind(AssertUnwindSafe(|| serde_json::to_value(state)));
    Ok(written.map_err(|_| "`Serialize` panicked")??)
}

/// A fold that stops after each event.
struct Walk<'a, A: Aggregate, V> {
    repository: &'a Repository<A>,
    upcasters: &'a Upcasters,
    stream: StreamId,
    commits: BoxStream<'a, Result<Commit, EventStoreError>>,
    /// The events of the last commit that are not folded yet.
    events: VecDeque<(EventHeader, EventData)>,
    fold: Fold<A>,
    first: Version,
    last: Version,
    view: V,
    has_begun: bool,
    all_shredded: bool,
}

impl<'a, A: Aggregate, V: View<A>> Walk<'a, A, V> {
    fn new(
        repository: &'a Repository<A>,
        id: &A::Id,
        versions: &impl RangeBounds<Version>,
        view: V,
    ) -> Result<Self, LoadError> {
        let stream = Repository::<A>::stream_id(id)?;
        // Checked even for an empty stream: no call of a repository with unusable upcasters may
        // seem to work.
        let upcasters = repository.upcasters()?;
        let start = StreamHead::empty(stream.clone());
        let from = ReadFrom::After(start.clone());
        Ok(Self {
            commits: repository.inner.store.read(&stream, from, None),
            repository,
            upcasters,
            stream,
            events: VecDeque::new(),
            fold: Fold::start(start),
            first: match versions.start_bound() {
                Bound::Included(first) => *first,
                Bound::Excluded(before) => before.next(),
                Bound::Unbounded => Version::NONE,
            },
            last: match versions.end_bound() {
                Bound::Included(last) => *last,
                Bound::Excluded(after) => Version::new(after.get().saturating_sub(1)),
                Bound::Unbounded => Version::new(u64::MAX),
            },
            view,
            has_begun: false,
            all_shredded: true,
        })
    }

    /// Returns the next step of the range; `None` after its end.
    async fn next(&mut self) -> Result<Option<V::Step>, TimelineError> {
        loop {
            while let Some((header, data)) = self.events.pop_front() {
                if header.version > self.last {
                    return self.end(Version::new(header.version.get() - 1));
                }
                if let Some(step) = self.take(header, &data)? {
                    return Ok(Some(step));
                }
            }
            let at = self.fold.head().version();
            if at > Version::NONE && at >= self.last {
                return self.end(at);
            }
            let commit = self.commits.try_next().await;
            let commit = commit.inspect_err(|error| self.repository.met(error))?;
            let Some(commit) = commit else {
                return self.end(at);
            };
            self.fold.expect(&commit)?;
            let commit = self.repository.open(commit).await?;
            self.fold.pass(&commit);
            let headers = commit.recorded().map(|event| event.header);
            self.events = headers.zip(commit.events.iter().cloned()).collect();
        }
    }

    /// Folds one event. Returns a step if its version is in the range.
    fn take(
        &mut self,
        header: EventHeader,
        data: &EventData,
    ) -> Result<Option<V::Step>, TimelineError> {
        let version = header.version;
        let is_shown = version >= self.first;
        if is_shown && !self.has_begun {
            let begun = self.view.begin(self.fold.state());
            let before = Version::new(version.get().saturating_sub(1));
            begun.map_err(|source| self.not_written(before, source))?;
            self.has_begun = true;
        }
        let effect = self.fold.take_event(version, data, self.upcasters)?;
        self.all_shredded &= effect == StepEffect::Shredded;
        if !is_shown {
            return Ok(None);
        }
        let step = self.view.step(header, effect, self.fold.state());
        let step = step.map_err(|source| self.not_written(version, source))?;
        Ok(Some(step))
    }

    fn not_written(&self, version: Version, source: BoxError) -> TimelineError {
        let stream = self.stream.clone();
        TimelineError::State {
            stream,
            version,
            source,
        }
    }

    /// Ends the walk after the event of this version.
    fn end(&self, version: Version) -> Result<Option<V::Step>, TimelineError> {
        let stream = self.stream.clone();
        if version == Version::NONE && self.fold.head().version() == Version::NONE {
            return Err(TimelineError::UnknownStream { stream });
        }
        if self.all_shredded && version > Version::NONE {
            return Err(TimelineError::Deleted { stream, version });
        }
        Ok(None)
    }
}
