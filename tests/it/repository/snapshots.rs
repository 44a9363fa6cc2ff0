//! Snapshots.
use super::*;

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
    // A snapshot that says something else than the events shows that it was used.
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
    let with = plain.with_snapshots(snapshots.clone(), SnapshotPolicy::Never);
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

/// A snapshot store that is down.
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
    // The events were restored from a backup, the snapshots were not.
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
