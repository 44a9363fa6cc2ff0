//! Pass-through layers over every port, for tests that change one call and leave all others as they are.
//!
//! A layer is a type of the test's own. It implements the trait of a port, such as [`EventStoreLayer`], whose methods are
//! those of the port with the port below as the first argument. Every method passes the call on unless the layer
//! overrides it. [`event_store`] and its siblings put a layer over a port, and the result is a port again: it can be
//! given to a repository or runner, be shared as `Arc<dyn EventStore>`, and have another layer put over it.
//!
//! # Example
//! A store in which another writer is always faster by one commit, the first two times.
//! ```
//! # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Repository, id};
//! # id!(CounterId);
//! # #[derive(Clone, Debug, PartialEq, DomainEvent)]
//! # #[event(aggregate = "counter")]
//! # enum CounterEvent { Counted }
//! # #[derive(Clone, Default)]
//! # struct Counter(u64);
//! # impl Aggregate for Counter {
//! #     type Id = CounterId;
//! #     type Event = CounterEvent;
//! #     fn evolve(&mut self, _: &CounterEvent) { self.0 += 1; }
//! # }
//! # struct Count;
//! # impl Decide<Count> for Counter {
//! #     type Error = std::convert::Infallible;
//! #     fn decide(&self, _: &Count, _: &Context) -> Decision<Self, Self::Error> { Ok(vec![CounterEvent::Counted]) }
//! # }
//! use foldstream::{CommitId, ports::{Append, AppendOutcome, EventStore, EventStoreError}};
//! use foldstream_testkit::{InMemoryEventStore, intercept::{self, EventStoreLayer, async_trait}};
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
//!
//! #[derive(Default)]
//! struct SlowerThanAnother {
//!     appends: AtomicU32,
//! }
//!
//! #[async_trait]
//! impl EventStoreLayer for SlowerThanAnother {
//!     async fn append(
//!         &self,
//!         inner: &Arc<dyn EventStore>,
//!         append: &Append,
//!     ) -> Result<AppendOutcome, EventStoreError> {
//!         if self.appends.fetch_add(1, Ordering::SeqCst) < 2 {
//!             let mut theirs = append.clone();
//!             theirs.commit_id = CommitId::random();
//!             let _ = inner.append(&theirs).await?;
//!         }
//!         inner.append(append).await
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let store = intercept::event_store(InMemoryEventStore::new(), SlowerThanAnother::default());
//! let counters = Repository::<Counter>::new(store.clone());
//! let counted = counters.execute(&"visits".into(), Count).await?;
//! assert_eq!(counted.state().0, 3, "decided again on what the other writer stored");
//! assert_eq!(store.layer().appends.load(Ordering::SeqCst), 3);
//! # Ok::<(), foldstream::BoxError>(()) })?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # Which tool for which test?
//! [`Faults`](crate::faults::Faults) make calls fail, hang, arrive late or crash the process, by script or by seed, and
//! count calls: take them for everything that a network or a backend does. A mock answers without a port below, see the
//! feature `mocks`. A layer is for the rest: to change what is written or found, to let something happen between two
//! calls, to hold a call until the test lets it go.
//!
//! # Calls that come by another method
//! A layer sees the calls that the port's user makes, and a port has more than one method for some things. The publisher
//! sends [runs](MessageBusLayer::publish_run) and not single messages. A [`Transaction`](foldstream::Transaction) of
//! several streams uses [`append_all`](EventStoreLayer::append_all). A method that passes a call on does not come by the
//! layer's other methods.
//!
//! # A port of its own
//! An intercepted event store has an [identity](foldstream::ports::EventStore::identity) of its own, as every wrapper
//! has: a transaction over it takes no repository of the store below.
mod event_store;
mod message_bus;
mod stores;

pub use async_trait::async_trait;
pub use event_store::{Commits, EventStoreLayer, Read, Scan};
pub use message_bus::{ConsumerLayer, MessageBusLayer};
pub use stores::{ControlStoreLayer, SnapshotStoreLayer};

use foldstream::ports::{Consumer, ControlStore, EventStore, MessageBus, SnapshotStore};
use std::{fmt, sync::Arc};

/// A port with a layer over it. `P` is the trait object of the port, such as `dyn EventStore`.
///
/// Made by [`event_store`], [`snapshot_store`], [`control_store`], [`message_bus`] and [`consumer`]; see the
/// [module](self) for an example.
pub struct Intercepted<P: ?Sized, L> {
    inner: Arc<P>,
    layer: L,
}

impl<P: ?Sized, L> Intercepted<P, L> {
    /// Returns the port below the layer.
    pub const fn inner(&self) -> &Arc<P> {
        &self.inner
    }
    /// Returns the layer, for instance to ask what it has counted.
    pub const fn layer(&self) -> &L {
        &self.layer
    }
}

impl<P: fmt::Debug + ?Sized, L> fmt::Debug for Intercepted<P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intercepted")
            .field("inner", &self.inner)
            .field("layer", &std::any::type_name::<L>())
            .finish()
    }
}

/// Puts a layer over an event store.
pub fn event_store<L: EventStoreLayer>(
    inner: impl EventStore,
    layer: L,
) -> Arc<Intercepted<dyn EventStore, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}

/// Puts a layer over a snapshot store.
pub fn snapshot_store<L: SnapshotStoreLayer>(
    inner: impl SnapshotStore,
    layer: L,
) -> Arc<Intercepted<dyn SnapshotStore, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}

/// Puts a layer over a control store.
pub fn control_store<L: ControlStoreLayer>(
    inner: impl ControlStore,
    layer: L,
) -> Arc<Intercepted<dyn ControlStore, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}

/// Puts a layer over a message bus. Its consumers are those of the bus below, unless the layer overrides
/// [`subscribe`](MessageBusLayer::subscribe).
pub fn message_bus<L: MessageBusLayer>(
    inner: impl MessageBus,
    layer: L,
) -> Arc<Intercepted<dyn MessageBus, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}

/// Puts a layer over a consumer: in [`MessageBusLayer::subscribe`].
pub fn consumer<L: ConsumerLayer>(
    inner: impl Consumer,
    layer: L,
) -> Arc<Intercepted<dyn Consumer, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}
