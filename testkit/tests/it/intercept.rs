//! Layers that change nothing, and layers that change one method.
use foldstream::{
    BoxError, CommitId, StreamHead, StreamId, Timestamp,
    ports::{
        Append, AppendOutcome, Commit, Consumer, ConsumerEvent, ControlStore, ControlStoreError,
        EventData, EventStore, EventStoreError, Expect, Message, MessageBus, MessageBusError,
        Offset, OffsetCommit, PartitionId, PartitionOffsets, ReadFrom, Revision, Row, RowKey,
        RunOutcome, SnapshotStore, StartOffset, Subscription, TopicDescription,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
    faults::{Faults, Op},
    intercept::{
        self, Commits, ConsumerLayer, ControlStoreLayer, EventStoreLayer, MessageBusLayer, Read,
        SnapshotStoreLayer, async_trait,
    },
};
use futures::{FutureExt, TryStreamExt};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

/// A layer that overrides nothing.
struct Nothing;
impl EventStoreLayer for Nothing {}
impl SnapshotStoreLayer for Nothing {}
impl ControlStoreLayer for Nothing {}
impl ConsumerLayer for Nothing {}
#[async_trait]
impl MessageBusLayer for Nothing {
    async fn subscribe(
        &self,
        inner: &Arc<dyn MessageBus>,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let consumer = inner.subscribe(subscription).await?;
        Ok(intercept::consumer(consumer, Nothing))
    }
}

/// The contract suites through layers, also on a store with few capabilities.
mod contract {
    use super::*;
    use foldstream::ports::Capabilities;
    use foldstream_testkit::contract::message_bus::BusFixture;
    use std::time::Duration;

    mod event_store {
        use super::*;
        async fn fresh() -> Arc<dyn EventStore> {
            let below: Arc<dyn EventStore> = InMemoryEventStore::new();
            intercept::event_store(intercept::event_store(below, Nothing), Nothing)
        }
        foldstream_testkit::event_store_contract! {
            store = fresh,
            with = [atomic_append, unpublished],
        }
    }
    mod event_store_without_optional_capabilities {
        use super::*;
        async fn fresh() -> Arc<dyn EventStore> {
            let below = InMemoryEventStore::with_capabilities(Capabilities::new(100_000));
            intercept::event_store(below, Nothing)
        }
        foldstream_testkit::event_store_contract! { store = fresh }
    }
    mod snapshot_store {
        use super::*;
        async fn fresh() -> Arc<dyn SnapshotStore> {
            intercept::snapshot_store(InMemorySnapshotStore::new(), Nothing)
        }
        foldstream_testkit::snapshot_store_contract! { store = fresh }
    }
    mod control_store {
        use super::*;
        async fn fresh() -> Arc<dyn ControlStore> {
            intercept::control_store(InMemoryControlStore::new(), Nothing)
        }
        foldstream_testkit::control_store_contract! { store = fresh }
    }

    const SESSION: Duration = Duration::from_secs(2);

    struct Fixture(Arc<InMemoryMessageBus>);
    #[async_trait]
    impl BusFixture for Fixture {
        fn bus(&self) -> Arc<dyn MessageBus> {
            intercept::message_bus(self.0.clone(), Nothing)
        }
        async fn create_topic(&self, name: &str, partitions: u32) {
            self.0.create_topic(name, partitions);
        }
        async fn leave_hole(&self, partition: &PartitionId) {
            self.0.skip_offsets(partition, 2).unwrap();
        }
        fn session_timeout(&self) -> Duration {
            SESSION
        }
    }
    mod message_bus {
        use super::*;
        async fn fresh() -> Fixture {
            Fixture(InMemoryMessageBus::with_session_timeout(SESSION))
        }
        foldstream_testkit::message_bus_contract! {
            bus = fresh,
            with = [holes, static_members, delete_group],
        }
    }
}

fn append() -> Append {
    let empty = StreamHead::empty(StreamId::new("cart", "a").unwrap());
    let added = [EventData::new("Added", 1, "{}")];
    Append::after(empty, CommitId::random(), Timestamp::now(), added)
}

#[test]
fn a_layer_that_overrides_nothing_keeps_incarnation_and_capabilities() {
    let below = InMemoryEventStore::new();
    let store = intercept::event_store(below.clone(), Nothing);
    assert_eq!(store.capabilities(), below.capabilities());
    assert_eq!(store.incarnation(), 0);
    below.replace([]);
    assert_eq!(store.incarnation(), 1);
}

#[test]
fn an_intercepted_store_is_a_store_of_its_own_however_it_is_shared() {
    let below = InMemoryEventStore::new();
    let store = intercept::event_store(below.clone(), Nothing);
    let erased: Arc<dyn EventStore> = store.clone();
    assert_eq!(erased.identity(), store.identity());
    assert_eq!(Arc::new(erased).identity(), store.identity());
    assert_ne!(store.identity(), below.identity());
    let other = intercept::event_store(below, Nothing);
    assert_ne!(other.identity(), store.identity());
}

/// A layer must forward the port's method, and not fall back to the method's default.
#[tokio::test]
async fn a_run_passes_as_a_run() {
    let bus = InMemoryMessageBus::new();
    bus.create_topic("events", 1);
    let faults = Faults::none();
    let bus = intercept::message_bus(faults.message_bus(bus), Nothing);
    let message = || Message::new("events", Timestamp::now()).with_partition(0);
    let outcome = bus.publish_run(&[message(), message()]).await;
    assert_eq!(outcome.durable, 2);
    assert_eq!(
        (faults.calls(Op::PublishRun), faults.calls(Op::Publish)),
        (1, 0)
    );
}

#[derive(Default)]
struct CountsAppends(AtomicU32);
#[async_trait]
impl EventStoreLayer for CountsAppends {
    async fn append(
        &self,
        inner: &Arc<dyn EventStore>,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        inner.append(append).await
    }
}

#[tokio::test]
async fn one_overridden_method_leaves_the_others_alone_and_the_test_sees_layer_and_inner() {
    let store = intercept::event_store(InMemoryEventStore::new(), CountsAppends::default());
    let append = append();
    assert!(matches!(
        store.append(&append).await.unwrap(),
        AppendOutcome::Appended(_)
    ));
    assert_eq!(store.layer().0.load(Ordering::SeqCst), 1);
    let stream = append.head.stream();
    for store in [store.clone() as Arc<dyn EventStore>, store.inner().clone()] {
        let read = store.read(stream, ReadFrom::Newest, None);
        let commits: Vec<Commit> = read.try_collect().await.unwrap();
        assert_eq!(commits, [append.to_commit()]);
    }
    let shown = format!("{store:?}");
    assert!(shown.contains("CountsAppends"), "{shown}");
}

/// Answers reads with a list, with an error, or with the commits of another stream.
struct Answers(Mutex<Vec<Answer>>);
enum Answer {
    List(Vec<Commit>),
    Error(EventStoreError),
    Of(StreamId),
}
#[async_trait]
impl EventStoreLayer for Answers {
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        mut read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        let answer = self.0.lock().unwrap().pop();
        match answer.unwrap() {
            Answer::List(commits) => Ok(commits.into()),
            Answer::Error(error) => Err(error),
            Answer::Of(stream) => {
                read.stream = stream;
                Ok(read.pass(inner))
            }
        }
    }
}

#[tokio::test]
async fn a_read_is_answered_with_a_list_an_error_or_another_read() {
    let below = InMemoryEventStore::new();
    let append = append();
    let _ = below.append(&append).await.unwrap();
    let stored = append.head.stream().clone();
    let down = EventStoreError::Unavailable {
        pending: None,
        source: "down".into(),
    };
    let answers = vec![
        Answer::Of(stored),
        Answer::Error(down),
        Answer::List(vec![append.to_commit(); 2]),
    ];
    let store = intercept::event_store(below, Answers(Mutex::new(answers)));
    let other = StreamId::new("cart", "b").unwrap();
    let read = async || {
        let commits = store.read(&other, ReadFrom::Newest, None);
        commits.try_collect::<Vec<Commit>>().await
    };
    assert_eq!(read().await.unwrap().len(), 2);
    assert!(matches!(
        read().await,
        Err(EventStoreError::Unavailable { .. })
    ));
    assert_eq!(read().await.unwrap(), [append.to_commit()]);
}

/// Forwards an append a moment later, and does not wait for it.
struct WritesLater;
#[async_trait]
impl ControlStoreLayer for WritesLater {
    async fn get(
        &self,
        inner: &Arc<dyn ControlStore>,
        key: &RowKey,
    ) -> Result<Option<Row>, ControlStoreError> {
        let (inner, key) = (inner.clone(), key.clone());
        let read = tokio::spawn(async move { inner.get(&key).await });
        read.await.unwrap_or_else(|error| panic!("{error}"))
    }
}

#[tokio::test]
async fn a_layer_can_call_the_port_below_from_a_task() {
    let rows = intercept::control_store(InMemoryControlStore::new(), WritesLater);
    let row = Row::new(RowKey::new("p", "s"), "1", Revision::from_u128(7));
    let _ = rows.put(&row, Expect::Absent).await.unwrap();
    assert_eq!(rows.get(&row.key).await.unwrap(), Some(row));
}

/// A member whose commits never arrive.
struct LosesCommits;
#[async_trait]
impl ConsumerLayer for LosesCommits {
    async fn commit(
        &self,
        _: &Arc<dyn Consumer>,
        _: &[OffsetCommit],
    ) -> Result<(), MessageBusError> {
        Ok(())
    }
}
#[async_trait]
impl MessageBusLayer for LosesCommits {
    async fn subscribe(
        &self,
        inner: &Arc<dyn MessageBus>,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        let consumer = inner.subscribe(subscription).await?;
        Ok(intercept::consumer(consumer, LosesCommits))
    }
}

#[tokio::test]
async fn a_layer_of_a_consumer_leaves_its_other_methods_alone_and_drops_it() -> Result<(), BoxError>
{
    let below = InMemoryMessageBus::new();
    below.create_topic("events", 1);
    let bus = intercept::message_bus(below.clone(), LosesCommits);
    bus.publish(&Message::new("events", Timestamp::now()).with_key("a"))
        .await?;
    let partition = PartitionId::new("events", 0);
    let start = StartOffset::new(partition.clone(), Offset::new(0));
    let subscription = Subscription::new("billing", ["events"]).with_start(vec![start]);
    let member = bus.subscribe(subscription.clone()).await?;
    let ConsumerEvent::Assigned(assigned) = member.next().await? else {
        panic!("assigned first")
    };
    let commit = OffsetCommit::new(
        partition.clone(),
        assigned.partitions[0].epoch,
        Offset::new(1),
    );
    member.commit(&[commit]).await?;
    assert_eq!(
        bus.committed("billing", "events").await?,
        [(partition, None)]
    );

    let other = below.subscribe(subscription).await?;
    assert!(other.next().now_or_never().is_none(), "the member is there");
    drop(member);
    assert!(matches!(other.next().await?, ConsumerEvent::Assigned(_)));
    Ok(())
}

/// A bus that reports topics as empty.
struct Empty;
#[async_trait]
impl MessageBusLayer for Empty {
    async fn offsets(
        &self,
        inner: &Arc<dyn MessageBus>,
        topic: &str,
    ) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let mut offsets = inner.offsets(topic).await?;
        for partition in &mut offsets {
            partition.end = partition.begin;
        }
        Ok(offsets)
    }
    async fn describe_topic(
        &self,
        inner: &Arc<dyn MessageBus>,
        topic: &str,
    ) -> Result<TopicDescription, MessageBusError> {
        inner.describe_topic(topic).await
    }
    async fn publish_run(&self, _: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        RunOutcome::complete(run.len())
    }
}

#[tokio::test]
async fn an_answer_of_a_bus_can_be_changed() {
    let below = InMemoryMessageBus::new();
    below.create_topic("events", 2);
    let message = Message::new("events", Timestamp::now()).with_key("a");
    let bus = intercept::message_bus(below, Empty);
    bus.publish(&message).await.unwrap();
    let ends = bus.offsets("events").await.unwrap();
    assert!(
        ends.iter()
            .all(|partition| partition.end == partition.begin)
    );
    assert_eq!(bus.publish_run(&[message]).await.durable, 1);
    let below = bus.inner().offsets("events").await.unwrap();
    let total: u64 = below.iter().map(|p| p.end.get() - p.begin.get()).sum();
    assert_eq!(total, 1);
}
