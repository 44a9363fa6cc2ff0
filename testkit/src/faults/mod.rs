//! Faults by seed or by script: wrappers of every port that fail, delay, lose, repeat and crash.
//!
//! [`Faults`] is a schedule. It wraps any number of ports, in-memory or real; what goes wrong with which of their calls
//! is told by [`Rule`]s, each made from a [`Fault`]. The same seed and the same calls in the same order give the same
//! faults, so a run replays.
//!
//! # A script
//! The reply to the second append is lost: it was applied, and the caller cannot know.
//! ```
//! # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, ExecuteError, Repository, Settled, id};
//! # use foldstream::ports::EventStoreError;
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
//! use foldstream_testkit::{InMemoryEventStore, faults::{Fault, Faults, Op}};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let faults = Faults::script([Fault::LoseReply.on(Op::Append).at(2)]);
//! let counters = Repository::<Counter>::new(faults.event_store(InMemoryEventStore::new()));
//! let id = CounterId::from("visits");
//!
//! counters.execute(&id, Count).await?;
//! match counters.execute(&id, Count).await {
//!     Err(ExecuteError::Store(EventStoreError::Unavailable { pending: Some(pending), .. })) => {
//!         assert!(matches!(counters.settle(&pending).await?, Settled::Applied(_)));
//!     }
//!     _ => panic!("the reply was lost"),
//! }
//! assert_eq!(counters.load(&id).await?.state().0, 2);
//! println!("{faults}"); // what was injected
//! # Ok::<(), foldstream::BoxError>(())
//! # })?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # A seed
//! [`seeds`] gives a range of seeds, or the one of the environment variable `FOLDSTREAM_SEED`. A test that panics while it
//! holds [`Faults`] prints their seed and what was injected.
//! ```
//! use foldstream::ports::*;
//! use foldstream_testkit::{InMemoryControlStore, faults::{Fault, Faults, Op, seeds}};
//! use std::time::Duration;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! for seed in seeds(0..20) {
//!     let faults = Faults::seeded(seed)
//!         .with(Fault::Delay(Duration::from_millis(1)).anywhere().one_in(3).jittered())
//!         .with(Fault::LoseReply.on(Op::WRITES).one_in(5))
//!         .with(Fault::Throttled(None).anywhere().one_in(10));
//!     let rows = faults.control_store(InMemoryControlStore::new());
//!     let row = Row::new(RowKey::new("p", "s"), "1", Revision::from_u128(7));
//!     // A put is repeated with its revision until there is an answer.
//!     while rows.put(&row, Expect::Absent).await.is_err() {}
//!     faults.disable();
//!     assert_eq!(rows.get(&row.key).await?, Some(row));
//! }
//! # Ok::<(), foldstream::BoxError>(())
//! # })?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # A crash
//! A process is everything that was made over the wrappers of one `Faults`. [`Fault::CrashBefore`] and
//! [`Fault::CrashAfter`] kill it: none of its calls returns any more, [`run`](Faults::run) drops the work, and what the
//! inner adapters hold is what was durable. [`restart`](Faults::restart) is the next process, on the same schedule.
//! ```
//! use foldstream::ports::*;
//! use foldstream_testkit::{InMemoryControlStore, faults::{Fault, Faults, Op}};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let durable = InMemoryControlStore::new();
//! let faults = Faults::script([Fault::CrashAfter.on(Op::Put).at(1)]);
//! let row = Row::new(RowKey::new("p", "s"), "1", Revision::from_u128(7));
//!
//! let rows = faults.control_store(durable.clone());
//! assert!(faults.run(rows.put(&row, Expect::Absent)).await.is_none(), "it died");
//!
//! let faults = faults.restart();
//! let rows = faults.control_store(durable);
//! assert_eq!(rows.get(&row.key).await?, Some(row), "but the row was written");
//! # Ok::<(), foldstream::BoxError>(())
//! # })?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # What the wrappers do not do
//! They sit *above* an adapter, so they cannot tear its pages: a torn read that an adapter mends belongs below it, in
//! its own tests. [`Fault::Hole`], [`Fault::TornCommit`] and [`Fault::Hide`] break the contract of the port instead, for
//! tests of how its callers defend themselves. They write no commits of their own either: for conflicts, let several
//! processes work on one store, or let another writer come between two calls by a layer of [`intercept`].
mod call;
mod consumer;
mod control_store;
mod event_store;
mod fault;
mod known_topics;
mod lagging;
mod life;
mod log;
mod message_bus;
mod pass;
mod plan;
mod rule;
mod snapshot_store;
mod start;

pub use call::{Call, Op, Ops};
pub use fault::{AnyError, Fault};
pub use log::Injected;
pub use plan::Moment;
pub use rule::Rule;

use crate::{environment::SEED, intercept};
use control_store::FaultyControlStore;
use event_store::FaultyEventStore;
use foldstream::ports::{ControlStore, EventStore, MessageBus, Row, SnapshotStore};
use life::Life;
use plan::Plan;
use snapshot_store::FaultySnapshotStore;
use std::{fmt, future::Future, ops::Range, sync::Arc};

/// Returns the seeds of a test: these, or only the one in the environment variable `FOLDSTREAM_SEED`, to replay a failure.
/// [`length::seeds`](crate::length::seeds) also has a long form of the test.
///
/// # Panics
/// If the variable cannot be read as a number.
#[track_caller]
pub fn seeds(all: Range<u64>) -> Range<u64> {
    crate::environment::number(SEED).map_or(all, crate::length::one)
}

/// A schedule of faults, and a process that it befalls. Cloning shares both.
///
/// Without rules its wrappers are transparent: they count calls and tell the [probe](Self::with_probe). See the
/// [module](self) for examples.
#[derive(Clone)]
pub struct Faults {
    plan: Arc<Plan>,
    life: Arc<Life>,
}

impl Faults {
    /// Nothing goes wrong until rules are added; whatever they leave to chance is drawn from this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::on(Plan::new(Some(seed)))
    }
    /// These rules, without a seed: what they leave to chance is the same every time.
    #[must_use]
    pub fn script(rules: impl IntoIterator<Item = Rule>) -> Self {
        let faults = Self::on(Plan::new(None));
        rules
            .into_iter()
            .fold(faults, |faults, rule| faults.with(rule))
    }
    /// Nothing goes wrong until rules are added.
    #[must_use]
    pub fn none() -> Self {
        Self::script([])
    }
    fn on(plan: Plan) -> Self {
        Self {
            plan: Arc::new(plan),
            life: Arc::new(Life::new()),
        }
    }

    /// Adds a rule. All delays of a call add up; of other faults the first rule's counts.
    #[must_use]
    pub fn with(self, rule: Rule) -> Self {
        self.plan.add(rule);
        self
    }
    /// Lets a function see every call that reaches a backend, before and after it: to assert what must hold at each
    /// step, or to write down what was done.
    #[must_use]
    pub fn with_probe(self, probe: impl Fn(Moment, &Call<'_>) + Send + Sync + 'static) -> Self {
        self.plan.set_probe(Arc::new(probe));
        self
    }
    /// Sets the row that [`Fault::ConcurrentWrite`] makes of another; its key stays and its revision is fresh, whatever the function says.
    /// Without it the row keeps its value: only its revision moves. A row that is not there yet is made, from the
    /// one that was to be put.
    #[must_use]
    pub fn with_concurrent_writer(
        self,
        write: impl Fn(&Row) -> Row + Send + Sync + 'static,
    ) -> Self {
        self.plan.set_concurrent_writer(Arc::new(write));
        self
    }

    /// Replaces all rules, from now on.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        self.plan.clear();
        rules.into_iter().for_each(|rule| self.plan.add(rule));
    }
    /// From now on nothing goes wrong, and lists show what they lagged with. A dead process stays dead.
    pub fn disable(&self) {
        self.plan.disable();
        self.life.thaw();
    }
    /// Ends [`disable`](Self::disable).
    pub fn enable(&self) {
        self.plan.enable();
    }

    /// An event store through these faults.
    #[must_use]
    pub fn event_store(&self, inner: impl EventStore) -> Arc<dyn EventStore> {
        intercept::event_store(inner, FaultyEventStore::new(self.clone()))
    }
    /// A snapshot store through these faults.
    #[must_use]
    pub fn snapshot_store(&self, inner: impl SnapshotStore) -> Arc<dyn SnapshotStore> {
        intercept::snapshot_store(inner, FaultySnapshotStore(self.clone()))
    }
    /// A control store through these faults.
    #[must_use]
    pub fn control_store(&self, inner: impl ControlStore) -> Arc<dyn ControlStore> {
        intercept::control_store(inner, FaultyControlStore(self.clone()))
    }
    /// A message bus through these faults, with the consumers that subscribe to it.
    #[must_use]
    pub fn message_bus(&self, inner: impl MessageBus) -> Arc<dyn MessageBus> {
        message_bus::wrap(self.clone(), Arc::new(inner))
    }

    /// Does a process's work until it is done, or until the process dies: then the work is dropped, and the answer is
    /// none. Tasks that the work has spawned stay, but none of their calls returns.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.life.died() => None,
            answer = work => Some(answer),
        }
    }
    /// Kills the process now, as [`Fault::CrashBefore`] does at a call.
    pub fn crash(&self) {
        self.life.crash();
    }
    /// Returns true if the process has died.
    pub fn is_crashed(&self) -> bool {
        self.life.is_dead()
    }
    /// Another process on the same schedule, for the one that died or beside one that lives. Wrap the adapters anew.
    #[must_use]
    pub fn restart(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            life: Arc::new(Life::new()),
        }
    }
    /// Lets the process stand still until [`thaw`](Self::thaw): its calls neither start nor return, while others go on.
    pub fn freeze(&self) {
        self.life.freeze(None);
    }
    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.life.thaw();
    }

    /// Returns the faults that were injected so far, in order.
    pub fn log(&self) -> Vec<Injected> {
        self.plan.log()
    }
    /// Returns the number of calls of a method so far, by all processes of the schedule.
    pub fn calls(&self, op: Op) -> u64 {
        self.plan.calls(Some(op))
    }
    /// Returns the number of calls so far, by all processes of the schedule.
    pub fn all_calls(&self) -> u64 {
        self.plan.calls(None)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// The seed and what was injected, a line each.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.plan, f)
    }
}
