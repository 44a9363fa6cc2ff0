//! The account that the tests use as their aggregate.
use foldstream::{
    Aggregate, BoxError, Context, Decide, Decision, DomainEvent, Snapshot, StreamId, id,
};
use serde::{Deserialize, Serialize};

id!(pub(crate) AccountId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub(crate) enum AccountEvent {
    Deposited { amount: u64 },
    Withdrawn { amount: u64 },
}

#[derive(Clone, Debug)]
pub(crate) enum AccountCommand {
    Deposit {
        amount: u64,
    },
    Withdraw {
        amount: u64,
    },
    /// Makes this number of deposits of 1 in one commit.
    DepositOnes {
        times: usize,
    },
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("insufficient funds")]
pub(crate) struct InsufficientFunds;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) balance: u64,
    pub(crate) events: u64,
}

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        self.events += 1;
        match event {
            AccountEvent::Deposited { amount } => self.balance += amount,
            AccountEvent::Withdrawn { amount } => self.balance -= amount,
        }
    }
}

impl Decide<AccountCommand> for Account {
    type Error = InsufficientFunds;
    fn decide(&self, command: &AccountCommand, _: &Context) -> Decision<Self, InsufficientFunds> {
        match *command {
            AccountCommand::Deposit { amount: 0 } => Ok(vec![]),
            AccountCommand::Deposit { amount } => Ok(vec![AccountEvent::Deposited { amount }]),
            AccountCommand::Withdraw { amount } if amount > self.balance => Err(InsufficientFunds),
            AccountCommand::Withdraw { amount } => Ok(vec![AccountEvent::Withdrawn { amount }]),
            AccountCommand::DepositOnes { times } => {
                Ok(vec![AccountEvent::Deposited { amount: 1 }; times])
            }
        }
    }
}

impl Snapshot for Account {
    const STATE_VERSION: u32 = 1;
}

pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("account", id).unwrap()
}

/// Creates the error of an answer that never came.
pub(crate) fn no_answer() -> BoxError {
    "no answer".into()
}
