//! All triggers publish the same table at the same time, are killed in the middle of it, and the
//! broker restarts.
//!
//! Two pollers, a reader of the change stream and a Lambda function race on a table in mode `both`,
//! while events are appended all the time. Only a kill of a process that had records in flight
//! counts. At the end the topic has every event of every stream, first occurrences are in order,
//! and every watermark is at its tail. All of that is read with the plain clients of the servers.
//!
//! `FOLDSTREAM_LONG=1` kills 50 times instead of 5, and restarts the broker twice instead of once.
//! `FOLDSTREAM_SEED=<n>` gives another schedule.
mod load;
mod mapping;
mod raw;

use super::{Fleet, PATIENCE, Worker, until_none_is_left};
use crate::lambda::runtime_api::RuntimeApi;
use foldstream_live::{Role, Sends};
use foldstream_testkit::{
    containers::{DynamoDb, Kafka},
    length,
};
use load::Load;
use mapping::Mapping;
use raw::Topic;
use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

const PARTITIONS: u32 = 6;
/// The processes. Each has been killed with records in flight before the test passes.
const PUBLISHERS: [(Role, &str); 4] = [
    (Role::Poller, "poller-1"),
    (Role::Reader, "reader"),
    (Role::Function, "function"),
    (Role::Poller, "poller-2"),
];
/// The time in which a process has something to send, or another one is killed.
const TURN: Duration = Duration::from_secs(5);

/// The length and the random choices of a run.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    kills: u64,
    broker_restarts: u64,
    events: u64,
}

impl Plan {
    fn new() -> Self {
        let seed = std::env::var("FOLDSTREAM_SEED").map_or(1, |seed| seed.parse().unwrap());
        Self {
            seed,
            kills: length::of("kills of publishers", 5, 50),
            broker_restarts: if length::is_long() { 2 } else { 1 },
            events: if length::is_long() { 20_000 } else { 2_000 },
        }
    }

    /// Returns true if the broker restarts during the kill after this many.
    const fn restarts_broker_after(self, kills: u64, restarts: u64) -> bool {
        restarts < self.broker_restarts
            && kills >= self.kills * (restarts + 1) / (self.broker_restarts + 1)
    }
}

/// Given publishers of all kinds that race on one table, when they are killed with records in
/// flight and the broker restarts, then every event of every stream is in the topic, first
/// occurrences are in order, and every watermark is at its tail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn all_triggers_race_and_die_and_no_event_is_lost_or_overtaken() {
    let plan = Plan::new();
    let (kafka, database) = tokio::join!(Kafka::start_restartable(), DynamoDb::start());
    let (kafka, database) = (kafka.unwrap(), database.unwrap());
    let mut fleet = Fleet::of_publishers("triggers", database, kafka.brokers(), PARTITIONS).await;
    let api = Arc::new(RuntimeApi::start().await);
    fleet.settings.service = api.address.clone();
    let mapping = Mapping::start(&fleet, api).await;
    let load = Load::start(&fleet, plan.seed);

    let began = Instant::now();
    let mut chaos = Chaos::new(&fleet, mapping.kills(), plan);
    chaos.run(&kafka).await;
    let heads = load.stop(plan.events).await;
    let left = async || Some(raw::behind(&fleet, &heads).await);
    until_none_is_left("streams or markers that are not published", left).await;
    let took = began.elapsed();

    mapping.stop().await;
    let Chaos { log, workers, .. } = chaos;
    for mut worker in workers {
        worker.assert_running();
        worker.stop().await;
    }

    let stored = raw::events(&fleet).await;
    let events: u64 = stored.values().map(|events| events.len() as u64).sum();
    for (stream, tail) in &heads {
        assert_eq!(stored[stream].len() as u64, *tail, "{stream}");
    }
    assert_eq!(raw::watermarks(&fleet).await, heads);
    let topic = Topic::read(&fleet).await;
    let duplicates = topic.check(&stored);
    tell(plan, &log, heads.len(), events, duplicates, took);

    assert!(events >= plan.events, "only {events} events");
    assert_eq!(log.broker_restarts, plan.broker_restarts);
    assert!(log.kills() >= plan.kills, "{log:?}");
    assert!(log.in_flight.iter().all(|kills| *kills > 0), "{log:?}");
    assert!(duplicates > 0, "no two publishers have met");
}

/// The number of things that have happened.
#[derive(Debug, Default)]
struct Log {
    /// The kills with records in flight, by process.
    in_flight: [u64; PUBLISHERS.len()],
    /// The records that were in flight at these kills.
    records: u64,
    /// The kills that have found nothing in flight, since the run had just ended.
    idle: u64,
    /// The kills with records in flight while the broker was away.
    in_outage: u64,
    broker_restarts: u64,
}

impl Log {
    fn kills(&self) -> u64 {
        self.in_flight.iter().sum()
    }
}

/// The disturbances of the publishers.
struct Chaos<'a> {
    fleet: &'a Fleet,
    function_kills: watch::Sender<u64>,
    plan: Plan,
    random: fastrand::Rng,
    workers: Vec<Worker>,
    sends: Sends,
    log: Log,
}

impl<'a> Chaos<'a> {
    fn new(fleet: &'a Fleet, function_kills: watch::Sender<u64>, plan: Plan) -> Self {
        let start = |(role, instance)| fleet.start(role, instance);
        Self {
            fleet,
            function_kills,
            plan,
            random: fastrand::Rng::with_seed(plan.seed),
            workers: PUBLISHERS.map(start).into(),
            sends: Sends::follow(fleet.folder.path()),
            log: Log::default(),
        }
    }

    /// Kills and restarts until all has happened that the plan asks for.
    async fn run(&mut self, kafka: &Kafka) {
        let (mut least, mut since) = (0, Instant::now());
        for turn in 0.. {
            let (kills, restarts) = (self.log.kills(), self.log.broker_restarts);
            let is_done = kills >= self.plan.kills
                && restarts == self.plan.broker_restarts
                && self.log.in_flight.iter().all(|kills| *kills > 0);
            if is_done {
                return;
            }
            if kills > least {
                (least, since) = (kills, Instant::now());
            }
            assert!(
                since.elapsed() < PATIENCE,
                "no process has records in flight: {:?}",
                self.log
            );
            let pause = Duration::from_millis(self.random.u64(100..600));
            tokio::time::sleep(pause).await;
            let victim = turn % PUBLISHERS.len();
            if self.plan.restarts_broker_after(kills, restarts) {
                let down = Duration::from_secs(2);
                let (restarted, ()) = tokio::join!(kafka.restart(down), self.kill(victim));
                restarted.unwrap();
                self.log.broker_restarts += 1;
                self.log.in_outage += self.log.kills() - kills;
            } else {
                self.kill(victim).await;
            }
        }
    }

    /// Kills a process that has records in flight, and starts it again. Does nothing if the process
    /// gets nothing to send.
    async fn kill(&mut self, victim: usize) {
        let id = self.workers[victim].id();
        let patience = Instant::now() + TURN;
        while self.sends.in_flight(id) == 0 {
            self.workers[victim].assert_running();
            if Instant::now() > patience {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (role, instance) = PUBLISHERS[victim];
        self.workers[victim].kill_now().await;
        // Dead processes write nothing: what is open now was open when the signal came.
        match self.sends.in_flight(id) {
            0 => self.log.idle += 1,
            records => {
                self.log.in_flight[victim] += 1;
                self.log.records += records;
            }
        }
        self.workers[victim] = self.fleet.start(role, instance);
        if role == Role::Function {
            self.function_kills.send_modify(|kills| *kills += 1);
        }
    }
}

/// Prints what has happened, also if the test passes.
fn tell(plan: Plan, log: &Log, streams: usize, events: u64, duplicates: u64, took: Duration) {
    let by_process: Vec<String> = PUBLISHERS
        .iter()
        .zip(log.in_flight)
        .map(|((_, instance), kills)| format!("{instance} {kills}"))
        .collect();
    let text = format!(
        "triggers: {events} events in {streams} streams, seed {}, {:.0} s: each is in the topic, in order\n\
         triggers:   {} kills with {} records in flight ({}), {} of them while the broker was away; {} kills between two runs\n\
         triggers:   {} restarts of the broker; {duplicates} duplicates ({:.1} %)\n",
        plan.seed,
        took.as_secs_f64(),
        log.kills(),
        log.records,
        by_process.join(", "),
        log.in_outage,
        log.idle,
        log.broker_restarts,
        duplicates as f64 * 100.0 / events as f64,
    );
    // The harness captures what a test prints by the macros.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
