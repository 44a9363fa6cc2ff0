//! Snapshots that a build cannot use, and a snapshot store that is slow.
use super::*;
use foldstream::{Aggregate, LoadPolicy, RepositoryMetrics, Snapshot, ports::SnapshotStore};
use foldstream_testkit::intercept::{self, SnapshotStoreLayer};

macro_rules! wallet {
    ($name:ident, $version:literal, { $($field:ident),* }) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        struct $name {
            amount: u64,
            $($field: u64),*
        }
        impl Aggregate for $name {
            type Id = AccountId;
            type Event = AccountEvent;
            fn evolve(&mut self, event: &AccountEvent) {
                if let AccountEvent::Deposited { amount } = event {
                    self.amount += amount;
                }
                $(self.$field += 1;)*
            }
        }
        impl Snapshot for $name {
            const STATE_VERSION: u32 = $version;
        }
    };
}
wallet!(V1, 1, {});
wallet!(V2, 2, { deposits });
// The shape has changed, but STATE_VERSION was not raised.
wallet!(V1Changed, 1, { deposits });

/// Stores five deposits, and a snapshot at the last by the build of `Before`.
async fn quiet_stream<Before>() -> (Arc<InMemoryEventStore>, Arc<InMemorySnapshotStore>)
where
    Before: Snapshot<Id = AccountId, Event = AccountEvent>,
{
    let (store, snapshots) = (InMemoryEventStore::new(), InMemorySnapshotStore::new());
    let before = Repository::<Before>::new(store.clone())
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(3));
    let five = vec![AccountEvent::Deposited { amount: 1 }; 5];
    before
        .append(&ann(), ExpectedVersion::NoStream, &five)
        .await
        .unwrap();
    before.load(&ann()).await.unwrap();
    before.close().await;
    (store, snapshots)
}

/// Returns the cost of five loads by the build of `After`.
async fn five_loads<After>(
    store: &Arc<InMemoryEventStore>,
    snapshots: &Arc<InMemorySnapshotStore>,
    policy: LoadPolicy,
) -> RepositoryMetrics
where
    After: Snapshot<Id = AccountId, Event = AccountEvent>,
{
    let after = Repository::<After>::new(store.clone())
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(3))
        .with_load_policy(policy);
    for _ in 0..5 {
        assert_eq!(after.load(&ann()).await.unwrap().version().get(), 5);
        after.close().await;
    }
    after.metrics()
}

async fn a_quiet_stream_is_folded_once<Before, After>()
where
    Before: Snapshot<Id = AccountId, Event = AccountEvent>,
    After: Snapshot<Id = AccountId, Event = AccountEvent>,
{
    for policy in [LoadPolicy::Auto, LoadPolicy::InSequence] {
        let (store, snapshots) = quiet_stream::<Before>().await;
        let metrics = five_loads::<After>(&store, &snapshots, policy).await;
        let loads = (metrics.loads.without_snapshot, metrics.loads.with_snapshot);
        assert_eq!(loads, (1, 4), "{metrics:?}");
        assert_eq!(metrics.snapshots.written, 1);
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_decoded_is_replaced() {
    a_quiet_stream_is_folded_once::<V1, V1Changed>().await;
}

#[tokio::test]
async fn a_snapshot_of_an_earlier_state_version_is_replaced() {
    a_quiet_stream_is_folded_once::<V1, V2>().await;
}

#[tokio::test]
async fn after_a_rollback_the_older_build_replaces_what_it_cannot_use() {
    a_quiet_stream_is_folded_once::<V2, V1>().await;
}

#[tokio::test]
async fn a_snapshot_of_a_longer_history_that_cannot_be_used_is_replaced() {
    for (state_version, payload) in [
        (2, "{}"),
        (1, r#"{"amount":9,"deposits":9}"#),
        (3, r#"{"amount":9,"deposits":9}"#),
        // The snapshot is readable, and a load finds that it does not fit.
        (2, r#"{"amount":9,"deposits":9}"#),
    ] {
        let (store, snapshots) = quiet_stream::<V2>().await;
        // A snapshot of the nine events that the table had before it was restored.
        let old = StoredSnapshot::new(
            stream("ann"),
            Version::new(9),
            CommitId::random(),
            state_version,
            payload.as_bytes().to_vec().into(),
        );
        assert_eq!(snapshots.save(&old).await.unwrap(), SaveOutcome::Saved);
        let metrics = five_loads::<V2>(&store, &snapshots, LoadPolicy::Auto).await;
        let loads = (metrics.loads.without_snapshot, metrics.loads.with_snapshot);
        assert_eq!(loads, (1, 4), "{state_version} {payload}");
    }
}

/// The state of `V1` in a build that panics at five deposits.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
struct Touchy {
    amount: u64,
}
impl<'de> serde::Deserialize<'de> for Touchy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let V2 { amount, deposits } = V2::deserialize(deserializer)?;
        assert_ne!(deposits, 5);
        Ok(Self { amount })
    }
}
impl Aggregate for Touchy {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        if let AccountEvent::Deposited { amount } = event {
            self.amount += amount;
        }
    }
}
impl Snapshot for Touchy {
    const STATE_VERSION: u32 = 2;
}

#[tokio::test]
async fn a_snapshot_whose_decoding_panics_is_as_none() {
    let (store, snapshots) = quiet_stream::<V2>().await;
    let after = Repository::<Touchy>::new(store)
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(3))
        .without_encode_check();
    let loaded = after.load(&ann()).await.unwrap();
    assert_eq!(loaded.state().amount, 5);
    after.close().await;
    let stored = snapshots.load(&stream("ann")).await.unwrap().unwrap();
    assert_eq!(&stored.payload[..], br#"{"amount":5}"#, "it is replaced");
}

#[tokio::test]
async fn a_snapshot_timeout_may_be_without_end() {
    let (store, snapshots) = quiet_stream::<V1>().await;
    let wallets = Repository::<V1>::new(store)
        .with_snapshots(snapshots, SnapshotPolicy::every(3))
        .with_snapshot_timeout(Duration::MAX);
    assert_eq!(wallets.load(&ann()).await.unwrap().state().amount, 5);
    assert_eq!(wallets.metrics().loads.with_snapshot, 1);
}

#[tokio::test]
async fn a_snapshot_that_can_be_used_stays_where_another_process_was_faster() {
    let (store, snapshots) = quiet_stream::<V1>().await;
    let stored = snapshots.load(&stream("ann")).await.unwrap();
    // Both repositories have folded the whole history and save the same snapshot.
    let slow = Repository::<V1>::new(store.clone())
        .with_snapshots(snapshots.clone(), SnapshotPolicy::every(3));
    snapshots.delete(&stream("ann")).await.unwrap();
    slow.load(&ann()).await.unwrap();
    let other = stored.clone().unwrap();
    let saved = snapshots.save(&other).await.unwrap();
    assert_eq!(saved, SaveOutcome::Saved);
    slow.close().await;
    assert_eq!(slow.metrics().snapshots.stale, 1);
    assert_eq!(snapshots.load(&stream("ann")).await.unwrap(), stored);
}

/// A snapshot store that never answers.
#[derive(Debug)]
struct Hung;
#[async_trait]
impl SnapshotStore for Hung {
    async fn load(
        &self,
        _: &foldstream::StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        std::future::pending().await
    }
    async fn save(&self, _: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        std::future::pending().await
    }
    async fn delete(&self, _: &foldstream::StreamId) -> Result<(), SnapshotStoreError> {
        std::future::pending().await
    }
}

/// Answers loads at once with a snapshot of another history, and never answers deletes.
#[derive(Debug)]
struct HungDelete(StoredSnapshot);
#[async_trait]
impl SnapshotStore for HungDelete {
    async fn load(
        &self,
        _: &foldstream::StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        Ok(Some(self.0.clone()))
    }
    async fn save(&self, _: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError> {
        Ok(SaveOutcome::Stale)
    }
    async fn delete(&self, _: &foldstream::StreamId) -> Result<(), SnapshotStoreError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_snapshot_store_delays_a_load_for_a_bounded_time() {
    let (store, snapshots) = quiet_stream::<V1>().await;
    let mut misfit = snapshots.load(&stream("ann")).await.unwrap().unwrap();
    misfit.commit_id = CommitId::random();
    let hung: Arc<dyn SnapshotStore> = Arc::new(Hung);
    let hung_delete: Arc<dyn SnapshotStore> = Arc::new(HungDelete(misfit));
    for snapshots in [hung, hung_delete] {
        for policy in [LoadPolicy::Auto, LoadPolicy::InSequence] {
            let wallets = Repository::<V1>::new(store.clone())
                .with_snapshots(snapshots.clone(), SnapshotPolicy::never())
                .with_load_policy(policy);
            for (wallets, most) in [
                (wallets.clone(), 250),
                (wallets.with_snapshot_timeout(Duration::from_millis(20)), 20),
            ] {
                let started = tokio::time::Instant::now();
                let id = ann();
                let loaded = tokio::time::timeout(Duration::from_secs(60), wallets.load(&id)).await;
                assert_eq!(loaded.expect("it hangs").unwrap().state().amount, 5);
                let took = started.elapsed().as_millis();
                assert!((most..=most + 1).contains(&took), "{took} of {most} ms");
            }
        }
    }
}

/// Answers, but not at the first poll.
struct Yielding;
#[async_trait]
impl SnapshotStoreLayer for Yielding {
    async fn load(
        &self,
        inner: &Arc<dyn SnapshotStore>,
        stream: &foldstream::StreamId,
    ) -> Result<Option<StoredSnapshot>, SnapshotStoreError> {
        tokio::task::yield_now().await;
        inner.load(stream).await
    }
}

#[test]
fn a_snapshot_timeout_without_end_needs_no_timer() {
    let mut without_time = tokio::runtime::Builder::new_current_thread();
    without_time.build().unwrap().block_on(async {
        let (store, snapshots) = quiet_stream::<V1>().await;
        let yielding = intercept::snapshot_store(snapshots, Yielding);
        let wallets = Repository::<V1>::new(store)
            .with_snapshots(yielding, SnapshotPolicy::every(3))
            .with_snapshot_timeout(Duration::MAX);
        assert_eq!(wallets.load(&ann()).await.unwrap().state().amount, 5);
        assert_eq!(wallets.metrics().loads.with_snapshot, 1);
    });
}

#[test]
fn without_a_timer_a_snapshot_that_is_there_is_used() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (store, snapshots) = quiet_stream::<V1>().await;
        let metrics = five_loads::<V1>(&store, &snapshots, LoadPolicy::Auto).await;
        assert_eq!(metrics.loads.with_snapshot, 5);
    });
}
