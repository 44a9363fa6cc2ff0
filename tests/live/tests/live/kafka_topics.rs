//! The records of topics over time, and the growth and recreation of topics, on Apache Kafka.
use crate::kafka::{abort_a_transaction, config, delete_topic, unique};
use foldstream::{
    CommitId, DomainEvent, EventHeader, SourceUri, StreamId, Timestamp, Version,
    adapter::{recorded_event, to_message},
    ports::{MessageBus, PartitionId},
    runner::{EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, RunnerError, Start},
};
use foldstream_kafka::{KafkaMessageBus, TopicOutcome, TopicSpec};
use foldstream_testkit::InMemoryControlStore;
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: u64 = 24 * 3600 * 1_000;

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
enum Happened {
    Deposited { amount: u64 },
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);
impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}
impl Listener for Count {
    const NAME: &'static str = "count";
    type Events = Happened;
    async fn handle(&self, _: &Happened, _: &EventContext) -> HandlerResult {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

async fn until(what: &str, patience: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} never comes");
        tokio::time::sleep(SECOND / 10).await;
    }
}

async fn bus() -> KafkaMessageBus {
    KafkaMessageBus::new(config().await).unwrap()
}

fn days_ago(days: u64) -> Timestamp {
    let micros = i64::try_from(days * DAY * 1_000).unwrap();
    Timestamp::from_micros(Timestamp::now().as_micros() - micros)
}

fn days_ahead(days: u64) -> Timestamp {
    let micros = i64::try_from(days * DAY * 1_000).unwrap();
    Timestamp::from_micros(Timestamp::now().as_micros() + micros)
}

/// Publishes an event now that happened at an earlier time.
async fn deposit(bus: &KafkaMessageBus, topic: &Arc<str>, id: u64, happened_at: Timestamp) {
    let stream = StreamId::new("account", &id).unwrap();
    let id = CommitId::random().event_id(0);
    let header = EventHeader::new(id, stream, Version::new(1), "Deposited", happened_at);
    let event = recorded_event(header, r#"{"amount":1}"#.into());
    let message = to_message(&event, topic, &SourceUri::default(), Timestamp::now());
    let deadline = Instant::now() + 60 * SECOND;
    while let Err(error) = bus.publish(&message).await {
        assert!(error.is_transient(), "{error:?}");
        assert!(Instant::now() < deadline, "{error:?}");
    }
}

fn runner(bus: &KafkaMessageBus, topic: &Arc<str>, group: &str, count: &Count) -> Runner {
    let policy = ProcessorPolicy::listener()
        .with_start(Start::Beginning)
        .with_commit_interval(SECOND / 10);
    Runner::builder(Arc::new(bus.clone()), InMemoryControlStore::new(), group)
        .with_topics([Arc::clone(topic)])
        .listener_with(count.clone(), policy)
        .build()
        .unwrap()
}

/// A broker that refuses old and future timestamps accepts records that a publisher sends late, or
/// after its clock was ahead.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_record_carries_the_time_of_sending() {
    let bus = bus().await;
    let topic: Arc<str> = unique("timely").into();
    let spec = TopicSpec::new(&*topic, 1)
        .with_config("message.timestamp.before.max.ms", "3600000")
        .with_config("message.timestamp.after.max.ms", "3600000");
    bus.create_topic(&spec).await.unwrap();
    for (id, happened_at) in [days_ago(8), Timestamp::now(), days_ahead(8)]
        .into_iter()
        .enumerate()
    {
        deposit(&bus, &topic, id as u64, happened_at).await;
    }
    let offsets = bus.offsets(&topic).await.unwrap();
    assert_eq!(offsets[0].end.get(), 3);
}

/// Retention counts from the time of sending. A second topic, whose records carry the time of the
/// event, shows that retention has run.
///
/// A broker in a container of the testkit checks retention every two seconds, and any other broker
/// every five minutes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn what_is_published_late_stays_as_long_as_the_topic_keeps_records() {
    let bus = bus().await;
    let (late, control): (Arc<str>, Arc<str>) = (unique("late").into(), unique("control").into());
    for topic in [&late, &control] {
        let spec = TopicSpec::new(&**topic, 1).with_config("retention.ms", (7 * DAY).to_string());
        bus.create_topic(&spec).await.unwrap();
    }
    for id in 0..3 {
        deposit(&bus, &late, id, days_ago(8)).await;
    }
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bus.config().brokers());
    let producer: FutureProducer = client.create().unwrap();
    let record = FutureRecord::<str, str>::to(&control)
        .payload("old")
        .timestamp(days_ago(8).as_micros() / 1_000);
    let sent = producer.send(record, 30 * SECOND).await;
    sent.map_err(|(error, _)| error).unwrap();
    until("the end of the control record", 400 * SECOND, async || {
        bus.offsets(&control).await.unwrap()[0].begin.get() == 1
    })
    .await;
    // A pass of retention handles one topic after the other.
    for _ in 0..20 {
        let range = &bus.offsets(&late).await.unwrap()[0];
        assert_eq!((range.begin.get(), range.end.get()), (0, 3));
        tokio::time::sleep(SECOND / 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_topic_that_is_created_again_under_a_running_processor_halts_it() {
    let bus = bus().await;
    let topic: Arc<str> = unique("again").into();
    let spec = TopicSpec::new(&*topic, 1);
    bus.create_topic(&spec).await.unwrap();
    for id in 0..5 {
        deposit(&bus, &topic, id, Timestamp::now()).await;
    }
    let (count, group) = (Count::default(), unique("group"));
    let runner = runner(&bus, &topic, &group, &count);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move { runner.run(async { drop(stopped.await) }).await });
    let committed = format!("{group}.count.g1");
    until("the commit of the first five", 60 * SECOND, async || {
        bus.committed(&committed, &topic).await.unwrap()[0]
            .1
            .is_some_and(|next| next.get() == 5)
    })
    .await;

    delete_topic(bus.config().brokers(), &topic).await;
    let other = self::bus().await;
    until("the new topic", 60 * SECOND, async || {
        other.create_topic(&spec).await.unwrap() == TopicOutcome::Created
    })
    .await;
    // The new topic has more records than the old one, so the old position lies within it.
    for id in 100..120 {
        deposit(&other, &topic, id, Timestamp::now()).await;
    }
    until("the halt", 60 * SECOND, async || running.is_finished()).await;
    drop(stop);
    let report = running.await.unwrap();
    let error = report.processors[0].error.as_deref();
    assert!(
        matches!(error, Some(RunnerError::PositionLost { .. })),
        "{error:?}"
    );
    assert_eq!(count.get(), 5, "nothing of the new topic was handled");
    // A later start does not continue at the old position either.
    let committed = other.committed(&committed, &topic).await.unwrap();
    assert_eq!(committed[0].1, None);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_transaction_marker_at_the_end_holds_up_no_run_until_caught_up() {
    let bus = bus().await;
    let topic: Arc<str> = unique("marked").into();
    bus.create_topic(&TopicSpec::new(&*topic, 1)).await.unwrap();
    deposit(&bus, &topic, 1, Timestamp::now()).await;
    let partition = PartitionId::new(Arc::clone(&topic), 0);
    abort_a_transaction(bus.config().brokers(), &partition).await;
    let count = Count::default();
    let runner = runner(&bus, &topic, &unique("group"), &count);
    let ended = tokio::time::timeout(60 * SECOND, runner.run_until_caught_up());
    ended.await.unwrap().into_result().unwrap();
    assert_eq!(count.get(), 1);
}
