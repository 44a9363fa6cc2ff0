//! Differences between a scenario and production that would hide a mistake.
use super::{
    failure,
    handlers::{
        Account, AccountEvent, AccountId, Alerts, Balances, Deposit, InsufficientFunds, LoanEvent,
        Reversed, Withdraw, Withdrawn, deposited,
    },
};
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, PayloadCodecs, Timestamp, Upcasters,
    runner::{ErrorClass, HandlerError},
};
use foldstream_testkit::{ListenerScenario, PipelineScenario, ProjectorScenario, Scenario};
use std::{
    convert::Infallible,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

fn failing() -> ListenerScenario<Alerts, Vec<u64>> {
    let alerts = Alerts::failing(|_, _| Err(HandlerError::permanent("no")));
    ListenerScenario::new(alerts, async |alerts: &Alerts| alerts.amounts())
        .when("ann", [Withdrawn { amount: 1 }])
}

#[test]
fn a_halt_that_only_a_report_or_nobody_looks_at_fails() {
    for text in [
        failure(|| drop(failing())),
        failure(|| drop(failing().then_report(|report| assert_eq!(report.handled, 0)))),
        failure(|| drop(failing().when_restarted())),
        failure(|| drop(failing().given_undelivered("ann", [deposited(1)]))),
    ] {
        assert!(
            text.starts_with("the listener halted at account#ann 1 after 1 attempts"),
            "{text}"
        );
        assert!(
            text.ends_with("call `then_failed` or `then_failed_with` right after the step\n"),
            "{text}"
        );
    }
    failing()
        .then_failed(ErrorClass::Permanent)
        .then_report(|report| assert_eq!(report.handled, 0));
}

#[test]
fn given_events_after_a_halt_are_not_taken_for_its_cause() {
    let text = failure(|| {
        let _ = failing()
            .then_failed(ErrorClass::Permanent)
            .given("bob", [Withdrawn { amount: 1 }])
            .then_failed(ErrorClass::Permanent);
    });
    assert!(
        text.starts_with("the listener could not take in what is given: it halted"),
        "{text}"
    );
}

#[test]
fn given_events_are_taken_in_before_rows_are_unchanged() {
    let text = failure(|| {
        let rows = async |balances: &Balances| balances.rows();
        let _ = ProjectorScenario::new(Balances::default(), rows)
            .when("ann", [deposited(1)])
            .given("ann", [deposited(2)])
            .when_delivered("ann", 1)
            .then_unchanged()
            .given("ann", [deposited(2)])
            .then_unchanged();
    });
    assert!(text.starts_with("the rows have changed\n"), "{text}");
}

/// An id that reads "007" as "7".
#[derive(Clone, Debug, PartialEq)]
struct Number(u64);
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl FromStr for Number {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
/// An id that does not show all of itself.
#[derive(Clone, Debug, PartialEq)]
struct Short(String);
impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for Short {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.chars().take(3).collect()))
    }
}
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "agent")]
enum AgentEvent {
    Sent,
}
macro_rules! agent {
    ($name:ident, $id:ty) => {
        #[derive(Clone, Debug, Default)]
        struct $name;
        impl Aggregate for $name {
            type Id = $id;
            type Event = AgentEvent;
            fn evolve(&mut self, _: &AgentEvent) {}
        }
        impl Decide<Send> for $name {
            type Error = Infallible;
            fn decide(&self, _: &Send, _: &Context) -> Decision<Self, Infallible> {
                Ok(vec![AgentEvent::Sent])
            }
        }
    };
}
struct Send;
agent!(Agent, Number);
agent!(Spy, Short);

#[test]
fn an_id_under_which_another_stream_is_meant_fails() {
    for text in [
        failure(|| drop(PipelineScenario::new().execute::<Agent>("007", Send))),
        failure(|| drop(PipelineScenario::new().given::<Agent>("007", [AgentEvent::Sent]))),
        failure(|| drop(PipelineScenario::new().then_events::<Agent>("007", []))),
        failure(|| drop(PipelineScenario::new().then_state::<Agent>("007", |_| {}))),
    ] {
        assert!(
            text.starts_with(
                "\"007\" is read as the id \"7\" of agent, which names another stream"
            ),
            "{text}"
        );
    }
    let text = failure(|| drop(Scenario::<Spy>::given_nothing().of(&Short("double".into()))));
    assert!(
        text.starts_with("\"double\" is read as the id \"dou\" of agent"),
        "{text}"
    );
    PipelineScenario::new()
        .execute::<Agent>("7", Send)
        .then_events::<Agent>(7, [AgentEvent::Sent]);
    Scenario::<Agent>::given_nothing()
        .of(&Number(7))
        .when(Send)
        .then([AgentEvent::Sent]);
}

#[test]
fn a_history_stays_with_its_id() {
    let text = failure(|| {
        let _ = Scenario::<Account>::given_nothing()
            .of(&AccountId::from("ann"))
            .when(Deposit(1))
            .then([deposited(1)])
            .into_scenario()
            .of(&AccountId::from("bob"));
    });
    assert!(
        text.starts_with("the history belongs to the id \"ann\""),
        "{text}"
    );
}

/// A command whose event records the time of the decision.
#[derive(Clone, Debug, Default)]
struct Watch;
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "watch")]
enum WatchEvent {
    Read { at: Timestamp },
}
impl Aggregate for Watch {
    type Id = AccountId;
    type Event = WatchEvent;
    fn evolve(&mut self, _: &WatchEvent) {}
}
impl Decide<Send> for Watch {
    type Error = Infallible;
    fn decide(&self, _: &Send, ctx: &Context) -> Decision<Self, Infallible> {
        Ok(vec![WatchEvent::Read { at: ctx.now() }])
    }
}

#[test]
fn a_decision_is_never_earlier_than_the_events_before_it() {
    let at = Timestamp::from_micros;
    let read = |micros| WatchEvent::Read { at: at(micros) };
    Scenario::<Watch>::given_nothing()
        .at(at(20))
        .when(Send)
        .then([read(20)])
        .at(at(10))
        .when(Send)
        .then([read(20)])
        .later(Duration::from_micros(11))
        .when(Send)
        .then([read(21)]);
    PipelineScenario::new()
        .at(at(20))
        .execute::<Watch>("w", Send)
        .at(at(10))
        .execute::<Watch>("w", Send)
        .then_events::<Watch>("w", [read(20), read(20)]);
}

/// An aggregate whose state has no JSON, always in the same way.
#[derive(Clone, Debug, Default)]
struct Scale;
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "scale")]
enum ScaleEvent {
    Weighed { grams: f64 },
}
impl Aggregate for Scale {
    type Id = AccountId;
    type Event = ScaleEvent;
    fn evolve(&mut self, _: &ScaleEvent) {}
}
impl Decide<Send> for Scale {
    type Error = Infallible;
    fn decide(&self, _: &Send, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![ScaleEvent::Weighed { grams: f64::NAN }])
    }
}

#[test]
fn a_value_that_does_not_equal_itself_is_not_called_random() {
    let text = failure(|| drop(Scenario::<Scale>::given_nothing().when(Send)));
    assert!(
        text.starts_with("the events of the command cannot be stored"),
        "{text}"
    );
}

#[test]
fn a_repository_without_the_settings_of_the_pipeline_fails() {
    let pipeline = || {
        let pipeline = PipelineScenario::new();
        let accounts = pipeline.repository::<Account>();
        (pipeline, accounts)
    };
    let codecs = PayloadCodecs::new().with_writer(Arc::new(Reversed::default()));
    for (text, what) in [
        (
            failure(|| drop(pipeline().0.with_upcasters(Upcasters::new()))),
            "with_upcasters",
        ),
        (
            failure(|| drop(pipeline().0.with_payload_codecs(codecs.clone()))),
            "with_payload_codecs",
        ),
    ] {
        assert!(
            text.starts_with(&format!("{what} comes before the first `repository`")),
            "{text}"
        );
    }
    // The pipeline's own reads and writes do not trigger the failure.
    PipelineScenario::new()
        .execute::<Account>("ann", Deposit(1))
        .with_payload_codecs(codecs)
        .execute::<Account>("ann", Deposit(2))
        .then_events::<Account>("ann", [deposited(1), deposited(2)]);
}

#[test]
fn a_command_that_is_refused_for_another_reason_fails_where_the_reason_is_looked_at() {
    let pipeline = || PipelineScenario::new().execute::<Account>("ann", Deposit(1));
    drop(
        pipeline().execute_refused_with::<Account, _>("ann", Withdraw(2), |reason| {
            assert_eq!(*reason, InsufficientFunds);
        }),
    );
    let text = failure(|| {
        drop(
            pipeline().execute_refused_with::<Account, _>("ann", Withdraw(2), |reason| {
                assert_eq!(
                    reason.to_string(),
                    "the account is closed",
                    "another reason"
                );
            }),
        );
    });
    assert!(text.contains("another reason"), "{text}");
    assert!(
        text.contains("\nrefused: InsufficientFunds\nhistory:\n  account#ann 1  Deposited"),
        "{text}"
    );
    let text = failure(|| {
        drop(pipeline().execute_refused_with::<Account, _>("ann", Deposit(2), |_| {}));
    });
    assert!(
        text.starts_with("a command on account#ann was accepted, with [Deposited"),
        "{text}"
    );
}

#[test]
fn a_late_write_that_never_reached_the_projector_fails() {
    let balances = || {
        let rows = async |balances: &Balances| balances.rows();
        ProjectorScenario::new(Balances::default(), rows)
    };
    let text = failure(|| {
        drop(
            balances()
                .given("ann", [LoanEvent::Granted])
                .when_applied_late("ann", 1),
        );
    });
    assert!(
        text.starts_with(
            "loan#ann 1 cannot be applied late: loan.Granted is not an event of the projector"
        ),
        "{text}"
    );
    // The upcasters are missing.
    let text = failure(|| {
        let lifting = Upcasters::new().with_json("account", "Deposited", 1, |payload| {
            payload["note"] = "old".into();
            Ok(())
        });
        let _ = balances()
            .with_upcasters(lifting)
            .given_stored("account#ann", "Deposited", 1, r#"{"amount":3}"#)
            .then_with(|rows| assert_eq!(rows.len(), 1))
            .with_upcasters(Upcasters::new())
            .when_applied_late("ann", 1)
            .then_unchanged();
    });
    assert!(
        text.starts_with("account#ann 1 cannot be applied late: "),
        "{text}"
    );
}

#[test]
fn a_listener_that_fails_is_tried_for_as_long_as_its_policy_says() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let failures = times.clone();
    let alerts = Alerts::failing(move |_: &AccountEvent, _| {
        failures.lock().unwrap().push(tokio::time::Instant::now());
        Err(HandlerError::transient("down"))
    });
    ListenerScenario::new(alerts.at_once(), async |alerts: &Alerts| alerts.amounts())
        .when("ann", [Withdrawn { amount: 1 }])
        .then_failed(ErrorClass::Transient);
    let times = times.lock().unwrap();
    let failed_for = *times.last().unwrap() - times[0];
    let minutes = Duration::from_secs(5 * 60);
    assert!(
        (minutes..minutes + Duration::from_millis(10)).contains(&failed_for),
        "{failed_for:?}"
    );
    // Three immediate attempts, nine pauses of up to 0.1 to 25.6 s, then pauses of up to 30 s:
    // about thirty on average.
    assert!((22..45).contains(&times.len()), "{}", times.len());
}
