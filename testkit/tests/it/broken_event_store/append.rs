//! Stores that break a rule of appends.
use super::{Answer, Appended, Read, Store, Suspects, full, history, tail};
use async_trait::async_trait;
use foldstream::{
    CommitId, Metadata, StreamId, Timestamp, Version,
    ports::{Append, AppendOutcome, Capabilities, Commit, EventData, EventStore, EventStoreError},
};
use foldstream_testkit::intercept::EventStoreLayer;
use std::sync::Mutex;
use tokio::task::yield_now;

pub(super) fn suspects() -> Suspects {
    vec![
        full::<IgnoresTheHead>(&[
            "stale_head_is_a_conflict",
            "an_empty_head_on_an_existing_stream_is_a_conflict",
            "a_commit_id_in_another_slot_is_a_conflict_not_a_repeat",
        ])
        .and_by(&[
            "a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report",
            "a_head_of_another_history_is_a_conflict_or_extends_the_stream",
            "a_head_of_another_history_before_the_tail_is_a_conflict",
            "a_head_within_a_commit_is_a_conflict_or_an_overlap_that_reads_report",
            "a_conflict_never_names_more_than_the_real_tail",
            "a_large_commit_on_a_stale_head_stores_nothing",
            "of_several_writers_with_the_same_head_exactly_one_wins",
        ]),
        full::<AnswersTheOldHead>(&["a_commit_at_the_tail_is_stored_and_answers_the_new_head"])
            .and_by(&[
                "stale_head_is_a_conflict",
                "a_large_commit_on_a_stale_head_stores_nothing",
                "the_same_append_again_is_stored_once_and_answers_the_stored_commit",
                "a_repeat_is_recognised_after_later_commits",
                "a_commit_id_in_another_slot_is_a_conflict_not_a_repeat",
                "times_come_back_to_the_microsecond",
                "every_acknowledged_commit_is_seen_by_every_later_read",
                "a_history_of_many_commits_is_read_to_the_tail",
                "streams_whose_ids_are_prefixes_are_not_mixed_up",
                "a_scan_sees_everything_stored_before_it_began",
                "a_scan_of_large_commits_sees_everything",
                "each_commit_is_in_exactly_one_segment",
                "a_page_has_at_most_max_items_and_streams_in_version_order",
                "a_scan_continues_from_a_stored_cursor",
                "a_scan_of_tails_returns_where_streams_end",
                "a_cursor_of_another_scan_is_invalid",
                "streams_come_to_list_every_stream_of_the_type",
                "a_checked_stream_at_its_head_lets_the_commits_through",
                "the_same_atomic_append_again_is_a_repeat",
                "clearing_an_unknown_or_cleared_key_does_nothing",
                "many_keys_are_cleared_in_one_call",
                "unpublished_commits_come_in_pages_by_stream",
                "a_commit_below_the_limit_is_taken",
            ]),
        full::<CountsCommits>(&["versions_are_gapless_and_events_of_a_commit_are_neighbours"])
            .and_by(&[
                "a_commit_at_the_tail_is_stored_and_answers_the_new_head",
                "a_large_commit_on_a_stale_head_stores_nothing",
                "a_head_of_another_history_before_the_tail_is_a_conflict",
                "a_conflict_never_names_more_than_the_real_tail",
                "the_same_append_again_is_stored_once_and_answers_the_stored_commit",
                "a_repeat_is_recognised_after_later_commits",
                "the_same_append_by_several_at_once_is_stored_once",
                "a_read_during_appends_is_contiguous_and_never_too_short",
                "an_atomic_append_of_one_commit_behaves_as_append",
                "every_acknowledged_commit_is_seen_by_every_later_read",
                "a_history_of_many_pages_is_read_to_the_tail",
                "after_reads_from_the_commit_after_the_head",
                "event_reads_from_the_commit_that_holds_the_version",
                "newest_reads_backwards_from_the_tail",
                "newest_at_or_below_reads_backwards_from_a_commit_end",
                "a_limit_counts_commits",
                "streams_whose_ids_are_prefixes_are_not_mixed_up",
                "a_checked_stream_at_its_head_lets_the_commits_through",
                "clearing_touches_nothing_else",
                "clearing_an_unknown_or_cleared_key_does_nothing",
                "a_commit_below_the_limit_is_taken",
            ]),
        full::<SortsEvents>(&["events_of_a_commit_keep_their_order"]).and_by(&[
            "a_dropped_append_leaves_the_commit_whole_or_not_at_all",
            "json_payloads_come_back_byte_for_byte",
            "numbers_in_json_payloads_keep_their_text",
            "white_space_around_a_json_payload_comes_back",
            "deeply_nested_json_comes_back",
            "unicode_payloads_come_back",
            "events_with_and_without_codec_share_a_commit",
            "metadata_comes_back_with_all_fields",
            "a_history_of_many_pages_is_read_to_the_tail",
            "a_commit_below_the_limit_is_taken",
        ]),
        full::<NamesTooMuch>(&["a_conflict_never_names_more_than_the_real_tail"]).and_by(&[
            "a_large_commit_on_a_stale_head_stores_nothing",
            "a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report",
            "a_head_of_another_history_is_a_conflict_or_extends_the_stream",
        ]),
        full::<ConflictsWithItself>(&[
            "the_same_append_again_is_stored_once_and_answers_the_stored_commit",
            "a_repeat_is_recognised_after_later_commits",
            "the_same_append_by_several_at_once_is_stored_once",
        ])
        .and_by(&[
            "a_repeat_answers_the_stored_events_not_the_requested_ones",
            "a_dropped_append_leaves_the_commit_whole_or_not_at_all",
            "an_atomic_append_of_one_commit_behaves_as_append",
        ]),
        full::<RepeatsOnlyAtTheTail>(&["a_repeat_is_recognised_after_later_commits"]),
        full::<RepeatsTheRequest>(&["a_repeat_answers_the_stored_events_not_the_requested_ones"]),
        full::<SearchesTheWholeStream>(&["a_commit_id_in_another_slot_is_a_conflict_not_a_repeat"]),
        full::<TakesNothing>(&["a_commit_without_events_is_invalid"]),
        full::<CutsLongCommits>(&["more_events_than_the_maximum_are_invalid"]),
        full::<MovesFarTimes>(&["a_time_that_no_record_can_carry_is_invalid"]),
        full::<DropsControlCharacters>(&["a_text_that_no_record_can_carry_is_invalid"]),
        full::<ExceedsItsLimit>(&["a_commit_over_the_limit_is_too_large"]).and_by(&[
            "one_bad_commit_stores_none",
            "an_event_over_the_limit_is_too_large",
            "commits_that_are_together_over_the_limit_are_too_large",
        ]),
        full::<ExceedsItsEventLimit>(&["an_event_over_the_limit_is_too_large"]),
        full::<RefusesBelowItsLimit>(&["a_commit_below_the_limit_is_taken"]).and_by(&[
            "an_event_and_metadata_at_their_limits_are_taken",
            "a_large_commit_on_a_stale_head_stores_nothing",
        ]),
        full::<StoresLargeCommitsInParts>(&["a_large_commit_on_a_stale_head_stores_nothing"]),
        full::<DropsLargeMetadata>(&["metadata_over_the_limit_is_too_large"]),
        full::<CountsMetadataToTheEvent>(&["an_event_and_metadata_at_their_limits_are_taken"]),
        full::<ChecksThenActs>(&[
            "of_several_writers_with_the_same_head_exactly_one_wins",
            "the_same_append_by_several_at_once_is_stored_once",
        ]),
        full::<AcknowledgesLosers>(&["writers_that_retry_on_conflict_lose_nothing"])
            .and_by(&["of_several_writers_with_the_same_head_exactly_one_wins"]),
        full::<ShowsTornCommits>(&[
            "a_commit_is_visible_whole_or_not_at_all",
            "a_dropped_append_leaves_the_commit_whole_or_not_at_all",
        ]),
        full::<ShowsHolesDuringAppends>(&[
            "a_read_during_appends_is_contiguous_and_never_too_short",
        ]),
    ]
}

/// Stores at the tail, whatever that is by now.
async fn append_anyhow(store: &Store, append: &Append) -> Appended {
    let head = tail(store, append.head.stream()).await;
    let mut forced = append.clone();
    forced.head = head;
    forced.commit_id = CommitId::random();
    store.append(&forced).await
}

#[derive(Debug, Default)]
struct IgnoresTheHead;
#[async_trait]
impl EventStoreLayer for IgnoresTheHead {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        match store.append(append).await? {
            AppendOutcome::Conflict(_) => append_anyhow(store, append).await,
            other => Ok(other),
        }
    }
}

#[derive(Debug, Default)]
struct AnswersTheOldHead;
#[async_trait]
impl EventStoreLayer for AnswersTheOldHead {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        // Only where there is one: most cases start on empty streams.
        Ok(match store.append(append).await? {
            AppendOutcome::Appended(_) if append.head.version() == Version::new(2) => {
                AppendOutcome::Appended(append.head.clone())
            }
            other => other,
        })
    }
}

/// Numbers commits and not events.
#[derive(Debug, Default)]
struct CountsCommits;
#[async_trait]
impl EventStoreLayer for CountsCommits {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let all = history(store, &what.stream).await;
        let mut found = what.all(store).await?;
        for commit in &mut found {
            let place = (1..).zip(&all).find(|(_, c)| c.id == commit.id);
            commit.first_version = Version::new(place.map_or(0, |(n, _)| n));
        }
        Ok(found.into())
    }
}

#[derive(Debug, Default)]
struct SortsEvents;
#[async_trait]
impl EventStoreLayer for SortsEvents {
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            let mut events = commit.events.to_vec();
            events.sort_by(|a, b| a.payload.cmp(&b.payload));
            commit.events = events.into();
        }
        Ok(found.into())
    }
}

/// Adds the length of the request to what it found.
#[derive(Debug, Default)]
struct NamesTooMuch;
#[async_trait]
impl EventStoreLayer for NamesTooMuch {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let mut outcome = store.append(append).await?;
        if let AppendOutcome::Conflict(conflict) = &mut outcome {
            let added = append.events.len() as u64;
            conflict.actual = Some(append.head.version().plus(added));
        }
        Ok(outcome)
    }
}

#[derive(Debug, Default)]
struct ConflictsWithItself;
#[async_trait]
impl EventStoreLayer for ConflictsWithItself {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        Ok(match store.append(append).await? {
            AppendOutcome::Repeated(_) => conflict(append),
            other => other,
        })
    }
}

fn conflict(append: &Append) -> AppendOutcome {
    AppendOutcome::Conflict(foldstream::VersionConflict::new(
        append.head.stream().clone(),
        append.head.version(),
        None,
    ))
}

#[derive(Debug, Default)]
struct RepeatsOnlyAtTheTail;
#[async_trait]
impl EventStoreLayer for RepeatsOnlyAtTheTail {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let outcome = store.append(append).await?;
        let newest = tail(store, append.head.stream()).await;
        Ok(match outcome {
            AppendOutcome::Repeated(_) if newest.commit_id() != Some(append.commit_id) => {
                conflict(append)
            }
            other => other,
        })
    }
}

#[derive(Debug, Default)]
struct RepeatsTheRequest;
#[async_trait]
impl EventStoreLayer for RepeatsTheRequest {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        Ok(match store.append(append).await? {
            AppendOutcome::Repeated(_) => AppendOutcome::Repeated(vec![append.to_commit()]),
            other => other,
        })
    }
}

#[derive(Debug, Default)]
struct SearchesTheWholeStream;
#[async_trait]
impl EventStoreLayer for SearchesTheWholeStream {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let commits = history(store, append.head.stream()).await;
        match commits.into_iter().find(|c| c.id == append.commit_id) {
            Some(stored) => Ok(AppendOutcome::Repeated(vec![stored])),
            None => store.append(append).await,
        }
    }
}

#[derive(Debug, Default)]
struct TakesNothing;
#[async_trait]
impl EventStoreLayer for TakesNothing {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append.events.is_empty() {
            return Ok(AppendOutcome::Appended(append.head.clone()));
        }
        store.append(append).await
    }
}

#[derive(Debug, Default)]
struct CutsLongCommits;
#[async_trait]
impl EventStoreLayer for CutsLongCommits {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append.events.len() <= Append::MAX_EVENTS {
            return store.append(append).await;
        }
        let mut cut = append.clone();
        cut.events = append.events[..Append::MAX_EVENTS].into();
        store.append(&cut).await
    }
}

/// Stores a time that has no text form as the nearest that has one.
#[derive(Debug, Default)]
struct MovesFarTimes;
#[async_trait]
impl EventStoreLayer for MovesFarTimes {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let mut near = append.clone();
        near.recorded_at = append.recorded_at.clamp(Timestamp::MIN, Timestamp::MAX);
        store.append(&near).await
    }
}

/// Stores names of events without the characters that they must not hold.
#[derive(Debug, Default)]
struct DropsControlCharacters;
#[async_trait]
impl EventStoreLayer for DropsControlCharacters {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let mut cleaned = append.clone();
        let mut events = append.events.to_vec();
        for event in &mut events {
            let name: String = event.name.chars().filter(|c| !c.is_control()).collect();
            event.name = name.into();
        }
        cleaned.events = events.into();
        store.append(&cleaned).await
    }
}

/// Declares a limit and takes more.
#[derive(Debug, Default)]
struct ExceedsItsLimit;
#[async_trait]
impl EventStoreLayer for ExceedsItsLimit {
    fn capabilities(&self, store: &Store) -> Capabilities {
        let mut sound = store.capabilities();
        sound.max_commit_bytes /= 4;
        sound
    }
}

/// Declares a limit of events and takes larger ones.
#[derive(Debug, Default)]
struct ExceedsItsEventLimit;
#[async_trait]
impl EventStoreLayer for ExceedsItsEventLimit {
    fn capabilities(&self, store: &Store) -> Capabilities {
        let mut sound = store.capabilities();
        sound.max_event_bytes /= 4;
        sound
    }
}

#[derive(Debug, Default)]
struct RefusesBelowItsLimit;
#[async_trait]
impl EventStoreLayer for RefusesBelowItsLimit {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let bytes: usize = append.events.iter().map(|e| e.payload.len()).sum();
        let limit = store.capabilities().max_commit_bytes;
        if bytes > limit / 2 {
            return Err(EventStoreError::TooLarge {
                stream: append.head.stream().clone(),
                bytes: limit.max(bytes) + 1,
                limit,
            });
        }
        store.append(append).await
    }
}

/// Has no limit of metadata: it keeps what fits and drops the rest.
#[derive(Debug, Default)]
struct DropsLargeMetadata;
#[async_trait]
impl EventStoreLayer for DropsLargeMetadata {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        if append.metadata.bytes() <= Append::MAX_METADATA_BYTES {
            return store.append(append).await;
        }
        let without = append.clone().with_metadata(Metadata::new());
        store.append(&without).await
    }
}

/// Puts the metadata into the item of the first event, and both must fit.
#[derive(Debug, Default)]
struct CountsMetadataToTheEvent;
#[async_trait]
impl EventStoreLayer for CountsMetadataToTheEvent {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let first = append.events.first().map_or(0, EventData::bytes);
        let (bytes, limit) = (
            first + append.metadata.bytes(),
            store.capabilities().max_event_bytes,
        );
        if first <= limit && bytes > limit {
            return Err(EventStoreError::TooLarge {
                stream: append.head.stream().clone(),
                bytes,
                limit,
            });
        }
        store.append(append).await
    }
}

/// Writes a commit that is larger than an event may be in two parts, and only the first one looks
/// at the head.
#[derive(Debug, Default)]
struct StoresLargeCommitsInParts;
#[async_trait]
impl EventStoreLayer for StoresLargeCommitsInParts {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let outcome = store.append(append).await?;
        let is_large = append.bytes() > store.capabilities().max_event_bytes;
        if is_large && matches!(outcome, AppendOutcome::Conflict(_)) {
            let mut second = append.clone();
            second.events = append.events[1..].into();
            let _ = append_anyhow(store, &second).await?;
        }
        Ok(outcome)
    }
}

/// Looks whether the head is the tail, and stores a moment later without looking again.
#[derive(Debug, Default)]
struct ChecksThenActs;
#[async_trait]
impl EventStoreLayer for ChecksThenActs {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        append.validate()?;
        if tail(store, append.head.stream()).await != append.head {
            return store.append(append).await;
        }
        yield_now().await;
        match store.append(append).await? {
            AppendOutcome::Appended(head) => Ok(AppendOutcome::Appended(head)),
            _ => append_anyhow(store, append).await,
        }
    }
}

/// As [`ChecksThenActs`], but the later write is the one that vanishes.
#[derive(Debug, Default)]
struct AcknowledgesLosers;
#[async_trait]
impl EventStoreLayer for AcknowledgesLosers {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let seemed_free = tail(store, append.head.stream()).await == append.head;
        yield_now().await;
        match store.append(append).await? {
            AppendOutcome::Conflict(_) if seemed_free => {
                Ok(AppendOutcome::Appended(append.head_after()))
            }
            other => Ok(other),
        }
    }
}

/// Shows half of a commit while it is being written, and forever if the writer is dropped.
#[derive(Debug, Default)]
struct ShowsTornCommits {
    torn: Mutex<Vec<CommitId>>,
}
#[async_trait]
impl EventStoreLayer for ShowsTornCommits {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        self.torn.lock().unwrap().push(append.commit_id);
        let outcome = store.append(append).await;
        for _ in 0..2 {
            yield_now().await;
        }
        self.torn
            .lock()
            .unwrap()
            .retain(|id| *id != append.commit_id);
        outcome
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found = what.all(store).await?;
        for commit in &mut found {
            if self.torn.lock().unwrap().contains(&commit.id) {
                commit.events = commit.events[..commit.events.len().div_ceil(2)].into();
            }
        }
        Ok(found.into())
    }
}

/// Misses a commit in the middle while the stream grows.
#[derive(Debug, Default)]
struct ShowsHolesDuringAppends {
    growing: Mutex<Vec<StreamId>>,
}
#[async_trait]
impl EventStoreLayer for ShowsHolesDuringAppends {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        let stream = append.head.stream();
        self.growing.lock().unwrap().push(stream.clone());
        let outcome = store.append(append).await;
        yield_now().await;
        self.growing.lock().unwrap().retain(|s| s != stream);
        outcome
    }
    async fn read<'a>(&'a self, store: &'a Store, what: Read) -> Answer<'a> {
        let mut found: Vec<Commit> = what.all(store).await?;
        if found.len() > 2 && self.growing.lock().unwrap().contains(&what.stream) {
            found.remove(1);
        }
        Ok(found.into())
    }
}
