//! The checks of a projector ([`ProjectorLaws`]), and the histories that they run on.
mod hold;

use super::{
    command::erase,
    deliveries::{Write, is_subscribed},
    ids,
    moves::Noise,
    seed::Plan,
    story::{Found, short_name},
};
use foldstream::{Decide, DomainEvent, Upcasters, runner::Projector};
use futures::future::LocalBoxFuture;
use proptest::{
    prelude::*,
    strategy::Union,
    test_runner::{TestError, TestRunner},
};
use std::{
    any::TypeId,
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt::{self, Debug, Display},
    rc::Rc,
    time::Duration,
};
use tokio::{runtime::Runtime, time::timeout};

/// Starts a process over a durable model.
pub(super) type Maker<P, M> = dyn Fn(&M) -> P;
/// Reads the rows that a query would see.
pub(super) type Rows<M, R> = dyn for<'a> Fn(&'a M) -> LocalBoxFuture<'a, R>;

/// The number of streams per aggregate, unless set.
const STREAMS: u8 = 3;
/// The greatest number of ids that the streams are given in turn.
const MOST_IDS: usize = 16;

/// The laws of a projector, checked on histories that aggregates have made.
///
/// None of these changes the rows, compared with every event delivered once, in the order in which
/// it happened:
/// - **any interleaving of the streams**: only the order within a stream is kept;
/// - **flushes at any point**, so that it does not matter which events share a batch;
/// - **duplicates**: an event is delivered again right after itself;
/// - **restarts at any point**: events that were not flushed are lost, and those that the position
///   does not cover are delivered again;
/// - **an older version applied late**: an earlier event of the stream is delivered again;
/// - **a process that has lost its partition**: it has received events, and writes at the very end;
/// - all of these together.
///
/// In addition, **a reset empties the model**: afterwards, the same events lead to the same rows.
/// And **a position is not ahead of the rows**: it names no version that was not delivered, neither
/// in a new model nor after a reset.
///
/// These laws are what a [`Projector`] promises its runner. A failure prints the smallest history
/// and disturbances that were found and, as far as a scenario can express them, a
/// `ProjectorScenario`. Seeds, cases and ids are set as for [`Laws`](super::Laws).
///
/// # Example
/// ```
/// # use foldstream::runner::{EventContext, HandlerResult, ModelId, Projector};
/// # use foldstream::{StreamId, Version};
/// # use std::{collections::BTreeMap, sync::{Arc, Mutex}};
/// # #[cfg(feature = "domains")] {
/// use foldstream_testkit::{
///     domains::account::{Account, AccountCommand::{Deposit, Open, Withdraw}, AccountEvent},
///     laws::ProjectorLaws,
/// };
/// use proptest::prelude::*;
///
/// /// What is durable: balances, each with the version that it is of.
/// type Table = Arc<Mutex<BTreeMap<StreamId, (Version, u64)>>>;
/// struct Balances(Table);
///
/// impl Projector for Balances {
///     const NAME: &'static str = "balances";
///     type Events = AccountEvent;
///     async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
///         let mut table = self.0.lock().unwrap();
///         let (version, balance) = table.entry(ctx.stream().clone()).or_default();
///         if *version < ctx.version() {
///             *version = ctx.version();
///             match event {
///                 AccountEvent::MoneyDeposited { amount } => *balance += amount,
///                 AccountEvent::MoneyWithdrawn { amount } => *balance -= amount,
///                 _ => {}
///             }
///         }
///         Ok(())
///     }
///     async fn reset(&self, _: &ModelId) -> HandlerResult {
///         self.0.lock().unwrap().clear();
///         Ok(())
///     }
/// }
///
/// let commands = prop_oneof![
///     Just(Open { owner: "ann".into() }),
///     (1u64..9).prop_map(|amount| Deposit { amount }),
///     (1u64..9).prop_map(|amount| Withdraw { amount }),
/// ];
/// ProjectorLaws::new(
///     Table::default,
///     |table| Balances(table.clone()),
///     async |table: &Table| table.lock().unwrap().clone(),
/// )
/// .with_histories::<Account, _>(1, commands)
/// .check();
/// # }
/// ```
pub struct ProjectorLaws<P: Projector, M, R> {
    model: Box<dyn Fn() -> M>,
    process: Box<Maker<P, M>>,
    rows: Box<Rows<M, R>>,
    histories: Vec<Histories>,
    ids: ids::Given,
    streams: u8,
    upcasters: Upcasters,
    plan: Plan,
    max_commands: usize,
    time_limit: Duration,
}

/// The histories of one aggregate type.
struct Histories {
    aggregate: &'static str,
    weight: u32,
    id: TypeId,
    /// Makes the strategy of the writes, after the ids and the number of streams are known.
    writes: Box<WritesOf>,
}

type WritesOf = dyn Fn(&ids::Given, Plan, u8) -> Result<BoxedStrategy<Write>, String>;

impl<P: Projector, M, R> Debug for ProjectorLaws<P, M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProjectorLaws")
            .field("projector", &P::NAME)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// The writes of one case, and the disturbances of their delivery.
#[derive(Clone, Debug)]
struct Case {
    /// Chooses which of the ids the streams have.
    choice: u64,
    writes: Vec<Write>,
    noise: Vec<Noise>,
}

/// The amount that the cases have checked.
#[derive(Default)]
struct Seen {
    events: usize,
    /// The aggregate types that had events.
    aggregates: BTreeSet<String>,
    /// Set if rows differed from those of an empty model.
    has_rows: bool,
}

impl<P: Projector, M: 'static, R: PartialEq + Debug + 'static> ProjectorLaws<P, M, R> {
    /// Creates the laws of a projector.
    ///
    /// `model` makes an empty durable model, in each call a new one. `process` starts the projector
    /// over a model, and is called again at each restart. `rows` returns the rows that a query
    /// would see. Add the histories with [`with_histories`](Self::with_histories).
    #[must_use]
    pub fn new(
        model: impl Fn() -> M + 'static,
        process: impl Fn(&M) -> P + 'static,
        rows: impl AsyncFn(&M) -> R + 'static,
    ) -> Self {
        let rows = Rc::new(rows);
        Self {
            model: Box::new(model),
            process: Box::new(process),
            rows: Box::new(move |model| {
                let rows = rows.clone();
                Box::pin(async move { rows(model).await })
            }),
            histories: Vec::new(),
            ids: ids::Given::default(),
            streams: STREAMS,
            upcasters: Upcasters::new(),
            plan: Plan::DEFAULT,
            max_commands: 12,
            time_limit: Duration::from_secs(60),
        }
    }

    /// Adds histories of an aggregate, made by these commands on three
    /// [streams](Self::with_streams).
    ///
    /// `weight` is relative to the weights of other aggregates. A command that is rejected adds
    /// nothing to a history.
    ///
    /// # Panics
    /// If the projector receives no event of the aggregate, or if `weight` is 0: such histories
    /// would check nothing.
    #[track_caller]
    #[must_use]
    pub fn with_histories<A, C>(
        mut self,
        weight: u32,
        commands: impl Strategy<Value = C> + 'static,
    ) -> Self
    where
        A: Decide<C>,
        C: Clone + Debug + Send + Sync + 'static,
    {
        assert!(
            is_subscribed::<A, P::Events>(),
            "the projector {:?} receives no event of {}",
            P::NAME,
            short_name::<A>()
        );
        assert!(
            weight > 0,
            "a weight of 0 draws no command of {}: give 1 or more",
            short_name::<A>()
        );
        let commands = commands.boxed();
        let writes = move |given: &ids::Given, plan: Plan, streams: u8| {
            let ids = ids::of_streams::<A>(given, plan, streams.into(), MOST_IDS)?;
            let ids: Rc<[A::Id]> = ids.into();
            let write =
                move |(stream, command)| Write::new::<A>(ids.clone(), stream, erase(command));
            Ok((0..streams, commands.clone()).prop_map(write).boxed())
        };
        self.histories.push(Histories {
            aggregate: A::Event::AGGREGATE,
            weight,
            id: TypeId::of::<A::Id>(),
            writes: Box::new(writes),
        });
        self
    }

    /// Sets the ids of the streams of those aggregates whose ids have this type. Call it once per
    /// id type.
    ///
    /// Unless set, the ids are letters, or else numbers, UUIDs or ULIDs. Before the first case,
    /// [`check`](Self::check) makes the ids. It panics if they do not name enough different
    /// streams, or if one is not read back from its text.
    ///
    /// # Example
    /// ```
    /// # use foldstream::runner::{EventContext, HandlerResult, ModelId, Projector};
    /// # use foldstream::{StreamId, Version};
    /// # use std::{collections::BTreeMap, sync::{Arc, Mutex}};
    /// # #[cfg(feature = "domains")] {
    /// # use foldstream_testkit::{
    /// #     domains::account::{Account, AccountCommand::Open, AccountEvent, AccountId},
    /// #     laws::ProjectorLaws,
    /// # };
    /// # type Table = Arc<Mutex<BTreeMap<StreamId, Version>>>;
    /// # struct Accounts(Table);
    /// # impl Projector for Accounts {
    /// #     const NAME: &'static str = "accounts";
    /// #     type Events = AccountEvent;
    /// #     async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
    /// #         let mut table = self.0.lock().unwrap();
    /// #         let version = table.entry(ctx.stream().clone()).or_default();
    /// #         *version = ctx.version().max(*version);
    /// #         Ok(())
    /// #     }
    /// #     async fn reset(&self, _: &ModelId) -> HandlerResult {
    /// #         self.0.lock().unwrap().clear();
    /// #         Ok(())
    /// #     }
    /// # }
    /// use proptest::prelude::*;
    /// ProjectorLaws::new(
    ///     Table::default,
    ///     |table| Accounts(table.clone()),
    ///     async |table: &Table| table.lock().unwrap().clone(),
    /// )
    /// .with_histories::<Account, _>(1, Just(Open { owner: "ann".into() }))
    /// .with_ids("DE[0-9]{4}".prop_map(AccountId::from))
    /// .check();
    /// # }
    /// ```
    #[must_use]
    pub fn with_ids<I: Display + 'static>(
        mut self,
        strategy: impl Strategy<Value = I> + 'static,
    ) -> Self {
        self.ids.insert(strategy);
        self
    }

    /// Sets the number of streams per aggregate; 3 unless set. With one stream, interleavings are
    /// not checked.
    ///
    /// # Panics
    /// If `streams` is 0.
    #[track_caller]
    #[must_use]
    pub const fn with_streams(mut self, streams: u8) -> Self {
        assert!(
            streams > 0,
            "laws of no stream check nothing: say at least `.with_streams(1)`"
        );
        self.streams = streams;
        self
    }

    /// Sets the upcasters that lift stored events. Pass those that the runner is given.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// Sets how many histories are tried; 256 unless set.
    #[must_use]
    pub const fn with_cases(mut self, cases: u32) -> Self {
        self.plan.cases = cases;
        self
    }

    /// Sets the seed of the cases. Unless set, each run tries other cases, and a failure prints
    /// their seed.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.plan.seed = Some(seed);
        self
    }

    /// Sets the number of commands of the longest history, over all streams; 12 unless set.
    #[must_use]
    pub const fn with_max_commands(mut self, commands: usize) -> Self {
        self.max_commands = commands;
        self
    }

    /// Sets the time that one history may take with all its disturbances; 60 s unless set. A call
    /// of the projector that never returns fails the check then. A call that blocks its thread
    /// cannot be interrupted.
    #[must_use]
    pub const fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Checks every law of the projector.
    ///
    /// # Panics
    /// - If a law is broken, with the smallest history and disturbances that break it.
    /// - If a history takes longer than the [limit](Self::with_time_limit).
    /// - If no histories were [added](Self::with_histories), or if the [ids](Self::with_ids) do not
    ///   name as many different streams as [`with_streams`](Self::with_streams) says, before the
    ///   first case.
    /// - If the laws held on nothing: no history of an aggregate had an event, or no event changed
    ///   the rows. If fewer than 256 cases were [asked for](Self::with_cases), up to 256 are drawn
    ///   before that.
    #[track_caller]
    pub fn check(self) {
        let writes = match self.writes() {
            Ok(writes) => writes,
            Err(why) => panic!("{why}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap_or_else(|error| panic!("no runtime of one thread: {error}"));
        let empty = self.empty(&runtime);
        let cases = self.cases(writes);
        let mut seen = Seen::default();
        let mut why = None;
        for (config, seed) in self.plan.rounds() {
            let runner = TestRunner::new(config);
            self.check_round(runner, seed, &cases, (&runtime, &empty), &mut seen);
            why = self.unchecked(&seen);
            if why.is_none() {
                return;
            }
        }
        panic!("{}", why.unwrap_or_default())
    }

    /// Returns the rows of a new model.
    #[track_caller]
    fn empty(&self, runtime: &Runtime) -> R {
        let model = (self.model)();
        let rows = async { timeout(self.time_limit, (self.rows)(&model)).await };
        let Ok(empty) = runtime.block_on(rows) else {
            panic!(
                "the rows of an empty model of {:?} were not returned within {:?}",
                P::NAME,
                self.time_limit
            );
        };
        empty
    }

    fn cases(
        &self,
        writes: Union<BoxedStrategy<Write>>,
    ) -> impl Strategy<Value = Case> + use<P, M, R> {
        let choice = match self.ids.is_empty() {
            true => Just(0).boxed(),
            false => any::<u64>().boxed(),
        };
        let cases = (
            choice,
            proptest::collection::vec(writes, 0..=self.max_commands),
            proptest::collection::vec(Noise::any(), 0..=2 * self.max_commands),
        );
        cases.prop_map(|(choice, writes, noise)| Case {
            choice,
            writes,
            noise,
        })
    }

    /// Checks every law on the cases of one seed.
    #[track_caller]
    fn check_round(
        &self,
        mut runner: TestRunner,
        seed: u64,
        cases: &impl Strategy<Value = Case>,
        (runtime, empty): (&Runtime, &R),
        seen: &mut Seen,
    ) {
        let found = Found::default();
        let seen = RefCell::new(seen);
        let is_stuck = Cell::new(false);
        let outcome = runner.run(cases, |case| {
            // Smaller cases would wait as long, one after the other.
            if is_stuck.get() {
                return Ok(());
            }
            let held = async { timeout(self.time_limit, self.hold(&case, empty)).await };
            let held = runtime.block_on(held).unwrap_or_else(|_| {
                is_stuck.set(true);
                Err(self.stuck(&case))
            });
            match held {
                Ok(more) => {
                    let mut seen = seen.borrow_mut();
                    seen.events += more.events;
                    seen.aggregates.extend(more.aggregates);
                    seen.has_rows |= more.has_rows;
                    Ok(())
                }
                Err(broken) => found.take(broken),
            }
        });
        match (outcome, found.into_smallest()) {
            (Ok(()), _) => {}
            (Err(TestError::Fail(..)), Some(broken)) => {
                panic!("{}", broken.shown(&short_name::<P>(), Some(seed)))
            }
            (Err(error), _) => panic!("the laws of {}: {error}", short_name::<P>()),
        }
    }

    /// Returns the reason for which the laws held only because nothing was asked of the projector,
    /// if there is one.
    fn unchecked(&self, seen: &Seen) -> Option<String> {
        let name = P::NAME;
        if seen.events == 0 {
            return Some(format!(
                "no command led to an event for {name:?}: the laws held on empty histories only"
            ));
        }
        let mut histories = self.histories.iter().map(|histories| histories.aggregate);
        if let Some(aggregate) = histories.find(|aggregate| !seen.aggregates.contains(*aggregate)) {
            return Some(format!(
                "no command on {aggregate:?} led to an event for {name:?}: the laws held without its histories. Draw \
                 commands that fit the aggregate"
            ));
        }
        (!seen.has_rows).then(|| {
            format!(
                "{} events left the rows of {name:?} as those of an empty model: the laws held on empty rows only. Draw \
                 commands whose events the projector writes down, and let `rows` return what it writes",
                seen.events
            )
        })
    }

    /// Returns the commands to all streams, after a check of the ids.
    fn writes(&self) -> Result<Union<BoxedStrategy<Write>>, String> {
        if self.histories.is_empty() {
            return Err(format!(
                "the projector {:?} needs histories: say `.with_histories::<Aggregate, _>(1, commands)`",
                P::NAME
            ));
        }
        let types = self.histories.iter().map(|histories| histories.id);
        let unused = self.ids.unused(&types.collect::<Vec<_>>());
        if !unused.is_empty() {
            return Err(format!(
                "ids of {} were given, and no aggregate whose histories {:?} gets has such ids",
                unused.join(", "),
                P::NAME
            ));
        }
        let writes = self.histories.iter().map(|histories| {
            let writes = (histories.writes)(&self.ids, self.plan, self.streams)?;
            Ok((histories.weight, writes))
        });
        Ok(Union::new_weighted(writes.collect::<Result<_, String>>()?))
    }
}
