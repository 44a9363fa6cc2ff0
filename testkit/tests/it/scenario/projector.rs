//! A projector in the real runner: duplicates, gaps, late writes, rebuilds.
use super::{
    failure,
    handlers::{
        AccountEvent, Balances, LoanEvent, Naive, Reversed, Row, Rows, Withdrawn, deposited, row,
    },
};
use foldstream::{
    Metadata, PayloadCodecs, RetryPolicy, StreamId, Timestamp, Upcast, Upcasters,
    runner::{
        ErrorClass, EventContext, HandlerError, HandlerResult, ModelId, Position, ProcessorPolicy,
        Projector, RunnerError, UnknownEvents,
    },
};
use foldstream_testkit::ProjectorScenario;
use std::sync::{Arc, Mutex};

fn balances() -> ProjectorScenario<Balances, Rows> {
    ProjectorScenario::new(Balances::default(), async |b: &Balances| b.rows())
}

fn naive() -> ProjectorScenario<Naive, Rows> {
    ProjectorScenario::new(Naive::default(), async |n: &Naive| n.rows())
}

fn rows<const N: usize>(rows: [(&str, Row); N]) -> Rows {
    rows.map(|(id, row)| (id.into(), row)).into()
}

#[test]
fn rows_follow_from_what_is_given_and_delivered() {
    balances()
        .then([])
        .given("ann", [deposited(10)])
        .given("bob", [deposited(1), deposited(1)])
        .then(rows([("ann", row(10, 1)), ("bob", row(2, 2))]))
        .when("ann", [Withdrawn { amount: 4 }, Withdrawn { amount: 1 }])
        .then(rows([("ann", row(5, 3)), ("bob", row(2, 2))]))
        .then_report(|report| assert_eq!((report.handled, report.duplicates), (2, 0)))
        .then_with(|rows| assert_eq!(rows.len(), 2));
}

#[test]
fn a_projector_with_a_position_bears_duplicates_late_writes_and_rebuilds() {
    balances()
        .given("ann", [deposited(10), Withdrawn { amount: 4 }])
        .when_delivered("ann", 1)
        .then_unchanged()
        .then_report(|report| assert_eq!((report.handled, report.duplicates), (0, 1)))
        .when_applied_late("account#ann", 1)
        .then_unchanged()
        .when_rebuilt()
        .then_unchanged()
        .then_report(|report| assert_eq!((report.handled, report.duplicates), (2, 1)));
}

#[test]
fn a_gap_is_filled_from_the_event_store_and_the_late_record_is_a_duplicate() {
    balances()
        .given("ann", [deposited(1)])
        .given_undelivered("ann", [deposited(2), deposited(3)])
        .when("ann", [deposited(4)])
        .then(rows([("ann", row(10, 4))]))
        .then_report(|report| assert_eq!((report.handled, report.filled), (3, 2)))
        .when_delivered("ann", 2)
        .then_unchanged();
}

#[test]
fn without_the_event_store_a_gap_is_passed_and_counted() {
    balances()
        .without_event_store()
        .given("ann", [deposited(1)])
        .given_undelivered("ann", [deposited(2)])
        .when("ann", [deposited(4)])
        .then(rows([("ann", row(5, 3))]))
        .then_report(|report| assert_eq!(report.gaps_unverified, 1));
}

#[test]
fn a_projector_without_a_position_gets_a_duplicate_twice() {
    let text = failure(|| {
        let _ = naive()
            .given("bob", [deposited(1)])
            .given("ann", [deposited(10)])
            .when_delivered("ann", 1)
            .then_unchanged();
    });
    let expected = "\
the rows have changed
history:
  given           account#bob 1  Deposited { amount: 1, note: \"\" }
  given           account#ann 1  Deposited { amount: 10, note: \"\" }
                  = 2 handled
  when delivered  account#ann 1  Deposited
                  = 1 handled
expected (-) and actual (+):
    {
        \"ann\": Row {
  -         balance: 10,
  +         balance: 20,
            version: 1,
        },
    ...
    }
";
    assert_eq!(text, expected);
}

#[test]
fn a_late_write_that_changes_a_row_fails() {
    let text = failure(|| {
        let _ = naive()
            .given("ann", [deposited(10), deposited(5)])
            .when_applied_late("ann", 1)
            .then_unchanged();
    });
    assert!(
        text.contains("applied late    account#ann 1  Deposited\n"),
        "{text}"
    );
    assert!(text.contains("= not refused\n"), "{text}");
    assert!(text.contains("-         balance: 15"), "{text}");
}

#[test]
fn a_late_write_that_is_refused_is_told_and_does_not_matter() {
    naive()
        .given("ann", [deposited(10), Withdrawn { amount: 9 }])
        .when_applied_late("ann", 2)
        .then_unchanged();
    let text = failure(|| {
        let _ = naive()
            .given("ann", [deposited(10), Withdrawn { amount: 9 }])
            .when_applied_late("ann", 2)
            .then([]);
    });
    assert!(
        text.contains("= refused: Permanent: below zero\n"),
        "{text}"
    );
}

#[test]
fn a_reset_that_empties_nothing_is_found_by_a_rebuild() {
    let text = failure(|| {
        let _ = naive()
            .given("ann", [deposited(10)])
            .when_rebuilt()
            .then_unchanged();
    });
    assert!(text.starts_with("the reset has left all rows"), "{text}");
    // Nothing to empty is nothing left.
    naive().when_rebuilt().then_unchanged();
}

/// Keeps its rows, and so their versions, in a reset. A replay changes nothing.
#[derive(Default)]
struct NeverEmptied(Balances);
impl Projector for NeverEmptied {
    const NAME: &'static str = "never-emptied";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.0.project(event, ctx).await
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn position(&self, model: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        self.0.position(model, stream).await
    }
}

#[test]
fn a_reset_that_leaves_positions_is_found_by_a_rebuild() {
    let text = failure(|| {
        let rows = async |model: &NeverEmptied| model.0.rows();
        let _ = ProjectorScenario::new(NeverEmptied::default(), rows)
            .given("ann", [deposited(10)])
            .when_rebuilt()
            .then_unchanged();
    });
    let expected =
        "the reset has left the position of account#ann at version 1, so a replay would skip";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn other_rows_are_shown_with_what_led_to_them() {
    let text = failure(|| {
        let _ = balances()
            .given("ann", [deposited(10)])
            .given_undelivered("ann", [Withdrawn { amount: 1 }])
            .when("ann", [Withdrawn { amount: 4 }])
            .then(rows([("ann", row(6, 3))]));
    });
    let expected = "\
the rows are others
history:
  given           account#ann 1  Deposited { amount: 10, note: \"\" }
  undelivered     account#ann 2  Withdrawn { amount: 1 }
                  = 1 handled
  when            account#ann 3  Withdrawn { amount: 4 }
                  = 2 handled, 1 of them filled in from the event store
expected (-) and actual (+):
    {
        \"ann\": Row {
  -         balance: 6,
  +         balance: 5,
            version: 3,
        },
    ...
";
    assert!(
        text.starts_with(expected.trim_end_matches("    ...\n")),
        "{text}"
    );
}

#[test]
fn a_failed_projector_is_a_failure_of_its_class_and_goes_on_from_there() {
    naive()
        .given("ann", [deposited(1)])
        .when("ann", [Withdrawn { amount: 2 }])
        .then_failed(ErrorClass::Permanent)
        .then_failed_with(|error| assert!(matches!(error, RunnerError::Halted { attempts: 1, .. })))
        .then_unchanged()
        .then_report(|report| assert!(report.error.is_some()))
        // The event is delivered again.
        .when_restarted()
        .then_failed(ErrorClass::Permanent);
}

#[test]
fn a_failure_that_the_test_does_not_expect_fails_it() {
    let scenario = || {
        naive()
            .given("ann", [deposited(1)])
            .when("ann", [Withdrawn { amount: 2 }])
    };
    let expected = "\
the projector halted at account#ann 2 after 1 attempts: Permanent: below zero
history:
  given           account#ann 1  Deposited { amount: 1, note: \"\" }
                  = 1 handled
  when            account#ann 2  Withdrawn { amount: 2 }
                  = nothing handled; halted at account#ann 2 after 1 attempts: Permanent: below zero
if that is expected, call `then_failed` or `then_failed_with` right after the step
";
    for text in [
        failure(|| {
            let _ = scenario().then(rows([("ann", row(1, 1))]));
        }),
        failure(|| {
            let _ = scenario().then_with(|_| {});
        }),
        failure(|| {
            let _ = scenario().then_unchanged();
        }),
        failure(|| {
            let _ = scenario().when("bob", [deposited(1)]);
        }),
        failure(|| {
            let _ = scenario().given("bob", [deposited(1)]);
        }),
    ] {
        assert_eq!(text, expected);
    }
    let text = failure(|| {
        let _ = naive().given("ann", [Withdrawn { amount: 2 }]).then([]);
    });
    assert!(
        text.starts_with("the projector could not take in what is given: halted at account#ann 1"),
        "{text}"
    );
}

#[test]
fn an_expected_failure_that_did_not_come_or_is_of_another_class_fails() {
    let text = failure(|| {
        let _ = naive()
            .when("ann", [deposited(1)])
            .then_failed(ErrorClass::Permanent);
    });
    assert!(
        text.starts_with("the projector did not fail\nhistory:\n"),
        "{text}"
    );
    let text = failure(|| {
        let _ = naive().when("ann", [deposited(1)]).then_failed_with(|_| {});
    });
    assert!(text.starts_with("the projector did not fail\n"), "{text}");
    let text = failure(|| {
        let _ = naive()
            .when("ann", [Withdrawn { amount: 1 }])
            .then_failed(ErrorClass::Poison);
    });
    assert!(
        text.ends_with("expected: Poison\nactual:   Permanent\n"),
        "{text}"
    );
    let text = failure(|| {
        let _ = naive()
            .when("ann", [Withdrawn { amount: 1 }])
            .then_failed_with(|_| panic!("no"));
    });
    assert!(text.starts_with("no\nhistory:\n"), "{text}");
}

#[test]
fn assertions_in_closures_fail_with_the_history() {
    for text in [
        failure(|| {
            let _ = balances()
                .when("ann", [deposited(1)])
                .then_with(|_| panic!("no"));
        }),
        failure(|| {
            let _ = balances()
                .when("ann", [deposited(1)])
                .then_report(|_| panic!("no"));
        }),
    ] {
        assert!(
            text.starts_with("no\nhistory:\n  when            account#ann 1"),
            "{text}"
        );
    }
}

#[test]
fn nothing_is_unchanged_before_something_happened() {
    let text = failure(|| {
        let _ = balances().given("ann", [deposited(1)]).then_unchanged();
    });
    assert!(text.contains("there was none"), "{text}");
}

fn upcasters() -> Upcasters {
    Upcasters::new()
        .with_json("account", "Deposited", 1, |payload| {
            payload["note"] = "old".into();
            Ok(())
        })
        .with("account", "Opened", 1, |_| Ok(Upcast::Retired))
}

#[test]
fn stored_payloads_of_other_builds_are_lifted_skipped_or_poison() {
    balances()
        .with_upcasters(upcasters())
        .with_policy(ProcessorPolicy::projector().with_unknown_events(UnknownEvents::Skip))
        .given_stored("account#ann", "Opened", 1, "{}")
        .given_stored("account#ann", "Deposited", 1, r#"{"amount":3}"#)
        .then(rows([("ann", row(3, 2))]))
        .when_stored("account#ann", "Frozen", 1, "{}")
        .then_report(|report| assert_eq!((report.handled, report.skipped), (0, 1)))
        .when_applied_late("ann", 1)
        .then_unchanged()
        .when_stored("account#ann", "Deposited", 3, "{}")
        .then_failed(ErrorClass::Poison);
    balances()
        .when_stored("account#ann", "Frozen", 1, "{}")
        .then_failed(ErrorClass::Poison);
}

#[test]
fn events_of_other_aggregate_types_are_skipped_and_streams_are_told_apart() {
    balances()
        .given("ann", [LoanEvent::Granted])
        .given("ann", [deposited(1)])
        .when_delivered("loan#ann", 1)
        .then_unchanged()
        .then_report(|report| assert_eq!(report.skipped, 1));
    let text = failure(|| {
        let _ = balances()
            .given("ann", [LoanEvent::Granted])
            .given("ann", [deposited(1)])
            .when_delivered("ann", 1);
    });
    assert!(text.contains("names loan#ann and account#ann"), "{text}");
}

#[test]
fn what_cannot_be_given_or_delivered_says_why() {
    for (text, reason) in [
        (
            failure(|| {
                let _ = balances().given("", [deposited(1)]);
            }),
            "the id \"\" names no stream",
        ),
        (
            failure(|| {
                let _ = balances().when("ann", Vec::<AccountEvent>::new());
            }),
            "no event is given for account#ann",
        ),
        (
            failure(|| {
                let _ = balances()
                    .given("ann", [deposited(1)])
                    .when_delivered("ann", 2);
            }),
            "account#ann has no version 2\nhistory:\n",
        ),
        (
            failure(|| {
                let _ = balances().when_delivered("ann", 1);
            }),
            "no stream \"ann\"",
        ),
        (
            failure(|| {
                let _ = balances().when_stored("ann", "Deposited", 1, "{}");
            }),
            "names no stream as \"cart#c-1\" does",
        ),
        (
            failure(|| {
                let _ = balances().when_stored("account#ann", "Deposited", 1, "no JSON");
            }),
            "the events of account#ann cannot be stored",
        ),
        (
            failure(|| {
                let _ = balances()
                    .given("ann", [deposited(1)])
                    .with_policy(ProcessorPolicy::projector());
            }),
            "before the first event",
        ),
        (
            failure(|| {
                let _ = balances()
                    .with_policy(ProcessorPolicy::projector().with_name("no name"))
                    .when("ann", [deposited(1)]);
            }),
            "the processor cannot be run: name is invalid",
        ),
    ] {
        assert!(text.contains(reason), "{text}");
    }
}

#[tokio::test]
async fn inside_of_a_runtime_a_scenario_says_what_to_do() {
    let text = failure(|| {
        let _ = balances();
    });
    assert!(text.contains("make the test a plain #[test]"), "{text}");
}

/// A projector that records the context of its events.
#[derive(Default)]
struct Contexts(Mutex<Vec<String>>);
impl Projector for Contexts {
    const NAME: &'static str = "contexts";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let actor = ctx.header().metadata.actor().map(ToString::to_string);
        let text = format!("{} {} {actor:?}", ctx.model(), ctx.recorded_at());
        self.0.lock().unwrap().push(text);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

#[test]
fn the_context_is_what_the_scenario_says_also_when_applied_late() {
    let contexts = async |c: &Contexts| std::mem::take(&mut *c.0.lock().unwrap());
    ProjectorScenario::new(Contexts::default(), contexts)
        .with_policy(ProcessorPolicy::projector().with_name("other"))
        .when("ann", [deposited(1)])
        .then(["other.g1 2026-01-01T00:00:00.000000Z None".into()])
        .at(Timestamp::from_micros(1_800_000_000_000_000))
        .with_metadata(Metadata::new().with_actor("kim"))
        .when("ann", [deposited(1)])
        .then(["other.g1 2027-01-15T08:00:00.000000Z Some(\"kim\")".into()])
        .when_applied_late("ann", 1)
        .then(["other.g1 2026-01-01T00:00:00.000000Z None".into()]);
}

#[test]
fn real_time_is_real_for_a_scenario_that_asks_for_it() {
    let policy = ProcessorPolicy::projector().with_retry(RetryPolicy::fail_fast());
    balances()
        .in_real_time()
        .with_policy(policy)
        .when("ann", [deposited(1)])
        .then(rows([("ann", row(1, 1))]));
}

#[test]
fn sealed_payloads_are_opened_and_shredded_ones_passed_over() {
    let reversed = Arc::new(Reversed::default());
    let scenario = balances()
        .with_payload_codecs(PayloadCodecs::new().with_writer(reversed.clone()))
        .given("ann", [deposited(1)])
        .given("bob", [deposited(2)])
        .then(rows([("ann", row(1, 1)), ("bob", row(2, 1))]))
        .when_applied_late("ann", 1)
        .then_unchanged();
    reversed.0.lock().unwrap().push("ann".into());
    scenario
        .when_rebuilt()
        .then(rows([("bob", row(2, 1))]))
        .then_report(|report| assert_eq!((report.handled, report.shredded), (1, 1)))
        .when_applied_late("ann", 1)
        .then_unchanged();
    let text = failure(|| {
        let _ = naive()
            .given("ann", [deposited(1)])
            .with_payload_codecs(PayloadCodecs::new().with_writer(reversed.clone()))
            .when("bob", [deposited(1)])
            .with_payload_codecs(PayloadCodecs::new())
            .when_delivered("bob", 1)
            .then([]);
    });
    assert!(
        text.starts_with("the projector halted at account#bob 1"),
        "{text}"
    );
}

#[test]
fn a_step_of_events_that_the_projector_does_not_receive_is_refused() {
    #[derive(Clone, Debug, PartialEq, foldstream::DomainEvent)]
    #[event(aggregate = "parcel")]
    enum ParcelEvent {
        Sent,
    }
    use ParcelEvent::Sent;
    let text = failure(|| {
        let _ = balances().when("p-1", [Sent]).then_unchanged();
    });
    let told = "the projector receives no event of \"parcel\", only of [\"account\"]";
    assert!(text.starts_with(told), "{text}");
    balances().given("p-1", [Sent]).then([]);
}
