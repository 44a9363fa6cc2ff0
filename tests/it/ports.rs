//! Ports by value and shared, and the conversions between the errors of the core.
use crate::support::{Account, AccountCommand::*, AccountEvent, AccountId, InsufficientFunds};
use async_trait::async_trait;
use foldstream::{
    AppendError, BoxError, ExecuteError, ExpectedVersion, Repository, StreamId, Transaction,
    Version,
    adapter::version_conflict,
    ports::{EventStore, Message, MessageBus, MessageBusError, Offset, PartitionId, RunOutcome},
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, InMemorySnapshotStore,
    intercept::{self, MessageBusLayer},
};
use std::{sync::Arc, time::Duration};

#[tokio::test]
async fn constructors_take_a_port_by_value_or_shared() {
    let by_value: InMemoryEventStore = Arc::into_inner(InMemoryEventStore::new()).unwrap();
    let snapshots = Arc::into_inner(InMemorySnapshotStore::new()).unwrap();
    let control = Arc::into_inner(InMemoryControlStore::new()).unwrap();
    let accounts = Repository::<Account>::new(by_value)
        .with_snapshots(snapshots, foldstream::SnapshotPolicy::every(1))
        .with_idempotency(control, Duration::from_secs(60));
    let ann = AccountId::from("ann");
    accounts.execute(&ann, Deposit { amount: 1 }).await.unwrap();
    accounts.close().await;
    assert_eq!(accounts.load(&ann).await.unwrap().state().balance, 1);
    assert_eq!(accounts.metrics().loads.with_snapshot, 1);
}

#[tokio::test]
async fn however_a_store_is_shared_its_identity_is_its_own() {
    let store = InMemoryEventStore::new();
    let erased: Arc<dyn EventStore> = store.clone();
    let twice = Arc::new(store.clone());
    let other = InMemoryEventStore::new();
    let id = store.identity();
    assert_eq!([erased.identity(), twice.identity()], [id; 2]);
    assert_ne!(other.identity(), id);

    let ann = AccountId::from("ann");
    let repositories = [
        Repository::<Account>::new(store.clone()),
        Repository::new(erased),
        Repository::new(twice),
    ];
    for accounts in repositories {
        let transaction = Transaction::new(store.clone());
        let one = || Deposit { amount: 1 };
        transaction.execute(&accounts, &ann, one()).await.unwrap();
        transaction.commit().await.unwrap();
        let elsewhere = Transaction::new(other.clone());
        let refused = elsewhere.execute(&accounts, &ann, one()).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[tokio::test]
async fn an_append_is_passed_on_from_a_function_that_executes_commands() {
    #[derive(Debug, PartialEq, thiserror::Error)]
    enum Refused {
        #[error("poor")]
        Poor(#[from] InsufficientFunds),
    }
    async fn open_and_pay(accounts: &Repository<Account>) -> Result<(), ExecuteError<Refused>> {
        let (id, gift) = (
            AccountId::from("ann"),
            AccountEvent::Deposited { amount: 1 },
        );
        accounts
            .append(&id, ExpectedVersion::NoStream, &[gift])
            .await?;
        let paid = accounts.execute(&id, Withdraw { amount: 5 }).await;
        paid.map_err(|e| e.map_rejected(Refused::from))?;
        Ok(())
    }
    let accounts = Repository::<Account>::new(InMemoryEventStore::new());
    let refused = open_and_pay(&accounts).await;
    assert!(matches!(
        refused,
        Err(ExecuteError::Rejected(Refused::Poor(InsufficientFunds)))
    ));
    let conflict = open_and_pay(&accounts).await;
    assert!(matches!(conflict, Err(ExecuteError::Conflict(_))));
}

#[test]
fn every_append_error_says_the_same_as_its_execute_error() {
    let stream = StreamId::new("account", "ann").unwrap();
    let conflict = || version_conflict(stream.clone(), Version::new(3), None);
    let append = AppendError::Conflict(conflict());
    let text = append.to_string();
    let execute = ExecuteError::<InsufficientFunds>::from(append);
    assert_eq!(execute.to_string(), text);
    assert!(execute.is_transient());
    let _: BoxError = Box::new(AppendError::Conflict(conflict()));
}

/// A bus that publishes runs as one batch, and implements nothing else.
struct OnlyRuns;
#[async_trait]
impl MessageBusLayer for OnlyRuns {
    async fn publish(
        &self,
        _: &Arc<dyn MessageBus>,
        _: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        panic!("a run is published as a run")
    }
    async fn publish_run(&self, _: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        RunOutcome::complete(run.len())
    }
}

#[tokio::test]
async fn a_shared_bus_keeps_its_own_way_to_publish_a_run() {
    let bus = intercept::message_bus(InMemoryMessageBus::new(), OnlyRuns);
    let shared: Arc<dyn MessageBus> = Arc::new(bus);
    let run = [Message::new("t", foldstream::Timestamp::now())];
    let outcome = shared.publish_run(&run).await;
    assert_eq!(outcome.durable, 1);
}
