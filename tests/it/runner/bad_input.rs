//! Bad input: what becomes of it, where health shows it, and that nothing else is held up.
//!
//! Each record stands between two good ones of another stream in the same partition.
use super::{
    handle::{pass, state},
    harness::*,
};
use crate::support::AccountEvent;
use foldstream::{
    RetryPolicy, StreamId,
    adapter::to_message,
    operate::{LetterClass, Operator},
    ports::{EventData, HeaderName, Message, MessageBus},
    runner::{
        ErrorClass, EventContext, FailureAction, HandlerResult, Listener, ModelId, ProblemKind,
        ProcessorPolicy, ProcessorState, Projector, RunnerHandle, Start,
    },
};
use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The class and the error of each dead letter of a processor.
async fn letters(world: &World, processor: &str) -> Vec<(LetterClass, String)> {
    let operator = Operator::new(world.control.clone());
    let page = NonZeroU32::new(100).unwrap();
    let letters = operator.letters(processor, None, page).await.unwrap();
    let heads = letters.items.into_iter().map(|letter| letter.head);
    heads.map(|head| (head.class, head.error)).collect()
}

fn listening() -> ProcessorPolicy {
    ProcessorPolicy::listener().with_start(Start::Beginning)
}
fn projecting() -> ProcessorPolicy {
    ProcessorPolicy::projector().with_start(Start::Beginning)
}
fn listen(world: &World, listener: impl Listener, policy: ProcessorPolicy) -> RunnerHandle {
    let runner = world.builder().listener_with(listener, policy);
    runner.build().unwrap().start()
}
fn project(world: &World, projector: impl Projector, policy: ProcessorPolicy) -> RunnerHandle {
    let runner = world.builder().projector_with(projector, policy);
    runner.build().unwrap().start()
}

/// The good events around the bad record were handled, and all three records are committed.
async fn assert_nothing_else_is_held_up(world: &World, of: (&str, &[u64]), what: &str) {
    let (group, good) = of;
    assert_eq!(good, [1, 2], "{what}");
    assert_eq!(world.committed(group).await, world.ends().await, "{what}");
}

/// One partition with a good event, a bad record, and another good event.
async fn around(bad: impl AsyncFnOnce(&World)) -> World {
    let world = World::new(1);
    world.deposit("good").await;
    bad(&world).await;
    world.deposit("good").await;
    world
}

const MODEL: &str = "example-group.model.g1";

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_decoded_is_poison_and_holds_up_only_its_own_stream() {
    type Make = fn() -> EventData;
    let cases: [(&str, Make); 4] = [
        ("no JSON", || EventData::new("Deposited", 1, &b"{"[..])),
        ("another shape", || {
            EventData::new("Deposited", 1, &br#"{"sum":"x"}"#[..])
        }),
        ("a newer schema", || {
            EventData::new("Deposited", 9, &br#"{"amount":1}"#[..])
        }),
        ("sealed by an unknown codec", || {
            EventData::new("Deposited", 1, &b"?"[..]).with_codec(Some("rot13".into()))
        }),
    ];
    for (what, event) in cases {
        let world = around(async |world| world.publish_raw("bad", 1, event()).await).await;
        let seen = Seen::new();
        let handle = listen(&world, seen.clone(), listening());
        pass(30).await;
        let health = handle.health();
        let health = health.processor("seen").unwrap();
        assert_eq!(
            (health.dead_letters, health.retries),
            (Some(1), 0),
            "{what}"
        );
        assert_eq!(
            health.unreadable, 0,
            "{what}: the record itself can be read"
        );
        assert!(handle.health().readiness().is_ok(), "{what}");
        let found = letters(&world, "seen").await;
        assert_eq!(found[0].0, LetterClass::Poison, "{what}: {found:?}");
        assert_nothing_else_is_held_up(&world, (SEEN, &seen.of("good")), what).await;
        drop(handle);

        let model = Arc::new(Model::default());
        let handle = project(&world, Shared(model.clone()), projecting());
        pass(30).await;
        let health = handle.health();
        let health = health.processor("model").unwrap();
        assert_eq!((health.parked, health.retries), (Some(1), 0), "{what}");
        assert_nothing_else_is_held_up(&world, (MODEL, &model.versions("good")), what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_of_an_unknown_name_is_skipped_by_a_listener_and_parks_a_projector() {
    let unknown = || EventData::new("Renamed", 1, &b"{}"[..]);
    let world = around(async |world| world.publish_raw("bad", 1, unknown()).await).await;
    let seen = Seen::new();
    let handle = listen(&world, seen.clone(), listening());
    pass(30).await;
    let report = handle.report();
    assert_eq!(report.processors[0].skipped, 1);
    assert!(letters(&world, "seen").await.is_empty());
    assert_nothing_else_is_held_up(&world, (SEEN, &seen.of("good")), "listener").await;

    let model = Arc::new(Model::default());
    let handle = project(&world, Shared(model.clone()), projecting());
    pass(30).await;
    let health = handle.health();
    assert_eq!(health.processor("model").unwrap().parked, Some(1));
    let found = letters(&world, "model").await;
    assert_eq!(found[0].0, LetterClass::Poison, "{found:?}");
    assert!(found[0].1.contains("Renamed"), "{found:?}");
    assert_nothing_else_is_held_up(&world, (MODEL, &model.versions("good")), "projector").await;
}

/// Records that are no events, by what is wrong with them, with the key `key`.
async fn foreign(world: &World, key: &str) -> Vec<(&'static str, Message)> {
    let plain = |value: &'static str| {
        Message::new(TOPIC, SENT_AT)
            .with_key(key.to_owned())
            .with_value(value)
            .with_partition(0)
    };
    let commit = world.store("template", 1).await;
    let event = commit.recorded().next().unwrap();
    let real = to_message(&event, &TOPIC.into(), &Default::default(), SENT_AT);
    let changed = |name: &str, value: &'static [u8]| {
        let mut message = real.clone().with_key(key.to_owned()).with_partition(0);
        assert!(message.headers.get(name).is_some());
        let headers = real.headers.iter();
        let headers = headers.map(|(of, old)| {
            let value = if of.as_str() == name {
                Some(value)
            } else {
                old
            };
            (of.clone(), value)
        });
        message.headers = headers.collect();
        message
    };
    let with_format = |format: &'static str| {
        let name = HeaderName::from_static("ce_fsformat");
        let mut message = changed("ce_fsversion", b"1");
        message.headers.retain(|of, _| *of != name);
        message.with_header(name, format)
    };
    let mut tombstone = plain("");
    tombstone.value = None;
    vec![
        ("a tombstone", tombstone),
        ("no headers", plain("{}")),
        ("no version", changed("ce_fsversion", b"one")),
        ("version 0", changed("ce_fsversion", b"0")),
        ("no event id", changed("ce_id", b"!")),
        ("no time", changed("ce_time", b"yesterday")),
        ("bytes for a text", changed("ce_type", &[0xff, 0xfe])),
        ("a newer format", with_format("2")),
    ]
}

/// A record of one of these kinds between good events, and the name of the kind.
async fn around_foreign(key: &str, kind: usize) -> (&'static str, World) {
    let (what, message) = foreign(&World::new(1), key).await.swap_remove(kind);
    let world = around(async |world: &World| {
        world.bus.publish(&message).await.unwrap();
    });
    (what, world.await)
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_no_event_is_a_letter_and_counts_as_unreadable() {
    let kinds = foreign(&World::new(1), "x").await.len();
    for kind in 0..kinds {
        let (what, world) = around_foreign("x", kind).await;
        let seen = Seen::new();
        let handle = listen(&world, seen.clone(), listening());
        pass(30).await;
        let health = handle.health();
        let health = health.processor("seen").unwrap();
        assert_eq!(
            (health.unreadable, health.dead_letters),
            (1, Some(1)),
            "{what}"
        );
        let found = letters(&world, "seen").await;
        assert_eq!(found[0].0, LetterClass::Poison, "{what}: {found:?}");
        assert_nothing_else_is_held_up(&world, (SEEN, &seen.of("good")), what).await;
        drop(handle);
        // Nobody subscribes to a stream with such a key.
        let model = Arc::new(Model::default());
        let handle = project(&world, Shared(model.clone()), projecting());
        pass(30).await;
        assert_eq!(state(&handle, "model"), ProcessorState::Running, "{what}");
        assert_eq!(letters(&world, "model").await.len(), 1, "{what}");
        assert_nothing_else_is_held_up(&world, (MODEL, &model.versions("good")), what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_no_event_and_may_be_of_its_stream_halts_a_projector_visibly() {
    let kinds = foreign(&World::new(1), "account#bad").await.len();
    for kind in 0..kinds {
        let (what, world) = around_foreign("account#bad", kind).await;
        let model = Arc::new(Model::default());
        let handle = project(&world, Shared(model.clone()), projecting());
        pass(30).await;
        let health = handle.health();
        let health = health.processor("model").unwrap();
        assert_eq!(health.state, ProcessorState::Halted, "{what}");
        let trouble = health.trouble.as_ref().unwrap();
        assert_eq!(trouble.class, ErrorClass::Poison, "{what}");
        assert_eq!(trouble.partition, Some(partition(0)), "{what}");
        let readiness = handle.health().readiness();
        let halted = ProblemKind::State(ProcessorState::Halted);
        assert_eq!(readiness.problems[0].kind, halted, "{what}");
        // It comes again after a restart, although another stream has gone on meanwhile.
        assert_eq!(world.committed(MODEL).await, 1, "{what}");
        assert_eq!(model.versions("good").first(), Some(&1), "{what}");
    }
}

/// A version that no writer has stored cannot be told from one whose writer is late, so that it is
/// waited for as long as retries last.
#[tokio::test(start_paused = true)]
async fn a_record_far_ahead_of_its_stream_parks_the_stream_after_its_retries() {
    let event = || EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
    for version in [1_000, u64::MAX] {
        let world = around(async |world| {
            world.deposit("bad").await;
            world.publish_raw("bad", version, event()).await;
        });
        let world = world.await;
        let model = Arc::new(Model::default());
        let runner = world.builder().with_event_store(world.store.clone());
        let runner = runner.projector_with(Shared(model.clone()), projecting());
        let handle = runner.build().unwrap().start();
        pass(60).await;
        let health = handle.health();
        let retry = health
            .processor("model")
            .unwrap()
            .oldest_retry
            .clone()
            .unwrap();
        assert_eq!(
            (retry.class, retry.stream.unwrap().id()),
            (ErrorClass::Transient, "bad")
        );
        pass(600).await;
        let health = handle.health();
        assert_eq!(
            health.processor("model").unwrap().parked,
            Some(1),
            "{version}"
        );
        let found = letters(&world, "model").await;
        assert!(found[0].1.contains("in the event store"), "{found:?}");
        assert_eq!(model.versions("bad"), [1]);
        let what = version.to_string();
        assert_nothing_else_is_held_up(&world, (MODEL, &model.versions("good")), &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_gives_up_that_event_alone() {
    let world = around(async |world| world.deposit("bad").await).await;
    let seen = Seen::failing(|id, _, _| match id {
        "bad" => panic!("index out of bounds"),
        _ => Ok(()),
    });
    let handle = listen(&world, seen.clone(), listening());
    pass(30).await;
    let health = handle.health();
    let health = health.processor("seen").unwrap();
    assert_eq!((health.dead_letters, health.retries), (Some(1), 0));
    let expected = "the handler panicked: index out of bounds".to_owned();
    assert_eq!(
        letters(&world, "seen").await,
        [(LetterClass::Permanent, expected)]
    );
    assert_nothing_else_is_held_up(&world, (SEEN, &seen.of("good")), "a panic").await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_returns_is_cancelled_retried_and_given_up() {
    let world = around(async |world| world.deposit("bad").await).await;
    let good = Arc::new(Mutex::new(Vec::new()));
    let hangs = Hangs(good.clone());
    let retry = RetryPolicy::default().with_max_elapsed(Duration::from_secs(100));
    let policy = listening().with_retry(retry).without_breaker();
    let handle = listen(
        &world,
        hangs,
        policy.with_attempt_timeout(Duration::from_secs(20)),
    );
    pass(30).await;
    assert_eq!(*good.lock().unwrap(), [1, 2], "no other stream waits");
    let health = handle.health();
    let health = health.processor("seen").unwrap();
    // It hangs without blocking its thread.
    assert_eq!((health.state, health.stuck), (ProcessorState::Running, 0));
    let retry = health.oldest_retry.as_ref().unwrap();
    assert_eq!((retry.class, retry.attempts), (ErrorClass::Transient, 1));
    assert!(retry.error.contains("20s"), "{retry:?}");
    pass(300).await;
    let found = letters(&world, "seen").await;
    assert_eq!(found[0].0, LetterClass::Transient, "{found:?}");
    assert_eq!(handle.health().processor("seen").unwrap().in_flight, 0);
    let good = good.lock().unwrap().clone();
    assert_nothing_else_is_held_up(&world, (SEEN, &good), "hangs").await;
}

/// Never returns from the events of `bad`.
struct Hangs(Arc<Mutex<Vec<u64>>>);
impl Listener for Hangs {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        if ctx.stream().id() == "bad" {
            std::future::pending::<()>().await;
        }
        self.0.lock().unwrap().push(ctx.version().get());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_policy_that_panics_halts_its_processor_alone() {
    let world = around(async |world| world.publish_raw("bad", 1, undecodable()).await).await;
    let (asked, other) = (Seen::new(), Seen::new());
    let runner = world
        .builder()
        .listener_with(
            asked,
            listening().with_on_failure(|_| panic!("no such case")),
        )
        .listener_with(other.clone(), listening().with_name("other"));
    let handle = runner.build().unwrap().start();
    pass(30).await;
    let health = handle.health();
    let halted = health.processor("seen").unwrap();
    assert_eq!(halted.state, ProcessorState::Halted);
    assert_eq!(halted.trouble.as_ref().unwrap().class, ErrorClass::Poison);
    assert_eq!(state(&handle, "other"), ProcessorState::Running);
    assert_eq!(other.of("good"), [1, 2]);
}

fn undecodable() -> EventData {
    EventData::new("Deposited", 1, &b"{"[..])
}

#[tokio::test(start_paused = true)]
async fn a_lane_function_that_panics_halts_its_processor_alone() {
    let world = around(async |world| world.deposit("bad").await).await;
    let (sorted, other) = (Seen::new(), Seen::new());
    let lane = |stream: &StreamId| match stream.id() {
        "bad" => panic!("no such lane"),
        id => id.to_owned(),
    };
    let runner = world
        .builder()
        .listener_with(sorted, listening().with_lane(lane))
        .listener_with(other.clone(), listening().with_name("other"));
    let handle = runner.build().unwrap().start();
    pass(30).await;
    let health = handle.health();
    let halted = health.processor("seen").unwrap();
    assert_eq!(halted.state, ProcessorState::Halted);
    assert!(
        halted
            .trouble
            .as_ref()
            .unwrap()
            .error
            .contains("no such lane"),
        "{halted:?}"
    );
    assert!(!handle.health().readiness().is_ok());
    assert_eq!(state(&handle, "other"), ProcessorState::Running);
    assert_eq!(other.of("good"), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_halts_at_bad_input_leaves_the_record_for_the_next_start() {
    let world = around(async |world| world.publish_raw("bad", 1, undecodable()).await).await;
    let seen = Seen::new();
    let policy = listening().with_on_failure(|_| FailureAction::Halt);
    let handle = listen(&world, seen.clone(), policy);
    pass(30).await;
    let health = handle.health();
    let health = health.processor("seen").unwrap();
    assert_eq!(health.state, ProcessorState::Halted);
    let trouble = health.trouble.as_ref().unwrap();
    assert_eq!((trouble.class, trouble.attempts), (ErrorClass::Poison, 1));
    assert_eq!(trouble.stream.as_ref().unwrap().id(), "bad");
    assert_eq!(world.committed(SEEN).await, 1);
    drop(handle);
    // A build that knows what to do goes on at the same record.
    let mended = Seen::new();
    let handle = listen(&world, mended.clone(), listening());
    pass(30).await;
    assert_eq!(
        handle.health().processor("seen").unwrap().dead_letters,
        Some(1)
    );
    assert_eq!(world.committed(SEEN).await, 3);
}

/// The same model for several processes.
struct Shared(Arc<Model>);
impl Projector for Shared {
    const NAME: &'static str = "model";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.0.project(event, ctx).await
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        self.0.reset(model).await
    }
}
