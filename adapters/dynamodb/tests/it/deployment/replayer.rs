//! The work of a process that replays read models, and what a replay makes of others: the runner
//! that takes the new generation over and deletes the old one, the operator who cancels, and
//! somebody who only looks.
use super::{administration, app::hide, processors::role, publisher::TOPIC, tables};
use crate::{
    read_model::{NoteEvent, Notebook, context, notebook, noted},
    support::{Call, Fate, Server, Wire},
};
use foldstream::{
    CommitId, SourceUri, StreamHead, StreamId, Timestamp,
    adapter::to_message,
    operate::{Operator, Reason},
    ports::{Append, ControlStore as _, EventData, EventStore as _, MessageBus as _, RangeQuery},
    replay::{CancelOutcome, Replay, ReplayError, RunId, RunState},
    runner::{
        DeliveryLevel, EventContext, EventSource, HandlerResult, ModelId, PartialReplay,
        ProcessorPolicy, Projector, Runner,
    },
};
use foldstream_dynamodb::{DynamoDb, PublishMode};
use foldstream_testkit::InMemoryMessageBus;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const GROUP: &str = "shop";
/// The time for which a generation that was left is kept.
const KEPT: Duration = Duration::from_secs(600);

/// A projector that keeps no positions of its own, and that takes a part of the history twice.
struct Tally;
impl Projector for Tally {
    const NAME: &'static str = "tally";
    const PARTIAL_REPLAY: PartialReplay = PartialReplay::Reapplicable;
    type Events = NoteEvent;
    async fn project(&self, _: &NoteEvent, _: &EventContext) -> HandlerResult {
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// The requests of each role.
pub(super) struct Calls {
    pub(super) replayer: Vec<Call>,
    pub(super) runner: Vec<Call>,
    pub(super) operator: Vec<Call>,
    pub(super) viewer: Vec<Call>,
}

/// Stores and publishes one event per commit.
async fn given_events(
    writer: &DynamoDb,
    bus: &InMemoryMessageBus,
    stream: StreamId,
    names: &[&'static str],
) {
    let now = Timestamp::from_micros(1_767_225_600_000_000);
    let mut head = StreamHead::empty(stream);
    for name in names {
        let payload = match *name {
            "Noted" => r#"{"number":1,"boards":["all"]}"#.into(),
            // Its dead letter is larger than a row.
            _ => format!(r#"{{"boards":["{}"]}}"#, "x".repeat(300_000)),
        };
        let event = EventData::new(*name, 1, payload);
        let append = Append::after(head, CommitId::random(), now, [event]);
        let _ = writer.event_store().append(&append).await.unwrap();
        head = append.head_after();
        let event = append.to_commit().recorded().next().unwrap();
        let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), now);
        bus.publish(&message).await.unwrap();
    }
}

/// Returns the projectors of the service, as each of its processes has them.
fn service(stores: &DynamoDb, bus: &Arc<InMemoryMessageBus>) -> Runner {
    let policy = ProcessorPolicy::projector().with_commit_interval(Duration::from_millis(100));
    Runner::builder(bus.clone(), stores.control_store(), GROUP)
        .with_event_store(stores.event_store())
        .with_topics([TOPIC])
        .projector_with(stores.read_model::<Notebook>(), policy.clone())
        .projector_with(Tally, policy.with_level(DeliveryLevel::Deduplicated))
        .build()
        .unwrap()
}

/// Does the work on tables of its own, and returns the requests of each role.
pub(super) async fn work(mode: PublishMode) -> Calls {
    let server = Server::start();
    tables::deploy(&server.client(), mode).await;
    administration::set_up(&server, mode).await;
    let writer = DynamoDb::connect(server.config().with_publish_mode(mode));
    let writer = writer.await.unwrap();
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    given_events(&writer, &bus, notebook(1), &["Noted"; 3]).await;
    // Its second event is parked, by the live generation and by each replay.
    let parked = ["Noted", "Refused", "Noted"];
    given_events(&writer, &bus, notebook(2), &parked).await;
    // Rows of a generation of which a control table that was lost and restored knows nothing.
    let rows = writer.read_model::<Notebook>();
    let model = ModelId::new("notebooks", 3);
    let header = context(&notebook(9), 1).header().clone();
    let stale = EventContext::new(model.clone(), header, EventSource::History);
    rows.project(&noted(9), &stale).await.unwrap();
    rows.flush(&model).await.unwrap();

    let (stores, runner) = role(&server).await;
    let running = service(&stores, &bus).start();
    let watch = Operator::new(writer.control_store());
    hurry(async || serves(&watch, 1).await).await;

    let (operator, viewer) = (role(&server).await, role(&server).await);
    let replayer = role(&server).await;
    replay(&replayer, &operator.0, &viewer.0, &bus).await;
    hurry(async || serves(&watch, 3).await).await;
    retire(&writer, &runner).await;
    running.stop();
    running.wait().await.into_result().unwrap();
    Calls {
        replayer: replayer.1.calls(),
        runner: runner.calls(),
        operator: operator.1.calls(),
        viewer: viewer.1.calls(),
    }
}

/// Replays a part, and everything: one replay is cancelled, and one is resumed by another process.
async fn replay(
    (stores, wire): &(DynamoDb, Wire),
    operator: &DynamoDb,
    viewer: &DynamoDb,
    bus: &Arc<InMemoryMessageBus>,
) {
    let service = service(stores, bus);
    let estimate = Replay::all(&service).dry_run().await.unwrap();
    assert_eq!(estimate.events, 6);
    let part = Replay::of(&service, ["tally"]).streams([notebook(1)]);
    let part = part.start().await.unwrap().wait().await.unwrap();
    assert!(part.is_partial, "{part:?}");

    // The row of a large letter has parts, which are written first.
    let is_part = |call: &Call| {
        let text = call.body["Item"]["pk"]["S"].as_str();
        call.operation == "PutItem" && text.is_some_and(|text| text.starts_with("chunk/"))
    };
    let cancelled = interrupted(&service, wire, is_part).await;
    let operator = Operator::new(operator.control_store());
    assert_eq!(operator.replays(None).await.unwrap().replays.len(), 2);
    let (status, _) = operator.replay(cancelled).await.unwrap();
    assert_eq!(status.state, RunState::Scanning);
    let reason = Reason::new("ann", "the wrong projectors").unwrap();
    let outcome = operator.cancel_replay(cancelled, &reason).await.unwrap();
    assert_eq!(outcome, CancelOutcome::Cancelled);

    let run = interrupted(&service, wire, |call| call.operation == "Scan").await;
    // A scan that misses a commit reads its stream, and a reader that misses it asks for it.
    wire.decide(hide(&notebook(1), 2));
    let resumed = Replay::all(&service).resume(run).await.unwrap();
    let report = resumed.wait().await.unwrap();
    assert_eq!(report.progress.state, RunState::CatchUp);

    let viewer = Operator::new(viewer.control_store());
    assert_eq!(viewer.replays(None).await.unwrap().replays.len(), 3);
    viewer.replay(run).await.unwrap();
    viewer.processors().await.unwrap();
}

/// Starts a replay of everything, and ends it in its scan as a process does that lacks a right.
async fn interrupted(
    service: &Runner,
    wire: &Wire,
    lacks: impl Fn(&Call) -> bool + Send + Sync + 'static,
) -> RunId {
    wire.decide(move |call| match lacks(call) {
        true => Fate::error(400, "AccessDeniedException", "no right to do so"),
        false => Fate::Pass,
    });
    let replay = Replay::all(service).start().await.unwrap();
    let run = replay.run();
    let ended = replay.wait().await;
    assert!(
        !matches!(ended, Ok(_) | Err(ReplayError::Invalid { .. })),
        "{ended:?}"
    );
    wire.decide(|_| Fate::Pass);
    run
}

/// Waits until the generations that were left are deleted.
async fn retire(writer: &DynamoDb, runner: &Wire) {
    let before = runner.calls().len();
    let looked_at = |partition: &str| {
        let of = |call: &Call| call.body.to_string().contains(&format!("\"{partition}\""));
        runner.calls()[before..].iter().any(of)
    };
    hurry(async || looked_at("old/notebooks") && looked_at("old/tally")).await;
    pass(KEPT).await;
    let control = writer.control_store();
    let are_gone = async || {
        for processor in ["notebooks", "tally"] {
            let old = RangeQuery::new(format!("old/{processor}"));
            if !control.range(&old).await.unwrap().rows.is_empty() {
                return false;
            }
        }
        true
    };
    hurry(are_gone).await;
}

/// Returns true if a generation of both processors serves, and none catches up.
async fn serves(watch: &Operator, generation: u32) -> bool {
    let found = watch.processors().await.unwrap();
    let of_both = found.iter().filter(|of| of.generation == generation);
    of_both.filter(|of| of.state == "live").count() == 2
}

/// Lets time pass at once, for the timers of this test.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Lets time pass a hundred times as fast until something is so. Requests take the time they take.
async fn hurry(is_so: impl AsyncFn() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !is_so().await {
        assert!(Instant::now() < until, "it does not happen");
        pass(Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
