//! Stores that break a rule of heads and versions: where a commit is stored, and what the answer
//! says.
use super::{Answer, Appended, Read, Store, Suspects, append_at_the_tail, full, history};
use async_trait::async_trait;
use foldstream::{
    Version,
    ports::{Append, AppendOutcome},
};
use foldstream_testkit::intercept::EventStoreLayer;

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
                "cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up",
                "a_walk_from_stream_to_stream_visits_each_once",
                "commits_cleared_during_a_walk_hide_no_others",
                "of_several_conflicts_a_stream_that_moved_is_named",
                "a_cursor_of_a_scan_for_commits_is_invalid_for_tails",
                "a_scan_neither_skips_nor_repeats_commits_while_others_append",
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
                "of_several_conflicts_a_stream_that_moved_is_named",
                "a_read_after_a_head_of_another_history_starts_at_its_version",
                "a_read_is_current_as_of_its_first_poll",
                "the_time_of_a_head_does_not_count",
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
    ]
}

/// Appends at the tail if the head is stale.
#[derive(Debug, Default)]
struct IgnoresTheHead;
#[async_trait]
impl EventStoreLayer for IgnoresTheHead {
    async fn append(&self, store: &Store, append: &Append) -> Appended {
        match store.append(append).await? {
            AppendOutcome::Conflict(_) => append_at_the_tail(store, append).await,
            other => Ok(other),
        }
    }
}

/// Answers an append with the head of the request.
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

/// Numbers commits instead of events.
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

/// Returns the events of a commit in the order of their payloads.
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

/// Reports the length of the request as part of the stream in a conflict.
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
