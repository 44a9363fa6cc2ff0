//! Transactions: the state that they read and make, and their retries until they end.
use super::*;
use foldstream::{Committed, Transaction, TransactionExecuted, adapter::observed_head};
use foldstream_testkit::length;

const MS: Duration = Duration::from_millis(1);

fn bob() -> AccountId {
    AccountId::from("bob")
}
/// Creates accounts of which the first has a balance.
async fn with_balance(amount: u64) -> (Arc<InMemoryEventStore>, Repository<Account>) {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    accounts.execute(&ann(), Deposit { amount }).await.unwrap();
    (store, accounts)
}
async fn balances(accounts: &Repository<Account>) -> (u64, u64) {
    let of = async |id| accounts.load(&id).await.unwrap().state().balance;
    (of(ann()).await, of(bob()).await)
}

#[tokio::test]
async fn a_command_returns_the_state_before_and_after_it_and_its_events() {
    let (store, accounts) = with_balance(100).await;
    let tx = Transaction::new(store);
    let done: TransactionExecuted<Account> = tx
        .execute(&accounts, &ann(), Withdraw { amount: 40 })
        .await
        .unwrap();
    assert_eq!((done.before().balance, done.after().balance), (100, 60));
    assert_eq!(done.events(), [AccountEvent::Withdrawn { amount: 40 }]);
    assert_eq!(done.version().get(), 2);
    let nothing = tx
        .execute(&accounts, &bob(), Deposit { amount: 0 })
        .await
        .unwrap();
    assert_eq!(
        (nothing.before(), nothing.events().len()),
        (nothing.after(), 0)
    );
    assert_eq!(balances(&accounts).await, (100, 0), "nothing is stored yet");
    assert_eq!(tx.commit().await.unwrap().len(), 1);
    assert_eq!(balances(&accounts).await, (60, 0));
}

#[tokio::test]
async fn a_later_command_on_a_stream_goes_on_from_there_and_all_become_one_commit() {
    let (store, accounts) = with_balance(100).await;
    let tx = Transaction::new(store.clone());
    let read = tx.load(&accounts, &ann()).await.unwrap();
    assert_eq!((read.state().balance, read.version().get()), (100, 1));
    // The transaction does not see commits made since its start, and meets a conflict at the end.
    let first = tx.execute(&accounts, &ann(), Withdraw { amount: 70 }).await;
    assert_eq!(first.unwrap().after().balance, 30);
    let refused = tx.execute(&accounts, &ann(), Withdraw { amount: 70 }).await;
    assert!(
        matches!(refused, Err(ExecuteError::Rejected(_))),
        "{refused:?}"
    );
    let last = tx
        .execute(&accounts, &ann(), DepositOnes { times: 2 })
        .await
        .unwrap();
    assert_eq!((last.before().balance, last.after().balance), (30, 32));
    assert_eq!(last.version().get(), 4);
    let read = tx.load(&accounts, &ann()).await.unwrap();
    assert_eq!((read.state().balance, read.version().get()), (32, 4));
    let heads = tx.commit().await.unwrap();
    assert_eq!(heads[0].version().get(), 4);
    let stored = commits(&store).await;
    assert_eq!((stored.len(), stored[1].events.len()), (2, 3));
    assert_eq!(heads[0], stored[1].head());
    assert_eq!(balances(&accounts).await, (32, 0));
}

#[tokio::test]
async fn what_was_loaded_must_not_move_until_the_commit() {
    for is_written in [true, false] {
        let (store, accounts) = with_balance(100).await;
        let tx = Transaction::new(store);
        tx.load(&accounts, &ann()).await.unwrap();
        if is_written {
            tx.execute(&accounts, &bob(), Deposit { amount: 1 })
                .await
                .unwrap();
        }
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        // Also if nothing is written, the heads are read again.
        let conflict = tx.commit().await;
        let Err(AppendError::Conflict(conflict)) = conflict else {
            panic!("{conflict:?}")
        };
        assert_eq!(conflict.stream, stream("ann"));
        assert_eq!(balances(&accounts).await, (101, 0));
    }
}

#[tokio::test]
async fn a_transaction_without_events_is_checked_and_stores_nothing() {
    let (store, accounts) = with_balance(100).await;
    let calls = Faults::none();
    let through = calls.event_store(store.clone());
    let read = Repository::<Account>::new(through.clone());
    let tx = Transaction::new(through);
    tx.execute(&read, &bob(), Deposit { amount: 0 })
        .await
        .unwrap();
    tx.load(&read, &ann()).await.unwrap();
    let before = calls.calls(Op::Read);
    assert_eq!(tx.commit().await.unwrap(), []);
    assert_eq!(calls.calls(Op::Read) - before, 2, "every head again");
    // A version alone does not identify the history.
    let forked = observed_head(
        stream("ann"),
        Version::new(1),
        CommitId::random(),
        Timestamp::now(),
    );
    let tx = Transaction::new(store);
    tx.require_unchanged(&forked);
    assert!(matches!(tx.commit().await, Err(AppendError::Conflict(_))));
    assert_eq!(balances(&accounts).await, (100, 0));
}

#[tokio::test]
async fn a_head_that_was_read_elsewhere_and_the_transactions_own_are_one_check_or_a_conflict() {
    let (store, accounts) = with_balance(100).await;
    let elsewhere = accounts.load(&ann()).await.unwrap();
    let transfer = async || {
        let tx = Transaction::new(store.clone());
        tx.require_unchanged(elsewhere.head());
        tx.execute(&accounts, &ann(), Withdraw { amount: 1 })
            .await
            .unwrap();
        tx.commit().await
    };
    assert_eq!(transfer().await.unwrap().len(), 1);
    assert!(matches!(transfer().await, Err(AppendError::Conflict(_))));
}

#[tokio::test]
async fn commands_on_one_stream_have_one_metadata() {
    let (store, accounts) = with_balance(100).await;
    let tx = Transaction::new(store.clone());
    let with = async |actor: Option<&str>| {
        let metadata = actor.map_or_else(Metadata::new, |a| Metadata::new().with_actor(a));
        let one = Withdraw { amount: 1 };
        tx.execute_with(&accounts, &ann(), one, metadata).await
    };
    with(Some("ann")).await.unwrap();
    with(Some("ann")).await.unwrap();
    with(None).await.unwrap();
    let other = with(Some("eve")).await;
    assert!(
        matches!(
            other,
            Err(ExecuteError::Store(EventStoreError::Invalid { .. }))
        ),
        "{other:?}"
    );
    tx.commit().await.unwrap();
    let stored = commits(&store).await;
    assert_eq!(stored[1].events.len(), 3);
    assert_eq!(stored[1].metadata, Metadata::new().with_actor("ann"));
}

#[tokio::test]
async fn a_transaction_that_is_over_takes_no_more_commands() {
    let (store, accounts) = with_balance(100).await;
    let tx = Transaction::new(store);
    let clone = tx.clone();
    clone
        .execute(&accounts, &ann(), Withdraw { amount: 1 })
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let late = clone
        .execute(&accounts, &bob(), Deposit { amount: 1 })
        .await;
    assert!(matches!(
        late,
        Err(ExecuteError::Store(EventStoreError::Invalid { .. }))
    ));
    assert!(clone.load(&accounts, &bob()).await.is_err());
    assert!(clone.commit().await.is_err());
    assert_eq!(balances(&accounts).await, (99, 0));
}

/// Transfers money between two accounts.
async fn transfer(
    store: &(impl EventStore + Clone),
    accounts: &Repository<Account>,
    amount: u64,
) -> Result<Committed<u64>, ExecuteError<InsufficientFunds>> {
    Transaction::run(store, ConflictRetry::default(), |tx| {
        let accounts = accounts.clone();
        async move {
            let taken = tx.execute(&accounts, &ann(), Withdraw { amount }).await?;
            tx.execute(&accounts, &bob(), Deposit { amount }).await?;
            Ok(taken.after().balance)
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn many_transactions_on_the_same_streams_all_come_to_an_end() {
    let faults = Faults::seeded(3).with(Fault::Delay(2 * MS).anywhere().jittered());
    let (inner, _) = with_balance(100).await;
    let store = faults.event_store(inner.clone());
    let accounts = Repository::<Account>::new(store.clone());
    let all = (0..5).map(|_| transfer(&store, &accounts, 20));
    let mut left: Vec<u64> = futures::future::join_all(all)
        .await
        .into_iter()
        .map(|done| done.unwrap().value)
        .collect();
    left.sort_unstable();
    assert_eq!(left, [0, 20, 40, 60, 80]);
    let poor = transfer(&store, &accounts, 20).await;
    assert!(matches!(
        poor,
        Err(ExecuteError::Rejected(InsufficientFunds))
    ));
}

#[tokio::test]
async fn a_conflict_is_the_callers_where_the_policy_says_so() {
    let (store, accounts) = with_balance(100).await;
    let mut runs = 0;
    let conflict = Transaction::run(&store, ConflictRetry::never(), |tx| {
        runs += 1;
        let accounts = accounts.clone();
        async move {
            tx.load(&accounts, &ann()).await?;
            accounts
                .execute(&ann(), Deposit { amount: 1 })
                .await
                .unwrap();
            Ok::<_, AppendError>(())
        }
    })
    .await;
    assert!(matches!(conflict, Err(AppendError::Conflict(_))));
    assert_eq!(runs, 1);
}

#[tokio::test]
async fn the_handle_works_in_tasks_and_not_after_its_attempt() {
    let (store, accounts) = with_balance(100).await;
    let mut kept = None;
    let done = Transaction::run(&store, ConflictRetry::default(), |tx| {
        kept = Some(tx.clone());
        let accounts = accounts.clone();
        async move {
            let mut tasks = tokio::task::JoinSet::new();
            for id in ["ann", "bob", "ann", "bob"] {
                let (tx, accounts) = (tx.clone(), accounts.clone());
                tasks.spawn(async move {
                    let one = Deposit { amount: 1 };
                    tx.execute(&accounts, &id.into(), one).await.map(|_| ())
                });
            }
            for result in tasks.join_all().await {
                result?;
            }
            Ok::<_, ExecuteError<InsufficientFunds>>(())
        }
    })
    .await;
    assert_eq!(done.unwrap().heads.len(), 2);
    assert_eq!(balances(&accounts).await, (102, 2));
    let late = kept.unwrap().load(&accounts, &ann()).await;
    assert!(late.is_err());

    // A failed attempt stores nothing either.
    let mut kept = None;
    let failed: Result<Committed<()>, AppendError> =
        Transaction::run(&store, ConflictRetry::default(), |tx| {
            kept = Some(tx.clone());
            let no_such = StreamHead::empty(stream("ann"));
            async move {
                Err(AppendError::Conflict(
                    foldstream::adapter::version_conflict(
                        no_such.stream().clone(),
                        Version::NONE,
                        None,
                    ),
                ))
            }
        })
        .await;
    assert!(
        matches!(failed, Err(AppendError::Conflict(_))),
        "the work's own error is not repeated"
    );
    assert!(kept.unwrap().load(&accounts, &ann()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_settled() {
    for fault in [
        Fault::LoseReply.on(Op::AppendAll).first(1),
        Fault::LoseRequest.on(Op::AppendAll).first(1),
        Fault::ApplyLate(20 * MS).on(Op::AppendAll).first(1),
        Fault::Unavailable.on(Op::AppendAll).first(2),
        Fault::Throttled(None).on(Op::AppendAll).first(2),
    ] {
        let (inner, _) = with_balance(100).await;
        let faults = Faults::none().with(fault);
        let store = faults.event_store(inner.clone());
        let accounts = Repository::<Account>::new(store.clone());
        let done = transfer(&store, &accounts, 30).await.unwrap();
        assert_eq!((done.value, done.heads.len()), (70, 2));
        tokio::time::sleep(60 * MS).await;
        assert_eq!(balances(&accounts).await, (70, 30));
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_stays_unknown_is_the_callers() {
    let (inner, _) = with_balance(100).await;
    // The first attempt may be stored, and later answers do not tell.
    let faults = Faults::none()
        .with(Fault::LoseRequest.on(Op::AppendAll).first(1))
        .with(Fault::Throttled(None).on(Op::AppendAll));
    let store = faults.event_store(inner.clone());
    let accounts = Repository::<Account>::new(store.clone());
    let unknown = transfer(&store, &accounts, 30).await;
    assert!(
        matches!(
            unknown,
            Err(ExecuteError::Store(EventStoreError::Unavailable {
                pending: Some(_),
                ..
            }))
        ),
        "{unknown:?}"
    );
}

/// Makes transfers through lost, late and repeated calls, in several processes at once.
async fn transfers(seed: u64) {
    let soon = 5 * MS;
    let faults = Faults::seeded(seed)
        .with(Fault::LoseReply.anywhere().one_in(10))
        .with(Fault::LoseRequest.anywhere().one_in(15))
        .with(Fault::ApplyLate(soon).anywhere().one_in(10).jittered())
        .with(Fault::Duplicate.anywhere().one_in(15))
        .with(Fault::Throttled(None).anywhere().one_in(30))
        .with(Fault::Delay(soon).anywhere().one_in(2).jittered());
    let (inner, plain) = with_balance(1000).await;
    let store = faults.event_store(inner.clone());
    let client = |n: u64| {
        let (store, accounts) = (store.clone(), Repository::<Account>::new(store.clone()));
        async move {
            let (mut moved, mut unknown) = (0, 0);
            for round in 0..5 {
                let amount = 1 + n + round;
                match transfer(&store, &accounts, amount).await {
                    Ok(_) => moved += amount,
                    Err(ExecuteError::Store(EventStoreError::Unavailable {
                        pending: Some(_),
                        ..
                    })) => unknown += amount,
                    Err(error) => assert!(error.is_transient(), "seed {seed}: {error:?}"),
                }
            }
            (moved, unknown)
        }
    };
    let done = futures::future::join_all((0..3).map(client)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (ann, bob) = balances(&plain).await;
    assert_eq!(ann + bob, 1000, "seed {seed}: all or nothing");
    let moved: u64 = done.iter().map(|(moved, _)| moved).sum();
    let unknown: u64 = done.iter().map(|(_, unknown)| unknown).sum();
    assert!(
        (moved..=moved + unknown).contains(&bob),
        "seed {seed}: {bob} {done:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_a_transaction_that_is_run_takes_effect_as_it_says() {
    for seed in length::seeds(300, 5_000) {
        transfers(seed).await;
    }
}
