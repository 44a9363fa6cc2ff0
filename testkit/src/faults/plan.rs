//! The schedule of faults, shared by all wrappers and processes of a test.
use super::{Call, Fault, Injected, Op, Rule, rule::Running};
use foldstream::ports::{Revision, Row};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The moment at which a probe is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The call is about to reach the backend. A probe can assert what must hold before the call.
    Reaches,
    /// The backend has carried out the call.
    ///
    /// A write was applied, or a read was answered. A conflict applies nothing, so it is not
    /// reported. The caller may never get the answer.
    Done,
}

type Probe = dyn Fn(Moment, &Call<'_>) + Send + Sync;
type ConcurrentWriter = dyn Fn(&Row) -> Row + Send + Sync;

pub(super) struct Plan {
    seed: Option<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<Running>,
    /// The number of rules that were ever added, from which each rule gets a seed of its own.
    added: u64,
    is_disabled: bool,
    /// The number of times that the faults were disabled. Each time, lists show what lagged.
    times_disabled: u64,
    calls: BTreeMap<Op, u64>,
    total: u64,
    log: Vec<Injected>,
    probe: Option<Arc<Probe>>,
    concurrent_writer: Option<Arc<ConcurrentWriter>>,
    dice: fastrand::Rng,
}

impl Plan {
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self {
            seed,
            state: Mutex::new(State {
                dice: fastrand::Rng::with_seed(seed.unwrap_or(0)),
                ..State::default()
            }),
        }
    }
    fn state(&self) -> MutexGuard<'_, State> {
        // A filter or a concurrent writer of the test may panic while the lock is held. The
        // schedule is consistent nevertheless.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, rule: Rule) {
        let mut state = self.state();
        state.added += 1;
        let seed = self.seed.unwrap_or(0) ^ state.added.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let dice = fastrand::Rng::with_seed(seed);
        state.rules.push(Running::new(rule, dice));
    }
    pub(super) fn clear(&self) {
        self.state().rules.clear();
    }
    pub(super) fn disable(&self) {
        let mut state = self.state();
        state.is_disabled = true;
        state.times_disabled += 1;
    }
    pub(super) fn enable(&self) {
        self.state().is_disabled = false;
    }
    pub(super) fn set_probe(&self, probe: Arc<Probe>) {
        self.state().probe = Some(probe);
    }
    pub(super) fn set_concurrent_writer(&self, write: Arc<ConcurrentWriter>) {
        self.state().concurrent_writer = Some(write);
    }

    /// Counts a call and returns its delay and at most one other fault.
    pub(super) fn strike(&self, call: &Call<'_>) -> (Duration, Option<Fault>) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.total += 1;
        *state.calls.entry(call.op()).or_default() += 1;
        let (mut delay, mut fault) = (Duration::ZERO, None);
        if state.is_disabled {
            return (delay, fault);
        }
        for rule in &mut state.rules {
            // Every rule sees every call, also one that has a fault already. So the random numbers
            // of a rule do not depend on the other rules.
            let Some(struck) = rule.strike(call) else {
                continue;
            };
            match struck {
                Fault::Delay(by) => delay += by,
                _ if fault.is_some() => continue,
                ref other => fault = Some(other.clone()),
            }
            state.log.push(Injected {
                call: state.total,
                about: brief(call),
                fault: struck,
            });
        }
        (delay, fault)
    }

    pub(super) fn tell_probe(&self, moment: Moment, call: &Call<'_>) {
        let probe = self.state().probe.clone();
        if let Some(probe) = probe {
            probe(moment, call);
        }
    }
    /// Returns the row that a concurrent writer writes over `row`.
    pub(super) fn written(&self, row: &Row) -> Row {
        let (write, revision) = {
            let mut state = self.state();
            let revision = Revision::from_u128(state.dice.u128(..));
            (state.concurrent_writer.clone(), revision)
        };
        let mut written = write.map_or_else(|| row.clone(), |write| write(row));
        written.key = row.key.clone();
        written.revision = revision;
        written
    }
    /// Returns a number below `end`, drawn from the seed; 0 if `end` is 0.
    pub(super) fn below(&self, end: usize) -> usize {
        self.state().dice.usize(..end.max(1))
    }

    pub(super) fn times_disabled(&self) -> u64 {
        self.state().times_disabled
    }
    pub(super) fn log(&self) -> Vec<Injected> {
        self.state().log.clone()
    }
    pub(super) fn calls(&self, op: Option<Op>) -> u64 {
        let state = self.state();
        match op {
            Some(op) => state.calls.get(&op).copied().unwrap_or(0),
            None => state.total,
        }
    }
}

/// Describes a call in one line of at most 200 characters and an ellipsis.
fn brief(call: &Call<'_>) -> String {
    const MOST: usize = 200;
    let mut about = call.to_string();
    if let Some((end, _)) = about.char_indices().nth(MOST) {
        about.truncate(end);
        about.push_str("...");
    }
    about
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        match self.seed {
            Some(seed) => write!(f, "faults of seed {seed} (replay: {}={seed})", super::SEED)?,
            None => f.write_str("faults of a script")?,
        }
        let (injected, total) = (state.log.len(), state.total);
        write!(f, ", {injected} in {total} calls")?;
        state.log.iter().try_for_each(|i| write!(f, "\n  {i}"))
    }
}

/// Prints the seed and the injected faults of a test that fails.
impl Drop for Plan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{self}");
        }
    }
}
