//! Cases of single appends: heads, conflicts, repeats and limits.
use super::given::{
    Store, append_of, assert_conflict, assert_history, assert_invalid, assert_repeated,
    commit_after, fresh_stream, given, history, large_event, must_append, signed_by, tail,
};
use foldstream::{
    Metadata, StreamHead, Timestamp, Version,
    ports::{Append, AppendAll, Commit, EventData, EventStoreError},
};

/// A commit whose head is the tail is stored, and the answer is the new head.
pub async fn a_commit_at_the_tail_is_stored_and_answers_the_new_head(store: Store) {
    let stream = fresh_stream();
    let first = commit_after(&StreamHead::empty(stream.clone()), 2);
    let head = must_append(&store, &first).await;
    assert_eq!(head.version(), Version::new(2));
    assert_eq!(head.commit_id(), Some(first.commit_id));
    assert_eq!(head.recorded_at(), first.recorded_at);
    let second = commit_after(&head, 1);
    let head = must_append(&store, &second).await;
    assert_eq!(head.version(), Version::new(3));
    assert_history(&store, &stream, &[first.to_commit(), second.to_commit()]).await;
}

/// The versions of a stream are 1, 2, 3, ... without gaps, and the events of a commit are
/// consecutive.
pub async fn versions_are_gapless_and_events_of_a_commit_are_neighbours(store: Store) {
    let (stream, _) = given(&store, &[3, 1, 2, 1, 5]).await;
    let history = history(&store, &stream).await;
    let recorded: Vec<_> = history.iter().flat_map(|c| c.recorded()).collect();
    let versions: Vec<u64> = recorded.iter().map(|e| e.header.version.get()).collect();
    assert_eq!(versions, (1..=12).collect::<Vec<_>>());
    let ends: Vec<u64> = recorded
        .iter()
        .map(|e| e.header.commit_last.get())
        .collect();
    assert_eq!(ends, [3, 3, 3, 4, 6, 6, 7, 12, 12, 12, 12, 12]);
}

/// The events of a commit keep their order.
pub async fn events_of_a_commit_keep_their_order(store: Store) {
    let stream = fresh_stream();
    let append = commit_after(&StreamHead::empty(stream.clone()), 1000);
    must_append(&store, &append).await;
    assert_history(&store, &stream, &[append.to_commit()]).await;
}

/// A head that is not the tail is a conflict, and nothing is stored.
pub async fn stale_head_is_a_conflict(store: Store) {
    let (stream, commits) = given(&store, &[1, 1, 1]).await;
    for stale in &commits[..2] {
        let append = signed_by(&stale.head(), 1);
        let outcome = store.append(&append).await.unwrap();
        assert_conflict(&outcome, &stale.head(), Version::new(3));
    }
    assert_history(&store, &stream, &commits).await;
}

/// An append that expects no stream is a conflict if the stream exists, and nothing is stored.
pub async fn an_empty_head_on_an_existing_stream_is_a_conflict(store: Store) {
    let (stream, commits) = given(&store, &[2]).await;
    let empty = StreamHead::empty(stream.clone());
    let outcome = store.append(&signed_by(&empty, 1)).await.unwrap();
    assert_conflict(&outcome, &empty, Version::new(2));
    assert_history(&store, &stream, &commits).await;
}

/// A conflict's `actual` never exceeds the real tail, also if commits have several events.
pub async fn a_conflict_never_names_more_than_the_real_tail(store: Store) {
    let (stream, commits) = given(&store, &[4, 1, 7]).await;
    for stale in &commits[..2] {
        // The long commit in the slot of a short one must not be counted toward the tail.
        let outcome = store.append(&commit_after(&stale.head(), 20)).await;
        assert_conflict(&outcome.unwrap(), &stale.head(), Version::new(12));
    }
    assert_history(&store, &stream, &commits).await;
}

/// The same append sent again is stored once, and the answer is `Repeated` with the stored commit.
pub async fn the_same_append_again_is_stored_once_and_answers_the_stored_commit(store: Store) {
    let (stream, mut commits) = given(&store, &[2]).await;
    let append = commit_after(&tail(&commits), 3);
    must_append(&store, &append).await;
    commits.push(append.to_commit());
    for _ in 0..2 {
        let outcome = store.append(&append).await.unwrap();
        assert_repeated(&outcome, &[append.to_commit()]);
    }
    assert_history(&store, &stream, &commits).await;
}

/// An append sent again is a repeat even if other writers have appended after it.
pub async fn a_repeat_is_recognised_after_later_commits(store: Store) {
    let stream = fresh_stream();
    let first = commit_after(&StreamHead::empty(stream.clone()), 2);
    let head = must_append(&store, &first).await;
    let second = commit_after(&head, 1);
    let head = must_append(&store, &second).await;
    let third = commit_after(&head, 1);
    must_append(&store, &third).await;
    for append in [&first, &second, &third] {
        let outcome = store.append(append).await.unwrap();
        assert_repeated(&outcome, &[append.to_commit()]);
    }
    let commits = [first.to_commit(), second.to_commit(), third.to_commit()];
    assert_history(&store, &stream, &commits).await;
}

/// A repeat answers the commit as stored, not as requested: a command that is decided again may
/// lead to other events.
pub async fn a_repeat_answers_the_stored_events_not_the_requested_ones(store: Store) {
    let stream = fresh_stream();
    let stored = commit_after(&StreamHead::empty(stream.clone()), 2);
    must_append(&store, &stored).await;
    let mut decided_again = signed_by(&StreamHead::empty(stream.clone()), 9);
    decided_again.commit_id = stored.commit_id;
    let outcome = store.append(&decided_again).await.unwrap();
    assert_repeated(&outcome, &[stored.to_commit()]);
    assert_history(&store, &stream, &[stored.to_commit()]).await;
}

/// A commit id that is stored in another slot does not make a repeat, but a conflict.
pub async fn a_commit_id_in_another_slot_is_a_conflict_not_a_repeat(store: Store) {
    let (stream, commits) = given(&store, &[1, 1, 1]).await;
    for (slot, elsewhere) in [(0, 2), (1, 0), (1, 2)] {
        let head = match slot {
            0 => StreamHead::empty(stream.clone()),
            n => commits[n - 1].head(),
        };
        let mut append = signed_by(&head, 1);
        append.commit_id = commits[elsewhere].id;
        let outcome = store.append(&append).await.unwrap();
        assert_conflict(&outcome, &head, Version::new(3));
    }
    assert_history(&store, &stream, &commits).await;
}

/// A commit without events is `Invalid`, and nothing is stored.
pub async fn a_commit_without_events_is_invalid(store: Store) {
    let (stream, commits) = given(&store, &[1]).await;
    for head in [tail(&commits), StreamHead::empty(fresh_stream())] {
        assert_invalid(&store.append(&commit_after(&head, 0)).await);
    }
    assert_history(&store, &stream, &commits).await;
}

/// A commit of more than [`Append::MAX_EVENTS`] events is `Invalid`, and nothing is stored.
pub async fn more_events_than_the_maximum_are_invalid(store: Store) {
    let stream = fresh_stream();
    let empty = StreamHead::empty(stream.clone());
    let events = vec![EventData::new("Small", 1, "1"); Append::MAX_EVENTS + 1];
    assert_invalid(&store.append(&append_of(&empty, events)).await);
    assert_history(&store, &stream, &[]).await;
}

/// A commit recorded outside of the years 0 to 9999 is `Invalid`, and nothing is stored. Its time
/// has no text form, so its events could never be published.
pub async fn a_time_that_no_record_can_carry_is_invalid(store: Store) {
    let (stream, commits) = given(&store, &[1]).await;
    let early = Timestamp::from_micros(Timestamp::MIN.as_micros() - 1);
    let late = Timestamp::from_micros(Timestamp::MAX.as_micros() + 1);
    // Nanoseconds that were taken for microseconds, as may happen in an import.
    let nanoseconds = Timestamp::from_micros(1_767_225_600_000_000_000);
    for at in [
        early,
        late,
        nanoseconds,
        Timestamp::from_micros(i64::MIN),
        Timestamp::from_micros(i64::MAX),
    ] {
        for head in [tail(&commits), StreamHead::empty(fresh_stream())] {
            let mut append = commit_after(&head, 1);
            append.recorded_at = at;
            assert_is_refused(&store, &append).await;
        }
    }
    assert_history(&store, &stream, &commits).await;
}

/// A commit with a text that the header of a record cannot hold is `Invalid`, and nothing is
/// stored.
pub async fn a_text_that_no_record_can_carry_is_invalid(store: Store) {
    let (stream, commits) = given(&store, &[1]).await;
    let head = tail(&commits);
    for found in ['\0', '\n', '\u{1f}', '\u{7f}', '\u{9f}', '\u{fffe}'] {
        let text = format!("a{found}b");
        let named = EventData::new(text.clone(), 1, "{}");
        let coded = EventData::new("Coded", 1, "{}").with_codec(Some(text.as_str().into()));
        for event in [named, coded] {
            let plain = EventData::new("Plain", 1, "{}");
            assert_is_refused(&store, &append_of(&head, [plain, event])).await;
        }
        for metadata in [
            Metadata::new().with_correlation_id(text.as_str()),
            Metadata::new().with_causation_id(text.as_str()),
            Metadata::new().with_traceparent(text.as_str()),
        ] {
            let append = commit_after(&head, 1).with_metadata(metadata);
            assert_is_refused(&store, &append).await;
        }
    }
    let key = commit_after(&head, 1).with_metadata(Metadata::new().with("a\0b", "value"));
    assert_is_refused(&store, &key).await;
    assert_history(&store, &stream, &commits).await;
}

async fn assert_is_refused(store: &Store, append: &Append) {
    assert_invalid(&store.append(append).await);
    let atomic = AppendAll::new(vec![append.clone()]);
    assert_invalid(&store.append_all(&atomic).await);
    // Nothing is stored, also in a stream that was empty before.
    let commits = history(store, append.head.stream()).await;
    let last = commits.last().map_or(Version::NONE, Commit::last_version);
    assert_eq!(last, append.head.version());
}

/// A commit over `max_commit_bytes` is `TooLarge` with that limit, and nothing is stored.
pub async fn a_commit_over_the_limit_is_too_large(store: Store) {
    let limit = store.capabilities().max_commit_bytes;
    assert!(
        limit <= 64 << 20,
        "declare a limit that a test can reach, at most 64 MiB"
    );
    let (stream, commits) = given(&store, &[1]).await;
    let half = limit / 2 + 1;
    for events in [
        vec![large_event(limit)],
        vec![large_event(half), large_event(half)],
        large_events(&store, limit + 1),
    ] {
        match store.append(&append_of(&tail(&commits), events)).await {
            Err(EventStoreError::TooLarge {
                stream: named,
                bytes,
                limit: named_limit,
            }) => {
                assert_eq!(named, stream);
                assert_eq!(named_limit, limit);
                assert!(bytes > limit, "{bytes} is not over {limit}");
            }
            other => panic!("expected TooLarge, found {other:.300?}"),
        }
    }
    assert_history(&store, &stream, &commits).await;
}

/// An event over `max_event_bytes` is `TooLarge`, alone or among others, and nothing is stored.
pub async fn an_event_over_the_limit_is_too_large(store: Store) {
    let limit = store.capabilities().max_event_bytes;
    let (stream, commits) = given(&store, &[1]).await;
    for events in [
        vec![large_event(limit)],
        vec![large_event(1), large_event(limit), large_event(1)],
    ] {
        match store.append(&append_of(&tail(&commits), events)).await {
            Err(EventStoreError::TooLarge {
                stream: named,
                bytes,
                limit: named_limit,
            }) => {
                assert_eq!(named, stream);
                assert!(named_limit <= store.capabilities().max_commit_bytes);
                assert!(bytes > named_limit, "{bytes} is not over {named_limit}");
            }
            other => panic!("expected TooLarge, found {other:.300?}"),
        }
    }
    assert_history(&store, &stream, &commits).await;
}

/// A commit below `max_commit_bytes` is accepted and comes back, alone and after others.
pub async fn a_commit_below_the_limit_is_taken(store: Store) {
    // A tenth is left for what the adapter adds to the payload, and for the space that a split
    // between events leaves unused.
    let nearly = store.capabilities().max_commit_bytes / 10 * 9;
    let stream = fresh_stream();
    let events = large_events(&store, nearly);
    let append = append_of(&StreamHead::empty(stream.clone()), events);
    let head = must_append(&store, &append).await;
    let small = commit_after(&head, 1);
    must_append(&store, &small).await;
    assert_history(&store, &stream, &[append.to_commit(), small.to_commit()]).await;
}

/// A commit that a backend may have to split is in conflict as a whole, and none of its parts is
/// stored.
pub async fn a_large_commit_on_a_stale_head_stores_nothing(store: Store) {
    let (stream, commits) = given(&store, &[2, 1]).await;
    let events = large_events(&store, store.capabilities().max_commit_bytes / 10 * 9);
    for stale in [StreamHead::empty(stream.clone()), commits[0].head()] {
        let outcome = store.append(&append_of(&stale, events.clone())).await;
        assert_conflict(&outcome.unwrap(), &stale, Version::new(3));
    }
    assert_history(&store, &stream, &commits).await;
}

/// Metadata over [`Append::MAX_METADATA_BYTES`] is `TooLarge` with that limit, whatever it consists
/// of, and nothing is stored.
///
/// The limit is the same for all stores, since a difference would show only in production.
pub async fn metadata_over_the_limit_is_too_large(store: Store) {
    let (stream, commits) = given(&store, &[1]).await;
    let limit = Append::MAX_METADATA_BYTES;
    let many = (0..limit / Metadata::ENTRY_BYTES)
        .fold(Metadata::new(), |all, n| all.with(n.to_string(), ""));
    for metadata in [
        metadata_of(limit + 1),
        Metadata::new().with("k".repeat(limit), ""),
        Metadata::new().with_actor("a".repeat(limit)),
        many,
    ] {
        let append = commit_after(&tail(&commits), 1).with_metadata(metadata);
        match store.append(&append).await {
            Err(EventStoreError::TooLarge {
                stream: named,
                bytes,
                limit: named_limit,
            }) => {
                assert_eq!((named, named_limit), (stream.clone(), limit));
                assert_eq!(bytes, append.metadata.bytes());
            }
            other => panic!("expected TooLarge, found {other:.300?}"),
        }
    }
    assert_history(&store, &stream, &commits).await;
}

/// A malformed append is `Invalid`, although it is also over a limit or on a stale head.
pub async fn a_malformed_append_is_invalid_whatever_else_is_wrong_with_it(store: Store) {
    let (stream, commits) = given(&store, &[1, 1]).await;
    let no_json = || EventData::new("NoJson", 1, "{");
    let over = large_event(store.capabilities().max_commit_bytes);
    let large = append_of(&tail(&commits), [over, no_json()]);
    let much = Metadata::new().with("k", "x".repeat(Append::MAX_METADATA_BYTES));
    let described = append_of(&tail(&commits), [no_json()]).with_metadata(much);
    let stale = append_of(&commits[0].head(), [no_json()]);
    for append in [large, described, stale] {
        assert_invalid(&store.append(&append).await);
        let all = AppendAll::new(vec![append]);
        assert_invalid(&store.append_all(&all).await);
    }
    assert_history(&store, &stream, &commits).await;
}

/// An event of exactly `max_event_bytes` and metadata of exactly [`Append::MAX_METADATA_BYTES`] are
/// accepted in one commit, if the commit has room for both. Each limit is independent of the other.
pub async fn an_event_and_metadata_at_their_limits_are_taken(store: Store) {
    let stream = fresh_stream();
    let capabilities = store.capabilities();
    let metadata = metadata_of(Append::MAX_METADATA_BYTES);
    let others = stream.as_str().len() + metadata.bytes();
    let room = capabilities.max_commit_bytes - others;
    let mut event = large_event(0);
    let padding = capabilities.max_event_bytes.min(room) - event.bytes();
    event = large_event(padding);
    let append = append_of(&StreamHead::empty(stream.clone()), [event]).with_metadata(metadata);
    must_append(&store, &append).await;
    assert_history(&store, &stream, &[append.to_commit()]).await;
}

/// Returns metadata of exactly this many bytes.
fn metadata_of(bytes: usize) -> Metadata {
    let key = "key";
    Metadata::new().with(key, "v".repeat(bytes - key.len() - Metadata::ENTRY_BYTES))
}

/// Returns events of about this many bytes together, each well below the limit of a single event.
pub(super) fn large_events(store: &Store, bytes: usize) -> Vec<EventData> {
    let each = store.capabilities().max_event_bytes / 10 * 9;
    let full = std::iter::repeat_with(|| large_event(each)).take(bytes / each);
    full.chain([large_event(bytes % each)]).collect()
}
