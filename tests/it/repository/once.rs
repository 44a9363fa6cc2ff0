//! Idempotent commands: a command id takes effect once, whatever dies in between.
use super::*;
use crate::support::stream;
use foldstream::{IdSource, StreamId, ports::ControlStore};
use foldstream_testkit::{InMemoryControlStore, SeededIds, length};
use std::sync::Mutex;

const DAY: Duration = Duration::from_secs(86_400);

fn payment(id: &str) -> Metadata {
    Metadata::new().with_command_id(id)
}
fn once(store: Arc<dyn EventStore>, control: Arc<dyn ControlStore>) -> Repository<Account> {
    Repository::new(store).with_idempotency(control, DAY)
}

#[tokio::test]
async fn the_same_command_id_takes_effect_once_and_returns_the_stored_facts() {
    let (store, control) = (InMemoryEventStore::new(), InMemoryControlStore::new());
    for cache in [0, 100] {
        let accounts = once(store.clone(), control.clone()).with_cache(cache);
        let id = format!("payment-{cache}");
        let first = accounts
            .execute_with(&ann(), Deposit { amount: 5 }, payment(&id))
            .await
            .unwrap();
        assert!(!first.is_repeat());
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        // Even if it says something else the second time.
        let again = accounts
            .execute_with(&ann(), Deposit { amount: 9 }, payment(&id))
            .await
            .unwrap();
        assert!(again.is_repeat());
        assert_eq!(again.events(), first.events());
        assert_eq!(again.version().get(), first.version().get() + 1);
    }
    assert_eq!(commits(&store).await.len(), 4);
}

#[tokio::test]
async fn the_same_command_id_on_another_stream_is_another_command() {
    let (store, control) = (InMemoryEventStore::new(), InMemoryControlStore::new());
    let accounts = once(store, control);
    for id in ["ann", "bob"] {
        let done = accounts
            .execute_with(&id.into(), Deposit { amount: 5 }, payment("p"))
            .await
            .unwrap();
        assert!(!done.is_repeat());
    }
}

#[tokio::test]
async fn a_refusal_is_not_recorded() {
    let (store, control) = (InMemoryEventStore::new(), InMemoryControlStore::new());
    let accounts = once(store, control);
    let withdraw = async || {
        accounts
            .execute_with(&ann(), Withdraw { amount: 5 }, payment("w"))
            .await
    };
    assert!(matches!(withdraw().await, Err(ExecuteError::Rejected(_))));
    accounts
        .execute(&ann(), Deposit { amount: 7 })
        .await
        .unwrap();
    assert_eq!(withdraw().await.unwrap().state().balance, 2);
    assert!(withdraw().await.unwrap().is_repeat());
}

#[tokio::test]
async fn a_command_id_that_cannot_be_stored_is_a_typed_error() {
    let accounts = once(InMemoryEventStore::new(), InMemoryControlStore::new());
    for id in [String::new(), "x".repeat(257), "a\u{1f}b".into()] {
        let refused = accounts
            .execute_with(&ann(), Deposit { amount: 1 }, payment(&id))
            .await;
        assert!(matches!(
            refused,
            Err(ExecuteError::InvalidCommandId { limit: 256, .. })
        ));
    }
}

#[tokio::test]
async fn a_mark_behind_the_tail_of_a_restored_stream_is_a_forked_history() {
    let control = InMemoryControlStore::new();
    let before = once(InMemoryEventStore::new(), control.clone());
    for n in 0..3 {
        before
            .execute_with(&ann(), Deposit { amount: 1 }, payment(&format!("p{n}")))
            .await
            .unwrap();
    }
    // The events were restored from an old backup, the marks were not.
    let restored = once(InMemoryEventStore::new(), control);
    let forked = restored
        .execute_with(&ann(), Deposit { amount: 1 }, payment("p2"))
        .await;
    assert!(
        matches!(forked, Err(ExecuteError::HistoryForked { .. })),
        "{forked:?}"
    );
}

/// A lot goes wrong, before and after it took effect; shared by store and control store.
fn chaos(seed: u64) -> Faults {
    let soon = Duration::from_millis(3);
    Faults::seeded(seed)
        .with(Fault::LoseRequest.anywhere().one_in(10))
        .with(Fault::LoseReply.anywhere().one_in(10))
        .with(Fault::ApplyLate(soon).anywhere().one_in(20).jittered())
        .with(Fault::Duplicate.on([Op::Append, Op::Put]).one_in(20))
        .with(Fault::Throttled(None).anywhere().one_in(40))
        .with(Fault::Delay(soon).anywhere().one_in(4).jittered())
}

/// What other commands deposit: more than the five add up to.
const OTHERS: u64 = 1_000_000;

/// Clients in several processes send the same five commands again and again, through lost calls, dropped futures and
/// other commands in between, until each has an answer.
async fn clients(seed: u64) {
    let chaos = chaos(seed);
    let steps = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let (inner, rows) = (InMemoryEventStore::new(), InMemoryControlStore::new());
    let ids: Arc<dyn IdSource> = SeededIds::new(seed);
    let retry = ConflictRetry::default()
        .with_backoff(foldstream::Backoff::new(Duration::ZERO, Duration::ZERO));
    let process = |cache| {
        let store = chaos.event_store(inner.clone());
        let control = chaos.control_store(rows.clone());
        Repository::<Account>::new(store)
            .with_ids(ids.clone())
            .with_idempotency(control, DAY)
            .with_conflict_retry(retry)
            .with_cache(cache)
    };
    let client = |accounts: Repository<Account>, patience: u32| {
        let steps = steps.clone();
        async move {
            for n in 0..5u32 {
                let command = || Deposit {
                    amount: 10u64.pow(n),
                };
                loop {
                    let id = ann();
                    let sent = accounts.execute_with(&id, command(), payment(&n.to_string()));
                    let patience = steps.lock().unwrap().u32(1..patience);
                    let dropped = async {
                        for _ in 0..patience {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::select! {
                        biased;
                        result = sent => match result {
                            Ok(done) => {
                                assert_eq!(done.events().len(), 1);
                                break;
                            }
                            Err(e) => assert!(e.is_transient(), "seed {seed}: {e:?}"),
                        },
                        () = dropped => {}
                    }
                }
                // Somebody else's business, which moves the tail.
                let _ = accounts.execute(&ann(), Deposit { amount: OTHERS }).await;
            }
        }
    };
    futures::future::join_all([
        client(process(0), 60),
        client(process(100), 40),
        client(process(100), 200),
    ])
    .await;
    let total: u64 = commits(&inner)
        .await
        .iter()
        .flat_map(|c| c.events.iter())
        .map(|e| {
            let payload: serde_json::Value = serde_json::from_slice(&e.payload).unwrap();
            payload["amount"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(total % OTHERS, 11_111, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn commands_sent_again_through_lost_calls_and_crashes_take_effect_once() {
    for seed in length::seeds(300, 5_000) {
        clients(seed).await;
    }
}

#[test]
fn marks_are_spread_by_the_streams_hash() {
    let shards: std::collections::BTreeSet<u32> = (0..1000u32)
        .map(|n| StreamId::new("account", &n).unwrap().shard(64))
        .collect();
    assert_eq!(shards.len(), 64);
    assert_eq!(stream("ann").shard(64), stream("ann").shard(64));
}
