//! The deadline of an invocation, and what is in flight when it comes.
use super::world::{S, World, handle, number};
use foldstream_lambda::Response;
use foldstream_testkit::faults::{Fault, Op};
use serde_json::{Value, json};
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

async fn again_from(world: &World, records: &[Value], timeout: Duration) -> Option<String> {
    let event = json!({"Records": records});
    let answer = handle(world, &world.handler(), &event, timeout).await;
    match answer.unwrap() {
        Response::Batch(answer) => answer.again_from().map(str::to_owned),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn no_stream_begins_in_the_last_three_seconds() {
    let (world, mut records) = (World::new(), Vec::new());
    for n in 0..8 {
        records.push(world.append(&n.to_string(), 1).await);
    }
    world.faults.set([Fault::Delay(4 * S).on(Op::PublishRun)]);
    let handler = world.handler_of(world.publisher().with_concurrency(1));
    let (began, event) = (tokio::time::Instant::now(), json!({"Records": records}));
    let answer = handle(&world, &handler, &event, 20 * S).await.unwrap();
    // Those that did not begin are set aside, since others were acknowledged.
    assert_eq!(
        serde_json::to_value(&answer).unwrap()["batchItemFailures"],
        json!([])
    );
    let published = world.records_in_topic().await;
    assert!((3..=4).contains(&published), "{published}");
    assert_eq!(world.dirty().await.len() as u64, 8 - published);
    // The last one began before the 17th second.
    assert!(began.elapsed() < 21 * S);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_in_flight_once_the_function_has_answered() {
    let world = World::new();
    let records = [world.append("a", 1).await];
    world.faults.set([Fault::Hang.on(Op::PublishRun)]);
    // The bus has accepted a record that is never acknowledged.
    world.wires.unacknowledged.store(1, SeqCst);
    assert_eq!(
        again_from(&world, &records, 10 * S).await,
        number(&records[0])
    );
    assert_eq!(world.wires.unacknowledged.load(SeqCst), 0);
    assert_eq!(world.wires.reconnects.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_leaves_nothing_in_flight_either() {
    let world = World::new();
    world.wires.unacknowledged.store(3, SeqCst);
    let sweep = json!({"foldstream": "sweep"});
    handle(&world, &world.handler(), &sweep, 10 * S)
        .await
        .unwrap();
    assert_eq!(world.wires.unacknowledged.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn an_invocation_answers_before_any_deadline() {
    for timeout in [Duration::ZERO, S / 10, 3 * S, 900 * S] {
        let (world, mut records) = (World::new(), Vec::new());
        for id in ["a", "b"] {
            records.push(world.append(id, 1).await);
        }
        world
            .faults
            .set([Fault::Hang.on(Op::PublishRun), Fault::Hang.on(Op::Put)]);
        let began = tokio::time::Instant::now();
        let event = json!({"Records": records});
        let deadline = foldstream::Clock::now(&*world.clock).plus(timeout);
        let answer = world.handler().handle(&event, deadline).await.unwrap();
        assert!(began.elapsed() <= timeout, "{timeout:?}");
        let Response::Batch(answer) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(answer.again_from(), number(&records[0]).as_deref());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_just_acknowledged_is_not_given_up() {
    let world = World::new();
    let records = [world.append("a", 1).await];
    world.wires.unacknowledged.store(1, SeqCst);
    let wires = world.wires.clone();
    let acknowledged = async {
        tokio::time::sleep(S / 50).await;
        wires.unacknowledged.store(0, SeqCst);
    };
    let invocation = again_from(&world, &records, 10 * S);
    let (again, ()) = tokio::join!(invocation, acknowledged);
    assert_eq!((again, world.wires.reconnects.load(SeqCst)), (None, 0));
}
