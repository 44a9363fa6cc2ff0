//! The effect of each fault on an event store.
use super::{appended, commit, filled, first_commit, history, stream, versions};
use foldstream::{
    StreamHead, Version,
    ports::{
        AppendAll, AppendOutcome, EventStore, EventStoreError, PendingAppend, RefusedKind,
        ScanCursor, ScanItems, ScanScope, Segment,
    },
};
use foldstream_testkit::{
    InMemoryEventStore,
    faults::{Fault, Faults, Op, Rule},
};
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

fn faulty(rule: Rule) -> (Arc<InMemoryEventStore>, Arc<dyn EventStore>, Faults) {
    let (inner, faults) = (InMemoryEventStore::new(), Faults::script([rule]));
    let store = faults.event_store(inner.clone());
    (inner, store, faults)
}
fn pending(answer: Result<AppendOutcome, EventStoreError>) -> Option<PendingAppend> {
    match answer {
        Err(EventStoreError::Unavailable { pending, .. }) => pending,
        other => panic!("{other:?}"),
    }
}
const MANY: NonZeroU32 = NonZeroU32::new(100).unwrap();

async fn unpublished(store: &dyn EventStore) -> usize {
    let page = store.unpublished(Segment::ALL, None, MANY).await.unwrap();
    page.keys.len()
}
async fn listed(store: &dyn EventStore) -> usize {
    store.streams("cart", None).await.unwrap().streams.len()
}

#[tokio::test]
async fn a_lost_reply_is_applied_and_names_the_pending_append() {
    let (inner, store, _) = faulty(Fault::LoseReply.on(Op::Append));
    let append = first_commit("a", 2);
    let pending = pending(store.append(&append).await).unwrap();
    assert_eq!(pending.append(), &AppendAll::new(vec![append]));
    assert_eq!(versions(&*inner, "a").await, [1]);
}

#[tokio::test]
async fn a_lost_request_is_not_applied_and_names_the_pending_append() {
    let (inner, store, _) = faulty(Fault::LoseRequest.on([Op::Append, Op::AppendAll]));
    let all = AppendAll::new(vec![first_commit("a", 1), first_commit("b", 1)]);
    match store.append_all(&all).await {
        Err(EventStoreError::Unavailable {
            pending: Some(pending),
            ..
        }) => assert_eq!(pending.append(), &all),
        other => panic!("{other:?}"),
    }
    assert!(pending(store.append(&all.commits[0]).await).is_some());
    assert!(versions(&*inner, "a").await.is_empty());
}

#[tokio::test]
async fn unavailable_throttled_refused_and_errors_of_ones_own_apply_nothing() {
    let (inner, store, faults) = faulty(Fault::Unavailable.on(Op::Append));
    let append = first_commit("a", 1);
    assert_eq!(pending(store.append(&append).await), None);

    let after = Some(Duration::from_secs(3));
    faults.set([Fault::Throttled(after).on(Op::Append)]);
    let throttled = store.append(&append).await.unwrap_err();
    assert_eq!(throttled.retry_after(), after);

    faults.set([Fault::Refused(RefusedKind::Credentials).anywhere()]);
    let refused = store.append(&append).await.unwrap_err();
    assert!(
        matches!(refused, EventStoreError::Refused { kind, .. } if kind == RefusedKind::Credentials)
    );
    assert!(history(&*store, "a").await.is_err());

    let corrupt = || EventStoreError::Corrupt {
        stream: stream("a"),
        after: Version::new(7),
        reason: "says the test".into(),
    };
    faults.set([Fault::error(corrupt).on(Op::Read)]);
    let error = history(&*store, "a").await.unwrap_err();
    assert!(matches!(error, EventStoreError::Corrupt { after, .. } if after.get() == 7));
    assert!(versions(&*inner, "a").await.is_empty());
}

#[tokio::test]
#[should_panic(expected = "name the port's methods in the rule")]
async fn an_error_of_another_port_is_a_mistake_in_the_test() {
    let (_, store, _) =
        faulty(Fault::error(|| foldstream::ports::MessageBusError::Closed).anywhere());
    let _ = store.append(&first_commit("a", 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_request_arrives_though_the_caller_was_told_that_nobody_knows() {
    let (inner, store, _) = faulty(Fault::ApplyLate(Duration::from_secs(5)).on(Op::Append));
    assert!(pending(store.append(&first_commit("a", 1)).await).is_some());
    sleep(Duration::from_secs(4)).await;
    assert!(versions(&*inner, "a").await.is_empty());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(versions(&*inner, "a").await, [1]);
}

#[tokio::test(start_paused = true)]
async fn delays_add_up_and_come_on_top_of_another_fault() {
    let (_, store, faults) = faulty(Fault::Delay(Duration::from_secs(2)).on(Op::Append));
    let faults = faults
        .with(Fault::Delay(Duration::from_secs(3)).anywhere())
        .with(Fault::LoseReply.on(Op::Append));
    let started = Instant::now();
    assert!(pending(store.append(&first_commit("a", 1)).await).is_some());
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(faults.log().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_never_answers_whether_it_was_done_or_not() {
    for (fault, stored) in [(Fault::Hang, vec![]), (Fault::HangAfter, vec![1])] {
        let (inner, store, _) = faulty(fault.on(Op::Append));
        let append = first_commit("a", 1);
        let hung = timeout(Duration::from_secs(1_000), store.append(&append));
        assert!(hung.await.is_err());
        assert_eq!(versions(&*inner, "a").await, stored);
    }
}

#[tokio::test]
async fn a_request_that_is_sent_twice_is_stored_once_and_answered_as_a_repeat() {
    let (inner, store, _) = faulty(Fault::Duplicate.on(Op::Append));
    let append = first_commit("a", 1);
    let answer = store.append(&append).await.unwrap();
    assert_eq!(answer, AppendOutcome::Repeated(vec![append.to_commit()]));
    assert_eq!(versions(&*inner, "a").await, [1]);
}

#[tokio::test]
async fn a_reply_of_a_read_that_is_lost_breaks_off_and_never_looks_like_the_end() {
    let (inner, store, _) = faulty(Fault::LoseReply.on(Op::Read));
    filled(&*inner, "a", 3).await;
    for _ in 0..20 {
        assert!(history(&*store, "a").await.unwrap_err().is_transient());
    }
}

#[tokio::test]
async fn empty_pages_are_not_the_end_and_lose_nothing() {
    let (inner, store, faults) = faulty(Fault::EmptyPage.on(Op::LISTS).every(2));
    for id in ["a", "b", "c"] {
        filled(&*inner, id, 2).await;
    }
    let (mut found, mut pages, mut after) = (0, 0, None);
    loop {
        let page = store.scan(
            Segment::ALL,
            after.clone(),
            ScanScope::Tails,
            NonZeroU32::MIN,
        );
        let page = page.await.unwrap();
        let ScanItems::Tails(tails) = page.items else {
            panic!("tails")
        };
        (found, pages) = (found + tails.len(), pages + 1);
        if page.next.is_none() {
            break;
        }
        assert_ne!(page.next, after, "it goes on");
        after = page.next;
    }
    assert_eq!((found, pages), (6, 11));

    // Also at the beginning, where the adapter has not returned a cursor yet, and several in a row.
    faults.set([Fault::EmptyPage.on(Op::Streams).first(2)]);
    let first = store.streams("cart", None).await.unwrap();
    let second = store.streams("cart", first.next.clone()).await.unwrap();
    assert!(first.streams.is_empty() && second.streams.is_empty());
    assert_ne!(first.next, second.next);
    let page = store.streams("cart", second.next.clone()).await.unwrap();
    assert_eq!(page.streams.len(), 3);
    // The cursor belongs to this list and to no other.
    let other = store.streams("order", second.next).await;
    assert!(matches!(other, Err(EventStoreError::Invalid { .. })));
}

#[tokio::test]
async fn lists_lag_for_as_many_calls_and_then_list_everything() {
    let (inner, store, _) = faulty(Fault::Lag(2).on(Op::Append));
    let head = appended(&*store, &first_commit("a", 1)).await;
    appended(&*store, &commit(head, 1)).await;
    assert_eq!(versions(&*store, "a").await, [1, 2], "reads never lag");
    for (seen, calls) in [(0, 2), (2, 2)] {
        for _ in 0..calls {
            assert_eq!(unpublished(&*store).await, seen);
        }
    }
    for seen in [0, 0, 1] {
        assert_eq!(listed(&*store).await, seen);
    }
    assert_eq!(listed(&*inner).await, 1);
}

#[tokio::test]
async fn a_cleared_commit_may_still_be_listed_for_as_many_calls() {
    let (inner, store, faults) = faulty(Fault::Lag(2).on(Op::ClearUnpublished));
    appended(&*store, &first_commit("a", 1)).await;
    let keys = store
        .unpublished(Segment::ALL, None, MANY)
        .await
        .unwrap()
        .keys;
    store.clear_unpublished(&keys).await.unwrap();
    for seen in [1, 1, 0] {
        assert_eq!(unpublished(&*store).await, seen);
    }
    assert_eq!(unpublished(&*inner).await, 0);

    faults.set([Fault::Lag(u32::MAX).on([Op::Append, Op::ClearUnpublished])]);
    appended(&*store, &first_commit("b", 1)).await;
    assert_eq!((unpublished(&*store).await, listed(&*store).await), (0, 1));
    faults.disable();
    assert_eq!((unpublished(&*store).await, listed(&*store).await), (1, 2));
}

#[tokio::test]
async fn a_commit_that_is_not_stored_leaves_the_lists_alone() {
    let (_, store, faults) = faulty(Fault::Lag(u32::MAX).on(Op::Append).from(2));
    let append = first_commit("a", 1);
    appended(&*store, &append).await;
    let _ = store.append(&append).await.unwrap();
    let _ = store.append(&first_commit("a", 1)).await.unwrap();
    assert_eq!(faults.log().len(), 2);
    assert_eq!((unpublished(&*store).await, listed(&*store).await), (1, 1));
}

#[tokio::test]
async fn torn_reads_break_the_contract_as_they_say() {
    let (inner, store, faults) = faulty(Fault::Hole.on(Op::Read));
    filled(&*inner, "a", 3).await;
    for _ in 0..10 {
        let found = versions(&*store, "a").await;
        assert!(found == [1, 3] || found == [2, 3], "{found:?}");
    }
    faults.set([Fault::HoleAt(Version::new(2)).on(Op::Read)]);
    assert_eq!(versions(&*store, "a").await, [1, 3]);
    faults.set([Fault::TornCommit.on(Op::Read)]);
    appended(&*inner, &first_commit("b", 3)).await;
    let torn = history(&*store, "b").await.unwrap();
    assert_eq!(torn[0].events.len(), 2);
    let hole_at = Fault::HoleAt(Version::new(1));
    for fault in [Fault::Hole, hole_at, Fault::TornCommit, Fault::Hide(1)] {
        assert!(fault.breaks_the_contract());
    }
    assert!(!Fault::LoseReply.breaks_the_contract());
}

#[tokio::test]
async fn a_part_of_an_atomic_append_can_be_hidden_for_some_reads() {
    let (inner, store, _) = faulty(Fault::Hide(2).on(Op::AppendAll));
    let (one, two) = (first_commit("a", 1), first_commit("b", 1));
    let all = AppendAll::new(vec![one.clone(), two.clone()]);
    let _ = store.append_all(&all).await.unwrap();
    appended(&*store, &commit(two.head_after(), 1)).await;
    assert_eq!(versions(&*store, "a").await, [1]);
    for expected in [vec![2], vec![2], vec![1, 2]] {
        assert_eq!(versions(&*store, "b").await, expected);
    }
    assert_eq!(versions(&*inner, "b").await, [1, 2]);
}

#[tokio::test]
async fn without_rules_the_wrapper_is_transparent_and_counts() {
    let (inner, faults) = (InMemoryEventStore::new(), Faults::none());
    let store = faults.event_store(inner.clone());
    let head = filled(&*store, "a", 3).await;
    assert_eq!(store.capabilities(), inner.capabilities());
    assert_eq!(history(&*store, "a").await.unwrap().len(), 3);
    let stale = commit(StreamHead::empty(head.stream().clone()), 1);
    let outcome = store.append(&stale).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Conflict(_)));
    let bad = store.streams("cart", Some(ScanCursor::from_bytes(vec![1, 2, 3])));
    assert!(matches!(bad.await, Err(EventStoreError::Invalid { .. })));
    assert_eq!((faults.calls(Op::Append), faults.calls(Op::Read)), (4, 1));
    assert_eq!((faults.all_calls(), faults.log().len()), (6, 0));
}
