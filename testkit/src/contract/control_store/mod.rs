//! The contract of [`ControlStore`], case by case.
mod conditions;
mod expiry;
mod given;
mod range;
mod rows;

use super::run::{Case, collect_cases, publish_cases};
use foldstream::ports::ControlStore;
use std::{future::Future, sync::Arc};

/// The only list of the cases of the [`ControlStore`](foldstream::ports::ControlStore) contract.
#[doc(hidden)]
#[macro_export]
macro_rules! __control_store_cases {
    (always, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context always [
            rows::a_value_comes_back_byte_for_byte,
            rows::a_revision_comes_back_whatever_its_bits,
            rows::an_expiry_comes_back,
            rows::a_later_write_replaces_all_of_an_earlier_one,
            rows::every_later_read_sees_a_write,
            rows::keys_are_any_text_and_are_not_mixed_up,
            rows::keys_over_their_limits_are_invalid,
            rows::a_value_of_exactly_the_limit_is_taken,
            rows::a_value_over_the_limit_is_too_large,
            rows::get_many_answers_in_the_order_of_the_keys,
            rows::get_many_takes_any_number_of_keys,
            rows::large_rows_come_back_together,
            conditions::put_absent_writes_only_where_there_is_no_row,
            conditions::put_with_a_revision_writes_only_over_exactly_that_write,
            conditions::put_with_a_revision_does_not_make_a_row,
            conditions::put_any_always_writes,
            conditions::a_failed_condition_changes_nothing,
            conditions::a_repeated_put_is_written,
            conditions::a_row_made_again_does_not_match_its_old_revision,
            conditions::delete_with_a_revision_deletes_only_exactly_that_write,
            conditions::delete_with_a_revision_of_nothing_is_a_conflict_with_nothing,
            conditions::delete_any_is_always_deleted,
            conditions::of_several_writers_that_expect_no_row_exactly_one_wins,
            conditions::of_several_writers_that_expect_the_same_revision_exactly_one_wins,
            conditions::a_counter_by_compare_and_set_loses_nothing,
            conditions::of_a_delete_and_puts_with_the_same_revision_exactly_one_wins,
            conditions::a_dropped_put_is_settled_by_repeating_it,
            expiry::an_expired_row_is_not_returned_by_get,
            expiry::an_expired_row_is_none_in_get_many,
            expiry::expired_rows_are_not_in_a_range,
            expiry::an_expired_row_is_not_matched_by_its_revision,
            expiry::an_expired_row_is_overwritten_by_absent,
            expiry::a_row_ends_by_a_write_with_a_past_expiry,
            range::a_range_returns_the_rows_of_its_partition_only,
            range::a_range_is_ordered_bytewise,
            range::a_prefix_takes_the_rows_that_begin_so,
            range::between_includes_both_ends,
            range::after_continues_after_a_sort_key,
            range::after_and_bounds_hold_together,
            range::pages_return_each_row_once,
            range::a_walk_continues_after_a_deleted_row,
        ] }
    };
}

__control_store_cases! { always, [publish_cases] {} }

/// Returns all cases of the contract.
pub fn cases() -> Vec<Case<Arc<dyn ControlStore>>> {
    let mut list = Vec::new();
    __control_store_cases! { always, [collect_cases] { list } }
    list
}

#[doc(hidden)]
pub async fn ready(fresh: impl Future<Output = Arc<dyn ControlStore>>) -> Arc<dyn ControlStore> {
    fresh.await
}

/// Generates one `#[test]` per rule of the [`ControlStore`](foldstream::ports::ControlStore)
/// contract.
///
/// `store` is an `async fn() -> Arc<dyn ControlStore>`, called once per test in the test's own
/// runtime. Its clock must be near the system's, since cases write expiries an hour before and
/// after now. Attributes before `store` are put on every test.
///
/// # Example
/// ```
/// # #[allow(dead_code)]
/// mod control_store {
///     use foldstream::ports::ControlStore;
///     use foldstream_testkit::InMemoryControlStore;
///     use std::sync::Arc;
///
///     async fn fresh() -> Arc<dyn ControlStore> {
///         InMemoryControlStore::new()
///     }
///     foldstream_testkit::control_store_contract! { store = fresh }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! control_store_contract {
    ($(#[$attribute:meta])* store = $store:path $(,)?) => {
        $crate::__control_store_cases! {
            always, [$crate::__contract_tests] { control_store $store; $(#[$attribute])* }
        }
        $crate::__contract_report! { { control_store $store; $(#[$attribute])* } always }
    };
}
