//! A bank account: decided without a runtime, then stored and read back.
//!
//! Run it with `cargo run --example bank_account`.
use foldstream::{
    Aggregate, BoxError, Context, Decide, Decision, DomainEvent, ExecuteError, Repository,
    Snapshot, SnapshotPolicy, Version, id,
};
use foldstream_testkit::{InMemoryEventStore, InMemorySnapshotStore};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use {AccountCommand::*, AccountEvent::*};

// The domain starts here.
id!(AccountId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
enum AccountEvent {
    Deposited { amount: u64 },
    Withdrawn { amount: u64 },
}

#[derive(Debug)]
enum AccountCommand {
    Deposit { amount: u64 },
    Withdraw { amount: u64 },
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("insufficient funds")]
struct InsufficientFunds;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    balance: u64,
}

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            Deposited { amount } => self.balance += amount,
            Withdrawn { amount } => self.balance -= amount,
        }
    }
}

impl Decide<AccountCommand> for Account {
    type Error = InsufficientFunds;
    fn decide(&self, command: &AccountCommand, _: &Context) -> Decision<Self, InsufficientFunds> {
        match *command {
            Deposit { amount } => Ok(vec![Deposited { amount }]),
            Withdraw { amount } if amount > self.balance => Err(InsufficientFunds),
            Withdraw { amount } => Ok(vec![Withdrawn { amount }]),
        }
    }
}
// The domain ends here.

impl Snapshot for Account {
    const STATE_VERSION: u32 = 1;
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let accounts = Repository::<Account>::new(InMemoryEventStore::new())
        .with_snapshots(InMemorySnapshotStore::new(), SnapshotPolicy::every(50));
    let ann = AccountId::from("ann");

    accounts.execute(&ann, Deposit { amount: 100 }).await?;
    let done = accounts.execute(&ann, Withdraw { amount: 30 }).await?;
    println!(
        "version {}: {:?} after {:?}",
        done.version(),
        done.state(),
        done.events()
    );

    match accounts.execute(&ann, Withdraw { amount: 1000 }).await {
        Err(ExecuteError::Rejected(InsufficientFunds)) => println!("refused: {InsufficientFunds}"),
        other => return Err(format!("1000 of 70 withdrawn: {other:?}").into()),
    }

    let stale = accounts
        .append(&ann, Version::new(1), &[Deposited { amount: 1 }])
        .await;
    println!(
        "a fact after version 1: {:?}",
        stale.map_err(|e| e.to_string())
    );

    let mut history = accounts.history(&ann);
    while let Some(recorded) = history.try_next().await? {
        let header = recorded.header;
        println!(
            "{} {} {:?}",
            header.version, header.event_id, recorded.event
        );
    }
    accounts.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream_testkit::Scenario;

    #[test]
    fn what_is_there_can_be_withdrawn() {
        Scenario::<Account>::given([Deposited { amount: 10 }])
            .when(Withdraw { amount: 4 })
            .then([Withdrawn { amount: 4 }])
            .then_state(|account| assert_eq!(account.balance, 6));
    }

    #[test]
    fn more_than_is_there_is_refused() {
        Scenario::<Account>::given([Deposited { amount: 10 }])
            .when(Withdraw { amount: 11 })
            .then_rejected(InsufficientFunds);
    }
}
