//! Command ids: the content of a mark, the meaning of a refusal while an earlier attempt is
//! pending, and round-trip times.
use super::*;
use foldstream::{
    Aggregate, Clock, Context, Decide, Decision, ExecuteResult,
    ports::{ControlStore, EventStore},
};
use foldstream_testkit::{InMemoryControlStore, SeededIds, length};
use std::{collections::BTreeSet, sync::Mutex};

const DAY: Duration = Duration::from_secs(86_400);

fn named(id: &str) -> Metadata {
    Metadata::new().with_command_id(id)
}
fn once(
    store: impl EventStore,
    control: impl ControlStore,
    retention: Duration,
) -> Repository<Account> {
    Repository::new(store).with_idempotency(control, retention)
}

#[tokio::test]
async fn a_command_id_that_is_used_again_after_its_retention_gets_other_event_ids() {
    let clock = ManualClock::new();
    let control = InMemoryControlStore::with_clock(clock.clone());
    let store = InMemoryEventStore::new();
    let accounts = once(store.clone(), control, DAY).with_clock(clock.clone());
    for _ in 0..3 {
        let done = accounts
            .execute_with(&ann(), Deposit { amount: 5 }, named("monthly-fee"))
            .await;
        assert!(!done.unwrap().is_repeat());
        clock.advance(30 * DAY);
    }
    let ids: BTreeSet<_> = commits(&store).await.iter().map(|c| c.id).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn a_retention_under_a_minute_is_refused_and_nothing_is_stored() {
    for (retention, is_refused) in [(59_999, true), (60_000, false), (0, true)] {
        let store = InMemoryEventStore::new();
        let retention = Duration::from_millis(retention);
        let accounts = once(store.clone(), InMemoryControlStore::new(), retention);
        let done = accounts
            .execute_with(&ann(), Deposit { amount: 1 }, named("p"))
            .await;
        let refused = matches!(done, Err(ExecuteError::RetentionTooShort { .. }));
        assert_eq!(refused, is_refused, "{done:?}");
        assert_eq!(commits(&store).await.is_empty(), is_refused);
    }
}

#[tokio::test]
async fn a_command_id_that_was_used_for_another_command_is_an_error_where_digests_tell() {
    for cache in [0, 100] {
        let store = InMemoryEventStore::new();
        let accounts = once(store.clone(), InMemoryControlStore::new(), DAY).with_cache(cache);
        let pay = async |id: &str, amount, digest: Option<&str>| {
            let metadata = match digest {
                Some(digest) => named(id).with_command_digest(digest),
                None => named(id),
            };
            accounts
                .execute_with(&ann(), Deposit { amount }, metadata)
                .await
        };
        let is_reused = |result: ExecuteResult<Account, _>| match result {
            Err(ExecuteError::CommandIdReused { command_id, .. }) => command_id.as_str() == "p",
            _ => false,
        };
        assert!(!pay("p", 5, Some("five")).await.unwrap().is_repeat());
        assert!(pay("p", 5, Some("five")).await.unwrap().is_repeat());
        assert!(is_reused(pay("p", 9, Some("nine")).await));
        // The id counts as reused also if the command would be refused, or has nothing to do.
        assert!(is_reused(pay("p", 0, Some("zero")).await));
        let withdraw = accounts
            .execute_with(
                &ann(),
                Withdraw { amount: 100 },
                named("p").with_command_digest("w"),
            )
            .await;
        assert!(is_reused(withdraw));
        // A command without a digest cannot be told apart from another.
        assert!(pay("p", 9, None).await.unwrap().is_repeat());
        assert!(!pay("q", 1, None).await.unwrap().is_repeat());
        assert!(pay("q", 2, Some("two")).await.unwrap().is_repeat());
        let all = commits(&store).await;
        assert_eq!(all.len(), 2);
        // The digest belongs to the mark, not to the commit.
        assert_eq!(all[0].metadata, named("p"));
    }
}

/// Refuses after some time.
#[derive(Clone, Copy)]
struct Until(Timestamp);
#[derive(Clone, Debug, Default, PartialEq)]
struct Log(u64);
impl Aggregate for Log {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, _: &AccountEvent) {
        self.0 += 1;
    }
}
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("too late")]
struct TooLate;
impl Decide<Until> for Log {
    type Error = TooLate;
    fn decide(&self, command: &Until, ctx: &Context) -> Decision<Self, TooLate> {
        if ctx.now() > command.0 {
            return Err(TooLate);
        }
        Ok(vec![AccountEvent::Deposited { amount: 1 }])
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_while_an_earlier_attempt_may_still_land_says_so() {
    for cache in [0, 100] {
        let clock = ManualClock::new();
        let late = Duration::from_millis(50);
        let faults = Faults::none().with(Fault::ApplyLate(late).on(Op::Append).first(1));
        let inner = InMemoryEventStore::new();
        let log = Repository::<Log>::new(faults.event_store(inner.clone()))
            .with_cache(cache)
            .with_clock(clock.clone())
            .with_idempotency(InMemoryControlStore::with_clock(clock.clone()), DAY);
        let until = Until(clock.now());
        let send = async || log.execute_with(&ann(), until, named("c")).await;
        assert!(matches!(
            send().await,
            Err(ExecuteError::Store(EventStoreError::Unavailable { .. }))
        ));
        clock.advance(Duration::from_secs(60));
        let pending = send().await.unwrap_err();
        assert!(pending.is_transient());
        assert!(
            matches!(
                &pending,
                ExecuteError::EarlierAttemptPending { slot, rejection: Some(TooLate), .. }
                    if slot.get() == 1
            ),
            "{pending:?}"
        );
        tokio::time::sleep(late).await;
        let landed = send().await.unwrap();
        assert!(landed.is_repeat());
        assert_eq!((landed.events().len(), landed.state().0), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_once_another_commit_has_the_slot_of_the_earlier_attempt() {
    let clock = ManualClock::new();
    let faults = Faults::none().with(Fault::LoseRequest.on(Op::Append).first(1));
    let inner = InMemoryEventStore::new();
    let log = Repository::<Log>::new(faults.event_store(inner.clone()))
        .with_clock(clock.clone())
        .with_idempotency(InMemoryControlStore::with_clock(clock.clone()), DAY);
    let until = Until(clock.now());
    let send = async || log.execute_with(&ann(), until, named("c")).await;
    assert!(send().await.is_err());
    clock.advance(Duration::from_secs(60));
    for _ in 0..2 {
        let pending = send().await;
        assert!(
            matches!(pending, Err(ExecuteError::EarlierAttemptPending { .. })),
            "{pending:?}"
        );
    }
    accounts(&inner)
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    let refused = send().await;
    assert!(
        matches!(refused, Err(ExecuteError::Rejected(TooLate))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_attempt_that_left_nothing_is_pending_until_its_place_is_taken_or_its_mark_ends() {
    for is_taken in [false, true] {
        let clock = ManualClock::new();
        let faults = Faults::none().with(Fault::Throttled(None).on(Op::Append).first(1));
        let inner = InMemoryEventStore::new();
        let log = Repository::<Log>::new(faults.event_store(inner.clone()))
            .with_clock(clock.clone())
            .with_idempotency(InMemoryControlStore::with_clock(clock.clone()), DAY);
        let until = Until(clock.now());
        let send = async || log.execute_with(&ann(), until, named("c")).await;
        let throttled = send().await;
        assert!(
            matches!(&throttled, Err(ExecuteError::Store(e)) if e.is_certainly_not_applied()),
            "{throttled:?}"
        );
        clock.advance(Duration::from_secs(60));
        // Another process may have seen the mark, and may be about to append.
        let pending = send().await;
        assert!(
            matches!(pending, Err(ExecuteError::EarlierAttemptPending { .. })),
            "{pending:?}"
        );
        if is_taken {
            accounts(&inner)
                .execute(&ann(), Deposit { amount: 1 })
                .await
                .unwrap();
        } else {
            clock.advance(DAY);
        }
        let refused = send().await;
        assert!(
            matches!(refused, Err(ExecuteError::Rejected(TooLate))),
            "{refused:?}"
        );
    }
}

/// Returns the round trips of a call, when every request takes one unit of time.
async fn round_trips(call: impl Future) -> u128 {
    let started = tokio::time::Instant::now();
    call.await;
    started.elapsed().as_millis() / 10
}

#[tokio::test(start_paused = true)]
async fn a_command_with_an_id_takes_two_round_trip_times_on_a_kept_state_and_else_three() {
    let faults = Faults::none().with(Fault::Delay(Duration::from_millis(10)).anywhere());
    let (store, control) = (InMemoryEventStore::new(), InMemoryControlStore::new());
    let process = |cache| {
        once(
            faults.event_store(store.clone()),
            faults.control_store(control.clone()),
            DAY,
        )
        .with_cache(cache)
    };
    let (cold, cached) = (process(0), process(10));
    let send = async |accounts: &Repository<Account>, command, id: &str| {
        let metadata = named(id);
        round_trips(accounts.execute_with(&ann(), command, metadata)).await
    };
    let five = || Deposit { amount: 5 };
    assert_eq!(send(&cold, five(), "a").await, 3);
    assert_eq!(send(&cold, five(), "a").await, 2, "a repeat");
    assert_eq!(
        send(&cold, Withdraw { amount: 99 }, "w").await,
        2,
        "refused"
    );
    assert_eq!(send(&cached, five(), "b").await, 3, "nothing kept yet");
    assert_eq!(send(&cached, five(), "c").await, 2);
    assert_eq!(send(&cached, five(), "c").await, 2, "a repeat");
    assert_eq!(send(&cached, five(), "d").await, 2);
    let refused = send(&cached, Withdraw { amount: 99 }, "w").await;
    assert_eq!(refused, 2, "refused, and confirmed");
    assert_eq!(commits(&store).await.len(), 4);
}

/// The clocks of several processes, none of them right.
#[derive(Debug)]
struct Skewed(Mutex<fastrand::Rng>);
impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.lock().unwrap().i64(0..10))
    }
}

/// Lets clients send their commands until each is answered, through processes that lose and delay
/// calls and are dropped. Another client moves the tail.
async fn refusals(seed: u64) -> (usize, usize) {
    let soon = Duration::from_millis(3);
    let chaos = Faults::seeded(seed)
        .with(Fault::LoseRequest.anywhere().one_in(8))
        .with(Fault::LoseReply.anywhere().one_in(8))
        .with(Fault::ApplyLate(10 * soon).anywhere().one_in(6).jittered())
        .with(Fault::Duplicate.on([Op::Append, Op::Put]).one_in(20))
        .with(Fault::Delay(soon).anywhere().one_in(4).jittered());
    let inner = InMemoryEventStore::new();
    let rows = InMemoryControlStore::with_clock(ManualClock::at(Timestamp::from_micros(0)));
    let ids = SeededIds::new(seed);
    let clock = Arc::new(Skewed(Mutex::new(fastrand::Rng::with_seed(seed))));
    let process = |cache| {
        Repository::<Log>::new(chaos.event_store(inner.clone()))
            .with_ids(ids.clone())
            .with_clock(clock.clone())
            .with_idempotency(chaos.control_store(rows.clone()), DAY)
            .with_cache(cache)
    };
    let client = |client: u64| {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(31) + client);
        let processes = [process(0), process(10), process(10)];
        async move {
            let (mut stored, mut refused) = (Vec::new(), Vec::new());
            for n in 0..4 {
                let tag = format!("{client}-{n}");
                let metadata = named(&tag).with_command_digest(&tag);
                loop {
                    let log = &processes[rng.usize(..3)];
                    let id = ann();
                    let until = Until(Timestamp::from_micros(rng.i64(2..8)));
                    let sent = log.execute_with(&id, until, metadata.clone());
                    let patience = Duration::from_millis(rng.u64(1..40));
                    match tokio::time::timeout(patience, sent).await {
                        Ok(Ok(done)) => {
                            assert_eq!(done.events().len(), 1);
                            stored.push(tag);
                            break;
                        }
                        Ok(Err(ExecuteError::Rejected(_))) => {
                            refused.push(tag);
                            break;
                        }
                        Ok(Err(error)) => assert!(error.is_transient(), "seed {seed}: {error:?}"),
                        Err(_) => {}
                    }
                }
            }
            (stored, refused)
        }
    };
    let (stored, refused): (Vec<_>, Vec<_>) = futures::future::join_all((0..3).map(client))
        .await
        .into_iter()
        .unzip();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let landed: Vec<String> = (commits(&inner).await.iter())
        .map(|c| c.metadata.command_id().unwrap().to_string())
        .collect();
    let times = |tag: &String| landed.iter().filter(|l| *l == tag).count();
    let (stored, refused) = (stored.concat(), refused.concat());
    assert!(stored.iter().all(|tag| times(tag) == 1), "seed {seed}");
    assert!(refused.iter().all(|tag| times(tag) == 0), "seed {seed}");
    assert_eq!(landed.len(), stored.len(), "seed {seed}");
    (stored.len(), refused.len())
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_never_lands_and_what_is_answered_landed_once() {
    let (mut stored, mut refused) = (0, 0);
    for seed in length::seeds(300, 5_000) {
        let (s, r) = refusals(seed).await;
        (stored, refused) = (stored + s, refused + r);
    }
    assert!(stored > 0 && refused > 0, "{stored} {refused}");
}
