//! Pause, resume, discard, skip, and the audit of all operations.
use super::world::{World, address, hex, reason, stream};
use foldstream::{
    CommitId, StreamHead, Timestamp, Version,
    operate::{DiscardState, Discarded, EventRef, OperateError, Operator, Reason},
    ports::{Append, EventData, EventStore, Message, MessageBus},
};
use foldstream_testkit::{
    InMemoryEventStore, InMemoryMessageBus,
    faults::{Call, Fault, Moment, Op},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

async fn discard(operator: &Operator, id: &str, version: u64) -> Discarded {
    let discarded = operator.discard(&address(id, version), &reason()).await;
    discarded.unwrap()
}
async fn state_of(operator: &Operator, id: &str, version: u64) -> Option<DiscardState> {
    operator.discard_state(&address(id, version)).await.unwrap()
}
async fn skip(operator: &Operator, event: &EventRef) -> Discarded {
    let skipped = operator.skip("billing", event, &reason()).await;
    skipped.unwrap()
}

#[tokio::test]
async fn pause_and_resume_say_how_many_they_affected_and_tell_the_instances_each_time() {
    let world = World::new(1).await;
    let operator = world.operator();
    let mut tokens = vec![world.token().await];
    for (is_pause, affected) in [(true, 1), (true, 0), (false, 1), (false, 0)] {
        let change = match is_pause {
            true => operator.pause("billing", &reason()).await,
            false => operator.resume("billing", &reason()).await,
        };
        assert_eq!(change.unwrap().affected, affected);
        let status = operator.processor("billing").await.unwrap();
        assert_eq!(status.is_paused(), is_pause);
        let pause = status.pause.unwrap();
        assert_eq!((&*pause.by, &*pause.why), ("ann", "ticket 17"));
        world.clock.advance(Duration::from_secs(1));
        let token = world.token().await;
        assert!(
            token.is_some() && !tokens.contains(&token),
            "also if it was so already"
        );
        tokens.push(token);
    }
    let row = &world.texts("op/billing").await[0];
    assert_eq!(row.0, "pause");
    let audit = world.audit().await;
    let actions: Vec<_> = audit
        .iter()
        .map(|(action, _, n)| (&**action, n.unwrap()))
        .collect();
    assert_eq!(
        actions,
        [("pause", 1), ("pause", 0), ("resume", 1), ("resume", 0)]
    );
}

#[tokio::test]
async fn every_operation_that_affects_nothing_says_0_and_is_audited() {
    let world = World::new(1).await;
    let operator = world.operator();
    let nothing = discard(&operator, "a", 3).await;
    assert_eq!((nothing.affected, nothing.state), (0, None));
    assert_eq!(state_of(&operator, "a", 3).await, None);
    assert!(world.texts("discarded/billing/1/orders/0").await.is_empty());
    assert!(world.texts("ask/billing/1/orders/0").await.is_empty());
    let expected = (
        "discard".into(),
        "billing.g1 orders[0] cart#a version 3".into(),
        Some(0),
    );
    assert_eq!(world.audit().await, [expected]);
}

#[tokio::test]
async fn a_discard_in_a_parked_stream_is_asked_for_once_and_told_each_time() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    let operator = world.operator();
    let first = discard(&operator, "a", 4).await;
    assert_eq!(
        (first.affected, first.state),
        (1, Some(DiscardState::Asked))
    );
    let token = world.token().await;
    let again = discard(&operator, "a", 4).await;
    assert_eq!(
        (again.affected, again.state),
        (0, Some(DiscardState::Asked))
    );
    assert!(token.is_some() && world.token().await != token);
    let rows = world.texts("discarded/billing/1/orders/0").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].0, "cart#a\u{1f}00000000000000000004");
    // The park row is the owner's: a discard does not touch it, and needs no request of its own.
    assert!(
        world.texts("park/billing/1/orders/0").await[0]
            .1
            .contains(r#""s":"parked""#)
    );
    assert!(world.texts("ask/billing/1/orders/0").await.is_empty());
    // Versions that do not wait cannot be discarded.
    for version in [2, 6] {
        let outside = discard(&operator, "a", version).await;
        assert_eq!((outside.affected, outside.state), (0, None), "{version}");
    }
}

#[tokio::test]
async fn the_token_is_written_after_the_rows_of_a_request() {
    let world = World::new(1).await;
    world.park("a", 3, 5, 1).await;
    world.letter(0, "b", 1, 1).await;
    let puts = Arc::<Mutex<Vec<String>>>::default();
    let seen = puts.clone();
    let faults = world.faults.clone().with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Put { row, .. }) = (moment, call) {
            let kind = row.key.partition.split('/').next().unwrap_or_default();
            let is_token = row.key.sort == "!changed";
            seen.lock()
                .unwrap()
                .push(if is_token { "token" } else { kind }.to_owned());
        }
    });
    let operator = foldstream::operate::Operator::new(faults.control_store(world.rows.clone()));
    discard(&operator, "a", 3).await;
    discard(&operator, "b", 1).await;
    operator.pause("billing", &reason()).await.unwrap();
    let event = EventRef::new(stream("c"), Version::new(1));
    skip(&operator, &event).await;
    assert_eq!(
        *puts.lock().unwrap(),
        [
            "audit",
            "discarded",
            "token",
            "audit",
            "audit",
            "discarded",
            "ask",
            "token",
            "audit",
            "audit",
            "op",
            "token",
            "audit",
            "audit",
            "discarded",
            "token",
            "audit"
        ]
    );
}

#[tokio::test]
async fn the_letter_of_a_stream_that_is_not_parked_is_discarded_by_a_request_of_its_own() {
    let world = World::new(1).await;
    world.letter(0, "a", 3, 1).await;
    let answer = discard(&world.operator(), "a", 3).await;
    assert_eq!(
        (answer.affected, answer.state),
        (1, Some(DiscardState::Asked))
    );
    let asks = world.texts("ask/billing/1/orders/0").await;
    assert!(
        asks[0]
            .1
            .starts_with(&format!(r#"{{"i":"{}","w":"discard","b":"ann""#, hex(9)))
    );
    let rows = world.texts("discarded/billing/1/orders/0").await;
    assert!(
        rows[0].1.contains(r#""s":"asked""#),
        "the audit of the discard"
    );
    // A record that cannot be read has no version to note, only its letter.
    let sort = format!("!\u{1f}{:020}", 41);
    world.letter_of("billing", 0, &sort, 1).await;
    let mut record = address("a", 1);
    record.key = foldstream::operate::LetterKey::Record(foldstream::ports::Offset::new(41));
    let operator = world.operator();
    assert_eq!(
        operator.discard(&record, &reason()).await.unwrap().affected,
        1
    );
    assert_eq!(
        operator.discard_state(&record).await.unwrap(),
        Some(DiscardState::Asked)
    );
    assert_eq!(world.texts("ask/billing/1/orders/0").await.len(), 2);
}

#[tokio::test]
async fn a_discard_is_acknowledged_by_the_owner_or_came_too_late() {
    let discarded = "discarded/billing/1/orders/0";
    for (state, from, expected) in [
        ("asked", Some(3), DiscardState::Asked),
        ("asked", Some(4), DiscardState::Handled),
        ("asked", None, DiscardState::Handled),
        ("passed", Some(3), DiscardState::Passed),
        ("passed", Some(4), DiscardState::Passed),
        ("passed", None, DiscardState::Passed),
        ("handled", None, DiscardState::Handled),
    ] {
        let world = World::new(1).await;
        let row = format!(r#"{{"r":"no","b":"ann","t":7,"s":"{state}"}}"#);
        let sort = "cart#a\u{1f}00000000000000000003";
        world.put(discarded, sort, &row).await;
        if let Some(from) = from {
            world.park("a", from, 9, 1).await;
        }
        let found = state_of(&world.operator(), "a", 3).await;
        assert_eq!(found, Some(expected), "{state} {from:?}");
        // An archived row gives the same answer.
        world.delete(discarded, sort).await;
        world.put("archive/billing/1/orders/0", sort, &row).await;
        let found = state_of(&world.operator(), "a", 3).await;
        assert_eq!(found, Some(expected), "{state} {from:?}, archived");
    }
}

#[tokio::test]
async fn an_event_that_came_again_and_failed_is_discarded_although_it_was_handled_before() {
    let world = World::new(1).await;
    world.letter(0, "a", 3, 1).await;
    let row = r#"{"r":"no","b":"ann","t":7,"s":"handled"}"#;
    let sort = "cart#a\u{1f}00000000000000000003";
    world.put("discarded/billing/1/orders/0", sort, row).await;
    let answer = discard(&world.operator(), "a", 3).await;
    assert_eq!(
        (answer.affected, answer.state),
        (1, Some(DiscardState::Asked))
    );
}

#[tokio::test]
async fn an_event_is_skipped_in_the_partition_of_its_stream_before_it_has_failed() {
    let world = World::new(12).await;
    let operator = world.operator();
    let event = EventRef::new(stream("a"), Version::new(7));
    let first = skip(&operator, &event).await;
    assert_eq!(
        (first.affected, first.state),
        (1, Some(DiscardState::Asked))
    );
    let again = skip(&operator, &event).await;
    assert_eq!(
        (again.affected, again.state),
        (0, Some(DiscardState::Asked))
    );
    // The partition in which a bus puts the records of the stream.
    let bus = InMemoryMessageBus::new();
    bus.create_topic("orders", 12);
    let message = Message::new("orders", Timestamp::now()).with_key("cart#a");
    let partition = bus.publish(&message).await.unwrap().0.partition;
    let rows = world
        .texts(&format!("discarded/billing/1/orders/{partition}"))
        .await;
    assert_eq!(rows[0].0, "cart#a\u{1f}00000000000000000007");
    assert!(
        rows[0].1.ends_with(r#""s":"asked","k":true}"#),
        "{}",
        rows[0].1
    );
    // It is not handled yet because nothing is parked: it may still come.
    let mut at = address("a", 7);
    at.partition.partition = partition;
    assert_eq!(
        operator.discard_state(&at).await.unwrap(),
        Some(DiscardState::Asked)
    );
    assert!(world.token().await.is_some());
}

#[tokio::test]
async fn a_skip_says_which_topic_it_needs_and_which_event_does_not_exist() {
    let world = World::new(2).await;
    let store = InMemoryEventStore::new();
    let event = EventRef::new(stream("a"), Version::new(2));
    let operator = world.operator().with_store(store.clone());
    let error = operator
        .skip("billing", &event, &reason())
        .await
        .unwrap_err();
    assert!(matches!(error, OperateError::NoSuchEvent { .. }), "{error}");
    let head = StreamHead::empty(stream("a"));
    let events = [
        EventData::new("Paid", 1, "{}"),
        EventData::new("Paid", 1, "{}"),
    ];
    let append = Append::after(head, CommitId::random(), Timestamp::default(), events);
    let _ = store.append(&append).await.unwrap();
    assert_eq!(skip(&operator, &event).await.affected, 1);

    world.put("topic", "refunds", r#"{"p":4}"#).await;
    let error = operator
        .skip("billing", &event, &reason())
        .await
        .unwrap_err();
    assert!(
        matches!(error, OperateError::AmbiguousTopic { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("orders, refunds"), "{error}");
    let named = event.clone().in_topic("refunds");
    assert_eq!(skip(&operator, &named).await.affected, 1);
    let error = operator
        .skip("billing", &event.clone().in_topic("x"), &reason())
        .await;
    assert!(matches!(error, Err(OperateError::UnknownTopic { .. })));
    // A processor that has begun reads the topics of its start positions only.
    world
        .put(
            "boot/billing/1",
            &format!("orders/{:020}", 0),
            r#"{"o":0,"s":true}"#,
        )
        .await;
    assert_eq!(skip(&operator, &event).await.affected, 0);
    world.delete("topic", "orders").await;
    world.delete("topic", "refunds").await;
    world
        .delete("boot/billing/1", &format!("orders/{:020}", 0))
        .await;
    let error = operator.skip("billing", &event, &reason()).await;
    assert!(matches!(error, Err(OperateError::NoPartitions { .. })));
}

#[test]
fn an_operation_needs_a_name_and_a_reason() {
    for (who, why, missing) in [("", "x", "the name"), ("ann", "  ", "the reason")] {
        let error = Reason::new(who, why).unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }
}

#[tokio::test]
async fn an_operation_never_happens_without_its_entry_in_the_audit() {
    // The process dies before and after each of its writes.
    for crash in [Fault::CrashBefore, Fault::CrashAfter] {
        for at in 1..=4 {
            let world = World::new(1).await;
            world.faults.set([crash.clone().on(Op::Put).at(at)]);
            let operator = world.operator();
            let reason = reason();
            let pause = operator.pause("billing", &reason);
            assert!(world.faults.run(pause).await.is_none(), "it died");
            let faults = world.faults.restart();
            faults.disable();
            let is_paused = !world.texts("op/billing").await.is_empty();
            let entries = world.texts("audit/2026-01-01").await;
            assert!(!is_paused || entries.len() == 1, "put {at}");
            let is_complete = entries
                .first()
                .is_some_and(|(_, row)| row.contains(r#""n":1"#));
            assert_eq!(is_complete, at == 4 && matches!(crash, Fault::CrashAfter));
        }
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_changes_nothing() {
    for at in 1..=5 {
        let world = World::new(1).await;
        world.park("a", 3, 5, 1).await;
        let operator = world.operator();
        world.faults.set([Fault::LoseReply.on(Op::Put).at(at)]);
        assert_eq!(
            operator.pause("billing", &reason()).await.unwrap().affected,
            1
        );
        world.faults.set([Fault::LoseReply.on(Op::Put).at(at)]);
        let discarded = discard(&operator, "a", 3).await;
        assert_eq!(discarded.affected, 1, "put {at}");
        let numbers: Vec<_> = world
            .audit()
            .await
            .into_iter()
            .map(|entry| entry.2)
            .collect();
        assert_eq!(numbers, [Some(1), Some(1)], "put {at}");
    }
}

#[tokio::test]
async fn an_operation_whose_number_cannot_be_noted_has_happened_all_the_same() {
    let world = World::new(1).await;
    world.faults.set([Fault::Unavailable.on(Op::Put).from(4)]);
    assert_eq!(
        world
            .operator()
            .pause("billing", &reason())
            .await
            .unwrap()
            .affected,
        1
    );
    world.faults.disable();
    assert_eq!(
        world.audit().await,
        [("pause".into(), "billing".into(), None)]
    );
}

#[tokio::test]
async fn audit_entries_are_kept_for_400_days_and_listed_by_day_the_newest_first() {
    let world = World::new(1).await;
    let operator = world.operator();
    operator.pause("billing", &reason()).await.unwrap();
    world.clock.advance(Duration::from_secs(3600));
    operator.resume("billing", &reason()).await.unwrap();
    let first_day = foldstream::Clock::now(&*world.clock);
    world.clock.advance(Duration::from_secs(24 * 3600));
    operator.pause("billing", &reason()).await.unwrap();
    let listed = operator.audit(first_day, None).await.unwrap();
    let actions: Vec<_> = listed.entries.iter().map(|entry| &*entry.action).collect();
    assert_eq!(actions, ["resume", "pause"]);
    let day = Duration::from_secs(24 * 3600);
    world.clock.advance(398 * day);
    assert_eq!(
        operator.audit(first_day, None).await.unwrap().entries.len(),
        2
    );
    world.clock.advance(2 * day);
    assert_eq!(
        operator.audit(first_day, None).await.unwrap().entries.len(),
        0
    );
}
