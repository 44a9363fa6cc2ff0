//! Several processes with a distributed breaker, in memory and from a seed: crashes, lost and late
//! answers, outages of the store, rebalances, and a service that comes and goes.
mod calls;
mod chaos;
mod requests;
mod sight;

use super::{
    BreakerPolicy, CircuitState, Ticket,
    machine::Breaker,
    memory::{Store, Write},
    quorum::{Membership, Request},
};
use crate::ports::Revision;
use fastrand::Rng;
use sight::{Sight, counted};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
const RENEW: Duration = Duration::from_secs(5);
const FRESH: Duration = Duration::from_secs(15);
const FIRST_OPEN: Duration = Duration::from_secs(1);
const NODES: usize = 3;
const QUORUM: usize = 2;
const THREADS: u64 = 4;

/// The number of times that each thing has happened.
type Hits = BTreeMap<&'static str, u64>;

/// Everything that must have happened in the seeds of a run, or it has tested nothing.
const HAPPENED: [&str; 30] = [
    "a circuit opened by itself",
    "a circuit opened by the votes of others",
    "a local probe succeeded",
    "a local probe failed",
    "a leased probe succeeded",
    "a leased probe failed",
    "a probe ended without a verdict",
    "a call was refused while a probe ran",
    "an epoch ended",
    "a conditional write met a conflict",
    "the lease was taken over",
    "the lease was released",
    "two processes probed at once after a take-over",
    "a vote was deleted",
    "a vote was only seen once",
    "a vote of an old epoch was seen",
    "a vote stood still",
    "a late vote was written after the circuit had closed",
    "a request got lost",
    "an answer got lost",
    "a write was applied late",
    "the store was unreachable",
    "a quorum ended without the end of its epoch",
    "a process crashed",
    "a process crashed with a request on its way",
    "a process crashed while it probed",
    "a process lost all its work while it was open",
    "an answer to a call from before an opening was ignored",
    "an answer to a call from before an epoch was ignored",
    "a bad process voted",
];

/// A call that is running.
#[derive(Debug)]
struct Running {
    ticket: Ticket,
    end: Instant,
    openings: u64,
    epoch: Option<u64>,
}

#[derive(Debug)]
struct Node {
    id: usize,
    life: u64,
    machine: Breaker,
    wake: Instant,
    bad: bool,
    serving: bool,
    running: Vec<Running>,
    next_call: Instant,
    /// The request that is on its way: when it ends, and what then is answered.
    request: Option<(Instant, Request, Fate)>,
    /// The changes from closed to open, and whether the node was closed after the last event.
    openings: u64,
    closed: bool,
    epoch: Option<u64>,
    sights: BTreeMap<String, Sight>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    AnswerLost,
    RequestLost,
    Late,
}

#[derive(Debug)]
struct World {
    rng: Rng,
    now: Instant,
    start: Instant,
    store: Store,
    store_down: bool,
    service_down: bool,
    /// Faults happen; in the end they do not.
    faults: bool,
    /// Only the first process is bad, and the service is never down.
    one_bad: bool,
    nodes: Vec<Node>,
    late: Vec<(Instant, Write, Revision, usize)>,
    /// The epochs that a leased probe has shown to be over, by the process in its life.
    reachable: BTreeSet<(String, u64)>,
    /// The owner of each epoch of the lease, and when it may probe.
    owners: BTreeMap<u64, (String, Instant)>,
    hits: Hits,
    traced: bool,
    trace: Vec<String>,
}

fn label(id: usize) -> String {
    format!("n{id}")
}

impl World {
    fn new(seed: u64, hits: Hits, base: Instant) -> Self {
        let mut world = Self {
            rng: Rng::with_seed(seed),
            now: base,
            start: base,
            store: Store::default(),
            store_down: false,
            service_down: false,
            faults: true,
            one_bad: seed.is_multiple_of(4),
            nodes: Vec::new(),
            late: Vec::new(),
            reachable: BTreeSet::new(),
            owners: BTreeMap::new(),
            hits,
            traced: std::env::var_os("FOLDSTREAM_SEED").is_some(),
            trace: Vec::new(),
        };
        world.leave_behind();
        for id in 0..NODES {
            let node = world.born(id, 0);
            world.nodes.push(node);
        }
        world
    }

    fn hit(&mut self, what: &'static str) {
        *self.hits.entry(what).or_default() += 1;
    }
    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.traced {
            let at = self.now - self.start;
            self.trace.push(format!("{at:?} {}", text()));
        }
    }
    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n{}", self.trace.join("\n"));
    }
    fn within(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..=to))
    }
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    fn born(&mut self, id: usize, life: u64) -> Node {
        let policy = BreakerPolicy::default()
            .with_min_calls(2)
            .with_open_time(FIRST_OPEN, 8 * FIRST_OPEN);
        let member = Membership {
            label: label(id),
            owner: format!("{}#{life}", label(id)),
            quorum: QUORUM,
            renew: RENEW,
        };
        Node {
            id,
            life,
            machine: Breaker::distributed(policy, member, self.now),
            wake: self.now,
            bad: self.one_bad && id == 0,
            serving: true,
            running: Vec::new(),
            next_call: self.now + self.within(0, 3000),
            request: None,
            openings: 0,
            closed: true,
            epoch: None,
            sights: BTreeMap::new(),
        }
    }

    /// Returns the time of the next event, and does what happens then.
    fn step(&mut self) {
        let mut next: Option<(Instant, usize, u8)> = None;
        let mut consider = |at: Instant, id: usize, kind: u8| {
            if next.is_none_or(|(first, _, _)| at < first) {
                next = Some((at, id, kind));
            }
        };
        for (id, node) in self.nodes.iter().enumerate() {
            match &node.request {
                Some((at, _, _)) => consider(*at, id, 0),
                None => consider(node.wake, id, 1),
            }
            if let Some(end) = node.running.iter().map(|call| call.end).min() {
                consider(end, id, 2);
            }
            consider(node.next_call, id, 3);
        }
        for (index, (at, ..)) in self.late.iter().enumerate() {
            consider(*at, index, 4);
        }
        let Some((at, id, kind)) = next else { return };
        self.now = self.now.max(at);
        match kind {
            0 => self.answer(id),
            1 => {}
            2 => self.end_call(id),
            3 => self.start_call(id),
            _ => self.apply_late(id),
        }
        if kind != 4 {
            self.after(id);
        }
    }

    /// Lets the driver of a process ask for its next request, and checks what must always hold.
    fn after(&mut self, id: usize) {
        let now = self.now;
        self.nodes[id].wake = self.nodes[id].machine.wake_at(now).unwrap();
        if self.nodes[id].request.is_none()
            && self.nodes[id].wake <= now
            && let Some(request) = self.nodes[id].machine.request(now)
        {
            let fate = match self.faults && self.chance(15) {
                false => Fate::Answered,
                true => [Fate::AnswerLost, Fate::RequestLost, Fate::Late][self.rng.usize(0..3)],
            };
            let at = now + self.within(1, 200);
            self.note(|| format!("n{id} {request:?} {fate:?}"));
            self.nodes[id].request = Some((at, request, fate));
        }
        let node = &mut self.nodes[id];
        node.wake = node.wake.max(now + MS);
        let closed = node.machine.state(now) == CircuitState::Closed;
        let opened = node.closed && !closed;
        node.openings += u64::from(opened);
        node.closed = closed;
        let probes = node.running.iter().filter(|c| c.ticket.is_probe()).count();
        let is_probing = node.machine.circuit.is_probing();
        let votes = node.machine.votes(now);
        let by_itself = !node.machine.circuit.is_closed();
        let counted = counted(&node.sights, node.epoch, now);
        if opened {
            self.hit(match by_itself {
                true => "a circuit opened by itself",
                false => "a circuit opened by the votes of others",
            });
            self.note(|| format!("n{id} open, by itself: {by_itself}"));
        }
        if probes > 1 {
            self.fail("two probes at once in one process");
        }
        if is_probing != (probes == 1) {
            self.fail("the slot of the probe is not that of a running probe");
        }
        if votes != counted {
            self.fail(&format!("n{id} counts {votes} votes, not {counted}"));
        }
    }
}

fn run(seed: u64, hits: Hits, base: Instant) -> Hits {
    let mut world = World::new(seed, hits, base);
    let steps = 150 + world.rng.usize(0..150);
    for _ in 0..steps {
        world.step();
        world.disturb();
    }
    world.heal();
    let end = world.now + Duration::from_secs(600);
    while !world.is_calm() {
        if world.now > end {
            world.fail("not every process calls again, 10 minutes after all was well");
        }
        world.step();
    }
    world.hits
}

#[test]
fn processes_that_share_a_breaker_stop_and_start_together_whatever_fails() {
    let only = std::env::var("FOLDSTREAM_SEED").ok();
    let seeds = match only.as_deref().map(str::parse::<u64>) {
        Some(seed) => {
            let seed = seed.unwrap();
            seed..seed + 1
        }
        None => 0..10_000,
    };
    let base = Instant::now();
    let hits = std::thread::scope(|scope| {
        let share = |thread: u64| seeds.clone().filter(move |seed| seed % THREADS == thread);
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || run_all(share(thread), base)))
            .collect();
        let mut all = Hits::new();
        for thread in threads {
            for (what, times) in thread.join().expect("its seed is printed") {
                *all.entry(what).or_default() += times;
            }
        }
        all
    });
    for (what, times) in &hits {
        println!("{times:>9} {what}");
    }
    if only.is_none() {
        for what in HAPPENED {
            assert!(
                hits.get(what).is_some_and(|times| *times > 0),
                "never: {what}"
            );
        }
    }
}

fn run_all(seeds: impl Iterator<Item = u64>, base: Instant) -> Hits {
    let mut hits = Hits::new();
    for seed in seeds {
        let before = std::mem::take(&mut hits);
        hits = std::panic::catch_unwind(|| run(seed, before, base)).unwrap_or_else(|panic| {
            eprintln!("FOLDSTREAM_SEED={seed} repeats this");
            std::panic::resume_unwind(panic)
        });
    }
    hits
}
