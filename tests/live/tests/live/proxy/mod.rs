//! What becomes of appends whose answers are lost: against a real server, through a proxy that loses them.
//!
//! 1,000 runs, each of a seed of its own, 16 at once; 10,000 with `FOLDSTREAM_LONG=1`. `FOLDSTREAM_SEED=<n>` replays one of
//! them.
mod server;

use self::server::{ATTEMPT_TIMEOUT, Proxy};
use fastrand::Rng;
use foldstream::{
    Aggregate, CommitId, DomainEvent, Repository, Settled, StreamHead, StreamId, Timestamp, id,
    ports::{
        Append, AppendAll, AppendOutcome, Commit, EventData, EventStore, EventStoreError,
        PendingAppend, ReadFrom,
    },
};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, TableOptions, create_tables};
use foldstream_testkit::{containers, length};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

const RUNS: u64 = 1_000;
const LONG_RUNS: u64 = 10_000;
const AT_ONCE: usize = 16;
const APPENDS: u64 = 4;
const STREAMS: usize = 3;

id!(LedgerId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "proxy")]
enum LedgerEvent {
    Entered { amount: u64 },
}

/// Only there to settle: an append knows nothing of aggregates.
#[derive(Clone, Debug, Default)]
struct Ledger;
impl Aggregate for Ledger {
    type Id = LedgerId;
    type Event = LedgerEvent;
    fn evolve(&mut self, _: &LedgerEvent) {}
}

/// What all runs share.
struct World {
    proxy: Proxy,
    /// Through the proxy.
    store: Arc<dyn EventStore>,
    /// Straight to the server, for looking what is true.
    truth: Arc<dyn EventStore>,
    ledgers: Repository<Ledger>,
}

impl World {
    async fn start() -> Self {
        let server = containers::DynamoDb::shared().await;
        let config = DynamoDbConfig::default()
            .with_endpoint(server.endpoint())
            .with_prefix(format!("{}-", CommitId::random()));
        create_tables(&config, &TableOptions::default())
            .await
            .unwrap();
        let truth: Arc<dyn EventStore> = Arc::new(
            DynamoDb::connect(config.clone())
                .await
                .unwrap()
                .event_store(),
        );
        let proxy = Proxy::start(server.endpoint()).await;
        let config = config
            .with_endpoint(proxy.endpoint())
            .with_attempt_timeout(ATTEMPT_TIMEOUT)
            .with_max_attempts(2);
        let store = DynamoDb::connect(config).await.unwrap().event_store();
        Self {
            proxy,
            store: Arc::new(store),
            ledgers: Repository::new(truth.clone()),
            truth,
        }
    }

    async fn read(&self, stream: &StreamId) -> Vec<Commit> {
        let start = ReadFrom::After(StreamHead::empty(stream.clone()));
        self.truth
            .read(stream, start, None)
            .try_collect()
            .await
            .unwrap()
    }
    async fn settle(&self, pending: &PendingAppend) -> Settled {
        self.ledgers.settle(pending).await.unwrap()
    }
}

/// What the runs met, so that a test which meets nothing cannot pass.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    appended: u64,
    /// Answers that were lost after the write, with nothing else in the way.
    lost_and_settled: u64,
    split: u64,
    several: u64,
    unknown: u64,
    landed_late: u64,
    superseded: u64,
}
impl std::ops::Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            appended: self.appended + other.appended,
            lost_and_settled: self.lost_and_settled + other.lost_and_settled,
            split: self.split + other.split,
            several: self.several + other.several,
            unknown: self.unknown + other.unknown,
            landed_late: self.landed_late + other.landed_late,
            superseded: self.superseded + other.superseded,
        }
    }
}

/// One writer, alone on its streams.
struct Run<'a> {
    world: &'a World,
    seed: u64,
    rng: Rng,
    heads: Vec<StreamHead>,
    /// What the store has acknowledged, by stream.
    expected: Vec<Vec<Commit>>,
    /// Given up while their outcome was unknown, in the slots where they might land.
    given_up: Vec<AppendAll>,
    /// Of which the store said that they were certainly not applied.
    refused: Vec<CommitId>,
    appends: u64,
    tally: Tally,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, seed: u64) -> Self {
        let head = |n| {
            let id = format!("run-{seed}-{n}");
            StreamHead::empty(StreamId::new("proxy", &id).unwrap())
        };
        Self {
            world,
            seed,
            rng: Rng::with_seed(seed),
            heads: (0..STREAMS).map(head).collect(),
            expected: vec![Vec::new(); STREAMS],
            given_up: Vec::new(),
            refused: Vec::new(),
            appends: 0,
            tally: Tally::default(),
        }
    }

    /// One stream, a commit larger than an item, or several streams, one of them perhaps only checked.
    fn decide(&mut self) -> AppendAll {
        let kind = self.rng.u32(0..100);
        let mut order: Vec<_> = (0..STREAMS).collect();
        self.rng.shuffle(&mut order);
        match kind {
            0..58 => AppendAll::new(vec![self.commit(order[0], 0)]),
            58..61 => AppendAll::new(vec![self.commit(order[0], 205_000)]),
            61..62 => AppendAll::new(vec![
                self.commit(order[0], 205_000),
                self.commit(order[1], 0),
            ]),
            62..85 => AppendAll::new(vec![self.commit(order[0], 0), self.commit(order[1], 0)]),
            _ => AppendAll::new(vec![self.commit(order[0], 0), self.commit(order[1], 0)])
                .with_unchanged(vec![self.heads[order[2]].clone()]),
        }
    }
    fn commit(&mut self, stream: usize, padding: usize) -> Append {
        let count = if padding > 0 { 2 } else { self.rng.usize(1..4) };
        let text = "x".repeat(padding);
        let events: Vec<_> = (0..count)
            .map(|n| EventData::new("Entered", 1, format!(r#"{{"amount":{n},"text":"{text}"}}"#)))
            .collect();
        let id = CommitId::from_u128(self.rng.u128(..));
        Append::after(self.heads[stream].clone(), id, Timestamp::now(), events)
    }

    fn index(&self, append: &Append) -> usize {
        let stream = append.head.stream();
        let found = self.heads.iter().position(|head| head.stream() == stream);
        found.expect("a stream of this run")
    }
    fn acknowledge(&mut self, all: &AppendAll) {
        for append in &all.commits {
            let index = self.index(append);
            self.expected[index].push(append.to_commit());
            self.heads[index] = append.head_after();
        }
        self.tally.appended += 1;
        self.tally.several += u64::from(all.commits.len() > 1);
        let bytes = |a: &Append| a.events.iter().map(|e| e.payload.len()).sum::<usize>();
        self.tally.split += u64::from(all.commits.iter().any(|a| bytes(a) > 400_000));
    }

    async fn run(mut self) -> Tally {
        for _ in 0..APPENDS {
            let all = self.decide();
            self.append(all).await;
        }
        self.world.proxy.drain(self.seed).await;
        self.check().await;
        self.tally
    }

    /// Until it is stored, or given up for another one in the same slots.
    async fn append(&mut self, mut all: AppendAll) {
        let mut may_be_there = false;
        // Each round is a call that met only faults, or one that somebody given up was faster than: fifty do not happen.
        for _ in 0..50 {
            self.appends += 1;
            let id = all.commits[0].commit_id;
            self.world.proxy.begin(self.seed, self.appends, id);
            let started = Instant::now();
            let answer = self.world.store.append_all(&all).await;
            // On a machine that is too busy for these short timeouts, answers are lost that the proxy has passed on.
            let is_slow = started.elapsed() > ATTEMPT_TIMEOUT * 3 / 2;
            let seen = self.world.proxy.seen(self.seed);
            if seen.applied_and_lost && !seen.met_more {
                let heads: Vec<_> = all.commits.iter().map(Append::head_after).collect();
                let is_appended =
                    matches!(&answer, Ok(AppendOutcome::Appended(found)) if *found == heads);
                assert!(
                    is_appended || may_be_there || is_slow || seen.is_slow,
                    "an answer was lost after the write was applied: {}",
                    brief(&answer)
                );
                self.tally.lost_and_settled += u64::from(is_appended);
            }
            match answer {
                Ok(AppendOutcome::Appended(_)) => return self.acknowledge(&all),
                Ok(AppendOutcome::Repeated(stored)) => {
                    assert!(may_be_there, "the first call was answered as a repeat");
                    let sent: Vec<_> = all.commits.iter().map(Append::to_commit).collect();
                    assert_eq!(stored, sent, "a repeat of something else");
                    return self.acknowledge(&all);
                }
                Ok(AppendOutcome::Conflict(conflict)) => {
                    // Nobody else writes here: it can only be one that was given up.
                    self.land().await.unwrap_or_else(|| panic!("{conflict}"));
                    all = self.decide();
                    may_be_there = false;
                }
                Err(EventStoreError::Unavailable {
                    pending: Some(pending),
                    ..
                }) => {
                    assert_eq!(pending.append(), &all);
                    self.tally.unknown += 1;
                    match self.world.settle(&pending).await {
                        Settled::Applied(_) => return self.acknowledge(&all),
                        Settled::Superseded => {
                            self.land().await.expect("superseded by nobody");
                            all = self.decide();
                            may_be_there = false;
                        }
                        Settled::Open if self.rng.bool() => may_be_there = true,
                        Settled::Open => {
                            let next = self.decide();
                            self.given_up.push(std::mem::replace(&mut all, next));
                            may_be_there = false;
                        }
                    }
                }
                Err(error) => {
                    assert!(error.is_transient(), "{error:?}");
                    // Certainly not applied *by this call*: an earlier one may still land.
                    if !may_be_there {
                        self.refused.extend(all.commits.iter().map(|a| a.commit_id));
                        all = self.decide();
                    }
                }
            }
        }
        panic!("no end of faults");
    }

    /// One of those given up has landed after all: then it counts.
    async fn land(&mut self) -> Option<()> {
        for index in 0..self.given_up.len() {
            let pending = PendingAppend::new(self.given_up[index].clone());
            if let Settled::Applied(_) = self.world.settle(&pending).await {
                let all = self.given_up.remove(index);
                self.tally.landed_late += 1;
                self.acknowledge(&all);
                return Some(());
            }
        }
        None
    }

    /// What the table holds is what was acknowledged, and what settling says of the rest is true.
    async fn check(&mut self) {
        let found = loop {
            while self.land().await.is_some() {}
            let mut found = Vec::new();
            for head in &self.heads {
                found.push(self.world.read(head.stream()).await);
            }
            // One that was given up may land between two looks.
            if self.land().await.is_none() {
                break found;
            }
        };
        let ids = |commits: &[Commit]| commits.iter().map(|c| c.id).collect::<Vec<_>>();
        for (found, expected) in found.iter().zip(&self.expected) {
            assert_eq!(ids(found), ids(expected), "commits");
            assert!(found == expected, "their content");
            assert!(
                !found.iter().any(|commit| self.refused.contains(&commit.id)),
                "stored, though certainly not applied"
            );
        }
        for all in &self.given_up {
            let expected = if self.is_overtaken(all) {
                self.tally.superseded += 1;
                Settled::Superseded
            } else {
                Settled::Open
            };
            let settled = self.world.settle(&PendingAppend::new(all.clone())).await;
            assert_eq!(settled, expected, "of one given up");
        }
    }

    /// Whether one of its streams has gone on without it.
    fn is_overtaken(&self, all: &AppendAll) -> bool {
        let mut heads = all.commits.iter().map(|a| &a.head).chain(&all.unchanged);
        heads.any(|head| {
            let is_later = |mine: &&StreamHead| {
                mine.stream() == head.stream() && mine.version() > head.version()
            };
            self.heads.iter().any(|mine| is_later(&mine))
        })
    }
}

/// An answer without its payloads.
fn brief(answer: &Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>) -> String {
    match answer {
        Ok(AppendOutcome::Appended(heads)) => format!("appended {heads:?}"),
        Ok(AppendOutcome::Repeated(stored)) => format!("{} commits repeated", stored.len()),
        Ok(AppendOutcome::Conflict(conflict)) => conflict.to_string(),
        Err(error) => {
            let all = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
            all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn appends_whose_answers_are_lost_are_neither_lost_nor_doubled() {
    let seeds = length::seeds(RUNS, LONG_RUNS);
    let runs = seeds.end - seeds.start;
    let world = World::start().await;
    let tally = stream::iter(seeds)
        .map(|seed| {
            let run = AssertUnwindSafe(Run::new(&world, seed).run());
            let limited = tokio::time::timeout(Duration::from_secs(120), run.catch_unwind());
            async move {
                match limited.await {
                    Ok(Ok(tally)) => tally,
                    Ok(Err(_)) => panic!("replay it with FOLDSTREAM_SEED={seed}"),
                    Err(_) => panic!("no end: replay it with FOLDSTREAM_SEED={seed}"),
                }
            }
        })
        .buffer_unordered(AT_ONCE)
        .fold(Tally::default(), |sum, one| async move { sum + one })
        .await;
    println!("{runs} runs: {tally:?}");
    println!("requests: {:?}", world.proxy.fates());
    if runs >= RUNS {
        for (met, what) in [
            (
                tally.lost_and_settled >= 200,
                "answers lost after the write",
            ),
            (
                tally.split >= 50 && tally.several >= 200,
                "kinds of appends",
            ),
            (tally.unknown >= 50, "unknown outcomes"),
            (
                tally.landed_late >= 1 && tally.superseded >= 1,
                "unknown outcomes that were given up",
            ),
        ] {
            assert!(met, "too few {what}: {tally:?}");
        }
    }
}
