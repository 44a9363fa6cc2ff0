//! Discards of the past: the archive, and the audit of what a policy has discarded.
use super::super::harness::{SENT_AT, TOPIC};
use super::views::*;
use crate::support::AccountEvent;
use foldstream::{
    StreamId, Timestamp, Version,
    operate::{AuditEntry, Operator},
    ports::{Message, MessageBus},
    runner::{
        DeliveryLevel, EventContext, FailureAction, HandlerError, HandlerResult, ModelId, Position,
        Projector,
    },
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::time::Duration;

const NONE: [&str; 0] = [];

#[tokio::test(start_paused = true)]
async fn decided_discards_move_to_the_archive_once_their_events_cannot_come_again() {
    let shop = Shop::new(&[("a", 2)]);
    let policy = || policy().with_level(DeliveryLevel::Deduplicated);
    shop.deposits(&["a", "a", "a", "a"]).await;
    let running = shop.start_as(shop.views.clone(), policy());
    seconds(15).await;
    // Decided, waiting, and asked for too late.
    for version in [2, 4, 1] {
        shop.operator.discard("a", version).await;
    }
    seconds(15).await;
    assert_eq!(shop.views.of("a"), [1, 3]);
    running.stop().await;
    let running = shop.start_as(shop.views.clone(), policy());
    seconds(15).await;
    running.stop().await;
    assert_eq!(shop.operator.all("discarded").await, NONE);
    assert_eq!(shop.operator.versions("archive", "a").await, [1, 2, 4]);
    for (version, state) in [(1, "handled"), (2, "passed"), (4, "passed")] {
        let archived = shop.operator.archived("a", version).await;
        assert_eq!(archived.as_deref(), Some(state), "{version}");
    }
    // Nothing of it is handled by the next owner.
    let running = shop.start_as(shop.views.clone(), policy());
    shop.deposits(&["a"]).await;
    seconds(15).await;
    assert_eq!(shop.views.of("a"), [1, 3, 5]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_discard_whose_record_may_come_again_stays_in_force() {
    let shop = Shop::new(&[]);
    // The event has not failed: it is skipped when its record comes.
    shop.operator.ask_discard("a", 2).await;
    let never = || policy().with_commit_interval(Duration::from_secs(3_600));
    let running = shop.start_as(shop.views.clone(), never());
    seconds(5).await;
    shop.deposits(&["a", "a", "a"]).await;
    seconds(400).await;
    assert_eq!(shop.views.of("a"), [1, 3]);
    running.crash().await;
    // Nothing is committed, so that the record comes again to the next owner.
    let running = shop.start();
    seconds(10).await;
    assert_eq!(shop.views.of("a"), [1, 3, 1, 3]);
    assert_eq!(shop.operator.versions("discarded", "a").await, [2]);
    running.stop().await;
    shop.assert_committed().await;
    // Now it is.
    let running = shop.start();
    seconds(10).await;
    assert_eq!(shop.operator.all("discarded").await, NONE);
    assert_eq!(
        shop.operator.archived("a", 2).await.as_deref(),
        Some("passed")
    );
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_discard_of_a_parked_version_is_not_archived_before_the_redrive_has_passed_it() {
    let shop = Shop::new(&[("a", 2)]);
    let policy = || policy().with_level(DeliveryLevel::Deduplicated);
    shop.deposits(&["a", "a", "a", "a"]).await;
    for _ in 0..2 {
        let running = shop.start_as(shop.views.clone(), policy());
        seconds(15).await;
        shop.operator.discard("a", 3).await;
        seconds(400).await;
        running.stop().await;
    }
    assert_eq!(shop.operator.versions("discarded", "a").await, [3]);
    assert_eq!(shop.operator.all("archive").await, NONE);
    let running = shop.start_as(shop.views.clone(), policy());
    seconds(5).await;
    shop.views.fix();
    shop.operator.redrive("a").await;
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 4]);
    running.stop().await;
}

async fn audit(shop: &Shop) -> Vec<AuditEntry> {
    let operator = Operator::new(shop.world.control.clone());
    // The time of the test may pass midnight.
    let tomorrow = Timestamp::now().plus(Duration::from_secs(24 * 3_600));
    let later = operator.audit(tomorrow, None).await.unwrap().entries;
    let today = operator.audit(Timestamp::now(), None).await.unwrap();
    today.entries.into_iter().chain(later).collect()
}

#[tokio::test(start_paused = true)]
async fn a_discard_by_the_policy_is_in_the_audit_before_its_offset_passes() {
    let shop = Shop::new(&[("a", 1)]);
    shop.deposits(&["a", "b"]).await;
    let foreign = Message::new(TOPIC, SENT_AT)
        .with_key("x")
        .with_value("hello")
        .with_partition(0);
    shop.world.bus.publish(&foreign).await.unwrap();
    shop.deposits(&["b"]).await;
    let policy = policy().with_on_failure(|_| FailureAction::Discard("of a test".into()));
    let faults = Faults::none();
    let builder = shop.world.faulty_builder(&faults);
    let runner = builder.projector_with(shop.views.clone(), policy).build();
    let is_audit = |call: &Call<'_>| matches!(call, Call::Put { row, .. } if row.key.partition.starts_with("audit/"));
    faults.set([Fault::Unavailable.on(Op::Put).matching(is_audit)]);
    let running = Running::start(runner.unwrap());
    seconds(30).await;
    assert_eq!(shop.world.committed(VIEWS).await, 0);
    assert!(audit(&shop).await.is_empty());
    faults.set([]);
    seconds(30).await;
    shop.assert_at_rest().await;
    assert_eq!(shop.views.of("b"), [1, 2]);
    assert_eq!(running.stop().await.discarded, 2);
    let mut entries: Vec<_> = audit(&shop)
        .await
        .into_iter()
        .map(|entry| {
            assert_eq!(
                (&*entry.who, &*entry.action),
                ("policy of views", "discard")
            );
            assert_eq!((&*entry.why, entry.affected), ("of a test", Some(1)));
            entry.target
        })
        .collect();
    entries.sort();
    assert_eq!(
        entries,
        [
            "views GlobalEvents[0] offset 2",
            "views account#a version 1"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn discards_are_archived_without_stored_positions_once_their_records_are_committed() {
    for restarts in [false, true] {
        let shop = Shop::new(&[("a", 2)]);
        shop.deposits(&["a", "a", "a", "a"]).await;
        let mut running = shop.start();
        seconds(15).await;
        // Of the head, and of one that waits.
        for version in [2, 4] {
            shop.operator.discard("a", version).await;
        }
        seconds(15).await;
        assert_eq!(shop.views.of("a"), [1, 3]);
        if restarts {
            running.stop().await;
            running = shop.start();
            seconds(5).await;
        }
        // Of one that was handled before.
        shop.operator.discard("a", 1).await;
        seconds(400).await;
        // Only the owner that has met the record of version 1 knows that it was handled.
        let left = if restarts { vec![1] } else { vec![] };
        assert_eq!(shop.operator.versions("discarded", "a").await, left);
        for version in [2, 4] {
            let state = shop.operator.archived("a", version).await;
            assert_eq!(state.as_deref(), Some("passed"), "{version}");
        }
        shop.deposits(&["a"]).await;
        seconds(400).await;
        assert_eq!(shop.operator.all("discarded").await, NONE);
        let state = shop.operator.archived("a", 1).await;
        assert_eq!(state.as_deref(), Some("handled"));
        assert_eq!(shop.views.of("a"), [1, 3, 5]);
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_discard_in_a_parked_stream_is_not_archived_while_its_record_may_come_again() {
    let shop = Shop::new(&[("a", 2)]);
    let faults = Faults::none();
    let running = shop.start_with(&faults, shop.views.clone(), policy());
    seconds(5).await;
    faults.set([Fault::Unavailable.on(Op::Commit)]);
    shop.deposits(&["a", "a", "a", "a"]).await;
    seconds(10).await;
    shop.operator.discard("a", 2).await;
    seconds(400).await;
    assert_eq!(shop.views.of("a"), [1, 3, 4]);
    assert_eq!(shop.operator.versions("discarded", "a").await, [2]);
    running.crash().await;
    // All records come again.
    shop.views.fix();
    let running = shop.start();
    seconds(10).await;
    assert_eq!(shop.views.of("a"), [1, 3, 4, 1, 3, 4]);
    running.stop().await;
}

/// A read model that stores the position with its rows.
struct Placed(Views);

impl Projector for Placed {
    const NAME: &'static str = "views";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.0.project(event, ctx).await
    }
    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        Ok(Position::Stored {
            version: Version::new(self.0.of(stream.id()).last().copied().unwrap_or(0)),
            commit_id: None,
        })
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_discard_is_not_archived_before_the_position_of_the_read_model_passes_it() {
    let shop = Shop::new(&[("a", 2), ("a", 3)]);
    shop.deposits(&["a", "a", "a"]).await;
    let start = || {
        let policy = policy().with_level(DeliveryLevel::ExactlyOnceEffect);
        let runner = shop.builder();
        let runner = runner.projector_with(Placed(shop.views.clone()), policy);
        Running::start(runner.build().unwrap())
    };
    let running = start();
    for version in [2, 3] {
        seconds(15).await;
        shop.operator.discard("a", version).await;
    }
    seconds(400).await;
    assert_eq!(shop.operator.versions("discarded", "a").await, [2, 3]);
    running.stop().await;
    // The read model knows nothing of versions 2 and 3, and the record of 4 shows the gap.
    shop.views.fix();
    let running = start();
    seconds(5).await;
    shop.deposits(&["a"]).await;
    seconds(400).await;
    assert_eq!(shop.views.of("a"), [1, 4]);
    assert_eq!(shop.operator.all("discarded").await, NONE);
    running.stop().await;
}
