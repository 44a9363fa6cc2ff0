//! A bus and a control store that fail as told.
use crate::support::no_answer;
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, ConsumerEvent, ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect,
    Message, MessageBus, MessageBusError, Offset, OwnedMark, PartitionId, PartitionOffsets,
    PutOutcome, RangeQuery, Row, RowKey, RowPage, Subscription, TopicDescription,
};
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A call that may fail.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a> {
    Get,
    Put(&'a Row),
    Offsets,
    Subscribe,
    Committed,
    Next,
    Commit,
    Pause,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    /// It fails, and nothing happens.
    Unavailable,
    /// It happens, and the answer is lost.
    LostAnswer,
    /// It happens later.
    Late(Duration),
}

type Plan = Arc<dyn Fn(Call<'_>) -> Fault + Send + Sync>;

/// One call in ten fails, half of these after it has happened; one in fifty is late.
pub(super) fn unreliable(seed: u64) -> impl Fn(Call<'_>) -> Fault + Clone + Send + Sync + 'static {
    let rng = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    move |_| {
        let mut rng = rng.lock().unwrap();
        match rng.u32(0..100) {
            0..5 => Fault::Unavailable,
            5..10 => Fault::LostAnswer,
            10..12 => Fault::Late(Duration::from_millis(rng.u64(0..500))),
            _ => Fault::None,
        }
    }
}

/// Puts faults around an adapter.
#[derive(Clone)]
pub(super) struct Faulty<T: ?Sized> {
    inner: Arc<T>,
    plan: Plan,
}

impl<T: ?Sized> Faulty<T> {
    pub(super) fn new(
        inner: Arc<T>,
        plan: impl Fn(Call<'_>) -> Fault + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            plan: Arc::new(plan),
        })
    }

    async fn call<R, E>(
        &self,
        call: Call<'_>,
        work: impl Future<Output = Result<R, E>>,
        unavailable: impl Fn() -> E,
    ) -> Result<R, E> {
        match (self.plan)(call) {
            Fault::None => work.await,
            Fault::Unavailable => Err(unavailable()),
            Fault::LostAnswer => {
                work.await?;
                Err(unavailable())
            }
            Fault::Late(by) => {
                tokio::time::sleep(by).await;
                work.await
            }
        }
    }
}

impl<T: ?Sized> fmt::Debug for Faulty<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").finish_non_exhaustive()
    }
}

fn no_control() -> ControlStoreError {
    ControlStoreError::Unavailable {
        source: no_answer(),
    }
}
fn no_bus() -> MessageBusError {
    MessageBusError::Unavailable {
        source: no_answer(),
    }
}

#[async_trait]
impl<T: ControlStore + ?Sized> ControlStore for Faulty<T> {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        self.call(Call::Get, self.inner.get(key), no_control).await
    }
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.inner.get_many(keys).await
    }
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        self.call(Call::Put(row), self.inner.put(row, expect), no_control)
            .await
    }
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        self.inner.delete(key, expect).await
    }
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        self.inner.range(query).await
    }
}

#[async_trait]
impl<T: MessageBus + ?Sized> MessageBus for Faulty<T> {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        self.inner.publish(message).await
    }
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let subscribed = self.inner.subscribe(subscription);
        let inner = self.call(Call::Subscribe, subscribed, no_bus).await?;
        let plan = self.plan.clone();
        Ok(Arc::new(Faulty { inner, plan }))
    }
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        self.call(Call::Offsets, self.inner.offsets(topic), no_bus)
            .await
    }
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        let committed = self.inner.committed(group, topic);
        self.call(Call::Committed, committed, no_bus).await
    }
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        self.inner.describe_topic(topic).await
    }
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        self.inner.delete_group(group).await
    }
}

#[async_trait]
impl<T: Consumer + ?Sized> Consumer for Faulty<T> {
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        // An event that was taken must not be lost: a fault comes instead of asking.
        match (self.plan)(Call::Next) {
            Fault::None => self.inner.next().await,
            _ => Err(no_bus()),
        }
    }
    async fn commit(&self, marks: &[OwnedMark]) -> Result<(), MessageBusError> {
        self.call(Call::Commit, self.inner.commit(marks), no_bus)
            .await
    }
    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.call(Call::Pause, self.inner.pause(partitions), no_bus)
            .await
    }
    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.call(Call::Pause, self.inner.resume(partitions), no_bus)
            .await
    }
    async fn leave(&self) -> Result<(), MessageBusError> {
        self.inner.leave().await
    }
}
