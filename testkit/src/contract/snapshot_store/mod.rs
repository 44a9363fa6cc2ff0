//! The contract of [`SnapshotStore`], case by case.
mod cases;

use super::run::{Case, collect_cases, publish_cases};
use foldstream::ports::SnapshotStore;
use std::{future::Future, sync::Arc};

/// The only list of the cases of the [`SnapshotStore`](foldstream::ports::SnapshotStore) contract.
#[doc(hidden)]
#[macro_export]
macro_rules! __snapshot_store_cases {
    (always, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context always [
            cases::a_saved_snapshot_is_loaded_as_it_was_given,
            cases::an_unknown_stream_has_no_snapshot,
            cases::a_later_version_replaces,
            cases::an_earlier_version_is_stale,
            cases::a_later_state_version_replaces_at_the_same_version,
            cases::the_same_or_an_earlier_state_version_is_stale_at_the_same_version,
            cases::of_several_savers_the_latest_version_stays,
            cases::streams_do_not_touch_each_other,
            cases::an_older_snapshot_may_be_saved_after_a_delete,
            cases::deleting_what_is_not_there_does_nothing,
            cases::a_snapshot_too_large_leaves_the_old_one,
            cases::a_dropped_save_leaves_one_of_both,
        ] }
    };
}

__snapshot_store_cases! { always, [publish_cases] {} }

/// Returns all cases of the contract.
pub fn cases() -> Vec<Case<Arc<dyn SnapshotStore>>> {
    let mut list = Vec::new();
    __snapshot_store_cases! { always, [collect_cases] { list } }
    list
}

#[doc(hidden)]
pub async fn ready(fresh: impl Future<Output = Arc<dyn SnapshotStore>>) -> Arc<dyn SnapshotStore> {
    fresh.await
}

/// Generates one `#[test]` per rule of the [`SnapshotStore`](foldstream::ports::SnapshotStore)
/// contract.
///
/// `store` is an `async fn() -> Arc<dyn SnapshotStore>`, called once per test in the test's own
/// runtime. Attributes before `store` are put on every test.
///
/// # Example
/// ```
/// # #[allow(dead_code)]
/// mod snapshot_store {
///     use foldstream::ports::SnapshotStore;
///     use foldstream_testkit::InMemorySnapshotStore;
///     use std::sync::Arc;
///
///     async fn fresh() -> Arc<dyn SnapshotStore> {
///         InMemorySnapshotStore::new()
///     }
///     foldstream_testkit::snapshot_store_contract! { store = fresh }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! snapshot_store_contract {
    ($(#[$attribute:meta])* store = $store:path $(,)?) => {
        $crate::__snapshot_store_cases! {
            always, [$crate::__contract_tests] { snapshot_store $store; $(#[$attribute])* }
        }
        $crate::__contract_report! { { snapshot_store $store; $(#[$attribute])* } always }
    };
}
