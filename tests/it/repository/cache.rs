//! The cache, and the order of commands in one process.
use super::*;
use std::sync::atomic::AtomicU64;

/// Counts reads and appends since the last call.
struct Calls(Faults, AtomicU64, AtomicU64);
impl Calls {
    fn new() -> Self {
        Self(Faults::none(), AtomicU64::new(0), AtomicU64::new(0))
    }
    fn take(&self) -> (u64, u64) {
        let since = |op, last: &AtomicU64| {
            let now = self.0.calls(op);
            now - last.swap(now, Ordering::SeqCst)
        };
        (since(Op::Read, &self.1), since(Op::Append, &self.2))
    }
}

#[tokio::test]
async fn with_a_cache_a_command_on_a_known_stream_is_one_append_and_no_read() {
    let calls = Calls::new();
    let (_, accounts) = faulty(&calls.0);
    let accounts = accounts.with_cache(100);
    accounts
        .execute(&ann(), Deposit { amount: 10 })
        .await
        .unwrap();
    assert_eq!(calls.take(), (1, 1));
    for n in 1..=5 {
        let done = accounts
            .execute(&ann(), Withdraw { amount: 1 })
            .await
            .unwrap();
        assert_eq!(done.state().balance, 10 - n);
    }
    assert_eq!(calls.take(), (0, 5));
}

#[tokio::test]
async fn what_a_cached_state_refuses_or_finds_done_is_confirmed_first() {
    let calls = Calls::new();
    let (store, cached) = faulty(&calls.0);
    let cached = cached.with_cache(100);
    cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    calls.take();
    let refused = cached.execute(&ann(), Withdraw { amount: 5 }).await;
    assert!(matches!(
        refused,
        Err(ExecuteError::Rejected(InsufficientFunds))
    ));
    assert_eq!(calls.take(), (1, 0));
    let nothing = cached.execute(&ann(), Deposit { amount: 0 }).await.unwrap();
    assert_eq!((nothing.events().len(), calls.take()), (0, (1, 0)));
    // Another process deposits, so a refusal would now be wrong.
    accounts(&store)
        .execute(&ann(), Deposit { amount: 10 })
        .await
        .unwrap();
    let done = cached
        .execute(&ann(), Withdraw { amount: 5 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (6, 3));
}

#[tokio::test]
async fn a_cached_state_that_is_behind_meets_a_conflict_and_reads_only_the_tail() {
    let calls = Calls::new();
    let (store, cached) = faulty(&calls.0);
    let cached = cached.with_cache(100);
    cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    accounts(&store)
        .execute(&ann(), Deposit { amount: 10 })
        .await
        .unwrap();
    calls.take();
    let done = cached.execute(&ann(), Deposit { amount: 5 }).await.unwrap();
    assert_eq!((done.state().balance, done.version().get()), (16, 3));
    assert_eq!(calls.take(), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_command_leaves_no_stale_state() {
    let calls = Calls::new();
    let (_, cached) = faulty(&calls.0);
    let cached = cached.with_cache(100);
    cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    calls.0.set([Fault::HangAfter.on(Op::Append).at(1)]);
    let id = ann();
    let hung = cached.execute(&id, Deposit { amount: 10 });
    assert!(
        tokio::time::timeout(Duration::from_secs(1), hung)
            .await
            .is_err()
    );
    // The commit was stored, although its caller was dropped.
    let done = cached
        .execute(&ann(), Deposit { amount: 100 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (111, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commands_on_one_stream_take_turns_in_the_process_and_meet_no_conflict() {
    for cache in [0, 100] {
        let store = InMemoryEventStore::new();
        let accounts = accounts(&store)
            .with_cache(cache)
            .with_conflict_retry(ConflictRetry::never());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let accounts = accounts.clone();
            tasks.spawn(async move {
                for _ in 0..20 {
                    accounts
                        .execute(&ann(), Deposit { amount: 1 })
                        .await
                        .unwrap();
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(accounts.load(&ann()).await.unwrap().state().balance, 320);
    }
}
