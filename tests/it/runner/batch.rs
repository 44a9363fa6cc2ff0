//! Batches of neighbouring events of a stream.
use super::harness::*;
use foldstream_testkit::faults::{Fault, Faults, Op};

#[tokio::test(start_paused = true)]
async fn events_before_a_gap_in_a_batch_are_handled_if_the_gap_cannot_be_filled_yet() {
    let world = World::new(1);
    for version in 1..=4 {
        let commit = world.store("a", 1).await;
        if version != 3 {
            world.publish(&commit).await;
        }
    }
    let faults = Faults::script([Fault::Unavailable.on(Op::Read).first(1)]);
    let seen = Seen::new();
    let runner = world
        .builder()
        .with_event_store(faults.event_store(world.store.clone()))
        .listener_with(seen.clone(), from_beginning().with_max_batch(8))
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(faults.log().len(), 1, "the store was away once");
    assert_eq!(seen.of("a"), [1, 2, 3, 4]);
}
