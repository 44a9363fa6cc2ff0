//! Functions that were frozen between two invocations, or in the middle of one.
use super::world::{S, World, invoke};
use foldstream_testkit::faults::{Fault, Op};
use std::sync::atomic::Ordering::SeqCst;

#[tokio::test(start_paused = true)]
async fn after_a_freeze_the_bus_connects_again_before_anything_is_sent() {
    let world = World::new();
    let handler = world.handler();
    let reconnects = || world.wires.reconnects.load(SeqCst);
    let record = world.append("a", 1).await;
    assert_eq!(invoke(&world, &handler, &[record]).await, None);

    // Invocations that follow each other quickly share their connections.
    tokio::time::sleep(29 * S).await;
    let record = world.append("a", 1).await;
    assert_eq!(invoke(&world, &handler, &[record]).await, None);
    assert_eq!(reconnects(), 0);

    // A stopped process: both clocks have moved.
    tokio::time::sleep(30 * S).await;
    let record = world.append("a", 1).await;
    assert_eq!(invoke(&world, &handler, &[record]).await, None);
    assert_eq!(reconnects(), 1);

    // A stopped machine: its own clock stood still.
    world.clock.run_ahead(5 * S);
    let record = world.append("a", 1).await;
    assert_eq!(invoke(&world, &handler, &[record]).await, None);
    assert_eq!(reconnects(), 2);
    assert_eq!(world.records_in_topic().await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_stood_still_during_an_invocation_connects_again() {
    let world = World::new();
    let record = world.append("a", 1).await;
    world.faults.set([Fault::Delay(10 * S).on(Op::PublishRun)]);
    let handler = world.handler();
    let records = [record];
    let invocation = invoke(&world, &handler, &records);
    let freeze = async {
        tokio::time::sleep(5 * S).await;
        world.clock.run_ahead(20 * S);
    };
    let (answer, ()) = tokio::join!(invocation, freeze);
    assert_eq!((answer, world.wires.reconnects.load(SeqCst)), (None, 1));
}
