//! Several streams at once, many commands, and past states.
use super::*;
use foldstream::{AsOf, Historical, Transaction, ports::Capabilities};
use futures::StreamExt;

fn balance_of(accounts: &Repository<Account>, id: &'static str) -> impl Future<Output = u64> {
    let accounts = accounts.clone();
    async move { accounts.load(&id.into()).await.unwrap().state().balance }
}

#[tokio::test]
async fn a_transaction_stores_all_or_nothing() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    let (ann, bob) = (ann(), AccountId::from("bob"));
    accounts
        .execute(&ann, Deposit { amount: 100 })
        .await
        .unwrap();
    let transfer = Transaction::new(store.clone());
    transfer
        .execute(&accounts, &ann, Withdraw { amount: 40 })
        .await
        .unwrap();
    transfer
        .execute(&accounts, &bob, Deposit { amount: 40 })
        .await
        .unwrap();
    let heads = transfer.commit().await.unwrap();
    assert_eq!(
        heads.iter().map(|h| h.version().get()).collect::<Vec<_>>(),
        [2, 1]
    );

    let late = Transaction::new(store.clone());
    late.execute(&accounts, &ann, Withdraw { amount: 40 })
        .await
        .unwrap();
    late.execute(&accounts, &bob, Deposit { amount: 40 })
        .await
        .unwrap();
    accounts.execute(&bob, Deposit { amount: 1 }).await.unwrap();
    assert!(matches!(late.commit().await, Err(AppendError::Conflict(_))));
    assert_eq!(
        (
            balance_of(&accounts, "ann").await,
            balance_of(&accounts, "bob").await
        ),
        (60, 41)
    );
}

#[tokio::test]
async fn what_was_only_read_or_found_done_must_not_move() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    let (ann, bob) = (ann(), AccountId::from("bob"));
    for found_done in [true, false] {
        let transaction = Transaction::new(store.clone());
        if found_done {
            transaction
                .execute(&accounts, &bob, Deposit { amount: 0 })
                .await
                .unwrap();
        } else {
            transaction.require_unchanged(accounts.load(&bob).await.unwrap().head());
        }
        transaction
            .execute(&accounts, &ann, Deposit { amount: 1 })
            .await
            .unwrap();
        accounts.execute(&bob, Deposit { amount: 1 }).await.unwrap();
        assert!(matches!(
            transaction.commit().await,
            Err(AppendError::Conflict(_))
        ));
    }
    assert_eq!(balance_of(&accounts, "ann").await, 0);
}

#[tokio::test]
async fn a_transaction_that_cannot_be_is_a_typed_error() {
    let store = InMemoryEventStore::new();
    let repository = accounts(&store);
    let invalid = |result| {
        matches!(
            result,
            Err(ExecuteError::Store(EventStoreError::Invalid { .. }))
        )
    };
    let transaction = Transaction::new(store.clone());
    let with_id = Metadata::new().with_command_id("c");
    let bob = AccountId::from("bob");
    assert!(invalid(
        transaction
            .execute_with(&repository, &bob, Deposit { amount: 1 }, with_id)
            .await
    ));
    let elsewhere = accounts(&InMemoryEventStore::new());
    assert!(invalid(
        transaction
            .execute(&elsewhere, &bob, Deposit { amount: 1 })
            .await
    ));

    let single = InMemoryEventStore::with_capabilities(Capabilities::new(1_000_000));
    let repository = Repository::<Account>::new(single.clone());
    let transaction = Transaction::new(single);
    for id in [ann(), bob] {
        transaction
            .execute(&repository, &id, Deposit { amount: 1 })
            .await
            .unwrap();
    }
    let refused = transaction.commit().await;
    assert!(matches!(
        refused,
        Err(AppendError::Store(EventStoreError::Refused {
            kind: RefusedKind::Unsupported,
            ..
        }))
    ));
}

#[tokio::test]
async fn many_commands_run_side_by_side_and_in_order_on_one_stream() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store).with_conflict_retry(ConflictRetry::never());
    let commands = (0..200u64).map(|n| {
        let id = AccountId::from((n % 4).to_string());
        // In another order the first withdrawal would be refused.
        let command = if n < 100 {
            Deposit { amount: 1 }
        } else {
            Withdraw { amount: 1 }
        };
        (id, command)
    });
    let mut results = std::pin::pin!(accounts.execute_many(commands, 16));
    let mut done = 0;
    while let Some((id, result)) = results.next().await {
        assert!(result.is_ok(), "{id}: {result:?}");
        done += 1;
    }
    assert_eq!((done, balance_of(&accounts, "0").await), (200, 0));
}

#[tokio::test]
async fn the_past_is_read_as_of_a_version_or_a_time() {
    let store = InMemoryEventStore::new();
    let clock = ManualClock::at(Timestamp::from_micros(100));
    let accounts = accounts(&store).with_clock(clock.clone());
    for (time, times) in [(100, 2), (200, 3), (300, 1)] {
        clock.set(Timestamp::from_micros(time));
        accounts
            .execute(&ann(), DepositOnes { times })
            .await
            .unwrap();
    }
    let at = async |moment| {
        let then: Historical<Account> = accounts.load_at(&ann(), moment).await.unwrap();
        let recorded_at = then.recorded_at().map(Timestamp::as_micros);
        (then.state().balance, then.version().get(), recorded_at)
    };
    let version = |n| AsOf::Version(Version::new(n));
    assert_eq!(at(version(0)).await, (0, 0, None));
    assert_eq!(at(version(2)).await, (2, 2, Some(100)));
    assert_eq!(at(version(4)).await, (4, 4, Some(200)));
    assert_eq!(at(version(99)).await, (6, 6, Some(300)));
    let time = |micros| AsOf::Time(Timestamp::from_micros(micros));
    assert_eq!(at(time(99)).await, (0, 0, None));
    assert_eq!(at(time(299)).await, (5, 5, Some(200)));
    assert_eq!(at(time(300)).await, (6, 6, Some(300)));
}

#[tokio::test]
async fn a_pending_transaction_whose_checked_stream_has_moved_is_superseded() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    let (ann, bob) = (ann(), AccountId::from("bob"));
    let read = accounts.load(&bob).await.unwrap();
    let event = json("Deposited", 1, r#"{"amount":1}"#);
    let head = StreamHead::empty(crate::support::stream("ann"));
    let append = Append::after(head, CommitId::random(), Timestamp::now(), [event]);
    let all = AppendAll::new(vec![append]).with_unchanged(vec![read.head().clone()]);
    let pending = PendingAppend::new(all);
    assert_eq!(accounts.settle(&pending).await.unwrap(), Settled::Open);
    accounts.execute(&bob, Deposit { amount: 1 }).await.unwrap();
    assert_eq!(
        accounts.settle(&pending).await.unwrap(),
        Settled::Superseded
    );
    assert_eq!(accounts.load(&ann).await.unwrap().version(), Version::NONE);
}
