//! The rules of leases.
use foldstream::{
    SystemIds,
    control::{Contender, Lease, Leases},
    ports::{ControlStore, RowKey},
};
use foldstream_testkit::{
    InMemoryControlStore, SeededIds,
    faults::{Fault, Faults, Op},
    length,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, advance, sleep};

const TIME: Duration = Duration::from_secs(10);

fn key() -> RowKey {
    RowKey::new("lease/test", "0")
}
fn contender(rows: &Arc<InMemoryControlStore>, owner: &str) -> Contender {
    contender_over(rows.clone(), owner)
}
fn contender_over(rows: Arc<dyn ControlStore>, owner: &str) -> Contender {
    Leases::new(rows, Arc::new(SystemIds), TIME).contender(key(), owner)
}
async fn take(contender: &mut Contender) -> Lease {
    contender.try_take().await.unwrap().expect("it is free")
}
async fn is_taken(contender: &mut Contender) -> bool {
    contender.try_take().await.unwrap().is_some()
}

#[tokio::test(start_paused = true)]
async fn a_held_lease_is_taken_over_only_after_its_revision_stood_still_for_the_lease_time() {
    let rows = InMemoryControlStore::new();
    let mut lease = take(&mut contender(&rows, "a")).await;
    let mut b = contender(&rows, "b");
    // The lease was held long before b looks. Its time starts again for b at b's first look.
    advance(TIME * 5).await;
    assert!(!is_taken(&mut b).await);
    advance(TIME - Duration::from_millis(1)).await;
    assert!(!is_taken(&mut b).await);
    // A renewal starts b's time again, even if b sees it late.
    assert!(lease.renew().await.unwrap());
    advance(TIME).await;
    assert!(!is_taken(&mut b).await);
    advance(TIME).await;
    assert_eq!(take(&mut b).await.epoch(), 2);
    assert!(!lease.renew().await.unwrap(), "taken over");
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_once_and_its_row_stays_so_epochs_only_grow() {
    let rows = InMemoryControlStore::new();
    for epoch in 1..=5 {
        let lease = take(&mut contender(&rows, "a")).await;
        assert_eq!(lease.epoch(), epoch);
        lease.release().await.unwrap();
        let row = rows.get(&key()).await.unwrap().unwrap();
        assert_eq!(row.expires_at, None);
    }
}

#[tokio::test(start_paused = true)]
async fn every_renewal_writes_a_new_revision() {
    let rows = InMemoryControlStore::new();
    let mut lease = take(&mut contender(&rows, "a")).await;
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.push(rows.get(&key()).await.unwrap().unwrap().revision);
        assert!(lease.renew().await.unwrap());
    }
    seen.sort_by_key(|revision| revision.as_u128());
    seen.dedup();
    assert_eq!(seen.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_again_under_its_old_name_waits_like_any_other() {
    let rows = InMemoryControlStore::new();
    let _before_the_crash = take(&mut contender(&rows, "a")).await;
    let mut again = contender(&rows, "a");
    assert!(!is_taken(&mut again).await);
    advance(TIME).await;
    assert_eq!(take(&mut again).await.epoch(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answers_were_lost_is_known_as_ones_own_by_the_next() {
    let rows = InMemoryControlStore::new();
    let faults = Faults::none();
    let mut a = contender_over(faults.control_store(rows.clone()), "a");
    let mut lease = take(&mut a).await;
    let until = lease.valid_until();
    // The repeat that would settle a lost answer is lost too.
    faults.set([Fault::LoseReply.on(Op::Put).first(2)]);
    advance(Duration::from_secs(1)).await;
    assert!(lease.renew().await.unwrap_err().is_transient());
    assert_eq!(lease.valid_until(), until, "not longer than is known");
    assert!(lease.renew().await.unwrap());
    assert_eq!(lease.epoch(), 1);
    assert!(lease.valid_until() > until);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_shortens_the_lease_time_waits_for_the_holders() {
    let rows = InMemoryControlStore::new();
    let _held = take(&mut contender(&rows, "old")).await;
    let short = Leases::new(rows.clone(), Arc::new(SystemIds), TIME / 5);
    let mut new = short.contender(key(), "new");
    assert!(!is_taken(&mut new).await);
    advance(TIME / 2).await;
    assert!(!is_taken(&mut new).await);
    advance(TIME).await;
    assert!(is_taken(&mut new).await);
}

#[tokio::test(start_paused = true)]
async fn of_contenders_that_wait_for_the_same_lease_one_takes_it() {
    let rows = InMemoryControlStore::new();
    drop(take(&mut contender(&rows, "crashed")).await);
    let mut all: Vec<_> = (0..10).map(|n| contender(&rows, &n.to_string())).collect();
    for one in &mut all {
        assert!(!is_taken(one).await);
    }
    advance(TIME).await;
    let taken = futures::future::join_all(all.iter_mut().map(Contender::try_take)).await;
    let taken: Vec<_> = taken.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(taken.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_holder_knows_that_its_time_is_over_before_another_takes_over_however_long_writes_take()
{
    let rows = InMemoryControlStore::new();
    let slow = Faults::script([Fault::Delay(Duration::from_secs(3)).on(Op::Put)]);
    let mut a = contender_over(slow.control_store(rows.clone()), "a");
    let started = Instant::now();
    let lease = take(&mut a).await;
    assert_eq!(lease.valid_until(), started + TIME);
    assert!(started.elapsed() >= Duration::from_secs(3));
}

/// Holders never overlap, and epochs are in the order of holding, for all seeds.
#[tokio::test(start_paused = true)]
async fn two_processes_never_hold_a_lease_at_the_same_time_whatever_is_lost_or_late() {
    let mut beliefs = 0;
    for seed in length::seeds(200, 3_000) {
        let rows = InMemoryControlStore::new();
        let faults = Faults::seeded(seed)
            .with(Fault::LoseReply.anywhere().one_in(6))
            .with(Fault::LoseRequest.anywhere().one_in(10))
            .with(Fault::Duplicate.on(Op::Put).one_in(6))
            .with(Fault::Freeze(TIME * 2).anywhere().one_in(15))
            .with(Fault::Delay(Duration::from_secs(4)).anywhere().jittered());
        // The (from, until, epoch) of which a holder was sure.
        let held = Mutex::new(Vec::<(Instant, Instant, u64)>::new());
        let processes = (0..3u64).map(|n| {
            let faults = faults.restart();
            let ids = SeededIds::new(n);
            let rows: Arc<dyn ControlStore> = faults.control_store(rows.clone());
            let held = &held;
            async move {
                let leases = Leases::new(rows, ids, TIME);
                let mut contender = leases.contender(key(), n.to_string());
                for _ in 0..30 {
                    sleep(Duration::from_millis(700 * (n + 1))).await;
                    let Ok(Some(mut lease)) = contender.try_take().await else {
                        continue;
                    };
                    let mut from = Instant::now();
                    for _ in 0..3 {
                        let now = Instant::now();
                        if now < lease.valid_until() {
                            let sure = (from, lease.valid_until(), lease.epoch());
                            held.lock().unwrap().push(sure);
                        }
                        sleep(TIME / 3).await;
                        match lease.renew().await {
                            Ok(true) => from = Instant::now(),
                            Ok(false) => break,
                            Err(error) => assert!(error.is_transient()),
                        }
                    }
                }
            }
        });
        futures::future::join_all(processes).await;
        let held = held.into_inner().unwrap();
        beliefs += held.len();
        for (i, a) in held.iter().enumerate() {
            for b in &held[..i] {
                let overlap = a.0 < b.1 && b.0 < a.1;
                assert!(a.2 == b.2 || !overlap, "{seed}: {a:?} {b:?}");
                assert!(a.2 == b.2 || (a.2 < b.2) == (a.0 < b.0), "{seed}");
            }
        }
    }
    assert!(beliefs > 10, "a process held it: {beliefs}");
}
