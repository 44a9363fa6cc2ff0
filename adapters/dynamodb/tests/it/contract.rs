//! The contract suites, each test on a database of its own.
use crate::support::Server;
use std::sync::Arc;

mod event_store {
    use super::*;
    use foldstream::ports::EventStore;

    async fn fresh() -> Arc<dyn EventStore> {
        Arc::new(Server::start().stores().await.event_store())
    }
    foldstream_testkit::event_store_contract! {
        store = fresh,
        with = [atomic_append, unpublished],
    }

    #[tokio::test]
    async fn the_in_memory_store_knows_the_capabilities() {
        use foldstream_testkit::InMemoryEventStore;

        let store = fresh().await;
        assert_eq!(store.capabilities(), InMemoryEventStore::DYNAMODB);
    }

    mod driven_by_the_change_stream {
        use super::*;
        use foldstream_dynamodb::PublishMode;

        async fn fresh() -> Arc<dyn EventStore> {
            let server = Server::start();
            let config = server.config().with_publish_mode(PublishMode::Stream);
            Arc::new(server.stores_with(config).await.event_store())
        }
        foldstream_testkit::event_store_contract! { store = fresh, with = [atomic_append] }
    }
}

mod snapshot_store {
    use super::*;
    use foldstream::ports::SnapshotStore;

    async fn fresh() -> Arc<dyn SnapshotStore> {
        Arc::new(Server::start().stores().await.snapshot_store())
    }
    foldstream_testkit::snapshot_store_contract! { store = fresh }
}

mod control_store {
    use super::*;
    use foldstream::ports::ControlStore;

    async fn fresh() -> Arc<dyn ControlStore> {
        Arc::new(Server::start().stores().await.control_store())
    }
    foldstream_testkit::control_store_contract! { store = fresh }
}
