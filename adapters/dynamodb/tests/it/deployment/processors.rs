//! The work of a runner, of an operator of its processors, and of somebody who only looks.
use super::{app::hide, publisher::TOPIC};
use crate::{
    read_model::{NoteEvent, Notebook, notebook},
    support::{Call, Fate, Server, Wire},
};
use foldstream::{
    CommitId, SourceUri, StreamHead, Timestamp, Version,
    adapter::to_message,
    operate::{EventRef, JobRunner, Operator, ParkedState, Reason, Redrive},
    ports::{Append, ControlStore as _, EventData, EventStore as _, MessageBus as _, RangeQuery},
    publisher::Publisher,
    runner::{
        DeliveryLevel, EventContext, FailureAction, HandlerError, HandlerResult, Listener,
        ProcessorPolicy, Runner, Start,
    },
};
use foldstream_dynamodb::{DynamoDb, PublishMode};
use foldstream_testkit::InMemoryMessageBus;
use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

const GROUP: &str = "shop";

/// A listener whose service is broken at first.
struct Mailer {
    is_broken: Arc<AtomicBool>,
}
impl Listener for Mailer {
    const NAME: &'static str = "mailer";
    type Events = NoteEvent;
    async fn handle(&self, _: &NoteEvent, _: &EventContext) -> HandlerResult {
        match self.is_broken.load(Ordering::SeqCst) {
            true => Err(HandlerError::permanent("no such mailbox")),
            false => Ok(()),
        }
    }
}

/// The requests of each role.
pub(super) struct Calls {
    pub(super) runner: Vec<Call>,
    pub(super) operator: Vec<Call>,
    pub(super) viewer: Vec<Call>,
}

/// The stores of one role, and the requests that they send.
pub(super) async fn role(server: &Server) -> (DynamoDb, Wire) {
    let (stores, wire) = server.connect_over(server.config(), |_| Fate::Pass).await;
    (stores.unwrap(), wire)
}

/// Stores three commits, and publishes all but the second.
async fn given_a_gap(writer: &DynamoDb, bus: &Arc<InMemoryMessageBus>) {
    let mut head = StreamHead::empty(notebook(1));
    for version in 1..=3 {
        let payload = format!(r#"{{"number":{version},"boards":["all"]}}"#);
        let event = EventData::new("Noted", 1, payload);
        let now = Timestamp::from_micros(1_767_225_600_000_000);
        let append = Append::after(head, CommitId::random(), now, [event]);
        let _ = writer.event_store().append(&append).await.unwrap();
        head = append.head_after();
        let commit = append.to_commit();
        let event = commit.recorded().next().unwrap();
        if version != 2 {
            let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), now);
            bus.publish(&message).await.unwrap();
        }
    }
}

/// Does the work of all three roles, and returns the requests of each.
pub(super) async fn work(server: &Server, mode: PublishMode) -> Calls {
    let config = server.config().with_publish_mode(mode);
    let writer = DynamoDb::connect(config).await.unwrap();
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    given_a_gap(&writer, &bus).await;

    let (stores, runners) = role(server).await;
    runners.decide(hide(&notebook(1), 2));
    let is_broken = Arc::new(AtomicBool::new(true));
    let runner = || {
        let policy = ProcessorPolicy::listener()
            .with_start(Start::Beginning)
            .with_level(DeliveryLevel::Deduplicated)
            .with_on_failure(|_| FailureAction::Park)
            .with_commit_interval(Duration::from_millis(100));
        let letters = policy
            .clone()
            .with_name("texter")
            .with_on_failure(|_| FailureAction::DeadLetter);
        let mailer = Mailer {
            is_broken: is_broken.clone(),
        };
        let texter = Mailer {
            is_broken: Arc::new(AtomicBool::new(true)),
        };
        Runner::builder(bus.clone(), stores.control_store(), GROUP)
            .with_event_store(stores.event_store())
            .with_topics([TOPIC])
            .listener_with(mailer, policy)
            .listener_with(texter, letters)
            .projector(stores.read_model::<Notebook>())
            .build()
            .unwrap()
    };
    let report = runner().run_until_caught_up().await;
    assert!(
        report.processors.iter().all(|p| p.error.is_none()),
        "{report:?}"
    );

    let viewer = view(server, &bus).await;
    let (operator_stores, operators) = role(server).await;
    let operator = Operator::new(operator_stores.control_store())
        .with_bus(bus.clone(), GROUP)
        .with_store(operator_stores.event_store());
    let reason = Reason::new("ann", "the mailbox is back").unwrap();
    let job = operator
        .redrive(&Redrive::all("mailer"), &reason)
        .await
        .unwrap();
    is_broken.store(false, Ordering::SeqCst);
    let jobs = JobRunner::new(operator.clone(), "console").with_poll(Duration::from_millis(20));
    let over = Notify::new();
    let redriven = async {
        let job = jobs.run("mailer", job.id, std::future::pending()).await;
        over.notify_one();
        job
    };
    let handled = async {
        // A runner looks for requests every few seconds, and when it starts.
        while !is_requested(&operator).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        runner().run(over.notified()).await
    };
    let (job, _) = tokio::join!(redriven, handled);
    assert!(job.unwrap().is_over());
    operate(&operator, &reason).await;
    abort(&operator, &writer, &reason).await;

    Calls {
        runner: runners.calls(),
        operator: operators.calls(),
        viewer,
    }
}

async fn is_requested(operator: &Operator) -> bool {
    let page = NonZeroU32::new(10).unwrap();
    let parked = operator.parked("mailer", None, page).await.unwrap();
    parked.items.iter().all(|p| p.state != ParkedState::Waiting)
}

/// Looks at everything that an operator can list.
async fn view(server: &Server, bus: &Arc<InMemoryMessageBus>) -> Vec<Call> {
    let (stores, wire) = role(server).await;
    let control = stores.control_store();
    let operator = Operator::new(control.clone()).with_bus(bus.clone(), GROUP);
    let page = NonZeroU32::new(10).unwrap();
    assert_eq!(operator.processors().await.unwrap().len(), 3);
    let parked = operator.parked("mailer", None, page).await.unwrap();
    assert_eq!(parked.items.len(), 1);
    let letters = operator.letters("mailer", None, page).await.unwrap();
    let address = letters.items[0].address.clone();
    assert!(operator.letter(&address).await.unwrap().is_some());
    let all = operator.all_letters(None, page).await.unwrap();
    assert_eq!(all.items.len(), 4);
    operator.letter_groups(None).await.unwrap();
    operator.discard_state(&address).await.unwrap();
    operator.dry_run(&Redrive::all("mailer")).await.unwrap();
    operator.jobs("mailer", None).await.unwrap();
    operator.breakers().await.unwrap();
    operator.audit(Timestamp::now(), None).await.unwrap();
    let publisher = Publisher::new(stores.event_store(), bus.clone(), control);
    publisher.dirty_streams(None, page).await.unwrap();
    wire.calls()
}

/// Does what changes something.
async fn operate(operator: &Operator, reason: &Reason) {
    operator.pause("mailer", reason).await.unwrap();
    operator.resume("mailer", reason).await.unwrap();
    let event = EventRef::new(notebook(1), Version::new(3));
    operator.skip("mailer", &event, reason).await.unwrap();
}

/// Takes back the requests of a job that no runner has served.
async fn abort(operator: &Operator, writer: &DynamoDb, reason: &Reason) {
    let redrive = Redrive::all("texter");
    let job = operator.redrive(&redrive, reason).await.unwrap();
    let asked = async {
        let asks = RangeQuery::new(format!("ask/texter/1/{TOPIC}/0"));
        let control = writer.control_store();
        while control.range(&asks).await.unwrap().rows.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let jobs = JobRunner::new(operator.clone(), "console").with_poll(Duration::from_millis(20));
    jobs.run("texter", job.id, asked).await.unwrap();
    let aborted = operator.abort("texter", job.id, reason).await.unwrap();
    assert!(aborted.affected > 0, "{aborted:?}");
}
