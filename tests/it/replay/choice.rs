//! The choice of projectors and of a part of the history.
use super::world::*;
use crate::support::{AccountEvent, stream};
use foldstream::{
    Timestamp,
    replay::{Replay, ReplayError},
    runner::{
        EventContext, HandlerResult, ModelId, PartialReplay, ProcessorPolicy, Projector, Runner,
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

async fn refused(replay: Replay) -> ReplayError {
    replay.start().await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_listener_and_unknown_names_are_typed_errors() {
    let world = World::new(1);
    let runner = world.runner(ProcessorPolicy::projector());
    let error = refused(Replay::of(&runner, ["mails"])).await;
    assert!(matches!(&error, ReplayError::NotAProjector { name } if name == "mails"));
    let error = refused(Replay::of(&runner, ["account"])).await;
    assert!(error.to_string().contains("there are accounts"), "{error}");
    let error = refused(Replay::all(&runner).event_types(["Deposit"])).await;
    assert!(
        error.to_string().contains("Deposited, Withdrawn"),
        "{error}"
    );
    let error = refused(Replay::all(&runner).aggregate_types(["cart"])).await;
    assert!(
        matches!(error, ReplayError::NotSubscribed { .. }),
        "{error:?}"
    );
    let none: [&str; 0] = [];
    let error = refused(Replay::of(&runner, none)).await;
    assert!(matches!(error, ReplayError::NoProjector), "{error:?}");
    assert!(
        world.row("proc", "accounts").await.is_none(),
        "nothing was begun"
    );
}

#[tokio::test(start_paused = true)]
async fn invalid_settings_are_typed_errors() {
    let world = World::new(1);
    let part = world.replay().event_types(["Deposited"]);
    for (field, replay) in [
        ("in_place", part.in_place()),
        ("segments", world.replay().with_segments(0)),
        ("segments", world.replay().with_segments(1001)),
        (
            "read_units_per_second",
            world.replay().with_read_units_per_second(0.0),
        ),
        (
            "read_units_per_second",
            world.replay().with_read_units_per_second(f64::NAN),
        ),
        (
            "lease",
            world.replay().with_lease(std::time::Duration::ZERO),
        ),
        (
            "checkpoint_interval",
            world
                .replay()
                .with_checkpoint_interval(std::time::Duration::ZERO),
        ),
        ("memory", world.replay().with_memory(0)),
        ("projector", world.replay().projector(Plain)),
        ("with_runner", world.replay().with_runner(|runner| runner)),
    ] {
        let error = refused(replay).await;
        let ReplayError::Invalid { field: found, .. } = error else {
            panic!("{field}: {error:?}")
        };
        assert_eq!(found, field);
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_settings_of_a_replay_that_goes_on_are_typed_errors() {
    let world = World::new(1);
    let run = world.replay().start().await.unwrap().run();
    for replay in [
        world
            .replay()
            .with_checkpoint_interval(std::time::Duration::ZERO),
        world.replay().with_memory(0),
    ] {
        let error = replay.resume(run).await.unwrap_err();
        assert!(matches!(error, ReplayError::Invalid { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_runner_without_an_event_store_is_refused() {
    let world = World::new(1);
    let runner = Runner::builder(world.bus.clone(), world.control.clone(), "shop")
        .projector(world.model.clone())
        .build()
        .unwrap();
    let error = refused(Replay::all(&runner)).await;
    assert!(matches!(error, ReplayError::NoEventStore), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn names_that_cover_all_that_a_projector_subscribes_to_are_a_full_replay() {
    let world = World::new(1);
    world.fill(3, 2).await;
    let replay = world
        .replay()
        .event_types(["Withdrawn", "Deposited"])
        .aggregate_types(["account"]);
    let report = to_the_end(replay).await.unwrap();
    assert!(!report.is_partial);
    assert_eq!(world.model.versions(2), world.history());
    assert_eq!(world.proc().await["n"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_part_resets_its_scope_and_touches_neither_positions_nor_generations() {
    let world = World::new(1);
    world.fill(3, 2).await;
    let mut replay = world.replay().start().await.unwrap();
    let first = replay.run();
    replay = {
        replay.wait().await.unwrap();
        world.replay().cancel(first).await.unwrap();
        // The live generation has all events, and more than one stream.
        world
            .model
            .generations
            .lock()
            .unwrap()
            .insert(1, live(&world));
        let part = world.replay().streams([stream("1")]);
        part.start().await.unwrap()
    };
    let before = world.proc().await;
    let report = replay.wait().await.unwrap();
    assert!(report.is_partial);
    assert_eq!(world.model.versions(1), world.history());
    assert_eq!(world.proc().await, before);
    let scoped = world.model.scoped.lock().unwrap().clone();
    assert_eq!(scoped[0].streams, Some(vec![stream("1")]));
    assert_eq!(
        report.progress.handled, 4,
        "the events of other streams are left out"
    );
    let run = world.row("run", &report.run.to_string()).await.unwrap();
    assert_eq!(run["s"], "done");
    assert!(world.row("pos/accounts/1/0", "account#1").await.is_none());
}

fn live(world: &World) -> Generation {
    Generation {
        versions: world.history(),
        ..Generation::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_by_time_takes_the_events_from_the_first_and_before_the_second() {
    let world = World::new(1);
    for at in [10, 20, 30, 40] {
        world.store_at("1", 1, Timestamp::from_micros(at)).await;
    }
    let taken = Taken::default();
    let replay = Replay::new(
        world.store.clone(),
        world.control.clone(),
        world.bus.clone(),
    )
    .projector(taken.clone())
    .between(Timestamp::from_micros(20), Timestamp::from_micros(40));
    let report = to_the_end(replay).await.unwrap();
    assert!(report.is_partial);
    assert_eq!(taken.versions(), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_part_by_event_types_takes_only_those() {
    let world = World::new(1);
    world.store("1", 3).await;
    for (name, expected) in [("Deposited", vec![1, 2, 3]), ("Withdrawn", vec![])] {
        let taken = Taken::default();
        let replay = Replay::new(
            world.store.clone(),
            world.control.clone(),
            world.bus.clone(),
        )
        .projector(taken.clone())
        .event_types([name]);
        to_the_end(replay).await.unwrap();
        assert_eq!(taken.versions(), expected, "{name}");
    }
}

/// A projector whose events may be applied once more.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<u64>>>);

impl Taken {
    fn versions(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }
}
impl Projector for Taken {
    const NAME: &'static str = "taken";
    const PARTIAL_REPLAY: PartialReplay = PartialReplay::Reapplicable;
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.0.lock().unwrap().push(ctx.version().get());
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        panic!("a part of the history empties no model")
    }
}

/// A projector that says nothing about parts of the history.
struct Plain;
impl Projector for Plain {
    const NAME: &'static str = "plain";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_projector_refuses_a_part_of_the_history_by_default() {
    let world = World::new(1);
    let replay = Replay::new(
        world.store.clone(),
        world.control.clone(),
        world.bus.clone(),
    )
    .projector(Plain)
    .event_types(["Deposited"]);
    let error = refused(replay).await;
    assert!(matches!(&error, ReplayError::PartRefused { name } if name == "plain"));
    assert!(error.to_string().contains("Projector::PARTIAL_REPLAY"));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_what_a_replay_would_read_and_writes_nothing() {
    let world = World::new(1);
    world.fill(7, 3).await;
    let found = world.replay().dry_run().await.unwrap();
    assert_eq!((found.events, found.commits, found.streams), (42, 21, 7));
    assert_eq!(found.sampled, 1.0);
    assert!(world.row("proc", "accounts").await.is_none());
    assert_eq!(world.model.versions(2), BTreeMap::new());
    let replay = world.replay().with_estimate(&found);
    let handle = replay.start().await.unwrap();
    let report = handle.wait().await.unwrap();
    assert_eq!(report.progress.expected_events, Some(42));
}
