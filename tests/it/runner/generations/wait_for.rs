//! Read your writes.
use super::harness::*;
use crate::{
    runner::harness::{Seen, TOPIC, World, from_beginning},
    support::stream,
};
use foldstream::{
    StreamId, Version,
    runner::{DeliveryLevel, ModelId, ReadModelError, ReadModels},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::time::Duration;

async fn wait(models: &ReadModels, id: &str, version: u64) -> Result<ModelId, ReadModelError> {
    let (stream, version) = (stream(id), Version::new(version));
    models
        .wait_for("books", &stream, version, Duration::from_secs(5))
        .await
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_until_its_write_is_in_the_model_and_is_told_which_one() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let handle = start(&world, &books);
    pass(20).await;
    let models = handle.read_models();
    let commit = world.store("a", 1).await;
    let waiting = wait(&models, "a", 1);
    let publishing = async {
        pass(2).await;
        world.publish(&commit).await;
    };
    let (model, ()) = tokio::join!(waiting, publishing);
    assert_eq!(model.unwrap(), ModelId::new("books", 1));
    assert_eq!(books.versions(1, "a"), [1]);
    let error = wait(&models, "a", 2).await.unwrap_err();
    let ReadModelError::TimedOut { reached, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(reached, Version::new(1));
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_position_of_the_generation_before_is_never_a_yes() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let live = r#"{"a":1,"st":"live","e":0,"m":1,"t":2}"#;
    world.put("proc", "books", live.into()).await;
    // The old model has the event, and the new one gets it later.
    books.scan(1, "a", 1..=2);
    books.scan(2, "a", 1..=1);
    // The row `proc` is read slowly the second time: the switch comes after the position is read.
    let of_proc = |call: &Call<'_>| matches!(call, Call::Get(key) if key.partition == "proc");
    let late = Fault::Delay(Duration::from_secs(1))
        .on(Op::Get)
        .matching(of_proc);
    let faults = Faults::script([late.at(2)]);
    let runner = world
        .faulty_builder(&faults)
        .projector_with(books.clone(), policy());
    let models = runner.build().unwrap().read_models();
    let switch = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let live = r#"{"a":2,"st":"live","e":1,"m":1,"t":2}"#;
        world.put("proc", "books", live.into()).await;
        pass(2).await;
        assert_eq!(books.versions(2, "a"), [1], "nobody has said yes yet");
        books.scan(2, "a", 1..=2);
    };
    let (model, ()) = tokio::join!(wait(&models, "a", 2), switch);
    let model = model.unwrap();
    assert_eq!(model, ModelId::new("books", 2));
    assert_eq!(books.versions(model.generation(), "a"), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_projector_that_is_about_to_start_is_waited_for() {
    let world = World::new(1);
    let books = Books::<1>::default();
    world.deposit("a").await;
    let runner = world.builder().projector_with(books.clone(), policy());
    let runner = runner.build().unwrap();
    let models = runner.read_models();
    let starting = async {
        pass(2).await;
        runner.start()
    };
    let (model, handle) = tokio::join!(wait(&models, "a", 1), starting);
    assert_eq!(model.unwrap(), ModelId::new("books", 1));
    stop(handle).await;
    let never = world
        .builder()
        .projector_with(books, policy().with_name("never"));
    let models = never.build().unwrap().read_models();
    let (stream, second) = (stream("a"), Duration::from_secs(1));
    let error = models
        .wait_for("never", &stream, Version::new(1), second)
        .await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, ReadModelError::NotStarted { .. }),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deduplicated_projector_is_waited_for_by_the_positions_of_the_runner() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let level = policy().with_level(DeliveryLevel::Deduplicated);
    let runner = world.builder().projector_with(books.clone(), level);
    let runner = runner.build().unwrap();
    let (handle, models) = (runner.start(), runner.read_models());
    pass(20).await;
    world.deposit("a").await;
    let model = models
        .wait_for(
            "books",
            &stream("a"),
            Version::new(1),
            Duration::from_secs(60),
        )
        .await;
    assert_eq!(model.unwrap(), ModelId::new("books", 1));
    stop(handle).await;
}

#[tokio::test(start_paused = true)]
async fn where_nothing_can_be_known_the_answer_comes_at_once() {
    let world = World::new(1);
    let books = Books::<1>::default();
    let again = policy()
        .with_level(DeliveryLevel::AtLeastOnce)
        .with_name("again");
    let runner = world
        .builder()
        .listener_with(Seen::new(), from_beginning())
        .projector_with(books.clone(), policy())
        .projector_with(books.clone(), again)
        .build()
        .unwrap();
    let models = runner.read_models();
    let started = tokio::time::Instant::now();
    let hour = Duration::from_secs(3600);
    let one = Version::new(1);
    let of = |name: &'static str, stream: StreamId| {
        let models = models.clone();
        async move { models.wait_for(name, &stream, one, hour).await.unwrap_err() }
    };
    for name in ["nobody", "seen"] {
        let error = of(name, stream("a")).await;
        assert!(matches!(error, ReadModelError::Unknown { .. }), "{error:?}");
    }
    let error = of("books", StreamId::new("other", &1).unwrap()).await;
    assert!(
        matches!(error, ReadModelError::NotSubscribed { .. }),
        "{error:?}"
    );
    let error = of("again", stream("a")).await;
    assert!(
        matches!(error, ReadModelError::NoPositions { .. }),
        "{error:?}"
    );

    for (row, is_expected) in [
        (
            r#"{"a":1,"st":"scanning","s":true,"e":1,"m":1,"t":2,"r":"x"}"#,
            (|e| matches!(e, ReadModelError::Rebuilding { .. })) as fn(&ReadModelError) -> bool,
        ),
        (r#"{"a":2,"st":"live","e":2,"m":2,"t":2}"#, |e| {
            matches!(e, ReadModelError::OtherModel { .. })
        }),
    ] {
        world.put("proc", "books", row.into()).await;
        let error = of("books", stream("a")).await;
        assert!(is_expected(&error), "{error:?}");
    }

    let live = r#"{"a":1,"st":"live","e":3,"m":1,"t":2}"#;
    world.put("proc", "books", live.into()).await;
    let parked = r#"{"i":"0000000000000000000000000000000b","f":1,"h":1,"s":"parked","p":"000000000000000000000000000000ab","n":3,"t":7}"#;
    world
        .put(
            &format!("park/books/1/{TOPIC}/0"),
            "account#a",
            parked.into(),
        )
        .await;
    let error = of("books", stream("a")).await;
    assert!(matches!(error, ReadModelError::Parked { .. }), "{error:?}");
    assert_eq!(started.elapsed(), Duration::ZERO);
}
