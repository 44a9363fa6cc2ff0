//! A listener in the real runner: side effects, retries, classes of failures.
use super::{
    failure,
    handlers::{Account, AccountEvent, AccountId, Alerts, Deposit, Withdrawn, deposited},
};
use foldstream::{
    Repository,
    runner::{
        ErrorClass, EventContext, HandlerError, HandlerResult, Listener, ProcessorPolicy,
        RunnerError, Start,
    },
};
use foldstream_testkit::{InMemoryEventStore, ListenerScenario};
use std::time::Duration;

fn alerts(listener: Alerts) -> ListenerScenario<Alerts, Vec<u64>> {
    ListenerScenario::new(listener, async |alerts: &Alerts| alerts.amounts())
}

const fn withdrawn(amount: u64) -> AccountEvent {
    Withdrawn { amount }
}

#[test]
fn effects_follow_from_what_is_delivered_and_not_from_what_lies_before_the_start() {
    alerts(Alerts::new())
        .given("ann", [deposited(10), withdrawn(1)])
        .then([])
        .when("ann", [withdrawn(2), withdrawn(3)])
        .then([2, 3])
        .when("bob", [deposited(1)])
        .then_unchanged();
    alerts(Alerts::new())
        .with_policy(ProcessorPolicy::listener().with_start(Start::Beginning))
        .given("ann", [deposited(10), withdrawn(1)])
        .then([1]);
}

#[test]
fn a_record_that_comes_again_reaches_the_listener_again() {
    alerts(Alerts::new())
        .when("ann", [withdrawn(2)])
        .when_delivered("ann", 1)
        .then([2, 2])
        .then_with(|amounts| assert_eq!(amounts.len(), 2));
}

#[test]
fn a_transient_failure_is_tried_again_and_in_the_end_halts() {
    alerts(Alerts::failing(|_, attempt| match attempt {
        1..=3 => Err(HandlerError::transient("down")),
        _ => Ok(()),
    }))
    .when("ann", [withdrawn(2)])
    .then([2])
    .then_report(|report| assert_eq!(report.retries, 3));
    alerts(Alerts::failing(|_, _| Err(HandlerError::transient("down"))))
        .when("ann", [withdrawn(2)])
        .then_failed(ErrorClass::Transient)
        // Each attempt takes 20 s. Five minutes allow two immediate retries, and ten or more after
        // a pause.
        .then_failed_with(|error| {
            assert!(
                matches!(error, RunnerError::Halted { attempts: 13.., .. }),
                "{error:?}"
            );
        })
        .then_unchanged()
        .when_restarted()
        .then_failed(ErrorClass::Transient)
        .then([]);
}

#[test]
fn each_class_of_failure_is_told_apart() {
    let retry_after = Duration::from_secs(3600);
    for class in [
        ErrorClass::Permanent,
        ErrorClass::Poison,
        ErrorClass::Fatal,
        ErrorClass::Throttled { retry_after },
    ] {
        alerts(Alerts::failing(move |_, _| {
            Err(HandlerError::new(class, "no"))
        }))
        .when("ann", [withdrawn(2)])
        .then_failed(class);
    }
    alerts(Alerts::new())
        .when_stored("account#ann", "Withdrawn", 1, r#"{"amount":"two"}"#)
        .then_failed(ErrorClass::Poison);
    alerts(Alerts::failing(|_, _| panic!("a bug")))
        .when("ann", [withdrawn(2)])
        .then_failed(ErrorClass::Permanent);
}

#[test]
fn other_effects_are_shown_with_what_led_to_them() {
    let text = failure(|| {
        let _ = alerts(Alerts::failing(|_, attempt| match attempt {
            1 => Err(HandlerError::transient("down")),
            _ => Ok(()),
        }))
        .given("ann", [deposited(10)])
        .when("ann", [withdrawn(2), withdrawn(3)])
        .then([2, 4]);
    });
    let expected = "\
the side effects are others
history:
  given           account#ann 1  Deposited { amount: 10, note: \"\" }
                  = nothing handled
  when            account#ann 2  Withdrawn { amount: 2 }
  when            account#ann 3  Withdrawn { amount: 3 }
                  = 2 handled, 2 retries
expected (-) and actual (+):
    [
        2,
  -     4,
  +     3,
    ]
";
    assert_eq!(text, expected);
}

#[test]
fn an_unexpected_failure_and_a_missing_one_fail() {
    let text = failure(|| {
        let _ = alerts(Alerts::failing(|_, _| Err(HandlerError::permanent("no"))))
            .when("ann", [withdrawn(2)])
            .then([]);
    });
    let expected = "\
the listener halted at account#ann 1 after 1 attempts: Permanent: no
history:
  when            account#ann 1  Withdrawn { amount: 2 }
                  = nothing handled; halted at account#ann 1 after 1 attempts: Permanent: no
if that is expected, call `then_failed` or `then_failed_with` right after the step
";
    assert_eq!(text, expected);
    let text = failure(|| {
        let _ = alerts(Alerts::new())
            .when("ann", [withdrawn(2)])
            .then_failed(ErrorClass::Transient);
    });
    assert!(text.starts_with("the listener did not fail\n"), "{text}");
    let text = failure(|| {
        let _ = alerts(Alerts::new())
            .when("ann", [withdrawn(2)])
            .then_unchanged();
    });
    assert!(
        text.starts_with("the side effects have changed\n"),
        "{text}"
    );
}

/// A listener that pays a bonus into another account for each withdrawal.
struct Bonus(Repository<Account>);
impl Listener for Bonus {
    const NAME: &'static str = "bonus";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        if let Withdrawn { .. } = event {
            let to = AccountId::from("bonus");
            self.0
                .execute_with(&to, Deposit(1), ctx.caused("pay"))
                .await?;
        }
        Ok(())
    }
}

#[test]
fn a_listener_may_share_the_event_store() {
    let store = InMemoryEventStore::new();
    let paid = async |bonus: &Bonus| {
        let loaded = bonus.0.load(&"bonus".into()).await.unwrap();
        loaded.state().balance
    };
    ListenerScenario::new(Bonus(Repository::new(store.clone())), paid)
        .with_event_store(store)
        .given("bonus", [deposited(5)])
        .when("ann", [withdrawn(1)])
        .then(6u64);
}
