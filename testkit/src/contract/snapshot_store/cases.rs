//! Cases of saving, loading and deleting snapshots.
use crate::contract::support::{at_once, drop_midway, eventually, unique};
use bytes::Bytes;
use foldstream::{
    CommitId, StreamId, Version,
    ports::{SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use std::sync::Arc;

type Store = Arc<dyn SnapshotStore>;

fn fresh_stream() -> StreamId {
    StreamId::new("contract", &unique()).unwrap()
}

/// Returns a snapshot whose payload contains its version and state version.
fn snapshot(stream: &StreamId, version: u64, state_version: u32) -> StoredSnapshot {
    let payload = format!("state at {version} in {state_version} of {stream}");
    with_payload(stream, version, state_version, payload)
}

fn with_payload(
    stream: &StreamId,
    version: u64,
    state_version: u32,
    payload: impl Into<Bytes>,
) -> StoredSnapshot {
    StoredSnapshot::new(
        stream.clone(),
        Version::new(version),
        CommitId::random(),
        state_version,
        payload.into(),
    )
}

async fn must_save(store: &Store, snapshot: &StoredSnapshot) {
    let outcome = store.save(snapshot).await.unwrap();
    assert_eq!(outcome, SaveOutcome::Saved, "version {}", snapshot.version);
}

async fn must_be_stale(store: &Store, snapshot: &StoredSnapshot) {
    let outcome = store.save(snapshot).await.unwrap();
    assert_eq!(outcome, SaveOutcome::Stale, "version {}", snapshot.version);
}

/// Waits until the stream's snapshot is this one, since a load may be older than the last save for
/// a moment.
async fn assert_loaded(store: &Store, stream: &StreamId, expected: Option<&StoredSnapshot>) {
    let brief = |s: Option<&StoredSnapshot>| s.map(|s| (s.version, s.state_version, s.commit_id));
    eventually("the snapshot", || async {
        let found = store.load(stream).await.unwrap();
        if found.as_ref() == expected {
            return Ok(());
        }
        let (found, expected) = (brief(found.as_ref()), brief(expected));
        Err(format!(
            "found {found:?}, expected {expected:?}, or another payload"
        ))
    })
    .await;
}

/// A saved snapshot is loaded as it was given: any bytes, large numbers, every bit of the commit
/// id, and any codec.
pub async fn a_saved_snapshot_is_loaded_as_it_was_given(store: Store) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    for (version, state_version, payload) in [
        (1, 1, b"{ \"n\": 1.0 }".to_vec()),
        (7, 0, all_bytes),
        (u64::from(u32::MAX) + 1, u32::MAX, vec![0]),
        (3, 2, Vec::new()),
        (4, 2, "größe 🛒".into()),
        (5, 2, large),
    ] {
        let stream = fresh_stream();
        let given = with_payload(&stream, version, state_version, payload);
        must_save(&store, &given).await;
        assert_loaded(&store, &stream, Some(&given)).await;
    }
    for bits in [0, u128::MAX] {
        let mut given = snapshot(&fresh_stream(), 1, 1);
        given.commit_id = CommitId::from_u128(bits);
        must_save(&store, &given).await;
        assert_loaded(&store, &given.stream, Some(&given)).await;
    }
    for codec in ["lz4", "lz4,chacha20", "application/protobuf; proto=a.B"] {
        let given = snapshot(&fresh_stream(), 1, 1).with_codec(Some(codec.into()));
        must_save(&store, &given).await;
        assert_loaded(&store, &given.stream, Some(&given)).await;
    }
}

/// An unknown stream has no snapshot.
pub async fn an_unknown_stream_has_no_snapshot(store: Store) {
    assert_eq!(store.load(&fresh_stream()).await.unwrap(), None);
}

/// A save of a higher version replaces all of the lower one.
pub async fn a_later_version_replaces(store: Store) {
    let stream = fresh_stream();
    for (version, state_version) in [(1, 5), (2, 5), (9, 1), (10, 1), (100, 1)] {
        // A higher version counts, even with a lower state version.
        let next = snapshot(&stream, version, state_version);
        must_save(&store, &next).await;
        assert_loaded(&store, &stream, Some(&next)).await;
    }
}

/// A save of a lower version is `Stale`, and the higher one stays.
pub async fn an_earlier_version_is_stale(store: Store) {
    let stream = fresh_stream();
    let kept = snapshot(&stream, 10, 3);
    must_save(&store, &kept).await;
    for (version, state_version) in [(9, 3), (1, 3), (9, 4), (2, u32::MAX)] {
        must_be_stale(&store, &snapshot(&stream, version, state_version)).await;
        assert_loaded(&store, &stream, Some(&kept)).await;
    }
}

/// At the same version, a higher state version replaces the snapshot.
pub async fn a_later_state_version_replaces_at_the_same_version(store: Store) {
    let stream = fresh_stream();
    for state_version in [1, 2, 10] {
        let next = snapshot(&stream, 4, state_version);
        must_save(&store, &next).await;
        assert_loaded(&store, &stream, Some(&next)).await;
    }
}

/// At the same version, the same or a lower state version is `Stale`, and the stored snapshot
/// stays.
pub async fn the_same_or_an_earlier_state_version_is_stale_at_the_same_version(store: Store) {
    let stream = fresh_stream();
    let kept = snapshot(&stream, 4, 10);
    must_save(&store, &kept).await;
    must_be_stale(&store, &kept).await;
    for state_version in [10, 9, 1] {
        must_be_stale(&store, &snapshot(&stream, 4, state_version)).await;
        assert_loaded(&store, &stream, Some(&kept)).await;
    }
}

/// Of several saves at the same time, the highest version stays.
pub async fn of_several_savers_the_latest_version_stays(store: Store) {
    for round in 0..5 {
        let stream = fresh_stream();
        let all: Vec<_> = (1..=8)
            .map(|version| snapshot(&stream, version, 1))
            .collect();
        let outcomes = at_once(all.len(), |n| {
            // The saves start in another order in every round.
            let (store, snapshot) = (store.clone(), all[(n * 3 + round) % 8].clone());
            async move { (store.save(&snapshot).await.unwrap(), snapshot.version) }
        })
        .await;
        for (outcome, version) in outcomes {
            if version == all[7].version {
                assert_eq!(outcome, SaveOutcome::Saved, "the latest");
            }
        }
        assert_loaded(&store, &stream, Some(&all[7])).await;
    }
}

/// Snapshots of different streams do not affect each other, even if one id begins like another.
pub async fn streams_do_not_touch_each_other(store: Store) {
    let name = unique();
    let kind = format!("t-{}", &name[name.len() - 12..]);
    let ids: Vec<_> = ["", "#", "1", " ", "größe 🛒"]
        .iter()
        .map(|end| StreamId::new(&kind, &format!("{name}{end}")).unwrap())
        .chain([StreamId::new(&format!("{kind}1"), &name).unwrap()])
        .collect();
    let all: Vec<_> = (1u64..)
        .zip(&ids)
        .map(|(n, stream)| snapshot(stream, 10 - n, 1))
        .collect();
    for snapshot in &all {
        must_save(&store, snapshot).await;
    }
    for snapshot in &all {
        assert_loaded(&store, &snapshot.stream, Some(snapshot)).await;
    }
    store.delete(&ids[0]).await.unwrap();
    assert_loaded(&store, &ids[0], None).await;
    for snapshot in &all[1..] {
        assert_loaded(&store, &snapshot.stream, Some(snapshot)).await;
    }
}

/// A deleted snapshot is gone, and an older one may be saved after it.
pub async fn an_older_snapshot_may_be_saved_after_a_delete(store: Store) {
    let stream = fresh_stream();
    must_save(&store, &snapshot(&stream, 10, 2)).await;
    store.delete(&stream).await.unwrap();
    assert_loaded(&store, &stream, None).await;
    let older = snapshot(&stream, 3, 1);
    must_save(&store, &older).await;
    assert_loaded(&store, &stream, Some(&older)).await;
}

/// Deleting a snapshot that does not exist does nothing.
pub async fn deleting_what_is_not_there_does_nothing(store: Store) {
    let stream = fresh_stream();
    for _ in 0..2 {
        store.delete(&stream).await.unwrap();
        assert_loaded(&store, &stream, None).await;
    }
    must_save(&store, &snapshot(&stream, 1, 1)).await;
    for _ in 0..2 {
        store.delete(&stream).await.unwrap();
        assert_loaded(&store, &stream, None).await;
    }
}

/// A snapshot over the limit of the backend is `TooLarge` by the port's measure, and the old one
/// stays. A snapshot that is accepted is stored whole.
pub async fn a_snapshot_too_large_leaves_the_old_one(store: Store) {
    let stream = fresh_stream();
    let mut kept = snapshot(&stream, 1, 1);
    must_save(&store, &kept).await;
    for (version, mebibytes) in [(2, 1), (3, 4), (4, 24)] {
        let large = with_payload(&stream, version, 1, vec![b'x'; mebibytes << 20]);
        match store.save(&large).await {
            Err(SnapshotStoreError::TooLarge {
                stream: named,
                bytes,
                limit,
            }) => {
                assert_eq!((named, bytes), (stream.clone(), large.bytes()));
                assert!(bytes > limit, "{bytes} is not over {limit}");
            }
            Ok(SaveOutcome::Saved) => kept = large,
            other => panic!("expected TooLarge, found {other:?}"),
        }
        assert_loaded(&store, &stream, Some(&kept)).await;
    }
}

/// A dropped save leaves either the old or the new snapshot, and leaves it whole.
pub async fn a_dropped_save_leaves_one_of_both(store: Store) {
    for attempt in 0..12 {
        let stream = fresh_stream();
        let old = with_payload(&stream, 1, 1, vec![b'o'; 10_000]);
        let new = with_payload(&stream, 2, 1, vec![b'n'; 10_000]);
        must_save(&store, &old).await;
        drop_midway(attempt, store.save(&new)).await;
        let found = store.load(&stream).await.unwrap();
        let is_whole =
            found.is_none() || found.as_ref() == Some(&old) || found.as_ref() == Some(&new);
        assert!(is_whole, "attempt {attempt}: a torn snapshot");
        let _ = store.save(&new).await.unwrap();
        assert_loaded(&store, &stream, Some(&new)).await;
    }
}
