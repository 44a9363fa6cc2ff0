//! Concurrent writers against one store ([`SerialLaws`]), in one thread or in many.
use super::{
    explain::{Unexplained, check},
    record::{Operation, Outcome, Recorder},
};
use crate::{
    SeededIds,
    laws::seed::{self, Plan},
};
use foldstream::{
    IdSource, StreamHead, StreamId, Timestamp,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventData, EventStore, ReadFrom},
};
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{TestCaseError, TestError, TestRunner},
};
use std::{
    cell::{Cell, RefCell},
    fmt::{self, Debug, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{runtime::Handle, sync::Barrier};

/// The number of streams that the writers share.
const STREAMS: usize = 2;

/// One action of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Reads a stream to its end, and remembers the head.
    Read(usize),
    /// Appends this many events after the remembered head of a stream.
    Append(usize, usize),
    /// Sends the writer's last append once more.
    Again,
    /// Appends to one stream atomically if the other stream has not moved.
    Checked(usize),
    /// Appends to all streams atomically.
    AppendAll,
}

fn actions(most_streams: u32) -> BoxedStrategy<Action> {
    let one = prop_oneof![
        3 => (0..STREAMS).prop_map(Action::Read),
        4 => (0..STREAMS, 1..3usize).prop_map(|(stream, events)| Action::Append(stream, events)),
        1 => Just(Action::Again),
    ];
    if most_streams < STREAMS as u32 {
        return one.boxed();
    }
    prop_oneof![
        8 => one,
        1 => (0..STREAMS).prop_map(Action::Checked),
        1 => Just(Action::AppendAll),
    ]
    .boxed()
}

/// The actions of the writers, and the writer that continues at each step.
#[derive(Clone, Debug)]
struct Case {
    writers: Vec<Vec<Action>>,
    schedule: Vec<Index>,
}

type Fresh = Box<dyn Fn() -> Arc<dyn EventStore>>;

/// Checks that several writers against one store get answers with a [serial
/// explanation](super::check).
///
/// Writers read, append after what they have read (which may be stale by then), send an append
/// again, and append to two streams at once if the store can. A failure shrinks to few writers with
/// few actions, and is printed with its schedule and seed.
///
/// # Example
/// ```
/// use foldstream_testkit::{InMemoryEventStore, laws::serial::SerialLaws};
/// SerialLaws::new(|| InMemoryEventStore::new()).with_cases(32).check();
/// SerialLaws::new(|| InMemoryEventStore::new()).with_cases(32).check_in_threads();
/// ```
pub struct SerialLaws {
    fresh: Fresh,
    plan: Plan,
    writers: usize,
    actions: usize,
}

impl Debug for SerialLaws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialLaws")
            .field("plan", &self.plan)
            .field("writers", &self.writers)
            .field("actions", &self.actions)
            .finish_non_exhaustive()
    }
}

impl SerialLaws {
    /// Creates laws that call `fresh` for the store of each case. It may be the same store, since
    /// every case has its own streams.
    #[must_use]
    pub fn new<S: EventStore>(fresh: impl Fn() -> Arc<S> + 'static) -> Self {
        Self {
            fresh: Box::new(move || fresh()),
            plan: Plan::DEFAULT,
            writers: 3,
            actions: 6,
        }
    }

    /// Sets the largest number of writers; 3 unless set.
    ///
    /// # Panics
    /// If `writers` is 0.
    #[track_caller]
    #[must_use]
    pub const fn with_writers(mut self, writers: usize) -> Self {
        assert!(writers > 0, "without a writer nothing is checked");
        self.writers = writers;
        self
    }

    /// Sets the largest number of actions of a writer; 6 unless set.
    ///
    /// # Panics
    /// If `actions` is 0.
    #[track_caller]
    #[must_use]
    pub const fn with_actions(mut self, actions: usize) -> Self {
        assert!(actions > 0, "without an action nothing is checked");
        self.actions = actions;
        self
    }

    /// Sets how many cases are tried; 256 unless set.
    #[must_use]
    pub const fn with_cases(mut self, cases: u32) -> Self {
        self.plan.cases = cases;
        self
    }

    /// Sets the seed of the cases. Unless set, each run tries other cases, and a failure prints
    /// their seed.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.plan.seed = Some(seed);
        self
    }

    /// Checks the store in one thread, where a drawn schedule says which writer is polled at each
    /// step.
    ///
    /// The same seed repeats the same run. This is for stores whose futures make progress by being
    /// polled alone.
    ///
    /// # Panics
    /// - If a case has no serial explanation, with the smallest such case.
    /// - If the store never stored anything in any case, since then nothing was checked.
    #[track_caller]
    pub fn check(self) {
        self.run("in one thread", |world, case| {
            let writers = case.writers.iter().map(|actions| {
                let world = world.clone();
                world.write(actions.clone(), true).boxed()
            });
            interleave(writers.collect(), &case.schedule);
        });
    }

    /// Checks the store with one thread per writer, all started at the same moment.
    ///
    /// A failure depends on the machine and need not repeat.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    #[track_caller]
    pub fn check_in_threads(self) {
        self.run("in threads", |world, case| {
            let start = Arc::new(Barrier::new(case.writers.len()));
            let writers = case.writers.iter().map(|actions| {
                let (world, start, actions) = (world.clone(), start.clone(), actions.clone());
                Handle::current().spawn(async move {
                    start.wait().await;
                    world.write(actions, false).await;
                })
            });
            let writers: Vec<_> = writers.collect();
            Handle::current().block_on(async {
                for writer in writers {
                    if let Err(error) = writer.await {
                        panic!("a writer: {error}");
                    }
                }
            });
        });
    }

    #[track_caller]
    fn run(self, how: &str, drive: impl Fn(&World, &Case)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.writers)
            .enable_all()
            .build()
            .unwrap_or_else(|error| panic!("no runtime: {error}"));
        let _entered = runtime.enter();
        let most = (self.fresh)().capabilities().max_streams_per_append;
        let writer = proptest::collection::vec(actions(most), 0..=self.actions);
        let cases = (
            proptest::collection::vec(writer, 1..=self.writers),
            proptest::collection::vec(any::<Index>(), 4 * self.writers * self.actions),
        );
        let cases = cases.prop_map(|(writers, schedule)| Case { writers, schedule });
        let stored = Cell::new(0_usize);
        for (config, seed) in self.plan.rounds() {
            let found = RefCell::new(None);
            let mut runner = TestRunner::new(config);
            let outcome = runner.run(&cases, |case| {
                let (store, log) = Recorder::new((self.fresh)());
                let world = World::new(store, seed);
                drive(&world, &case);
                let operations = log.operations();
                let is_stored = |o: &&Operation| matches!(o.outcome, Outcome::Appended(_));
                stored.set(stored.get() + operations.iter().filter(is_stored).count());
                let explained = check(&*world.store, &operations);
                runtime.block_on(explained).map_err(|error| {
                    let told = told(&case, &operations, &error);
                    *found.borrow_mut() = Some(told.clone());
                    TestCaseError::fail(told)
                })
            });
            match (outcome, found.into_inner()) {
                (Ok(()), _) => {}
                (Err(TestError::Fail(..)), Some(told)) => panic!(
                    "writers {how} were told what has no serial explanation\n{told}the same cases again: {}={seed}\n",
                    seed::SEED
                ),
                (Err(error), _) => panic!("the writers {how}: {error}"),
            }
            if stored.get() > 0 {
                return;
            }
        }
        panic!(
            "no append of the writers {how} was stored in any case: a store that stores nothing keeps every law. Look at \
             what it answers, and give it writers and cases enough"
        );
    }
}

/// The store and the streams of one case.
#[derive(Clone, Debug)]
struct World {
    store: Arc<dyn EventStore>,
    streams: Arc<[StreamId]>,
    ids: Arc<SeededIds>,
}

impl World {
    fn new(store: Arc<dyn EventStore>, seed: u64) -> Self {
        let unique = foldstream::CommitId::random();
        let stream = |n| StreamId::new("serial", &format_args!("{unique}-{n}"));
        let streams = (0..STREAMS).map(stream).collect::<Result<_, _>>();
        Self {
            store,
            streams: streams.unwrap_or_else(|error| panic!("a stream id: {error}")),
            ids: SeededIds::new(seed),
        }
    }

    async fn write(self, actions: Vec<Action>, pausing: bool) {
        let mut heads: Vec<_> = self
            .streams
            .iter()
            .cloned()
            .map(StreamHead::empty)
            .collect();
        let mut last = None;
        for action in actions {
            // The schedule may let another writer continue here, also between a read and the append
            // after it.
            if pausing {
                Pause::default().await;
            }
            match action {
                Action::Read(stream) => self.read(stream, &mut heads).await,
                Action::Append(stream, events) => {
                    let append = self.after(&heads[stream], events);
                    self.send(&append, &mut heads[stream]).await;
                    last = Some((stream, append));
                }
                Action::Again => {
                    if let Some((stream, append)) = &last {
                        self.send(append, &mut heads[*stream]).await;
                    }
                }
                Action::Checked(stream) => {
                    let others = heads.iter().enumerate().filter(|(n, _)| *n != stream);
                    let others = others.map(|(_, head)| head.clone()).collect();
                    let all =
                        AppendAll::new(vec![self.after(&heads[stream], 1)]).with_unchanged(others);
                    self.send_all(&all, &mut heads).await;
                }
                Action::AppendAll => {
                    let commits = heads.iter().map(|head| self.after(head, 1));
                    let all = AppendAll::new(commits.collect());
                    self.send_all(&all, &mut heads).await;
                }
            }
        }
    }

    fn after(&self, head: &StreamHead, events: usize) -> Append {
        let events = vec![EventData::new("Written", 1, "{}"); events];
        let now = Timestamp::from_micros(0);
        Append::after(head.clone(), self.ids.commit_id(), now, events)
    }

    async fn read(&self, stream: usize, heads: &mut [StreamHead]) {
        let from = ReadFrom::After(StreamHead::empty(self.streams[stream].clone()));
        let commits = self.store.read(&self.streams[stream], from, None);
        // A failed read shows nothing. Whether reads may fail is not the subject of this law.
        if let Ok(commits) = commits.try_collect::<Vec<Commit>>().await
            && let Some(commit) = commits.last()
        {
            heads[stream] = commit.head();
        }
    }

    async fn send(&self, append: &Append, head: &mut StreamHead) {
        match self.store.append(append).await {
            Ok(AppendOutcome::Appended(new)) => *head = new,
            Ok(AppendOutcome::Repeated(commits)) => {
                *head = commits.last().map_or_else(|| head.clone(), Commit::head);
            }
            // The writer keeps the head that it knows, and meets the next conflict.
            Ok(AppendOutcome::Conflict(_)) | Err(_) => {}
        }
    }

    async fn send_all(&self, all: &AppendAll, heads: &mut [StreamHead]) {
        if let Ok(AppendOutcome::Appended(new)) = self.store.append_all(all).await {
            for new in new {
                if let Some(head) = heads.iter_mut().find(|head| head.stream() == new.stream()) {
                    *head = new;
                }
            }
        }
    }
}

/// A future that yields to the other writers once.
#[derive(Debug, Default)]
struct Pause {
    is_over: bool,
}

impl Future for Pause {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        // No wake-up is needed: the schedule polls every writer that is not done.
        if std::mem::replace(&mut self.is_over, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Polls the writers as the schedule says, and after its end one after the other until all are
/// done.
fn interleave(writers: Vec<BoxFuture<'_, ()>>, schedule: &[Index]) {
    // The number of steps after which a case does not end: more than the pauses of any correct
    // store.
    const ENDLESS: usize = 1_000_000;
    let mut running: Vec<_> = writers.into_iter().collect();
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut schedule = schedule.iter();
    for step in 0.. {
        if running.is_empty() {
            return;
        }
        assert!(
            step < ENDLESS,
            "a writer waits for something that polling does not bring: use `check_in_threads`"
        );
        let at = schedule
            .next()
            .map_or(step % running.len(), |pick| pick.index(running.len()));
        if running[at].as_mut().poll(&mut context).is_ready() {
            drop(running.remove(at));
        }
    }
}

/// Returns a message with the case, all answers, and the reason that they cannot be explained.
fn told(case: &Case, operations: &[Operation], error: &Unexplained) -> String {
    let mut text = String::new();
    for (number, actions) in (1..).zip(&case.writers) {
        let _ = writeln!(text, "  writer {number}: {actions:?}");
    }
    // Only the last part of a stream's id is shown, because the rest differs in each run.
    let name = |stream: &StreamId| {
        stream
            .id()
            .rsplit('-')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    for (number, operation) in operations.iter().enumerate() {
        let asked = operation.commits.iter().map(|append| {
            let (stream, version) = (name(append.head.stream()), append.head.version());
            format!("append to {stream} after {version}")
        });
        let checked = operation
            .unchanged
            .iter()
            .map(|head| format!("if {} is at {}", name(head.stream()), head.version()));
        let asked: Vec<_> = asked
            .collect::<Vec<_>>()
            .into_iter()
            .chain(checked)
            .collect();
        let answer = match &operation.outcome {
            Outcome::Unknown => "no answer".to_owned(),
            Outcome::NotApplied => "not applied".to_owned(),
            Outcome::Appended(_) => "stored".to_owned(),
            Outcome::Repeated(_) => "stored before".to_owned(),
            Outcome::Conflict { actual, .. } => match actual {
                Some(actual) => format!("conflict, found at least {actual}"),
                None => "conflict".to_owned(),
            },
            Outcome::Read {
                stream, commits, ..
            } => {
                format!("read {}: {} commits", name(stream), commits.len())
            }
        };
        let moments = match operation.answered {
            Some(answered) => format!("{}..{answered}", operation.called),
            None => format!("{}..", operation.called),
        };
        let separator = if asked.is_empty() { "" } else { ": " };
        let _ = writeln!(
            text,
            "  {number:>3}  at {moments:<7} {}{separator}{answer}",
            asked.join(", ")
        );
    }
    let _ = writeln!(text, "  {error}");
    text
}
