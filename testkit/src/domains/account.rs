//! A bank account that is opened, used, and closed when it is empty.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};

id!(
    /// The identity of an account.
    pub AccountId
);

/// The events of an [`Account`].
///
/// Amounts are in the smallest unit of the currency, such as cents.
#[derive(Clone, Debug, PartialEq, Eq, DomainEvent)]
#[event(aggregate = "account")]
pub enum AccountEvent {
    /// The account was opened for its owner.
    AccountOpened {
        /// The name of the owner.
        owner: String,
    },
    /// Money was paid into the account.
    MoneyDeposited {
        /// The amount that was paid in, at least 1.
        amount: u64,
    },
    /// Money was taken out of the account.
    MoneyWithdrawn {
        /// The amount that was taken out, at least 1.
        amount: u64,
    },
    /// The account was closed forever.
    AccountClosed,
}

/// The commands that an account's owner gives.
///
/// # Example
/// ```
/// use foldstream_testkit::{
///     Scenario,
///     domains::account::{Account, AccountCommand, AccountError, AccountEvent},
/// };
///
/// Scenario::<Account>::given([
///     AccountEvent::AccountOpened { owner: "Ada".into() },
///     AccountEvent::MoneyDeposited { amount: 5 },
/// ])
/// .when(AccountCommand::Withdraw { amount: 8 })
/// .then_rejected(AccountError::InsufficientFunds { balance: 5 });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountCommand {
    /// Opens the account for its owner.
    Open {
        /// The name of the owner.
        owner: String,
    },
    /// Pays money into the account.
    Deposit {
        /// The amount to pay in; 0 is refused.
        amount: u64,
    },
    /// Takes money out of the account.
    Withdraw {
        /// The amount to take out; 0 is refused.
        amount: u64,
    },
    /// Closes the account forever. Closing it again changes nothing and is not refused.
    Close,
}

/// The refusals of an [`Account`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The account was never opened, or it is closed.
    #[error("the account is not open")]
    NotOpen,
    /// The account was already opened. A closed account cannot be opened again.
    #[error("the account was opened before")]
    OpenedBefore,
    /// The amount of the command is zero.
    #[error("an amount is at least 1")]
    NoAmount,
    /// The amount to withdraw is higher than the balance.
    #[error("the balance is {balance}")]
    InsufficientFunds {
        /// The balance of the account.
        balance: u64,
    },
    /// The deposit would raise the balance above [`Account::MAX_BALANCE`].
    #[error("a balance is at most {max}", max = Account::MAX_BALANCE)]
    TooMuch,
    /// The account to close still holds money.
    #[error("the balance is {balance}, not zero")]
    NotEmpty {
        /// The balance of the account.
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

/// The state of a bank account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    phase: Phase,
    owner: String,
    balance: u64,
}

impl Account {
    /// The highest balance that an account may have. Chosen so that sums cannot overflow.
    pub const MAX_BALANCE: u64 = 1_000_000_000_000;

    /// Returns true if the account is open.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }
    /// Returns the name of the owner, which is empty before the account is opened.
    pub fn owner(&self) -> &str {
        &self.owner
    }
    /// Returns the balance of the account.
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
