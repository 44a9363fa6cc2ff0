//! Several instances on a stream that splits, with crashes, frozen processes, lost answers and
//! failing requests, from a seed.
use super::{
    script::Script,
    world::{MIN, Running, S, World, pass},
};
use foldstream::{Backoff, publisher::SweepConfig};
use foldstream_dynamodb::streams::{StreamServiceError, StreamsConfig};
use foldstream_testkit::{
    faults::{Fault, Faults, Op},
    length,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// The things that happened, over all seeds.
#[derive(Debug, Default)]
struct Hits(BTreeMap<&'static str, u32>);
impl Hits {
    fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

struct Simulation {
    world: World,
    dice: fastrand::Rng,
    running: Vec<Running>,
    started: usize,
    shards: usize,
    hits: Hits,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut world = World::seeded(Script::new(&["s0", "s1"]), seed);
        world.config = StreamsConfig::default()
            .with_backoff(world.config.backoff)
            .with_max_pages_per_shard(dice.usize(1..4))
            .with_max_pages(dice.usize(2..9))
            .with_patience(20 * S)
            .with_idle_pause(10 * S)
            .with_sweep(
                SweepConfig::default()
                    .with_interval(MIN)
                    .with_backoff(Backoff::new(10 * S, 30 * S)),
            );
        Self {
            world,
            dice,
            running: Vec::new(),
            started: 0,
            shards: 2,
            hits: Hits::default(),
        }
    }

    fn start(&mut self) {
        self.started += 1;
        let faults = Faults::seeded(self.dice.u64(..))
            .with(Fault::LoseReply.on(Op::Put).one_in(30))
            .with(Fault::Unavailable.anywhere().one_in(40));
        let name = format!("i{}", self.started);
        self.running.push(self.world.start_with(&name, faults));
    }
    fn take(&mut self) -> Option<Running> {
        let count = self.running.len();
        (count > 0).then(|| self.running.swap_remove(self.dice.usize(..count)))
    }

    async fn step(&mut self) {
        let open = self.world.script.open_shards();
        let shard = self.dice.choice(&open).cloned();
        match self.dice.u32(..24) {
            0..12 => {
                // The shard of a commit says nothing about its stream here: the order within a
                // stream is the publisher's affair.
                for _ in 0..self.dice.u32(1..6) {
                    let id = self.dice.u32(..5).to_string();
                    if let Some(shard) = &shard {
                        self.world.write(shard, &id).await;
                    }
                }
            }
            12..14 => {
                if let (Some(shard), true) = (shard, self.shards < 9) {
                    self.hits.add("split");
                    let children = self.dice.usize(1..=2);
                    let new: Vec<String> = (0..children)
                        .map(|n| format!("s{}", self.shards + n))
                        .collect();
                    self.shards += children;
                    let new: Vec<&str> = new.iter().map(String::as_str).collect();
                    self.world.script.split(&shard, &new);
                }
            }
            14..16 if self.running.len() < 3 => {
                self.hits.add("start");
                self.start();
            }
            16 => {
                if let Some(running) = self.take() {
                    self.hits.add("stop");
                    running
                        .stop()
                        .await
                        .expect("only the first requests can be refused");
                }
            }
            17 => {
                if let Some(running) = self.take() {
                    self.hits.add("crash");
                    running.kill().await;
                }
            }
            18 => {
                if let Some(running) = self.running.last() {
                    self.hits.add("freeze");
                    running.faults.freeze();
                    pass(self.dice.u32(1..50) * S).await;
                    running.faults.thaw();
                }
            }
            19 => {
                self.hits.add("service fails");
                let dice = Mutex::new(fastrand::Rng::with_seed(self.dice.u64(..)));
                self.world
                    .script
                    .set_fate(move |_| failure(&mut dice.lock().unwrap()));
            }
            20 => self.world.script.heal(),
            21 => self.world.take_down(&self.dice.u32(..5).to_string()),
            22 => self.world.bring_up(),
            _ => pass(self.dice.u32(1..40) * S).await,
        }
        pass(self.dice.u32(..3) * S).await;
    }

    async fn run(mut self) -> Hits {
        self.start();
        for _ in 0..20 {
            self.step().await;
            self.world.assert_order();
        }
        self.world.script.heal();
        self.world.bring_up();
        for running in &self.running {
            running.faults.disable();
        }
        self.start();
        if let Some(last) = self.running.last() {
            last.faults.disable();
        }
        // Longer than a lease and some sweeps.
        pass(4 * MIN).await;
        self.world.assert_at_rest().await;
        assert_eq!(self.world.dirty().await, []);
        let mut held: Vec<String> = Vec::new();
        for running in &self.running {
            let status = running.status();
            assert!(!status.state.is_error(), "{status:?}");
            assert_eq!(status.reconcile, None, "nothing was lost");
            held.extend(running.shards());
        }
        held.sort();
        let mut open = self.world.script.open_shards();
        open.sort();
        assert_eq!(held, open, "each open shard is read by one instance");
        self.hits
    }
}

fn failure(dice: &mut fastrand::Rng) -> Option<StreamServiceError> {
    match dice.u32(..12) {
        0 => Some(StreamServiceError::ExpiredIterator),
        1 => Some(StreamServiceError::Throttled {
            retry_after: None,
            source: "slow down".into(),
        }),
        2 => Some(StreamServiceError::Unavailable {
            source: "down".into(),
        }),
        _ => None,
    }
}

#[test]
fn nothing_is_lost_or_out_of_order_whatever_instances_do() {
    let all = Arc::new(Mutex::new(Hits::default()));
    for seed in length::seeds(300, 5_000) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        // A panic says which seed it was.
        let on_failure = Seed(seed);
        let hits = runtime.block_on(Simulation::new(seed).run());
        std::mem::forget(on_failure);
        let mut all = all.lock().unwrap();
        for (what, count) in hits.0 {
            *all.0.entry(what).or_default() += count;
        }
    }
    let hits = &all.lock().unwrap().0;
    eprintln!("hits: {hits:?}");
    if std::env::var_os("FOLDSTREAM_SEED").is_none() {
        for what in ["split", "start", "stop", "crash", "freeze", "service fails"] {
            assert!(hits.contains_key(what), "{what} never happened: {hits:?}");
        }
    }
}

struct Seed(u64);
impl Drop for Seed {
    fn drop(&mut self) {
        eprintln!("failed with seed {}", self.0);
    }
}
