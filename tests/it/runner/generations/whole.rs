//! Whole replays, from the scan to the deletion of what was left.
use super::harness::*;
use crate::runner::harness::{TOPIC, World};
use foldstream::{
    operate::Operator,
    ports::{ControlStore, MessageBus},
    replay::{CancelOutcome, Replay},
    runner::{ModelId, ProcessorState},
};

#[tokio::test(start_paused = true)]
async fn a_model_is_built_again_twice_while_events_come_and_the_old_ones_go() {
    let world = World::new(3);
    let books = Books::<1>::default();
    let ids: Vec<_> = (0..8).map(|n| n.to_string()).collect();
    for id in &ids {
        world.deposit(id).await;
        world.deposit(id).await;
    }
    let runner = runner(&world, &books);
    let handles = [runner.start(), start(&world, &books)];
    pass(20).await;
    for generation in [2, 3] {
        let replay = Replay::of(&runner, ["books"]).start().await.unwrap();
        let under_way = async {
            for id in &ids {
                world.deposit(id).await;
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        let (report, ()) = tokio::join!(replay.wait(), under_way);
        let run = report.unwrap().run;
        for id in &ids {
            world.deposit(id).await;
        }
        pass(60).await;
        assert!(
            serves(&world.proc().await, generation),
            "{}",
            world.proc().await
        );
        let row = world.row("run", &run.to_string()).await.unwrap();
        assert!(row.contains(r#""s":"done""#), "{row}");
        for id in &ids {
            let last = u64::from(2 * generation);
            let all: Vec<u64> = (1..=last).collect();
            assert_eq!(books.versions(generation, id), all, "{id}");
            let old = books.versions(generation - 1, id);
            assert!(
                all.starts_with(&old),
                "the old one served in order: {old:?}"
            );
        }
        let model = runner.read_models().active_model("books").await.unwrap();
        assert_eq!(model, ModelId::new("books", generation));
        for handle in &handles {
            assert_eq!(state(handle), ProcessorState::Running);
        }
    }
    pass(900).await;
    assert_eq!(*books.deleted.lock().unwrap(), [1, 2]);
    for group in [OLD, NEW] {
        let committed = world.bus.committed(group, TOPIC).await.unwrap();
        assert!(
            committed.iter().all(|(_, at)| at.is_none()),
            "{group}: {committed:?}"
        );
    }
    for handle in handles {
        stop(handle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn operators_see_both_generations_and_a_cancel_in_the_catch_up_leaves_the_old_one() {
    let world = World::new(1);
    let books = Books::<1>::default();
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let runner = runner(&world, &books);
    let handle = runner.start();
    pass(20).await;
    *books.blocked.lock().unwrap() = Some((2, 4));
    let replay = Replay::of(&runner, ["books"]).start().await.unwrap();
    let run = replay.run();
    replay.wait().await.unwrap();
    world.deposit("a").await;
    pass(30).await;
    let control: std::sync::Arc<dyn ControlStore> = world.control.clone();
    let operator = Operator::new(control).with_bus(world.bus.clone(), "example-group");
    let status = operator.processor("books").await.unwrap();
    let next = status.next.unwrap();
    assert_eq!((status.generation, next.generation), (1, 2));
    assert_eq!((status.lag, next.lag), (Some(0), Some(1)));
    assert_eq!(status.run, Some(run.to_string()));
    assert_eq!(status.instances[0].next_generation, Some(2));
    assert_eq!(status.instances[0].next_lag, Some(1));
    let error = status.instances[0].next_error.clone().unwrap_or_default();
    assert!(error.contains("are busy"), "{error}");
    assert_eq!(state(&handle), ProcessorState::Running);

    let cancelled = Replay::of(&runner, ["books"]).cancel(run).await.unwrap();
    assert!(
        matches!(cancelled, CancelOutcome::Cancelled),
        "{cancelled:?}"
    );
    *books.blocked.lock().unwrap() = None;
    world.deposit("a").await;
    pass(60).await;
    assert!(serves(&world.proc().await, 1));
    assert_eq!(books.versions(1, "a"), [1, 2, 3, 4, 5]);
    assert!(handle.health().processor("books").unwrap().next.is_none());
    pass(900).await;
    assert_eq!(*books.deleted.lock().unwrap(), [2]);
    stop(handle).await;
}
