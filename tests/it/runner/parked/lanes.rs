//! Lanes that several streams share, of which one stream fails.
use super::views::*;
use foldstream::{
    ports::RowKey,
    runner::{DeliveryLevel, ProcessorPolicy},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::time::Duration;

/// Streams whose ids begin with the same letter share a lane.
fn sharing() -> ProcessorPolicy {
    policy().with_lane(|stream| stream.id()[..1].to_owned())
}

/// The events of a lane, in the order of their records.
fn of_lane(shop: &Shop, lane: &str) -> Vec<(String, u64)> {
    let durable = shop.views.durable.lock().unwrap();
    let of = durable.iter().filter(|(id, _)| id.starts_with(lane));
    of.cloned().collect()
}

fn events(events: &[(&str, u64)]) -> Vec<(String, u64)> {
    let events = events.iter().map(|(id, version)| ((*id).into(), *version));
    events.collect()
}

fn waits(from: u64, high: u64) -> Option<(u64, u64, String)> {
    Some((from, high, "parked".into()))
}

#[tokio::test(start_paused = true)]
async fn a_lane_is_parked_as_a_whole_with_one_row_per_stream_met_and_no_other_lane() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a1", 2)]);
        shop.has_store = has_store;
        shop.deposits(&["a2", "a1", "a1", "a2", "b1", "a3", "a1", "a2", "b1"])
            .await;
        let running = shop.start_as(shop.views.clone(), sharing());
        seconds(5).await;
        assert_eq!(of_lane(&shop, "a"), events(&[("a2", 1), ("a1", 1)]));
        assert_eq!(shop.views.of("b1"), [1, 2]);
        assert_eq!(shop.operator.parked("a1").await, waits(2, 3));
        assert_eq!(shop.operator.parked("a2").await, waits(2, 3));
        assert_eq!(shop.operator.parked("a3").await, waits(1, 1));
        assert_eq!(shop.operator.all("park").await.len(), 3);
        assert_eq!(shop.operator.all("dlq").await.len(), 1);
        // The order between the streams is kept, once per record.
        assert_eq!(shop.operator.all("order").await.len(), 5);
        shop.assert_committed().await;
        // What comes later waits, too, also of a stream that is met for the first time.
        shop.deposits(&["a4", "b1", "a2"]).await;
        seconds(5).await;
        assert_eq!(of_lane(&shop, "a").len(), 2);
        assert_eq!(shop.operator.parked("a4").await, waits(1, 1));
        assert_eq!(shop.operator.parked("a2").await, waits(2, 4));
        shop.assert_committed().await;
        let report = running.stop().await;
        assert_eq!((report.parked, report.deferred), (4, 7));
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_of_any_stream_handles_its_lane_in_the_order_of_the_records() {
    for (has_store, is_buffered, restarts, asked) in [
        (true, false, false, "a1"),
        (true, true, false, "a2"),
        (true, false, true, "a2"),
        (false, false, false, "a1"),
        (false, true, true, "a3"),
    ] {
        let mut shop = Shop::new(&[("a1", 2)]);
        shop.has_store = has_store;
        let views = || match is_buffered {
            true => shop.views.buffered(),
            false => shop.views.clone(),
        };
        shop.deposits(&["a1", "a2", "a1", "a2", "a3", "a1", "a2", "b1"])
            .await;
        let mut running = shop.start_as(views(), sharing());
        seconds(5).await;
        if restarts {
            running.stop().await;
            running = shop.start_as(views(), sharing());
        }
        shop.deposits(&["a3", "a1"]).await;
        seconds(5).await;
        let before = [("a1", 1), ("a2", 1)];
        assert_eq!(
            of_lane(&shop, "a"),
            events(&before),
            "a restart finds it parked"
        );
        shop.views.fix();
        assert!(shop.operator.redrive(asked).await);
        seconds(20).await;
        let waited = [
            ("a1", 2),
            ("a2", 2),
            ("a3", 1),
            ("a1", 3),
            ("a2", 3),
            ("a3", 2),
            ("a1", 4),
        ];
        let all = [&before[..], &waited[..]].concat();
        assert_eq!(of_lane(&shop, "a"), events(&all), "{has_store} {restarts}");
        shop.deposits(&["a2", "a1"]).await;
        seconds(5).await;
        let all = [&all[..], &[("a2", 4), ("a1", 5)]].concat();
        assert_eq!(of_lane(&shop, "a"), events(&all));
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_of_a_lane_that_fails_at_another_stream_leaves_the_lane_parked_there() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a1", 1), ("a2", 2)]);
        shop.has_store = has_store;
        shop.deposits(&["a1", "a2", "a1", "a2", "a1", "a3"]).await;
        let running = shop.start_as(shop.views.clone(), sharing());
        seconds(5).await;
        shop.views.bad.lock().unwrap().remove(&("a1".into(), 1));
        shop.operator.redrive("a1").await;
        seconds(20).await;
        let first = [("a1", 1), ("a2", 1), ("a1", 2)];
        assert_eq!(of_lane(&shop, "a"), events(&first));
        assert_eq!(shop.operator.parked("a2").await, waits(2, 2));
        assert_eq!(shop.operator.parked("a1").await, waits(3, 3));
        assert_eq!(shop.operator.parked("a3").await, waits(1, 1));
        assert_eq!(shop.operator.letters("a2").await, [2]);
        assert_eq!(shop.operator.letters("a1").await, [0; 0]);
        // A stream that only waits goes on neither by itself nor before the one that fails.
        shop.operator.redrive("a3").await;
        seconds(20).await;
        assert_eq!(of_lane(&shop, "a"), events(&first));
        assert_eq!(shop.operator.parked("a3").await, waits(1, 1));
        shop.views.fix();
        shop.operator.redrive("a2").await;
        seconds(20).await;
        let all = [&first[..], &[("a2", 2), ("a1", 3), ("a3", 1)]].concat();
        assert_eq!(of_lane(&shop, "a"), events(&all));
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_discard_of_the_event_that_failed_goes_on_with_the_whole_lane() {
    let shop = Shop::new(&[("a1", 1)]);
    shop.deposits(&["a1", "a2", "a1", "a2"]).await;
    let running = shop.start_as(shop.views.clone(), sharing());
    seconds(5).await;
    // A discard of a stream that only waits is for later.
    shop.operator.discard("a2", 1).await;
    seconds(20).await;
    assert_eq!(of_lane(&shop, "a"), events(&[]));
    shop.operator.discard("a1", 1).await;
    seconds(20).await;
    assert_eq!(of_lane(&shop, "a"), events(&[("a1", 2), ("a2", 2)]));
    for id in ["a1", "a2"] {
        let state = shop.operator.discarded(id, 1).await;
        assert_eq!(state.as_deref(), Some("passed"));
    }
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_only_follows_a_failure_goes_on_once_the_failure_is_gone() {
    let shop = Shop::new(&[("a1", 1)]);
    shop.deposits(&["a1", "a2", "a2"]).await;
    let running = shop.start_as(shop.views.clone(), sharing());
    seconds(5).await;
    running.stop().await;
    // Another owner has handled the stream that failed, and has died before the others.
    shop.operator.delete_park_row("a1").await;
    let running = shop.start_as(shop.views.clone(), sharing());
    seconds(20).await;
    assert_eq!(of_lane(&shop, "a"), events(&[("a2", 1), ("a2", 2)]));
    assert_eq!(shop.operator.all("park").await, [""; 0]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_with_more_streams_than_may_be_parked_holds_the_processor() {
    let shop = Shop::new(&[("a1", 1)]);
    shop.deposits(&["a1", "a2", "a3", "a4", "b1"]).await;
    let limited = sharing().with_limits(2, 100, 100);
    let running = shop.start_as(shop.views.clone(), limited);
    seconds(200).await;
    assert_eq!(shop.operator.all("park").await.len(), 2);
    assert_eq!(shop.views.of("b1"), [1]);
    // The records that have no row are not passed.
    assert!(shop.world.committed(VIEWS).await < 3);
    shop.views.fix();
    shop.operator.redrive("a1").await;
    seconds(200).await;
    let all = [("a1", 1), ("a2", 1), ("a3", 1), ("a4", 1)];
    assert_eq!(of_lane(&shop, "a"), events(&all));
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_before_a_stream_that_waits_for_its_lane_is_filled_by_the_redrive() {
    for level in [DeliveryLevel::AtLeastOnce, DeliveryLevel::Deduplicated] {
        let shop = Shop::new(&[("a1", 1)]);
        shop.deposits(&["a2"]).await;
        let policy = || sharing().with_level(level);
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(15).await;
        assert_eq!(of_lane(&shop, "a"), events(&[("a2", 1)]));
        let running = match level {
            // The next process knows the position by its row.
            DeliveryLevel::Deduplicated => {
                running.stop().await;
                shop.start_as(shop.views.clone(), policy())
            }
            _ => running,
        };
        shop.deposits(&["a1"]).await;
        shop.world.store("a2", 1).await;
        shop.deposits(&["a2"]).await;
        seconds(15).await;
        assert_eq!(of_lane(&shop, "a").len(), 1);
        // The first redrive of the lane comes too early, and passes nothing of the stream that
        // follows.
        shop.operator.redrive("a1").await;
        seconds(20).await;
        assert_eq!(of_lane(&shop, "a").len(), 1);
        shop.views.fix();
        shop.operator.redrive("a1").await;
        seconds(20).await;
        let all = [("a2", 1), ("a1", 1), ("a2", 2), ("a2", 3)];
        assert_eq!(of_lane(&shop, "a"), events(&all), "{level:?}");
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_arrives_while_its_lane_is_being_parked_waits_after_those_queued() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a1", 1)]);
        shop.has_store = has_store;
        shop.deposits(&["a1", "a2", "a2"]).await;
        let late = Fault::Delay(Duration::from_secs(2)).on(Op::Put);
        let faults = Faults::script([late.matching(announces).first(1)]);
        let running = shop.start_with(&faults, shop.views.clone(), sharing());
        seconds(1).await;
        shop.deposits(&["a2"]).await;
        seconds(10).await;
        assert_eq!(shop.operator.parked("a2").await, waits(1, 3), "{has_store}");
        shop.views.fix();
        shop.operator.redrive("a1").await;
        seconds(40).await;
        let all = [("a1", 1), ("a2", 1), ("a2", 2), ("a2", 3)];
        assert_eq!(of_lane(&shop, "a"), events(&all), "{has_store}");
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

fn writes_a_park_row(call: &Call<'_>) -> bool {
    let of_stream = |row: &RowKey| row.partition.starts_with("park/") && row.sort != "!changed";
    matches!(call, Call::Put { row, .. } if of_stream(&row.key))
}

/// Lets a process die at this write of a park row, asks for a redrive, and lets the next process
/// find the request. Returns false if there was no such write.
async fn dies_at_a_park_row(mut shop: Shop, has_store: bool, fault: Fault, point: u64) -> bool {
    let first = [("a1", 1), ("a3", 1), ("a2", 1), ("a3", 2)];
    let later = [
        ("a3", 3),
        ("a2", 2),
        ("a4", 1),
        ("a3", 4),
        ("a2", 3),
        ("a1", 2),
    ];
    let ids = |events: &[(&'static str, u64)]| events.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    shop.has_store = has_store;
    shop.deposits(&ids(&first)).await;
    let death = fault.on(Op::Put).matching(writes_a_park_row).at(point);
    let faults = Faults::script([death]);
    let running = shop.start_with(&faults, shop.views.clone(), sharing());
    seconds(5).await;
    shop.deposits(&ids(&later)).await;
    seconds(5).await;
    running.crash().await;
    let (is_dead, context) = (faults.is_crashed(), format!("{has_store} {point}"));
    shop.views.fix();
    shop.operator.redrive("a1").await;
    let running = shop.start_as(shop.views.clone(), sharing());
    seconds(30).await;
    let all = events(&[&first[..], &later[..]].concat());
    assert_eq!(of_lane(&shop, "a"), all, "{context}");
    shop.assert_committed().await;
    assert_eq!(shop.operator.all("park").await, [""; 0], "{context}");
    running.stop().await;
    is_dead
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_owner_dies_between_two_of_its_park_rows_is_redriven_in_order() {
    for has_store in [true, false] {
        let mut deaths = 0;
        for point in 1.. {
            let mut is_dead = false;
            for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                let shop = Shop::new(&[("a1", 1)]);
                is_dead |= dies_at_a_park_row(shop, has_store, fault, point).await;
            }
            if !is_dead {
                break;
            }
            deaths += 1;
        }
        // One for each row, and for each record whose stream is not that of the record before.
        assert!(deaths >= 8, "{deaths}");
    }
}
