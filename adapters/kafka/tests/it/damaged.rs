//! Records that were damaged on their way.
use crate::{
    mock::{Mock, fresh, from_start, message, next_assigned, next_result, value},
    proxy::Proxy,
};
use foldstream::ports::{ConsumerEvent, MessageBus};
use foldstream_kafka::KafkaMessageBus;
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// librdkafka reports that a record does not match its checksum, and continues after it. The next
/// records must not be delivered before that record has arrived intact.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_an_error_and_comes_whole_in_its_order() {
    let mock = Mock::new();
    let (bus, topic, group) = (mock.bus(), mock.topic(1), fresh("group"));
    for n in 0..4 {
        let sent = message(&topic, "k", &format!("value-{n}"));
        bus.publish(&sent).await.unwrap();
    }
    let proxy = Proxy::damaging(&mock.brokers, b"value-1", 2);
    let config = mock.config().with_brokers(&*proxy.address);
    let bus = KafkaMessageBus::new(config).unwrap();
    let consumer = bus.subscribe(from_start(&group, &topic, 1)).await.unwrap();
    next_assigned(&consumer).await;
    let (mut seen, mut errors) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen.len() < 4 {
        match next_result(&consumer).await {
            Ok(ConsumerEvent::Delivery(delivery)) => seen.push(value(&delivery).to_owned()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert!(error.is_transient(), "{error:?}");
                errors += 1;
            }
        }
        assert!(Instant::now() < deadline, "{seen:?}");
    }
    assert_eq!(seen, ["value-0", "value-1", "value-2", "value-3"]);
    assert!(errors > 0, "the damage was not told");
    assert_eq!(proxy.damaged.load(Ordering::SeqCst), 2);
}
