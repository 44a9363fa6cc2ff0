//! The in-memory store's answers have a serial explanation, and those of stores that are broken
//! have none.
use super::{failure, golden};
use async_trait::async_trait;
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp, Version,
    adapter::version_conflict,
    ports::{
        Append, AppendAll, AppendOutcome, Commit, EventData, EventStore, EventStoreError, ReadFrom,
    },
};
use foldstream_testkit::{
    InMemoryEventStore,
    intercept::{self, Commits, EventStoreLayer, Intercepted, Read},
    laws::serial::{self, Outcome, Recorder, SerialLaws, Unexplained},
    length,
};
use futures::TryStreamExt;
use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

#[test]
fn writers_of_the_in_memory_store_are_serial_in_any_schedule() {
    SerialLaws::new(InMemoryEventStore::new)
        .with_cases(length::of("cases", 256, 10_000))
        .check();
}

#[test]
fn writers_of_the_in_memory_store_are_serial_in_threads() {
    SerialLaws::new(InMemoryEventStore::new)
        .with_writers(4)
        .with_actions(12)
        .with_cases(length::of("cases", 256, 10_000))
        .check_in_threads();
}

#[test]
fn writers_of_one_store_are_serial_in_case_after_case() {
    let store = InMemoryEventStore::new();
    SerialLaws::new(move || store.clone())
        .with_cases(64)
        .check();
}

#[test]
fn a_store_that_stores_nothing_checks_nothing() {
    use foldstream_testkit::faults::{Fault, Faults, Op};
    let refusing = || {
        let faults = Faults::none().with(Fault::Unavailable.on([Op::Append, Op::AppendAll]));
        Arc::new(faults.event_store(InMemoryEventStore::new()))
    };
    for text in [
        failure(|| SerialLaws::new(refusing).with_cases(16).check()),
        failure(|| SerialLaws::new(refusing).with_cases(4).check_in_threads()),
        failure(|| {
            SerialLaws::new(InMemoryEventStore::new)
                .with_cases(0)
                .check();
        }),
    ] {
        assert!(text.contains("was stored in any case"), "{text}");
    }
    let text = failure(|| SerialLaws::new(InMemoryEventStore::new).with_writers(0));
    assert_eq!(text, "without a writer nothing is checked");
    let text = failure(|| SerialLaws::new(InMemoryEventStore::new).with_actions(0));
    assert_eq!(text, "without an action nothing is checked");
}

/// The defect of a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Checks that the slot is free, yields to other writers, and then appends after their commits.
    CheckThenAct,
    /// Reports a commit as stored that it did not store.
    Forgets,
    /// Reports a commit as not stored that it stored.
    Denies,
    /// Reports a conflict that did not happen.
    Imagines,
    /// Reports a stream as longer than it is.
    Exaggerates,
    /// Reads one commit fewer than the stream has.
    ReadsLate,
    /// Stores only the first of several commits.
    Tears,
    /// Does not check streams that are only to be checked.
    Unchecked,
    /// Reports a commit as a repeat that is stored for the first time.
    Repeats,
    /// Stores other events than those of the request.
    Alters,
}

type Store = Arc<dyn EventStore>;

struct Broken {
    fault: Fault,
    appends: AtomicUsize,
}

impl Broken {
    fn new(fault: Fault) -> Arc<Intercepted<dyn EventStore, Self>> {
        let appends = AtomicUsize::new(0);
        intercept::event_store(InMemoryEventStore::new(), Self { fault, appends })
    }
    /// Returns true for every third append, which meets the fault.
    fn is_due(&self) -> bool {
        self.appends.fetch_add(1, Ordering::Relaxed) % 3 == 2
    }
}

async fn tail(store: &Store, stream: &StreamId) -> StreamHead {
    let mut commits = store.read(stream, ReadFrom::Newest, None);
    let newest = commits.try_next().await.unwrap();
    newest.map_or_else(|| StreamHead::empty(stream.clone()), |commit| commit.head())
}

fn elsewhere(append: &Append, head: StreamHead) -> Append {
    let (id, events) = (append.commit_id, append.events.clone());
    Append::after(head, id, append.recorded_at, events)
}

#[async_trait]
impl EventStoreLayer for Broken {
    async fn append(
        &self,
        store: &Store,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        let stream = append.head.stream().clone();
        match self.fault {
            Fault::CheckThenAct => {
                if tail(store, &stream).await != append.head {
                    return store.append(append).await;
                }
                tokio::task::yield_now().await;
                let moved = elsewhere(append, tail(store, &stream).await);
                store.append(&moved).await
            }
            Fault::Forgets if self.is_due() => Ok(AppendOutcome::Appended(append.head_after())),
            Fault::Denies if self.is_due() => {
                let _ = store.append(append).await?;
                Err(EventStoreError::Unavailable {
                    pending: None,
                    source: "denied".into(),
                })
            }
            Fault::Imagines if self.is_due() => {
                let conflict = version_conflict(stream, append.head.version(), None);
                Ok(AppendOutcome::Conflict(conflict))
            }
            Fault::Exaggerates => match store.append(append).await? {
                AppendOutcome::Conflict(mut conflict) => {
                    conflict.actual = conflict.actual.map(|version| version.plus(7));
                    Ok(AppendOutcome::Conflict(conflict))
                }
                other => Ok(other),
            },
            Fault::Repeats if self.is_due() => {
                let moved = elsewhere(append, StreamHead::empty(stream));
                Ok(AppendOutcome::Repeated(vec![moved.to_commit()]))
            }
            Fault::Alters if self.is_due() => {
                let mut altered = append.clone();
                altered.events = [EventData::new("Altered", 1, "{}")].into();
                store.append(&altered).await
            }
            _ => store.append(append).await,
        }
    }

    async fn append_all(
        &self,
        store: &Store,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        match self.fault {
            Fault::Tears if all.commits.len() > 1 => {
                let first = store.append(&all.commits[0]).await?;
                if let AppendOutcome::Conflict(conflict) = first {
                    return Ok(AppendOutcome::Conflict(conflict));
                }
                let heads = all.commits.iter().map(Append::head_after);
                Ok(AppendOutcome::Appended(heads.collect()))
            }
            Fault::Unchecked => {
                let all = AppendAll::new(all.commits.clone());
                store.append_all(&all).await
            }
            _ => store.append_all(all).await,
        }
    }

    async fn read<'a>(
        &'a self,
        store: &'a Store,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        if self.fault != Fault::ReadsLate {
            return Ok(read.pass(store));
        }
        // The newest commit becomes visible with the next one.
        let mut commits = read.all(store).await?;
        commits.pop();
        Ok(commits.into())
    }
}

#[test]
fn a_store_that_is_broken_is_caught() {
    let faults = [
        (Fault::CheckThenAct, "nobody asked for so"),
        (Fault::Forgets, "acknowledged and is not there"),
        (
            Fault::Denies,
            "told that nothing was stored, and its commit is there",
        ),
        (Fault::Imagines, "after which there is nothing"),
        (Fault::Exaggerates, "which ends at"),
        (Fault::ReadsLate, "acknowledged and is not there"),
        (
            Fault::Tears,
            "1 of 2 commits of one atomic append are stored",
        ),
        (Fault::Unchecked, "no order"),
        (Fault::Repeats, "an earlier attempt had stored its commit"),
        (Fault::Alters, "nobody asked for so"),
    ];
    for (fault, why) in faults {
        let text = failure(|| {
            SerialLaws::new(move || Broken::new(fault))
                .with_seed(1)
                .check();
        });
        assert!(text.contains(why), "{fault:?}: {text}");
    }
}

#[test]
fn two_writers_that_each_rely_on_what_the_other_changes_are_told() {
    let laws = SerialLaws::new(|| Broken::new(Fault::Unchecked)).with_seed(1);
    golden(
        &failure(|| laws.check()),
        r#"
writers in one thread were told what has no serial explanation
  writer 1: [Checked(1)]
  writer 2: [Checked(0)]
    0  at 1..2    append to 1 after 0, if 0 is at 0: stored
    1  at 3..4    append to 0 after 0, if 1 is at 0: stored
  no order: each of these operations comes before the next, and the last before the first: [0, 1]
the same cases again: FOLDSTREAM_SEED=1
"#,
    );
}

#[test]
fn a_race_is_caught_in_threads() {
    let laws = SerialLaws::new(|| Broken::new(Fault::CheckThenAct)).with_actions(20);
    let text = failure(|| laws.check_in_threads());
    assert!(text.starts_with("writers in threads were told"), "{text}");
}

fn stream() -> StreamId {
    StreamId::new("s", "1").unwrap()
}
fn append(head: StreamHead) -> Append {
    let events = [EventData::new("Written", 1, "{}")];
    Append::after(head, CommitId::random(), Timestamp::from_micros(0), events)
}
async fn read(store: &dyn EventStore) -> Vec<Commit> {
    let start = ReadFrom::After(StreamHead::empty(stream()));
    let commits = store.read(&stream(), start, None);
    commits.try_collect().await.unwrap()
}

#[tokio::test]
async fn a_read_that_misses_what_was_acknowledged_before_has_no_place() {
    let inner = InMemoryEventStore::new();
    let (store, log) = Recorder::new(inner.clone());
    // The read is from before the append, but its answer arrives after the append.
    assert!(read(&*store).await.is_empty());
    let first = append(StreamHead::empty(stream()));
    let _ = store.append(&first).await.unwrap();
    let mut operations = log.operations();
    serial::check(&*inner, &operations).await.unwrap();
    (operations[0].called, operations[0].answered) = (10, Some(11));
    let error = serial::check(&*inner, &operations).await.unwrap_err();
    assert!(
        matches!(&error, Unexplained::Circle(circle) if circle.len() == 2),
        "{error}"
    );
}

#[tokio::test]
async fn a_conflict_told_before_the_winner_began_has_no_place() {
    let inner = InMemoryEventStore::new();
    let (store, log) = Recorder::new(inner.clone());
    let empty = StreamHead::empty(stream());
    let _ = store.append(&append(empty.clone())).await.unwrap();
    let _ = store.append(&append(empty)).await.unwrap();
    let mut operations = log.operations();
    let told = Outcome::Conflict {
        stream: stream(),
        actual: Some(Version::new(1)),
    };
    assert_eq!(operations[1].outcome, told);
    serial::check(&*inner, &operations).await.unwrap();
    (operations[0].called, operations[0].answered) = (10, Some(11));
    assert!(serial::check(&*inner, &operations).await.is_err());
}

#[tokio::test]
async fn a_repeat_and_an_append_without_an_answer_are_explained() {
    let inner = InMemoryEventStore::new();
    let (store, log) = Recorder::new(inner.clone());
    let first = append(StreamHead::empty(stream()));
    let _ = store.append(&first).await.unwrap();
    let _ = store.append(&first).await.unwrap();
    let mut operations = log.operations();
    assert!(matches!(&operations[1].outcome, Outcome::Repeated(_)));
    (operations[0].answered, operations[0].outcome) = (None, Outcome::Unknown);
    serial::check(&*inner, &operations).await.unwrap();
    // Both writers were told that they were the first, so one answer was wrong.
    operations[1].outcome = Outcome::NotApplied;
    serial::check(&*inner, &operations).await.unwrap();
    operations[0].outcome = Outcome::NotApplied;
    assert!(serial::check(&*inner, &operations).await.is_err());
}

#[tokio::test]
async fn a_read_to_a_limit_or_backwards_is_not_written_down() {
    let (store, log) = Recorder::new(InMemoryEventStore::new());
    let _ = store
        .append(&append(StreamHead::empty(stream())))
        .await
        .unwrap();
    for (from, limit) in [
        (ReadFrom::Newest, None),
        (
            ReadFrom::After(StreamHead::empty(stream())),
            NonZeroU32::new(1),
        ),
    ] {
        let commits: Vec<_> = store
            .read(&stream(), from, limit)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(commits.len(), 1);
    }
    assert_eq!(log.operations().len(), 1);
}

#[test]
fn few_cases_that_store_nothing_by_bad_luck_are_no_failure() {
    for seed in 0..20 {
        let laws = SerialLaws::new(InMemoryEventStore::new);
        laws.with_cases(1).with_seed(seed).check();
    }
}
