//! Parked streams of which a newer event was handled before, because a topic has grown.
use super::super::harness::{TOPIC, notes_the_start};
use super::{operator::Operator, views::*};
use crate::support::stream;
use foldstream::{adapter::kafka_partition, runner::DeliveryLevel};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};

/// Returns an id whose stream leaves partition 0 when a topic grows to four partitions.
fn moving() -> String {
    let partition_of = |id: &String| kafka_partition(stream(id).as_str().as_bytes(), 4);
    let mut ids = (0..).map(|n: u32| n.to_string());
    ids.find(|id| partition_of(id) != 0).expect("there is one")
}

fn starts_the_first(call: &Call<'_>) -> bool {
    notes_the_start(call)
        && matches!(call, Call::Put { row, .. } if row.key.sort.ends_with("/00000000000000000000"))
}

#[tokio::test(start_paused = true)]
async fn late_events_that_fail_are_parked_and_redriven() {
    for (level, restarts) in [
        (DeliveryLevel::AtLeastOnce, false),
        (DeliveryLevel::AtLeastOnce, true),
        (DeliveryLevel::Deduplicated, false),
        (DeliveryLevel::Deduplicated, true),
    ] {
        let id = moving();
        let shop = Shop::new(&[(&id, 1)]).without_store();
        shop.deposits(&[&id, &id]).await;
        shop.world.bus.set_partitions(TOPIC, 4).unwrap();
        shop.deposits(&[&id]).await;
        let away = Fault::Unavailable.on(Op::Put).matching(starts_the_first);
        let faults = Faults::script([away]);
        let policy = || policy().with_level(level);
        let mut running = shop.start_with(&faults, shop.views.clone(), policy());
        seconds(60).await;
        assert_eq!(shop.views.of(&id), [3]);
        faults.set([]);
        seconds(60).await;
        let parked = Some((1, 2, "parked".into()));
        assert_eq!(shop.operator.parked(&id).await, parked, "{level:?}");
        assert_eq!(shop.operator.letters(&id).await, [1]);
        if restarts {
            running.stop().await;
            running = shop.start_as(shop.views.clone(), policy());
            seconds(60).await;
            assert_eq!(shop.operator.parked(&id).await, parked, "{level:?}");
        }
        shop.views.fix();
        shop.operator.redrive(&id).await;
        seconds(60).await;
        assert_eq!(shop.views.of(&id), [3, 1, 2], "{level:?} {restarts}");
        shop.deposits(&[&id]).await;
        seconds(60).await;
        assert_eq!(shop.views.of(&id), [3, 1, 2, 4], "{level:?} {restarts}");
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_release_of_a_stream_keeps_what_was_not_handled_before_it() {
    let id = moving();
    let shop = Shop::new(&[(&id, 4)]).without_store();
    shop.deposits(&[&id, &id]).await;
    shop.world.bus.set_partitions(TOPIC, 4).unwrap();
    shop.deposits(&[&id, &id, &id]).await;
    let away = Fault::Unavailable.on(Op::Put).matching(starts_the_first);
    let faults = Faults::script([away]);
    let running = shop.start_with(&faults, shop.views.clone(), policy());
    seconds(60).await;
    shop.views.fix();
    // It is parked in another partition than that of its first events.
    let operator = Operator::new(shop.world.control.clone(), "views", 4);
    assert!(operator.redrive(&id).await);
    seconds(60).await;
    assert_eq!(shop.views.of(&id), [3, 4, 5]);
    faults.set([]);
    seconds(60).await;
    assert_eq!(shop.views.of(&id), [3, 4, 5, 1, 2]);
    shop.assert_committed().await;
    running.stop().await;
}
