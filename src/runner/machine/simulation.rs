//! The machine in a simulated world: a broker with three partitions, two instances, and a store.
//!
//! Each seed is one schedule. Attempts succeed, fail, end late or never; flushes, positions and
//! commits are answered late, or fail before or after they took effect; partitions come and go;
//! instances stop, crash and start again; time jumps to the next moment at which something is due.
//! In some seeds each instance has a circuit breaker, which its failures open.
//! Then everything heals, and the rest must be handled and committed.
//!
//! `FOLDSTREAM_SEED` runs one seed alone and prints every input and effect.
mod broker;
mod coverage;
mod instance;
mod store;
mod work;

use self::{
    broker::{Broker, PARTITIONS},
    coverage::Coverage,
    instance::{Instance, What},
    store::Store,
};
use super::{Effect, Input, Machine, Rules, testing::partition};
use crate::{
    EventSelector, Timestamp,
    breaker::CircuitBreaker,
    ports::{MessageBusError, NoPosition},
    runner::{DeliveryLevel, FailureAction, ProcessorPolicy},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The most steps until everything is at rest once nothing fails any more.
const STEPS_TO_REST: usize = 20_000;

struct Simulation {
    rng: fastrand::Rng,
    start: Instant,
    now: Instant,
    broker: Broker,
    store: Store,
    instances: [Instance; 2],
    rules: Arc<Rules>,
    /// Nothing fails any more.
    is_calm: bool,
    is_traced: bool,
    coverage: Coverage,
}

fn rules(seed: u64, start: Instant, rng: &mut fastrand::Rng) -> Rules {
    let records = rng.usize(3..12);
    let bytes = 100 * rng.usize(3..12);
    let mut policy = ProcessorPolicy::projector()
        .with_window(records, bytes)
        .with_max_memory(100 * rng.usize(8..25))
        .with_concurrency(rng.usize(1..5))
        .with_max_batch(if rng.bool() { 1 } else { 3 })
        .with_drain(Duration::from_millis(rng.u64(100..6_000)));
    if !seed.is_multiple_of(3) {
        policy = policy.with_level(DeliveryLevel::Deduplicated);
        policy = policy.with_commit_interval(Duration::from_millis(rng.u64(200..4_000)));
    }
    let halts = rng.bool();
    policy = policy.with_on_failure(move |_| match halts {
        true => FailureAction::Halt,
        false => FailureAction::DeadLetter,
    });
    if rng.u8(0..4) == 0 {
        // One lane for streams of all partitions.
        policy = policy.with_lane(|stream| stream.id()[2..].to_owned());
    }
    Rules {
        name: "simulated".into(),
        policy,
        is_projector: !seed.is_multiple_of(5),
        selectors: vec![EventSelector {
            aggregate: "s",
            types: &[],
        }],
        has_event_store: true,
        instance: "instance".into(),
        started: (start, Timestamp::from_micros(1)),
        breaker: (seed % 4 == 1).then(CircuitBreaker::default),
        seed,
    }
}

impl Simulation {
    fn new(seed: u64, is_traced: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let rules = Arc::new(rules(seed, start, &mut rng));
        let mut simulation = Self {
            rng,
            start,
            now: start,
            broker: Broker::default(),
            store: Store::default(),
            instances: [Instance::new(), Instance::new()],
            rules,
            is_calm: false,
            is_traced,
            coverage: Coverage::default(),
        };
        simulation.start_instance(0);
        simulation.start_instance(1);
        simulation
    }

    fn start_instance(&mut self, at: usize) {
        let mut rules = Rules::clone(&self.rules);
        // Each process has a breaker of its own.
        rules.breaker = rules.breaker.map(|_| CircuitBreaker::default());
        self.instances[at] = Instance::new();
        self.instances[at].changes = rules.breaker.as_ref().map(CircuitBreaker::changes);
        self.instances[at].breaker.clone_from(&rules.breaker);
        self.instances[at].machine = Some(Machine::new(Arc::new(rules), self.now));
        self.trace(at, &"starts");
        self.input(at, Input::Timer);
    }

    fn trace(&self, at: usize, what: &dyn std::fmt::Debug) {
        if self.is_traced {
            println!("{:>9.3?} {at} {what:?}", self.now - self.start);
        }
    }

    /// Passes an input to an instance, and everything that is due at once afterwards.
    fn input(&mut self, at: usize, input: Input) {
        self.trace(at, &input);
        self.observe(at, &input);
        let Some(machine) = &mut self.instances[at].machine else {
            return;
        };
        let attempts = &self.instances[at].attempts;
        self.coverage.count(machine, &input, |id| {
            let head = attempts.get(&id)?.head();
            Some((head.partition.clone(), head.epoch))
        });
        if let Input::Finished(id, _) = &input {
            self.instances[at].attempts.remove(id);
        }
        let Some(machine) = &mut self.instances[at].machine else {
            return;
        };
        let effects = machine.on(input, self.now);
        self.perform(at, effects);
        for _ in 0..20 {
            let wake_at = self.instances[at]
                .machine
                .as_ref()
                .and_then(Machine::wake_at);
            let is_changed = self.instances[at].is_breaker_changed();
            if !is_changed && wake_at.is_none_or(|wake_at| wake_at > self.now) {
                return;
            }
            let Some(machine) = &mut self.instances[at].machine else {
                return;
            };
            let effects = machine.on(Input::Timer, self.now);
            self.perform(at, effects);
        }
        panic!("the machine spins");
    }

    fn perform(&mut self, at: usize, effects: Vec<Effect>) {
        let leaves = effects.iter().any(|e| matches!(e, Effect::Leave));
        for effect in effects {
            self.trace(at, &effect);
            if instance::is_checkpoint(&effect) {
                self.instances[at].steps_at_once += 1;
                let steps = self.instances[at].steps_at_once;
                assert!(steps < 30, "{steps} steps of checkpoints without a pause");
            }
            self.effect(at, effect, leaves);
        }
    }

    /// One step of the schedule.
    fn step(&mut self) {
        match self.rng.u8(0..100) {
            0..=59 => {
                if !self.work() {
                    self.advance_time();
                }
            }
            60..=74 => self.broker.produce(&mut self.rng),
            75..=87 => self.disturb(),
            _ => self.advance_time(),
        }
        self.assign_free();
    }

    fn assign_free(&mut self) {
        for number in 0..PARTITIONS {
            let is_free = self.broker.logs[number as usize].owner.is_none();
            if is_free && (self.is_calm || self.rng.u8(0..8) == 0) {
                let members: Vec<_> = (0..2).filter(|at| self.broker.is_member[*at]).collect();
                if let Some(member) = self.rng.choice(&members) {
                    self.broker.assign(number, *member);
                }
            }
        }
    }

    /// Something happens that no machine has asked for. Rebalances are drawn most often while a
    /// checkpoint is under way, since that is where they hurt.
    fn disturb(&mut self) {
        let at = self.rng.usize(0..2);
        let is_in_checkpoint = self.instances[at].jobs.iter().any(|job| {
            matches!(
                job.what,
                What::Flush(_) | What::Forget(_) | What::Store(_) | What::Commit(_)
            )
        });
        let number = self.rng.u32(0..PARTITIONS);
        let most = if is_in_checkpoint { 60 } else { 100 };
        match self.rng.u8(0..most) {
            0..=19 => self.revoke(at),
            20..=29 => drop(self.broker.lose(number)),
            30..=44 => self.there_and_back(number),
            45..=54 => self.broker.owned_by(at).into_iter().for_each(|number| {
                self.broker.lose(number);
            }),
            55..=57 => {
                // A consumer that does not tell of the loss.
                if let Some(owner) = self.broker.logs[number as usize].owner.take() {
                    self.broker.assign(number, owner.instance);
                }
            }
            58..=61 => self.advance_an_attempt(at),
            62..=66 if self.receives(at) => {
                let source = "away".into();
                self.input(
                    at,
                    Input::NotReceived(MessageBusError::Unavailable { source }),
                );
            }
            67..=69 if self.broker.is_member[at] => {
                let none = Input::NoPosition(partition(number), NoPosition::Missing, false);
                self.broker.inboxes[at].push_back(none);
            }
            70..=74 => {
                let time = Duration::from_millis(self.rng.u64(10..25_000));
                self.stop(at, time);
            }
            75..=79 => self.crash(at),
            80 => self.input(at, Input::Broken("a panic".into())),
            81.. if self.instances[at].machine.is_none() => self.start_instance(at),
            _ => {}
        }
    }

    fn revoke(&mut self, at: usize) {
        let mut owned = self.broker.owned_by(at);
        if !owned.is_empty() && self.rng.bool() {
            owned = vec![owned[self.rng.usize(0..owned.len())]];
        }
        let most = if self.rng.u8(0..4) == 0 { 200 } else { 8_000 };
        let grace = Duration::from_millis(self.rng.u64(0..most));
        if !owned.is_empty() {
            self.broker.revoke(at, &owned, grace);
        }
    }

    fn there_and_back(&mut self, number: u32) {
        if let Some(instance) = self.broker.lose(number) {
            self.broker.assign(number, instance);
        }
    }

    fn advance_an_attempt(&mut self, at: usize) {
        let ids: Vec<_> = self.instances[at].attempts.keys().copied().collect();
        if let Some(id) = self.rng.choice(&ids) {
            self.input(at, Input::Advanced(*id));
        }
    }

    fn stop(&mut self, at: usize, time: Duration) {
        let by = self.now + time;
        let stop_by = &mut self.instances[at].stop_by;
        if self.instances[at].machine.is_some() && stop_by.is_none() {
            *stop_by = Some(by);
            self.input(at, Input::Stop(by));
        }
    }

    fn crash(&mut self, at: usize) {
        if self.instances[at].machine.is_some() {
            self.trace(at, &"crashes");
            self.broker.leave(at);
            self.instances[at] = Instance::new();
        }
    }

    fn receives(&self, at: usize) -> bool {
        let machine = self.instances[at].machine.as_ref();
        machine.is_some_and(Machine::receives)
    }

    /// Jumps to the next moment at which something is due, or to one before it.
    fn advance_time(&mut self) {
        let mut times = Vec::new();
        for instance in &self.instances {
            times.extend(instance.machine.as_ref().and_then(Machine::wake_at));
            times.extend(instance.jobs.iter().map(|job| job.not_before));
            times.extend(instance.attempts.values().map(|a| a.not_before));
        }
        let next = times.into_iter().filter(|at| *at > self.now).min();
        let next = next.unwrap_or(self.now + Duration::from_secs(1));
        let pause = next - self.now;
        self.now += if self.is_calm || self.rng.u8(0..4) > 0 {
            pause
        } else {
            pause.mul_f32(self.rng.f32())
        };
        for at in 0..2 {
            self.instances[at].steps_at_once = 0;
            let wake_at = self.instances[at]
                .machine
                .as_ref()
                .and_then(Machine::wake_at);
            if wake_at.is_some_and(|wake_at| wake_at <= self.now) {
                self.input(at, Input::Timer);
            }
            self.check_deadlines(at);
        }
    }

    fn check_deadlines(&self, at: usize) {
        let instance = &self.instances[at];
        if instance.machine.is_none() {
            return;
        }
        for (id, (deadline, _)) in &instance.revoking {
            assert!(*deadline > self.now, "{id:?} is not released by its grace");
        }
        if let Some(by) = instance.stop_by {
            assert!(by > self.now, "a stopped machine does not end in time");
        }
    }

    /// Lets everything heal, and waits until all is handled and committed.
    fn come_to_rest(&mut self) {
        self.is_calm = true;
        for log in &mut self.broker.logs {
            // What no build could read is deleted, unless it has a letter.
            for logged in &mut log.records {
                logged.take_if(|l| !l.is_readable && !l.is_given_up);
            }
        }
        for _ in 0..STEPS_TO_REST {
            for at in 0..2 {
                if self.instances[at].machine.is_none() {
                    self.start_instance(at);
                }
            }
            self.assign_free();
            if self.is_at_rest() {
                return;
            }
            if !self.work() {
                self.advance_time();
            }
        }
        let committed: Vec<_> = (self.broker.logs.iter())
            .map(|log| (log.committed, log.records.len()))
            .collect();
        panic!("never at rest: {committed:?}");
    }

    fn is_at_rest(&self) -> bool {
        let mut logs = self.broker.logs.iter();
        logs.all(|log| log.committed as usize == log.records.len())
    }

    fn run(&mut self) {
        for _ in 0..self.rng.usize(150..350) {
            self.step();
        }
        self.come_to_rest();
        for at in 0..2 {
            self.stop(at, Duration::from_secs(25));
        }
        while self.instances.iter().any(|i| i.machine.is_some()) {
            if !self.work() {
                self.advance_time();
            }
        }
    }
}

/// Runs a seed, and names it if it fails.
fn run(seed: u64, is_traced: bool) -> Coverage {
    let run = || {
        let mut simulation = Simulation::new(seed, is_traced);
        simulation.run();
        simulation.coverage.seeds = 1;
        simulation.coverage
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        eprintln!("seed {seed} failed: run it alone with FOLDSTREAM_SEED={seed}");
        resume_unwind(panic)
    })
}

/// Reads a number from a variable of the environment.
fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok().filter(|v| !v.is_empty())?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is {value:?}, which is not a number")))
}

#[test]
fn nothing_is_skipped_reordered_or_committed_too_early_whatever_happens() {
    if let Some(seed) = number("FOLDSTREAM_SEED") {
        run(seed, true);
        return;
    }
    let seeds = match number("FOLDSTREAM_LONG") {
        Some(1) => 200_000,
        _ => 10_000,
    };
    eprintln!("length: {seeds} seeds (FOLDSTREAM_LONG=1 runs 200000)");
    let (next, all) = (AtomicU64::new(0), Mutex::new(Coverage::default()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let run_seeds = || {
            let mut coverage = Coverage::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    break;
                }
                coverage.add(run(seed, false));
            }
            all.lock().unwrap().add(coverage);
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run_seeds)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                // The other threads need not run the rest.
                next.store(seeds, Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    });
    let coverage = all.into_inner().unwrap();
    let mean = coverage.inputs / coverage.seeds;
    println!("{}\n{mean} inputs per seed", coverage.table());
    assert!(mean >= 200, "{mean} inputs per seed");
    assert_eq!(coverage.missing(), [], "combinations that were never met");
}
