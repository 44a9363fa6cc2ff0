//! Loads with snapshots: the snapshot and the newest commits are requested together, and can differ
//! in every way.
use super::*;
use foldstream::{LoadPolicy, StreamId};
use foldstream_testkit::{intercept::SnapshotStoreLayer, length};
use futures::future::BoxFuture;
use std::{num::NonZeroU32, sync::Mutex};

/// A request of a load.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Snapshot,
    Read(ReadFrom, Option<u32>),
}
use Call::Snapshot;

type Hook = BoxFuture<'static, ()>;

/// A layer over both stores that records requests, answers after a delay, and runs a hook before
/// each answer.
#[derive(Clone, Default)]
struct Slow(Arc<Pace>);
#[derive(Default)]
struct Pace {
    calls: Mutex<Vec<Call>>,
    read_takes: Mutex<Duration>,
    snapshot_takes: Mutex<Duration>,
    before_read: Mutex<Vec<Hook>>,
    before_snapshot: Mutex<Vec<Hook>>,
}
impl Slow {
    fn note(&self, call: Call) {
        self.0.calls.lock().unwrap().push(call);
    }
    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.calls.lock().unwrap())
    }
    async fn answer(&self, takes: &Mutex<Duration>, hooks: &Mutex<Vec<Hook>>) {
        let takes = *takes.lock().unwrap();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let hook = hooks.lock().unwrap().pop();
        if let Some(hook) = hook {
            hook.await;
        }
    }
}

#[async_trait]
impl SnapshotStoreLayer for Slow {
    async fn load(
        &self,
        inner: &Arc<dyn SnapshotStore>,
        stream: &StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        self.note(Snapshot);
        let Pace {
            snapshot_takes,
            before_snapshot,
            ..
        } = &*self.0;
        self.answer(snapshot_takes, before_snapshot).await;
        inner.load(stream).await
    }
}

#[async_trait]
impl EventStoreLayer for Slow {
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        self.note(Call::Read(
            read.from.clone(),
            read.limit.map(NonZeroU32::get),
        ));
        self.answer(&self.0.read_takes, &self.0.before_read).await;
        Ok(read.pass(inner))
    }
}

/// A stream of commits, each with this number of deposits of 1, and a load of it.
struct World {
    slow: Slow,
    events: Arc<InMemoryEventStore>,
    snapshots: Arc<InMemorySnapshotStore>,
    plain: Repository<Account>,
}
impl World {
    async fn with_commits(commits: impl IntoIterator<Item = usize>) -> Self {
        let events = InMemoryEventStore::new();
        let plain = accounts(&events);
        for times in commits {
            plain.execute(&ann(), DepositOnes { times }).await.unwrap();
        }
        Self {
            slow: Slow::default(),
            events,
            snapshots: InMemorySnapshotStore::new(),
            plain,
        }
    }
    fn slow_events(&self) -> Arc<dyn EventStore> {
        intercept::event_store(self.events.clone(), self.slow.clone())
    }
    fn slow_snapshots(&self) -> Arc<dyn SnapshotStore> {
        intercept::snapshot_store(self.snapshots.clone(), self.slow.clone())
    }
    fn repository(&self, policy: LoadPolicy) -> Repository<Account> {
        Repository::new(self.slow_events())
            .with_snapshots(self.slow_snapshots(), SnapshotPolicy::never())
            .with_load_policy(policy)
    }
    async fn head_at(&self, version: u64) -> StreamHead {
        let all = commits(&self.events).await;
        let found = all.iter().find(|c| c.last_version().get() == version);
        found.unwrap().head()
    }
    /// Saves a snapshot that fits the commit that ends at this version.
    async fn snapshot_at(&self, version: u64) {
        let id = self.head_at(version).await.commit_id().unwrap();
        self.snapshot(version, id).await;
    }
    async fn snapshot(&self, version: u64, id: CommitId) {
        let saved = self.snapshots.save(&snapshot(version, id)).await.unwrap();
        assert_eq!(saved, SaveOutcome::Saved);
    }
    async fn has_snapshot(&self) -> bool {
        let found = self.snapshots.load(&stream("ann")).await.unwrap();
        found.is_some()
    }
    /// Loads with this number of newest commits, checks the state, and returns the requests.
    async fn calls_of_load(&self, newest: u32, version: u64) -> Vec<Call> {
        let loaded = self.repository(LoadPolicy::together(newest));
        let loaded = loaded.load(&ann()).await.unwrap();
        assert_eq!(loaded.version().get(), version);
        assert_eq!(loaded.state(), &folded(version));
        if version > 0 {
            assert_eq!(loaded.head(), &self.head_at(version).await);
        }
        self.slow.take_calls()
    }
}
const fn folded(version: u64) -> Account {
    Account {
        balance: version,
        events: version,
    }
}
fn snapshot(version: u64, id: CommitId) -> StoredSnapshot {
    let payload = serde_json::to_vec(&folded(version)).unwrap();
    StoredSnapshot::new(stream("ann"), Version::new(version), id, 1, payload.into())
}
fn newest(limit: u32) -> Call {
    Call::Read(ReadFrom::Newest, Some(limit))
}
fn at_or_below(version: u64, limit: u32) -> Call {
    let from = ReadFrom::NewestAtOrBelow(Version::new(version));
    Call::Read(from, Some(limit))
}
fn event(version: u64) -> Call {
    Call::Read(ReadFrom::Event(Version::new(version)), None)
}
fn from_the_start(limit: Option<u32>) -> Call {
    Call::Read(ReadFrom::After(StreamHead::empty(stream("ann"))), limit)
}

const LATENCY: Duration = Duration::from_millis(5);

#[tokio::test(start_paused = true)]
async fn a_load_with_a_snapshot_takes_one_round_trip_time() {
    let world = World::with_commits([1; 60]).await;
    world.snapshot_at(50).await;
    *world.slow.0.read_takes.lock().unwrap() = LATENCY;
    *world.slow.0.snapshot_takes.lock().unwrap() = LATENCY;
    let time_of_load = async |policy, snapshots| {
        let repository = Repository::<Account>::new(world.slow_events())
            .with_snapshots(world.slow_snapshots(), snapshots)
            .with_load_policy(policy);
        let started = tokio::time::Instant::now();
        let loaded = repository.load(&ann()).await.unwrap();
        assert_eq!(loaded.state(), &folded(60));
        assert_eq!(repository.metrics().loads.with_snapshot, 1);
        started.elapsed()
    };
    let every = SnapshotPolicy::every(50);
    assert_eq!(time_of_load(LoadPolicy::Auto, every).await, LATENCY);
    let never = SnapshotPolicy::never();
    let together = LoadPolicy::together(20);
    assert_eq!(time_of_load(together, never).await, LATENCY);
    assert_eq!(
        time_of_load(LoadPolicy::InSequence, every).await,
        2 * LATENCY
    );
    // The history before a snapshot has no bound.
    assert_eq!(time_of_load(LoadPolicy::Auto, never).await, 2 * LATENCY);
}

#[tokio::test]
async fn a_tail_of_large_events_is_not_read_on_suspicion() {
    let world = World::with_commits([1; 3]).await;
    let repository = Repository::<Account>::new(world.slow_events())
        .with_snapshots(world.slow_snapshots(), SnapshotPolicy::every(200));
    repository.load(&ann()).await.unwrap();
    assert_eq!(world.slow.take_calls(), [Snapshot, newest(200)]);
    // Events of 10 KB: 200 of them are far more than is read without need.
    let padded = format!(r#"{{"amount":1,"padding":"{}"}}"#, "x".repeat(10_000));
    let head = StreamHead::empty(stream("bob"));
    let event = EventData::new("Deposited", 1, padded.into_bytes());
    let append = Append::after(head, CommitId::random(), Timestamp::now(), [event]);
    let _ = world.events.append(&append).await.unwrap();
    repository.load(&"bob".into()).await.unwrap();
    world.slow.take_calls();
    repository.load(&ann()).await.unwrap();
    assert_eq!(
        world.slow.take_calls(),
        [Snapshot, from_the_start(None)],
        "a load is in sequence after large events"
    );
}

#[tokio::test]
async fn without_a_snapshot_newest_commits_that_reach_the_first_version_are_the_history() {
    for commits in [vec![], vec![1], vec![1, 3, 1], vec![1; 5]] {
        let version = commits.iter().sum::<usize>() as u64;
        let world = World::with_commits(commits).await;
        assert_eq!(
            world.calls_of_load(5, version).await,
            [Snapshot, newest(5)],
            "{version}"
        );
    }
}

#[tokio::test]
async fn without_a_snapshot_a_longer_history_is_read_forwards_up_to_the_newest_commits() {
    let world = World::with_commits([2, 1, 4, 1, 2, 3]).await;
    // The newest two commits begin at version 9.
    assert_eq!(
        world.calls_of_load(2, 13).await,
        [Snapshot, newest(2), from_the_start(Some(8))]
    );
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_is_as_none() {
    let world = World::with_commits([1; 4]).await;
    let id = world.head_at(3).await.commit_id().unwrap();
    let mut unreadable = snapshot(3, id);
    unreadable.payload = b"?"[..].into();
    let mut of_another_state = snapshot(3, id);
    of_another_state.state_version = 2;
    for unusable in [unreadable, of_another_state] {
        world.snapshots.delete(&stream("ann")).await.unwrap();
        let saved = world.snapshots.save(&unusable).await.unwrap();
        assert_eq!(saved, SaveOutcome::Saved);
        assert_eq!(
            world.calls_of_load(2, 4).await,
            [Snapshot, newest(2), from_the_start(Some(2))]
        );
        assert!(world.has_snapshot().await, "a newer build may need it");
    }
}

#[tokio::test]
async fn a_snapshot_among_the_newest_commits_is_folded_on_without_another_read() {
    let world = World::with_commits([2, 1, 4, 1, 2, 3]).await;
    for at in [7, 8, 10, 13] {
        world.snapshot_at(at).await;
        assert_eq!(
            world.calls_of_load(4, 13).await,
            [Snapshot, newest(4)],
            "{at}"
        );
    }
}

#[tokio::test]
async fn a_snapshot_below_the_newest_commits_is_reached_by_paging_back() {
    let world = World::with_commits([2, 1, 4, 1, 2, 3]).await;
    world.snapshot_at(3).await;
    // The newest two commits begin at version 9. Five events lie before them, and the snapshot's
    // commit.
    assert_eq!(
        world.calls_of_load(2, 13).await,
        [Snapshot, newest(2), at_or_below(8, 6)]
    );
    // The snapshot's commit ends right before the newest commits.
    world.snapshot_at(8).await;
    assert_eq!(
        world.calls_of_load(2, 13).await,
        [Snapshot, newest(2), at_or_below(8, 1)]
    );
}

#[tokio::test]
async fn a_snapshot_far_below_the_newest_commits_is_read_on_forwards() {
    let world = World::with_commits([1; 30]).await;
    world.snapshot_at(5).await;
    assert_eq!(
        world.calls_of_load(3, 30).await,
        [Snapshot, newest(3), event(5)]
    );
}

#[tokio::test]
async fn a_snapshot_of_another_history_is_ignored_and_deleted() {
    // The snapshot is among the newest commits, reached by paging back, far before them, or inside
    // a commit.
    for (version, newest, is_end) in [
        (9, 4, true),
        (9, 1, true),
        (1, 1, true),
        (5, 9, false),
        (5, 2, false),
    ] {
        let world = World::with_commits([1, 1, 4, 1, 2, 3]).await;
        assert_eq!(
            commits(&world.events)
                .await
                .iter()
                .any(|c| c.last_version().get() == version),
            is_end
        );
        world.snapshot(version, CommitId::random()).await;
        world.calls_of_load(newest, 12).await;
        assert!(!world.has_snapshot().await, "{version} {newest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_read_later_than_the_commits_is_used() {
    let world = World::with_commits([1; 4]).await;
    *world.slow.0.snapshot_takes.lock().unwrap() = LATENCY;
    let plain = world.plain.clone();
    let snapshots = world.snapshots.clone();
    let between = async move {
        // After the answer with the commits, and before the one with the snapshot.
        let done = plain
            .execute(&ann(), DepositOnes { times: 3 })
            .await
            .unwrap();
        let id = done.head().commit_id().unwrap();
        snapshots
            .save(&snapshot(done.version().get(), id))
            .await
            .unwrap();
        plain.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    };
    world
        .slow
        .0
        .before_snapshot
        .lock()
        .unwrap()
        .push(Box::pin(between));
    assert_eq!(
        world.calls_of_load(2, 8).await,
        [Snapshot, newest(2), event(7)]
    );
    assert!(world.has_snapshot().await);
}

#[tokio::test]
async fn a_snapshot_above_the_tail_is_a_forked_history_and_is_warned_of_ignored_and_deleted() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    for commits in [vec![], vec![1, 1, 2]] {
        let tail = commits.iter().sum::<usize>() as u64;
        let world = World::with_commits(commits).await;
        world.snapshot(9, CommitId::random()).await;
        let repository = world.repository(LoadPolicy::together(2));
        let loaded = repository.load(&ann()).await.unwrap();
        assert_eq!(loaded.state(), &folded(tail));
        assert_eq!(repository.metrics().loads.misfits, 1);
        assert!(!world.has_snapshot().await);
        let warned = warnings.take();
        assert!(
            matches!(&warned[..], [one] if one.contains("the history forked")),
            "{warned:?}"
        );
    }
}

#[tokio::test]
async fn a_hole_in_a_load_with_snapshots_is_an_error() {
    for (hole, snapshot_at, newest) in [(7, 0, 5), (3, 0, 5), (8, 7, 5), (5, 4, 2)] {
        let world = World::with_commits([1; 10]).await;
        if snapshot_at > 0 {
            world.snapshot_at(snapshot_at).await;
        }
        let holey = Faults::script([Fault::HoleAt(Version::new(hole)).on(Op::Read)]);
        let holey = holey.event_store(world.events.clone());
        let repository = Repository::<Account>::new(holey)
            .with_snapshots(world.slow_snapshots(), SnapshotPolicy::never())
            .with_load_policy(LoadPolicy::together(newest));
        let error = repository.load(&ann()).await.unwrap_err();
        assert!(
            matches!(error, LoadError::NotContiguous { .. }),
            "{hole} {error:?}"
        );
    }
}

/// Any history, any snapshot, any number of newest commits, with other writers between any two
/// answers.
#[tokio::test(start_paused = true)]
async fn a_load_shows_a_state_that_the_stream_had_while_it_ran() {
    for seed in length::seeds(1_000, 20_000) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let lengths: Vec<_> = (0..rng.usize(0..30)).map(|_| rng.usize(1..4)).collect();
        let world = World::with_commits(lengths).await;
        let history = commits(&world.events).await;
        if let Some(commit) = rng.choice(&history)
            && rng.bool()
        {
            let of_another = rng.u32(0..4) == 0;
            let id = if of_another {
                CommitId::random()
            } else {
                commit.id
            };
            let further = if of_another { rng.u64(0..5) } else { 0 };
            world
                .snapshot(commit.last_version().get() + further, id)
                .await;
        }
        let millis = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(0..3));
        *world.slow.0.read_takes.lock().unwrap() = millis(&mut rng);
        *world.slow.0.snapshot_takes.lock().unwrap() = millis(&mut rng);
        // Other writers append and take snapshots.
        for hooks in [&world.slow.0.before_read, &world.slow.0.before_snapshot] {
            let others = (0..2).map(|_| {
                let times = rng.usize(0..4);
                let others = world
                    .plain
                    .clone()
                    .with_snapshots(world.snapshots.clone(), SnapshotPolicy::every(2));
                let hook: Hook = Box::pin(async move {
                    for _ in 0..times {
                        others
                            .execute(&ann(), DepositOnes { times: 2 })
                            .await
                            .unwrap();
                        others.close().await;
                    }
                });
                hook
            });
            hooks.lock().unwrap().extend(others);
        }
        let before = history.last().map_or(0, |c| c.last_version().get());
        let repository = world.repository(LoadPolicy::together(rng.u32(1..9)));
        let loaded = repository.load(&ann()).await.unwrap();
        let after = world.plain.load(&ann()).await.unwrap().version().get();
        let version = loaded.version().get();
        assert!((before..=after).contains(&version), "seed {seed}");
        assert_eq!(loaded.state(), &folded(version), "seed {seed}");
        if version > 0 {
            assert_eq!(loaded.head(), &world.head_at(version).await, "seed {seed}");
        }
    }
}

/// Collects the texts of warnings.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(Arc<Mutex<Vec<String>>>);
impl Warnings {
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}
impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
