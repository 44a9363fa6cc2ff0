//! The rules that say when a fault is injected.
use super::{Call, Fault, Ops};
use std::{fmt, sync::Arc, time::Duration};

type Filter = dyn Fn(&Call<'_>) -> bool + Send + Sync;
type Chooser = dyn Fn(&Call<'_>) -> Option<Fault> + Send + Sync;

/// A fault together with the calls into which it is injected.
///
/// The fault is injected into all calls that match, unless [`at`](Self::at),
/// [`first`](Self::first), [`from`](Self::from), [`every`](Self::every) or [`one_in`](Self::one_in)
/// selects some of them. If several of these are called, the last one counts.
///
/// # Example
/// ```
/// use foldstream_testkit::faults::{Fault, Op};
/// let third = Fault::LoseReply.on(Op::Append).at(3);
/// let sometimes = Fault::Throttled(None).anywhere().one_in(20);
/// let rows = Fault::Unavailable
///     .on([Op::Get, Op::Put])
///     .matching(|call| call.is_about(&"cart#1".parse().unwrap()))
///     .first(2);
/// ```
#[derive(Clone)]
pub struct Rule {
    source: Source,
    ops: Option<Ops>,
    filter: Option<Arc<Filter>>,
    when: When,
    is_jittered: bool,
}

#[derive(Clone)]
enum Source {
    Always(Fault),
    Chosen(Arc<Chooser>),
}

/// The selection among matching calls, which are counted from 1.
#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    At(u64),
    First(u64),
    From(u64),
    Every(u64),
    OneIn(u32),
}

impl Rule {
    pub(super) const fn new(fault: Fault) -> Self {
        Self::from_source(Source::Always(fault))
    }
    const fn from_source(source: Source) -> Self {
        Self {
            source,
            ops: None,
            filter: None,
            when: When::Always,
            is_jittered: false,
        }
    }

    /// Creates a rule from a function that chooses the fault of each call.
    ///
    /// The function returns `None` for a call that it leaves alone. It must not call the
    /// [`Faults`](super::Faults) to which the rule is added, whose lock is held while it runs.
    pub fn chosen_by(choose: impl Fn(&Call<'_>) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self::from_source(Source::Chosen(Arc::new(choose)))
    }

    /// Restricts the rule to calls of these methods.
    #[must_use]
    pub fn on(mut self, ops: impl Into<Ops>) -> Self {
        self.ops = Some(ops.into());
        self
    }
    /// Restricts the rule to calls for which a function returns true.
    ///
    /// The function must not call the [`Faults`](super::Faults) to which the rule is added, whose
    /// lock is held while it runs. It replaces an earlier function.
    #[must_use]
    pub fn matching(mut self, test: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(Arc::new(test));
        self
    }
    /// Selects only the `n`th matching call, counted from 1.
    #[must_use]
    pub const fn at(mut self, n: u64) -> Self {
        self.when = When::At(n);
        self
    }
    /// Selects the first `n` matching calls.
    #[must_use]
    pub const fn first(mut self, n: u64) -> Self {
        self.when = When::First(n);
        self
    }
    /// Selects the `n`th matching call, counted from 1, and all after it.
    #[must_use]
    pub const fn from(mut self, n: u64) -> Self {
        self.when = When::From(n);
        self
    }
    /// Selects every `n`th matching call; 0 selects none.
    #[must_use]
    pub const fn every(mut self, n: u64) -> Self {
        self.when = When::Every(n);
        self
    }
    /// Selects one matching call in `n` on average, drawn from the seed; 0 selects none.
    #[must_use]
    pub const fn one_in(mut self, n: u32) -> Self {
        self.when = When::OneIn(n);
        self
    }
    /// Makes the duration of the fault an upper bound.
    ///
    /// Each time the fault gets a shorter duration, drawn from the seed.
    #[must_use]
    pub const fn jittered(mut self) -> Self {
        self.is_jittered = true;
        self
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Rule");
        match &self.source {
            Source::Always(fault) => out.field("fault", fault),
            Source::Chosen(_) => out.field("fault", &"chosen by a function"),
        };
        out.field("ops", &self.ops)
            .field("when", &self.when)
            .finish_non_exhaustive()
    }
}

/// A rule in use, with its count of matching calls and its own random numbers.
///
/// Rules do not share random numbers, so adding one does not change the others.
#[derive(Debug)]
pub(super) struct Running {
    rule: Rule,
    seen: u64,
    dice: fastrand::Rng,
}

impl Running {
    pub(super) fn new(rule: Rule, dice: fastrand::Rng) -> Self {
        Self {
            rule,
            seen: 0,
            dice,
        }
    }

    /// Returns the fault that the rule injects into a call, if any.
    pub(super) fn strike(&mut self, call: &Call<'_>) -> Option<Fault> {
        let Rule { ops, filter, .. } = &self.rule;
        let op = call.op();
        if ops.as_ref().is_some_and(|ops| !ops.contains(op))
            || filter.as_ref().is_some_and(|test| !test(call))
        {
            return None;
        }
        let fault = match &self.rule.source {
            Source::Always(fault) => fault.clone(),
            Source::Chosen(choose) => choose(call)?,
        };
        if !fault.applies_to(op) {
            return None;
        }
        self.seen += 1;
        let strikes = match self.rule.when {
            When::Always => true,
            When::At(n) => self.seen == n,
            When::First(n) => self.seen <= n,
            When::From(n) => self.seen >= n,
            When::Every(n) => n > 0 && self.seen.is_multiple_of(n),
            When::OneIn(n) => n > 0 && self.dice.u32(0..n) == 0,
        };
        strikes.then(|| self.jitter(fault))
    }

    fn jitter(&mut self, fault: Fault) -> Fault {
        if !self.rule.is_jittered {
            return fault;
        }
        let share = self.dice.f64();
        // Whole microseconds are easier to read in a log.
        fault.map_duration(|d| Duration::from_micros((d.as_micros() as f64 * share) as u64))
    }
}
