//! The contract of `MessageBus`, rule by rule. The mock cluster has no administration, and so
//! neither `trim` nor `delete_group`.
use crate::mock::Mock;
use foldstream::ports::MessageBus;
use foldstream_kafka::KafkaMessageBus;
use foldstream_testkit::contract::message_bus::BusFixture;
use std::sync::Arc;

struct Fixture {
    mock: Mock,
    bus: Arc<KafkaMessageBus>,
}

#[async_trait::async_trait]
impl BusFixture for Fixture {
    fn bus(&self) -> Arc<dyn MessageBus> {
        Arc::clone(&self.bus) as _
    }
    async fn create_topic(&self, name: &str, partitions: u32) {
        let (name, partitions) = (name.to_owned(), i32::try_from(partitions).unwrap());
        self.mock
            .order(move |cluster| cluster.create_topic(&name, partitions, 1).unwrap());
    }
}

async fn fresh() -> Fixture {
    let mock = Mock::new();
    let bus = Arc::new(mock.bus());
    Fixture { mock, bus }
}

foldstream_testkit::message_bus_contract! { bus = fresh }
