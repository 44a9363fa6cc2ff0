//! Rows of deferred records that an owner leaves when it dies after it has handled them.
use super::views::*;
use foldstream::runner::ProcessorPolicy;
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
