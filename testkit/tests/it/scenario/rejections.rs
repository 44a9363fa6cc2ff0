//! A rejection that the test does not assert fails the test.
use super::{
    failure,
    handlers::{Account, Deposit, InsufficientFunds, Withdraw, Withdrawn, deposited},
};
use foldstream::Timestamp;
use foldstream_testkit::{Outcome, Scenario};
use std::time::Duration;

/// Withdraws 70 from an account of 10, as by a typing error for 7.
fn rejected() -> Outcome<Account, InsufficientFunds> {
    Scenario::<Account>::given([deposited(10)]).when(Withdraw(70))
}

#[test]
fn every_call_but_a_look_at_the_rejection_fails() {
    for (call, text) in [
        ("when", failure(|| drop(rejected().when(Deposit(1))))),
        (
            "then_state",
            failure(|| drop(rejected().then_state(|_| {}))),
        ),
        (
            "then_state_is",
            failure(|| drop(rejected().then_state_is(Account { balance: 10 }))),
        ),
        (
            "at",
            failure(|| drop(rejected().at(Timestamp::from_micros(1)))),
        ),
        (
            "later",
            failure(|| drop(rejected().later(Duration::from_secs(1)))),
        ),
        (
            "into_scenario",
            failure(|| drop(rejected().into_scenario())),
        ),
        ("the end of the scenario", failure(|| drop(rejected()))),
    ] {
        assert!(
            text.starts_with(
                "the command Withdraw was rejected, and the test does not look at that"
            ),
            "{call}: {text}"
        );
    }
    for text in [
        failure(|| drop(rejected().then([Withdrawn { amount: 70 }]))),
        failure(|| drop(rejected().then_with(|_| {}))),
        failure(|| drop(rejected().then_nothing())),
    ] {
        assert!(text.starts_with("the command was rejected\n"), "{text}");
    }
}

#[test]
fn the_failure_names_the_command_its_place_the_error_and_what_to_call() {
    let line = line!() + 1;
    let text = failure(|| drop(Scenario::<Account>::given([deposited(10)]).when(Withdraw(70))));
    let expected = format!(
        "\
the command Withdraw was rejected, and the test does not look at that: if the rejection is expected, call \
`then_rejected` or `then_rejected_with` right after this `when`
when: testkit/tests/it/scenario/rejections.rs:{line}:"
    );
    assert!(text.starts_with(&expected), "{text}\n{expected}");
    let expected = "
history of account#scenario:
    1  Deposited { amount: 10, note: \"\" }
rejected: InsufficientFunds: insufficient funds
";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn a_rejection_that_was_looked_at_is_done_with() {
    rejected()
        .then_rejected(InsufficientFunds)
        .then_state(|account| assert_eq!(account.balance, 10))
        .when(Withdraw(7))
        .then([Withdrawn { amount: 7 }])
        .when(Withdraw(4))
        .then_rejected_with(|error| assert_eq!(error.to_string(), "insufficient funds"))
        .later(Duration::from_secs(1))
        .when(Deposit(1))
        .then([deposited(1)]);
    // The assertion about the first rejection does not count for the second.
    let text = failure(|| {
        drop(
            rejected()
                .then_rejected(InsufficientFunds)
                .when(Withdraw(71)),
        );
    });
    assert!(
        text.starts_with("the command Withdraw was rejected, and"),
        "{text}"
    );
}

#[test]
fn another_failure_of_the_test_is_not_hidden_by_the_rejection() {
    let text = failure(|| {
        let _outcome = rejected();
        panic!("another assertion");
    });
    assert_eq!(text, "another assertion");
}
