//! Parked streams whose processor gets or loses its event store with a deployment.
use super::views::*;
use foldstream::runner::ProcessorPolicy;

/// Streams whose ids begin with the same letter share a lane.
fn sharing() -> ProcessorPolicy {
    policy().with_lane(|stream| stream.id()[..1].to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_deployment_without_the_event_store_keeps_what_was_parked_with_it() {
    for (shares, later) in [(false, false), (false, true), (true, false), (true, true)] {
        let policy = || if shares { sharing() } else { policy() };
        let mut shop = Shop::new(&[("a1", 1)]);
        shop.deposits(&["a1", "a1", "a2"]).await;
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(10).await;
        running.stop().await;
        shop.views.fix();
        shop.has_store = false;
        let running = shop.start_as(shop.views.clone(), policy());
        let mut waiting = 2;
        if later {
            // This record is stored, and those before it are not.
            shop.deposits(&["a1"]).await;
            waiting = 3;
        }
        seconds(10).await;
        shop.operator.redrive("a1").await;
        seconds(40).await;
        assert_eq!(shop.views.of("a1"), [0; 0], "{shares} {later}");
        let parked = Some((1, waiting, "parked".into()));
        assert_eq!(shop.operator.parked("a1").await, parked);
        assert_eq!(shop.operator.letters("a1").await, [1]);
        running.stop().await;
        // The next deployment has the event store again.
        shop.has_store = true;
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(5).await;
        shop.operator.redrive("a1").await;
        seconds(40).await;
        let versions: Vec<u64> = (1..=waiting).collect();
        assert_eq!(shop.views.of("a1"), versions, "{shares} {later}");
        assert_eq!(shop.views.of("a2"), [1]);
        assert_eq!(shop.operator.all("park").await, [""; 0]);
        assert_eq!(shop.operator.all("dlq").await, [""; 0]);
        shop.assert_committed().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_parked_in_part_by_a_deployment_with_the_event_store_needs_it() {
    let mut shop = Shop::new(&[("a", 1)]).without_store();
    shop.deposits(&["a", "a"]).await;
    let running = shop.start();
    seconds(10).await;
    running.stop().await;
    // This record is not stored, since the event store has it.
    shop.has_store = true;
    let running = shop.start();
    seconds(2).await;
    shop.deposits(&["a"]).await;
    seconds(10).await;
    running.stop().await;
    assert_eq!(shop.operator.versions("def", "a").await, [1, 2]);
    shop.views.fix();
    shop.has_store = false;
    let running = shop.start();
    seconds(5).await;
    shop.operator.redrive("a").await;
    seconds(40).await;
    assert_eq!(shop.views.of("a"), [0; 0]);
    let parked = Some((1, 3, "parked".into()));
    assert_eq!(shop.operator.parked("a").await, parked);
    running.stop().await;
    shop.has_store = true;
    let running = shop.start();
    seconds(5).await;
    shop.operator.redrive("a").await;
    seconds(40).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    running.stop().await;
}
