//! Topics that are deleted and created again, and offsets that hold no record.
use super::harness::*;
use foldstream::{
    ports::{MessageBus, Offset},
    runner::{HandlerError, Listener, ProcessorPolicy, Runner, RunnerError},
};
use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

fn runner(world: &World, listener: impl Listener, policy: ProcessorPolicy) -> Runner {
    world
        .builder()
        .listener_with(listener, policy)
        .build()
        .unwrap()
}

impl World {
    async fn deposits(&self, prefix: &str, count: u64) {
        for n in 0..count {
            self.deposit(&format!("{prefix}-{n}")).await;
        }
    }
    fn recreate_topic(&self, partitions: u32) {
        self.bus.delete_topic(TOPIC);
        assert!(self.bus.create_topic(TOPIC, partitions));
    }
    fn leave_hole(&self, number: u32) {
        self.bus.skip_offsets(&partition(number), 2).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_recreated_while_nobody_reads_is_a_lost_position() {
    // With fewer records than before, with as many, and with more, so that the old position lies
    // within the partition.
    for records in [0, 1, 3, 10] {
        let world = World::new(1);
        world.deposits("before", 3).await;
        let report = world.catch_up(Seen::new(), from_beginning()).await;
        report.into_result().unwrap();
        world.recreate_topic(1);
        world.deposits("after", records).await;
        let seen = Seen::new();
        let report = world.catch_up(seen.clone(), from_beginning()).await;
        let error = error_of(&report);
        assert!(
            matches!(error, RunnerError::PositionLost { .. }),
            "{records} records: {error}"
        );
        assert_eq!(seen.all(), [], "{records} records");
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_recreated_under_a_running_processor_is_a_lost_position() {
    // Between two polls, or after the deletion was noticed.
    for pause in [Duration::ZERO, 10 * SECOND] {
        for records in [0, 1, 10] {
            let world = World::new(2);
            world.deposits("before", 6).await;
            let seen = Seen::new();
            let runner = runner(&world, seen.clone(), from_beginning());
            let work = async {
                tokio::time::sleep(10 * SECOND).await;
                world.bus.delete_topic(TOPIC);
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                assert!(world.bus.create_topic(TOPIC, 2));
                world.deposits("after", records).await;
                tokio::time::sleep(60 * SECOND).await;
            };
            let report = runner.run(work).await;
            let RunnerError::PositionLost { reason, .. } = error_of(&report) else {
                panic!("{report:?}")
            };
            assert!(reason.contains("created again"), "{reason}");
            assert_eq!(seen.len(), 6, "{records} records after {pause:?}");
            assert_eq!(world.committed(SEEN).await, 0, "for the new topic");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_offset_of_the_old_topic_is_not_committed_for_the_recreated_one() {
    let world = World::new(1);
    world.deposits("before", 3).await;
    let is_blocked = Arc::new(AtomicBool::new(true));
    let blocked = is_blocked.clone();
    // The handler works on the last record of the old topic until the new topic exists.
    let seen = Seen::failing(move |id, _, _| {
        if id == "before-2" && blocked.load(Ordering::SeqCst) {
            return Err(HandlerError::transient("not yet"));
        }
        Ok(())
    });
    let runner = runner(&world, seen.clone(), from_beginning());
    let work = async {
        tokio::time::sleep(SECOND).await;
        world.recreate_topic(1);
        world.deposits("after", 10).await;
        is_blocked.store(false, Ordering::SeqCst);
        tokio::time::sleep(60 * SECOND).await;
    };
    let report = runner.run(work).await;
    let error = error_of(&report);
    assert!(matches!(error, RunnerError::PositionLost { .. }), "{error}");
    assert_eq!(world.committed(SEEN).await, 0);
}

#[tokio::test(start_paused = true)]
async fn offsets_without_records_hold_up_no_run_until_caught_up() {
    // At the end, in a partition without records, and between records.
    let world = World::new(2);
    world.leave_hole(0);
    world.deposits("a", 4).await;
    world.leave_hole(0);
    world.leave_hole(1);
    world.deposits("b", 4).await;
    world.leave_hole(1);
    let seen = Seen::new();
    let run = world.catch_up(seen.clone(), from_beginning());
    let report = tokio::time::timeout(3600 * SECOND, run).await;
    report.expect("it catches up").into_result().unwrap();
    assert_eq!(seen.len(), 8);
    assert_eq!(world.committed(SEEN).await, world.ends().await);

    // A run that has nothing but such offsets to pass.
    world.leave_hole(0);
    let run = world.catch_up(seen.clone(), from_beginning());
    let report = tokio::time::timeout(3600 * SECOND, run).await;
    report.expect("it catches up").into_result().unwrap();
    assert_eq!(
        (seen.len(), world.committed(SEEN).await),
        (8, world.ends().await)
    );
}

#[tokio::test(start_paused = true)]
async fn instances_that_share_the_partitions_catch_up_over_offsets_without_records() {
    let world = World::new(4);
    world.deposits("a", 20).await;
    (0..4).for_each(|number| world.leave_hole(number));
    let seen = Seen::new();
    let (one, two) = (
        runner(&world, seen.clone(), from_beginning()),
        runner(&world, seen.clone(), from_beginning()),
    );
    let both = futures::future::join(one.run_until_caught_up(), two.run_until_caught_up());
    let both = tokio::time::timeout(3600 * SECOND, both).await;
    let (one, two) = both.expect("they catch up");
    one.into_result().unwrap();
    two.into_result().unwrap();
    assert_eq!(world.committed(SEEN).await, world.ends().await);
}

#[tokio::test(start_paused = true)]
async fn an_offset_without_a_record_is_not_committed_past_a_record_that_is_not_done() {
    let world = World::new(1);
    world.deposit("good").await;
    world.deposit("bad").await;
    world.leave_hole(0);
    let seen = Seen::failing(|id, _, _| match id {
        "bad" => Err(HandlerError::permanent("no")),
        _ => Ok(()),
    });
    let report = world.catch_up(seen, from_beginning()).await;
    assert!(matches!(error_of(&report), RunnerError::Halted { .. }));
    assert_eq!(world.committed(SEEN).await, 1);
    let offsets = world.bus.offsets(TOPIC).await.unwrap();
    assert_eq!(offsets[0].end, Offset::new(4));
}
