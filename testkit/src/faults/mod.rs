//! Fault injection for every port, by script or by seed.
//!
//! [`Faults`] is a schedule. It wraps any number of ports, in-memory or real. Its [`Rule`]s say
//! which calls fail, are delayed, lost or repeated, or crash the process. Each rule is made from a
//! [`Fault`]. The same seed and the same calls in the same order give the same faults, so a run can
//! be replayed.
//!
//! # A script
//! The reply to the second append is lost. The append was applied, but the caller cannot know that.
//! ```
//! # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, ExecuteError};
//! # use foldstream::{Repository, Settled, id};
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
//! #     fn decide(&self, _: &Count, _: &Context) -> Decision<Self, Self::Error> {
//! #         Ok(vec![CounterEvent::Counted])
//! #     }
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
//! println!("{faults}"); // prints the injected faults
//! # Ok::<(), foldstream::BoxError>(())
//! # })?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # A seed
//! [`seeds`] returns a range of seeds, or only the seed in the environment variable
//! `FOLDSTREAM_SEED`. A test that panics while it holds [`Faults`] prints their seed and the
//! injected faults.
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
//!     // The caller repeats the put with the same revision until it gets an answer.
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
//! A process is everything that uses the wrappers of one `Faults`. [`Fault::CrashBefore`] and
//! [`Fault::CrashAfter`] kill the process: none of its calls returns anymore, and
//! [`run`](Faults::run) drops its work. The state of the inner adapters survives.
//! [`restart`](Faults::restart) returns the next process, which is on the same schedule.
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
//! assert!(faults.run(rows.put(&row, Expect::Absent)).await.is_none(), "the process died");
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
//! The wrappers sit *above* an adapter, so they cannot tear the pages that the adapter reads. Torn
//! pages that an adapter repairs belong in the adapter's own tests. [`Fault::Hole`],
//! [`Fault::TornCommit`] and [`Fault::Hide`] break the contract of the port instead. They test how
//! callers defend themselves against a broken adapter.
//!
//! The wrappers write no commits of their own. For conflicts, let several processes work on one
//! store, or let a layer of [`intercept`] append as another writer between two calls.
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

/// Returns the seeds that a test runs: all of them, or only one to replay a failure.
///
/// The environment variable `FOLDSTREAM_SEED` names the seed to replay.
/// [`length::seeds`](crate::length::seeds) also distinguishes short and long runs of a test.
///
/// # Panics
/// If the variable is set and is not a number.
#[track_caller]
pub fn seeds(all: Range<u64>) -> Range<u64> {
    crate::environment::number(SEED).map_or(all, crate::length::one)
}

/// A schedule of faults, and one process whose calls they affect.
///
/// Clones share the schedule and the process. Without rules the wrappers only count calls and
/// inform the [probe](Self::with_probe). See the [module](self) for examples.
#[derive(Clone)]
pub struct Faults {
    plan: Arc<Plan>,
    life: Arc<Life>,
}

impl Faults {
    /// Creates a schedule without rules that draws random choices from this seed.
    ///
    /// Nothing goes wrong until [`with`](Self::with) or [`set`](Self::set) adds rules.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::on(Plan::new(Some(seed)))
    }
    /// Creates a schedule with these rules and a fixed seed.
    ///
    /// Rules that leave something to chance make the same choices in every run.
    #[must_use]
    pub fn script(rules: impl IntoIterator<Item = Rule>) -> Self {
        let faults = Self::on(Plan::new(None));
        rules
            .into_iter()
            .fold(faults, |faults, rule| faults.with(rule))
    }
    /// Creates a schedule without rules.
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

    /// Adds a rule to the schedule.
    ///
    /// If several rules apply to a call, their delays add up. Of all other faults, the call gets
    /// that of the rule that was added first.
    #[must_use]
    pub fn with(self, rule: Rule) -> Self {
        self.plan.add(rule);
        self
    }
    /// Calls a function before and after every call that reaches a backend.
    ///
    /// The function may assert invariants at each step or record the calls. It replaces an earlier
    /// probe.
    #[must_use]
    pub fn with_probe(self, probe: impl Fn(Moment, &Call<'_>) + Send + Sync + 'static) -> Self {
        self.plan.set_probe(Arc::new(probe));
        self
    }
    /// Sets the row that [`Fault::ConcurrentWrite`] writes over the stored one.
    ///
    /// The function gets the stored row, or the row of the call if nothing is stored. The row that
    /// it returns is written with the same key and a fresh revision, whatever the function sets
    /// there. Without this function the concurrent writer keeps the value and changes only the
    /// revision.
    #[must_use]
    pub fn with_concurrent_writer(
        self,
        write: impl Fn(&Row) -> Row + Send + Sync + 'static,
    ) -> Self {
        self.plan.set_concurrent_writer(Arc::new(write));
        self
    }

    /// Replaces all rules for the calls from now on.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        self.plan.clear();
        rules.into_iter().for_each(|rule| self.plan.add(rule));
    }
    /// Stops injecting faults until [`enable`](Self::enable) is called.
    ///
    /// Lists show everything that lagged, and a frozen process continues. A dead process stays
    /// dead.
    pub fn disable(&self) {
        self.plan.disable();
        self.life.thaw();
    }
    /// Injects faults again after [`disable`](Self::disable).
    pub fn enable(&self) {
        self.plan.enable();
    }

    /// Wraps an event store in these faults.
    #[must_use]
    pub fn event_store(&self, inner: impl EventStore) -> Arc<dyn EventStore> {
        intercept::event_store(inner, FaultyEventStore::new(self.clone()))
    }
    /// Wraps a snapshot store in these faults.
    #[must_use]
    pub fn snapshot_store(&self, inner: impl SnapshotStore) -> Arc<dyn SnapshotStore> {
        intercept::snapshot_store(inner, FaultySnapshotStore(self.clone()))
    }
    /// Wraps a control store in these faults.
    #[must_use]
    pub fn control_store(&self, inner: impl ControlStore) -> Arc<dyn ControlStore> {
        intercept::control_store(inner, FaultyControlStore(self.clone()))
    }
    /// Wraps a message bus, and the consumers that subscribe to it, in these faults.
    #[must_use]
    pub fn message_bus(&self, inner: impl MessageBus) -> Arc<dyn MessageBus> {
        message_bus::wrap(self.clone(), Arc::new(inner))
    }

    /// Runs a process's work until the work is done or the process dies.
    ///
    /// Returns `None` if the process dies, after dropping the work. Tasks that the work has spawned
    /// keep running, but none of their calls through the wrappers returns.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.life.died() => None,
            answer = work => Some(answer),
        }
    }
    /// Kills the process at once, as [`Fault::CrashBefore`] does when a call is made.
    pub fn crash(&self) {
        self.life.crash();
    }
    /// Returns true if the process has died.
    pub fn is_crashed(&self) -> bool {
        self.life.is_dead()
    }
    /// Returns another process on the same schedule.
    ///
    /// The new process replaces a dead one or runs next to a living one. Wrap the adapters again to
    /// use it.
    #[must_use]
    pub fn restart(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            life: Arc::new(Life::new()),
        }
    }
    /// Freezes the process until [`thaw`](Self::thaw) is called.
    ///
    /// Calls of a frozen process neither start nor return. Other processes continue.
    pub fn freeze(&self) {
        self.life.freeze(None);
    }
    /// Lets the process continue after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.life.thaw();
    }

    /// Returns the faults that were injected so far, in the order of the calls.
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

/// Writes the seed and one line per injected fault.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.plan, f)
    }
}
