//! Crashes, and processes that stand still.
use super::{first_commit, row, versions};
use foldstream::ports::{ControlStore, Expect, PutOutcome};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore,
    faults::{Fault, Faults, Op},
};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

#[tokio::test(start_paused = true)]
async fn a_crash_before_a_call_leaves_it_undone_and_after_it_done() {
    for (fault, durable) in [(Fault::CrashBefore, vec![]), (Fault::CrashAfter, vec![1])] {
        let inner = InMemoryEventStore::new();
        let faults = Faults::script([fault.on(Op::Append)]);
        let store = faults.event_store(inner.clone());
        let append = first_commit("a", 1);
        assert!(faults.run(store.append(&append)).await.is_none());
        assert!(faults.is_crashed());
        assert_eq!(versions(&*inner, "a").await, durable);
        // No other call of the dead process returns either.
        let dead = timeout(Duration::from_secs(9), versions(&*store, "a"));
        assert!(dead.await.is_err());
        faults.disable();
        let dead = timeout(Duration::from_secs(9), versions(&*store, "a"));
        assert!(dead.await.is_err());
    }
}

#[tokio::test]
async fn the_next_process_goes_on_with_the_same_schedule_on_what_was_durable() {
    let inner = InMemoryControlStore::new();
    let first = Faults::script([Fault::CrashAfter.on(Op::Put).at(2)]);
    let mut alive = 0;
    let mut process = first.clone();
    for n in 0..5 {
        let rows = process.control_store(inner.clone());
        match process.run(rows.put(&row("x", n), Expect::Any)).await {
            Some(outcome) => {
                assert_eq!(outcome.unwrap(), PutOutcome::Written);
                alive += 1;
            }
            None => process = process.restart(),
        }
        let found = inner.get(&row("", 0).key).await.unwrap();
        assert_eq!(found, Some(row("x", n)));
    }
    assert_eq!((alive, first.calls(Op::Put), first.log().len()), (4, 5, 1));
    assert!(first.is_crashed() && !process.is_crashed());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_process_goes_on_as_if_nothing_had_been() {
    let inner = InMemoryControlStore::new();
    let frozen = Faults::script([Fault::Freeze(Duration::from_secs(10)).on(Op::Get).at(2)]);
    let (rows, other) = (
        frozen.control_store(inner.clone()),
        frozen.restart().control_store(inner.clone()),
    );
    let key = row("", 0).key;
    rows.get(&key).await.unwrap();
    let zombie = async {
        let started = Instant::now();
        let read = rows.get(&key).await.unwrap();
        let write = rows.put(&row("zombie", 1), Expect::Absent).await.unwrap();
        (read, write, started.elapsed().as_secs())
    };
    let takeover = async {
        sleep(Duration::from_secs(3)).await;
        let outcome = other.put(&row("new owner", 2), Expect::Absent).await;
        assert_eq!(outcome.unwrap(), PutOutcome::Written);
    };
    let ((read, write, took), ()) = tokio::join!(zombie, takeover);
    let theirs = Some(row("new owner", 2));
    assert_eq!((read, took), (theirs.clone(), 10));
    assert_eq!(write, PutOutcome::Conflict(theirs));

    frozen.freeze();
    let waits = timeout(Duration::from_secs(99), rows.get(&key));
    assert!(waits.await.is_err());
    frozen.thaw();
    rows.get(&key).await.unwrap();
    frozen.crash();
    let dead = timeout(Duration::from_secs(99), rows.get(&key));
    assert!(dead.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_before_a_crash_may_arrive_after_it() {
    let inner = InMemoryEventStore::new();
    let late = Duration::from_secs(60);
    let faults = Faults::script([
        Fault::ApplyLate(late).on(Op::Append),
        Fault::CrashBefore.on(Op::Read),
    ]);
    let store = faults.event_store(inner.clone());
    let append = first_commit("a", 1);
    let process = async {
        let _ = store.append(&append).await;
        versions(&*store, "a").await
    };
    assert!(faults.run(process).await.is_none());
    assert!(versions(&*inner, "a").await.is_empty());
    sleep(late * 2).await;
    assert_eq!(versions(&*inner, "a").await, [1]);
}
