//! Panics in the code of the user outside of the handler are failures of their event.
use super::harness::*;
use crate::support::AccountEvent;
use foldstream::{
    BoxError, StreamId, Upcasters, Version,
    ports::EventData,
    runner::{
        EventContext, HandlerError, HandlerResult, Listener, ModelId, Position, ProcessorPolicy,
        Projector,
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// A projector whose position of one stream panics.
#[derive(Default)]
struct Positions {
    asked: AtomicU32,
    seen: Mutex<Vec<String>>,
}
impl Projector for Positions {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let id = ctx.stream().id().to_owned();
        self.seen.lock().unwrap().push(id);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_ne!(stream.id(), "bad", "no such row");
        Ok(Position::stored(Version::NONE))
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_position_parks_its_stream_at_once_and_no_other() {
    let world = World::new(1);
    for id in ["bad", "good"] {
        world.deposit(id).await;
    }
    let positions = Arc::new(Positions::default());
    let builder = world.builder().with_event_store(world.store.clone());
    let runner = builder.projector(positions.clone()).build().unwrap();
    let report = runner.run(tokio::time::sleep(600 * SECOND)).await;
    let report = report.into_result().unwrap();
    assert_eq!(*positions.seen.lock().unwrap(), ["good"]);
    assert_eq!((report[0].parked, world.committed(SEEN).await), (1, 2));
    assert_eq!(
        positions.asked.load(Ordering::SeqCst),
        2,
        "it is not retried"
    );
}

struct Ignores;
impl Listener for Ignores {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_an_event_is_decoded_is_a_dead_letter_of_that_event() {
    let world = World::new(1);
    let tried = Arc::new(AtomicU32::new(0));
    let count = tried.clone();
    let upcasters = Upcasters::new().with("account", "Saved", 1, move |_| -> Result<_, BoxError> {
        count.fetch_add(1, Ordering::SeqCst);
        panic!("index out of bounds")
    });
    let event = EventData::new("Saved", 1, &br#"{"amount":1}"#[..]);
    world.publish_raw("bad", 1, event).await;
    world.deposit("good").await;
    let policy = ProcessorPolicy::listener().with_start(foldstream::runner::Start::Beginning);
    let builder = world.builder().with_upcasters(upcasters);
    let runner = builder.listener_with(Ignores, policy).build().unwrap();
    let report = runner.run(tokio::time::sleep(600 * SECOND)).await;
    let report = report.into_result().unwrap();
    assert_eq!((report[0].handled, report[0].dead_letters), (1, 1));
    assert_eq!(world.committed(SEEN).await, 2);
    assert_eq!(tried.load(Ordering::SeqCst), 1, "it is not retried");
}
