//! Stores whose every call is a step: another writer can act before it, and a future can be dropped
//! there.
use super::*;
use foldstream::{
    StreamId,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome,
        RangeQuery, Row, RowKey, RowPage,
    },
};
use foldstream_testkit::{InMemoryControlStore, intercept::ControlStoreLayer};
use futures::future::BoxFuture;
use std::sync::Mutex;

type Happening = BoxFuture<'static, ()>;

/// Counts the calls to both stores. Each call yields to other tasks before and after it takes
/// effect.
#[derive(Clone, Default)]
pub(super) struct Steps(Arc<Inner>);
#[derive(Default)]
struct Inner {
    taken: AtomicU32,
    /// The number of a call, from 0, and what happens before it.
    happening: Mutex<Option<(u32, Happening)>>,
}
impl Steps {
    /// Creates steps in which something happens before the call of this number.
    pub(super) fn before(step: u32, happening: Happening) -> Self {
        let steps = Self::default();
        *steps.0.happening.lock().unwrap() = Some((step, happening));
        steps
    }
    pub(super) fn taken(&self) -> u32 {
        self.0.taken.load(Ordering::SeqCst)
    }
    async fn step(&self) {
        let step = self.0.taken.fetch_add(1, Ordering::SeqCst);
        let due = {
            let mut happening = self.0.happening.lock().unwrap();
            happening.take_if(|(at, _)| *at == step)
        };
        if let Some((_, happening)) = due {
            happening.await;
        }
        tokio::task::yield_now().await;
    }
    async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        self.step().await;
        let answer = call.await;
        tokio::task::yield_now().await;
        answer
    }
}

#[async_trait]
impl EventStoreLayer for Steps {
    async fn append(
        &self,
        inner: &Arc<dyn EventStore>,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        self.around(inner.append(append)).await
    }
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        self.step().await;
        Ok(read.pass(inner))
    }
}

type Rows = Arc<dyn ControlStore>;
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ControlStoreLayer for Steps {
    async fn get(&self, rows: &Rows, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        self.around(rows.get(key)).await
    }
    async fn get_many(
        &self,
        rows: &Rows,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.around(rows.get_many(keys)).await
    }
    async fn put(
        &self,
        rows: &Rows,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        self.around(rows.put(row, expect)).await
    }
    async fn delete(
        &self,
        rows: &Rows,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        self.around(rows.delete(key, expect)).await
    }
    async fn range(&self, rows: &Rows, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        self.around(rows.range(query)).await
    }
}

/// The stores that several processes share.
#[derive(Clone)]
struct World {
    events: Arc<InMemoryEventStore>,
    rows: Arc<InMemoryControlStore>,
}
impl World {
    async fn with_balance(amount: u64) -> Self {
        let world = Self {
            events: InMemoryEventStore::new(),
            rows: InMemoryControlStore::new(),
        };
        world
            .plain()
            .execute(&ann(), Deposit { amount })
            .await
            .unwrap();
        world
    }
    fn plain(&self) -> Repository<Account> {
        accounts(&self.events)
    }
    fn process(&self, steps: &Steps) -> Repository<Account> {
        let store = intercept::event_store(self.events.clone(), steps.clone());
        let control = intercept::control_store(self.rows.clone(), steps.clone());
        Repository::new(store)
            .with_idempotency(control, Duration::from_secs(86_400))
            .with_conflict_retry(
                ConflictRetry::default()
                    .with_backoff(foldstream::Backoff::new(Duration::ZERO, Duration::ZERO)),
            )
    }
    async fn withdrawals(&self) -> usize {
        let commits = commits(&self.events).await;
        let events = commits.iter().flat_map(|c| c.events.iter());
        events.filter(|e| e.name == "Withdrawn").count()
    }
}

fn payment() -> Metadata {
    Metadata::new().with_command_id("payment")
}
async fn pay(process: Repository<Account>) -> foldstream::Executed<Account> {
    process
        .execute_with(&ann(), Withdraw { amount: 5 }, payment())
        .await
        .unwrap()
}

/// X and Y send the same command. Y does all of its work before one call of X, and another writer
/// moves the tail before one call of Y.
///
/// The balance suffices for one withdrawal, so a second decision would refuse.
#[tokio::test]
async fn wherever_another_attempt_comes_between_a_command_is_not_refused_by_its_own_doing() {
    let mut ends = [false; 2];
    for x in 0..100 {
        for y in 0..100 {
            let world = World::with_balance(5).await;
            let stranger = world.plain();
            let deposit: Happening = Box::pin(async move {
                let one = Deposit { amount: 1 };
                stranger.execute(&ann(), one).await.unwrap();
            });
            let of_y = Steps::before(y, deposit);
            let answer = Arc::new(Mutex::new(None));
            let second = {
                let (process, answer) = (world.process(&of_y), answer.clone());
                Box::pin(async move {
                    let done = pay(process).await;
                    *answer.lock().unwrap() = Some(done);
                })
            };
            let of_x = Steps::before(x, second);
            let first = pay(world.process(&of_x)).await;
            assert_eq!(world.withdrawals().await, 1, "{x} {y}");
            assert_eq!(first.events(), [AccountEvent::Withdrawn { amount: 5 }]);
            let second = answer.lock().unwrap().take();
            if let Some(second) = &second {
                assert_eq!(second.events(), first.events(), "{x} {y}");
                assert_ne!(second.is_repeat(), first.is_repeat(), "{x} {y}");
            }
            // After the last call of X or Y, nothing comes between.
            if second.is_none() {
                ends[0] = true;
                break;
            }
            if of_y.taken() <= y {
                ends[1] = true;
                break;
            }
        }
        if ends[0] {
            break;
        }
    }
    assert_eq!(ends, [true; 2], "every call was reached");
}

/// Polls a future this many times, then drops it.
async fn polled<F: Future>(future: F, times: u32) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..times {
        if let std::task::Poll::Ready(output) = futures::poll!(future.as_mut()) {
            return Some(output);
        }
    }
    None
}

#[tokio::test]
async fn a_command_dropped_anywhere_is_stored_whole_or_not_and_the_next_one_is_right() {
    for cache in [0, 100] {
        let mut stored = 0;
        let mut is_done = false;
        for polls in 0..100 {
            let world = World::with_balance(10).await;
            let process = world.process(&Steps::default()).with_cache(cache);
            if cache > 0 {
                process
                    .execute(&ann(), Deposit { amount: 1 })
                    .await
                    .unwrap();
            }
            let before = commits(&world.events).await.len();
            let id = ann();
            let done = polled(process.execute(&id, DepositOnes { times: 3 }), polls).await;
            is_done = done.is_some();
            let after = commits(&world.events).await;
            let is_stored = after.len() > before;
            stored += u32::from(is_stored && !is_done);
            if is_stored {
                assert_eq!((after.len(), after[before].events.len()), (before + 1, 3));
            }
            let next = process
                .execute(&ann(), Withdraw { amount: 1 })
                .await
                .unwrap();
            let truth = world.plain().load(&ann()).await.unwrap();
            assert_eq!((next.state(), next.head()), (truth.state(), truth.head()));
            if is_done {
                break;
            }
        }
        assert!(is_done && stored > 0, "dropped before and after the effect");
    }
}

#[tokio::test]
async fn a_command_with_an_id_dropped_anywhere_and_sent_again_takes_effect_once() {
    for cache in [0, 100] {
        let mut stored = 0;
        let mut is_done = false;
        for polls in 0..100 {
            let world = World::with_balance(10).await;
            let process = world.process(&Steps::default()).with_cache(cache);
            let id = ann();
            let send = || process.execute_with(&id, Withdraw { amount: 8 }, payment());
            let first = polled(send(), polls).await;
            is_done = first.is_some();
            let is_stored = world.withdrawals().await > 0;
            stored += u32::from(is_stored && !is_done);
            let again = send().await.unwrap();
            assert_eq!(again.is_repeat(), is_stored, "{polls}");
            assert_eq!(again.events(), [AccountEvent::Withdrawn { amount: 8 }]);
            assert_eq!((again.state().balance, world.withdrawals().await), (2, 1));
            if is_done {
                break;
            }
        }
        assert!(is_done && stored > 0, "dropped before and after the effect");
    }
}

#[tokio::test]
async fn a_batch_has_no_more_commands_at_work_than_it_was_told() {
    use futures::StreamExt;
    /// Lists the commands that are in an append.
    #[derive(Clone, Debug, Default)]
    struct AtWork(Arc<(AtomicU32, AtomicU32)>);
    #[async_trait]
    impl EventStoreLayer for AtWork {
        async fn append(
            &self,
            inner: &Arc<dyn EventStore>,
            append: &Append,
        ) -> Result<AppendOutcome, EventStoreError> {
            let (now, most) = &*self.0;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let outcome = inner.append(append).await;
            now.fetch_sub(1, Ordering::SeqCst);
            outcome
        }
    }
    for (concurrency, most) in [(0, 1), (1, 1), (7, 7), (1000, 50)] {
        let at_work = AtWork::default();
        let (_, accounts) = with_layer(at_work.clone());
        let commands = (0..50u64).map(|n| (AccountId::from(n.to_string()), Deposit { amount: 1 }));
        let results = accounts.execute_many(commands, concurrency);
        let results: Vec<_> = results.collect().await;
        assert!(results.iter().all(|(_, result)| result.is_ok()));
        assert_eq!(results.len(), 50);
        assert_eq!(at_work.0.1.load(Ordering::SeqCst), most, "{concurrency}");
    }
}

#[test]
fn a_stream_is_named_by_its_aggregate_type_and_id() {
    let id = Repository::<Account>::stream_id(&ann()).unwrap();
    assert_eq!(id, StreamId::new("account", "ann").unwrap());
}
