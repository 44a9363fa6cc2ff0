//! Idempotent commands: a command id takes effect once, through lost answers and crashes.
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
        // The stored events are the answer, also if the command differs.
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
async fn a_mark_after_the_tail_of_a_restored_stream_is_a_forked_history() {
    let control = InMemoryControlStore::new();
    let before = once(InMemoryEventStore::new(), control.clone());
    for n in 0..3 {
        before
            .execute_with(&ann(), Deposit { amount: 1 }, payment(&format!("p{n}")))
            .await
            .unwrap();
    }
    // The events were restored from an old backup, but the marks were not.
    let restored = once(InMemoryEventStore::new(), control);
    let forked = restored
        .execute_with(&ann(), Deposit { amount: 1 }, payment("p2"))
        .await;
    assert!(
        matches!(forked, Err(ExecuteError::HistoryForked { .. })),
        "{forked:?}"
    );
}

/// The amount of a deposit by other commands, which is more than the sum of all payments.
const OTHERS: u64 = 1_000_000;
/// The sum of [`PAYMENTS`], each taken once.
const PAID: u64 = 11_111;
/// The payments that every client sends: a command id and an amount. Each takes effect once in all.
const PAYMENTS: [(&str, u64); 5] = [
    ("p0", 1),
    ("p1", 10),
    ("p2", 100),
    ("p3", 1_000),
    ("p4", 10_000),
];

/// A service of several processes over stores that lose, delay and repeat calls.
struct Service {
    seed: u64,
    faults: Faults,
    store: Arc<InMemoryEventStore>,
    rows: Arc<InMemoryControlStore>,
    ids: Arc<dyn IdSource>,
    patience: Mutex<fastrand::Rng>,
}

impl Service {
    fn unreliable(seed: u64) -> Self {
        let soon = Duration::from_millis(3);
        let faults = Faults::seeded(seed)
            .with(Fault::LoseRequest.anywhere().one_in(10))
            .with(Fault::LoseReply.anywhere().one_in(10))
            .with(Fault::ApplyLate(soon).anywhere().one_in(20).jittered())
            .with(Fault::Duplicate.on([Op::Append, Op::Put]).one_in(20))
            .with(Fault::Throttled(None).anywhere().one_in(40))
            .with(Fault::Delay(soon).anywhere().one_in(4).jittered());
        Self {
            seed,
            faults,
            store: InMemoryEventStore::new(),
            rows: InMemoryControlStore::new(),
            ids: SeededIds::new(seed),
            patience: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    /// Creates the repository of one process, which caches this number of states.
    fn process(&self, cache: usize) -> Repository<Account> {
        let at_once = foldstream::Backoff::new(Duration::ZERO, Duration::ZERO);
        let store = self.faults.event_store(self.store.clone());
        let control = self.faults.control_store(self.rows.clone());
        once(store, control)
            .with_ids(self.ids.clone())
            .with_conflict_retry(ConflictRetry::default().with_backoff(at_once))
            .with_cache(cache)
    }

    /// Sends each payment until it is answered, and another command after it, which moves the tail.
    async fn client(&self, accounts: Repository<Account>, patience: u32) {
        for (id, amount) in PAYMENTS {
            while !self.is_answered(&accounts, id, amount, patience).await {}
            let _ = accounts.execute(&ann(), Deposit { amount: OTHERS }).await;
        }
    }

    /// Sends a payment, and drops it after a random number of polls below `patience`, as a process
    /// does that crashes.
    ///
    /// Returns true if the payment was answered before that.
    async fn is_answered(
        &self,
        accounts: &Repository<Account>,
        id: &str,
        amount: u64,
        patience: u32,
    ) -> bool {
        let polls = self.patience.lock().unwrap().u32(1..patience);
        let crash = async {
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
        };
        let to = ann();
        let sent = accounts.execute_with(&to, Deposit { amount }, payment(id));
        tokio::select! {
            biased;
            answer = sent => match answer {
                Ok(done) => {
                    assert_eq!(done.events().len(), 1);
                    true
                }
                Err(error) => {
                    assert!(error.is_transient(), "seed {}: {error:?}", self.seed);
                    false
                }
            },
            () = crash => false,
        }
    }

    /// Returns the sum of all deposits without those by other commands.
    async fn paid(&self) -> u64 {
        let balance = accounts(&self.store).load(&ann()).await.unwrap();
        balance.state().balance % OTHERS
    }
}

#[tokio::test(start_paused = true)]
async fn commands_sent_again_through_lost_calls_and_crashes_take_effect_once() {
    for seed in length::seeds(300, 5_000) {
        let service = Service::unreliable(seed);
        futures::future::join_all([
            service.client(service.process(0), 60),
            service.client(service.process(100), 40),
            service.client(service.process(100), 200),
        ])
        .await;
        assert_eq!(service.paid().await, PAID, "seed {seed}");
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
