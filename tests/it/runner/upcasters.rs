//! Upcasters that belong to the event type.
use super::harness::{SENT_AT, TOPIC, World, from_beginning};
use crate::upcasters::{BoxEvent, filled, old_stream};
use foldstream::{
    SourceUri, StreamId, Upcast, Upcasters, Version,
    adapter::to_message,
    ports::{EventStore, MessageBus, ReadFrom},
    runner::{BuildError, EventContext, HandlerResult, Listener},
};
use futures::TryStreamExt;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<BoxEvent>>>);
impl Listener for Seen {
    const NAME: &'static str = "seen";
    type Events = BoxEvent;
    async fn handle(&self, event: &BoxEvent, _: &EventContext) -> HandlerResult {
        self.0.lock().unwrap().push(event.clone());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_gets_events_that_the_upcasters_of_their_type_have_lifted() {
    let world = World::new(1);
    let stream = StreamId::new("box", "ann").unwrap();
    let first = ReadFrom::Event(Version::new(1));
    let commits: Vec<_> = (old_stream().await.read(&stream, first, None))
        .try_collect()
        .await
        .unwrap();
    for event in commits.iter().flat_map(|commit| commit.recorded()) {
        let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), SENT_AT);
        world.bus.publish(&message).await.unwrap();
    }
    let seen = Seen::default();
    let report = world.catch_up(seen.clone(), from_beginning()).await;
    report.into_result().unwrap();
    assert_eq!(*seen.0.lock().unwrap(), [filled(1), filled(7)]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_a_type_lifts_itself_cannot_be_given_to_a_runner() {
    let world = World::new(1);
    let build = |aggregate| {
        let given = Upcasters::new().with(aggregate, "Viewed", 4, |_| Ok(Upcast::Retired));
        let builder = world.builder().listener(Seen::default());
        builder.with_upcasters(given).build()
    };
    let error = build("box").unwrap_err();
    assert!(matches!(error, BuildError::Upcasters(_)), "{error:?}");
    build("lid").unwrap();
}
