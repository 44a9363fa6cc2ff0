//! The start position of a processor, and its behaviour when that position is gone.
use super::harness::*;
use foldstream::{
    ports::{ControlStore, Expect, MessageBus, Offset, Revision, Row, RowKey},
    runner::{
        EventContext, HandlerResult, ModelId, ProcessorPolicy, Projector, Runner, RunnerError,
        Start,
    },
};
use foldstream_testkit::faults::{Fault, Faults, Op};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn now() -> ProcessorPolicy {
    ProcessorPolicy::listener()
}
fn some_time() -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_secs(10))
}

#[tokio::test(start_paused = true)]
async fn a_listener_starts_now_and_does_not_repeat_old_side_effects() {
    let world = World::new(2);
    world.deposit("old").await;
    let seen = Seen::new();
    let runner = world
        .builder()
        .listener_with(seen.clone(), now())
        .build()
        .unwrap();
    let later = async {
        some_time().await;
        world.deposit("new").await;
        some_time().await;
    };
    runner.run(later).await.into_result().unwrap();
    assert_eq!(seen.all(), [("new".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn now_is_resolved_once_and_not_again_after_a_crash() {
    let world = World::new(1);
    world.deposit("old").await;
    let seen = Seen::new();
    let runner = world
        .builder()
        .listener_with(seen.clone(), now())
        .build()
        .unwrap();
    // The boot rows are written before the group is joined. A crash right after that must not move
    // the start.
    let boot = foldstream::ports::RangeQuery::new("boot/seen/1");
    let run = runner.run(std::future::pending());
    tokio::select! {
        biased;
        () = async {
            while foldstream::ports::ControlStore::range(&*world.control, &boot).await.unwrap().rows.is_empty() {
                tokio::task::yield_now().await;
            }
        } => {}
        _ = run => unreachable!(),
    }
    world.deposit("between").await;
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(seen.all(), [("between".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_new_partition_of_a_known_topic_is_read_from_its_first_record() {
    let world = World::new(1);
    let seen = Seen::new();
    let runner = world
        .builder()
        .listener_with(seen.clone(), now())
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    world.bus.set_partitions(TOPIC, 8).unwrap();
    for n in 0..20 {
        world.deposit(&n.to_string()).await;
    }
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(seen.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_appears_while_running_is_read_from_its_first_record() {
    let world = World::new(1);
    let seen = Seen::new();
    let runner = world
        .builder()
        .listener_with(seen.clone(), now())
        .build()
        .unwrap();
    let grow = async {
        some_time().await;
        world.bus.set_partitions(TOPIC, 8).unwrap();
        for n in 0..20 {
            world.deposit(&n.to_string()).await;
        }
        some_time().await;
    };
    runner.run(grow).await.into_result().unwrap();
    assert_eq!(seen.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_lost_commit_halts_and_starts_nowhere() {
    let world = World::new(1);
    world.deposit("a").await;
    world
        .catch_up(Seen::new(), from_beginning())
        .await
        .into_result()
        .unwrap();
    world.bus.delete_group(SEEN).await.unwrap();
    world.deposit("a").await;
    let seen = Seen::new();
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    let RunnerError::PositionLost { group, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert_eq!((group.as_str(), seen.len()), (SEEN, 0));
}

#[tokio::test(start_paused = true)]
async fn a_position_that_retention_has_passed_halts() {
    let world = World::new(1);
    world.deposit("a").await;
    world
        .catch_up(Seen::new(), from_beginning())
        .await
        .into_result()
        .unwrap();
    for _ in 0..5 {
        world.deposit("a").await;
    }
    world
        .bus
        .delete_records_before(&partition(0), Offset::new(4))
        .unwrap();
    let seen = Seen::new();
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    assert!(
        matches!(error_of(&report), RunnerError::PositionLost { .. }),
        "{report:?}"
    );
    assert_eq!(seen.len(), 0);
}

/// Creates two partitions with the records of three streams. The first record of partition 1 is
/// deleted.
async fn trimmed_world() -> World {
    let world = World::new(2);
    for n in 0..20 {
        world.deposit(&n.to_string()).await;
    }
    world
        .bus
        .delete_records_before(&partition(1), Offset::new(1))
        .unwrap();
    world
}

#[tokio::test(start_paused = true)]
async fn a_beginning_that_retention_has_deleted_halts_and_notes_no_start() {
    let world = trimmed_world().await;
    let seen = Seen::new();
    let builder = world.builder().with_event_store(world.store.clone());
    let runner = builder
        .listener_with(seen.clone(), from_beginning())
        .build()
        .unwrap();
    let report = runner.run_until_caught_up().await;
    let error = error_of(&report);
    let RunnerError::PositionLost {
        partition: lost, ..
    } = error
    else {
        panic!("{report:?}")
    };
    assert_eq!((lost, seen.len()), (&partition(1), 0));
    for part in ["offset 1", "Start::Oldest", "replay"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // No position is stored yet, so another start position applies in both partitions.
    let report = world.catch_up(seen.clone(), now()).await;
    report.into_result().unwrap();
    assert_eq!(seen.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_start_takes_what_retention_has_left() {
    let world = trimmed_world().await;
    let seen = Seen::new();
    let oldest = ProcessorPolicy::listener().with_start(Start::Oldest);
    let report = world.catch_up(seen.clone(), oldest.clone()).await;
    report.into_result().unwrap();
    assert_eq!(seen.len(), 19);
    // Records deleted since then are a loss.
    for n in 0..20 {
        world.deposit(&n.to_string()).await;
    }
    let end = world.bus.offsets(TOPIC).await.unwrap()[0].end;
    world.bus.delete_records_before(&partition(0), end).unwrap();
    let report = world.catch_up(seen.clone(), oldest).await;
    let error = error_of(&report);
    assert!(matches!(error, RunnerError::PositionLost { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_has_started_at_the_beginning_goes_on_after_retention() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let seen = Seen::new();
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    report.into_result().unwrap();
    world
        .bus
        .delete_records_before(&partition(0), Offset::new(3))
        .unwrap();
    world.deposit("a").await;
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    report.into_result().unwrap();
    assert_eq!(seen.of("a"), [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_processor_in_an_unknown_state_starts_only_if_its_row_says_that_it_goes_on() {
    for (row, state) in [
        (
            r#"{"a":1,"n":2,"st":"scanning","e":4,"m":0}"#,
            Some("scanning"),
        ),
        (
            r#"{"a":1,"st":"draining","s":true,"e":4,"m":0}"#,
            Some("draining"),
        ),
        (
            r#"{"a":1,"n":2,"st":"of tomorrow","s":false,"e":4,"m":0,"t":2}"#,
            None,
        ),
    ] {
        let world = World::new(1);
        world.deposit("a").await;
        let key = RowKey::new("proc", "seen");
        let row = Row::new(key, row.as_bytes(), Revision::from_u128(1));
        let _ = world.control.put(&row, Expect::Absent).await.unwrap();
        let seen = Seen::new();
        let report = world.catch_up(seen.clone(), from_beginning()).await;
        match (state, report.processors[0].error.as_deref()) {
            (None, None) => assert_eq!(seen.len(), 1),
            (Some(expected), Some(RunnerError::UnknownState { state, .. })) => {
                assert_eq!((state.as_str(), seen.len()), (expected, 0));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_group_prefix_names_the_service() {
    for prefix in ["", " ", "a\nb"] {
        let world = World::new(1);
        let control: std::sync::Arc<dyn ControlStore> = world.control.clone();
        let builder = Runner::builder(world.bus.clone(), control, prefix);
        let error = builder.listener(Seen::new()).build().unwrap_err();
        assert!(error.to_string().contains("group_prefix"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_topic_ends_the_processor_with_a_word_what_to_do() {
    let world = World::new(1);
    let runner = world
        .builder()
        .with_topics(["nowhere"])
        .listener(Seen::new())
        .build()
        .unwrap();
    let report = runner.run(std::future::pending()).await;
    let RunnerError::Bus { source, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert!(source.to_string().contains("nowhere"), "{source}");
}

#[tokio::test(start_paused = true)]
async fn a_build_of_another_model_does_not_join() {
    struct Numbered<const N: u32>;
    impl<const N: u32> Projector for Numbered<N> {
        const NAME: &'static str = "numbered";
        const MODEL: u32 = N;
        type Events = crate::support::AccountEvent;
        async fn project(&self, _: &Self::Events, _: &EventContext) -> HandlerResult {
            Ok(())
        }
        async fn reset(&self, _: &ModelId) -> HandlerResult {
            Ok(())
        }
    }
    let world = World::new(1);
    let first = world.builder().projector(Numbered::<1>).build().unwrap();
    first.run_until_caught_up().await.into_result().unwrap();
    let second = world.builder().projector(Numbered::<2>).build().unwrap();
    let report = second.run_until_caught_up().await;
    let RunnerError::WrongModel {
        expected, found, ..
    } = error_of(&report)
    else {
        panic!("{report:?}")
    };
    assert_eq!((*expected, *found), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_projector_that_starts_now_is_not_given_older_events_from_history() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let model = std::sync::Arc::new(Model::default());
    let policy = ProcessorPolicy::projector().with_start(Start::Now);
    let runner = world
        .builder()
        .with_event_store(world.store.clone())
        .projector_with(model.clone(), policy)
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    // The first version that the processor sees is its base. Gaps after it are filled.
    world.deposit("a").await;
    let _ = world.store("a", 1).await;
    world.deposit("a").await;
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(model.versions("a"), [4, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_new_partition_whose_first_records_are_gone_halts_and_skips_nothing() {
    let world = World::new(1);
    let runner = world
        .builder()
        .listener_with(Seen::new(), now())
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    world.bus.set_partitions(TOPIC, 2).unwrap();
    for n in 0..20 {
        world.deposit(&n.to_string()).await;
    }
    world
        .bus
        .delete_records_before(&partition(1), Offset::new(1))
        .unwrap();
    let report = runner.run_until_caught_up().await;
    assert!(
        matches!(error_of(&report), RunnerError::PositionLost { .. }),
        "{report:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_commit_is_noticed_by_an_instance_that_looked_before_the_processor_had_started() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    // The first instance records its start late, so the second reads the row before that.
    let late = Fault::Delay(Duration::from_secs(2)).on(Op::Put);
    let slow = world.faulty_builder(&Faults::script([late.matching(notes_the_start)]));
    let (first, second) = (Seen::new(), Seen::new());
    let slow = slow.listener_with(first.clone(), from_beginning());
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let slow = slow.build().unwrap();
    let slow = tokio::spawn(async move { slow.run(stopped).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let other = world
        .builder()
        .listener_with(second.clone(), from_beginning());
    let other = other.build().unwrap();
    let other = tokio::spawn(async move { other.run(some_time()).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        (first.of("a"), world.committed(SEEN).await),
        (vec![1, 2, 3], 3)
    );

    world.bus.forget_committed(SEEN);
    stop.cancel();
    slow.await.unwrap().into_result().unwrap();
    let report = other.await.unwrap();
    assert!(
        matches!(error_of(&report), RunnerError::PositionLost { .. }),
        "{report:?}"
    );
    assert_eq!(second.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_until_caught_up_waits_for_a_bus_that_is_away_for_a_moment() {
    let world = World::new(1);
    world.deposit("a").await;
    let away = Fault::Unavailable.on(Op::Offsets).first(3);
    let runner = world.faulty_builder(&Faults::script([away]));
    let seen = Seen::new();
    let runner = runner.listener_with(seen.clone(), from_beginning());
    let report = runner.build().unwrap().run_until_caught_up().await;
    assert!(report.processors[0].error.is_none(), "{report:?}");
    assert_eq!(seen.of("a"), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_somebody_else_has_noted_since_is_not_taken_for_a_lost_commit() {
    let world = World::new(1);
    for _ in 0..3 {
        world.deposit("a").await;
    }
    // The first instance reads its boot row so late that its partition has moved to the second.
    let late = Fault::Delay(Duration::from_secs(5)).on(Op::Get).at(4);
    let slow = world.faulty_builder(&Faults::script([late]));
    let seen = Seen::new();
    let slow = slow.listener_with(seen.clone(), from_beginning());
    let slow = slow.build().unwrap();
    let slow = tokio::spawn(async move { slow.run(some_time()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(seen.len(), 0);
    let other = world
        .builder()
        .listener_with(seen.clone(), from_beginning());
    let other = other.build().unwrap();
    let other = tokio::spawn(async move { other.run(some_time()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bus.expel_owner(SEEN, &partition(0));
    for instance in [slow, other] {
        instance.await.unwrap().into_result().unwrap();
    }
    assert_eq!(seen.of("a"), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_durable_but_whose_answers_were_lost_is_gone_on_with() {
    for lost in 1..=3 {
        let world = World::new(1);
        world.deposit("a").await;
        let notes = Fault::LoseReply.on(Op::Put).matching(notes_the_start);
        let faults = Faults::script([notes.first(lost)]);
        let seen = Seen::new();
        let runner = world.faulty_builder(&faults);
        let runner = runner.listener_with(seen.clone(), from_beginning());
        let runner = runner.build().unwrap();
        let report = runner
            .run(tokio::time::sleep(Duration::from_secs(600)))
            .await;
        report.into_result().unwrap();
        assert_eq!(seen.of("a"), [1], "{lost} answers are lost");
        assert_eq!(world.committed(SEEN).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn another_group_prefix_is_refused_since_the_positions_of_the_processor_are_lost_with_it() {
    let world = World::new(1);
    world.deposit("a").await;
    let seen = Seen::new();
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    report.into_result().unwrap();
    let builder = |prefix: &str| {
        let control = world.control.clone() as std::sync::Arc<dyn ControlStore>;
        Runner::builder(world.bus.clone(), control, prefix.to_owned())
    };
    let runner = builder("other").listener_with(seen.clone(), from_beginning());
    let report = runner.build().unwrap().run(some_time()).await;
    let RunnerError::PositionLost { .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    // Another name of the processor is what begins again.
    let again = from_beginning().with_name("again");
    let runner = builder("other").listener_with(seen.clone(), again);
    let report = runner.build().unwrap().run(some_time()).await;
    report.into_result().unwrap();
    assert_eq!(seen.of("a"), [1, 1]);
}
