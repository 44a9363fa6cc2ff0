//! The laws and scenarios of the bank account.
use foldstream_testkit::{
    Scenario,
    domains::account::{
        Account,
        AccountCommand::{self, Close, Deposit, Open, Withdraw},
        AccountError,
        AccountEvent::{self, AccountClosed, AccountOpened, MoneyDeposited, MoneyWithdrawn},
    },
    laws::Laws,
};
use proptest::prelude::*;

fn open() -> AccountCommand {
    Open {
        owner: "ann".into(),
    }
}
fn opened() -> AccountEvent {
    AccountOpened {
        owner: "ann".into(),
    }
}

#[test]
fn an_account_is_opened_used_and_closed() {
    Scenario::<Account>::given_nothing()
        .when(open())
        .then([opened()])
        .then_state(|account| assert_eq!((account.owner(), account.is_open()), ("ann", true)))
        .when(Deposit { amount: 10 })
        .then([MoneyDeposited { amount: 10 }])
        .when(Withdraw { amount: 4 })
        .then([MoneyWithdrawn { amount: 4 }])
        .then_state(|account| assert_eq!(account.balance(), 6))
        .when(Close)
        .then_rejected(AccountError::NotEmpty { balance: 6 })
        .when(Withdraw { amount: 6 })
        .then([MoneyWithdrawn { amount: 6 }])
        .when(Close)
        .then([AccountClosed])
        .then_state(|account| assert!(!account.is_open()))
        .when(Close)
        .then_nothing();
}

#[test]
fn more_than_is_there_is_refused() {
    Scenario::<Account>::given([opened(), MoneyDeposited { amount: 10 }])
        .when(Withdraw { amount: 11 })
        .then_rejected(AccountError::InsufficientFunds { balance: 10 })
        .when(Withdraw { amount: 10 })
        .then([MoneyWithdrawn { amount: 10 }]);
}

#[test]
fn more_than_an_account_holds_is_refused() {
    let nearly = Account::MAX_BALANCE - 1;
    Scenario::<Account>::given([opened(), MoneyDeposited { amount: nearly }])
        .when(Deposit { amount: 2 })
        .then_rejected(AccountError::TooMuch)
        .when(Deposit { amount: u64::MAX })
        .then_rejected(AccountError::TooMuch)
        .when(Deposit { amount: 1 })
        .then([MoneyDeposited { amount: 1 }]);
}

#[test]
fn zero_is_no_amount() {
    for command in [Deposit { amount: 0 }, Withdraw { amount: 0 }] {
        Scenario::<Account>::given([opened()])
            .when(command)
            .then_rejected(AccountError::NoAmount);
    }
}

#[test]
fn only_an_open_account_is_used_and_it_is_opened_once() {
    for history in [vec![], vec![opened(), AccountClosed]] {
        for command in [
            Deposit { amount: 1 },
            Withdraw { amount: 1 },
            Deposit { amount: 0 },
        ] {
            Scenario::<Account>::given(history.clone())
                .when(command)
                .then_rejected(AccountError::NotOpen)
                .then_state(|account| assert!(!account.is_open()));
        }
    }
    Scenario::<Account>::given_nothing()
        .when(Close)
        .then_rejected(AccountError::NotOpen);
    for history in [vec![opened()], vec![opened(), AccountClosed]] {
        Scenario::<Account>::given(history)
            .when(open())
            .then_rejected(AccountError::OpenedBefore);
    }
}

#[test]
fn refusals_say_why() {
    let texts = [
        (AccountError::NotOpen, "the account is not open"),
        (AccountError::OpenedBefore, "the account was opened before"),
        (AccountError::NoAmount, "an amount is at least 1"),
        (
            AccountError::InsufficientFunds { balance: 3 },
            "the balance is 3",
        ),
        (AccountError::TooMuch, "a balance is at most 1000000000000"),
        (
            AccountError::NotEmpty { balance: 3 },
            "the balance is 3, not zero",
        ),
    ];
    for (error, text) in texts {
        assert_eq!(error.to_string(), text);
    }
}

fn booked(history: &[AccountEvent]) -> i128 {
    let change = |event: &AccountEvent| match event {
        MoneyDeposited { amount } => i128::from(*amount),
        MoneyWithdrawn { amount } => -i128::from(*amount),
        AccountOpened { .. } | AccountClosed => 0,
    };
    history.iter().map(change).sum()
}

fn rules(laws: Laws<Account>) -> Laws<Account> {
    laws.with_snapshots()
        .with_duplicates()
        .with_invariant("no more than an account holds", |account| {
            account.balance() <= Account::MAX_BALANCE
        })
        .never("overdrawn", |history| booked(history) < 0)
        .never("closed with money in it", |history| {
            history.last() == Some(&AccountClosed) && booked(history) != 0
        })
        .never("something happens after the end", |history| {
            let end = history.iter().position(|event| *event == AccountClosed);
            end.is_some_and(|end| end + 1 < history.len())
        })
        .with_rule(
            "the balance says what is accepted",
            |account: &Account, command, led_to| match command {
                Withdraw { amount } if account.is_open() && *amount > 0 => {
                    led_to.is_ok() == (*amount <= account.balance())
                }
                _ => true,
            },
        )
}

#[test]
fn the_laws_hold_on_random_commands() {
    let amount = || prop_oneof![8 => 0u64..50, 1 => Just(Account::MAX_BALANCE), 1 => any::<u64>()];
    let commands = prop_oneof![
        2 => "\\PC{0,8}".prop_map(|owner| Open { owner }),
        4 => amount().prop_map(|amount| Deposit { amount }),
        3 => amount().prop_map(|amount| Withdraw { amount }),
        1 => Just(Close),
    ];
    let checked = rules(Laws::new(commands)).check();
    assert!(checked.rejected() > 0, "{checked}");
}

#[test]
fn the_laws_hold_on_all_commands_of_small_amounts() {
    let commands = [open(), Deposit { amount: 2 }, Withdraw { amount: 1 }, Close];
    let checked = rules(Laws::exhaustive(commands, 7)).check();
    assert_eq!(checked.longest(), 7, "{checked}");
}
