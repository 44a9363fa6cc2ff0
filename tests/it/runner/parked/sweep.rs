//! Rows that an owner leaves when it dies after it has handled deferred records.
use super::views::*;
use foldstream::runner::{DeliveryLevel, ProcessorPolicy};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};

fn sharing() -> ProcessorPolicy {
    policy().with_lane(|_| "one".to_owned())
}

fn is_about(call: &Call<'_>, kind: &str) -> bool {
    match call {
        Call::Put { row, .. } => row.key.partition.starts_with(kind),
        Call::Delete { key, .. } => key.partition.starts_with(kind),
        _ => false,
    }
}

#[tokio::test(start_paused = true)]
async fn rows_of_records_that_were_handled_are_swept_by_the_next_owner_and_no_others() {
    for (kind, policy) in [
        ("def", policy as fn() -> ProcessorPolicy),
        ("order", sharing),
    ] {
        let shop = Shop::new(&[("a", 2), ("b", 1)]).without_store();
        shop.deposits(&["a", "a", "a", "b", "a", "b"]).await;
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(5).await;
        running.stop().await;
        let waiting = shop.operator.all(kind).await;
        assert_eq!(waiting.len(), 5, "{waiting:?}");
        // The redrive of the first stream, or lane, moves `from`, and its owner dies then.
        shop.views.fix();
        let stuck = Fault::Unavailable
            .on([Op::Put, Op::Delete])
            .matching(move |c| is_about(c, kind));
        let faults = Faults::script([stuck]);
        let runner = shop.world.faulty_builder(&faults);
        let runner = runner.projector_with(shop.views.clone(), policy()).build();
        let running = Running::start(runner.unwrap());
        seconds(1).await;
        shop.operator.redrive("a").await;
        seconds(20).await;
        running.crash().await;
        let (from, ..) = shop.operator.parked("a").await.unwrap();
        assert!(from > 2, "{from}");
        assert_eq!(shop.operator.all(kind).await, waiting, "nothing is deleted");
        // The next owner deletes what was handled, before any request.
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(20).await;
        shop.operator.redrive("b").await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1, 2, 3, 4]);
        assert_eq!(shop.views.of("b"), [1, 2]);
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_row_of_a_parked_stream_stays_until_the_position_of_its_redrive_is_stored() {
    for lane in [false, true] {
        let policy = || {
            let policy = if lane { sharing() } else { policy() };
            policy.with_level(DeliveryLevel::Deduplicated)
        };
        let shop = Shop::new(&[("a", 2)]);
        shop.deposits(&["a", "a", "a"]).await;
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(30).await;
        running.stop().await;
        shop.views.fix();
        let stuck = Fault::Unavailable
            .on([Op::Put])
            .matching(|call| is_about(call, "pos"));
        let faults = Faults::script([stuck]);
        let builder = shop.world.faulty_builder(&faults);
        let builder = builder.with_event_store(shop.world.store.clone());
        let runner = builder.projector_with(shop.views.clone(), policy()).build();
        let running = Running::start(runner.unwrap());
        seconds(1).await;
        shop.operator.redrive("a").await;
        seconds(60).await;
        assert_eq!(shop.views.of("a"), [1, 2, 3]);
        running.crash().await;
        // The row tells the next owner what was handled.
        assert_eq!(shop.operator.position("a").await, Some(1), "lane: {lane}");
        assert!(shop.operator.parked("a").await.is_some(), "lane: {lane}");
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(30).await;
        assert_eq!(shop.operator.position("a").await, Some(3), "lane: {lane}");
        shop.assert_at_rest().await;
        running.stop().await;
        assert_eq!(shop.views.of("a"), [1, 2, 3], "nothing is repeated");
    }
}
