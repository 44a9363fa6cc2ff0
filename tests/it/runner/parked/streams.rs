//! Streams whose events wait after one that failed.
use super::views::*;
use foldstream::{
    Version,
    runner::{DeliveryLevel, FailureAction},
};
use foldstream_testkit::{
    InMemoryMessageBus,
    faults::{Fault, Faults, Op},
};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_failed_event_parks_its_stream_and_no_other() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a", 2)]);
        shop.has_store = has_store;
        shop.deposits(&["a", "b", "a", "a", "b"]).await;
        let running = shop.start();
        seconds(5).await;
        assert_eq!(shop.views.of("a"), [1]);
        assert_eq!(shop.views.of("b"), [1, 2]);
        shop.assert_committed().await;
        let parked = Some((2, 3, "parked".into()));
        assert_eq!(shop.operator.parked("a").await, parked);
        assert_eq!(shop.operator.letters("a").await, [2]);
        // What comes later waits, too.
        shop.deposits(&["a", "b"]).await;
        seconds(5).await;
        assert_eq!(shop.views.of("b"), [1, 2, 3]);
        shop.assert_parked("a", 2, 4).await;
        shop.assert_committed().await;
        let report = running.stop().await;
        assert_eq!((report.parked, report.deferred), (1, 3));
        let deferred = if has_store { vec![] } else { vec![2, 3, 4] };
        assert_eq!(shop.operator.versions("def", "a").await, deferred);
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_after_the_fix_handles_what_waits_in_order_and_once() {
    for (has_store, is_buffered, restarts) in [
        (true, false, false),
        (true, true, false),
        (true, false, true),
        (false, false, false),
        (false, true, true),
    ] {
        let mut shop = Shop::new(&[("a", 2)]);
        shop.has_store = has_store;
        let views = || match is_buffered {
            true => shop.views.buffered(),
            false => shop.views.clone(),
        };
        shop.deposits(&["a", "a", "a", "b"]).await;
        let mut running = shop.start_as(views(), policy());
        seconds(5).await;
        if restarts {
            running.stop().await;
            running = shop.start_as(views(), policy());
        }
        shop.deposits(&["a"]).await;
        seconds(5).await;
        assert_eq!(shop.views.of("a"), [1], "a restart finds it parked");
        shop.views.fix();
        assert!(shop.operator.redrive("a").await);
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1, 2, 3, 4]);
        shop.deposits(&["a"]).await;
        seconds(5).await;
        assert_eq!(shop.views.of("a"), [1, 2, 3, 4, 5]);
        shop.assert_at_rest().await;
        let report = running.stop().await;
        assert_eq!(
            (report.handled, report.filled),
            (if restarts { 4 } else { 6 }, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_fails_again_leaves_the_stream_parked_at_the_new_failure() {
    let shop = Shop::new(&[("a", 2), ("a", 4)]);
    let running = shop.started_after(&["a", "a", "a", "a", "a"]).await;
    shop.views.bad.lock().unwrap().remove(&("a".into(), 2));
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    shop.assert_parked("a", 4, 5).await;
    assert_eq!(shop.operator.letters("a").await, [4]);
    // An operator may ask again, and again.
    shop.operator.redrive("a").await;
    seconds(20).await;
    shop.assert_parked("a", 4, 5).await;
    shop.views.fix();
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3, 4, 5]);
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_discard_of_the_head_goes_on_after_it_and_one_of_a_later_version_waits() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a", 2)]);
        shop.has_store = has_store;
        shop.deposits(&["a", "a", "a", "a"]).await;
        let running = shop.start();
        seconds(5).await;
        shop.operator.discard("a", 3).await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1]);
        assert_eq!(
            shop.operator.discarded("a", 3).await.as_deref(),
            Some("asked")
        );
        shop.operator.discard("a", 2).await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1, 4]);
        for version in [2, 3] {
            let state = shop.operator.discarded("a", version).await;
            assert_eq!(state.as_deref(), Some("passed"));
        }
        shop.deposits(&["a"]).await;
        seconds(5).await;
        assert_eq!(shop.views.of("a"), [1, 4, 5]);
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_discard_is_remembered_after_a_restart() {
    let shop = Shop::new(&[("a", 2)]);
    let running = shop.started_after(&["a", "a", "a"]).await;
    running.stop().await;
    shop.operator.ask_discard("a", 3).await;
    let running = shop.start();
    seconds(5).await;
    shop.views.fix();
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2]);
    running.stop().await;
    shop.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn a_discard_of_a_stream_that_is_not_parked_is_remembered_after_a_restart() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "a"]).await;
    // The process dies before it has committed what it has deferred.
    let slow = policy().with_commit_interval(Duration::from_secs(3_600));
    let running = shop.start_as(shop.views.clone(), slow);
    seconds(5).await;
    running.crash().await;
    // Another owner has released the stream meanwhile. The records come again, and no redrive looks
    // at the discards.
    shop.operator.ask_discard("a", 3).await;
    shop.operator.delete_park_row("a").await;
    shop.views.fix();
    let running = shop.start();
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2]);
    let state = shop.operator.discarded("a", 3).await;
    assert_eq!(state.as_deref(), Some("passed"));
    shop.assert_committed().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_buffered_read_model_is_flushed_before_the_stream_is_parked_and_before_from_moves() {
    let shop = Shop::new(&[("a", 3)]);
    shop.deposits(&["a", "a", "a", "a"]).await;
    // The offset is not committed meanwhile, and each process dies soon.
    let slow = policy().with_commit_interval(Duration::from_secs(3_600));
    let durable = shop.views.durable.clone();
    let checks = {
        let (control, durable) = (shop.operator.parked("a").await, durable.clone());
        assert_eq!((control, durable.lock().unwrap().len()), (None, 0));
        Faults::none().with_probe(move |_, call| {
            if let foldstream_testkit::faults::Call::Put { row, .. } = call
                && row.key.partition.starts_with("park/views/1/")
            {
                let value: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
                let from = value["f"].as_u64().unwrap();
                let durable = durable.lock().unwrap();
                for version in 1..from {
                    assert!(
                        durable.contains(&("a".into(), version)),
                        "{version} < {from}"
                    );
                }
            }
        })
    };
    let running = shop.start_with(&checks, shop.views.buffered(), slow);
    seconds(5).await;
    assert_eq!(shop.views.of("a"), [1, 2]);
    shop.assert_parked("a", 3, 3).await;
    shop.views.fix();
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.operator.parked("a").await, None);
    assert!(checks.calls(Op::Put) > 0);
    running.crash().await;
}

#[tokio::test(start_paused = true)]
async fn positions_are_stored_of_redriven_events_and_not_of_deferred_ones() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "a"]).await;
    let policy = || policy().with_level(DeliveryLevel::Deduplicated);
    let running = shop.start_as(shop.views.clone(), policy());
    seconds(30).await;
    shop.assert_committed().await;
    let position = shop.operator.position("a").await;
    assert_eq!(position, Some(1));
    shop.views.fix();
    shop.operator.redrive("a").await;
    seconds(30).await;
    running.stop().await;
    assert_eq!(shop.operator.position("a").await, Some(3));
    // The next process finds no gap to fill.
    let running = shop.start_as(shop.views.clone(), policy());
    shop.deposits(&["a"]).await;
    seconds(30).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3, 4]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn batches_park_at_the_event_that_failed() {
    let shop = Shop::new(&[("a", 3)]);
    shop.deposits(&["a", "a", "a", "a", "a"]).await;
    let running = shop.start_as(shop.views.clone(), policy().with_max_batch(10));
    seconds(5).await;
    assert_eq!(shop.views.of("a"), [1, 2]);
    shop.assert_parked("a", 3, 5).await;
    shop.operator.discard("a", 4).await;
    shop.views.fix();
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3, 5]);
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_policy_may_halt_or_discard_instead() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "a"]).await;
    let runner = shop.builder().projector_with(
        shop.views.clone(),
        policy().with_on_failure(|_| FailureAction::Halt),
    );
    let report = runner.build().unwrap().run_until_caught_up().await;
    assert!(report.processors[0].error.is_some());
    let discard = policy().with_on_failure(|_| FailureAction::Discard("a duplicate".into()));
    let running = shop.start_as(shop.views.clone(), discard);
    seconds(5).await;
    assert_eq!(running.stop().await.discarded, 1);
    assert_eq!(shop.views.of("a"), [1, 3]);
    assert_eq!(
        shop.operator.discarded("a", 2).await.as_deref(),
        Some("passed")
    );
    shop.assert_at_rest().await;
}

#[tokio::test(start_paused = true)]
async fn the_offset_does_not_pass_while_the_rows_cannot_be_written() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "b", "b"]).await;
    let faults = Faults::none();
    let running = shop.start_with(&faults, shop.views.clone(), policy());
    tokio::task::yield_now().await;
    let is_letter = |call: &foldstream_testkit::faults::Call<'_>| matches!(call, foldstream_testkit::faults::Call::Put { row, .. } if row.key.partition.starts_with("dlq/"));
    faults.set([Fault::Unavailable.on(Op::Put).matching(is_letter)]);
    seconds(300).await;
    assert_eq!(shop.views.of("b"), [1, 2], "other streams go on");
    assert_eq!(shop.world.committed(VIEWS).await, 1);
    // The handler is not called again and again, nor is the store.
    assert_eq!(shop.views.calls.lock().unwrap().0, 4);
    assert!(
        (20..500).contains(&faults.log().len()),
        "{}",
        faults.log().len()
    );
    faults.set([]);
    seconds(30).await;
    shop.assert_committed().await;
    shop.assert_parked("a", 2, 2).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_processor_at_its_limit_holds_and_goes_on_below_half_of_it() {
    let shop = Shop::new(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
    shop.deposits(&["a", "b", "c", "d", "e", "d"]).await;
    let limited = policy().with_limits(2, 100, 100).with_concurrency(1);
    let running = shop.start_as(shop.views.clone(), limited);
    seconds(5).await;
    assert_eq!(shop.operator.all("park").await.len(), 2);
    assert_eq!(shop.operator.all("dlq").await.len(), 2);
    assert_eq!(shop.world.committed(VIEWS).await, 2);
    // Paused: nothing more comes.
    shop.deposits(&["f"]).await;
    seconds(200).await;
    assert_eq!(shop.views.of("f"), [0; 0]);
    assert_eq!(shop.operator.all("park").await.len(), 2);
    // Requests are served while it holds.
    shop.views.bad.lock().unwrap().retain(|(id, _)| id == "d");
    for id in ["a", "b"] {
        shop.operator.redrive(id).await;
    }
    seconds(200).await;
    assert_eq!((shop.views.of("a"), shop.views.of("c")), (vec![1], vec![1]));
    assert_eq!(shop.operator.all("park").await, ["account#d"]);
    assert_eq!(shop.views.of("f"), [1]);
    shop.assert_committed().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deferred_records_of_a_stream_that_was_released_come_before_newer_ones() {
    // Without an event store nothing else has the records. With one, they are not to be read from
    // it: the offset waits for the records themselves.
    for has_store in [false, true] {
        let mut shop = Shop::new(&[("a", 2)]);
        shop.has_store = has_store;
        shop.deposits(&["a", "a"]).await;
        let slow = policy().with_commit_interval(Duration::from_secs(4));
        let running = shop.start_as(shop.views.clone(), slow);
        seconds(9).await;
        // Another owner has redriven the stream, and this one defers what comes.
        shop.deposits(&["a", "a"]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        shop.operator.delete_park_row("a").await;
        shop.views.fix();
        seconds(4).await;
        shop.deposits(&["a"]).await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1, 3, 4, 5], "store: {has_store}");
        shop.assert_committed().await;
        let report = running.stop().await;
        assert_eq!((report.filled, report.gaps_unverified), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_discard_of_a_released_stream_holds_for_records_that_were_deferred() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a"]).await;
    let slow = policy().with_commit_interval(Duration::from_secs(4));
    let running = shop.start_as(shop.views.clone(), slow);
    seconds(9).await;
    shop.deposits(&["a", "a"]).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    // Another owner has passed version 3 over, and has released the stream. Nobody tells.
    shop.operator.ask_discard("a", 3).await;
    shop.operator.delete_park_row("a").await;
    shop.views.fix();
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 4]);
    assert_eq!(
        shop.operator.discarded("a", 3).await.as_deref(),
        Some("passed")
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_redrive_of_an_owner_that_died_is_taken_over() {
    let shop = Shop::new(&[("a", 2)]);
    let running = shop.started_after(&["a", "a", "a"]).await;
    running.stop().await;
    let fields = [("s", "redriving"), ("b", "ann"), ("o", "a dead process")];
    let fields = fields.map(|(field, to)| (field, to.into()));
    shop.operator.change_park_row("a", &fields).await;
    shop.views.fix();
    let running = shop.start();
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_with_nothing_left_to_redrive_is_deleted_by_the_next_owner() {
    let shop = Shop::new(&[("a", 2)]);
    let running = shop.started_after(&["a", "a", "a"]).await;
    running.stop().await;
    let fields = [("s", "redriving".into()), ("b", "ann".into())];
    shop.operator.change_park_row("a", &fields).await;
    let fields = [("o", "a dead process".into()), ("f", 4.into())];
    shop.operator.change_park_row("a", &fields).await;
    let running = shop.start();
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1]);
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_of_another_owner_with_a_higher_from_is_adopted() {
    let shop = Shop::new(&[("a", 1), ("a", 2)]);
    shop.deposits(&["a", "a", "a", "a"]).await;
    let faults = Faults::none();
    let builder = shop.world.faulty_builder(&faults);
    let builder = builder.with_event_store(shop.world.store.clone());
    let runner = builder.projector_with(shop.views.clone(), policy());
    // The row appears after this process has read the rows.
    let is_park = |call: &foldstream_testkit::faults::Call<'_>| matches!(call, foldstream_testkit::faults::Call::Put { row, .. } if row.key.partition.starts_with("park/views/1/"));
    faults.set([Fault::Unavailable.on(Op::Put).matching(is_park)]);
    let running = Running::start(runner.build().unwrap());
    seconds(2).await;
    shop.operator
        .write_park_row("a", Version::new(3), Version::new(3))
        .await;
    faults.set([]);
    seconds(20).await;
    shop.assert_parked("a", 3, 4).await;
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [3, 4]);
    shop.assert_at_rest().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_stays_parked_when_its_partition_moves() {
    let bus = InMemoryMessageBus::with_grace(Duration::from_secs(1));
    let shop = Shop::on(bus, &[("a", 2)]);
    shop.deposits(&["a", "a", "b"]).await;
    let first = shop.start();
    seconds(5).await;
    let second = shop.start();
    for id in ["a", "b", "a", "b"] {
        shop.deposits(&[id]).await;
        shop.world.bus.expel(VIEWS);
        seconds(5).await;
    }
    assert_eq!(
        (shop.views.of("a"), shop.views.of("b").last()),
        (vec![1], Some(&3))
    );
    shop.assert_parked("a", 2, 4).await;
    shop.views.fix();
    shop.operator.redrive("a").await;
    shop.world.bus.expel(VIEWS);
    seconds(30).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3, 4]);
    shop.assert_at_rest().await;
    for running in [first, second] {
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_arrives_while_its_stream_is_being_parked_waits_after_those_queued() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a", 1)]);
        shop.has_store = has_store;
        shop.deposits(&["a", "a", "a"]).await;
        let late = Fault::Delay(Duration::from_secs(2)).on(Op::Put);
        let faults = Faults::script([late.matching(announces).first(1)]);
        // No record is covered by the row before the redrive.
        let policy = policy().with_commit_interval(Duration::from_secs(30));
        let running = shop.start_with(&faults, shop.views.clone(), policy);
        seconds(1).await;
        shop.deposits(&["a"]).await;
        seconds(4).await;
        shop.views.fix();
        shop.operator.redrive("a").await;
        seconds(100).await;
        assert_eq!(shop.views.of("a"), [1, 2, 3, 4], "{has_store}");
        shop.assert_at_rest().await;
        running.stop().await;
    }
}
