//! A pipeline ends the same whatever goes wrong, and runs the same way each time.
use super::{
    super::{
        failure,
        handlers::{Account, AccountEvent, Deposit, Rows, Withdraw, row},
    },
    FeeEvent, bank,
};
use foldstream::{
    event_set,
    ports::MessageBus,
    runner::{EventContext, HandlerError, HandlerResult, Listener},
};
use foldstream_testkit::{
    faults::{Fault, Faults, Op},
    length,
};
use std::sync::{Arc, Mutex};

#[test]
fn a_pipeline_comes_to_rest_and_ends_the_same_whatever_goes_wrong() {
    let mut killed = 0;
    for seed in length::seeds(40, 500) {
        let faults = Faults::seeded(seed)
            .with(Fault::Unavailable.anywhere().one_in(15))
            .with(Fault::LoseReply.anywhere().one_in(15))
            .with(Fault::Duplicate.on(Op::PublishRun).one_in(5))
            .with(Fault::Lag(3).on(Op::Append).one_in(3))
            .with(Fault::LoseSession.on(Op::Next).one_in(20))
            .with(Fault::CrashBefore.on(Op::WRITES).one_in(40))
            .with(Fault::CrashAfter.on(Op::WRITES).one_in(40));
        let (pipeline, balances) = bank();
        let mut pipeline = pipeline.with_faults(&faults);
        for n in 0..5 {
            let id = format!("a-{n}");
            pipeline = pipeline
                .execute::<Account>(&id, Deposit(10))
                .execute::<Account>(&id, Withdraw(1));
        }
        let all = (0..5).map(|n| (format!("a-{n}"), row(9, 2)));
        let _ = pipeline
            .run()
            .then(async || balances.rows(), all.collect::<Rows>());
        let log = faults.log();
        killed += log
            .iter()
            .filter(|injected| injected.to_string().contains("Crash"))
            .count();
    }
    assert!(
        killed > 20 || std::env::var("FOLDSTREAM_SEED").is_ok(),
        "{killed}"
    );
}

#[test]
fn a_pipeline_in_which_nothing_gets_through_fails() {
    let text = failure(|| {
        let faults = Faults::script([Fault::Unavailable.on(Op::PublishRun)]);
        let _ = bank()
            .0
            .with_faults(&faults)
            .execute::<Account>("ann", Deposit(1))
            .run();
    });
    assert!(
        text.starts_with(
            "the pipeline does not come to rest: after 200 rounds account#ann cannot be published"
        ),
        "{text}"
    );
}

event_set!(
    /// The events of the bank.
    enum BankEvent {
        Account(AccountEvent),
        Fees(FeeEvent),
    }
);

/// A listener that records its events and their times, and fails at first.
#[derive(Default)]
struct Journal(Mutex<Vec<String>>);
impl Listener for Journal {
    const NAME: &'static str = "journal";
    type Events = BankEvent;
    async fn handle(&self, event: &BankEvent, ctx: &EventContext) -> HandlerResult {
        let now = tokio::time::Instant::now();
        let line = format!(
            "{now:?} {} {} {} {event:?}",
            ctx.event_id(),
            ctx.stream(),
            ctx.attempt()
        );
        self.0.lock().unwrap().push(line);
        // After the immediate retries, the jitter decides the pauses and so the order of the
        // streams.
        if ctx.attempt() < 5 {
            return Err(HandlerError::transient("down"));
        }
        Ok(())
    }
}

/// Returns the journal of commands on many accounts, with times relative to its first line.
fn journal() -> Vec<String> {
    let (pipeline, _) = bank();
    let journal = Arc::new(Journal::default());
    let mut pipeline = pipeline.listener(journal.clone());
    for n in 0..20 {
        let id = format!("a-{n}");
        pipeline = pipeline
            .execute::<Account>(&id, Deposit(10))
            .execute::<Account>(&id, Withdraw(1));
    }
    let bus = pipeline.bus();
    let ends = async || {
        let offsets = bus.offsets("GlobalEvents").await.unwrap();
        offsets.iter().map(|o| o.end.get()).sum::<u64>()
    };
    let _ = pipeline.run().then(ends, 60u64);
    let lines = journal.0.lock().unwrap();
    lines
        .iter()
        .map(|line| {
            line.split_once(" } ")
                .map_or(line.as_str(), |(_, rest)| rest)
                .to_owned()
        })
        .collect()
}

#[test]
fn a_pipeline_is_the_same_each_time() {
    let first = journal();
    assert_eq!(first.len(), 60 * 5);
    assert_eq!(first, journal());
}
