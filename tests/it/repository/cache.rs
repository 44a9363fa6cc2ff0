//! The cache, and turns in the process.
use super::*;

/// Counts calls, and can hang in an append.
#[derive(Clone, Debug, Default)]
struct Counted(Arc<Counts>);
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU32,
    appends: AtomicU32,
    hangs: AtomicU32,
}
impl Counted {
    fn take(&self) -> (u32, u32) {
        let take = |n: &AtomicU32| n.swap(0, Ordering::SeqCst);
        (take(&self.0.reads), take(&self.0.appends))
    }
}
#[async_trait]
impl Mischief for Counted {
    fn reading(&self) {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
    }
    async fn append(
        &self,
        inner: &dyn EventStore,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        self.0.appends.fetch_add(1, Ordering::SeqCst);
        let outcome = inner.append(append).await;
        if self.0.hangs.swap(0, Ordering::SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        outcome
    }
}

#[tokio::test]
async fn with_a_cache_a_command_on_a_known_stream_is_one_append_and_no_read() {
    let calls = Counted::default();
    let (_, accounts) = misbehaving(calls.clone());
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
    let calls = Counted::default();
    let (store, cached) = misbehaving(calls.clone());
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
    // Another process deposits; the refusal would be wrong now.
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
    let calls = Counted::default();
    let (store, cached) = misbehaving(calls.clone());
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
async fn a_dropped_command_leaves_no_stale_state_behind() {
    let calls = Counted::default();
    let (_, cached) = misbehaving(calls.clone());
    let cached = cached.with_cache(100);
    cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    calls.0.hangs.store(1, Ordering::SeqCst);
    let id = ann();
    let hung = cached.execute(&id, Deposit { amount: 10 });
    assert!(
        tokio::time::timeout(Duration::from_secs(1), hung)
            .await
            .is_err()
    );
    // It was stored, though nobody heard of it.
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
