//! Batches that panic or take too long: nothing says which of their events has failed.
use super::views::*;
use crate::support::AccountEvent;
use foldstream::{
    RetryPolicy,
    runner::{
        BatchResult, EventContext, HandlerResult, Listener, ModelId, ProcessorPolicy, Projector,
    },
};
use std::{future::pending, time::Duration};

/// A read model whose batches panic or hang if an event in them is bad.
#[derive(Clone)]
struct Breaking {
    views: Views,
    hangs: bool,
}

impl Breaking {
    async fn all(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        self.views.calls.lock().unwrap().0 += 1;
        let of = |ctx: &EventContext| (ctx.stream().id().to_owned(), ctx.version().get());
        let events: Vec<_> = events.iter().map(|(_, ctx)| of(ctx)).collect();
        let is_bad = {
            let bad = self.views.bad.lock().unwrap();
            events.iter().any(|event| bad.contains(event))
        };
        if is_bad && self.hangs {
            pending::<()>().await;
        }
        assert!(!is_bad, "an event of the batch is bad");
        let done = events.len();
        self.views.durable.lock().unwrap().extend(events);
        BatchResult::done(done)
    }
}

impl Projector for Breaking {
    const NAME: &'static str = "views";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        panic!("events come in batches")
    }
    async fn project_batch(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        self.all(events).await
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

impl Listener for Breaking {
    const NAME: &'static str = "views";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        panic!("events come in batches")
    }
    async fn handle_batch(&self, events: &[(AccountEvent, EventContext)]) -> BatchResult {
        self.all(events).await
    }
}

/// A policy under which an event that fails once is given up.
fn strict(policy: ProcessorPolicy) -> ProcessorPolicy {
    let policy = policy.with_retry(RetryPolicy::fail_fast());
    let policy = policy.with_max_batch(10).without_breaker();
    policy.with_attempt_timeout(Duration::from_secs(2))
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_breaks_gives_up_the_event_that_breaks_alone_and_no_other() {
    for hangs in [false, true] {
        for has_store in [true, false] {
            let mut shop = Shop::new(&[("a", 4), ("a", 7)]);
            shop.has_store = has_store;
            shop.deposits(&["a", "b", "a", "a", "a", "b", "a", "a", "a", "a"])
                .await;
            let views = shop.views.clone();
            let broken = Breaking { views, hangs };
            let runner = shop.builder().projector_with(broken, strict(policy()));
            let running = Running::start(runner.build().unwrap());
            seconds(30).await;
            let waits = |from| Some((from, 8, "parked".into()));
            assert_eq!(
                (shop.views.of("a"), shop.views.of("b").len()),
                (vec![1, 2, 3], 2)
            );
            assert_eq!(shop.operator.parked("a").await, waits(4));
            assert_eq!(shop.operator.letters("a").await, [4]);
            // A redrive is no different.
            shop.views.bad.lock().unwrap().remove(&("a".into(), 4));
            shop.operator.redrive("a").await;
            seconds(60).await;
            assert_eq!(shop.views.of("a"), [1, 2, 3, 4, 5, 6]);
            assert_eq!(shop.operator.parked("a").await, waits(7));
            assert_eq!(shop.operator.letters("a").await, [7]);
            shop.views.fix();
            shop.operator.redrive("a").await;
            seconds(30).await;
            assert_eq!(shop.views.of("a"), [1, 2, 3, 4, 5, 6, 7, 8]);
            shop.assert_at_rest().await;
            running.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_batch_of_a_listener_that_breaks_only_the_bad_event_is_a_letter() {
    let shop = Shop::new(&[("a", 3), ("a", 5)]);
    shop.deposits(&["a"; 9]).await;
    let broken = Breaking {
        views: shop.views.clone(),
        hangs: false,
    };
    let policy = strict(listening());
    let runner = shop.world.builder().listener_with(broken, policy);
    let running = Running::start(runner.build().unwrap());
    seconds(30).await;
    assert_eq!(shop.views.of("a"), [1, 2, 4, 6, 7, 8, 9]);
    assert_eq!(shop.operator.letters("a").await, [3, 5]);
    shop.assert_committed().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_a_gap_that_is_filled_by_a_batch_that_breaks_only_the_bad_event_is_a_letter() {
    let shop = Shop::new(&[("a", 3)]);
    shop.deposits(&["a"]).await;
    let broken = Breaking {
        views: shop.views.clone(),
        hangs: false,
    };
    let runner = shop.builder().listener_with(broken, strict(listening()));
    let running = Running::start(runner.build().unwrap());
    seconds(5).await;
    // Versions 2 to 4 do not come by the bus.
    for _ in 0..3 {
        shop.world.store("a", 1).await;
    }
    shop.deposits(&["a"]).await;
    seconds(30).await;
    assert_eq!(shop.views.of("a"), [1, 2, 4, 5]);
    assert_eq!(shop.operator.letters("a").await, [3]);
    shop.assert_committed().await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_events_of_a_batch_that_broke_the_next_ones_come_in_batches_again() {
    let shop = Shop::new(&[("a", 2)]);
    let broken = Breaking {
        views: shop.views.clone(),
        hangs: false,
    };
    shop.deposits(&["a"; 40]).await;
    let policy = strict(listening());
    let runner = shop.world.builder().listener_with(broken, policy);
    let running = Running::start(runner.build().unwrap());
    seconds(30).await;
    assert_eq!(shop.views.of("a").len(), 39);
    // A batch of ten that breaks, each of the ten alone, and the others in batches of ten.
    let calls = shop.views.calls.lock().unwrap().0;
    assert!((13..=17).contains(&calls), "{calls} calls");
    running.stop().await;
}
