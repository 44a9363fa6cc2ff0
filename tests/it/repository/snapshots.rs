//! The rules of snapshots, and when they are taken.
use super::*;
use foldstream_testkit::intercept::{self, Intercepted, SnapshotStoreLayer};

async fn snapshot_of(snapshots: &InMemorySnapshotStore) -> Option<StoredSnapshot> {
    snapshots.load(&stream("ann")).await.unwrap()
}

#[tokio::test]
async fn new_events_are_applied_once_when_a_snapshot_is_taken() {
    let (store, snapshots) = (InMemoryEventStore::new(), InMemorySnapshotStore::new());
    let accounts = accounts(&store).with_snapshots(snapshots.clone(), SnapshotPolicy::every(3));
    for n in 1..=7 {
        let done = accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        assert_eq!((done.state().balance, done.state().events), (n, n));
        accounts.close().await;
    }
    let snapshot = snapshot_of(&snapshots).await.unwrap();
    assert_eq!(snapshot.version.get(), 6);
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!((loaded.state().balance, loaded.state().events), (7, 7));
}

#[tokio::test]
async fn a_load_folds_from_the_snapshot_and_the_tail() {
    let (store, snapshots) = (InMemoryEventStore::new(), InMemorySnapshotStore::new());
    let plain = accounts(&store);
    plain.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    let at_one = plain.load(&ann()).await.unwrap();
    plain.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    // The snapshot differs from the events, which shows that it was used.
    let told = Account {
        balance: 1000,
        events: 1,
    };
    let snapshot = |version, commit_id, state_version| {
        let payload = serde_json::to_vec(&told).unwrap().into();
        StoredSnapshot::new(
            stream("ann"),
            Version::new(version),
            commit_id,
            state_version,
            payload,
        )
    };
    let with = plain.with_snapshots(snapshots.clone(), SnapshotPolicy::never());
    let balance = async || with.load(&ann()).await.unwrap().state().balance;
    let id = at_one.head().commit_id().unwrap();

    snapshots.save(&snapshot(1, id, 1)).await.unwrap();
    assert_eq!(balance().await, 1001, "a snapshot that fits is used");
    for (reason, unfit) in [
        ("of another history", snapshot(1, CommitId::random(), 1)),
        ("ahead of the tail", snapshot(9, id, 1)),
        ("of another state version", snapshot(1, id, 2)),
    ] {
        snapshots.delete(&stream("ann")).await.unwrap();
        assert_eq!(snapshots.save(&unfit).await.unwrap(), SaveOutcome::Saved);
        assert_eq!(balance().await, 2, "a snapshot {reason} is ignored");
    }
}

/// A snapshot store that is unavailable.
#[derive(Debug)]
struct Down;
fn down() -> SnapshotStoreError {
    SnapshotStoreError::Refused {
        kind: RefusedKind::Other,
        reason: "down".into(),
        source: no_answer(),
    }
}
#[async_trait]
impl SnapshotStore for Down {
    async fn load(
        &self,
        _: &foldstream::StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        Err(down())
    }
    async fn save(&self, _: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        Err(down())
    }
    async fn delete(&self, _: &foldstream::StreamId) -> Result<(), SnapshotStoreError> {
        Err(down())
    }
}

#[tokio::test]
async fn snapshots_never_fail_a_command() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store).with_snapshots(Arc::new(Down), SnapshotPolicy::every(1));
    for n in 1..=3 {
        let done = accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        assert_eq!(done.state().balance, n);
    }
    accounts.close().await;
}

#[tokio::test]
async fn with_a_cache_a_snapshot_is_taken_every_so_many_events_and_not_at_every_command() {
    let (store, snapshots) = (InMemoryEventStore::new(), InMemorySnapshotStore::new());
    let accounts = accounts(&store)
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(3))
        .with_cache(10);
    let mut versions = Vec::new();
    for _ in 0..10 {
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        accounts.close().await;
        versions.push(snapshot_of(&snapshots).await.map_or(0, |s| s.version.get()));
    }
    assert_eq!(versions, [0, 0, 3, 3, 3, 6, 6, 6, 9, 9]);
}

#[tokio::test]
async fn a_snapshot_of_another_history_does_not_stand_in_the_way_of_a_later_one() {
    let (store, snapshots) = (InMemoryEventStore::new(), InMemorySnapshotStore::new());
    let accounts = accounts(&store).with_snapshots(snapshots.clone(), SnapshotPolicy::every(1));
    // The events were restored from a backup, but the snapshots were not.
    let ahead = StoredSnapshot::new(
        stream("ann"),
        Version::new(99),
        CommitId::random(),
        1,
        serde_json::to_vec(&Account::default()).unwrap().into(),
    );
    snapshots.save(&ahead).await.unwrap();
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    accounts.close().await;
    assert_eq!(
        snapshot_of(&snapshots).await.unwrap().version,
        Version::new(1)
    );
}

#[tokio::test]
async fn a_snapshot_is_taken_when_the_last_one_is_old_and_something_is_new() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (store, snapshots) = (InMemoryEventStore::new(), InMemorySnapshotStore::new());
    let clock = ManualClock::at(Timestamp::from_micros(0));
    let policy = SnapshotPolicy::older_than(HOUR);
    // The first event is half an hour old at the second, an hour at the third, and older at the
    // fourth. Without a cache, the load before a command finds that it is old.
    for (cache, expected) in [(0, [0, 0, 0, 3, 3, 5]), (100, [0, 0, 0, 4, 4, 4])] {
        let id = AccountId::from(cache.to_string());
        let accounts = accounts(&store)
            .with_snapshots(snapshots.clone(), policy)
            .with_clock(clock.clone())
            .with_cache(cache);
        let mut versions = Vec::new();
        for _ in 0..6 {
            accounts.execute(&id, Deposit { amount: 1 }).await.unwrap();
            accounts.close().await;
            let found = snapshots.load(&stream(id.as_str())).await.unwrap();
            versions.push(found.map_or(0, |s| s.version.get()));
            clock.advance(HOUR / 2);
        }
        assert_eq!(versions, expected, "{cache}");
        // No events are after the snapshot, so the second load takes none, however old the snapshot
        // is.
        clock.advance(HOUR * 100);
        let due = accounts.metrics().snapshots;
        for _ in 0..2 {
            accounts.load(&id).await.unwrap();
            accounts.close().await;
        }
        let taken = accounts.metrics().snapshots;
        assert_eq!(
            taken.written - due.written,
            1,
            "something was new at the first"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_taken_when_a_load_was_slow() {
    for (limit, written) in [(4, 1), (5, 0)] {
        let snapshots = InMemorySnapshotStore::new();
        let slow = Fault::Delay(Duration::from_millis(5)).on(Op::Read);
        let (store, accounts) = faulty(&Faults::script([slow]));
        let policy = SnapshotPolicy::load_slower_than(Duration::from_millis(limit));
        let accounts = accounts.with_snapshots(snapshots.clone(), policy);
        super::accounts(&store)
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        accounts.load(&ann()).await.unwrap();
        accounts.close().await;
        assert_eq!(accounts.metrics().snapshots.written, written, "{limit} ms");
        let loads = accounts.metrics().loads;
        assert_eq!(loads.time, Duration::from_millis(5));
    }
}

/// A snapshot store that waits for a permit before each save.
struct Gate(tokio::sync::Semaphore);
type Gated = Arc<Intercepted<dyn SnapshotStore, Gate>>;
impl Gate {
    fn closed() -> Gated {
        let gate = Self(tokio::sync::Semaphore::new(0));
        intercept::snapshot_store(InMemorySnapshotStore::new(), gate)
    }
    fn open(&self) {
        self.0.add_permits(1_000_000);
    }
}
#[async_trait]
impl SnapshotStoreLayer for Gate {
    async fn save(
        &self,
        inner: &Arc<dyn SnapshotStore>,
        snapshot: &StoredSnapshot,
    ) -> Result<SaveOutcome, SnapshotStoreError> {
        self.0.acquire().await.unwrap().forget();
        inner.save(snapshot).await
    }
}

#[tokio::test]
async fn a_snapshot_store_that_hangs_delays_no_command_and_the_newest_state_is_written_later() {
    let gate = Gate::closed();
    let accounts = accounts(&InMemoryEventStore::new())
        .with_snapshots(gate.clone(), SnapshotPolicy::every(1))
        .with_cache(10);
    for n in 1..=5 {
        let done = accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        assert_eq!(done.version().get(), n);
        // The yield lets the writer begin with the first snapshot.
        tokio::task::yield_now().await;
    }
    gate.layer().open();
    accounts.close().await;
    let snapshot = gate.inner().load(&stream("ann")).await.unwrap().unwrap();
    assert_eq!(snapshot.version.get(), 5);
    let done = accounts.metrics().snapshots;
    assert_eq!((done.written, done.superseded, done.failed), (2, 3, 0));
}

#[tokio::test]
async fn the_queue_of_snapshots_is_bounded_and_what_it_has_no_room_for_is_taken_later() {
    let gate = Gate::closed();
    let accounts = accounts(&InMemoryEventStore::new())
        .with_snapshots(gate.clone(), SnapshotPolicy::every(1))
        .with_cache(10_000);
    for n in 0..1100 {
        let id = AccountId::from(n.to_string());
        accounts.execute(&id, Deposit { amount: 1 }).await.unwrap();
    }
    let skipped = accounts.metrics().snapshots.skipped;
    assert!((70..=76).contains(&skipped), "{skipped}");
    gate.layer().open();
    accounts.close().await;
    assert_eq!(accounts.metrics().snapshots.written, 1100 - skipped);
    // The last snapshot was skipped, so the next command on its stream takes it.
    let last = AccountId::from("1099");
    assert_eq!(gate.inner().load(&stream("1099")).await.unwrap(), None);
    accounts
        .execute(&last, Deposit { amount: 1 })
        .await
        .unwrap();
    accounts.close().await;
    let snapshot = gate.inner().load(&stream("1099")).await.unwrap().unwrap();
    assert_eq!(snapshot.version.get(), 2);
}

#[tokio::test]
async fn a_busy_stream_does_not_keep_the_snapshots_of_others_waiting() {
    let gate = Gate::closed();
    let accounts = accounts(&InMemoryEventStore::new())
        .with_snapshots(gate.clone(), SnapshotPolicy::every(1))
        .with_cache(10);
    let deposit = async |id: &str| {
        accounts
            .execute(&id.into(), Deposit { amount: 1 })
            .await
            .unwrap();
    };
    deposit("a").await;
    tokio::task::yield_now().await;
    deposit("z").await;
    for _ in 0..4 {
        deposit("a").await;
        gate.layer().0.add_permits(1);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(accounts.metrics().snapshots.written, 4);
    let z = gate.inner().load(&stream("z")).await.unwrap();
    assert!(z.is_some());
    gate.layer().open();
    accounts.close().await;
}

#[tokio::test]
async fn two_that_close_at_the_same_time_both_wait_for_every_snapshot() {
    let gate = Gate::closed();
    let accounts =
        accounts(&InMemoryEventStore::new()).with_snapshots(gate.clone(), SnapshotPolicy::every(1));
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    let written = || accounts.metrics().snapshots.written;
    let close = async || {
        accounts.close().await;
        assert_eq!(written(), 1);
    };
    let open = async {
        tokio::task::yield_now().await;
        gate.layer().open();
    };
    futures::join!(close(), close(), open);
}

#[test]
fn a_snapshot_whose_runtime_went_away_is_written_by_close_in_another() {
    let gate = Gate::closed();
    let accounts =
        accounts(&InMemoryEventStore::new()).with_snapshots(gate.clone(), SnapshotPolicy::every(1));
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    };
    // Two streams: one save hangs and the other waits for it when the runtime ends.
    runtime().block_on(async {
        for id in ["ann", "bob"] {
            accounts
                .execute(&id.into(), Deposit { amount: 1 })
                .await
                .unwrap();
        }
        tokio::task::yield_now().await;
    });
    gate.layer().open();
    runtime().block_on(accounts.close());
    assert_eq!(accounts.metrics().snapshots.written, 1);
    let bob = stream("bob");
    let found = runtime().block_on(gate.inner().load(&bob));
    assert!(found.unwrap().is_some());
}

/// Counts, and cannot be written while its count is 1.
mod fragile {
    use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};

    id!(pub(super) FragileId);
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "fragile")]
    pub(super) enum FragileEvent {
        Counted,
    }
    #[derive(Clone, Debug, Default, serde::Deserialize)]
    pub(super) struct Fragile(u32);
    impl serde::Serialize for Fragile {
        fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
            assert_ne!(self.0, 1, "a panic in the user's code");
            s.serialize_u32(self.0)
        }
    }
    impl Aggregate for Fragile {
        type Id = FragileId;
        type Event = FragileEvent;
        fn evolve(&mut self, _: &FragileEvent) {
            self.0 += 1;
        }
    }
    impl Decide<()> for Fragile {
        type Error = std::convert::Infallible;
        fn decide(&self, (): &(), _: &Context) -> Decision<Self, Self::Error> {
            Ok(vec![FragileEvent::Counted])
        }
    }
    impl Snapshot for Fragile {
        const STATE_VERSION: u32 = 1;
    }
}

#[tokio::test]
async fn a_panic_in_a_snapshot_costs_that_snapshot_only_and_close_waits_for_the_others() {
    let snapshots = InMemorySnapshotStore::new();
    let repository = Repository::<fragile::Fragile>::new(InMemoryEventStore::new())
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(1));
    // There is no pause in between, so the snapshot that panics is the first of the queue.
    repository.execute(&"a".into(), ()).await.unwrap();
    for _ in 0..2 {
        repository.execute(&"b".into(), ()).await.unwrap();
    }
    repository.close().await;
    let load = async |id| {
        let stream = foldstream::StreamId::new("fragile", id).unwrap();
        snapshots.load(&stream).await.unwrap()
    };
    assert_eq!(load("a").await, None);
    assert_eq!(load("b").await.unwrap().version.get(), 2);
    let done = repository.metrics().snapshots;
    assert_eq!((done.failed, done.written, done.superseded), (1, 1, 1));
    // A later state can be written.
    repository.execute(&"a".into(), ()).await.unwrap();
    repository.close().await;
    assert_eq!(load("a").await.unwrap().version.get(), 2);
}

#[tokio::test]
async fn loads_and_snapshots_are_counted() {
    let snapshots = InMemorySnapshotStore::new();
    let accounts = accounts(&InMemoryEventStore::new())
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(3));
    for _ in 0..5 {
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        accounts.close().await;
    }
    let counted = accounts.metrics();
    // The loads before the commands at versions 0, 1 and 2 have no snapshot; those at 3 and 4 use
    // the one at 3.
    let loads = counted.loads;
    assert_eq!((loads.without_snapshot, loads.with_snapshot), (3, 2));
    assert_eq!(loads.events, 4, "0, 1, 2, then 0 and 1 after the snapshot");
    assert_eq!(counted.snapshots.written, 1);
    // Another process had stored a later one.
    let id = CommitId::random();
    let payload = serde_json::to_vec(&Account::default()).unwrap();
    let ahead = StoredSnapshot::new(stream("bob"), Version::new(9), id, 1, payload.into());
    let bob = "bob".into();
    accounts
        .execute(&bob, DepositOnes { times: 3 })
        .await
        .unwrap();
    snapshots.save(&ahead).await.unwrap();
    accounts.close().await;
    assert_eq!(accounts.metrics().snapshots.stale, 1);
    assert_eq!(accounts.clone().metrics(), accounts.metrics());
}
