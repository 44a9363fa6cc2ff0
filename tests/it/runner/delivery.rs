//! Order, duplicates, gaps, and events that are skipped.
use super::harness::*;
use crate::support::stream;
use foldstream::{
    CommitId,
    ports::EventData,
    runner::{ErrorClass, ProcessorPolicy, RunnerError, UnknownEvents},
};
use std::sync::Arc;

#[tokio::test(start_paused = true)]
async fn events_of_a_stream_are_handled_in_order_and_all_of_them() {
    let world = World::new(3);
    for _ in 0..20 {
        for id in ["a", "b", "c", "d"] {
            world.deposit(id).await;
        }
    }
    let seen = Seen::new();
    let report = world
        .catch_up(seen.clone(), from_beginning())
        .await
        .into_result()
        .unwrap();
    for id in ["a", "b", "c", "d"] {
        assert_eq!(seen.of(id), (1..=20).collect::<Vec<_>>());
    }
    assert_eq!(report[0].handled, 80);
    assert_eq!(world.committed(SEEN).await, 80);
}

#[tokio::test(start_paused = true)]
async fn streams_are_handled_side_by_side_within_the_concurrency() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    #[derive(Default)]
    struct Busy {
        now: AtomicUsize,
        most: AtomicUsize,
    }
    impl foldstream::runner::Listener for Busy {
        const NAME: &'static str = "seen";
        type Events = crate::support::AccountEvent;
        async fn handle(
            &self,
            _: &Self::Events,
            _: &foldstream::runner::EventContext,
        ) -> foldstream::runner::HandlerResult {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            self.now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    }
    let world = World::new(1);
    for n in 0..20 {
        world.deposit(&n.to_string()).await;
    }
    let busy = Arc::new(Busy::default());
    let policy = from_beginning().with_concurrency(5);
    world
        .catch_up(busy.clone(), policy)
        .await
        .into_result()
        .unwrap();
    assert_eq!(busy.most.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stored_position_drops_duplicates_and_fills_gaps_from_the_event_store() {
    let world = World::new(2);
    let (first, second) = (world.store("a", 3).await, world.store("a", 2).await);
    let third = world.store("a", 1).await;
    // The second commit never reaches the bus, the first arrives twice.
    for commit in [&first, &first, &third] {
        world.publish(commit).await;
    }
    let model = Arc::new(Model::default());
    let runner = world
        .builder()
        .with_event_store(world.store.clone())
        .projector(model.clone())
        .build()
        .unwrap();
    let report = runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 2, 3, 4, 5, 6]);
    let report = &report[0];
    assert_eq!(
        (report.duplicates, report.filled, report.handled),
        (3, 2, 6)
    );
    // A new process receives everything again.
    for commit in [&first, &second, &third] {
        world.publish(commit).await;
    }
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(start_paused = true)]
async fn without_an_event_store_a_gap_is_passed_and_counted() {
    let world = World::new(1);
    let (first, _, third) = (
        world.store("a", 1).await,
        world.store("a", 1).await,
        world.store("a", 1).await,
    );
    world.publish(&first).await;
    world.publish(&third).await;
    let seen = Seen::new();
    let report = world
        .catch_up(seen.clone(), from_beginning())
        .await
        .into_result()
        .unwrap();
    assert_eq!(seen.of("a"), [1, 3]);
    assert_eq!(report[0].gaps_unverified, 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_version_seen_is_the_base_where_nobody_keeps_a_position() {
    let world = World::new(1);
    let _ = world.store("a", 4).await;
    let later = world.store("a", 1).await;
    world.publish(&later).await;
    let seen = Seen::new();
    let runner = world
        .builder()
        .with_event_store(world.store.clone())
        .listener_with(seen.clone(), from_beginning())
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(seen.of("a"), [5]);
}

#[tokio::test(start_paused = true)]
async fn the_same_version_under_another_commit_id_halts() {
    let world = World::new(1);
    world.deposit("a").await;
    let model = Arc::new(Model::default());
    let runner = world.builder().projector(model.clone()).build().unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    model
        .rows
        .lock()
        .unwrap()
        .get_mut(&stream("a"))
        .unwrap()
        .commit_id = Some(CommitId::random());
    let event = EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
    world.publish_raw("a", 1, event).await;
    let report = runner.run_until_caught_up().await;
    let RunnerError::Halted { class, source, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert_eq!(*class, ErrorClass::Fatal);
    assert!(source.to_string().contains("has forked"), "{source}");
}

#[tokio::test(start_paused = true)]
async fn foreign_and_unknown_events_are_passed_over() {
    let world = World::new(1);
    world
        .publish_raw("a", 1, EventData::new("Frozen", 1, &b"{}"[..]))
        .await;
    let seen = Seen::new();
    let report = world
        .catch_up(seen.clone(), from_beginning())
        .await
        .into_result()
        .unwrap();
    assert_eq!((report[0].skipped, seen.len()), (1, 0));
    let strict = from_beginning()
        .with_name("strict")
        .with_unknown_events(UnknownEvents::Fail);
    let report = world.catch_up(seen, strict).await;
    assert!(matches!(
        error_of(&report),
        RunnerError::Halted {
            class: ErrorClass::Poison,
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_newer_schema_version_and_a_foreign_record_halt_and_are_not_passed() {
    let world = World::new(1);
    world
        .publish_raw("a", 1, EventData::new("Deposited", 9, &b"{}"[..]))
        .await;
    let report = world.catch_up(Seen::new(), from_beginning()).await;
    assert!(matches!(
        error_of(&report),
        RunnerError::Halted {
            class: ErrorClass::Poison,
            ..
        }
    ));
    assert_eq!(world.committed(SEEN).await, 0);

    let world = World::new(1);
    let foreign = foldstream::ports::Message::new(TOPIC, SENT_AT).with_key("not a stream");
    foldstream::ports::MessageBus::publish(&*world.bus, &foreign)
        .await
        .unwrap();
    let report = world.catch_up(Seen::new(), from_beginning()).await;
    assert!(matches!(error_of(&report), RunnerError::Unreadable { .. }));
    assert_eq!(world.committed(SEEN).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_window_pauses_the_partition_and_loses_nothing() {
    let world = World::new(1);
    for n in 0..300 {
        world.deposit(&n.to_string()).await;
    }
    let seen = Seen::new();
    let policy: ProcessorPolicy = from_beginning()
        .with_window(10, 1_000_000)
        .with_concurrency(2);
    world
        .catch_up(seen.clone(), policy)
        .await
        .into_result()
        .unwrap();
    assert_eq!((seen.len(), world.committed(SEEN).await), (300, 300));
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_counted_once_however_often_the_event_behind_it_is_tried() {
    let world = World::new(1);
    for version in [1, 3] {
        let event = EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
        world.publish_raw("a", version, event).await;
    }
    let seen = Seen::failing(|_, version, attempt| {
        if version == 3 && attempt < 3 {
            return Err(foldstream::runner::HandlerError::transient("down"));
        }
        Ok(())
    });
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    let report = report.into_result().unwrap();
    assert_eq!((seen.of("a"), report[0].gaps_unverified), (vec![1, 3], 1));
}

#[tokio::test(start_paused = true)]
async fn what_lies_before_a_record_that_cannot_be_read_is_handled_first_and_nothing_behind_it() {
    let world = World::new(1);
    let foreign = foldstream::ports::Message::new(TOPIC, SENT_AT).with_key("not a stream");
    for n in 0..20 {
        world.deposit(&n.to_string()).await;
    }
    foldstream::ports::MessageBus::publish(&*world.bus, &foreign)
        .await
        .unwrap();
    world.deposit("behind").await;
    let seen = Seen::new();
    let report = world
        .catch_up(seen.clone(), from_beginning().with_concurrency(2))
        .await;
    let RunnerError::Unreadable { offset, .. } = error_of(&report) else {
        panic!("{report:?}")
    };
    assert_eq!((offset.get(), seen.len()), (20, 20));
    assert_eq!(world.committed(SEEN).await, 20);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_the_record_explains_is_not_a_gap() {
    let world = World::new(1);
    world.deposit("a").await;
    // Versions 2 and 3 are not sent to the topic.
    for _ in 0..2 {
        let _ = world.store("a", 1).await;
    }
    let fourth = world.store("a", 1).await;
    world.publish_after(1, &fourth).await;
    // Version 5 is lost. Version 6 is not sent on purpose, as the record of version 7 says.
    for _ in 0..2 {
        let _ = world.store("a", 1).await;
    }
    let seventh = world.store("a", 1).await;
    world.publish_after(5, &seventh).await;

    let model = Arc::new(Model::default());
    let with_store = world.builder().with_event_store(world.store.clone());
    let runner = with_store.projector(model.clone()).build().unwrap();
    let report = runner.run_until_caught_up().await;
    let reports = report.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 4, 5, 7]);
    assert_eq!(reports[0].filled, 1);

    let seen = Seen::new();
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    let reports = report.into_result().unwrap();
    assert_eq!(seen.of("a"), [1, 4, 7]);
    assert_eq!(reports[0].gaps_unverified, 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_record_of_a_stream_in_the_topic_explains_what_lies_before_it() {
    let world = World::new(1);
    for _ in 0..2 {
        let _ = world.store("a", 1).await;
    }
    let third = world.store("a", 1).await;
    world.publish_after(0, &third).await;
    let model = Arc::new(Model::default());
    let with_store = world.builder().with_event_store(world.store.clone());
    let runner = with_store.projector(model.clone()).build().unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(model.versions("a"), [3]);
}
