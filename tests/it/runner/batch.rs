//! Batches, and lanes that several streams share.
use super::harness::*;
use crate::support::AccountEvent;
use foldstream::{
    Backoff, RetryPolicy,
    ports::EventData,
    runner::{
        BatchResult, DeliveryLevel, ErrorClass, EventContext, HandlerError, HandlerResult,
        Listener, ModelId, Position, ProcessorPolicy, Projector, RunnerError,
    },
};
use foldstream_testkit::faults::{Fault, Faults, Op};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

type Versions = Vec<(String, u64)>;

/// The number of events that a handler says it has handled, by the length of its batch.
type Done = fn(usize) -> usize;

/// The result of the nth batch, from 1.
type Script = dyn Fn(usize, &[(String, u64)]) -> BatchResult + Send + Sync;

/// A listener that keeps the batches that it gets, and what its script says was handled of them.
#[derive(Clone)]
struct Batches {
    all: Arc<Mutex<Vec<Versions>>>,
    handled: Arc<Mutex<Versions>>,
    /// The attempt of the first event of each batch.
    attempts: Arc<Mutex<Vec<u32>>>,
    script: Arc<Script>,
}

impl Batches {
    fn scripted(
        script: impl Fn(usize, &[(String, u64)]) -> BatchResult + Send + Sync + 'static,
    ) -> Self {
        Self {
            all: Arc::default(),
            handled: Arc::default(),
            attempts: Arc::default(),
            script: Arc::new(script),
        }
    }
    fn new() -> Self {
        Self::scripted(|_, batch| BatchResult::done(batch.len()))
    }
    fn of(&self, id: &str) -> Vec<u64> {
        let handled = self.handled.lock().unwrap();
        let of = handled.iter().filter(|(of, _)| of == id);
        of.map(|(_, version)| *version).collect()
    }
    /// Returns the versions of each batch of a stream.
    fn batches_of(&self, id: &str) -> Vec<Vec<u64>> {
        let all = self.all.lock().unwrap();
        let of = all.iter().filter(|batch| batch[0].0 == id);
        of.map(|batch| batch.iter().map(|(_, version)| *version).collect())
            .collect()
    }
}

impl Listener for Batches {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        panic!("batches are handled at once")
    }
    async fn handle_batch(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        tokio::task::yield_now().await;
        let pair = |ctx: &EventContext| (ctx.stream().id().to_owned(), ctx.version().get());
        let batch: Versions = events.iter().map(|(_, ctx)| pair(ctx)).collect();
        let nth = {
            let mut all = self.all.lock().unwrap();
            all.push(batch.clone());
            all.len()
        };
        self.attempts.lock().unwrap().push(events[0].1.attempt());
        let result = (self.script)(nth, &batch);
        let done = batch.into_iter().take(result.done);
        self.handled.lock().unwrap().extend(done);
        result
    }
}

fn batched(most: usize) -> ProcessorPolicy {
    let backoff = Backoff::new(SECOND, SECOND).with_seed(1);
    let retry = RetryPolicy::new(backoff, 300 * SECOND);
    from_beginning().with_retry(retry).with_max_batch(most)
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_neighbours_of_one_stream_in_order_and_at_most_the_limit() {
    let world = World::new(1);
    for n in 0..40 {
        world.deposit(if n % 4 == 0 { "b" } else { "a" }).await;
    }
    let batches = Batches::new();
    let report = world.catch_up(batches.clone(), batched(7)).await;
    report.into_result().unwrap();
    for batch in batches.all.lock().unwrap().iter() {
        assert!(batch.len() <= 7, "{batch:?}");
        assert!(batch.iter().all(|(id, _)| *id == batch[0].0), "{batch:?}");
    }
    assert_eq!(batches.of("a"), (1..=30).collect::<Vec<_>>());
    assert_eq!(batches.of("b"), (1..=10).collect::<Vec<_>>());
    let sizes = batches.all.lock().unwrap().iter().map(Vec::len).max();
    assert_eq!(sizes, Some(7), "neighbours come together");
    assert_eq!(world.committed(SEEN).await, 40);
}

#[tokio::test(start_paused = true)]
async fn of_a_batch_that_failed_in_the_middle_the_rest_is_tried_again() {
    let world = World::new(1);
    for _ in 0..5 {
        world.deposit("a").await;
    }
    let batches = Batches::scripted(|nth, batch| match nth {
        1 => BatchResult::failed(2, HandlerError::transient("busy")),
        2 => BatchResult::failed(0, HandlerError::transient("busy")),
        _ => BatchResult::done(batch.len()),
    });
    let report = world.catch_up(batches.clone(), batched(10)).await;
    let report = report.into_result().unwrap();
    assert_eq!(batches.of("a"), [1, 2, 3, 4, 5]);
    let tried = batches.batches_of("a");
    assert_eq!(tried[..3], [vec![1, 2, 3, 4, 5], vec![3], vec![3]]);
    // The failure is the third event's own, and is counted by attempts at it alone.
    assert_eq!(batches.attempts.lock().unwrap()[..3], [1, 2, 3]);
    assert_eq!((report[0].handled, report[0].retries), (5, 2));
    assert_eq!(world.committed(SEEN).await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_answers_nonsense_is_a_permanent_failure_that_says_so() {
    let with_error = |done| BatchResult::failed(done, HandlerError::transient("odd"));
    // What is believed to be done: never the event that the failure is about.
    let answers: [(&str, Done, bool, u64); 4] = [
        ("more than there were", |len| len + 1, false, 4),
        ("all, with an error", |len| len, true, 4),
        (
            "more than there were, with an error",
            |len| len + 3,
            true,
            4,
        ),
        ("less, without an error", |len| len - 2, false, 3),
    ];
    for (name, done, has_error, failed_at) in answers {
        let world = World::new(1);
        for _ in 0..5 {
            world.deposit("a").await;
        }
        let batches = Batches::scripted(move |nth, batch| match (nth, has_error) {
            (1, true) => with_error(done(batch.len())),
            (1, false) => BatchResult::done(done(batch.len())),
            _ => BatchResult::done(batch.len()),
        });
        // Of the five events, one is handled alone before the batch.
        let report = world.catch_up(batches.clone(), batched(4)).await;
        let RunnerError::Halted {
            class,
            version,
            source,
            ..
        } = error_of(&report)
        else {
            panic!("{name}: {report:?}")
        };
        assert_eq!(
            (*class, version.get()),
            (ErrorClass::Permanent, failed_at),
            "{name}"
        );
        assert!(
            source.to_string().contains("of 4 events"),
            "{name}: {source}"
        );
        assert_eq!(world.committed(SEEN).await, failed_at - 1, "{name}");
        assert_eq!(
            batches.all.lock().unwrap().len(),
            1,
            "{name}: it is not retried"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_handler_that_panics_or_hangs_has_handled_nothing() {
    for hangs in [true, false] {
        let world = World::new(1);
        for _ in 0..3 {
            world.deposit("a").await;
        }
        let model = Arc::new(Breaks {
            hangs,
            model: Model::default(),
            calls: Mutex::default(),
        });
        let policy = ProcessorPolicy::projector().with_max_batch(10);
        let policy = policy.with_attempt_timeout(5 * SECOND);
        let runner = world.builder().projector_with(model.clone(), policy);
        let report = runner
            .build()
            .unwrap()
            .run(tokio::time::sleep(120 * SECOND))
            .await;
        let report = report.into_result().unwrap();
        assert_eq!(model.model.versions("a"), [1, 2, 3]);
        assert_eq!((report[0].handled, report[0].parked), (3, 0));
        assert_eq!(world.committed(MODEL).await, 3);
    }
}

const MODEL: &str = "example-group.model.g1";

/// A read model with stored positions. Its first batch breaks before it has an effect.
struct Breaks {
    hangs: bool,
    model: Model,
    calls: Mutex<u32>,
}
impl Projector for Breaks {
    const NAME: &'static str = "model";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.model.project(event, ctx).await
    }
    async fn project_batch(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        let first = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls == 1
        };
        if first && self.hangs {
            std::future::pending::<()>().await;
        }
        assert!(!first, "the first batch breaks");
        for (event, ctx) in events {
            if let Err(error) = self.project(event, ctx).await {
                return BatchResult::failed(0, error);
            }
        }
        BatchResult::done(events.len())
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        self.model.reset(model).await
    }
    async fn position(
        &self,
        model: &ModelId,
        stream: &foldstream::StreamId,
    ) -> Result<Position, HandlerError> {
        self.model.position(model, stream).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_two_batches_repeats_whole_events_and_skips_none() {
    for level in [DeliveryLevel::AtLeastOnce, DeliveryLevel::Deduplicated] {
        // The process dies at each of its first calls in turn.
        for nth in 1..12 {
            let world = World::new(1);
            for n in 0..24 {
                world.deposit(if n % 3 == 0 { "b" } else { "a" }).await;
            }
            let batches = Batches::new();
            let policy = || {
                let policy = batched(4).with_window(8, 1 << 30).with_level(level);
                policy.with_commit_interval(SECOND)
            };
            let calls = [Op::Get, Op::Put, Op::Commit, Op::Range];
            let faults = Faults::script([Fault::CrashAfter.on(calls).at(nth)]);
            let runner = world.faulty_builder(&faults);
            let runner = runner
                .listener_with(batches.clone(), policy())
                .build()
                .unwrap();
            let run = runner.run(std::future::pending());
            drop(tokio::time::timeout(30 * SECOND, run).await);
            assert!(faults.is_crashed(), "{nth}");
            let report = world.catch_up(batches.clone(), policy()).await;
            report.into_result().unwrap();
            let mut newest: BTreeMap<String, u64> = BTreeMap::new();
            for (id, version) in batches.handled.lock().unwrap().iter() {
                let newest = newest.entry(id.clone()).or_default();
                assert!(
                    *version <= *newest + 1,
                    "{nth}: {id} {version} after {newest}"
                );
                *newest = version.max(newest).to_owned();
            }
            assert_eq!(newest, BTreeMap::from([("a".into(), 16), ("b".into(), 8)]));
            assert_eq!(world.committed(SEEN).await, 24);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_failed_in_the_middle_is_based_in_its_own_partition() {
    let world = World::new(1);
    let deposit = || EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
    for version in [5, 6, 7] {
        world.publish_raw("a", version, deposit()).await;
    }
    // An older version comes again: this partition has passed it before, as it delivers in order.
    world.publish_raw("a", 4, deposit()).await;
    let batches = Batches::scripted(|nth, batch| match nth {
        1 => BatchResult::failed(1, HandlerError::transient("busy")),
        _ => BatchResult::done(batch.len()),
    });
    let report = world.catch_up(batches.clone(), batched(3)).await;
    let report = report.into_result().unwrap();
    assert_eq!(batches.of("a"), [5, 6, 7]);
    assert_eq!((report[0].out_of_order, report[0].duplicates), (0, 1));
}

/// Handles events for a while, and keeps how many of each lane it handles at a time.
#[derive(Clone, Default)]
struct OneAtATime {
    order: Arc<Mutex<Versions>>,
    running: Arc<Mutex<BTreeMap<char, usize>>>,
    most: Arc<Mutex<BTreeMap<char, usize>>>,
    all_at_once: Arc<Mutex<usize>>,
}
impl OneAtATime {
    async fn run(&self, id: &str, versions: Vec<u64>) {
        let lane = id.chars().next().unwrap();
        {
            let mut running = self.running.lock().unwrap();
            let here = running.entry(lane).or_default();
            *here += 1;
            let mut most = self.most.lock().unwrap();
            let most = most.entry(lane).or_default();
            *most = (*most).max(*here);
            let all: usize = running.values().sum();
            let mut at_once = self.all_at_once.lock().unwrap();
            *at_once = (*at_once).max(all);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut order = self.order.lock().unwrap();
        order.extend(versions.into_iter().map(|version| (id.to_owned(), version)));
        *self.running.lock().unwrap().get_mut(&lane).unwrap() -= 1;
    }
}
impl Listener for OneAtATime {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.run(ctx.stream().id(), vec![ctx.version().get()]).await;
        Ok(())
    }
    async fn handle_batch(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        let versions = events.iter().map(|(_, ctx)| ctx.version().get()).collect();
        let id = events[0].1.stream().id();
        assert!(events.iter().all(|(_, ctx)| ctx.stream().id() == id));
        self.run(id, versions).await;
        BatchResult::done(events.len())
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_share_a_lane_are_handled_one_after_the_other_in_the_order_of_arrival() {
    for most in [1, 4] {
        let world = World::new(1);
        let ids = [
            "a1", "b1", "a2", "a2", "b2", "a1", "c1", "b1", "b1", "a2", "c1", "a1",
        ];
        let mut sent: BTreeMap<char, Vec<&str>> = BTreeMap::new();
        for id in ids.iter().cycle().take(60) {
            world.deposit(id).await;
            sent.entry(id.chars().next().unwrap()).or_default().push(id);
        }
        let handler = OneAtATime::default();
        // The lane is the first letter of the id.
        let policy = from_beginning().with_max_batch(most);
        let policy = policy.with_lane(|stream| stream.id()[..1].to_owned());
        let report = world.catch_up(handler.clone(), policy).await;
        report.into_result().unwrap();
        let order = handler.order.lock().unwrap().clone();
        for (lane, sent) in sent {
            let handled = order.iter().map(|(id, _)| id.as_str());
            let handled: Vec<_> = handled.filter(|id| id.starts_with(lane)).collect();
            assert_eq!(handled, sent, "lane {lane}, batches of {most}");
            assert_eq!(handler.most.lock().unwrap()[&lane], 1, "lane {lane}");
        }
        // The lanes do not wait for each other.
        assert_eq!(*handler.all_at_once.lock().unwrap(), 3);
        assert_eq!(world.committed(SEEN).await, 60);
    }
}

#[tokio::test(start_paused = true)]
async fn events_before_a_gap_in_a_batch_are_handled_if_the_gap_cannot_be_filled_yet() {
    let world = World::new(1);
    for version in 1..=4 {
        let commit = world.store("a", 1).await;
        if version != 3 {
            world.publish(&commit).await;
        }
    }
    let faults = Faults::script([Fault::Unavailable.on(Op::Read).first(1)]);
    let seen = Seen::new();
    let runner = world
        .builder()
        .with_event_store(faults.event_store(world.store.clone()))
        .listener_with(seen.clone(), from_beginning().with_max_batch(8))
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(faults.log().len(), 1, "the store was away once");
    assert_eq!(seen.of("a"), [1, 2, 3, 4]);
}
