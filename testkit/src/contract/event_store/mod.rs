//! The contract of [`EventStore`], case by case.
mod append;
mod atomic;
mod given;
mod heads;
mod lists;
mod races;
mod read;
mod round_trip;
mod scan;

use super::run::{Case, collect_cases, publish_cases};
use foldstream::ports::EventStore;
use std::{future::Future, sync::Arc};

/// The only list of the cases of the [`EventStore`](foldstream::ports::EventStore) contract, by
/// group.
#[doc(hidden)]
#[macro_export]
macro_rules! __event_store_cases {
    (always, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context always [
            append::a_commit_at_the_tail_is_stored_and_answers_the_new_head,
            append::versions_are_gapless_and_events_of_a_commit_are_neighbours,
            append::events_of_a_commit_keep_their_order,
            append::stale_head_is_a_conflict,
            append::an_empty_head_on_an_existing_stream_is_a_conflict,
            append::a_conflict_never_names_more_than_the_real_tail,
            append::the_same_append_again_is_stored_once_and_answers_the_stored_commit,
            append::a_repeat_is_recognised_after_later_commits,
            append::a_repeat_answers_the_stored_events_not_the_requested_ones,
            append::a_commit_id_in_another_slot_is_a_conflict_not_a_repeat,
            append::a_commit_without_events_is_invalid,
            append::more_events_than_the_maximum_are_invalid,
            append::a_time_that_no_record_can_carry_is_invalid,
            append::a_text_that_no_record_can_carry_is_invalid,
            append::a_commit_over_the_limit_is_too_large,
            append::an_event_over_the_limit_is_too_large,
            append::a_commit_below_the_limit_is_taken,
            append::a_large_commit_on_a_stale_head_stores_nothing,
            append::metadata_over_the_limit_is_too_large,
            append::a_malformed_append_is_invalid_whatever_else_is_wrong_with_it,
            append::an_event_and_metadata_at_their_limits_are_taken,
            heads::a_head_above_the_tail_is_a_conflict_or_leaves_a_hole_that_reads_report,
            heads::a_head_of_another_history_is_a_conflict_or_extends_the_stream,
            heads::a_head_of_another_history_before_the_tail_is_a_conflict,
            heads::a_head_within_a_commit_is_a_conflict_or_an_overlap_that_reads_report,
            heads::the_time_of_a_head_does_not_count,
            races::of_several_writers_with_the_same_head_exactly_one_wins,
            races::the_same_append_by_several_at_once_is_stored_once,
            races::writers_that_retry_on_conflict_lose_nothing,
            races::a_commit_is_visible_whole_or_not_at_all,
            races::a_read_during_appends_is_contiguous_and_never_too_short,
            races::a_dropped_append_leaves_the_commit_whole_or_not_at_all,
            round_trip::names_and_schema_versions_come_back,
            round_trip::json_payloads_come_back_byte_for_byte,
            round_trip::numbers_in_json_payloads_keep_their_text,
            round_trip::white_space_around_a_json_payload_comes_back,
            round_trip::deeply_nested_json_comes_back,
            round_trip::unicode_payloads_come_back,
            round_trip::a_payload_without_codec_that_is_no_json_is_invalid,
            round_trip::a_payload_with_a_codec_is_any_bytes,
            round_trip::events_with_and_without_codec_share_a_commit,
            round_trip::metadata_comes_back_with_all_fields,
            round_trip::empty_texts_in_metadata_come_back,
            round_trip::times_come_back_to_the_microsecond,
            round_trip::commit_ids_come_back_whatever_their_bits,
            round_trip::every_valid_stream_id_can_be_used,
            atomic::an_atomic_append_of_one_commit_behaves_as_append,
            read::every_acknowledged_commit_is_seen_by_every_later_read,
            read::a_read_is_current_as_of_its_first_poll,
            read::a_history_of_many_pages_is_read_to_the_tail,
            read::a_history_of_many_commits_is_read_to_the_tail,
            read::an_unknown_stream_is_empty,
            read::a_read_of_what_is_not_there_is_empty,
            read::after_reads_from_the_commit_after_the_head,
            read::a_read_after_a_version_within_a_commit_leaves_nothing_out,
            read::a_read_after_a_head_of_another_history_starts_at_its_version,
            read::a_read_after_a_head_of_another_stream_is_invalid,
            read::event_reads_from_the_commit_that_holds_the_version,
            read::newest_reads_backwards_from_the_tail,
            read::newest_at_or_below_reads_backwards_from_a_commit_end,
            read::a_limit_counts_commits,
            read::streams_whose_ids_are_prefixes_are_not_mixed_up,
            scan::a_scan_sees_everything_stored_before_it_began,
            scan::a_scan_of_large_commits_sees_everything,
            scan::each_commit_is_in_exactly_one_segment,
            scan::a_page_has_at_most_max_items_and_streams_in_version_order,
            scan::a_scan_continues_from_a_stored_cursor,
            scan::a_scan_neither_skips_nor_repeats_commits_while_others_append,
            scan::a_scan_of_tails_returns_where_streams_end,
            scan::a_cursor_that_nobody_gave_is_invalid,
            scan::a_cursor_of_another_scan_is_invalid,
            scan::a_cursor_of_a_scan_for_commits_is_invalid_for_tails,
            lists::streams_come_to_list_every_stream_of_the_type,
            lists::streams_of_other_types_are_not_listed,
        ] }
    };
    (atomic_append, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context atomic_append [
            atomic::a_declared_atomic_append_is_in_the_capabilities,
            atomic::all_commits_are_stored_and_heads_come_in_the_order_of_the_request,
            atomic::one_stale_head_stores_none,
            atomic::of_several_conflicts_a_stream_that_moved_is_named,
            atomic::commits_of_which_only_some_are_stored_are_a_conflict,
            atomic::a_checked_stream_at_its_head_lets_the_commits_through,
            atomic::a_checked_stream_that_moved_is_a_conflict_that_names_it,
            atomic::a_checked_stream_that_moved_stops_a_single_commit,
            atomic::a_checked_stream_that_moved_stops_a_large_commit,
            heads::a_checked_head_above_the_tail_lets_nothing_pass_where_heads_are_checked,
            atomic::a_stream_named_twice_is_invalid,
            atomic::an_append_of_no_commits_is_invalid,
            atomic::one_bad_commit_stores_none,
            atomic::of_several_mistakes_the_first_of_the_list_is_named,
            atomic::commits_that_are_together_over_the_limit_are_too_large,
            atomic::what_stands_in_every_part_counts_toward_the_limit_of_an_append,
            atomic::parts_of_large_commits_and_checked_streams_count_as_streams,
            atomic::the_same_atomic_append_again_is_a_repeat,
            atomic::of_several_atomic_appends_with_the_same_heads_exactly_one_wins,
            atomic::a_dropped_atomic_append_leaves_all_commits_or_none,
        ] }
    };
    (single_stream_append, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context single_stream_append [
            atomic::an_undeclared_atomic_append_is_not_in_the_capabilities,
            atomic::more_than_one_stream_is_unsupported,
        ] }
    };
    (unpublished, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context unpublished [
            lists::a_declared_list_of_unpublished_commits_is_in_the_capabilities,
            lists::a_stored_commit_is_unpublished_until_it_is_cleared,
            lists::clearing_touches_nothing_else,
            lists::clearing_an_unknown_or_cleared_key_does_nothing,
            lists::many_keys_are_cleared_in_one_call,
            lists::unpublished_commits_come_in_pages_by_stream,
            lists::a_walk_from_stream_to_stream_visits_each_once,
            lists::commits_cleared_during_a_walk_hide_no_others,
            lists::each_unpublished_commit_is_in_exactly_one_segment,
            lists::a_cursor_that_is_not_the_unpublished_lists_is_invalid,
            lists::cursors_of_scans_and_of_the_unpublished_list_are_not_mixed_up,
        ] }
    };
    (no_unpublished, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context no_unpublished [
            lists::an_undeclared_list_of_unpublished_commits_is_unsupported,
        ] }
    };
    (atomic_append_and_unpublished, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context atomic_append_and_unpublished [
            lists::commits_of_an_atomic_append_are_unpublished,
        ] }
    };
}

__event_store_cases! { always, [publish_cases] {} }
__event_store_cases! { atomic_append, [publish_cases] {} }
__event_store_cases! { single_stream_append, [publish_cases] {} }
__event_store_cases! { unpublished, [publish_cases] {} }
__event_store_cases! { no_unpublished, [publish_cases] {} }
__event_store_cases! { atomic_append_and_unpublished, [publish_cases] {} }

/// Returns all cases of all groups.
pub fn cases() -> Vec<Case<Arc<dyn EventStore>>> {
    let mut list = Vec::new();
    __event_store_cases! { always, [collect_cases] { list } }
    __event_store_cases! { atomic_append, [collect_cases] { list } }
    __event_store_cases! { single_stream_append, [collect_cases] { list } }
    __event_store_cases! { unpublished, [collect_cases] { list } }
    __event_store_cases! { no_unpublished, [collect_cases] { list } }
    __event_store_cases! { atomic_append_and_unpublished, [collect_cases] { list } }
    list
}

#[doc(hidden)]
pub async fn ready(fresh: impl Future<Output = Arc<dyn EventStore>>) -> Arc<dyn EventStore> {
    fresh.await
}

/// Generates one `#[test]` per rule of the [`EventStore`](foldstream::ports::EventStore) contract.
///
/// `store` is an `async fn() -> Arc<dyn EventStore>`, called once per test in the test's own
/// runtime. Attributes before `store`, such as `#[ignore = "needs Docker"]`, are put on every test.
/// `with` declares what the adapter can do:
/// - `atomic_append`: `max_streams_per_append` is greater than 1;
/// - `unpublished`: `lists_unpublished` is true.
///
/// Call the macro in a module of its own, since the tests are named after the rules.
///
/// # Example
/// ```
/// # #[allow(dead_code)]
/// mod event_store {
///     use foldstream::ports::EventStore;
///     use foldstream_testkit::InMemoryEventStore;
///     use std::sync::Arc;
///
///     async fn fresh() -> Arc<dyn EventStore> {
///         InMemoryEventStore::new()
///     }
///     foldstream_testkit::event_store_contract! {
///         #[ignore = "needs a server"]
///         store = fresh,
///         with = [atomic_append, unpublished],
///     }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! event_store_contract {
    ($(#[$attribute:meta])* store = $store:path $(, with = [$($group:ident),* $(,)?])? $(,)?) => {
        $crate::event_store_contract! {
            @groups [$($($group)*)?] { event_store $store; $(#[$attribute])* }
        }
    };
    (@groups [] $context:tt) => {
        $crate::event_store_contract! { @cases $context always single_stream_append no_unpublished }
    };
    (@groups [atomic_append] $context:tt) => {
        $crate::event_store_contract! { @cases $context always atomic_append no_unpublished }
    };
    (@groups [unpublished] $context:tt) => {
        $crate::event_store_contract! { @cases $context always single_stream_append unpublished }
    };
    (@groups [atomic_append unpublished] $context:tt) => {
        $crate::event_store_contract! {
            @cases $context always atomic_append unpublished atomic_append_and_unpublished
        }
    };
    (@groups [unpublished atomic_append] $context:tt) => {
        $crate::event_store_contract! { @groups [atomic_append unpublished] $context }
    };
    (@groups $unknown:tt $context:tt) => {
        ::core::compile_error!("`with` takes `atomic_append` and `unpublished`, each once");
    };
    (@cases $context:tt $($group:ident)*) => {
        $crate::__contract_report! { $context $($group)* }
        $($crate::__event_store_cases! { $group, [$crate::__contract_tests] $context })*
    };
}
