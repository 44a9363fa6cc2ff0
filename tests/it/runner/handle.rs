//! Processors that are started, looked at, started again and stopped by a handle.
use super::harness::*;
use foldstream::runner::{
    ErrorClass, HandlerError, OnHalt, ProcessorState, RestartError, RunnerError, RunnerHandle,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub(super) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

pub(super) fn state(handle: &RunnerHandle, processor: &str) -> ProcessorState {
    handle.health().processor(processor).unwrap().state
}

/// Fails at version 2 of the stream `bad` for as long as it is broken.
fn breakable() -> (Seen, Arc<AtomicBool>) {
    let is_broken = Arc::new(AtomicBool::new(true));
    let asked = is_broken.clone();
    let seen = Seen::failing(move |id, version, _| {
        if (id, version) == ("bad", 2) && asked.load(Ordering::SeqCst) {
            return Err(HandlerError::permanent("no such address"));
        }
        Ok(())
    });
    (seen, is_broken)
}

#[tokio::test(start_paused = true)]
async fn a_halted_processor_is_visible_while_the_others_run() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("bad").await;
    }
    let (bad, _) = breakable();
    let good = Seen::new();
    let runner = world
        .builder()
        .listener_with(bad, from_beginning())
        .listener_with(good.clone(), from_beginning().with_name("good"))
        .build()
        .unwrap();
    let handle = runner.start();
    pass(30).await;
    world.deposit("bad").await;
    pass(10).await;

    let health = handle.health();
    let halted = health.processor("seen").unwrap();
    assert_eq!(halted.state, ProcessorState::Halted);
    assert!(halted.lasting >= Duration::from_secs(39), "{halted:?}");
    let trouble = halted.trouble.as_ref().unwrap();
    assert_eq!(trouble.class, ErrorClass::Permanent);
    assert_eq!(trouble.stream.as_ref().unwrap().id(), "bad");
    assert_eq!(trouble.version.unwrap().get(), 2);
    assert_eq!(trouble.partition, Some(partition(0)));
    assert!(trouble.error.contains("no such address"), "{trouble:?}");
    assert_eq!(state(&handle, "good"), ProcessorState::Running);
    assert_eq!(good.of("bad"), [1, 2, 3, 4]);
    let readiness = health.readiness();
    assert_eq!(readiness.problems.len(), 1, "{readiness}");
    assert!(readiness.to_string().starts_with("seen: it has halted"));
    assert!(health.liveness().is_ok());

    // The report names the same error while the others run.
    let report = handle.report();
    let error = report.processor("seen").unwrap().error.as_deref();
    assert!(matches!(error, Some(RunnerError::Halted { .. })));
    assert!(report.processor("good").unwrap().error.is_none());
    handle.stop();
    assert!(handle.wait().await.into_result().is_err());
    assert_eq!(state(&handle, "good"), ProcessorState::Stopped);
    assert_eq!(state(&handle, "seen"), ProcessorState::Halted);
}

#[tokio::test(start_paused = true)]
async fn a_halted_processor_is_started_anew_from_its_committed_offset() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("bad").await;
    }
    let (bad, is_broken) = breakable();
    let runner = world.builder().listener_with(bad.clone(), from_beginning());
    let handle = runner.build().unwrap().start();
    let halted = handle.wait().await;
    assert!(halted.into_result().is_err());
    assert_eq!(bad.of("bad"), [1]);

    is_broken.store(false, Ordering::SeqCst);
    handle.restart("seen").unwrap();
    assert_eq!(state(&handle, "seen"), ProcessorState::Starting);
    pass(30).await;
    assert_eq!(state(&handle, "seen"), ProcessorState::Running);
    assert_eq!(bad.of("bad"), [1, 2, 3]);
    // The counts are those since the start of the runner.
    assert_eq!(handle.report().processor("seen").unwrap().handled, 3);
    handle.stop();
    handle.wait().await.into_result().unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_a_halted_processor_of_a_runner_that_goes_on_is_started_anew() {
    let world = World::new(1);
    let runner = world.builder().listener(Seen::new()).build().unwrap();
    let handle = runner.start();
    pass(5).await;
    let processor: Arc<str> = "seen".into();
    let running = RestartError::Running {
        processor: processor.clone(),
    };
    assert_eq!(handle.restart("seen"), Err(running));
    let unknown = RestartError::Unknown {
        processor: "mailer".into(),
        known: vec![processor.clone()],
    };
    assert_eq!(handle.restart("mailer"), Err(unknown));
    handle.stop();
    let stopping = RestartError::Stopping { processor };
    assert_eq!(handle.restart("seen"), Err(stopping.clone()));
    handle.wait().await.into_result().unwrap();
    assert_eq!(handle.restart("seen"), Err(stopping));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handle_ends_the_processors_as_a_crash_does() {
    let world = World::new(1);
    let seen = Seen::new();
    let runner = world
        .builder()
        .listener_with(seen.clone(), from_beginning())
        .build()
        .unwrap();
    let handle = runner.start();
    pass(5).await;
    drop(handle);
    pass(5).await;
    world.deposit("a").await;
    pass(60).await;
    assert_eq!(seen.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_halt_stops_all_if_the_runner_is_told_so() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("bad").await;
    }
    let (bad, _) = breakable();
    let good = Seen::new();
    let runner = world
        .builder()
        .with_on_halt(OnHalt::StopAll)
        .listener_with(bad, from_beginning())
        .listener_with(good.clone(), from_beginning().with_name("good"))
        .build()
        .unwrap();
    let report = runner.run(std::future::pending()).await;
    assert!(report.processor("seen").unwrap().error.is_some());
    assert!(report.processor("good").unwrap().error.is_none());
    // The other one has stopped in order: what it has handled is committed.
    let group = "example-group.good.g1";
    assert_eq!(world.committed(group).await, good.len() as u64);
}

#[test]
fn processors_whose_runtime_has_ended_are_halted_and_waiting_for_them_ends() {
    let world = World::new(1);
    let runner = world.builder().listener(Seen::new()).build().unwrap();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap()
    };
    let first = runtime();
    let handle = first.block_on(async { runner.start() });
    drop(first);
    let report = runtime().block_on(handle.wait());
    let error = report.into_result().unwrap_err();
    assert!(matches!(*error, RunnerError::Broken { .. }), "{error:?}");
    assert_eq!(state(&handle, "seen"), ProcessorState::Halted);
}
