//! The record of what a store was asked and what it answered.
use crate::intercept::{self, Commits, EventStoreLayer, Intercepted, Read};
use async_trait::async_trait;
use foldstream::{
    CommitId, StreamHead, StreamId, Version,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStore, EventStoreError, ReadFrom},
};
use futures::{StreamExt, stream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One call to a store, and its answer. Times are numbers of one counter, so that they say what
/// came before what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Operation {
    /// The time of the call.
    pub called: u64,
    /// The time of the answer. `None` if the caller dropped the call, or did not drive a read to
    /// its end.
    pub answered: Option<u64>,
    /// The commits that the call asked to store.
    pub commits: Vec<Append>,
    /// The heads of streams that an atomic append only checks.
    pub unchanged: Vec<StreamHead>,
    /// The answer of the store to this call.
    pub outcome: Outcome,
}

/// The answer of a store to an operation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// No answer, or one that leaves the outcome open.
    Unknown,
    /// An answer that certainly nothing was stored.
    NotApplied,
    /// The commits were stored by this call. Contains the new heads.
    Appended(Vec<StreamHead>),
    /// The commits were stored by an earlier attempt. Contains the stored commits.
    Repeated(Vec<Commit>),
    /// A stream had moved past the expected head.
    Conflict {
        /// The stream that had moved.
        stream: StreamId,
        /// The version that the store said the stream had at least.
        actual: Option<Version>,
    },
    /// A read forwards to the end of a stream.
    Read {
        /// The stream that was read.
        stream: StreamId,
        /// The version after which the read started.
        after: Version,
        /// The commits that were read, each with the version at which it ends.
        commits: Vec<(CommitId, Version)>,
    },
}

/// All operations so far. Clones of the `Arc` share them.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    moment: u64,
    operations: Vec<Operation>,
}

impl Log {
    /// Returns the recorded operations.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment, so a panic of another thread leaves the log whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(&self, commits: Vec<Append>, unchanged: Vec<StreamHead>) -> usize {
        let mut state = self.state();
        state.moment += 1;
        let operation = Operation {
            called: state.moment,
            answered: None,
            commits,
            unchanged,
            outcome: Outcome::Unknown,
        };
        state.operations.push(operation);
        state.operations.len() - 1
    }

    fn answered(&self, number: usize, outcome: Outcome) {
        let mut state = self.state();
        state.moment += 1;
        let moment = state.moment;
        let operation = &mut state.operations[number];
        (operation.answered, operation.outcome) = (Some(moment), outcome);
    }
}

/// A layer over an event store that records appends, and reads that go forwards to the end of a
/// stream.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, ports::*};
/// use foldstream_testkit::{InMemoryEventStore, laws::serial::{self, Recorder}};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let (store, log) = Recorder::new(InMemoryEventStore::new());
/// let empty = StreamHead::empty(StreamId::new("cart", "a")?);
/// for writer in 0..2 {
///     let added = [EventData::new("Added", 1, "{}")];
///     let append = Append::after(empty.clone(), CommitId::random(), Timestamp::now(), added);
///     let outcome = store.append(&append).await?;
///     assert_eq!(matches!(outcome, AppendOutcome::Conflict(_)), writer == 1);
/// }
/// serial::check(&*store, &log.operations()).await?;
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct Recorder {
    log: Arc<Log>,
}

impl Recorder {
    /// Wraps a store in a recorder, and returns the store to call and the log of these calls.
    #[must_use]
    pub fn new(store: impl EventStore) -> (Arc<Intercepted<dyn EventStore, Self>>, Arc<Log>) {
        let log = Arc::new(Log::default());
        let recorder = Self { log: log.clone() };
        (intercept::event_store(store, recorder), log)
    }
}

fn outcome_of<T>(
    outcome: &Result<AppendOutcome<T>, EventStoreError>,
    heads: impl FnOnce(&T) -> Vec<StreamHead>,
) -> Outcome {
    match outcome {
        Ok(AppendOutcome::Appended(stored)) => Outcome::Appended(heads(stored)),
        Ok(AppendOutcome::Repeated(commits)) => Outcome::Repeated(commits.clone()),
        Ok(AppendOutcome::Conflict(conflict)) => Outcome::Conflict {
            stream: conflict.stream.clone(),
            actual: conflict.actual,
        },
        Err(error) if error.is_certainly_not_applied() => Outcome::NotApplied,
        Err(_) => Outcome::Unknown,
    }
}

/// Records a commit of a read, or its end.
#[derive(Debug)]
struct Reading {
    number: usize,
    stream: StreamId,
    after: Version,
    commits: Vec<(CommitId, Version)>,
}

#[async_trait]
impl EventStoreLayer for Recorder {
    async fn append(
        &self,
        inner: &Arc<dyn EventStore>,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        let number = self.log.called(vec![append.clone()], Vec::new());
        let outcome = inner.append(append).await;
        let told = outcome_of(&outcome, |head| vec![head.clone()]);
        self.log.answered(number, told);
        outcome
    }

    async fn append_all(
        &self,
        inner: &Arc<dyn EventStore>,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        let number = self.log.called(all.commits.clone(), all.unchanged.clone());
        let outcome = inner.append_all(all).await;
        let told = outcome_of(&outcome, Clone::clone);
        self.log.answered(number, told);
        outcome
    }

    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        let after = match (&read.from, read.limit) {
            (ReadFrom::After(head), None) => head.version(),
            // Only a read to the end shows the length of the stream.
            _ => return Ok(read.pass(inner)),
        };
        let reading = Reading {
            number: self.log.called(Vec::new(), Vec::new()),
            stream: read.stream.clone(),
            after,
            commits: Vec::new(),
        };
        let commits = inner.read(&read.stream, read.from, None);
        let recorded = stream::unfold(Some((commits, reading)), move |state| async move {
            let (mut commits, mut reading) = state?;
            match commits.next().await {
                Some(Ok(commit)) => {
                    reading.commits.push((commit.id, commit.last_version()));
                    Some((Ok(commit), Some((commits, reading))))
                }
                // A read that failed shows nothing.
                Some(Err(error)) => Some((Err(error), None)),
                None => {
                    let outcome = Outcome::Read {
                        stream: reading.stream,
                        after: reading.after,
                        commits: reading.commits,
                    };
                    self.log.answered(reading.number, outcome);
                    None
                }
            }
        });
        Ok(recorded.boxed().into())
    }
}
