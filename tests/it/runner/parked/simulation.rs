//! Instances that die at any row operation, lose answers and partitions, and an operator who
//! redrives and discards at random, while some events fail until they are fixed.
use super::super::harness::{TOPIC, World, partition};
use super::operator::Operator;
use super::views::{VIEWS, policy};
use crate::support::AccountEvent;
use foldstream::{
    Backoff, RetryPolicy, StreamId,
    adapter::kafka_partition,
    ports::{MessageBus, Offset, PartitionId},
    runner::{
        DeliveryLevel, EventContext, HandlerError, HandlerResult, ModelId, ProcessorPolicy,
        Projector, Runner,
    },
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const PARTITIONS: u32 = 2;
const IDS: [&str; 3] = ["a", "b", "c"];
type Event = (String, u64);
type Hits = Arc<Mutex<BTreeMap<String, u64>>>;

/// The facts outside of all processes.
struct Truth {
    seed: u64,
    rng: Mutex<fastrand::Rng>,
    durable: Mutex<BTreeSet<Event>>,
    bad: Mutex<BTreeSet<Event>>,
    /// Discards that the operator may have asked for, and those that were acknowledged.
    asked: Mutex<BTreeSet<Event>>,
    passed: Mutex<BTreeSet<Event>>,
    /// The buffers of all instances that live.
    buffers: Mutex<Vec<std::sync::Weak<Mutex<Vec<Event>>>>>,
    calm: Mutex<bool>,
    /// The event at each offset.
    places: Mutex<Vec<(PartitionId, Offset, Event)>>,
    /// All streams of a partition share a lane.
    shares_lanes: bool,
}

impl Truth {
    fn one_in(&self, n: u32) -> bool {
        self.rng.lock().unwrap().u32(0..n) == 0
    }
    fn becomes_durable(&self, event: &Event) {
        let (seed, (id, version)) = (self.seed, event);
        let is_passed = self.passed.lock().unwrap().contains(event);
        assert!(
            !is_passed,
            "seed {seed}: {event:?} takes effect after its discard was acknowledged"
        );
        let mut durable = self.durable.lock().unwrap();
        let asked = self.asked.lock().unwrap();
        for before in 1..*version {
            let before = (id.clone(), before);
            let is_done = durable.contains(&before) || asked.contains(&before);
            assert!(is_done, "seed {seed}: {event:?} comes before {before:?}");
        }
        if self.shares_lanes {
            let places = self.places.lock().unwrap();
            let of = places.iter().find(|(.., placed)| placed == event);
            let (partition, offset, _) = of.expect("it was published");
            for (_, _, before) in places
                .iter()
                .filter(|(p, o, _)| p == partition && o < offset)
            {
                let is_done = durable.contains(before) || asked.contains(before);
                assert!(
                    is_done,
                    "seed {seed}: {event:?} overtakes {before:?} in its lane"
                );
            }
        }
        durable.insert(event.clone());
    }
    fn is_buffered(&self, event: &Event) -> bool {
        let buffers = self.buffers.lock().unwrap();
        let mut live = buffers.iter().filter_map(std::sync::Weak::upgrade);
        live.any(|buffer| buffer.lock().unwrap().contains(event))
    }
}

struct Instance {
    truth: Arc<Truth>,
    buffer: Option<Arc<Mutex<Vec<Event>>>>,
    /// The number of flushes that have failed in a row.
    failed_flushes: AtomicU32,
}

impl Projector for Instance {
    const NAME: &'static str = "views";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let event = (ctx.stream().id().to_owned(), ctx.version().get());
        if self.truth.bad.lock().unwrap().contains(&event) {
            return Err(HandlerError::permanent("bad"));
        }
        if !*self.truth.calm.lock().unwrap() && self.truth.one_in(25) {
            return Err(HandlerError::transient("down"));
        }
        match &self.buffer {
            Some(buffer) => buffer.lock().unwrap().push(event),
            None => self.truth.becomes_durable(&event),
        }
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        if !*self.truth.calm.lock().unwrap() && self.truth.one_in(15) {
            // More failures in a row would spend the retries, and halt the processor.
            let in_a_row = self.failed_flushes.fetch_add(1, Ordering::SeqCst);
            if in_a_row < 2 {
                return Err(HandlerError::transient("the flush failed"));
            }
        }
        self.failed_flushes.store(0, Ordering::SeqCst);
        if let Some(buffer) = &self.buffer {
            let events = std::mem::take(&mut *buffer.lock().unwrap());
            events
                .iter()
                .for_each(|event| self.truth.becomes_durable(event));
        }
        Ok(())
    }
    async fn forget_buffered(&self, _: &ModelId, streams: &[StreamId]) -> HandlerResult {
        if let Some(buffer) = &self.buffer {
            let is_kept = |(id, _): &Event| !streams.iter().any(|stream| stream.id() == id);
            buffer.lock().unwrap().retain(is_kept);
        }
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

struct Simulation {
    truth: Arc<Truth>,
    world: World,
    operator: Operator,
    is_buffered: bool,
    has_store: bool,
    level: DeliveryLevel,
    hits: Hits,
}

impl Simulation {
    fn new(seed: u64, hits: &Hits) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let bad = (0..rng.usize(1..4)).map(|_| (IDS[rng.usize(0..3)].to_owned(), rng.u64(1..6)));
        let bad = bad.collect();
        let world = World::new(PARTITIONS);
        let operator = Operator::new(world.control.clone(), "views", PARTITIONS);
        let level = match seed & 4 {
            0 => DeliveryLevel::AtLeastOnce,
            _ => DeliveryLevel::Deduplicated,
        };
        Self {
            truth: Arc::new(Truth {
                seed,
                rng: Mutex::new(rng),
                durable: Mutex::default(),
                bad: Mutex::new(bad),
                asked: Mutex::default(),
                passed: Mutex::default(),
                buffers: Mutex::default(),
                calm: Mutex::new(false),
                places: Mutex::default(),
                shares_lanes: seed & 8 != 0,
            }),
            world,
            operator,
            is_buffered: seed & 1 == 1,
            has_store: seed & 2 == 0,
            level,
            hits: hits.clone(),
        }
    }

    fn hit(&self, what: &str, times: u64) {
        *self.hits.lock().unwrap().entry(what.into()).or_default() += times;
    }

    fn policy(&self) -> ProcessorPolicy {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1)).with_seed(7);
        let retry = RetryPolicy::default().with_backoff(backoff);
        let policy = match self.truth.shares_lanes {
            true => policy().with_lane(|stream| {
                kafka_partition(stream.as_str().as_bytes(), PARTITIONS).to_string()
            }),
            false => policy(),
        };
        policy
            .with_level(self.level)
            .with_commit_interval(Duration::from_millis(700))
            .with_retry(retry.with_max_elapsed(Duration::from_secs(1)))
    }

    fn runner(&self, faults: &Faults) -> Runner {
        let buffer = self.is_buffered.then(Arc::default);
        if let Some(buffer) = &buffer {
            self.truth
                .buffers
                .lock()
                .unwrap()
                .push(Arc::downgrade(buffer));
        }
        let instance = Instance {
            truth: self.truth.clone(),
            buffer,
            failed_flushes: AtomicU32::new(0),
        };
        let mut builder = self.world.faulty_builder(faults);
        if self.has_store {
            builder = builder.with_event_store(self.world.store.clone());
        }
        builder
            .projector_with(instance, self.policy())
            .build()
            .unwrap()
    }

    /// Creates faults of all calls, and a probe that counts row operations and lets the process die
    /// at one of them now and then.
    fn faults(&self, seed: u64, death: &CancellationToken) -> Faults {
        let calls = [
            Op::Get,
            Op::GetMany,
            Op::Put,
            Op::Delete,
            Op::Range,
            Op::Next,
            Op::Commit,
        ];
        let (hits, death) = (self.hits.clone(), death.clone());
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        Faults::seeded(seed)
            .with(Fault::Unavailable.on(calls).one_in(25))
            .with(Fault::LoseReply.on(calls).one_in(25))
            .with(
                Fault::Delay(Duration::from_millis(900))
                    .on(calls)
                    .one_in(30)
                    .jittered(),
            )
            .with_probe(move |moment, call| {
                let (verb, key) = match call {
                    Call::Put { row, .. } => ("put", &row.key.partition),
                    Call::Delete { key, .. } => ("delete", &key.partition),
                    _ => return,
                };
                let kind = key.split('/').next().unwrap_or_default();
                *hits
                    .lock()
                    .unwrap()
                    .entry(format!("{verb} {kind}"))
                    .or_default() += 1;
                let is_row = ["park", "dlq", "discarded", "def", "order"].contains(&kind);
                if is_row && rng.lock().unwrap().u32(0..40) == 0 {
                    *hits
                        .lock()
                        .unwrap()
                        .entry(format!("died at {verb} {kind} {moment:?}"))
                        .or_default() += 1;
                    death.cancel();
                }
            })
    }

    /// Runs one instance after the other.
    async fn instances(&self, seed: u64, stop: &CancellationToken) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !stop.is_cancelled() {
            let death = CancellationToken::new();
            let faults = self.faults(rng.u64(..), &death);
            let runner = self.runner(&faults);
            let life = Duration::from_millis(rng.u64(1_000..15_000));
            tokio::select! {
                biased;
                () = death.cancelled() => {}
                () = tokio::time::sleep(life) => self.hit("died at any moment", 1),
                () = stop.cancelled() => {}
                report = runner.run(std::future::pending()) => {
                    panic!("seed {}: {report:?}", self.truth.seed)
                }
            }
            self.hit("faults", faults.log().len() as u64);
        }
    }

    async fn rebalances(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.truth.rng.lock().unwrap().u64(500..6_000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let lost = partition(u32::from(self.truth.one_in(2)));
            self.world.bus.expel_owner(VIEWS, &lost);
            self.hit("expelled", 1);
        }
    }

    async fn write(&self) {
        for _ in 0..18 {
            let (id, pause) = {
                let mut rng = self.truth.rng.lock().unwrap();
                (IDS[rng.usize(0..3)], rng.u64(0..2_500))
            };
            let commit = self.world.store(id, 1).await;
            self.world.publish(&commit).await;
            for event in commit.recorded() {
                let number = kafka_partition(event.header.stream.as_str().as_bytes(), PARTITIONS);
                let mut places = self.truth.places.lock().unwrap();
                let offset = places
                    .iter()
                    .filter(|(p, ..)| p.partition == number)
                    .count() as u64;
                let event = (id.to_owned(), event.header.version.get());
                places.push((partition(number), Offset::new(offset), event));
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.check_commits().await;
        }
    }

    /// Asserts that no offset has passed an event that is not durable, discarded or known to wait.
    async fn check_commits(&self) {
        let committed = self.world.bus.committed(VIEWS, TOPIC).await.unwrap();
        let mut parked = BTreeMap::new();
        for id in IDS {
            parked.insert(id.to_owned(), self.operator.parked(id).await);
        }
        let durable = self.truth.durable.lock().unwrap();
        let asked = self.truth.asked.lock().unwrap();
        for (partition, offset, event) in &*self.truth.places.lock().unwrap() {
            let (_, next) = &committed[partition.partition as usize];
            let waits = parked[&event.0]
                .as_ref()
                .is_some_and(|(from, high, _)| (*from..=*high).contains(&event.1));
            let is_known = durable.contains(event) || asked.contains(event) || waits;
            let is_passed = next.is_some_and(|next| next > *offset);
            assert!(
                is_known || !is_passed,
                "seed {}: the offset has passed {event:?}",
                self.truth.seed
            );
        }
    }

    /// Redrives and discards at random. Some requests are not announced.
    async fn operate(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let (id, discards, announces, pause) = {
                let mut rng = self.truth.rng.lock().unwrap();
                let discards = rng.u32(0..3) == 0;
                (
                    IDS[rng.usize(0..3)],
                    discards,
                    rng.u32(0..5) > 0,
                    rng.u64(500..4_000),
                )
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.acknowledge().await;
            let Some((from, high, _)) = self.operator.parked(id).await else {
                continue;
            };
            if discards {
                let version = self.truth.rng.lock().unwrap().u64(from..=high.max(from));
                self.truth
                    .asked
                    .lock()
                    .unwrap()
                    .insert((id.into(), version));
                self.operator.ask_discard(id, version).await;
                self.hit("discard asked", 1);
            } else {
                self.operator.ask_redrive(id).await;
                self.hit("redrive asked", 1);
            }
            if announces {
                self.operator.announce().await;
            }
            if self.truth.one_in(4) {
                // A fix is deployed.
                self.truth.bad.lock().unwrap().pop_first();
            }
        }
    }

    /// Notes what the owners have said about discards.
    async fn acknowledge(&self) {
        let asked = self.truth.asked.lock().unwrap().clone();
        for event in asked {
            let state = self.operator.discarded(&event.0, event.1).await;
            let is_done = self.truth.durable.lock().unwrap().contains(&event)
                || self.truth.is_buffered(&event);
            if state.as_deref() == Some("passed") && !is_done {
                let is_new = self.truth.passed.lock().unwrap().insert(event);
                self.hit("discard passed", u64::from(is_new));
            }
        }
    }

    async fn run(&self) {
        let stop = CancellationToken::new();
        let written = async {
            self.write().await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            stop.cancel();
        };
        tokio::join!(
            written,
            self.rebalances(&stop),
            self.operate(&stop),
            self.instances(self.truth.seed * 2, &stop),
            self.instances(self.truth.seed * 2 + 1, &stop),
        );
        self.come_to_rest().await;
    }

    /// All is fixed, and nothing fails any more: every request is served, and nothing is left.
    async fn come_to_rest(&self) {
        let seed = self.truth.seed;
        self.truth.bad.lock().unwrap().clear();
        *self.truth.calm.lock().unwrap() = true;
        self.truth.buffers.lock().unwrap().clear();
        let rest = async {
            tokio::time::sleep(Duration::from_secs(120)).await;
            self.check_commits().await;
            for id in IDS {
                let parked = self.operator.parked(id).await;
                let is_waiting = parked
                    .as_ref()
                    .is_none_or(|(_, _, state)| state == "parked");
                assert!(
                    is_waiting,
                    "seed {seed}: a request is not served: {parked:?}"
                );
                if self.operator.redrive(id).await {
                    self.hit("parked at the end", 1);
                }
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
            for id in IDS {
                for version in self.operator.letters(id).await {
                    // The letter of an instance that was late.
                    self.hit("letter at the end", 1);
                    self.operator.ask(id, version, "redrive").await;
                }
            }
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        let runner = self.runner(&Faults::none());
        let report = runner.run(rest).await.into_result();
        assert!(report.is_ok(), "seed {seed}: {report:?}");
        for kind in ["park", "dlq", "ask"] {
            let left = self.operator.all(kind).await;
            assert!(left.is_empty(), "seed {seed}: {kind} {left:?}");
        }
        let durable = self.truth.durable.lock().unwrap().clone();
        let asked = self.truth.asked.lock().unwrap().clone();
        for (_, _, event) in &*self.truth.places.lock().unwrap() {
            let is_done = durable.contains(event) || asked.contains(event);
            assert!(is_done, "seed {seed}: {event:?} was never handled");
        }
        let ends = (self.world.committed(VIEWS).await, self.world.ends().await);
        assert_eq!(ends.0, ends.1, "seed {seed}: the offset is not at the end");
    }
}

#[tokio::test(start_paused = true)]
async fn no_event_is_skipped_overtaken_or_handled_after_its_discard_whatever_dies() {
    let hits = Hits::default();
    let seeds = foldstream_testkit::length::seeds(100, 5_000);
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        Simulation::new(seed, &hits).run().await;
    }
    let hits = hits.lock().unwrap();
    println!("{runs} runs: {hits:#?}");
    if runs < 100 {
        return;
    }
    for kind in [
        "put park",
        "delete park",
        "put dlq",
        "put discarded",
        "put def",
        "put order",
    ] {
        assert!(hits.contains_key(kind), "{kind}");
    }
    for hit in [
        "faults",
        "expelled",
        "redrive asked",
        "discard passed",
        "parked at the end",
    ] {
        assert!(hits.contains_key(hit), "{hit}");
    }
    for kind in [
        "put park",
        "delete park",
        "put dlq",
        "put discarded",
        "put def",
        "put order",
    ] {
        let died = hits
            .keys()
            .any(|hit| hit.starts_with(&format!("died at {kind}")));
        assert!(died, "no process died at {kind}");
    }
}
