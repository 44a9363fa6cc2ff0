//! Snapshot stores that each break one rule of the contract, and the proof that every case is
//! needed.
use crate::matrix::{Suspect, assert_every_case_is_needed};
use async_trait::async_trait;
use bytes::Bytes;
use foldstream::{
    CommitId, StreamId, Version,
    ports::{RefusedKind, SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use foldstream_testkit::{
    InMemorySnapshotStore, contract,
    intercept::{self, SnapshotStoreLayer},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::task::yield_now;

type Store = Arc<dyn SnapshotStore>;
type Loaded = Result<Option<StoredSnapshot>, SnapshotStoreError>;
type Saved = Result<SaveOutcome, SnapshotStoreError>;
type Deleted = Result<(), SnapshotStoreError>;

type Suspects = Vec<Suspect<Arc<dyn SnapshotStore>>>;

fn broken<L: SnapshotStoreLayer + Default>(
    rejected_by: &'static [&'static str],
) -> Suspect<Arc<dyn SnapshotStore>> {
    Suspect::new::<L>(
        &[],
        || intercept::snapshot_store(InMemorySnapshotStore::new(), L::default()),
        rejected_by,
    )
}

#[test]
fn every_case_rejects_a_broken_snapshot_store() {
    let suspects: Suspects = vec![
        broken::<Nothing>(&[]),
        broken::<KeepsText>(&["a_saved_snapshot_is_loaded_as_it_was_given"]),
        broken::<LosesTheCodec>(&["a_saved_snapshot_is_loaded_as_it_was_given"]),
        broken::<InventsSnapshots>(&["an_unknown_stream_has_no_snapshot"]).and_by(&[
            "streams_do_not_touch_each_other",
            "an_older_snapshot_may_be_saved_after_a_delete",
            "deleting_what_is_not_there_does_nothing",
        ]),
        broken::<ComparesNumbersAsText>(&["a_later_version_replaces"]),
        broken::<KeepsTheLastSave>(&["an_earlier_version_is_stale"])
            .and_by(&["of_several_savers_the_latest_version_stays"]),
        broken::<IgnoresStateVersions>(&["a_later_state_version_replaces_at_the_same_version"]),
        broken::<ReplacesTheSame>(&[
            "the_same_or_an_earlier_state_version_is_stale_at_the_same_version",
        ]),
        broken::<ChecksThenWrites>(&["of_several_savers_the_latest_version_stays"])
            .and_by(&["a_snapshot_too_large_leaves_the_old_one"]),
        broken::<KeysById>(&["streams_do_not_touch_each_other"]),
        broken::<RemembersTheDeleted>(&["an_older_snapshot_may_be_saved_after_a_delete"]),
        broken::<RefusesToDeleteNothing>(&["deleting_what_is_not_there_does_nothing"]),
        broken::<MeasuresThePayloadAlone>(&["a_snapshot_too_large_leaves_the_old_one"]),
        broken::<MakesRoomFirst>(&["a_snapshot_too_large_leaves_the_old_one"]),
        broken::<WritesInParts>(&["a_dropped_save_leaves_one_of_both"]),
    ];
    assert_every_case_is_needed(&contract::snapshot_store::cases(), &suspects);
}

/// A layer that changes nothing, which shows that the wrapper itself breaks no rule.
#[derive(Debug, Default)]
struct Nothing;
impl SnapshotStoreLayer for Nothing {}

/// Writes over any stored snapshot.
async fn overwrite(store: &Store, snapshot: &StoredSnapshot) -> Saved {
    store.delete(&snapshot.stream).await?;
    store.save(snapshot).await
}

#[derive(Debug, Default)]
struct KeepsText;
#[async_trait]
impl SnapshotStoreLayer for KeepsText {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let mut text = snapshot.clone();
        text.payload = String::from_utf8_lossy(&snapshot.payload)
            .into_owned()
            .into();
        store.save(&text).await
    }
}

#[derive(Debug, Default)]
struct LosesTheCodec;
#[async_trait]
impl SnapshotStoreLayer for LosesTheCodec {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        store.save(&snapshot.clone().with_codec(None)).await
    }
}

#[derive(Debug, Default)]
struct InventsSnapshots;
#[async_trait]
impl SnapshotStoreLayer for InventsSnapshots {
    async fn load(&self, store: &Store, stream: &StreamId) -> Loaded {
        let nothing = || {
            let id = CommitId::from_u128(0);
            StoredSnapshot::new(stream.clone(), Version::NONE, id, 0, Bytes::new())
        };
        Ok(Some(store.load(stream).await?.unwrap_or_else(nothing)))
    }
}

#[derive(Debug, Default)]
struct ComparesNumbersAsText;
#[async_trait]
impl SnapshotStoreLayer for ComparesNumbersAsText {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        if let Some(old) = store.load(&snapshot.stream).await?
            && snapshot.version.to_string() < old.version.to_string()
        {
            return Ok(SaveOutcome::Stale);
        }
        store.save(snapshot).await
    }
}

#[derive(Debug, Default)]
struct KeepsTheLastSave;
#[async_trait]
impl SnapshotStoreLayer for KeepsTheLastSave {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let old = store.load(&snapshot.stream).await?;
        match old {
            Some(old) if old.version > snapshot.version => overwrite(store, snapshot).await,
            _ => store.save(snapshot).await,
        }
    }
}

#[derive(Debug, Default)]
struct IgnoresStateVersions;
#[async_trait]
impl SnapshotStoreLayer for IgnoresStateVersions {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let old = store.load(&snapshot.stream).await?;
        match old {
            Some(old) if old.version == snapshot.version => Ok(SaveOutcome::Stale),
            _ => store.save(snapshot).await,
        }
    }
}

#[derive(Debug, Default)]
struct ReplacesTheSame;
#[async_trait]
impl SnapshotStoreLayer for ReplacesTheSame {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let old = store.load(&snapshot.stream).await?;
        match old {
            Some(old) if old.version == snapshot.version => overwrite(store, snapshot).await,
            _ => store.save(snapshot).await,
        }
    }
}

#[derive(Debug, Default)]
struct ChecksThenWrites;
#[async_trait]
impl SnapshotStoreLayer for ChecksThenWrites {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let old = store.load(&snapshot.stream).await?;
        yield_now().await;
        match old {
            Some(old) if !snapshot.replaces(&old) => Ok(SaveOutcome::Stale),
            _ => overwrite(store, snapshot).await,
        }
    }
}

/// Forgets that ids of several types may be equal.
#[derive(Debug, Default)]
struct KeysById;
fn without_type(stream: &StreamId) -> StreamId {
    StreamId::new("any", &stream.id()).unwrap()
}
#[async_trait]
impl SnapshotStoreLayer for KeysById {
    async fn load(&self, store: &Store, stream: &StreamId) -> Loaded {
        let mut found = store.load(&without_type(stream)).await?;
        if let Some(found) = &mut found {
            found.stream = stream.clone();
        }
        Ok(found)
    }
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let mut moved = snapshot.clone();
        moved.stream = without_type(&snapshot.stream);
        let named = |error| match error {
            SnapshotStoreError::TooLarge { limit, .. } => SnapshotStoreError::TooLarge {
                stream: snapshot.stream.clone(),
                bytes: snapshot.bytes(),
                limit,
            },
            other => other,
        };
        store.save(&moved).await.map_err(named)
    }
    async fn delete(&self, store: &Store, stream: &StreamId) -> Deleted {
        store.delete(&without_type(stream)).await
    }
}

/// Reports the size of the payload as the size of a snapshot that is too large.
#[derive(Debug, Default)]
struct MeasuresThePayloadAlone;
#[async_trait]
impl SnapshotStoreLayer for MeasuresThePayloadAlone {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        store.save(snapshot).await.map_err(|error| match error {
            SnapshotStoreError::TooLarge { stream, limit, .. } => SnapshotStoreError::TooLarge {
                stream,
                bytes: snapshot.payload.len(),
                limit,
            },
            other => other,
        })
    }
}

/// Deletes the state, but not the version.
#[derive(Debug, Default)]
struct RemembersTheDeleted(Mutex<BTreeMap<StreamId, StoredSnapshot>>);
#[async_trait]
impl SnapshotStoreLayer for RemembersTheDeleted {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let deleted = self.0.lock().unwrap().get(&snapshot.stream).cloned();
        match deleted {
            Some(deleted) if !snapshot.replaces(&deleted) => Ok(SaveOutcome::Stale),
            _ => store.save(snapshot).await,
        }
    }
    async fn delete(&self, store: &Store, stream: &StreamId) -> Deleted {
        if let Some(found) = store.load(stream).await? {
            self.0.lock().unwrap().insert(stream.clone(), found);
        }
        store.delete(stream).await
    }
}

#[derive(Debug, Default)]
struct RefusesToDeleteNothing;
#[async_trait]
impl SnapshotStoreLayer for RefusesToDeleteNothing {
    async fn delete(&self, store: &Store, stream: &StreamId) -> Deleted {
        match store.load(stream).await? {
            Some(_) => store.delete(stream).await,
            None => Err(SnapshotStoreError::Refused {
                kind: RefusedKind::Validation,
                reason: "nothing is there".into(),
                source: "no such row".into(),
            }),
        }
    }
}

#[derive(Debug, Default)]
struct MakesRoomFirst;
#[async_trait]
impl SnapshotStoreLayer for MakesRoomFirst {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let old = store.load(&snapshot.stream).await?;
        match old {
            Some(old) if !snapshot.replaces(&old) => Ok(SaveOutcome::Stale),
            _ => overwrite(store, snapshot).await,
        }
    }
}

/// Writes the first half, and then the whole.
#[derive(Debug, Default)]
struct WritesInParts;
#[async_trait]
impl SnapshotStoreLayer for WritesInParts {
    async fn save(&self, store: &Store, snapshot: &StoredSnapshot) -> Saved {
        let old = store.load(&snapshot.stream).await?;
        if old.is_some_and(|old| !snapshot.replaces(&old)) || snapshot.payload.len() > 200_000 {
            return store.save(snapshot).await;
        }
        let mut half = snapshot.clone();
        half.payload = snapshot.payload.slice(..snapshot.payload.len() / 2);
        overwrite(store, &half).await?;
        yield_now().await;
        // Another writer may have stored a later snapshot.
        match store.load(&snapshot.stream).await? {
            Some(found) if found == half => overwrite(store, snapshot).await,
            _ => store.save(snapshot).await,
        }
    }
}
