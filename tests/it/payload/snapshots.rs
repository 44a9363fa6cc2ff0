//! Payload codecs of snapshots and of states in memory.
use super::*;
use crate::support::AccountCommand::*;
use foldstream::{
    SnapshotPolicy,
    ports::{SnapshotStore, StoredSnapshot},
};
use foldstream_testkit::InMemorySnapshotStore;

struct World {
    store: Arc<InMemoryEventStore>,
    snapshots: Arc<InMemorySnapshotStore>,
    vault: Arc<Vault>,
}

impl World {
    fn new() -> Self {
        Self {
            store: InMemoryEventStore::new(),
            snapshots: InMemorySnapshotStore::new(),
            vault: Vault::new(),
        }
    }
    fn accounts(&self) -> Repository<Account> {
        Repository::new(self.store.clone())
            .with_snapshots(self.snapshots.clone(), SnapshotPolicy::every(2))
            .with_payload_codecs(writing(&self.vault))
    }
    async fn snapshot(&self) -> Option<StoredSnapshot> {
        self.snapshots.load(&stream("ann")).await.unwrap()
    }
    /// Makes two deposits, and takes a snapshot of them.
    async fn deposited(&self) -> Repository<Account> {
        let accounts = self.accounts();
        for amount in [5, 6] {
            accounts.execute(&ann(), Deposit { amount }).await.unwrap();
        }
        accounts.close().await;
        accounts
    }
}

#[tokio::test]
async fn a_snapshot_is_sealed_and_used() {
    let world = World::new();
    let accounts = world.deposited().await;
    let snapshot = world.snapshot().await.expect("a snapshot");
    assert_eq!(snapshot.codec.as_deref(), Some("vault"));
    assert!(!snapshot.payload.windows(7).any(|w| w == b"balance"));
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!(loaded.state().balance, 11);
    let opened = world.vault.opened();
    accounts.load(&ann()).await.unwrap();
    assert_eq!(
        world.vault.opened() - opened,
        1,
        "the snapshot and nothing else"
    );
}

#[tokio::test]
async fn a_snapshot_in_the_clear_is_used_when_a_codec_comes_later() {
    let world = World::new();
    let plain = Repository::<Account>::new(world.store.clone())
        .with_snapshots(world.snapshots.clone(), SnapshotPolicy::every(1));
    plain.execute(&ann(), Deposit { amount: 5 }).await.unwrap();
    plain.close().await;
    assert_eq!(world.snapshot().await.unwrap().codec, None);
    let loaded = world.accounts().load(&ann()).await.unwrap();
    assert_eq!(loaded.state().balance, 5);
}

#[tokio::test]
async fn a_shredded_snapshot_is_deleted_and_the_fold_starts_from_the_events() {
    let world = World::new();
    let accounts = world.deposited().await;
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    world.vault.shred("ann");
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!((loaded.state().balance, loaded.version().get()), (1, 3));
    accounts.close().await;
    assert_eq!(world.snapshot().await, None);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_opened_now_is_passed_over_and_stays() {
    let world = World::new();
    let accounts = world.deposited().await;
    world.vault.fail([PayloadError::unavailable("no route")]);
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!(loaded.state().balance, 11);
    assert!(world.snapshot().await.is_some());
    // A build that does not know the codec cannot read them either.
    let plain = Repository::<Account>::new(world.store.clone())
        .with_snapshots(world.snapshots.clone(), SnapshotPolicy::every(2));
    plain.load(&ann()).await.unwrap_err();
    assert!(world.snapshot().await.is_some());
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_sealed_is_not_written_in_the_clear() {
    let world = World::new();
    let accounts = world.accounts();
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    world.vault.shred("ann");
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    accounts.close().await;
    assert_eq!(world.snapshot().await, None);
}

#[tokio::test]
async fn what_is_forgotten_is_neither_in_the_cache_nor_in_the_snapshots() {
    let world = World::new();
    let accounts = world.accounts().with_cache(10);
    for amount in [5, 6] {
        accounts.execute(&ann(), Deposit { amount }).await.unwrap();
    }
    accounts.close().await;
    world.vault.shred("ann");
    accounts.forget(&ann()).await.unwrap();
    assert_eq!(world.snapshot().await, None);
    let done = accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (1, 3));
}
