//! The health of processors in each of their states.
use super::{
    handle::{pass, state},
    harness::*,
};
use foldstream::{
    Clock, Timestamp,
    ports::{ControlStore, Message, MessageBus, RangeQuery},
    runner::{
        ErrorClass, EventContext, HandlerError, HandlerResult, Listener, ModelId, ProblemKind,
        ProcessorState, Projector, RunnerHandle, TroubleSource,
    },
};
use foldstream_testkit::faults::{Fault, Faults, Op, Rule};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Makes calls fail while the switch is on.
fn away(op: Op, is_away: &Arc<AtomicBool>) -> Rule {
    let is_away = is_away.clone();
    let matching = move |_: &foldstream_testkit::faults::Call<'_>| is_away.load(Ordering::SeqCst);
    Fault::Unavailable.on(op).matching(matching)
}

fn start(world: &World, faults: &Faults, listener: impl Listener) -> RunnerHandle {
    let runner = world.faulty_builder(faults);
    let runner = runner.listener_with(listener, from_beginning());
    runner.build().unwrap().start()
}

#[tokio::test(start_paused = true)]
async fn an_outage_turns_health_after_a_minute_and_health_turns_back_when_it_ends() {
    // Whatever call notices it: also an idle processor whose bus says nothing.
    for op in [Op::Next, Op::Offsets, Op::Put] {
        let (world, is_away) = (World::new(1), Arc::new(AtomicBool::new(false)));
        let faults = Faults::script([away(op, &is_away)]);
        let handle = start(&world, &faults, Seen::new());
        pass(30).await;
        assert_eq!(state(&handle, "seen"), ProcessorState::Running, "{op:?}");
        is_away.store(true, Ordering::SeqCst);
        // Something to receive makes the consumer notice.
        world.deposit("a").await;
        pass(50).await;
        let health = handle.health();
        let seen = health.processor("seen").unwrap();
        assert_eq!(seen.state, ProcessorState::Running, "{op:?}");
        assert!(health.readiness().is_ok());
        pass(40).await;
        let health = handle.health();
        let seen = health.processor("seen").unwrap();
        assert_eq!(seen.state, ProcessorState::Unreachable, "{op:?}");
        let trouble = seen.trouble.as_ref().unwrap();
        let expected = match op {
            Op::Put => TroubleSource::ControlStore,
            _ => TroubleSource::Bus,
        };
        assert_eq!(trouble.source, expected, "{op:?}");
        assert_eq!(trouble.class, ErrorClass::Transient, "{op:?}");
        // It is counted from the first failure, not from the moment at which health turned.
        assert!(seen.lasting >= Duration::from_secs(75), "{op:?}: {seen:?}");
        let kinds: Vec<_> = health.readiness().problems;
        let unreachable = ProblemKind::State(ProcessorState::Unreachable);
        assert_eq!(kinds[0].kind, unreachable, "{op:?}");
        is_away.store(false, Ordering::SeqCst);
        pass(30).await;
        let health = handle.health();
        assert_eq!(state(&handle, "seen"), ProcessorState::Running, "{op:?}");
        assert!(health.processor("seen").unwrap().trouble.is_none());
        assert!(health.readiness().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_cannot_start_is_starting_then_unreachable() {
    for op in [Op::Get, Op::Subscribe, Op::Offsets] {
        let (world, is_away) = (World::new(1), Arc::new(AtomicBool::new(true)));
        world.deposit("a").await;
        let faults = Faults::script([away(op, &is_away)]);
        let handle = start(&world, &faults, Seen::new());
        pass(30).await;
        let health = handle.health();
        assert_eq!(state(&handle, "seen"), ProcessorState::Starting, "{op:?}");
        assert!(!health.readiness().is_ok());
        assert_eq!(health.processor("seen").unwrap().lag.records, None);
        pass(45).await;
        assert_eq!(
            state(&handle, "seen"),
            ProcessorState::Unreachable,
            "{op:?}"
        );
        is_away.store(false, Ordering::SeqCst);
        pass(60).await;
        assert_eq!(state(&handle, "seen"), ProcessorState::Running, "{op:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn lag_is_the_distance_to_the_end_and_the_age_of_the_oldest_event_that_waits() {
    #[derive(Debug)]
    struct Later;
    impl Clock for Later {
        fn now(&self) -> Timestamp {
            // The events of these tests are recorded at 1.
            Timestamp::from_micros(90_000_001)
        }
    }
    let world = World::new(2);
    world.deposit("b").await;
    for _ in 0..5 {
        world.deposit("a").await;
    }
    let seen = Seen::failing(|id, version, _| match (id, version) {
        ("a", 3) => Err(HandlerError::transient("the mail server is down")),
        _ => Ok(()),
    });
    let runner = world.builder().with_clock(Arc::new(Later));
    let runner = runner.listener_with(seen, from_beginning());
    let handle = runner.build().unwrap().start();
    pass(30).await;
    let health = handle.health();
    let health = health.processor("seen").unwrap();
    assert_eq!(health.lag.records, Some(3), "{health:?}");
    assert_eq!(health.lag.time, Some(Duration::from_secs(90)));
    assert_eq!((health.partitions, health.generation), (2, Some(1)));
    // One stream fails: the processor is ready, and says what it retries.
    assert_eq!(health.state, ProcessorState::Running);
    assert_eq!(health.waiting_lanes + health.in_flight, 1);
    assert!(health.retries > 1);
    let retry = health.oldest_retry.as_ref().unwrap();
    assert_eq!(retry.source, TroubleSource::Handler);
    assert_eq!(retry.stream.as_ref().unwrap().id(), "a");
    assert_eq!(retry.version.unwrap().get(), 3);
    assert!(retry.lasting >= Duration::from_secs(25), "{retry:?}");
    assert_eq!(u64::from(retry.attempts), health.retries);
    assert_eq!(health.trouble.as_ref().unwrap().error, retry.error);
    assert!(handle.health().readiness().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_has_caught_up_has_no_lag() {
    let world = World::new(1);
    world.deposit("a").await;
    let handle = start(&world, &Faults::none(), Seen::new());
    pass(30).await;
    let health = handle.health();
    let lag = health.processor("seen").unwrap().lag;
    assert_eq!((lag.records, lag.time), (Some(0), Some(Duration::ZERO)));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_counted_and_names_its_partition() {
    let world = World::new(1);
    world.deposit("a").await;
    let foreign = Message::new(TOPIC, SENT_AT).with_key("k").with_value("{}");
    world.bus.publish(&foreign).await.unwrap();
    let handle = start(&world, &Faults::none(), Seen::new());
    pass(30).await;
    let health = handle.health();
    let health = health.processor("seen").unwrap();
    assert_eq!(health.unreadable, 1);
    assert_eq!(health.state, ProcessorState::Halted);
    let trouble = health.trouble.as_ref().unwrap();
    assert_eq!(trouble.class, ErrorClass::Poison);
    assert_eq!(trouble.partition, Some(partition(0)));
    assert_eq!(handle.report().processors[0].unreadable, 1);
}

/// A read model whose database is away.
struct Away;
impl Projector for Away {
    const NAME: &'static str = "model";
    type Events = crate::support::AccountEvent;
    async fn project(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        Err(HandlerError::transient("the database is down"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_model_that_cannot_be_flushed_for_a_minute_is_a_problem() {
    let world = World::new(1);
    world.deposit("a").await;
    let runner = world.builder().projector(Away).build().unwrap();
    let handle = runner.start();
    pass(40).await;
    assert!(handle.health().readiness().is_ok());
    let health = handle.health();
    let trouble = health.processor("model").unwrap().trouble.clone().unwrap();
    assert_eq!(trouble.source, TroubleSource::ReadModel);
    assert_eq!(&*trouble.error, "the database is down");
    pass(40).await;
    let readiness = handle.health().readiness();
    assert_eq!(readiness.problems[0].kind, ProblemKind::NotDurable);
    assert!(readiness.to_string().contains("the database is down"));
}

/// Waits for the answer on a thread of its own, and blocks the thread of the attempt.
struct Blocks(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);
impl Listener for Blocks {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
        let _ = self.0.lock().unwrap().recv();
        Ok(())
    }
}

#[test]
fn a_handler_that_blocks_its_thread_makes_the_process_not_live() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let (done, blocked) = std::sync::mpsc::channel();
    runtime.block_on(async {
        let world = World::new(1);
        world.deposit("a").await;
        let policy = from_beginning().with_attempt_timeout(Duration::from_millis(1));
        let runner = world.builder();
        let runner = runner.listener_with(Blocks(std::sync::Mutex::new(blocked)), policy);
        let handle = runner.build().unwrap().start();
        // It ends when the rule holds; a rule that does not hold makes the test hang.
        let stuck = loop {
            let liveness = handle.health().liveness();
            if !liveness.is_ok() {
                break liveness;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(stuck.problems[0].kind, ProblemKind::Stuck(1));
        assert_eq!(handle.health().processor("seen").unwrap().stuck, 1);
        done.send(()).unwrap();
    });
}

/// Handles the event of one stream only after those of the others, for which it blocks its thread.
struct BlocksForOthers {
    others: std::sync::mpsc::Sender<()>,
    blocked: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    /// The number of the others.
    waits_for: usize,
}
impl Listener for BlocksForOthers {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        if ctx.stream().id() != "first" {
            let _ = self.others.send(());
            return Ok(());
        }
        let blocked = self.blocked.lock().unwrap();
        for _ in 0..self.waits_for {
            let other = blocked.recv_timeout(Duration::from_secs(60));
            other.map_err(HandlerError::permanent)?;
        }
        Ok(())
    }
}

#[test]
fn a_handler_that_blocks_its_thread_does_not_hold_up_other_streams() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        // Also streams whose attempts are started long after the one that blocks.
        for waits_for in [1, 8, 100] {
            let world = World::new(1);
            world.deposit("first").await;
            for other in 0..waits_for {
                world.deposit(&format!("other-{other}")).await;
            }
            let (others, blocked) = std::sync::mpsc::channel();
            let blocks = BlocksForOthers {
                others,
                blocked: std::sync::Mutex::new(blocked),
                waits_for,
            };
            let runner = world.builder().listener_with(blocks, from_beginning());
            let runner = runner.build().unwrap();
            let report = runner.run_until_caught_up().await.into_result().unwrap();
            assert_eq!(report[0].handled, 1 + waits_for as u64);
            assert_eq!(report[0].dead_letters, 0);
        }
    });
}

/// Returns the values of the rows of all instances of a processor.
async fn instances(world: &World, processor: &str) -> Vec<String> {
    let query = RangeQuery::new(format!("inst/{processor}"));
    let page = world.control.range(&query).await.unwrap();
    let values = page.rows.iter();
    values
        .map(|row| String::from_utf8(row.value.to_vec()).unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_instance_has_a_row_with_its_state_which_goes_when_it_stops() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("bad").await;
    }
    let run = |label: &str, seen: Seen| {
        let runner = world.builder().with_instance(label);
        let runner = runner.listener_with(seen, from_beginning());
        runner.build().unwrap().start()
    };
    let (first, second) = (run("host-1", Seen::new()), run("host-2", Seen::new()));
    pass(30).await;
    let rows = instances(&world, "seen").await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (row, label) in [(0, "host-1"), (1, "host-2")] {
        let label = format!(r#""l":"{label}""#);
        assert!(rows.iter().any(|r| r.contains(&label)), "{row} {rows:?}");
    }
    assert!(rows.iter().all(|row| row.contains(r#""s":"running""#)));
    assert!(rows.iter().all(|row| row.contains(r#""r":0"#)), "{rows:?}");
    first.stop();
    first.wait().await.into_result().unwrap();
    second.stop();
    second.wait().await.into_result().unwrap();
    assert_eq!(instances(&world, "seen").await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_row_of_a_halted_processor_stays_for_as_long_as_the_process_runs() {
    let world = World::new(1);
    world.deposit("a").await;
    let seen = Seen::failing(|_, _, _| Err(HandlerError::permanent("no such address")));
    let handle = start(&world, &Faults::none(), seen);
    // It would have expired long ago.
    pass(3600).await;
    let rows = instances(&world, "seen").await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    for part in [r#""s":"halted""#, r#""c":"permanent""#, "no such address"] {
        assert!(rows[0].contains(part), "{rows:?}");
    }
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn a_row_is_written_every_ten_seconds_and_at_changes_whatever_the_load() {
    let world = World::new(1);
    let written = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = written.clone();
    let counts = move |call: &foldstream_testkit::faults::Call<'_>| {
        counted.fetch_add(u32::from(writes_the_instance(call)), Ordering::SeqCst);
        false
    };
    let faults = Faults::script([Fault::Unavailable.on(Op::Put).matching(counts)]);
    // Its failures come and go, so that the trouble changes all the time.
    let seen = Seen::failing(|_, _, attempt| match attempt {
        1 | 2 => Err(HandlerError::transient("down")),
        _ => Ok(()),
    });
    let handle = start(&world, &faults, seen);
    for _ in 0..200 {
        world.deposit("a").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    drop(handle);
    // 100 s, and the changes to starting and running.
    let written = written.load(Ordering::SeqCst);
    assert!((10..=13).contains(&written), "{written}");
}
