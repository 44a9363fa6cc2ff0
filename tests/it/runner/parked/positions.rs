//! Redrives while the position of a stream cannot be had.
use super::views::*;
use crate::support::AccountEvent;
use foldstream::ports::RefusedKind;
use foldstream::{
    StreamId,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, Projector},
};
use foldstream_testkit::faults::{Fault, Faults, Op};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A read model whose positions panic while a switch is on.
#[derive(Clone)]
struct Placed {
    views: Views,
    panics: Arc<AtomicBool>,
}

impl Projector for Placed {
    const NAME: &'static str = "views";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.views.project(event, ctx).await
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let panics = self.panics.load(Ordering::SeqCst) && stream.id() == "a";
        assert!(!panics, "no such column");
        Ok(Position::KeptByRunner)
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

fn start(shop: &Shop) -> (Running, Arc<AtomicBool>) {
    let panics = Arc::new(AtomicBool::new(false));
    let placed = Placed {
        views: shop.views.clone(),
        panics: panics.clone(),
    };
    let runner = shop.builder().projector_with(placed, policy());
    (Running::start(runner.build().unwrap()), panics)
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_position_during_a_redrive_leaves_the_stream_parked_and_the_letter_says_why() {
    for has_store in [true, false] {
        let mut shop = Shop::new(&[("a", 2)]);
        shop.has_store = has_store;
        shop.deposits(&["a", "a", "a"]).await;
        let (running, panics) = start(&shop);
        seconds(5).await;
        shop.views.fix();
        panics.store(true, Ordering::SeqCst);
        shop.operator.redrive("a").await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1]);
        let parked = Some((2, 3, "parked".into()));
        assert_eq!(shop.operator.parked("a").await, parked);
        let letter = shop.operator.letter("a", 2).await.unwrap();
        let error = letter["e"].as_str().unwrap();
        assert!(
            error.contains("position panicked: no such column"),
            "{error}"
        );
        // The processor goes on with other streams.
        shop.deposits(&["b"]).await;
        seconds(5).await;
        assert_eq!(shop.views.of("b"), [1]);
        panics.store(false, Ordering::SeqCst);
        shop.operator.redrive("a").await;
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1, 2, 3]);
        shop.assert_at_rest().await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_position_during_the_redrive_of_a_letter_keeps_the_letter_and_says_why() {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a"]).await;
    let running = shop.start();
    seconds(5).await;
    running.stop().await;
    // The letter is there without a park row.
    shop.operator.delete_park_row("a").await;
    let (running, panics) = start(&shop);
    seconds(5).await;
    panics.store(true, Ordering::SeqCst);
    shop.operator.ask("a", 2, "redrive").await;
    seconds(20).await;
    let letter = shop.operator.letter("a", 2).await.unwrap();
    let error = letter["e"].as_str().unwrap();
    assert!(
        error.contains("position panicked: no such column"),
        "{error}"
    );
    assert_eq!(shop.operator.all("ask").await, [""; 0], "it is answered");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deferred_record_that_cannot_be_read_leaves_the_stream_parked_there() {
    let shop = Shop::new(&[("a", 2)]).without_store();
    shop.deposits(&["a", "a", "a", "a"]).await;
    let (running, _) = start(&shop);
    seconds(5).await;
    shop.views.fix();
    shop.operator.damage_deferred("a", 3).await;
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2]);
    assert_eq!(
        shop.operator.parked("a").await,
        Some((3, 4, "parked".into()))
    );
    let letter = shop.operator.letter("a", 3).await.unwrap();
    assert_eq!(letter["c"], "poison");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_store_that_refuses_a_redrive_leaves_the_stream_parked_and_the_processor_goes_on()
{
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a", "a", "a"]).await;
    let faults = Faults::none();
    let builder = shop.world.builder();
    let builder = builder.with_event_store(faults.event_store(shop.world.store.clone()));
    let runner = builder.projector_with(shop.views.clone(), policy());
    let running = Running::start(runner.build().unwrap());
    seconds(5).await;
    shop.views.fix();
    faults.set([Fault::Refused(RefusedKind::MissingTable).on(Op::Read)]);
    shop.operator.redrive("a").await;
    seconds(20).await;
    let parked = Some((2, 3, "parked".into()));
    assert_eq!(shop.operator.parked("a").await, parked);
    shop.deposits(&["b"]).await;
    seconds(5).await;
    assert_eq!(shop.views.of("b"), [1]);
    faults.set([]);
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    shop.assert_at_rest().await;
    running.stop().await;
}
