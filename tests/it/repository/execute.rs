//! Deciding and appending: time, ids, conflicts, and states that are forgotten.
use super::*;
use crate::support::stream;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, IdSource, Transaction,
    ports::{ControlStore, RowKey},
};
use foldstream_testkit::{InMemoryControlStore, SeededIds};
use std::sync::Mutex;

/// Records what a decision sees.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "seen")]
enum Seen {
    At { micros: i64, version: u64 },
}
#[derive(Clone, Default)]
struct Witness;
impl Aggregate for Witness {
    type Id = AccountId;
    type Event = Seen;
    fn evolve(&mut self, _: &Seen) {}
}
impl Decide<()> for Witness {
    type Error = std::convert::Infallible;
    fn decide(&self, (): &(), ctx: &Context) -> Decision<Self, Self::Error> {
        Ok(vec![Seen::At {
            micros: ctx.now().as_micros(),
            version: ctx.version().get(),
        }])
    }
}

#[tokio::test]
async fn a_decision_sees_the_time_of_its_commit_which_is_never_below_the_last_ones() {
    for cache in [0, 10] {
        let clock = ManualClock::at(Timestamp::from_micros(2_000));
        let witnesses = Repository::<Witness>::new(InMemoryEventStore::new())
            .with_clock(clock.clone())
            .with_cache(cache);
        let mut seen = Vec::new();
        for now in [2_000, 1_000, 3_000] {
            clock.set(Timestamp::from_micros(now));
            witnesses.execute(&ann(), ()).await.unwrap();
        }
        let history: Vec<_> = witnesses.history(&ann()).try_collect().await.unwrap();
        for recorded in &history {
            let Seen::At { micros, version } = recorded.event;
            assert_eq!(micros, recorded.header.recorded_at.as_micros());
            seen.push((version, micros));
        }
        assert_eq!(seen, [(0, 2_000), (1, 2_000), (2, 3_000)]);
    }
}

#[tokio::test]
async fn a_fact_from_before_1970_keeps_its_time() {
    for text in [
        "1955-11-05T06:15:00Z",
        "0000-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z",
    ] {
        let at: Timestamp = text.parse().unwrap();
        let store = InMemoryEventStore::new();
        let clock = ManualClock::at(at);
        let witnesses = Repository::<Witness>::new(store.clone()).with_clock(clock.clone());
        let done = witnesses.execute(&ann(), ()).await.unwrap();
        assert_eq!(done.head().recorded_at(), at, "a command");
        let sees_it = Seen::At {
            micros: at.as_micros(),
            version: 0,
        };
        assert_eq!(done.events(), std::slice::from_ref(&sees_it));

        let (bob, cid) = (AccountId::from("bob"), AccountId::from("cid"));
        let none = ExpectedVersion::NoStream;
        let imported = witnesses.append(&bob, none, &[sees_it]).await.unwrap();
        assert_eq!(imported.recorded_at(), at, "an import");

        let transaction = Transaction::new(store);
        transaction.execute(&witnesses, &cid, ()).await.unwrap();
        transaction.commit().await.unwrap();
        let loaded = witnesses.load(&cid).await.unwrap();
        assert_eq!(loaded.head().recorded_at(), at, "a transaction");

        clock.set(Timestamp::MIN);
        let next = witnesses.execute(&ann(), ()).await.unwrap();
        assert_eq!(next.head().recorded_at(), at, "the second commit");
    }
}

/// Records the ids of all appends. Another writer deposits right before the first ones.
#[derive(Clone, Debug)]
struct Noted {
    ids: Arc<Mutex<Vec<CommitId>>>,
    others: Arc<AtomicU32>,
    reads: Arc<AtomicU32>,
}
impl Noted {
    fn overtaken(times: u32) -> Self {
        Self {
            ids: Arc::default(),
            others: Arc::new(times.into()),
            reads: Arc::default(),
        }
    }
    fn ids(&self) -> Vec<CommitId> {
        self.ids.lock().unwrap().clone()
    }
}
#[async_trait]
impl EventStoreLayer for Noted {
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Ok(read.pass(inner))
    }
    async fn append(
        &self,
        inner: &Arc<dyn EventStore>,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        self.ids.lock().unwrap().push(append.commit_id);
        let left = |n: u32| n.checked_sub(1);
        let overtaken = self
            .others
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        if overtaken.is_ok() {
            let other = [json("Deposited", 1, r#"{"amount":1000}"#)];
            let id = CommitId::random();
            let other = Append::after(append.head.clone(), id, Timestamp::now(), other);
            // If the head is already before the tail, no other writer is needed for a conflict.
            let _ = inner.append(&other).await?;
        }
        inner.append(append).await
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_conflict_what_is_new_is_read_and_decided_on_under_a_new_commit_id() {
    let noted = Noted::overtaken(2);
    let (store, accounts) = with_layer(noted.clone());
    let done = accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (2001, 3));
    let ids = noted.ids();
    assert_eq!(ids.len(), 3);
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    assert_eq!(commits(&store).await[2].id, ids[2]);
    // One load, and one read for each conflict.
    assert_eq!(noted.reads.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn facts_for_any_version_are_appended_after_what_is_new_and_others_meet_the_conflict() {
    let noted = Noted::overtaken(1);
    let (store, accounts) = with_layer(noted.clone());
    let one = [AccountEvent::Deposited { amount: 1 }];
    let any = accounts.append(&ann(), ExpectedVersion::Any, &one).await;
    assert_eq!(any.unwrap().version().get(), 2);

    for expected in [
        ExpectedVersion::Head(commits(&store).await[1].head()),
        ExpectedVersion::Number(Version::new(3)),
    ] {
        noted.others.store(1, Ordering::SeqCst);
        let overtaken = accounts.append(&ann(), expected, &one).await;
        assert!(
            matches!(overtaken, Err(AppendError::Conflict(_))),
            "{overtaken:?}"
        );
    }
}

#[tokio::test]
async fn number_0_is_no_stream() {
    let accounts = accounts(&InMemoryEventStore::new());
    let one = [AccountEvent::Deposited { amount: 1 }];
    let first = accounts.append(&ann(), Version::NONE, &one).await.unwrap();
    assert_eq!(first.version().get(), 1);
    let second = accounts.append(&ann(), Version::NONE, &one).await;
    assert!(matches!(second, Err(AppendError::Conflict(_))));
}

/// Loses the answers to the next appends, which are applied.
#[derive(Clone, Debug, Default)]
struct Unanswered(Arc<AtomicU32>);
#[async_trait]
impl EventStoreLayer for Unanswered {
    async fn append(
        &self,
        inner: &Arc<dyn EventStore>,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        let outcome = inner.append(append).await?;
        let left = |n: u32| n.checked_sub(1);
        let lost = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        if lost.is_err() {
            return Ok(outcome);
        }
        Err(EventStoreError::Unavailable {
            pending: Some(PendingAppend::new(AppendAll::new(vec![append.clone()]))),
            source: no_answer(),
        })
    }
}

#[tokio::test]
async fn after_an_unknown_outcome_the_next_command_loads_what_is_stored() {
    let unanswered = Unanswered::default();
    let (_, accounts) = with_layer(unanswered.clone());
    // Without retries, a state that was not forgotten would lead to a conflict.
    let accounts = accounts
        .with_cache(10)
        .with_conflict_retry(ConflictRetry::never());
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    unanswered.0.store(1, Ordering::SeqCst);
    let unknown = accounts.execute(&ann(), Deposit { amount: 10 }).await;
    assert!(matches!(
        unknown,
        Err(ExecuteError::Store(EventStoreError::Unavailable { .. }))
    ));
    let done = accounts
        .execute(&ann(), Deposit { amount: 100 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (111, 3));
}

const RETENTION: Duration = Duration::from_secs(3600);

fn key() -> RowKey {
    let stream = stream("ann");
    RowKey::new(
        format!("cmd/{}", stream.shard(64)),
        format!("{stream}\u{1f}p"),
    )
}
fn payment() -> Metadata {
    Metadata::new().with_command_id("p")
}

#[tokio::test]
async fn a_mark_names_the_slot_of_the_command_and_ends_after_the_retention() {
    let clock = ManualClock::at(Timestamp::from_micros(5));
    let control = InMemoryControlStore::with_clock(clock.clone());
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store)
        .with_clock(clock.clone())
        .with_idempotency(control.clone(), RETENTION);
    accounts
        .execute(&ann(), DepositOnes { times: 3 })
        .await
        .unwrap();
    let pay = async || {
        accounts
            .execute_with(&ann(), Deposit { amount: 1 }, payment())
            .await
            .unwrap()
    };
    assert!(!pay().await.is_repeat());
    let row = control.get(&key()).await.unwrap().unwrap();
    let mark: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
    let nonce = mark["n"].as_u64().unwrap();
    assert_eq!(mark, serde_json::json!({ "v": 4, "n": nonce }));
    // Expiry is kept in whole seconds, rounded up.
    let second = Timestamp::from_micros(1_000_000);
    assert_eq!(row.expires_at, Some(second.plus(RETENTION)));
    // The id of the commit survives a new decision.
    let id = CommitId::of_command(&stream("ann"), &"p".into(), nonce);
    assert_eq!(commits(&store).await[1].id, id);

    clock.advance(RETENTION - Duration::from_micros(1));
    assert!(pay().await.is_repeat());
    clock.advance(Duration::from_secs(1));
    assert!(
        !pay().await.is_repeat(),
        "who repeats later was told to keep marks for longer"
    );
}

#[tokio::test]
async fn marks_are_written_under_ids_of_the_repository_whenever_they_are_set() {
    let revision_of = async |set_ids_last: bool| {
        let (control, ids) = (InMemoryControlStore::new(), SeededIds::new(7));
        let accounts = accounts(&InMemoryEventStore::new());
        let accounts = if set_ids_last {
            accounts
                .with_idempotency(control.clone(), RETENTION)
                .with_ids(ids)
        } else {
            accounts
                .with_ids(ids)
                .with_idempotency(control.clone(), RETENTION)
        };
        accounts
            .execute_with(&ann(), Deposit { amount: 1 }, payment())
            .await
            .unwrap();
        control.get(&key()).await.unwrap().unwrap().revision
    };
    let seeded = SeededIds::new(7);
    // The seed yields the nonce first.
    let _ = seeded.commit_id();
    let first = seeded.revision();
    assert_eq!(revision_of(true).await, first);
    assert_eq!(revision_of(false).await, first);
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_command_that_is_always_overtaken_ends_with_a_typed_error() {
    let noted = Noted::overtaken(u32::MAX);
    let (_, accounts) = with_layer(noted.clone());
    let control = InMemoryControlStore::new();
    let limit = Duration::from_millis(500);
    let accounts = accounts
        .with_idempotency(control, RETENTION)
        .with_conflict_retry(ConflictRetry::default().with_max_elapsed(limit));
    let contended = accounts
        .execute_with(&ann(), Deposit { amount: 1 }, payment())
        .await;
    let Err(ExecuteError::Contended { attempts, .. }) = contended else {
        panic!("{contended:?}")
    };
    // The pauses are up to 200 ms, for half a second.
    assert!((4..50).contains(&attempts), "{attempts}");
    // The id is always the same: it is only ever sent to the slot that the mark names.
    let ids = noted.ids();
    assert_eq!(ids.len(), attempts as usize);
    assert!(ids.iter().all(|id| *id == ids[0]));
    // The command succeeds when no other writer is in the way.
    noted.others.store(0, Ordering::SeqCst);
    let done = accounts
        .execute_with(&ann(), Deposit { amount: 1 }, payment())
        .await
        .unwrap();
    let others = 1000 * u64::from(attempts);
    assert_eq!(
        (done.is_repeat(), done.state().balance),
        (false, others + 1)
    );
}

#[tokio::test]
async fn a_refused_command_leaves_the_state_it_was_decided_on_in_the_cache() {
    let noted = Noted::overtaken(0);
    let (_, accounts) = with_layer(noted.clone());
    let accounts = accounts
        .with_cache(10)
        .with_idempotency(InMemoryControlStore::new(), RETENTION);
    let reads = || noted.reads.swap(0, Ordering::SeqCst);
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    assert_eq!(reads(), 1);
    for metadata in [Metadata::new(), payment()] {
        let refused = accounts
            .execute_with(&ann(), Withdraw { amount: 5 }, metadata)
            .await;
        assert!(matches!(refused, Err(ExecuteError::Rejected(_))));
        assert_eq!(reads(), 1, "the refusal is confirmed");
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        assert_eq!(reads(), 0);
    }
}
