//! The order of commands and appends on one stream, and the state that each leaves to the next.
use super::*;
use foldstream::{
    AsOf, StreamId, Transaction,
    adapter::version_conflict,
    ports::{
        BoxStream, Capabilities, CommitKey, ScanCursor, ScanPage, ScanScope, Segment, StreamPage,
        UnpublishedPage,
    },
};
use futures::{StreamExt, future::join_all};
use std::{
    num::NonZeroU32,
    sync::{Mutex, atomic::AtomicU64},
};

const ONE: AccountEvent = AccountEvent::Deposited { amount: 1 };
const MS: Duration = Duration::from_millis(1);

fn reads_and_appends(faults: &Faults) -> (u64, u64) {
    (faults.calls(Op::Read), faults.calls(Op::Append))
}

#[tokio::test(start_paused = true)]
async fn a_hundred_appends_to_any_version_at_once_all_succeed_and_read_the_tail_once() {
    for cache in [0, 10] {
        for latency in [MS, 5 * MS] {
            let faults = Faults::seeded(1).with(Fault::Delay(latency).anywhere().jittered());
            let (store, accounts) = faulty(&faults);
            let accounts = accounts.with_cache(cache);
            let id = ann();
            let all = (0..100).map(|_| accounts.append(&id, ExpectedVersion::Any, &[ONE]));
            let mut versions: Vec<u64> = join_all(all)
                .await
                .into_iter()
                .map(|head| head.unwrap().version().get())
                .collect();
            versions.sort_unstable();
            assert!(versions.into_iter().eq(1..=100));
            assert_eq!(commits(&store).await.len(), 100);
            assert_eq!(reads_and_appends(&faults), (1, 100));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn appends_and_commands_of_one_repository_meet_no_conflict_with_each_other() {
    for cache in [0, 10] {
        let faults = Faults::seeded(2).with(Fault::Delay(5 * MS).anywhere().jittered());
        let (_, accounts) = faulty(&faults);
        let accounts = accounts
            .with_cache(cache)
            .with_conflict_retry(ConflictRetry::never());
        let id = ann();
        let appends = (0..30).map(|_| accounts.append(&id, ExpectedVersion::Any, &[ONE]));
        let commands = (0..30).map(|_| accounts.execute(&id, Deposit { amount: 1 }));
        let (appended, executed) = futures::join!(join_all(appends), join_all(commands));
        assert!(appended.iter().all(Result::is_ok));
        assert!(executed.iter().all(Result::is_ok));
        assert_eq!(accounts.load(&id).await.unwrap().state().balance, 60);
    }
}

#[tokio::test]
async fn a_command_after_an_append_reads_only_what_is_not_known() {
    let faults = Faults::none();
    let (store, accounts) = faulty(&faults);
    let others = Repository::<Account>::new(store);
    let accounts = accounts
        .with_cache(10)
        .with_conflict_retry(ConflictRetry::never());
    let deposit = async || {
        let done = accounts.execute(&ann(), Deposit { amount: 1 }).await;
        let done = done.unwrap();
        (done.version().get(), done.state().balance)
    };
    assert_eq!(deposit().await, (1, 1));
    assert_eq!(reads_and_appends(&faults), (1, 1));
    // The head is known, so the append reads nothing.
    for expected in [ExpectedVersion::Any, Version::new(2).into()] {
        accounts.append(&ann(), expected, &[ONE]).await.unwrap();
    }
    assert_eq!(reads_and_appends(&faults), (1, 3));
    // The cached state was folded on with the appended events.
    assert_eq!(deposit().await, (4, 4));
    assert_eq!(reads_and_appends(&faults), (1, 4));
    // After an append at another writer's head, the cached state is too old.
    let any = ExpectedVersion::Any;
    let theirs = others.append(&ann(), any, &[ONE]).await.unwrap();
    accounts.append(&ann(), theirs, &[ONE]).await.unwrap();
    assert_eq!(reads_and_appends(&faults), (1, 5));
    assert_eq!(deposit().await, (7, 7));
    assert_eq!(reads_and_appends(&faults), (2, 6));
}

#[tokio::test]
async fn an_append_that_meets_a_conflict_or_does_not_arrive_leaves_a_right_state() {
    let faults = Faults::none();
    let (store, cached) = faulty(&faults);
    let cached = cached
        .with_cache(10)
        .with_conflict_retry(ConflictRetry::never());
    cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    // The expected version is not the known head, so the state stays valid.
    let stale = cached
        .append(&ann(), ExpectedVersion::NoStream, &[ONE])
        .await;
    assert!(matches!(stale, Err(AppendError::Conflict(_))));
    faults.set([Fault::Unavailable.on(Op::Append).first(1)]);
    let lost = cached.append(&ann(), ExpectedVersion::Any, &[ONE]).await;
    assert!(matches!(lost, Err(AppendError::Store(_))), "{lost:?}");
    let before = faults.calls(Op::Read);
    cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    assert_eq!(faults.calls(Op::Read), before);
    // After an append at a stale head, the state is loaded.
    accounts(&store)
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    let stale = cached.append(&ann(), ExpectedVersion::Any, &[ONE]).await;
    assert!(matches!(stale, Err(AppendError::Conflict(_))), "{stale:?}");
    let done = cached.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    assert_eq!((done.version().get(), done.state().balance), (4, 4));
}

/// Counts warnings in the log.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicU32>);
impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if event.metadata().target() == "foldstream::repository::turns" {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// A fold that panics at some events.
#[derive(Clone, Debug, Default)]
struct Touchy(u64);
impl foldstream::Aggregate for Touchy {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        if let AccountEvent::Deposited { amount } = event {
            assert_ne!(*amount, 13);
            self.0 += amount;
        }
    }
}
impl foldstream::Decide<u64> for Touchy {
    type Error = std::convert::Infallible;
    fn decide(
        &self,
        amount: &u64,
        _: &foldstream::Context,
    ) -> foldstream::Decision<Self, Self::Error> {
        Ok(vec![AccountEvent::Deposited { amount: *amount }])
    }
}

#[tokio::test]
async fn an_append_of_what_a_cached_state_does_not_fold_stores_nothing() {
    let store = InMemoryEventStore::new();
    let touchy = Repository::<Touchy>::new(store.clone()).with_cache(10);
    touchy.execute(&ann(), 1).await.unwrap();
    let thirteen = AccountEvent::Deposited { amount: 13 };
    for events in [vec![thirteen.clone()], vec![ONE, thirteen]] {
        let refused = touchy.append(&ann(), ExpectedVersion::Any, &events).await;
        assert!(matches!(refused, Err(AppendError::Fold(_))), "{refused:?}");
    }
    touchy
        .append(&ann(), ExpectedVersion::Any, &[ONE])
        .await
        .unwrap();
    assert_eq!(touchy.execute(&ann(), 1).await.unwrap().state().0, 3);
    assert_eq!(commits(&store).await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_held_for_long_while_others_wait_is_logged_once() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let logged = || warnings.0.load(Ordering::SeqCst);
    let faults = Faults::none().with(Fault::Delay(50 * MS).anywhere());
    let (_, accounts) = faulty(&faults);
    let id = ann();
    // The first command has started and is not polled any more.
    let mut first = Box::pin(accounts.execute(&id, Deposit { amount: 1 }));
    assert!(futures::poll!(first.as_mut()).is_pending());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(logged(), 0, "nobody waits");
    let waits = [
        accounts.execute(&id, Deposit { amount: 1 }),
        accounts.execute(&id, Deposit { amount: 1 }),
    ];
    let mut waiting = Box::pin(join_all(waits));
    let for_secs = Duration::from_secs;
    assert!(
        tokio::time::timeout(for_secs(29), waiting.as_mut())
            .await
            .is_err()
    );
    assert_eq!(logged(), 0);
    assert!(
        tokio::time::timeout(for_secs(2), waiting.as_mut())
            .await
            .is_err()
    );
    assert_eq!(logged(), 1);
    assert!(
        tokio::time::timeout(for_secs(600), waiting.as_mut())
            .await
            .is_err()
    );
    assert_eq!(logged(), 1, "once a turn");
    drop(first);
    assert!(waiting.await.iter().all(Result::is_ok));
    assert_eq!(logged(), 1, "the next turn is short");
}

/// A store that, like DynamoDB, checks only the slot. Its table can be replaced by one with fewer
/// commits.
#[derive(Debug, Default)]
struct Slots {
    commits: Mutex<Vec<Commit>>,
    incarnation: AtomicU64,
    error: Mutex<Option<EventStoreError>>,
    reads: AtomicU32,
}
impl Slots {
    fn restore_to(&self, version: u64) {
        let mut commits = self.commits.lock().unwrap();
        commits.retain(|c| c.last_version().get() <= version);
    }
    fn found(&self) -> Result<(), EventStoreError> {
        self.error.lock().unwrap().take().map_or(Ok(()), Err)
    }
    fn read_all(&self) -> Vec<Commit> {
        self.commits.lock().unwrap().clone()
    }
    fn is_whole(&self) -> bool {
        let versions = self.read_all().into_iter().map(|c| c.first_version.get());
        versions.eq(1..=self.commits.lock().unwrap().len() as u64)
    }
}
#[async_trait]
impl EventStore for Slots {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(1_000_000)
    }
    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        self.found()?;
        let mut commits = self.commits.lock().unwrap();
        let slot = append.head.version().next();
        if let Some(there) = commits.iter().find(|c| c.first_version == slot) {
            let (stream, expected) = (there.stream.clone(), append.head.version());
            let conflict = version_conflict(stream, expected, Some(there.last_version()));
            return Ok(AppendOutcome::Conflict(conflict));
        }
        commits.push(append.to_commit());
        Ok(AppendOutcome::Appended(append.head_after()))
    }
    fn read(
        &self,
        _: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = self.found() {
            return futures::stream::once(async { Err(error) }).boxed();
        }
        let mut all = self.read_all();
        match from {
            ReadFrom::After(head) => all.retain(|c| c.first_version > head.version()),
            ReadFrom::Newest => all.reverse(),
            ReadFrom::NewestAtOrBelow(version) => {
                assert_eq!(limit, NonZeroU32::new(1), "one commit confirms");
                all.retain(|c| c.last_version() <= version);
                all.reverse();
            }
            other => panic!("{other:?}"),
        }
        let most = limit.map_or(usize::MAX, |n| n.get() as usize);
        futures::stream::iter(all.into_iter().take(most).map(Ok)).boxed()
    }
    async fn append_all(
        &self,
        _: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        self.found()?;
        panic!("one stream")
    }
    async fn streams(&self, _: &str, _: Option<ScanCursor>) -> Result<StreamPage, EventStoreError> {
        panic!("one stream")
    }
    async fn scan(
        &self,
        _: Segment,
        _: Option<ScanCursor>,
        _: ScanScope,
        _: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        panic!("one stream")
    }
    async fn unpublished(
        &self,
        _: Segment,
        _: Option<ScanCursor>,
        _: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        panic!("one stream")
    }
    async fn clear_unpublished(&self, _: &[CommitKey]) -> Result<(), EventStoreError> {
        panic!("one stream")
    }
}

/// Creates a store of five deposits, and the repository that made them and remembers the last.
async fn five_deposits() -> (Arc<Slots>, Repository<Account>) {
    let store = Arc::new(Slots::default());
    let live = Repository::<Account>::new(store.clone())
        .with_cache(10)
        .with_conflict_retry(ConflictRetry::never());
    for _ in 0..5 {
        live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    }
    store.reads.store(0, Ordering::SeqCst);
    (store, live)
}

#[tokio::test(start_paused = true)]
async fn a_state_that_was_idle_is_confirmed_by_one_read_before_it_is_appended_on() {
    let (store, live) = five_deposits().await;
    let reads = || store.reads.swap(0, Ordering::SeqCst);
    let deposit = async || live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    let minutes = |n| tokio::time::sleep(Duration::from_secs(60) * n);
    minutes(4).await;
    deposit().await;
    assert_eq!(reads(), 0);
    minutes(5).await;
    assert_eq!(deposit().await.version().get(), 7);
    assert_eq!(reads(), 1);
    deposit().await;
    assert_eq!(reads(), 0);
    minutes(5).await;
    live.append(&ann(), ExpectedVersion::Any, &[ONE])
        .await
        .unwrap();
    assert_eq!(reads(), 1, "an append is after the head that is known, too");
    assert!(store.is_whole());
}

#[tokio::test(start_paused = true)]
async fn an_idle_state_of_another_history_is_dropped_and_loaded_again() {
    for is_append in [false, true] {
        let (store, live) = five_deposits().await;
        store.restore_to(3);
        tokio::time::sleep(Duration::from_secs(300)).await;
        if is_append {
            let head = live.append(&ann(), ExpectedVersion::Any, &[ONE]).await;
            assert_eq!(head.unwrap().version().get(), 4);
        } else {
            let done = live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
            assert_eq!((done.version().get(), done.state().balance), (4, 4));
        }
        assert!(store.is_whole());

        // The same version with another commit.
        let other = Repository::<Account>::new(store.clone());
        store.restore_to(3);
        other.execute(&ann(), Deposit { amount: 10 }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        let done = live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
        assert_eq!((done.version().get(), done.state().balance), (5, 14));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_after_which_a_state_is_confirmed_can_be_set_and_zero_is_never() {
    for (after, idle, expected) in [(10, 9, 0), (10, 10, 1), (0, 100_000, 0)] {
        let (store, live) = five_deposits().await;
        let live = live.with_confirm_after(Duration::from_secs(after));
        tokio::time::sleep(Duration::from_secs(idle)).await;
        live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
        let reads = store.reads.load(Ordering::SeqCst);
        assert_eq!(reads, expected, "{after} {idle}");
    }
}

/// Creates an append to a stream of its own.
fn of_nobody() -> PendingAppend {
    let head = StreamHead::empty(stream("bob"));
    let append = Append::after(head, CommitId::random(), Timestamp::now(), Vec::new());
    PendingAppend::new(AppendAll::new(vec![append]))
}

#[tokio::test]
async fn all_states_are_dropped_when_the_store_says_that_its_history_is_another() {
    let (store, live) = five_deposits().await;
    store.restore_to(3);
    store.incarnation.store(1, Ordering::SeqCst);
    let done = live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
    assert_eq!((done.version().get(), done.state().balance), (4, 4));

    let replaced = || EventStoreError::Replaced {
        reason: "another table".into(),
        source: no_answer(),
    };
    let missing = || EventStoreError::Refused {
        kind: RefusedKind::MissingTable,
        reason: "no such table".into(),
        source: no_answer(),
    };
    // The process can hear of the restore by any call on any stream, also if the adapter's number
    // never changes.
    for is_missing in [false, true] {
        for call in [
            "load", "execute", "append", "history", "load_at", "settle", "commit", "check", "run",
            "enlist",
        ] {
            let (store, live) = five_deposits().await;
            let fail = || {
                let error = if is_missing { missing() } else { replaced() };
                *store.error.lock().unwrap() = Some(error);
            };
            let bob = AccountId::from("bob");
            let (id, deposit) = (ann(), Deposit { amount: 1 });
            let transaction = Transaction::new(store.clone());
            match call {
                "commit" => drop(
                    transaction
                        .execute(&live, &id, deposit.clone())
                        .await
                        .unwrap(),
                ),
                "check" | "enlist" => drop(transaction.load(&live, &id).await.unwrap()),
                _ => {}
            }
            store.restore_to(3);
            if call != "run" {
                fail();
            }
            let failed = match call {
                "load" => live.load(&bob).await.is_err(),
                "execute" => live.execute(&id, deposit).await.is_err(),
                "append" => {
                    let appended = live.append(&bob, ExpectedVersion::NoStream, &[ONE]);
                    appended.await.is_err()
                }
                "history" => live.history(&bob).next().await.unwrap().is_err(),
                "load_at" => {
                    let moment = AsOf::Version(Version::new(1));
                    live.load_at(&bob, moment).await.is_err()
                }
                "settle" => live.settle(&of_nobody()).await.is_err(),
                "commit" | "check" => transaction.commit().await.is_err(),
                "run" => {
                    let ran = Transaction::run(&store, ConflictRetry::never(), async |tx| {
                        tx.execute(&live, &id, deposit.clone()).await?;
                        fail();
                        Ok::<_, ExecuteError<InsufficientFunds>>(())
                    });
                    ran.await.is_err()
                }
                // Another repository hears of the restore, and the transaction uses both.
                _ => {
                    let other = Repository::<Account>::new(store.clone());
                    transaction.load(&other, &bob).await.is_err()
                }
            };
            assert!(failed, "{call}");
            let done = live.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
            assert_eq!((done.version().get(), done.state().balance), (4, 4));
            assert!(store.is_whole());
        }
    }
}
