//! Mocks of every port, made with `mockall`.
//!
//! A mock gives the answers that the test sets, and fails the test on any other call. Prefer an
//! in-memory adapter for tests about *state*, because it implements the port's contract. Use a mock
//! for tests about *a call*: that a call was made, that none was made, or how the caller handles an
//! answer that an in-memory adapter never gives. For calls that fail, are lost or come late, use
//! [`faults`](crate::faults) over an adapter that implements the contract.
//!
//! # Example
//! A refused command only reads from the store, and a throttled append is not repeated without the
//! caller's knowledge. Both are about calls, which the state of an in-memory store does not show.
//! ```
//! # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, ExecuteError};
//! # use foldstream::{Repository, id};
//! # use foldstream::ports::EventStoreError;
//! # use foldstream_testkit::mocks::MockEventStore;
//! # use std::sync::Arc;
//! # id!(DoorId);
//! # #[derive(Clone, Debug, PartialEq, DomainEvent)]
//! # #[event(aggregate = "door")]
//! # enum DoorEvent { Opened }
//! # #[derive(Clone, Default)]
//! # struct Door;
//! # impl Aggregate for Door {
//! #     type Id = DoorId;
//! #     type Event = DoorEvent;
//! #     fn evolve(&mut self, _: &DoorEvent) {}
//! # }
//! # #[derive(Clone, Copy)]
//! # struct Open { has_key: bool }
//! # #[derive(Debug, thiserror::Error)]
//! # #[error("locked")]
//! # struct Locked;
//! # impl Decide<Open> for Door {
//! #     type Error = Locked;
//! #     fn decide(&self, command: &Open, _: &Context) -> Decision<Self, Locked> {
//! #         if command.has_key { Ok(vec![DoorEvent::Opened]) } else { Err(Locked) }
//! #     }
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use futures::StreamExt;
//! let mut store = MockEventStore::new();
//! store.expect_read().returning(|_, _, _| futures::stream::empty().boxed());
//! store.expect_append().times(1).returning(|_| {
//!     Err(EventStoreError::Throttled { retry_after: None, source: "slow down".into() })
//! });
//! let doors = Repository::<Door>::new(Arc::new(store));
//!
//! let refused = doors.execute(&"front".into(), Open { has_key: false }).await;
//! assert!(matches!(refused, Err(ExecuteError::Rejected(Locked))));
//! let throttled = doors.execute(&"front".into(), Open { has_key: true }).await;
//! assert!(matches!(throttled, Err(ExecuteError::Store(e)) if e.is_transient()));
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```
// For the code that the macro generates.
#![allow(
    missing_docs,
    clippy::pedantic,
    clippy::expect_used,
    clippy::unwrap_used
)]
use async_trait::async_trait;
use foldstream::{StreamHead, StreamId, ports::*};
use mockall::mock;
use std::{num::NonZeroU32, sync::Arc};

mock! {
    /// A mock of [`EventStore`].
    #[derive(Debug)]
    pub EventStore {}
    #[async_trait]
    impl EventStore for EventStore {
        fn capabilities(&self) -> Capabilities;
        // `incarnation` keeps its default, so that a mock needs no expectation for it.
        async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError>;
        async fn append_all(&self, all: &AppendAll) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;
        fn read<'a>(&'a self, stream: &StreamId, from: ReadFrom, limit: Option<NonZeroU32>) -> BoxStream<'a, Result<Commit, EventStoreError>>;
        async fn streams(&self, aggregate: &str, after: Option<ScanCursor>) -> Result<StreamPage, EventStoreError>;
        async fn scan(&self, segment: Segment, after: Option<ScanCursor>, what: ScanScope, max_items: NonZeroU32) -> Result<ScanPage, EventStoreError>;
        async fn unpublished(&self, segment: Segment, after: Option<ScanCursor>, limit: NonZeroU32) -> Result<UnpublishedPage, EventStoreError>;
        async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError>;
    }
}

mock! {
    /// A mock of [`SnapshotStore`].
    #[derive(Debug)]
    pub SnapshotStore {}
    #[async_trait]
    impl SnapshotStore for SnapshotStore {
        async fn load(&self, stream: &StreamId) -> Result<Option<StoredSnapshot>, SnapshotStoreError>;
        async fn save(&self, snapshot: &StoredSnapshot) -> Result<SaveOutcome, SnapshotStoreError>;
        async fn delete(&self, stream: &StreamId) -> Result<(), SnapshotStoreError>;
    }
}

mock! {
    /// A mock of [`ControlStore`].
    #[derive(Debug)]
    pub ControlStore {}
    #[async_trait]
    impl ControlStore for ControlStore {
        async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError>;
        async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError>;
        async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError>;
        async fn delete(&self, key: &RowKey, expect: DeleteExpect) -> Result<DeleteOutcome, ControlStoreError>;
        async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError>;
    }
}

mock! {
    /// A mock of [`MessageBus`].
    #[derive(Debug)]
    pub MessageBus {}
    #[async_trait]
    impl MessageBus for MessageBus {
        async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError>;
        async fn publish_run(&self, run: &[Message]) -> RunOutcome;
        async fn subscribe(&self, subscription: Subscription) -> Result<Arc<dyn Consumer>, MessageBusError>;
        async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError>;
        async fn committed(&self, group: &str, topic: &str) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError>;
        async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError>;
        async fn delete_group(&self, group: &str) -> Result<(), MessageBusError>;
    }
}

mock! {
    /// A mock of [`Consumer`].
    #[derive(Debug)]
    pub Consumer {}
    #[async_trait]
    impl Consumer for Consumer {
        async fn next(&self) -> Result<ConsumerEvent, MessageBusError>;
        async fn commit(&self, commits: &[OffsetCommit]) -> Result<(), MessageBusError>;
        async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError>;
        async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError>;
        async fn leave(&self) -> Result<(), MessageBusError>;
    }
}
