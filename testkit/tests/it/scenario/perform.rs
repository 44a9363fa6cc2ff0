//! Steps of a pipeline scenario that run the user's own code on its ports.
use super::{
    failure,
    handlers::{
        Account, AccountEvent, AccountId, Balances, Deposit, InsufficientFunds, Rows, Withdraw,
        Withdrawn, deposited, row,
    },
};
use foldstream::{
    BoxError, Clock, CommandId, ExecuteError, Metadata, PayloadCodecs, Repository, Timestamp,
    Upcasters,
    ports::{ControlStore, EventStore, SnapshotStore},
    runner::{ErrorClass, EventContext, HandlerError, HandlerResult, Listener},
};
use foldstream_testkit::{
    PipelineScenario,
    faults::{Fault, Faults, Op},
};
use std::{sync::Arc, time::Duration};

/// A transfer service over any store, with an error of its own.
struct Bank {
    accounts: Repository<Account>,
}

#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("{from} cannot pay")]
    Payer {
        from: AccountId,
        #[source]
        source: ExecuteError<InsufficientFunds>,
    },
    #[error("the account cannot be paid")]
    Payee(#[source] ExecuteError<InsufficientFunds>),
}

impl Bank {
    fn new(
        store: Arc<dyn EventStore>,
        control: Arc<dyn ControlStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let day = Duration::from_secs(24 * 3600);
        let accounts = Repository::new(store)
            .with_idempotency(control, day)
            .with_clock(clock);
        Self { accounts }
    }
    async fn transfer(
        &self,
        from: &str,
        to: &str,
        amount: u64,
        id: &str,
    ) -> Result<(), TransferError> {
        let (from, to) = (AccountId::from(from), AccountId::from(to));
        let metadata = Metadata::new().with_command_id(CommandId::from(id));
        let paid = self
            .accounts
            .execute_with(&from, Withdraw(amount), metadata.clone())
            .await;
        paid.map_err(|source| TransferError::Payer { from, source })?;
        let paid = self
            .accounts
            .execute_with(&to, Deposit(amount), metadata)
            .await;
        paid.map(drop).map_err(TransferError::Payee)
    }
}

fn rows<const N: usize>(rows: [(&str, super::handlers::Row); N]) -> Rows {
    rows.map(|(id, row)| (id.into(), row)).into()
}

#[test]
fn a_function_of_a_service_runs_on_the_ports_and_its_events_are_published() {
    let balances = Balances::default();
    let mut calls = 0;
    PipelineScenario::new()
        .projector(balances.clone())
        .given::<Account>("ann", [deposited(10)])
        .perform(async |ports| {
            let bank = Bank::new(ports.event_store.clone(), ports.control_store, ports.clock);
            // The caller got no answer and sends the command again.
            for _ in 0..2 {
                bank.transfer("ann", "bob", 4, "t-1").await?;
                calls += 1;
            }
            Ok(())
        })
        .run()
        .then(
            async || balances.rows(),
            rows([("ann", row(6, 2)), ("bob", row(4, 1))]),
        )
        .then_events::<Account>("bob", [deposited(4)]);
    assert_eq!(calls, 2);
}

#[test]
fn what_a_step_stores_lies_after_the_start_of_the_processors_and_is_told_to_be_unpublished() {
    let balances = Balances::default();
    let text = failure(|| {
        let _ = PipelineScenario::new()
            .projector(balances.clone())
            .perform(async |ports| {
                ports
                    .repository::<Account>()
                    .execute(&"ann".into(), Deposit(1))
                    .await?;
                Ok(())
            })
            .then(async || balances.rows(), rows([("ann", row(1, 1))]));
    });
    assert!(
        text.starts_with("what was executed or given since the last `run` is not published yet"),
        "{text}"
    );
    let text = failure(|| {
        let _ = PipelineScenario::new()
            .perform(async |_| Ok(()))
            .projector(Balances::default());
    });
    assert!(
        text.starts_with("a processor comes before the first event"),
        "{text}"
    );
}

#[test]
fn the_ports_have_the_settings_of_the_scenario() {
    let reversed = Arc::new(super::handlers::Reversed::default());
    let codecs = PayloadCodecs::new().with_writer(reversed);
    let upcasters = Upcasters::new().with_json("account", "Deposited", 1, |payload| {
        payload["note"] = "old".into();
        Ok(())
    });
    let time = Timestamp::from_micros(1_800_000_000_000_000);
    PipelineScenario::new()
        .with_upcasters(upcasters)
        .with_payload_codecs(codecs)
        .with_metadata(Metadata::new().with_actor("kim"))
        .at(time)
        .perform(async |ports| {
            assert_eq!(
                ports.metadata.actor().map(ToString::to_string).as_deref(),
                Some("kim")
            );
            let accounts = ports
                .repository::<Account>()
                .with_conflict_retry(foldstream::ConflictRetry::never());
            let done = accounts.execute(&"ann".into(), Deposit(1)).await?;
            assert_eq!(done.head().recorded_at(), time);
            let mut again = ports.event_store.read(
                done.head().stream(),
                foldstream::ports::ReadFrom::Newest,
                None,
            );
            let commit = futures::TryStreamExt::try_next(&mut again)
                .await?
                .ok_or("nothing")?;
            assert_eq!(commit.events[0].codec.as_deref(), Some("reversed"));
            assert!(
                ports
                    .upcasters
                    .apply("account", &"Deposited".into(), 1, &"{}".into())?
                    .is_some()
            );
            Ok(())
        })
        .then_events::<Account>("ann", [deposited(1)]);
}

#[test]
fn a_step_may_use_the_bus_and_the_snapshot_store() {
    use foldstream::{StreamId, ports::MessageBus};
    let pipeline = PipelineScenario::new();
    let snapshots = pipeline.snapshot_store();
    let bus = pipeline.bus();
    let _ = pipeline
        .perform(async |ports| {
            assert_eq!(ports.message_bus.offsets("GlobalEvents").await?.len(), 4);
            let stream = StreamId::new("account", "ann")?;
            assert!(ports.snapshot_store.load(&stream).await?.is_none());
            assert!(Arc::ptr_eq(&ports.snapshot_store, &snapshots));
            assert!(Arc::ptr_eq(&ports.message_bus, &bus));
            Ok(())
        })
        .then_events::<Account>("ann", []);
}

#[test]
fn an_error_fails_the_test_with_its_sources_and_the_history() {
    let text = failure(|| {
        let _ = PipelineScenario::new()
            .given::<Account>("ann", [deposited(10)])
            .perform(async |ports| {
                let bank = Bank::new(ports.event_store, ports.control_store, ports.clock);
                Ok(bank.transfer("ann", "bob", 11, "t-1").await?)
            });
    });
    let expected = "\
a step failed: ann cannot pay: insufficient funds
history:
  account#ann 1  Deposited {\"amount\":10,\"note\":\"\"}
";
    assert_eq!(text, expected);
}

#[test]
fn an_assertion_in_a_step_is_shown_with_the_history() {
    let text = failure(|| {
        let _ = PipelineScenario::new()
            .given::<Account>("ann", [deposited(10)])
            .perform(async |_| panic!("no"));
    });
    assert!(
        text.starts_with("no\nhistory:\n  account#ann 1  Deposited"),
        "{text}"
    );
}

#[test]
fn pauses_timeouts_and_tasks_of_a_step_take_no_time() {
    let hour = Duration::from_secs(3600);
    let _ = PipelineScenario::new()
        .perform(async |_| {
            let started = tokio::time::Instant::now();
            let task = tokio::spawn(async move {
                tokio::time::sleep(hour).await;
                7
            });
            assert_eq!(task.await?, 7);
            let late = tokio::time::timeout(hour, std::future::pending::<()>()).await;
            assert!(late.is_err());
            assert_eq!(started.elapsed(), 2 * hour);
            Ok(())
        })
        .then_events::<Account>("ann", []);
}

#[test]
fn a_step_that_nothing_will_end_fails_at_once() {
    let text = failure(|| {
        let _ = PipelineScenario::new()
            .given::<Account>("ann", [deposited(10)])
            .perform(async |_| {
                std::future::pending::<()>().await;
                Ok(())
            });
    });
    assert!(
        text.starts_with("a step failed: it waits for what never happens"),
        "{text}"
    );
    assert!(text.contains("`in_real_time`"), "{text}");
    assert!(text.contains("account#ann 1"), "{text}");
}

#[test]
fn a_step_waits_for_threads_in_real_time() {
    let _ = PipelineScenario::new()
        .in_real_time()
        .perform(async |_| {
            let (answer, asked) = tokio::sync::oneshot::channel();
            let thread = std::thread::spawn(move || answer.send(7));
            assert_eq!(asked.await?, 7);
            thread
                .join()
                .map_err(|_| "the thread panicked")?
                .map_err(|_| BoxError::from("gone"))
        })
        .then_events::<Account>("ann", []);
}

#[test]
fn a_step_is_spared_from_faults_as_commands_are() {
    let balances = Balances::default();
    let faults = Faults::script([Fault::Unavailable.on(Op::Append)]);
    PipelineScenario::new()
        .with_faults(&faults)
        .projector(balances.clone())
        .perform(async |ports| {
            ports
                .repository::<Account>()
                .execute(&"ann".into(), Deposit(1))
                .await?;
            Ok(())
        })
        .run()
        .then(async || balances.rows(), rows([("ann", row(1, 1))]));
}

struct Refusing;
impl Listener for Refusing {
    const NAME: &'static str = "refusing";
    type Events = AccountEvent;
    async fn handle(&self, event: &AccountEvent, _: &EventContext) -> HandlerResult {
        match event {
            Withdrawn { .. } => Err(HandlerError::permanent("no")),
            AccountEvent::Deposited { .. } => Ok(()),
        }
    }
}

#[test]
fn a_halt_that_nobody_looks_at_fails_at_the_next_call_and_at_the_end() {
    let halted = || {
        PipelineScenario::new()
            .listener(Refusing)
            .execute::<Account>("ann", Deposit(2))
            .execute::<Account>("ann", Withdraw(1))
            .run()
    };
    for text in [
        failure(|| drop(halted().perform(async |_| Ok(())))),
        failure(|| drop(halted().then_report("refusing", |_| {}))),
        failure(|| drop(halted())),
    ] {
        assert!(
            text.starts_with("refusing halted at account#ann 2 after 1 attempts"),
            "{text}"
        );
        assert!(
            text.ends_with(
                "if that is expected, call `then_halted` or `then_halted_with` right after `run`\n"
            ),
            "{text}"
        );
    }
    halted()
        .then_halted("refusing", ErrorClass::Permanent)
        .then_report("refusing", |report| assert_eq!(report.handled, 1))
        .perform(async |_| Ok(()))
        .then_events::<Account>("ann", [deposited(2), Withdrawn { amount: 1 }]);
}

#[test]
fn a_run_that_waits_for_what_never_happens_fails() {
    let text = failure(|| {
        let faults = Faults::script([Fault::Hang.on(Op::PublishRun).every(1)]);
        let _ = PipelineScenario::new()
            .with_faults(&faults)
            .projector(Balances::default())
            .execute::<Account>("ann", Deposit(10))
            .run();
    });
    assert!(
        text.starts_with("the pipeline waits for what never happens"),
        "{text}"
    );
    assert!(text.contains("account#ann 1  Deposited"), "{text}");
}
