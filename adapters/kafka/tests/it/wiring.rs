//! Publishers and runners use the topic and the group prefix of a configuration that `from_env`
//! read.
use foldstream::{
    CommitId, DomainEvent, StreamHead, StreamId, Timestamp,
    ports::{Append, AppendOutcome, EventData, EventStore, MessageBus, Offset, PartitionId},
    runner::{EventContext, HandlerResult, Listener, ProcessorPolicy, Start},
};
use foldstream_kafka::KafkaConfig;
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus};

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CartEvent {
    Opened,
}

struct Seen;
impl Listener for Seen {
    const NAME: &'static str = "seen";
    type Events = CartEvent;
    async fn handle(&self, _: &CartEvent, _: &EventContext) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn publisher_and_runner_go_by_the_topic_and_the_prefix_of_the_configuration() {
    let config = KafkaConfig::default()
        .with_group_id("shop")
        .with_events_topic("orders");
    let bus = InMemoryMessageBus::new();
    bus.create_topic("orders", 1);
    let (store, control) = (InMemoryEventStore::new(), InMemoryControlStore::new());
    let head = StreamHead::empty(StreamId::new("cart", "1").unwrap());
    let events = [EventData::new("Opened", 1, "{}")];
    let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    let stored = store.append(&append).await.unwrap();
    assert!(matches!(stored, AppendOutcome::Appended(_)), "{stored:?}");

    let publisher = config.publisher(store, bus.clone(), control.clone());
    assert_eq!(publisher.publish_pending().await.unwrap().messages, 1);
    let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
    let runner = config.runner(bus.clone(), control).unwrap();
    let runner = runner.listener_with(Seen, policy).build().unwrap();
    let reports = runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(reports[0].handled, 1);
    let committed = bus.committed("shop.seen.g1", "orders").await.unwrap();
    let expected = (PartitionId::new("orders", 0), Some(Offset::new(1)));
    assert_eq!(committed, [expected]);
}

#[test]
fn a_runner_needs_a_group_prefix() {
    let (bus, control) = (InMemoryMessageBus::new(), InMemoryControlStore::new());
    let refused = KafkaConfig::default().runner(bus, control);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("with_group_id"), "{error}");
}
