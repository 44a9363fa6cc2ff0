//! The stored history as a handler sees it: the same that the topic shows.
use super::harness::*;
use crate::support::stream;
use foldstream::{
    RecordedEvent,
    ports::{ControlStore, Expect, Revision, Row, RowKey},
    publisher::{Outbox, OutboxError, Publication},
};
use foldstream_testkit::intercept::async_trait;
use std::sync::Arc;

/// Keeps even versions private, and has no form for the event of version 5 if that is asked for.
#[derive(Clone, Copy, Debug)]
struct OddOnly {
    refuses_fifth: bool,
}

#[async_trait]
impl Outbox for OddOnly {
    async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError> {
        let version = event.header.version.get();
        if self.refuses_fifth && version == 5 {
            let reason = "no form".into();
            return Err(OutboxError::Refused { reason });
        }
        Ok(match version % 2 {
            0 => Publication::Private,
            _ => Publication::AsStored,
        })
    }
}

/// Creates a world whose topic has versions 1 and 7, while the records of 3 and 5 are lost.
async fn with_a_gap() -> World {
    let world = World::new(1);
    world.deposit("a").await;
    for _ in 2..7 {
        let _ = world.store("a", 1).await;
    }
    let seventh = world.store("a", 1).await;
    world.publish_after(5, &seventh).await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_filled_with_what_the_topic_should_have_shown() {
    let world = with_a_gap().await;
    let model = Arc::new(Model::default());
    let outbox = OddOnly {
        refuses_fifth: false,
    };
    let builder = world.builder().with_event_store(world.store.clone());
    let runner = builder.with_outbox(outbox).projector(model.clone());
    let report = runner.build().unwrap().run_until_caught_up().await;
    let reports = report.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 3, 5, 7]);
    assert_eq!(reports[0].filled, 2);
}

#[tokio::test(start_paused = true)]
async fn a_skipped_event_is_passed_over_in_the_event_store_too() {
    let world = with_a_gap().await;
    let id = stream("a");
    let key = RowKey::new(
        format!("skip/{}", id.shard(64)),
        format!("{id}\u{1f}{:020}", 3),
    );
    let skip = Row::new(
        key,
        r#"{"r":"a test","b":"ann","t":7}"#,
        Revision::from_u128(1),
    );
    let _ = world.control.put(&skip, Expect::Absent).await.unwrap();
    let model = Arc::new(Model::default());
    let builder = world.builder().with_event_store(world.store.clone());
    let runner = builder.projector(model.clone()).build().unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 2, 4, 5, 7]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_outbox_refuses_fails_and_what_is_before_it_is_handled() {
    let world = with_a_gap().await;
    let model = Arc::new(Model::default());
    let outbox = OddOnly {
        refuses_fifth: true,
    };
    let builder = world.builder().with_event_store(world.store.clone());
    let runner = builder.with_outbox(outbox).projector(model.clone());
    let report = runner.build().unwrap().run_until_caught_up().await;
    let reports = report.into_result().unwrap();
    assert_eq!(model.versions("a"), [1, 3]);
    assert_eq!(reports[0].parked, 1);
}
