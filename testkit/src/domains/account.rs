//! A bank account: opened, used, and closed when it is empty.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};

id!(
    /// Names an account.
    pub AccountId
);

/// The events of an account. Amounts are in the smallest unit of the currency.
#[derive(Clone, Debug, PartialEq, Eq, DomainEvent)]
#[event(aggregate = "account")]
pub enum AccountEvent {
    /// It exists.
    AccountOpened {
        /// Whose it is.
        owner: String,
    },
    /// Money came in.
    MoneyDeposited {
        /// How much.
        amount: u64,
    },
    /// Money went out.
    MoneyWithdrawn {
        /// How much.
        amount: u64,
    },
    /// It is no longer used.
    AccountClosed,
}

/// The commands of an account's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountCommand {
    /// Make the account.
    Open {
        /// Whose it is.
        owner: String,
    },
    /// Put money in.
    Deposit {
        /// How much.
        amount: u64,
    },
    /// Take money out.
    Withdraw {
        /// How much.
        amount: u64,
    },
    /// Use it no longer. Asked again, there is nothing to do.
    Close,
}

/// The refusals of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// There is no such account, or no longer.
    #[error("the account is not open")]
    NotOpen,
    /// There is one already, or there was.
    #[error("the account was opened before")]
    OpenedBefore,
    /// Zero is no amount.
    #[error("an amount is at least 1")]
    NoAmount,
    /// More than is there.
    #[error("the balance is {balance}")]
    InsufficientFunds {
        /// What is there.
        balance: u64,
    },
    /// More than [`Account::MAX_BALANCE`].
    #[error("a balance is at most {max}", max = Account::MAX_BALANCE)]
    TooMuch,
    /// Only an empty account is closed.
    #[error("the balance is {balance}, not zero")]
    NotEmpty {
        /// What is there.
        balance: u64,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    #[default]
    New,
    Open,
    Closed,
}

/// One account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    phase: Phase,
    owner: String,
    balance: u64,
}

impl Account {
    /// The most that an account holds.
    pub const MAX_BALANCE: u64 = 1_000_000_000_000;

    /// Returns true if the account can be used.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }
    /// Returns the owner; empty before the account is opened.
    pub fn owner(&self) -> &str {
        &self.owner
    }
    /// Returns the balance.
    pub const fn balance(&self) -> u64 {
        self.balance
    }

    fn deposit(&self, amount: u64) -> Decision<Self, AccountError> {
        if amount > Self::MAX_BALANCE - self.balance {
            return Err(AccountError::TooMuch);
        }
        Ok(vec![AccountEvent::MoneyDeposited { amount }])
    }

    fn withdraw(&self, amount: u64) -> Decision<Self, AccountError> {
        let balance = self.balance;
        if amount > balance {
            return Err(AccountError::InsufficientFunds { balance });
        }
        Ok(vec![AccountEvent::MoneyWithdrawn { amount }])
    }
}

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;

    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::AccountOpened { owner } => {
                self.phase = Phase::Open;
                self.owner.clone_from(owner);
            }
            AccountEvent::MoneyDeposited { amount } => self.balance += amount,
            AccountEvent::MoneyWithdrawn { amount } => self.balance -= amount,
            AccountEvent::AccountClosed => self.phase = Phase::Closed,
        }
    }
}

impl Decide<AccountCommand> for Account {
    type Error = AccountError;

    fn decide(&self, command: &AccountCommand, _: &Context) -> Decision<Self, AccountError> {
        match (command, self.phase) {
            (AccountCommand::Open { owner }, Phase::New) => {
                let owner = owner.clone();
                Ok(vec![AccountEvent::AccountOpened { owner }])
            }
            (AccountCommand::Open { .. }, _) => Err(AccountError::OpenedBefore),
            (AccountCommand::Close, Phase::Closed) => Ok(Vec::new()),
            (_, Phase::New | Phase::Closed) => Err(AccountError::NotOpen),
            (
                AccountCommand::Deposit { amount: 0 } | AccountCommand::Withdraw { amount: 0 },
                Phase::Open,
            ) => Err(AccountError::NoAmount),
            (AccountCommand::Deposit { amount }, Phase::Open) => self.deposit(*amount),
            (AccountCommand::Withdraw { amount }, Phase::Open) => self.withdraw(*amount),
            (AccountCommand::Close, Phase::Open) if self.balance > 0 => {
                let balance = self.balance;
                Err(AccountError::NotEmpty { balance })
            }
            (AccountCommand::Close, Phase::Open) => Ok(vec![AccountEvent::AccountClosed]),
        }
    }
}

impl Snapshot for Account {
    const STATE_VERSION: u32 = 1;
}
