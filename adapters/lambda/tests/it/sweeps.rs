//! Events of a schedule.
use super::world::{S, TIMEOUT, World, handle, stream};
use foldstream::{Version, publisher::DirtyReason};
use foldstream_lambda::HandlerError;
use foldstream_testkit::faults::{Fault, Op};
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn a_scheduled_event_sweeps_and_says_how_many_streams() {
    let world = World::new();
    for id in ["a", "b"] {
        world.append(id, 3).await;
        let (id, known) = (stream(id), Version::new(3));
        let aside = world.publisher();
        let why = DirtyReason::Backlog;
        aside.set_aside(&id, known, why).await.unwrap();
    }
    let failing = world.fail_runs_of(&["b"], Fault::Unavailable);
    world.faults.set([failing]);
    let event = json!({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
    let answer = handle(&world, &world.handler(), &event, TIMEOUT).await;
    let counted = json!({
        "found": 2, "published": 1, "stillDirty": 1, "notDue": 0, "messages": 3,
        "isElsewhere": false, "isCutShort": false,
    });
    assert_eq!(serde_json::to_value(answer.unwrap()).unwrap(), counted);
}

#[tokio::test(start_paused = true)]
async fn a_long_sweep_ends_before_its_deadline_and_the_next_one_continues() {
    let world = World::new();
    for _ in 0..20 {
        world.append("a", 1).await;
    }
    let (known, why) = (Version::new(20), DirtyReason::Backlog);
    let aside = world.publisher();
    aside.set_aside(&stream("a"), known, why).await.unwrap();
    world.faults.set([Fault::Delay(2 * S).on(Op::PublishRun)]);
    let (event, mut sweeps) = (json!({"foldstream": "sweep"}), 0);
    while world.watermark("a").await < 20 {
        let before = world.watermark("a").await;
        let answer = handle(&world, &world.handler(), &event, 10 * S)
            .await
            .unwrap();
        let after = world.watermark("a").await;
        assert!(after > before, "{after}: {answer:?}");

        sweeps += 1;
    }
    assert!(sweeps > 1, "one sweep took all: the test shows nothing");
    assert_eq!(world.records_in_topic().await, 20);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_cannot_read_its_rows_is_an_error() {
    let world = World::new();
    world.faults.set([Fault::Unavailable.on(Op::Range)]);
    let event = json!({"foldstream": "sweep"});
    let error = handle(&world, &world.handler(), &event, 900 * S).await;
    assert!(matches!(error, Err(HandlerError::Sweep(_))));
}
