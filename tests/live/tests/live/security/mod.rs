//! Logins at a real broker: by certificate, by password, and by tokens that expire.
mod broker;

use crate::kafka::{from_start, next, unique};
use broker::{Broker, PASSWORD, USER};
use foldstream::{
    BoxError, Timestamp,
    ports::{
        Consumer, ConsumerEvent, Message, MessageBus, MessageBusError, Offset, OffsetCommit,
        PartitionId, RefusedKind,
    },
};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus, Token, TokenProvider, TopicSpec};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

async fn create_topic(broker: &Broker) -> String {
    let topic = unique("topic");
    let plain = KafkaMessageBus::new(broker.at("PLAIN")).unwrap();
    plain
        .create_topic(&TopicSpec::new(&topic, 1))
        .await
        .unwrap();
    topic
}

fn message(topic: &str) -> Message {
    let message = Message::new(topic, Timestamp::now());
    message.with_key("k").with_value("v")
}

async fn delivered(consumer: &Arc<dyn Consumer>) -> OffsetCommit {
    loop {
        if let ConsumerEvent::Delivery(delivery) = next(consumer).await {
            let next = delivery.offset.next();
            return OffsetCommit::new(delivery.partition, delivery.epoch, next);
        }
    }
}

/// Publishes, reads, commits and asks, so that all kinds of clients log in.
async fn works(broker: &Broker, config: KafkaConfig) {
    let (topic, group) = (create_topic(broker).await, unique("group"));
    let bus = KafkaMessageBus::new(config).unwrap();
    bus.publish(&message(&topic)).await.unwrap();
    let consumer = bus.subscribe(from_start(&group, &topic)).await.unwrap();
    let commit = delivered(&consumer).await;
    consumer.commit(&[commit]).await.unwrap();
    consumer.leave().await.unwrap();
    let committed = bus.committed(&group, &topic).await.unwrap();
    let expected = (PartitionId::new(&*topic, 0), Some(Offset::new(1)));
    assert_eq!(committed, [expected]);
    assert_eq!(bus.offsets(&topic).await.unwrap()[0].end, Offset::new(1));
}

/// Expects that the broker, or the client itself, refuses the login. Returns the error as shown.
async fn is_refused(broker: &Broker, config: KafkaConfig) -> String {
    let topic = create_topic(broker).await;
    let bus = KafkaMessageBus::new(config).unwrap();
    let error = bus.publish(&message(&topic)).await.unwrap_err();
    let is_login = matches!(
        error,
        MessageBusError::Refused {
            kind: RefusedKind::Credentials,
            ..
        }
    );
    assert!(is_login, "{error:?}");
    format!("{error:?} {error} {}", foldstream::chain(&error))
}

fn with(config: KafkaConfig, properties: &[(&str, &str)]) -> KafkaConfig {
    let set = |config: KafkaConfig, (property, value): &(&str, &str)| {
        config.with_property(*property, *value).unwrap()
    };
    properties.iter().fold(config, set)
}

async fn certificates(broker: &Broker) {
    let (certificate, key) = (broker.file("shop.crt"), broker.file("shop.key"));
    let own = [
        ("ssl.certificate.location", &*certificate),
        ("ssl.key.location", &*key),
    ];
    let (ca, stranger) = (broker.file("ca.pem"), broker.file("stranger.pem"));
    let config = |ca| with(broker.at("TLS"), &[("ssl.ca.location", ca)]);
    works(broker, with(config(&ca), &own)).await;
    is_refused(broker, with(config(&stranger), &own)).await;
    // With TLS 1.3 the client may only see that the broker hangs up.
    let nobody = KafkaMessageBus::new(config(&ca)).unwrap();
    let topic = create_topic(broker).await;
    nobody.publish(&message(&topic)).await.unwrap_err();
}

async fn passwords(broker: &Broker) {
    works(broker, broker.with_password(PASSWORD)).await;
    let shown = is_refused(broker, broker.with_password("hunter2")).await;
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// Tokens that nobody signed and that expire after 10 s, which Apache Kafka accepts by default.
#[derive(Clone, Default)]
struct Unsigned {
    asked: Arc<AtomicU32>,
}

impl Unsigned {
    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl TokenProvider for Unsigned {
    async fn token(&self) -> Result<Token, BoxError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let now = Timestamp::now().as_micros() / 1_000_000;
        let expires = now + 10;
        let part = |json: serde_json::Value| {
            let standard = aws_smithy_types::base64::encode(json.to_string());
            let part = standard.trim_end_matches('=').replace('+', "-");
            part.replace('/', "_")
        };
        let header = part(serde_json::json!({"alg": "none"}));
        let claims = part(serde_json::json!({"sub": USER, "iat": now, "exp": expires}));
        let expires = Timestamp::from_micros(expires * 1_000_000);
        Ok(Token::new(format!("{header}.{claims}."), expires))
    }
}

async fn tokens(broker: &Broker) {
    works(
        broker,
        broker.at("BEARER").with_token_provider(Unsigned::default()),
    )
    .await;

    // One bus has only a producer, one only the client for requests, and one also a member.
    let topic = create_topic(broker).await;
    let of = [(); 3].map(|()| Unsigned::default());
    let bus = |tokens: &Unsigned| {
        let config = broker.at("BEARER").with_token_provider(tokens.clone());
        KafkaMessageBus::new(config).unwrap()
    };
    let [writer, asker, reader] = [bus(&of[0]), bus(&of[1]), bus(&of[2])];
    writer.publish(&message(&topic)).await.unwrap();
    assert_eq!(asker.offsets(&topic).await.unwrap()[0].end, Offset::new(1));
    let consumer = reader
        .subscribe(from_start(&unique("group"), &topic))
        .await
        .unwrap();
    delivered(&consumer).await;

    // Nobody uses them until each client has renewed its token twice.
    let deadline = Instant::now() + Duration::from_secs(60);
    while of[0].asked() < 3 || of[1].asked() < 3 || of[2].asked() < 6 {
        let asked = [of[0].asked(), of[1].asked(), of[2].asked()];
        assert!(Instant::now() < deadline, "tokens asked for: {asked:?}");
        sleep(Duration::from_millis(200)).await;
    }
    writer.publish(&message(&topic)).await.unwrap();
    let commit = delivered(&consumer).await;
    consumer.commit(&[commit]).await.unwrap();
    assert_eq!(asker.offsets(&topic).await.unwrap()[0].end, Offset::new(2));

    let refused = writer
        .create_topic(&TopicSpec::new(unique("topic"), 1))
        .await;
    let Err(MessageBusError::Refused { kind, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(kind, RefusedKind::Unsupported);
}

/// One broker with a listener for each kind of login.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn clients_log_in_by_certificate_by_password_and_by_tokens_that_are_renewed_while_idle() {
    let broker = Broker::start().await;
    tokio::join!(certificates(&broker), passwords(&broker), tokens(&broker));
}
