//! Everything at once, from a seed: crashes at every call and every await, lost and late answers,
//! runs that are cut short, private events, reordered, duplicate and lost notices, two publishers.
//!
//! The network asserts at each step that nothing is marked or cleared too early.
use super::world::{World, stream};
use fastrand::Rng;
use foldstream::{
    RecordedEvent, Version,
    ports::{Commit, EventStore},
    publisher::{
        DirtyReason, Notice, Outbox, OutboxError, Publication, PublishReport, Publisher,
        ReconcileBudget, SweepConfig,
    },
};
use foldstream_testkit::{
    faults::{Fault, Faults, Injected, Op, Rule},
    intercept::async_trait,
    length,
};
use std::{collections::BTreeMap, future::Future, pin::pin, time::Duration};

fn run<F: Future<Output = ()>>(future: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future);
}

/// Polls a future at most this many times. Returns true if it was ready.
async fn polled(future: impl Future, mut times: usize) -> bool {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        if times == 0 {
            return std::task::Poll::Ready(false);
        }
        times -= 1;
        future.as_mut().poll(context).map(|_| true)
    })
    .await
}

#[test]
fn a_crash_at_any_await_loses_and_reorders_nothing() {
    // Once with new stores, and once after a process has already published.
    for earlier in [0, 2] {
        for awaits in 1.. {
            let mut done = false;
            run(async {
                let world = World::new();
                for _ in 0..earlier {
                    world.append(&stream("a"), 2).await;
                }
                world.publisher().publish_pending().await.unwrap();
                for id in ["a", "b", "a", "a"] {
                    world.append(&stream(id), 2).await;
                }
                let publisher = world.publisher().with_concurrency(1);
                done = polled(publisher.publish_pending(), awaits).await;
                world.assert_order();
                world.publisher().publish_pending().await.unwrap();
                world.assert_at_rest().await;
            });
            if done {
                assert!(
                    awaits > 30,
                    "only {awaits} awaits: the crashes were not where they should be"
                );
                break;
            }
        }
    }
}

/// Makes one call in five fail in some way, delays each, and kills a process now and then.
fn deadly() -> Vec<Rule> {
    let mut rules = faulty();
    for op in CRASHES {
        rules.push(Fault::CrashBefore.on(op).one_in(60));
        rules.push(Fault::CrashAfter.on(op).one_in(60));
    }
    rules
}

/// Makes one call in five fail in some way, and delays each.
fn faulty() -> Vec<Rule> {
    let ms = Duration::from_millis;
    let late = [Op::Publish, Op::PublishRun, Op::Put, Op::Delete];
    vec![
        Fault::Unavailable.anywhere().one_in(20),
        Fault::LoseReply.anywhere().one_in(20),
        Fault::LoseRequest.anywhere().one_in(40),
        Fault::ApplyLate(ms(60)).on(late).one_in(15).jittered(),
        Fault::Duplicate.on(Op::PublishRun).one_in(20),
        Fault::Delay(ms(4)).anywhere().jittered(),
    ]
}

/// The calls of a publisher before and after which it may die.
const CRASHES: [Op; 10] = [
    Op::Read,
    Op::Get,
    Op::GetMany,
    Op::Put,
    Op::Delete,
    Op::Range,
    Op::PublishRun,
    Op::ClearUnpublished,
    Op::Unpublished,
    Op::Scan,
];

/// Keeps some events private, by their versions.
#[derive(Debug)]
struct SomePrivate(u64);

impl SomePrivate {
    fn is_private(&self, version: u64) -> bool {
        self.0 > 1 && version % self.0 < self.0 / 2
    }
}

#[async_trait]
impl Outbox for SomePrivate {
    async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError> {
        Ok(match self.is_private(event.header.version.get()) {
            true => Publication::Private,
            false => Publication::AsStored,
        })
    }
}

/// The way in which a process learns of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trigger {
    Notices,
    Deadline,
    List,
    SetAside,
    Sweep,
    Reconcile,
}

/// Picks some notices of the stored commits, in any order, some duplicate, some missing, some as
/// commits.
fn notices(rng: &mut Rng, commits: &[Commit]) -> Vec<Notice> {
    let mut notices = Vec::new();
    for commit in commits.iter().rev().take(12) {
        for _ in 0..rng.usize(0..3) {
            notices.push(if rng.bool() {
                Notice::Commit(commit.clone())
            } else {
                Notice::Key(commit.key())
            });
        }
    }
    rng.shuffle(&mut notices);
    notices
}

/// One process, and the faults that may kill it.
struct Process {
    faults: Faults,
    publisher: Publisher,
}

impl Process {
    fn start(world: &World, private: u64) -> Self {
        let faults = world.faults.restart();
        let publisher = world.publisher_of_runs(&faults);
        let publisher = publisher
            .with_outbox(SomePrivate(private))
            .with_concurrency(2);
        Self { faults, publisher }
    }

    /// Publishes until the work is done, the process dies, or it is killed.
    async fn work(&self, trigger: Trigger, notices: Vec<Notice>, lives: Duration) {
        let publisher = &self.publisher;
        let sweep = SweepConfig::default().with_lease(Duration::from_millis(20));
        let work = async {
            // The next process does what this one could not.
            match trigger {
                Trigger::Notices => {
                    let report = publisher.publish(notices.clone()).await;
                    assert_kept(&report, &notices);
                }
                Trigger::Deadline => {
                    let deadline = tokio::time::Instant::now() + Duration::from_millis(40);
                    let report = publisher.publish_until(notices.clone(), deadline).await;
                    assert_kept(&report, &notices);
                }
                Trigger::List => {
                    let _ = publisher.publish_pending().await;
                }
                Trigger::SetAside => {
                    // The trigger has no time, and forgets its notices.
                    for notice in notices.iter().take(2) {
                        let version = Version::new(1);
                        let (stream, why) = (notice.stream(), DirtyReason::Backlog);
                        let _ = publisher.set_aside(stream, version, why).await;
                    }
                }
                Trigger::Sweep => {
                    let _ = publisher.sweep(&sweep).await;
                }
                Trigger::Reconcile => {
                    let _ = publisher.reconcile(None, &ReconcileBudget::default()).await;
                }
            }
        };
        let _ = tokio::time::timeout(lives, self.faults.run(work)).await;
    }
}

/// Asserts that a stream is reported as published only if all its notices are covered.
fn assert_kept(report: &PublishReport, notices: &[Notice]) {
    for notice in notices {
        let named = match notice {
            Notice::Commit(commit) => commit.first_version,
            Notice::Key(key) => key.first_version,
            _ => unreachable!("there are no other notices"),
        };
        if let Some(version) = report.published.get(notice.stream()) {
            assert!(named <= *version, "{notice:?} is not covered by {report:?}");
        }
    }
}

/// Asserts that the first occurrences are the public versions in order, and that each record names
/// the one before it if that is not the version before its own.
fn assert_public(world: &World, private: u64) {
    for id in world.streams() {
        let mut last = 0;
        let mut expected = (1..).filter(|version| !SomePrivate(private).is_private(*version));
        for (version, previous) in world.explained(&id) {
            if version > last {
                assert_eq!(Some(version), expected.next(), "{id}: after {last}");
                let gap = (last + 1 != version).then_some(last);
                assert_eq!(previous, gap, "{id} {version}");
                last = version;
            }
        }
    }
}

async fn assert_published(world: &World, private: u64) {
    assert_public(world, private);
    for id in world.streams() {
        let tail = world.tail(&id);
        let mark = world.watermark(&id).await.unwrap().value;
        assert_eq!(mark.version, tail, "{id}");
        let public = (1..=tail.get()).filter(|v| !SomePrivate(private).is_private(*v));
        let public = public.max().unwrap_or(0);
        assert_eq!(mark.last_record().get(), public, "{id}");
        let records = world.explained(&id);
        assert_eq!(records.iter().map(|(v, _)| *v).max().unwrap_or(0), public);
    }
    assert_eq!(world.unpublished().await, []);
}

async fn simulate(seed: u64) -> Vec<Injected> {
    let mut rng = Rng::with_seed(seed);
    let world = World::seeded_with(seed, rng.u8(0..2) == 0);
    world.faults.set(deadly());
    world.cut_runs(rng.u32(3..12));
    let private = [0, 0, 2, 3, 5][rng.usize(..5)];
    let streams: Vec<_> = (0..rng.usize(1..4))
        .map(|n| stream(&n.to_string()))
        .collect();
    let mut processes: Vec<_> = (0..2).map(|_| Process::start(&world, private)).collect();
    let mut commits = Vec::new();
    for _ in 0..8 {
        for _ in 0..rng.usize(0..4) {
            let stream = &streams[rng.usize(..streams.len())];
            commits.push(world.append(stream, rng.usize(1..4)).await);
        }
        let mut work = Vec::new();
        for process in &processes {
            let trigger = match rng.u8(0..12) {
                0 => Trigger::List,
                1 => Trigger::Sweep,
                2 => Trigger::Reconcile,
                3 => Trigger::Deadline,
                4 | 5 => Trigger::SetAside,
                _ => Trigger::Notices,
            };
            let lives = Duration::from_millis(rng.u64(0..150));
            work.push(process.work(trigger, notices(&mut rng, &commits), lives));
        }
        futures::future::join_all(work).await;
        assert_public(&world, private);
        for process in &mut processes {
            if process.faults.is_crashed() || rng.u8(0..4) == 0 {
                // A new process remembers nothing.
                *process = Process::start(&world, private);
            }
        }
    }
    // Late sends and writes arrive. Then the faults end, and a reconciliation makes up for every
    // lost notice. What the list still shows was published before its marker could be removed.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let injected = world.faults.log();
    world.heal();
    world.cut_runs(0);
    let last = Process::start(&world, private).publisher;
    let report = last.reconcile(None, &ReconcileBudget::default()).await;
    assert!(report.unwrap().failed.is_empty());
    if world.store.capabilities().lists_unpublished {
        assert!(last.publish_pending().await.unwrap().failed.is_empty());
    }
    assert_published(&world, private).await;
    injected
}

#[test]
fn whatever_happens_first_occurrences_are_in_order_and_at_rest_everything_is_published() {
    let mut hits = BTreeMap::new();
    for seed in length::seeds(2_000, 10_000) {
        run(async {
            for injected in simulate(seed).await {
                let fault = format!("{:?}", injected.fault);
                let fault = fault
                    .split(['(', ' '])
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                let op = injected
                    .about
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                *hits.entry((fault, op)).or_insert(0_u64) += 1;
            }
        });
    }
    for ((fault, op), hits) in &hits {
        println!("{hits:8} {fault} {op}");
    }
    if std::env::var("FOLDSTREAM_SEED").is_err() {
        for op in CRASHES {
            for fault in ["CrashBefore", "CrashAfter"] {
                let hit = hits.get(&(fault.to_owned(), format!("{op:?}")));
                assert!(hit.is_some(), "{fault} {op:?} was never hit");
            }
        }
        for fault in [
            "Unavailable",
            "LoseReply",
            "LoseRequest",
            "ApplyLate",
            "Duplicate",
        ] {
            assert!(
                hits.keys().any(|(hit, _)| hit == fault),
                "{fault} was never hit"
            );
        }
    }
}

#[test]
fn a_seed_replays_bit_for_bit() {
    let history = |seed| {
        let mut history = Vec::new();
        run(async {
            let world = World::seeded(seed);
            world.faults.set(faulty());
            for n in 0..20 {
                world.append(&stream(&(n % 3).to_string()), 1 + n % 2).await;
            }
            for _ in 0..5 {
                let _ = world.publisher().publish_pending().await;
            }
            history = world.network.done();
        });
        assert!(history.len() > 20);
        history
    };
    assert_eq!(history(7), history(7));
    assert_ne!(history(7), history(8));
}
