//! The whole pipeline: commands are executed, published, projected and listened to.
mod repeat;

use super::{
    failure,
    handlers::{
        Account, AccountEvent, AccountId, Balances, Deposit, Reversed, Row, Rows, Withdraw,
        Withdrawn, deposited, row,
    },
};
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, Metadata, PayloadCodecs, Repository,
    Timestamp, Upcasters, id,
    runner::{
        ErrorClass, EventContext, HandlerError, HandlerResult, Listener, ProcessorPolicy,
        RunnerError, Start,
    },
};
use foldstream_testkit::PipelineScenario;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

id!(FeeId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "fees")]
enum FeeEvent {
    Charged { amount: u64 },
}

#[derive(Clone, Debug, Default)]
struct Fees {
    total: u64,
}
impl Aggregate for Fees {
    type Id = FeeId;
    type Event = FeeEvent;
    fn evolve(&mut self, event: &FeeEvent) {
        let FeeEvent::Charged { amount } = event;
        self.total += amount;
    }
}
struct Charge(u64);
impl Decide<Charge> for Fees {
    type Error = Infallible;
    fn decide(&self, command: &Charge, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![FeeEvent::Charged { amount: command.0 }])
    }
}

/// A listener that charges a fee for each withdrawal, and fails above 100.
struct Charging(Repository<Fees>);
impl Listener for Charging {
    const NAME: &'static str = "charging";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let Withdrawn { amount } = event else {
            return Ok(());
        };
        if *amount > 100 {
            return Err(HandlerError::permanent("too much to charge for"));
        }
        let to = FeeId::from(ctx.stream().id());
        self.0
            .execute_with(&to, Charge(1), ctx.caused("charge"))
            .await?;
        Ok(())
    }
}

/// A listener that charges a fee for each fee.
struct Greedy(Repository<Fees>);
impl Listener for Greedy {
    const NAME: &'static str = "greedy";
    type Events = FeeEvent;
    async fn handle(&self, _: &FeeEvent, ctx: &EventContext) -> HandlerResult {
        self.0
            .execute_with(&ctx.id()?, Charge(1), ctx.caused("more"))
            .await?;
        Ok(())
    }
}

fn rows<const N: usize>(rows: [(&str, Row); N]) -> Rows {
    rows.map(|(id, row)| (id.into(), row)).into()
}

/// Creates a bank that charges fees, and its rows.
fn bank() -> (PipelineScenario, Balances) {
    let balances = Balances::default();
    let pipeline = PipelineScenario::new();
    let charging = Charging(pipeline.repository());
    let pipeline = pipeline
        .projector(Arc::new(balances.clone()))
        .listener(charging);
    (pipeline, balances)
}

#[test]
fn commands_on_several_aggregates_end_in_rows_and_in_what_listeners_cause() {
    let (pipeline, balances) = bank();
    pipeline
        .execute::<Account>("ann", Deposit(10))
        .execute::<Account>("bob", Deposit(5))
        .execute::<Account>("ann", Withdraw(4))
        .execute_refused::<Account>("bob", Withdraw(6))
        .run()
        .then(
            async || balances.rows(),
            rows([("ann", row(6, 2)), ("bob", row(5, 1))]),
        )
        .then_events::<Fees>("ann", [FeeEvent::Charged { amount: 1 }])
        .then_events::<Fees>("bob", [])
        .then_state::<Account>("ann", |account| assert_eq!(account.balance, 6))
        .then_report("balances", |report| assert_eq!(report.handled, 3))
        .then_report("charging", |report| assert_eq!(report.handled, 3))
        // The scenario continues after an assertion.
        .execute::<Account>("bob", Withdraw(5))
        .run()
        .then_events::<Fees>("bob", [FeeEvent::Charged { amount: 1 }])
        .then_report("balances", |report| {
            assert_eq!((report.handled, report.duplicates), (1, 0));
        });
}

#[test]
fn what_is_given_first_lies_before_the_start_of_listeners() {
    let (pipeline, balances) = bank();
    pipeline
        .given::<Account>("ann", [deposited(10), Withdrawn { amount: 1 }])
        .execute::<Account>("ann", Withdraw(2))
        .given::<Account>("ann", [Withdrawn { amount: 3 }])
        .run()
        .then(async || balances.rows(), rows([("ann", row(4, 4))]))
        // One fee for the command and one for the event after it, none for the history before.
        .then_state::<Fees>("ann", |fees| assert_eq!(fees.total, 2));
}

#[test]
fn a_processor_that_halts_is_named_and_the_others_go_on() {
    let (pipeline, balances) = bank();
    pipeline
        .given::<Account>("ann", [deposited(1000)])
        .execute::<Account>("ann", Withdraw(101))
        .execute::<Account>("ann", Withdraw(1))
        .run()
        .then_halted("charging", ErrorClass::Permanent)
        .then_halted_with("charging", |error| {
            assert!(matches!(error, RunnerError::Halted { version, .. } if version.get() == 2));
        })
        .then(async || balances.rows(), rows([("ann", row(898, 3))]))
        .then_events::<Fees>("ann", [])
        // The next run restarts the processor, and the event is delivered again.
        .run()
        .then_halted("charging", ErrorClass::Permanent)
        .then_report("charging", |report| assert_eq!(report.handled, 0));
}

#[test]
fn a_halt_that_the_test_does_not_expect_fails_it() {
    let halted = || {
        bank()
            .0
            .given::<Account>("ann", [deposited(1000)])
            .execute::<Account>("ann", Withdraw(101))
            .run()
    };
    let expected = "\
charging halted at account#ann 2 after 1 attempts: Permanent: too much to charge for
history:
  account#ann 1  Deposited {\"amount\":1000,\"note\":\"\"}
  account#ann 2  Withdrawn {\"amount\":101}
balances: 1 handled
charging: nothing handled; halted at account#ann 2 after 1 attempts: Permanent: too much to charge for
if that is expected, call `then_halted` or `then_halted_with` right after `run`
";
    let ann = AccountId::from("ann");
    for text in [
        failure(|| {
            let _ = halted().then(async || 1, 1);
        }),
        failure(|| {
            let _ = halted().then_events::<Fees>(&ann, []);
        }),
        failure(|| {
            let _ = halted().then_state::<Account>(&ann, |_| {});
        }),
        failure(|| {
            let _ = halted().execute::<Account>(&ann, Deposit(1));
        }),
        failure(|| {
            let _ = halted().given::<Account>(&ann, [deposited(1)]);
        }),
        failure(|| {
            let _ = halted().run();
        }),
    ] {
        assert_eq!(text, expected);
    }
    for (text, reason) in [
        (
            failure(|| {
                let _ = halted().then_halted("charging", ErrorClass::Transient);
            }),
            "charging failed with another class: expected Transient, it halted at account#ann 2",
        ),
        (
            failure(|| {
                let _ = halted().then_halted("balances", ErrorClass::Permanent);
            }),
            "balances has not halted\nhistory:\n",
        ),
        (
            failure(|| {
                let _ = halted().then_halted("alerts", ErrorClass::Permanent);
            }),
            "no processor \"alerts\" has run, only [\"balances\", \"charging\"]",
        ),
        (
            failure(|| {
                let _ = halted().then_halted_with("charging", |_| panic!("no"));
            }),
            "no\nhistory:\n",
        ),
        (
            failure(|| {
                let _ = halted()
                    .then_halted("charging", ErrorClass::Permanent)
                    .then_report("charging", |_| panic!("no"));
            }),
            "no\nhistory:\n",
        ),
    ] {
        assert!(text.starts_with(reason), "{text}");
    }
}

#[test]
fn other_rows_events_and_states_are_shown_with_what_led_to_them() {
    let history = "\
history:
  account#ann 1  Deposited {\"amount\":10,\"note\":\"\"}
  account#ann 2  Withdrawn {\"amount\":4}
  fees#ann 1  Charged {\"amount\":1}
balances: 2 handled, 1 skipped
charging: 2 handled, 1 skipped
";
    let pipeline = || {
        let (pipeline, balances) = bank();
        let pipeline = pipeline
            .execute::<Account>("ann", Deposit(10))
            .execute::<Account>("ann", Withdraw(4))
            .run();
        (pipeline, balances)
    };
    let text = failure(|| {
        let (pipeline, balances) = pipeline();
        let _ = pipeline.then(async || balances.rows(), rows([("ann", row(7, 2))]));
    });
    let expected = format!(
        "\
what was read is something else
{history}expected (-) and actual (+):
    {{
        \"ann\": Row {{
  -         balance: 7,
  +         balance: 6,
            version: 2,
        }},
    }}
"
    );
    assert_eq!(text, expected);
    let text = failure(|| {
        let _ = pipeline()
            .0
            .then_events::<Account>("ann", [deposited(10), Withdrawn { amount: 5 }]);
    });
    let expected = format!(
        "\
account#ann holds other events
{history}expected (-) and actual (+):
    1    Deposited {{ amount: 10, note: \"\" }}
    2    Withdrawn {{
       -     amount: 5,
       +     amount: 4,
         }}
"
    );
    assert_eq!(text, expected);
    let text = failure(|| {
        let _ = pipeline().0.then_state::<Fees>("ann", |_| panic!("no"));
    });
    assert_eq!(text, format!("no\n{history}"));
}

#[test]
fn rows_before_a_forgotten_run_fail_also_if_they_are_as_expected() {
    let (pipeline, balances) = bank();
    let text = failure(|| {
        let _ = pipeline
            .execute::<Account>("ann", Deposit(10))
            .then(async || balances.rows(), rows([]));
    });
    let told = "what was executed or given since the last `run` is not published yet: say `.run()` before `.then(..)`\n";
    assert!(text.starts_with(told), "{text}");
    assert!(text.contains("account#ann 1"), "{text}");
}

#[test]
fn a_pipeline_that_ends_without_any_run_fails_if_it_has_processors() {
    let text = failure(|| {
        let _ = bank()
            .0
            .execute::<Account>("ann", Deposit(10))
            .then_events::<Account>("ann", [deposited(10)]);
    });
    assert!(
        text.starts_with("the processors were never given the events: say `.run()`"),
        "{text}"
    );
    // Without processors there is nothing to run.
    let _ = PipelineScenario::new()
        .execute::<Account>("ann", Deposit(10))
        .then_events::<Account>("ann", [deposited(10)]);
}

#[test]
fn a_command_that_ends_otherwise_fails_with_the_history() {
    for (text, reason) in [
        (
            failure(|| {
                let _ = bank()
                    .0
                    .execute::<Account>("ann", Deposit(1))
                    .execute::<Account>("ann", Withdraw(2));
            }),
            "a command on account#ann was refused: InsufficientFunds\nhistory:\n  account#ann 1  Deposited",
        ),
        (
            failure(|| {
                let _ = bank().0.execute_refused::<Account>("ann", Deposit(1));
            }),
            "a command on account#ann was accepted, with [Deposited",
        ),
        (
            failure(|| {
                let _ = bank().0.execute::<Account>("", Deposit(1));
            }),
            "a command on account# could not be executed: the state cannot be loaded: invalid stream id",
        ),
        (
            failure(|| {
                let _ = bank().0.given::<Account>("ann", []);
            }),
            "the events of account#ann cannot be stored",
        ),
        (
            failure(|| {
                let _ = bank()
                    .0
                    .given::<Account>("ann", [deposited(1)])
                    .projector(Balances::default());
            }),
            "a processor comes before the first event",
        ),
        (
            failure(|| {
                let _ = bank().0.projector(Balances::default()).run();
            }),
            "the processors cannot be run: two processors are named balances",
        ),
    ] {
        assert!(text.starts_with(reason), "{text}");
    }
}

#[test]
fn listeners_that_never_rest_fail() {
    let text = failure(|| {
        let pipeline = PipelineScenario::new();
        let greedy = Greedy(pipeline.repository());
        let _ = pipeline
            .listener(greedy)
            .execute::<Fees>("ann", Charge(1))
            .run();
    });
    assert!(
        text.starts_with("the pipeline does not come to rest"),
        "{text}"
    );
    assert!(text.contains("events before\n  fees#ann"), "{text}");
}

#[test]
fn time_and_metadata_are_what_the_pipeline_says() {
    type Seen = Arc<Mutex<Vec<String>>>;
    struct Contexts(Seen);
    impl Listener for Contexts {
        const NAME: &'static str = "contexts";
        type Events = AccountEvent;
        async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
            let actor = ctx.header().metadata.actor().map(ToString::to_string);
            let text = format!("{} {actor:?}", ctx.recorded_at());
            self.0.lock().unwrap().push(text);
            Ok(())
        }
    }
    let seen = Seen::default();
    PipelineScenario::new()
        .listener_with(
            Contexts(seen.clone()),
            ProcessorPolicy::listener().with_start(Start::Beginning),
        )
        .execute::<Account>("ann", Deposit(1))
        .later(Duration::from_secs(60))
        .with_metadata(Metadata::new().with_actor("kim"))
        .execute::<Account>("ann", Deposit(1))
        .at(Timestamp::from_micros(1_800_000_000_000_000))
        .execute::<Account>("ann", Deposit(1))
        .run()
        .then(
            async || seen.lock().unwrap().clone(),
            [
                "2026-01-01T00:00:00.000000Z None".into(),
                "2026-01-01T00:01:00.000000Z Some(\"kim\")".into(),
                "2027-01-15T08:00:00.000000Z Some(\"kim\")".into(),
            ],
        );
}

#[test]
fn older_payloads_are_lifted_in_every_stage() {
    use foldstream::{
        CommitId, StreamHead, StreamId,
        ports::{Append, EventData, EventStore},
    };
    let balances = Balances::default();
    let upcasters = Upcasters::new().with_json("account", "Deposited", 1, |payload| {
        payload["note"] = "old".into();
        Ok(())
    });
    let pipeline = PipelineScenario::new()
        .with_upcasters(upcasters)
        .projector(balances.clone());
    let store = pipeline.event_store();
    let old = EventData::new("Deposited", 1, r#"{"amount":7}"#);
    let empty = StreamHead::empty(StreamId::new("account", "ann").unwrap());
    let append = Append::after(empty, CommitId::random(), Timestamp::now(), [old]);
    pipeline
        .then(
            async || {
                matches!(
                    store.append(&append).await,
                    Ok(foldstream::ports::AppendOutcome::Appended(_))
                )
            },
            true,
        )
        .execute::<Account>("ann", Withdraw(3))
        .run()
        .then(async || balances.rows(), rows([("ann", row(4, 2))]));
}

#[test]
fn sealed_payloads_go_in_every_stage_and_shredded_ones_are_passed_over() {
    let (balances, reversed) = (Balances::default(), Arc::new(Reversed::default()));
    let codecs = PayloadCodecs::new().with_writer(reversed.clone());
    let pipeline = PipelineScenario::new()
        .with_payload_codecs(codecs)
        .projector(balances.clone())
        .execute::<Account>("ann", Deposit(7))
        .execute::<Account>("ann", Withdraw(3))
        .run()
        .then(async || balances.rows(), rows([("ann", row(4, 2))]));
    let pipeline = pipeline.execute::<Account>("bob", Deposit(1));
    // The key is deleted after the event is stored.
    reversed.0.lock().unwrap().push("bob".into());
    pipeline
        .run()
        .then_report("balances", |report| {
            assert_eq!((report.handled, report.shredded), (0, 1));
        })
        .then_events::<Account>("bob", []);
}
