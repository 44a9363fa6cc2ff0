//! A topic, a login or a permission that has worked before is unavailable for a limited time before
//! it is refused.
use crate::mock::{
    Mock, done, fresh, from_start, message, next_assigned, next_delivery, next_result, publish,
    value,
};
use foldstream::{
    CommitId, DomainEvent, EventHeader, SourceUri, StreamId, Timestamp, Version,
    adapter::{recorded_event, to_message},
    ports::{Consumer, ConsumerEvent, MessageBus, MessageBusError, RefusedKind},
    runner::{EventContext, HandlerResult, Listener, ProcessorPolicy, Runner, Start},
};
use foldstream_kafka::KafkaMessageBus;
use foldstream_testkit::InMemoryControlStore;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);
const UNKNOWN: Answer = Answer::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
const TOPIC_DENIED: Answer = Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
const GROUP_DENIED: Answer = Answer::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
const WELL: Answer = Answer::RD_KAFKA_RESP_ERR_NO_ERROR;

/// A bus that has published to a topic, read it, asked about it and committed its offsets.
struct Used {
    mock: Mock,
    bus: KafkaMessageBus,
    topic: Arc<str>,
    group: String,
    consumer: Arc<dyn Consumer>,
    delivery: foldstream::ports::Delivery,
}

impl Used {
    async fn new(patience: Duration) -> Self {
        let mock = Mock::new();
        let config = mock
            .config()
            .with_refusal_patience(patience)
            .with_property("topic.metadata.refresh.interval.ms", "300")
            .unwrap();
        let bus = KafkaMessageBus::new(config).unwrap();
        let (topic, group) = (mock.topic(1), fresh("group"));
        publish(&bus, &topic, "k", 1).await;
        let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
        next_assigned(&consumer).await;
        let delivery = next_delivery(&consumer).await;
        consumer.commit(&[done(&delivery)]).await.unwrap();
        bus.offsets(&topic).await.unwrap();
        bus.committed(&group, &topic).await.unwrap();
        Self {
            mock,
            bus,
            topic,
            group,
            consumer,
            delivery,
        }
    }

    async fn publish(&self) -> Result<(), MessageBusError> {
        let sent = self.bus.publish(&message(&self.topic, "k", "x")).await;
        sent.map(drop)
    }

    /// Calls each operation that asks for metadata, and returns the answers.
    async fn ask(&self) -> Vec<(&'static str, Result<(), MessageBusError>)> {
        let (bus, topic, group) = (&self.bus, &self.topic, &self.group);
        let another = fresh("group");
        vec![
            ("offsets", bus.offsets(topic).await.map(drop)),
            ("committed", bus.committed(group, topic).await.map(drop)),
            ("describe_topic", bus.describe_topic(topic).await.map(drop)),
            (
                "subscribe",
                bus.subscribe(from_start(&another, topic, 1))
                    .await
                    .map(drop),
            ),
        ]
    }
}

fn is_outage<T>(answer: &Result<T, MessageBusError>) -> bool {
    answer.as_ref().is_err_and(MessageBusError::is_transient)
}

fn refusal<T>(answer: &Result<T, MessageBusError>) -> Option<RefusedKind> {
    match answer {
        Err(MessageBusError::Refused { kind, .. }) => Some(*kind),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_misses_or_denies_a_used_topic_is_an_outage_for_every_call() {
    let used = Used::new(60 * SECOND).await;
    for answer in [UNKNOWN, TOPIC_DENIED] {
        used.mock.topic_answers(&used.topic, answer);
        for (call, asked) in used.ask().await {
            assert!(is_outage(&asked), "{answer:?}: {call}: {asked:?}");
        }
        used.mock.topic_answers(&used.topic, WELL);
        for (call, asked) in used.ask().await {
            assert!(asked.is_ok(), "{call}: {asked:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_refused_where_it_has_worked_is_an_outage() {
    let used = Used::new(60 * SECOND).await;
    for answer in [UNKNOWN, TOPIC_DENIED] {
        used.mock.answers(Api::ListOffsets, answer, 8);
        let asked = used.bus.offsets(&used.topic).await;
        assert!(is_outage(&asked), "offsets: {answer:?}: {asked:?}");
        used.mock
            .order(|cluster| cluster.clear_request_errors(Api::ListOffsets));
    }
    for answer in [UNKNOWN, TOPIC_DENIED, GROUP_DENIED] {
        used.mock.answers(Api::OffsetCommit, answer, 8);
        let committed = used.consumer.commit(&[done(&used.delivery)]).await;
        assert!(is_outage(&committed), "commit: {answer:?}: {committed:?}");
        used.mock
            .order(|cluster| cluster.clear_request_errors(Api::OffsetCommit));
    }
    used.mock.answers(Api::OffsetFetch, GROUP_DENIED, 8);
    let asked = used.bus.committed(&used.group, &used.topic).await;
    assert!(is_outage(&asked), "committed: {asked:?}");
    used.mock
        .order(|cluster| cluster.clear_request_errors(Api::OffsetFetch));
    for answer in [
        TOPIC_DENIED,
        Answer::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
    ] {
        used.mock.answers(Api::Produce, answer, 1);
        let sent = used.publish().await;
        assert!(is_outage(&sent), "publish: {answer:?}: {sent:?}");
    }
    used.publish().await.unwrap();
    used.consumer.commit(&[done(&used.delivery)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_what_has_worked_is_bounded() {
    let patience = 2 * SECOND;
    let used = Used::new(patience).await;
    used.mock.topic_answers(&used.topic, UNKNOWN);
    let started = Instant::now();
    loop {
        let asked = used.bus.offsets(&used.topic).await;
        if refusal(&asked) == Some(RefusedKind::MissingTopic) {
            break;
        }
        assert!(is_outage(&asked), "{asked:?}");
        assert!(started.elapsed() < 20 * patience, "it is never refused");
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(started.elapsed() >= patience, "{:?}", started.elapsed());
    // A topic that is back has worked again, so its next absence is an outage.
    used.mock.topic_answers(&used.topic, WELL);
    used.bus.offsets(&used.topic).await.unwrap();
    used.mock.topic_answers(&used.topic, UNKNOWN);
    let asked = used.bus.offsets(&used.topic).await;
    assert!(is_outage(&asked), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_patience_what_has_worked_is_refused_at_once() {
    let used = Used::new(Duration::ZERO).await;
    used.mock.topic_answers(&used.topic, UNKNOWN);
    let asked = used.bus.offsets(&used.topic).await;
    assert_eq!(
        refusal(&asked),
        Some(RefusedKind::MissingTopic),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_never_there_is_refused_within_seconds() {
    let mock = Mock::new();
    let bus = mock.bus();
    // The brokers are well known, but this topic is not.
    publish(&bus, &mock.topic(1), "k", 1).await;
    let missing: Arc<str> = fresh("missing").into();
    let started = Instant::now();
    let sent = bus.publish(&message(&missing, "k", "x")).await;
    assert_eq!(refusal(&sent), Some(RefusedKind::MissingTopic), "{sent:?}");
    let first = started.elapsed();
    assert!(
        first >= SECOND,
        "brokers that have not heard of it yet: {first:?}"
    );
    let asked = bus.offsets(&missing).await;
    assert_eq!(
        refusal(&asked),
        Some(RefusedKind::MissingTopic),
        "{asked:?}"
    );
    assert!(started.elapsed() < 20 * SECOND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_other_brokers_show_a_moment_later_is_found_by_the_same_call() {
    let mock = Mock::new();
    let bus = mock.bus();
    let topic: Arc<str> = fresh("topic").into();
    let sending = tokio::spawn({
        let (bus, message) = (bus.clone(), message(&topic, "k", "x"));
        async move { bus.publish(&message).await.map(drop) }
    });
    // The mock does not reveal if it was asked. A topic that exists too soon proves nothing, but
    // fails nothing either.
    tokio::time::sleep(SECOND / 2).await;
    let name = topic.to_string();
    mock.order(move |cluster| cluster.create_topic(&name, 1, 1).unwrap());
    sending.await.unwrap().unwrap();
}

/// Waits for an error of a consumer, and skips deliveries and changes of the assignment.
async fn next_error(consumer: &Arc<dyn Consumer>) -> MessageBusError {
    loop {
        if let Err(error) = next_result(consumer).await {
            return error;
        }
    }
}

async fn next_value(consumer: &Arc<dyn Consumer>, expected: &str) {
    let deadline = Instant::now() + 30 * SECOND;
    loop {
        match next_result(consumer).await {
            Ok(ConsumerEvent::Delivery(delivery)) if value(&delivery) == expected => return,
            Ok(_) => {}
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
        assert!(Instant::now() < deadline, "{expected} never comes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_hears_of_a_topic_that_is_unknown_for_a_moment_as_an_outage_and_reads_on() {
    let used = Used::new(60 * SECOND).await;
    for answer in [UNKNOWN, TOPIC_DENIED] {
        used.mock.topic_answers(&used.topic, answer);
        let error = next_error(&used.consumer).await;
        assert!(error.is_transient(), "{answer:?}: {error:?}");
        used.mock.topic_answers(&used.topic, WELL);
        let deadline = Instant::now() + 30 * SECOND;
        while let Err(error) = used.bus.publish(&message(&used.topic, "k", "again")).await {
            assert!(error.is_transient(), "{error:?}");
            assert!(Instant::now() < deadline, "the topic is back for long");
        }
        next_value(&used.consumer, "again").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_topic_stays_unknown_is_refused_after_the_patience() {
    let used = Used::new(3 * SECOND).await;
    used.mock.topic_answers(&used.topic, UNKNOWN);
    let error = next_error(&used.consumer).await;
    assert!(error.is_transient(), "{error:?}");
    // The client itself reports the refusal only once.
    let deadline = Instant::now() + 60 * SECOND;
    loop {
        let error = next_error(&used.consumer).await;
        if refusal(&Err::<(), _>(error)) == Some(RefusedKind::MissingTopic) {
            break;
        }
        assert!(Instant::now() < deadline, "it is never refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_denied_is_an_outage_then_refused_and_read_on_when_it_is_granted() {
    let used = Used::new(3 * SECOND).await;
    used.mock.answers(Api::Fetch, TOPIC_DENIED, 1_000);
    let error = next_error(&used.consumer).await;
    assert!(error.is_transient(), "{error:?}");
    let deadline = Instant::now() + 60 * SECOND;
    loop {
        let error = next_error(&used.consumer).await;
        if refusal(&Err::<(), _>(error)) == Some(RefusedKind::Permission) {
            break;
        }
        assert!(Instant::now() < deadline, "it is never refused");
    }
    used.mock
        .order(|cluster| cluster.clear_request_errors(Api::Fetch));
    used.publish().await.unwrap();
    loop {
        match next_result(&used.consumer).await {
            Ok(ConsumerEvent::Delivery(delivery)) => break assert_eq!(value(&delivery), "x"),
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(Instant::now() < deadline, "the permission is back for long"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
enum Happened {
    Deposited { amount: u64 },
}

#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);
impl Count {
    async fn reaches(&self, expected: usize) {
        let deadline = Instant::now() + 30 * SECOND;
        while self.0.load(Ordering::SeqCst) < expected {
            assert!(Instant::now() < deadline, "{expected} is not reached");
            tokio::time::sleep(SECOND / 20).await;
        }
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

async fn deposit(bus: &KafkaMessageBus, topic: &Arc<str>, id: u64) {
    let stream = StreamId::new("account", &id).unwrap();
    let id = CommitId::random().event_id(0);
    let header = EventHeader::new(id, stream, Version::new(1), "Deposited", Timestamp::now());
    let event = recorded_event(header, r#"{"amount":1}"#.into());
    let source: SourceUri = "urn:test".parse().unwrap();
    let message = to_message(&event, topic, &source, Timestamp::now());
    let deadline = Instant::now() + 30 * SECOND;
    while let Err(error) = bus.publish(&message).await {
        assert!(
            error.is_transient() && Instant::now() < deadline,
            "{error:?}"
        );
    }
}

/// Runs a listener while `trouble` affects the brokers. It must handle the events that are
/// published before and after that.
async fn a_processor_outlives(trouble: impl AsyncFnOnce(&Mock, &Arc<str>, &Count)) {
    let mock = Mock::new();
    let topic = mock.topic(1);
    let config = mock
        .config()
        .with_property("topic.metadata.refresh.interval.ms", "300");
    let bus = KafkaMessageBus::new(config.unwrap()).unwrap();
    deposit(&bus, &topic, 1).await;
    let count = Count::default();
    let policy = ProcessorPolicy::listener()
        .with_start(Start::Beginning)
        .with_commit_interval(SECOND / 10);
    let control = InMemoryControlStore::new();
    let runner = Runner::builder(Arc::new(bus.clone()), control, fresh("group"))
        .with_topics([Arc::clone(&topic)])
        .listener_with(count.clone(), policy)
        .build()
        .unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move { runner.run(async { drop(stopped.await) }).await });
    count.reaches(1).await;
    trouble(&mock, &topic, &count).await;
    deposit(&bus, &topic, 3).await;
    count.reaches(3).await;
    let _ = stop.send(());
    let report = running.await.unwrap();
    let error = &report.processors[0].error;
    assert!(error.is_none(), "it halted: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_outlives_metadata_without_its_topic() {
    a_processor_outlives(async |mock, topic, count| {
        mock.topic_answers(topic, UNKNOWN);
        // The pause covers several metadata refreshes of the client.
        tokio::time::sleep(2 * SECOND).await;
        mock.topic_answers(topic, WELL);
        let config = mock.config();
        deposit(&KafkaMessageBus::new(config).unwrap(), topic, 2).await;
        count.reaches(2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_outlives_commits_that_do_not_know_its_topic() {
    for answer in [UNKNOWN, GROUP_DENIED] {
        a_processor_outlives(async move |mock, topic, count| {
            mock.answers(Api::OffsetCommit, answer, 8);
            deposit(&mock.bus(), topic, 2).await;
            count.reaches(2).await;
            // The pause covers several commit intervals.
            tokio::time::sleep(2 * SECOND).await;
            mock.order(|cluster| cluster.clear_request_errors(Api::OffsetCommit));
        })
        .await;
    }
}
