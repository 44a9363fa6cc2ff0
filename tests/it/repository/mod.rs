//! Rules of the repository, and the tests that hold them.
//!
//! | rule | test |
//! |---|---|
//! | **Load** | |
//! | a shorter history is never returned | `rules::a_history_with_a_hole_is_an_error..`, `load::a_hole_in_a_load_with_snapshots_is_an_error` |
//! | snapshot and newest commits take one round-trip time | `load::a_load_with_a_snapshot_takes_one_round_trip_time` |
//! | no usable snapshot: the newest commits, and the commits before them | `load::without_a_snapshot_..` (two), `load::a_snapshot_that_cannot_be_used_is_as_none` |
//! | a snapshot at or before the tail | `load::a_snapshot_among_..`, `.._below_..`, `.._far_below_..`, `.._of_another_history_..` |
//! | a snapshot after the tail | `load::a_snapshot_that_was_read_later_..`, `load::a_snapshot_above_the_tail_is_a_forked_history_..` |
//! | any interleaving of a load with writers | `load::a_load_shows_a_state_that_the_stream_had_while_it_ran` |
//! | **Execute** | |
//! | one command at a time on a stream in a process | `cache::commands_on_one_stream_take_turns_..` (without retries, so each starts from the newest state) |
//! | appends take turns too, and leave their head to the next | `turns::..append..` (four) |
//! | a turn that is held for long while others wait is logged | `turns::a_turn_that_is_held_..` |
//! | a state is dropped when its history is gone, an old one confirmed | `turns::..history..`, `turns::a_state_that_was_idle_..` |
//! | a refusal by a cached state is confirmed, within bounds | `cache::what_a_cached_state_refuses_..` |
//! | conflict: read the new commits, decide again, new commit id, bounded | `execute::after_a_conflict_..`, `cache::a_cached_state_that_is_behind_..`, `rules::a_conflict_..`, `rules::conflicts_beyond_..` |
//! | conflicts by number of writers | `contention::..`, as documented at `ConflictRetry` |
//! | the slot holds this commit already: the stored events count | `rules::where_the_commit_was_stored_before_..` |
//! | unknown outcome: forgotten, and settled | `execute::after_an_unknown_outcome_..`, `rules::an_unknown_outcome_is_settled_..` |
//! | a dropped future: the commit whole or not, the state forgotten | `stepped::a_command_dropped_anywhere_..`, `cache::a_dropped_command_..` |
//! | a commit's time is never before the last commit's, and the decision sees it | `execute::a_decision_sees_..`, `rules::a_commits_time_..` |
//! | batches are bounded, in order on one stream | `stepped::a_batch_has_no_more_..`, `several::many_commands_run_side_by_side_..` |
//! | a command at a version: decided there or a conflict, a repeat is answered | `at::..` |
//! | `Any`, `NoStream`, `Head`, `Number` | `rules::an_append_holds_..`, `execute::facts_for_any_version_..`, `execute::number_0_is_no_stream` |
//! | transactions: all or nothing, no command id | `several::a_transaction_..` (two), `several::what_was_only_read_..` |
//! | events that could not be read back are not stored | `readable::..`, one test per way to store (events, snapshots, payload codecs) |
//! | events that the fold does not accept are not stored | `readable::fold::..` |
//! | **Idempotent commands** | |
//! | 1: the stored events are the answer to a repeat; round trips | `once::the_same_command_id_takes_effect_once_..`, `command_ids::a_command_with_an_id_takes_..` |
//! | 2: a refusal is returned only if no other attempt came between | `stepped::wherever_another_attempt_..` |
//! | 3: the mark before the append, at the slot of the state | `execute::a_mark_names_the_slot_..` |
//! | 4: the marked slot holds this commit, another one, none, or is after the tail | `stepped::wherever_another_attempt_..`, `once::commands_sent_again_..`, `once::a_mark_after_the_tail_..` |
//! | a refusal is final or says that an earlier attempt is pending | `command_ids::a_refusal_..`, `command_ids::what_is_refused_for_good_..` |
//! | a command id used again, for another command, or with a retention too short | `command_ids::..` (three) |
//! | a dropped command that is sent again | `stepped::a_command_with_an_id_dropped_anywhere_..` |
//! | bounded; one commit id, only for the marked slot | `execute::an_idempotent_command_that_is_always_overtaken_..` |
//! | marks end; a refusal is not recorded; ids that cannot be stored | `execute::a_mark_names_the_slot_..`, `once::a_refusal_..`, `once::a_command_id_that_..` |
//! | transactions read, continue from their own writes, and retry until they end | `transactions::..` |
//! | an unusable snapshot is replaced; a slow snapshot store is not waited for | `unusable_snapshots::..` |
//! | past states: each version with its differences, in bounded memory | `timeline::..` |
//! | **Snapshots** | `snapshots::..`, one test per rule |
mod at;
mod cache;
mod execute;
mod unusable_snapshots;
mod chaos;
mod command_ids;
mod contention;
mod load;
mod once;
mod readable;
mod rules;
mod several;
mod skew;
mod snapshots;
mod stepped;
mod timeline;
mod transactions;
mod turns;

use crate::support::{
    Account, AccountCommand::*, AccountEvent, AccountId, InsufficientFunds, no_answer, stream,
};
use async_trait::async_trait;
use foldstream::{
    AppendError, CodecError, CommitId, ConflictRetry, ExecuteError, ExpectedVersion, LoadError,
    Metadata, Repository, Settled, SnapshotPolicy, StreamHead, Timestamp, Upcast, Upcasters,
    Version,
    ports::{
        Append, AppendAll, AppendOutcome, Commit, EventData, EventStore, EventStoreError,
        PendingAppend, ReadFrom, RefusedKind, SaveOutcome, SnapshotStore, SnapshotStoreError,
        StoredSnapshot,
    },
};
use foldstream_testkit::{
    InMemoryEventStore, InMemorySnapshotStore, ManualClock,
    faults::{Fault, Faults, Op},
    intercept::{self, Commits, EventStoreLayer, Read},
};
use futures::{FutureExt, TryStreamExt};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

pub(super) fn ann() -> AccountId {
    AccountId::from("ann")
}
pub(super) fn accounts(store: &Arc<InMemoryEventStore>) -> Repository<Account> {
    Repository::new(store.clone())
}
/// Creates a repository over a store through these faults. Returns also the store below them.
pub(super) fn faulty(faults: &Faults) -> (Arc<InMemoryEventStore>, Repository<Account>) {
    let inner = InMemoryEventStore::new();
    let store = faults.event_store(inner.clone());
    (inner, Repository::new(store))
}
/// Creates a repository over a store with a layer. Returns also the store below the layer.
pub(super) fn with_layer(
    layer: impl EventStoreLayer,
) -> (Arc<InMemoryEventStore>, Repository<Account>) {
    let inner = InMemoryEventStore::new();
    let store = intercept::event_store(inner.clone(), layer);
    (inner, Repository::new(store))
}
/// Stores another writer's commit just before an append arrives.
pub(super) fn store_at_once(store: &InMemoryEventStore, append: &Append) {
    let stored = tokio::task::unconstrained(store.append(append)).now_or_never();
    let outcome = stored.expect("memory answers at once").unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(_)), "{outcome:?}");
}
pub(super) async fn commits(store: &Arc<InMemoryEventStore>) -> Vec<Commit> {
    let all = ReadFrom::After(StreamHead::empty(stream("ann")));
    store
        .read(&stream("ann"), all, None)
        .try_collect()
        .await
        .unwrap()
}
pub(super) fn json(name: &'static str, schema_version: u16, payload: &'static str) -> EventData {
    EventData::new(name, schema_version, payload.as_bytes().to_vec())
}
pub(super) async fn store_raw(store: &InMemoryEventStore, events: Vec<EventData>) -> StreamHead {
    let head = StreamHead::empty(stream("ann"));
    let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    match store.append(&append).await.unwrap() {
        AppendOutcome::Appended(head) => head,
        other => panic!("{other:?}"),
    }
}
