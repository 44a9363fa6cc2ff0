//! Replays of processes that die between any two row operations, lose answers, are late and are
//! cancelled, while others append and publish.
use super::world::*;
use crate::seeds::{self, Watch};
use foldstream::{
    ports::{ControlStore, EventStore, RowKey},
    replay::{Replay, ReplayError, RunId},
    runner::{DeliveryLevel, ProcessorPolicy, Projector, Runner},
};
use foldstream_testkit::{
    faults::{Call, Fault, Faults, Moment, Op, Rule},
    length,
};
use futures::FutureExt;
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The rows at whose writes a process dies.
const POINTS: [&str; 12] = [
    "lease",
    "run preparing",
    "run reset_done",
    "run scanning",
    "run catch_up",
    "run cancelled",
    "proc preparing",
    "proc catch_up",
    "proc live",
    "seg",
    "boot",
    "pos",
];

/// The number of crashes before and after the write of each point.
type Hits = Arc<Mutex<BTreeMap<&'static str, (u32, u32)>>>;

/// Returns the point of a write.
fn point(call: &Call<'_>) -> Option<&'static str> {
    let Call::Put { row, .. } = call else {
        return None;
    };
    let value = || serde_json::from_slice::<serde_json::Value>(&row.value).unwrap();
    let name = match row.key.partition.as_str() {
        "run/lease" => "lease".into(),
        "run" => format!("run {}", value()["s"].as_str().unwrap()),
        "proc" => format!("proc {}", value()["st"].as_str().unwrap()),
        other => other.split('/').next().unwrap().to_owned(),
    };
    POINTS.into_iter().find(|point| *point == name)
}

/// A history, and what was found wrong in it.
struct History {
    seed: u64,
    world: Arc<World>,
    rng: Mutex<fastrand::Rng>,
    hits: Hits,
    wrong: Arc<Mutex<Vec<String>>>,
    scattered: bool,
    policy: ProcessorPolicy,
}

impl History {
    fn new(seed: u64, hits: Hits) -> Self {
        // The library draws the jitter of its own pauses from the generator of this thread.
        fastrand::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = World::new(seed);
        let level = match seed % 3 {
            0 => DeliveryLevel::AtLeastOnce,
            1 => DeliveryLevel::Deduplicated,
            _ => DeliveryLevel::ExactlyOnceEffect,
        };
        let stores = level == DeliveryLevel::ExactlyOnceEffect;
        *world.model.stores_position.lock().unwrap() = stores;
        world.model.late_resets.lock().unwrap().replace(rng.fork());
        Self {
            seed,
            world,
            scattered: rng.bool(),
            rng: Mutex::new(rng),
            hits,
            wrong: Arc::default(),
            policy: ProcessorPolicy::projector()
                .with_level(level)
                .with_concurrency(3),
        }
    }
    fn below(&self, n: u32) -> u32 {
        self.rng.lock().unwrap().u32(0..n)
    }

    /// Returns faults of a process: it dies at a write, and some answers are lost or late.
    fn faults(&self, dies: bool) -> Faults {
        let any = POINTS[self.below(POINTS.len() as u32) as usize];
        // What was flushed before a cursor moves is decided there.
        let at = if self.below(3) == 0 { "seg" } else { any };
        let (nth, before) = (self.below(2), self.below(2) == 0);
        let (seen, hits) = (Mutex::new(0), self.hits.clone());
        let crash = Rule::chosen_by(move |call| {
            if !dies || point(call) != Some(at) {
                return None;
            }
            let mut seen = seen.lock().unwrap();
            *seen += 1;
            if *seen != nth + 1 {
                return None;
            }
            let mut hits = hits.lock().unwrap();
            let hits = hits.entry(at).or_default();
            if before {
                hits.0 += 1;
                Some(Fault::CrashBefore)
            } else {
                hits.1 += 1;
                Some(Fault::CrashAfter)
            }
        });
        let (control, wrong) = (self.world.control.clone(), self.wrong.clone());
        Faults::seeded(self.seed + u64::from(self.below(1000)))
            .with(crash)
            .with(Fault::LoseReply.on(Op::Put).one_in(30))
            .with(Fault::LoseRequest.on(Op::Put).one_in(40))
            .with(
                Fault::ApplyLate(Duration::from_secs(8))
                    .on(Op::Put)
                    .one_in(60)
                    .jittered(),
            )
            .with(Fault::Throttled(None).on([Op::Scan, Op::Get]).one_in(30))
            .with(
                Fault::Delay(Duration::from_millis(900))
                    .on(Op::Scan)
                    .one_in(3)
                    .jittered(),
            )
            .with_probe(move |moment, call| {
                if let (Moment::Done, Call::Put { row, .. }) = (moment, call)
                    && row.key.partition == "proc"
                {
                    let found = check_proc(&*control, &row.value);
                    wrong.lock().unwrap().extend(found);
                }
            })
    }

    fn replay(&self, faults: &Faults) -> (Runner, Replay) {
        let store: Arc<dyn EventStore> = match self.scattered {
            true => scattered(self.world.store.clone()),
            false => self.world.store.clone(),
        };
        let runner = self.world.runner_on(faults, store, self.policy.clone());
        let replay = Replay::all(&runner)
            .with_segments(1 + self.below(4))
            .with_page(NonZeroU32::new(1 + self.below(4)).unwrap())
            .with_lease(Duration::from_secs(3))
            .with_reset_timeout(Duration::from_secs(5))
            .with_checkpoint_interval(Duration::from_millis(u64::from(1 + self.below(900))));
        (runner, replay)
    }

    /// Runs one process to its end or death. Returns the run to go on with, and true if the run
    /// was handed over.
    async fn process(&self, run: Option<RunId>, dies: bool) -> (Option<RunId>, bool) {
        let faults = self.faults(dies);
        let (_runner, replay) = self.replay(&faults);
        let begun = async {
            match run {
                Some(run) => replay.resume(run).await,
                None => replay.start().await,
            }
        };
        let handle = match faults.run(begun).await {
            None => return (run, false),
            Some(Ok(handle)) => handle,
            Some(Err(error)) => return (next_run(run, &error), false),
        };
        let run = Some(handle.run());
        let operator = async {
            if self.below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(self.below(6000)))).await;
                if let Some(Err(error)) = faults.run(handle.cancel()).await {
                    // It is repeated by the next process.
                    assert!(!matches!(error, ReplayError::TakenOver { .. }));
                }
            }
        };
        operator.await;
        match faults.run(handle.wait()).await {
            None => (run, false),
            Some(Ok(_)) => (run, true),
            Some(Err(error)) => (next_run(run, &error), false),
        }
    }

    /// Returns true if an operator was faster than the hand-over, also if the write that cancels
    /// the run came late. The cancellation is then repeated, as its operator would.
    async fn is_cancelled(&self, run: Option<RunId>) -> bool {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let run = run.unwrap();
        let row = self.world.row("run", &run.to_string()).await.unwrap();
        if row["s"] == "catch_up" {
            return false;
        }
        assert_eq!(row["s"], "cancelled", "seed {}", self.seed);
        self.world.replay().cancel(run).await.unwrap();
        true
    }

    async fn appends(&self) {
        for _ in 0..self.below(15) {
            tokio::time::sleep(Duration::from_millis(u64::from(self.below(4000)))).await;
            let id = self.below(4).to_string();
            let commit = self.world.store(&id, 1 + self.below(3) as usize).await;
            self.world.late.lock().unwrap().push_back(commit);
            while self.below(3) > 0 {
                let commit = self.world.late.lock().unwrap().pop_front();
                match commit {
                    Some(commit) => self.world.publish(&commit).await,
                    None => break,
                }
            }
        }
    }

    async fn play(&self) {
        for _ in 0..self.below(25) {
            let id = self.below(4).to_string();
            self.world.deposit(&id, 1 + self.below(3) as usize).await;
        }
        let others = self.appends();
        let processes = async {
            let mut run = None;
            for process in 0..40 {
                let (next, is_done) = self.process(run, process < 12).await;
                if is_done && !self.is_cancelled(next).await {
                    return;
                }
                self.world.model.crash();
                run = next.filter(|_| !is_done);
            }
            panic!("seed {}: no replay was whole", self.seed);
        };
        tokio::join!(others, processes);
        // Whatever is late comes now.
        tokio::time::sleep(Duration::from_secs(200)).await;
        self.check().await;
    }

    /// Consumes what the runner of the new generation would, and compares the model with the
    /// history.
    async fn check(&self) {
        let (seed, world, model) = (self.seed, &self.world, &self.world.model);
        let late = std::mem::take(&mut *world.late.lock().unwrap());
        for commit in &late {
            world.publish(commit).await;
        }
        let proc = world.proc().await;
        assert_eq!(
            (&proc["a"], &proc["st"]),
            (&1.into(), &"catch_up".into()),
            "seed {seed}"
        );
        let next = u32::try_from(proc["n"].as_u64().unwrap()).unwrap();
        let boot = world.boot(next).await;
        let log = world.log.lock().unwrap().clone();
        for (partition, offset, id, version) in log {
            if offset >= boot[partition as usize] {
                model.take(next, &id, version);
            }
        }
        model.flush_all(next);
        assert_eq!(
            model.versions(next),
            world.history(),
            "seed {seed}, generation {next}"
        );
        let holes = model.holes.lock().unwrap().clone();
        assert_eq!(holes, Vec::<String>::new(), "seed {seed}");
        assert_eq!(
            *self.wrong.lock().unwrap(),
            Vec::<String>::new(),
            "seed {seed}"
        );
        for generation in 1..=next {
            let resets = model.resets(generation);
            let most = u32::from(generation > 1);
            assert!(
                resets <= most,
                "seed {seed}: {resets} resets of generation {generation}"
            );
        }
    }
}

/// Returns the run with which the next process goes on.
fn next_run(run: Option<RunId>, error: &ReplayError) -> Option<RunId> {
    match error {
        ReplayError::NotFound { .. }
        | ReplayError::Over { .. }
        | ReplayError::Cancelled { .. }
        | ReplayError::Reset { .. } => None,
        ReplayError::AlreadyRunning { run, .. } => run.parse().ok(),
        _ => run,
    }
}

/// Checks a row `proc` that was just written: the row of its run says the same.
fn check_proc(control: &dyn ControlStore, value: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(value).unwrap();
    let run = value["r"].as_str()?;
    let row = control
        .get(&RowKey::new("run", run))
        .now_or_never()
        .unwrap()
        .unwrap();
    let Some(row) = row else {
        return Some(format!("{value} names a run without a row"));
    };
    let row: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
    let generation = &row["p"][0]["g"];
    let is_next = value["st"] == "catch_up";
    let named = if is_next { &value["n"] } else { &value["t"] };
    // A later holder of the lease may have allocated another one meanwhile.
    let is_older = generation.as_u64() > named.as_u64() && !is_next;
    (generation != named && !is_older).then(|| format!("{value} and {row}"))
}

/// The most moments of one run at which its thread has nothing to do until the clock moves on. The
/// longest of the short runs has fewer than 20,000.
const MOMENTS: u64 = 200_000;

/// Runs one seed. Returns the reason for which it has failed.
fn violation(watch: &Arc<Watch>, seed: u64, hits: &Hits) -> Option<String> {
    let play = || watch.alone(seed, History::new(seed, hits.clone()).play());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(play)).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| "it has panicked".into()))
}

#[test]
fn no_event_is_lost_or_out_of_order_whenever_the_replayer_dies() {
    const NAME: &str = "no_event_is_lost_or_out_of_order_whenever_the_replayer_dies";
    let hits = Hits::default();
    let seeds = length::seeds(1_700, 10_000);
    seeds::run(
        &format!("replay::simulation::{NAME}"),
        seeds,
        MOMENTS,
        |watch, seed| violation(watch, seed, &hits),
    );
    let hits = hits.lock().unwrap();
    for point in POINTS {
        let (before, after) = hits.get(point).copied().unwrap_or_default();
        println!("{point}: {before} crashes before, {after} after");
    }
    if std::env::var_os("FOLDSTREAM_SEED").is_none() {
        let missed = POINTS.iter().filter(|point| {
            hits.get(*point)
                .is_none_or(|(before, after)| *before == 0 || *after == 0)
        });
        assert_eq!(missed.collect::<Vec<_>>(), Vec::<&&str>::new());
    }
    assert_eq!(<Model as Projector>::NAME, Model::NAME);
}
