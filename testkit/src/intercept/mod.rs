//! Pass-through layers over every port, for tests that change some calls and pass on all others.
//!
//! A layer is a type that the test defines. It implements the layer trait of a port, such as
//! [`EventStoreLayer`]. The trait has the methods of the port, with the port below the layer as an
//! additional first argument. Every method passes the call on unless the layer overrides it.
//!
//! [`event_store`] and its siblings put a layer over a port. The result implements the port again:
//! it can be passed to a repository or runner, be shared as `Arc<dyn EventStore>`, and get another
//! layer.
//!
//! # Example
//! A store in which another writer appends just before the first two appends of the caller.
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
//! #     fn decide(&self, _: &Count, _: &Context) -> Decision<Self, Self::Error> {
//! #         Ok(vec![CounterEvent::Counted])
//! #     }
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
//!             let mut other = append.clone();
//!             other.commit_id = CommitId::random();
//!             let _ = inner.append(&other).await?;
//!         }
//!         inner.append(append).await
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let store = intercept::event_store(InMemoryEventStore::new(), SlowerThanAnother::default());
//! let counters = Repository::<Counter>::new(store.clone());
//! let counted = counters.execute(&"visits".into(), Count).await?;
//! assert_eq!(counted.state().0, 3, "decided again after the other writer's commits");
//! assert_eq!(store.layer().appends.load(Ordering::SeqCst), 3);
//! # Ok::<(), foldstream::BoxError>(()) })?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # Which tool for which test?
//! - [`Faults`](crate::faults::Faults) make calls fail, hang, arrive late or crash the process, by
//!   script or by seed, and count calls. Use them for everything that a network or a backend does.
//! - A mock answers without a port below it, see the feature `mocks`.
//! - A layer is for the rest: to change the data that is written or read, to let something happen
//!   between two calls, or to hold a call until the test releases it.
//!
//! # Operations with more than one method
//! A layer sees the calls that the user of the port makes, and a port has more than one method for
//! some operations. The publisher sends [runs](MessageBusLayer::publish_run) and not single
//! messages. A [`Transaction`](foldstream::Transaction) of several streams uses
//! [`append_all`](EventStoreLayer::append_all). A method that passes a call on calls the port
//! below, and none of the layer's other methods.
//!
//! # Identity of an intercepted store
//! An intercepted event store has an [identity](foldstream::ports::EventStore::identity) of its
//! own, as every wrapper has. So a transaction over it does not accept repositories of the store
//! below.
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
/// Created by [`event_store`], [`snapshot_store`], [`control_store`], [`message_bus`] and
/// [`consumer`]. See the [module](self) for an example.
pub struct Intercepted<P: ?Sized, L> {
    inner: Arc<P>,
    layer: L,
}

impl<P: ?Sized, L> Intercepted<P, L> {
    /// Returns the port below the layer.
    pub const fn inner(&self) -> &Arc<P> {
        &self.inner
    }
    /// Returns the layer, for instance to read what it has counted.
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

/// Puts a layer over a message bus.
///
/// The consumers are those of the bus below, unless the layer overrides
/// [`subscribe`](MessageBusLayer::subscribe).
pub fn message_bus<L: MessageBusLayer>(
    inner: impl MessageBus,
    layer: L,
) -> Arc<Intercepted<dyn MessageBus, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}

/// Puts a layer over a consumer, usually in [`MessageBusLayer::subscribe`].
pub fn consumer<L: ConsumerLayer>(
    inner: impl Consumer,
    layer: L,
) -> Arc<Intercepted<dyn Consumer, L>> {
    let inner = Arc::new(inner);
    Arc::new(Intercepted { inner, layer })
}
