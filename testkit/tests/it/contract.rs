//! The contract suites on the in-memory adapters.

mod event_store {
    use foldstream::ports::EventStore;
    use foldstream_testkit::InMemoryEventStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn EventStore> {
        InMemoryEventStore::new()
    }
    foldstream_testkit::event_store_contract! {
        store = fresh,
        with = [atomic_append, unpublished],
    }

    mod that_looks_at_the_slot_alone {
        use super::*;
        use foldstream::ports::Capabilities;

        async fn fresh() -> Arc<dyn EventStore> {
            InMemoryEventStore::with_capabilities(
                Capabilities::new(100_000)
                    .with_streams_per_append(10)
                    .with_unpublished_list(true)
                    .with_checked_heads(false),
            )
        }
        foldstream_testkit::event_store_contract! {
            store = fresh,
            with = [atomic_append, unpublished],
        }
    }

    mod without_optional_capabilities {
        use super::*;
        use foldstream::ports::Capabilities;

        async fn fresh() -> Arc<dyn EventStore> {
            InMemoryEventStore::with_capabilities(Capabilities::new(100_000))
        }
        foldstream_testkit::event_store_contract! { store = fresh }
    }
}

mod control_store {
    use foldstream::ports::ControlStore;
    use foldstream_testkit::InMemoryControlStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn ControlStore> {
        InMemoryControlStore::new()
    }
    foldstream_testkit::control_store_contract! { store = fresh }
}

mod snapshot_store {
    use foldstream::ports::SnapshotStore;
    use foldstream_testkit::InMemorySnapshotStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn SnapshotStore> {
        InMemorySnapshotStore::new()
    }
    foldstream_testkit::snapshot_store_contract! { store = fresh }
}

mod message_bus {
    use foldstream::ports::{MessageBus, Offset, PartitionId};
    use foldstream_testkit::{InMemoryMessageBus, contract::message_bus::BusFixture};
    use std::{sync::Arc, time::Duration};

    const SESSION: Duration = Duration::from_secs(2);

    struct Fixture(Arc<InMemoryMessageBus>);

    #[async_trait::async_trait]
    impl BusFixture for Fixture {
        fn bus(&self) -> Arc<dyn MessageBus> {
            self.0.clone()
        }
        async fn create_topic(&self, name: &str, partitions: u32) {
            self.0.create_topic(name, partitions);
        }
        async fn delete_records_before(&self, partition: &PartitionId, offset: Offset) {
            self.0.delete_records_before(partition, offset).unwrap();
        }
        async fn add_partitions(&self, name: &str, partitions: u32) {
            self.0.set_partitions(name, partitions).unwrap();
        }
        async fn leave_hole(&self, partition: &PartitionId) {
            self.0.skip_offsets(partition, 2).unwrap();
        }
        async fn recreate_topic(&self, name: &str, partitions: u32) {
            self.0.delete_topic(name);
            assert!(self.0.create_topic(name, partitions));
        }
        fn session_timeout(&self) -> Duration {
            SESSION
        }
    }

    async fn fresh() -> Fixture {
        Fixture(InMemoryMessageBus::with_session_timeout(SESSION))
    }
    foldstream_testkit::message_bus_contract! {
        bus = fresh,
        with = [trim, grow, holes, recreate, static_members, delete_group],
    }
}
