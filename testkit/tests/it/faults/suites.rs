//! The contract suites through faults that a backend may have and a port must tolerate, so that
//! callers see the same contract.
use foldstream_testkit::faults::{Fault, Faults, Op, seeds};
use std::time::Duration;

/// Creates delays, late lists and empty pages, with another seed for every port.
fn benign() -> Faults {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let seed = NEXT.fetch_add(1, Ordering::SeqCst);
    let seed = seeds(seed..seed + 1).start;
    let brief = Duration::from_micros(300);
    Faults::seeded(seed)
        .with(Fault::Delay(brief).anywhere().one_in(3).jittered())
        .with(Fault::EmptyPage.on(Op::LISTS).one_in(3))
        .with(
            Fault::Lag(3)
                .on([Op::Append, Op::AppendAll, Op::ClearUnpublished])
                .one_in(3),
        )
        .with(
            Fault::HoldBack(brief * 20)
                .on(Op::Next)
                .one_in(4)
                .jittered(),
        )
}

mod event_store {
    use foldstream::ports::EventStore;
    use foldstream_testkit::InMemoryEventStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn EventStore> {
        super::benign().event_store(InMemoryEventStore::new())
    }
    foldstream_testkit::event_store_contract! {
        store = fresh,
        with = [atomic_append, unpublished],
    }

    mod without_optional_capabilities {
        use super::*;
        use foldstream::ports::Capabilities;

        async fn fresh() -> Arc<dyn EventStore> {
            let plain = InMemoryEventStore::with_capabilities(Capabilities::new(100_000));
            super::super::benign().event_store(plain)
        }
        foldstream_testkit::event_store_contract! { store = fresh }
    }
}

mod control_store {
    use foldstream::ports::ControlStore;
    use foldstream_testkit::InMemoryControlStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn ControlStore> {
        super::benign().control_store(InMemoryControlStore::new())
    }
    foldstream_testkit::control_store_contract! { store = fresh }
}

mod snapshot_store {
    use foldstream::ports::SnapshotStore;
    use foldstream_testkit::InMemorySnapshotStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn SnapshotStore> {
        super::benign().snapshot_store(InMemorySnapshotStore::new())
    }
    foldstream_testkit::snapshot_store_contract! { store = fresh }
}

mod message_bus {
    use foldstream::ports::{MessageBus, Offset, PartitionId};
    use foldstream_testkit::{InMemoryMessageBus, contract::message_bus::BusFixture};
    use std::{sync::Arc, time::Duration};

    const SESSION: Duration = Duration::from_secs(2);

    struct Fixture {
        inner: Arc<InMemoryMessageBus>,
        faulty: Arc<dyn MessageBus>,
    }

    #[async_trait::async_trait]
    impl BusFixture for Fixture {
        fn bus(&self) -> Arc<dyn MessageBus> {
            self.faulty.clone()
        }
        async fn create_topic(&self, name: &str, partitions: u32) {
            self.inner.create_topic(name, partitions);
        }
        async fn delete_records_before(&self, partition: &PartitionId, offset: Offset) {
            self.inner.delete_records_before(partition, offset).unwrap();
        }
        async fn add_partitions(&self, name: &str, partitions: u32) {
            self.inner.set_partitions(name, partitions).unwrap();
        }
        async fn leave_hole(&self, partition: &PartitionId) {
            self.inner.skip_offsets(partition, 2).unwrap();
        }
        async fn recreate_topic(&self, name: &str, partitions: u32) {
            self.inner.delete_topic(name);
            assert!(self.inner.create_topic(name, partitions));
        }
        fn session_timeout(&self) -> Duration {
            SESSION
        }
    }

    async fn fresh() -> Fixture {
        let inner = InMemoryMessageBus::with_session_timeout(SESSION);
        let faulty = super::benign().message_bus(inner.clone());
        Fixture { inner, faulty }
    }
    foldstream_testkit::message_bus_contract! {
        bus = fresh,
        with = [trim, grow, holes, recreate, static_members, delete_group],
    }
}
