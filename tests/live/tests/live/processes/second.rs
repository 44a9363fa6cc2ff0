//! A second service reads the topic of another one: without an event store, with an enum that has
//! some of the events, with processors of other names, and with events that are not in the topic.
//!
//! The header `ce_fsprev` tells the service where events were left out, so that it neither waits
//! for them nor looks for them.
use super::{Fleet, stored, until};
use foldstream::{
    DomainEvent, Timestamp, Version, adapter,
    ports::{EventStore as _, MessageBus as _, ReadFrom},
    runner::{
        DeliveryLevel, EventContext, HandlerError, HandlerResult, Listener, ProcessorPolicy,
        ProcessorReport, Runner, RunnerHandle, Start, UnknownEvents,
    },
};
use foldstream_dynamodb::ReadModelRow;
use foldstream_live::{AccountEvent, AccountId, Effects};
use foldstream_testkit::containers::Kafka;
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

const STREAMS: usize = 12;
const PARTITIONS: u32 = 3;

/// The events of an account that the second service cares about.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
enum Notice {
    Deposited {},
    Disputed {},
}

/// The service learns to handle disputes.
static IS_MENDED: AtomicBool = AtomicBool::new(false);

fn refuse_dispute(event: &Notice) -> HandlerResult {
    match event {
        Notice::Disputed {} if !IS_MENDED.load(Ordering::SeqCst) => {
            Err(HandlerError::permanent("disputes are not supported"))
        }
        _ => Ok(()),
    }
}

/// The listener of the second service.
struct Mail(Effects);
impl Listener for Mail {
    const NAME: &'static str = "mail";
    type Events = Notice;
    async fn handle(&self, event: &Notice, ctx: &EventContext) -> HandlerResult {
        refuse_dispute(event)?;
        self.0.add(ctx);
        Ok(())
    }
}

/// The read model of the second service: the versions that an account's row was folded from.
#[derive(Default, Serialize, Deserialize)]
struct Received {
    versions: Vec<u64>,
}
impl ReadModelRow for Received {
    const NAME: &'static str = "received";
    type Events = Notice;
    fn apply(row: &mut Option<Self>, event: &Notice, ctx: &EventContext) -> HandlerResult {
        refuse_dispute(event)?;
        let row = row.get_or_insert_default();
        row.versions.push(ctx.version().get());
        Ok(())
    }
}

/// Returns the events of a stream. Those of amount 0 stay out of the topic: the first, the last,
/// and some between others. The second service knows no withdrawals.
fn events(stream: usize) -> Vec<AccountEvent> {
    use AccountEvent::{Deposited, Disputed, Withdrawn};
    let dispute = match has_dispute(stream) {
        true => Disputed { amount: 1 },
        false => Deposited { amount: 1 },
    };
    vec![
        Deposited { amount: 0 },
        Deposited { amount: 1 },
        Withdrawn { amount: 0 },
        Withdrawn { amount: 1 },
        dispute,
        Deposited { amount: 0 },
        Deposited { amount: 1 },
        Withdrawn { amount: 0 },
    ]
}
/// The versions among them that the second service handles, and those of [`later`].
const HANDLED: [u64; 4] = [2, 5, 7, 10];
const DISPUTED: u64 = 5;

const fn has_dispute(stream: usize) -> bool {
    stream.is_multiple_of(3)
}

/// Returns the events that follow once the second service has started again.
fn later() -> Vec<AccountEvent> {
    use AccountEvent::Deposited;
    vec![Deposited { amount: 0 }, Deposited { amount: 1 }]
}

/// Appends to each stream, and publishes what is not private, after this version.
async fn append_and_publish(
    first: &Fleet,
    after: Version,
    mut previous: Version,
    events: impl Fn(usize) -> Vec<AccountEvent>,
) {
    let (repository, bus) = (first.repository(), first.settings.bus());
    let (topic, source) = (
        first.settings.name.as_str().into(),
        "urn:foldstream:first".parse().unwrap(),
    );
    let before = previous;
    for n in 0..STREAMS {
        previous = before;
        let id = AccountId::from(format!("{n}"));
        let events = events(n);
        repository.execute(&id, events).await.unwrap();
        let stream = foldstream::StreamId::new("account", &id).unwrap();
        let from = ReadFrom::Event(after.next());
        let commits = first.stores.event_store();
        let commits: Vec<_> = commits
            .read(&stream, from, None)
            .try_collect()
            .await
            .unwrap();
        for event in commits.iter().flat_map(|commit| commit.recorded()) {
            if event.payload.as_ref() == br#"{"amount":0}"# {
                continue;
            }
            let (version, now) = (event.header.version, Timestamp::now());
            let message = adapter::to_message_after(&event, &topic, &source, now, previous);
            let key = stream.as_str().as_bytes();
            let partition = adapter::kafka_partition(key, PARTITIONS);
            let message = message.unwrap().with_partition(partition);
            bus.publish(&message).await.unwrap();
            previous = version;
        }
    }
}

/// Starts the second service on the topic of the first.
fn start(first: &Fleet, second: &Fleet) -> RunnerHandle {
    let (topic, group) = (&*first.settings.name, &*second.settings.name);
    let mail = ProcessorPolicy::listener()
        .with_start(Start::Beginning)
        .with_level(DeliveryLevel::Deduplicated);
    // The enum leaves out what the service does not care about.
    let received = ProcessorPolicy::projector()
        .with_level(DeliveryLevel::ExactlyOnceEffect)
        .with_unknown_events(UnknownEvents::Skip);
    let runner = Runner::builder(second.settings.bus(), second.stores.control_store(), group)
        .with_topics([topic])
        .listener_with(Mail(Effects::open(second.folder.path())), mail)
        .projector_with(second.stores.read_model::<Received>(), received);
    runner.build().unwrap().start()
}

async fn has_caught_up(first: &Fleet, second: &Fleet) {
    for processor in ["mail", "received"] {
        let group = format!("{}.{processor}.g1", second.settings.name);
        let is_level = async || stored::lag_of(first, &group).await == Some(0);
        until("the second service has committed everything", is_level).await;
    }
}

/// Stops the service, and returns the reports. No gap is unexplained.
async fn stop(handle: RunnerHandle) -> Vec<ProcessorReport> {
    handle.stop();
    let reports = handle.wait().await.into_result().unwrap();
    for report in &reports {
        let gaps = (report.gaps_unverified, report.out_of_order, report.filled);
        assert_eq!(gaps, (0, 0, 0), "{report:?}");
    }
    reports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_second_service_without_an_event_store_reads_the_events_that_it_knows() {
    let brokers = Kafka::shared().await.brokers();
    let first = Fleet::open("first", brokers, PARTITIONS).await;
    let second = Fleet::open("second", brokers, 1).await;
    let disputes = (0..STREAMS).filter(|n| has_dispute(*n)).count() as u64;

    append_and_publish(&first, Version::NONE, Version::NONE, events).await;
    let handle = start(&first, &second);
    has_caught_up(&first, &second).await;
    let reports = stop(handle).await;
    let parked: Vec<_> = reports.iter().map(|report| report.parked).collect();
    assert_eq!(parked, [0, disputes], "{reports:?}");
    assert_eq!(reports[0].dead_letters, disputes, "{reports:?}");
    // Without an event store the record of the dispute and the one after it are kept as rows.
    let rows = stored::failed_events(&second).await;
    let deferred = rows.iter().filter(|row| row.starts_with("def/received/"));
    assert_eq!(deferred.count() as u64, 2 * disputes, "{rows:?}");

    // Another process goes on, and finds what is parked.
    let handle = start(&first, &second);
    let (after, previous) = (Version::new(8), Version::new(7));
    append_and_publish(&first, after, previous, |_| later()).await;
    has_caught_up(&first, &second).await;
    IS_MENDED.store(true, Ordering::SeqCst);
    for processor in ["mail", "received"] {
        let counts = second.redrive(processor).await.counts;
        assert_eq!((counts.done, counts.failed), (disputes, 0), "{processor}");
    }
    let is_clean = async || stored::failed_events(&second).await.is_empty();
    until("nothing is parked, dead or deferred", is_clean).await;
    has_caught_up(&first, &second).await;
    stop(handle).await;

    let received = stored::rows_of::<Received>(&second, "received").await;
    assert_eq!(received.len(), STREAMS);
    for (stream, (row, position)) in received {
        assert_eq!(row.versions, HANDLED, "{stream}");
        assert_eq!(position, HANDLED[3], "{stream}");
    }
    let mut mails = BTreeMap::<String, Vec<u64>>::new();
    for effect in Effects::read(second.folder.path()) {
        mails.entry(effect.stream).or_default().push(effect.version);
    }
    assert_eq!(mails.len(), STREAMS);
    for (stream, versions) in mails {
        let number: usize = stream.trim_start_matches("account#").parse().unwrap();
        let mut expected = HANDLED.to_vec();
        // The dead letter of the listener was redriven last.
        expected.sort_by_key(|version| has_dispute(number) && *version == DISPUTED);
        assert_eq!(versions, expected, "{stream}");
    }
}
