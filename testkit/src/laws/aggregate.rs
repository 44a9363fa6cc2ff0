//! The checks of an aggregate ([`Laws`]) and their options.
use super::{
    checked::Checked,
    command::{AnyCommand, ShownId, erase},
    exhaustive, ids,
    seed::Plan,
    story::short_name,
    walk::{DecisionRule, Rules},
};
use foldstream::{Aggregate, Context, Decide, Decision, Snapshot, Upcasters};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use std::{
    cell::Cell,
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

/// The laws of an aggregate, checked on sequences of commands.
///
/// These laws are always checked:
/// - **Deciding is deterministic.**
/// - **A rejected command changes nothing**, neither the state nor the store.
/// - **Events survive encode, upcast and decode.**
/// - **The replay of the stored events is the state.**
/// - Nothing panics.
///
/// [`with_snapshots`](Self::with_snapshots), [`with_ids`](Self::with_ids),
/// [`with_id_texts`](Self::with_id_texts) and [`with_duplicates`](Self::with_duplicates) check
/// more. Add your own rules with [`with_invariant`](Self::with_invariant), [`never`](Self::never),
/// [`eventually`](Self::eventually) and [`with_rule`](Self::with_rule).
///
/// Every sequence runs twice: on the aggregate alone, and through a
/// [`Repository`](foldstream::Repository) over an in-memory store, so that the real codec,
/// upcasters, snapshots and idempotency take part. No server is needed, and no time passes.
///
/// A failure panics with the smallest sequence that was found, as a [`Scenario`](crate::Scenario)
/// to be pasted into a test. The scenario is made from the `Debug` output of commands, events and
/// reasons. With `#[derive(Debug)]`, texts, lists, maps and ids of [`id!`](foldstream::id) become
/// Rust expressions, and variants stand without the name of their enum (`use` it). The output of a
/// `Debug` that is written by hand is passed on unchanged.
///
/// `FOLDSTREAM_SEED=<number>` runs the cases of a failure again, and `FOLDSTREAM_CASES=<number>`
/// sets how many cases are tried. Both override the code. Nothing is written to disk.
///
/// # Example
/// ```
/// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
/// # use serde::{Deserialize, Serialize};
/// # id!(AccountId);
/// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// # #[event(aggregate = "account")]
/// # enum AccountEvent { Deposited { amount: u64 }, Withdrawn { amount: u64 } }
/// # #[derive(Clone, Debug)]
/// # enum AccountCommand { Deposit { amount: u64 }, Withdraw { amount: u64 } }
/// # use {AccountCommand::*, AccountEvent::*};
/// # #[derive(Debug, PartialEq, thiserror::Error)]
/// # #[error("insufficient funds")]
/// # struct InsufficientFunds;
/// # #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
/// # struct Account { balance: u64 }
/// # impl Aggregate for Account {
/// #     type Id = AccountId;
/// #     type Event = AccountEvent;
/// #     fn evolve(&mut self, event: &AccountEvent) {
/// #         match event {
/// #             Deposited { amount } => self.balance += amount,
/// #             Withdrawn { amount } => self.balance -= amount,
/// #         }
/// #     }
/// # }
/// # impl Decide<AccountCommand> for Account {
/// #     type Error = InsufficientFunds;
/// #     fn decide(&self, command: &AccountCommand, _: &Context) -> Decision<Self, Self::Error> {
/// #         match *command {
/// #             Deposit { amount } => Ok(vec![Deposited { amount }]),
/// #             Withdraw { amount } if amount > self.balance => Err(InsufficientFunds),
/// #             Withdraw { amount } => Ok(vec![Withdrawn { amount }]),
/// #         }
/// #     }
/// # }
/// # impl Snapshot for Account { const STATE_VERSION: u32 = 1; }
/// use foldstream_testkit::laws::Laws;
/// use proptest::prelude::*;
///
/// let commands = prop_oneof![
///     2 => (1u64..100).prop_map(|amount| Deposit { amount }),
///     1 => (1u64..100).prop_map(|amount| Withdraw { amount }),
/// ];
/// Laws::<Account>::new(commands)
///     .with_snapshots()
///     .with_invariant("the balance is what deposits allow", |account| account.balance < 100 * 20)
///     .check();
/// ```
pub struct Laws<A: Aggregate> {
    pub(super) source: Source<A>,
    pub(super) rules: Rules<A>,
    pub(super) ids: Option<BoxedStrategy<ShownId<A>>>,
    pub(super) plan: Plan,
}

type Commands<A> = BoxedStrategy<Arc<dyn AnyCommand<A>>>;

/// The origin of the sequences: drawn from strategies, or all up to a length.
pub(super) enum Source<A: Aggregate> {
    Drawn {
        commands: Vec<(u32, Commands<A>)>,
        pauses: BoxedStrategy<Duration>,
        id_texts: Option<BoxedStrategy<String>>,
        max_commands: usize,
    },
    All {
        commands: Vec<Arc<dyn AnyCommand<A>>>,
        length: usize,
        merged: bool,
        max_histories: usize,
    },
}

impl<A: Aggregate> Debug for Laws<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Laws")
            .field("aggregate", &short_name::<A>())
            .field("rules", &self.rules)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl<A: Aggregate + PartialEq + Debug> Laws<A> {
    /// Creates laws that are checked on sequences of commands drawn from a strategy.
    #[must_use]
    pub fn new<C>(commands: impl Strategy<Value = C> + 'static) -> Self
    where
        A: Decide<C>,
        C: Clone + Debug + Send + Sync + 'static,
    {
        let start = Self {
            source: Source::Drawn {
                commands: Vec::new(),
                pauses: Just(Duration::ZERO).boxed(),
                id_texts: None,
                max_commands: 20,
            },
            rules: Rules::default(),
            ids: None,
            plan: Plan::DEFAULT,
        };
        start.with_commands(1, commands)
    }

    /// Creates laws that are checked on all sequences of these commands up to a length: a proof,
    /// not a sample.
    ///
    /// A command that is rejected, or leads to no event, is checked to change nothing. Such a
    /// command need not be followed further, because every sequence that contains it ends where the
    /// sequence without it ends. What remains is every *history*, and each one is visited. All
    /// commands are decided at the same time.
    ///
    /// # Example
    /// ```
    /// # use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, id};
    /// # id!(DoorId);
    /// # #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// # #[event(aggregate = "door")]
    /// # enum DoorEvent { Opened, Closed }
    /// # #[derive(Clone, Copy, Debug, PartialEq)]
    /// # enum Door_ { Open, Close }
    /// # use Door_::{Close, Open};
    /// # #[derive(Clone, Debug, Default, PartialEq)]
    /// # struct Door { is_open: bool }
    /// # impl Aggregate for Door {
    /// #     type Id = DoorId;
    /// #     type Event = DoorEvent;
    /// #     fn evolve(&mut self, event: &DoorEvent) {
    /// #         self.is_open = *event == DoorEvent::Opened;
    /// #     }
    /// # }
    /// # #[derive(Debug, PartialEq, thiserror::Error)]
    /// # #[error("it is so already")]
    /// # struct Already;
    /// # impl Decide<Door_> for Door {
    /// #     type Error = Already;
    /// #     fn decide(&self, command: &Door_, _: &Context) -> Decision<Self, Already> {
    /// #         match (command, self.is_open) {
    /// #             (Open, false) => Ok(vec![DoorEvent::Opened]),
    /// #             (Close, true) => Ok(vec![DoorEvent::Closed]),
    /// #             _ => Err(Already),
    /// #         }
    /// #     }
    /// # }
    /// use foldstream_testkit::laws::Laws;
    ///
    /// let checked = Laws::<Door>::exhaustive([Open, Close], 8)
    ///     .never("a door is opened twice in a row", |history| {
    ///         history.windows(2).any(|two| two == [DoorEvent::Opened, DoorEvent::Opened])
    ///     })
    ///     .check();
    /// assert_eq!(checked.histories(), 9);
    /// ```
    #[must_use]
    pub fn exhaustive<C>(commands: impl IntoIterator<Item = C>, length: usize) -> Self
    where
        A: Decide<C>,
        C: Clone + Debug + Send + Sync + 'static,
    {
        Self {
            source: Source::All {
                commands: commands.into_iter().map(erase).collect(),
                length,
                merged: false,
                max_histories: 100_000,
            },
            rules: Rules::default(),
            ids: None,
            plan: Plan::DEFAULT,
        }
    }

    /// Adds commands of another type, drawn `weight` times as often as those of [`new`](Self::new).
    ///
    /// # Panics
    /// If the laws are [`exhaustive`](Self::exhaustive), or if `weight` is 0, which would draw none
    /// of the commands.
    #[track_caller]
    #[must_use]
    pub fn with_commands<C>(
        mut self,
        weight: u32,
        strategy: impl Strategy<Value = C> + 'static,
    ) -> Self
    where
        A: Decide<C>,
        C: Clone + Debug + Send + Sync + 'static,
    {
        let Source::Drawn { commands, .. } = &mut self.source else {
            panic!("all sequences are of the commands that they were given");
        };
        assert!(
            weight > 0,
            "a weight of 0 draws no command of the type {}: give 1 or more",
            short_name::<C>()
        );
        commands.push((weight, strategy.prop_map(|c| erase(c)).boxed()));
        self
    }

    /// Also checks that **a snapshot at any version and the events after it make the full fold**.
    #[must_use]
    pub fn with_snapshots(mut self) -> Self
    where
        A: Snapshot,
    {
        self.rules.snapshots = Some(super::stored::SnapshotKit::new());
        self
    }

    /// Also checks that **a duplicate changes nothing**.
    ///
    /// Every command carries an id, and the repository [recognises
    /// duplicates](foldstream::Repository::with_idempotency). At the end, each command that was
    /// accepted is sent once more. A repository remembers commands that led to events. It does not
    /// remember a command that was accepted without events: this law fails if a later duplicate of
    /// such a command would lead to events.
    #[must_use]
    pub const fn with_duplicates(mut self) -> Self {
        self.rules.duplicates = true;
        self
    }

    /// Sets the upcasters that lift stored events. Pass those that your repository is given.
    #[must_use]
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.rules.upcasters = upcasters;
        self
    }

    /// Adds an invariant, which must hold before the first event and after every event.
    #[must_use]
    pub fn with_invariant(
        mut self,
        name: impl Into<String>,
        holds: impl Fn(&A) -> bool + 'static,
    ) -> Self {
        self.rules.invariants.push((name.into(), Box::new(holds)));
        self
    }

    /// Adds a property that no history may ever have. It is checked after every event.
    #[must_use]
    pub fn never(
        mut self,
        name: impl Into<String>,
        is_so: impl Fn(&[A::Event]) -> bool + 'static,
    ) -> Self {
        self.rules.never.push((name.into(), Box::new(is_so)));
        self
    }

    /// Adds a property that every history has after these closing commands, whatever happened
    /// before.
    ///
    /// The closing commands are given in this order, and those that are rejected change nothing.
    /// "Eventually" needs an end in a finite test, and the commands are that end: what users,
    /// timers or a clean-up job do at the latest.
    #[must_use]
    pub fn eventually<C>(
        mut self,
        name: impl Into<String>,
        closing: impl IntoIterator<Item = C>,
        is_so: impl Fn(&[A::Event]) -> bool + 'static,
    ) -> Self
    where
        A: Decide<C>,
        C: Clone + Debug + Send + Sync + 'static,
    {
        let closing = closing.into_iter().map(erase).collect();
        let rule = (name.into(), closing, Box::new(is_so) as Box<_>);
        self.rules.eventually.push(rule);
        self
    }

    /// Adds a rule that every decision must follow.
    ///
    /// `holds` gets the state before the decision, the command, and what the command led to.
    /// Commands of other types are not checked by this rule. If no command of its type is decided,
    /// [`check`](Self::check) panics.
    #[must_use]
    pub fn with_rule<C>(
        mut self,
        name: impl Into<String>,
        holds: impl Fn(&A, &C, &Decision<A, A::Error>) -> bool + 'static,
    ) -> Self
    where
        A: Decide<C>,
        C: Send + Sync + 'static,
    {
        let asked = move |state: &A, command: &dyn AnyCommand<A>, ctx: &Context| {
            let command = command.as_any().downcast_ref::<C>()?;
            Some(holds(state, command, &state.decide(command, ctx)))
        };
        self.rules.decisions.push(DecisionRule {
            name: name.into(),
            command: short_name::<C>(),
            holds: Box::new(asked),
            is_asked: Cell::new(false),
        });
        self
    }

    /// Sets how many sequences are tried; 256 unless set. [`exhaustive`](Self::exhaustive) laws
    /// ignore it.
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

    /// Sets the number of commands of the longest sequence; 20 unless set. The cost grows with its
    /// square.
    ///
    /// # Panics
    /// If the laws are [`exhaustive`](Self::exhaustive), which already have a length.
    #[track_caller]
    #[must_use]
    pub fn with_max_commands(mut self, commands: usize) -> Self {
        let Source::Drawn { max_commands, .. } = &mut self.source else {
            panic!(
                "`with_max_commands` is for drawn sequences: exhaustive laws take their length by `exhaustive`"
            );
        };
        *max_commands = commands;
        self
    }

    /// Lets time pass before each command. Unless set, all commands are decided at
    /// 2026-01-01T00:00:00Z.
    ///
    /// # Panics
    /// If the laws are [`exhaustive`](Self::exhaustive), which decide all commands at one time.
    #[track_caller]
    #[must_use]
    pub fn with_pauses(mut self, strategy: impl Strategy<Value = Duration> + 'static) -> Self {
        let Source::Drawn { pauses, .. } = &mut self.source else {
            panic!(
                "`with_pauses` is for drawn sequences: exhaustive laws decide all commands at one time"
            );
        };
        *pauses = strategy.boxed();
        self
    }

    /// Sets the ids of the aggregate, and checks that **an id read back from its text names the
    /// same stream**.
    ///
    /// Exhaustive laws decide all commands under the first id of the strategy. Unless set, the id
    /// is `scenario`, or else a number, a UUID or a ULID. If the id type can read none of them,
    /// [`check`](Self::check) panics before the first case.
    #[must_use]
    pub fn with_ids(mut self, strategy: impl Strategy<Value = A::Id> + 'static) -> Self
    where
        A::Id: Debug,
    {
        self.ids = Some(strategy.prop_map(ShownId).boxed());
        self
    }

    /// Reads these texts as ids, as if they came from a URL or a file.
    ///
    /// Each text must either be refused or be read as an id with exactly the same text. A plain
    /// number breaks this law: "007" and "7" are read as one id, but name two streams. If all texts
    /// are refused, [`check`](Self::check) panics.
    ///
    /// # Panics
    /// If the laws are [`exhaustive`](Self::exhaustive), which draw no texts.
    #[track_caller]
    #[must_use]
    pub fn with_id_texts(mut self, strategy: impl Strategy<Value = String> + 'static) -> Self {
        let Source::Drawn { id_texts, .. } = &mut self.source else {
            panic!("`with_id_texts` is for drawn sequences: exhaustive laws draw no texts");
        };
        *id_texts = Some(strategy.boxed());
        self
    }

    /// Follows only one of several histories that lead to equal states at the same length.
    ///
    /// This makes long sequences affordable. Rules over histories are then checked only on the
    /// first history that was found for a state.
    ///
    /// # Panics
    /// If the laws are not [`exhaustive`](Self::exhaustive).
    #[track_caller]
    #[must_use]
    pub fn with_merged_states(mut self) -> Self {
        let Source::All { merged, .. } = &mut self.source else {
            panic!(
                "`with_merged_states` is for exhaustive laws: drawn sequences are each followed to their end"
            );
        };
        *merged = true;
        self
    }

    /// Sets how many histories an [`exhaustive`](Self::exhaustive) check may visit before it gives
    /// up; 100,000 unless set.
    ///
    /// # Panics
    /// If the laws are not exhaustive.
    #[track_caller]
    #[must_use]
    pub fn with_max_histories(mut self, histories: usize) -> Self {
        let Source::All { max_histories, .. } = &mut self.source else {
            panic!(
                "`with_max_histories` is for exhaustive laws: drawn ones are as many as `with_cases`"
            );
        };
        *max_histories = histories;
        self
    }

    /// Checks every law, and returns how much was checked.
    ///
    /// # Panics
    /// - If a law is broken, with the smallest sequence that breaks it.
    /// - If no id can be made for the aggregate and none was [set](Self::with_ids), before the
    ///   first case.
    /// - If the laws held on nothing: no command was ever accepted, no command had the type of a
    ///   [rule](Self::with_rule), or none of the [texts](Self::with_id_texts) was read as an id. If
    ///   fewer than 256 cases were [asked for](Self::with_cases), up to 256 are drawn before that.
    /// - If there are more histories than [`with_max_histories`](Self::with_max_histories) allows.
    #[track_caller]
    pub fn check(self) -> Checked {
        let (commands, limits) = match &self.source {
            Source::Drawn { .. } => return self.check_drawn(),
            Source::All {
                commands,
                length,
                merged,
                max_histories,
            } => {
                let limits = exhaustive::Limits {
                    length: *length,
                    merged: *merged,
                    max_histories: *max_histories,
                };
                (commands, limits)
            }
        };
        let id = self.first_id();
        let checked = match exhaustive::check(&self.rules, commands, limits, &id) {
            Ok(checked) => checked,
            Err(broken) => panic!("{}", broken.shown(&short_name::<A>(), None)),
        };
        if let Some(why) = self.unchecked(&checked) {
            panic!("{why}");
        }
        checked
    }

    /// Returns the reason for which a law held only because nothing was checked against it, if
    /// there is one.
    pub(super) fn unchecked(&self, checked: &Checked) -> Option<String> {
        let (name, sequences) = (short_name::<A>(), checked.histories());
        if checked.accepted() == 0 {
            return Some(format!(
                "no command of {name} was accepted in {sequences} sequences: the laws held on empty histories only. Draw \
                 commands that fit the aggregate"
            ));
        }
        let mut rules = self.rules.decisions.iter();
        rules.find(|rule| !rule.is_asked.get()).map(|rule| {
            format!(
                "the rule {:?} of {name} is about commands of the type {}, and none was given in {sequences} sequences: \
                 write the rule for the type of the commands, or add such commands with `.with_commands(..)`",
                rule.name, rule.command
            )
        })
    }

    /// Returns the id under which exhaustive laws decide.
    #[track_caller]
    fn first_id(&self) -> ShownId<A> {
        let Some(strategy) = &self.ids else {
            return default_id();
        };
        match strategy.new_tree(&mut TestRunner::new(self.plan.config().0)) {
            Ok(tree) => tree.current(),
            Err(reason) => panic!("the strategy of ids gives none: {reason}"),
        }
    }
}

/// Returns the id of laws that were given none.
#[track_caller]
pub(super) fn default_id<A: Aggregate>() -> ShownId<A> {
    match ids::of_one::<A>() {
        Ok(id) => ShownId(id),
        Err(why) => panic!("{why}"),
    }
}
