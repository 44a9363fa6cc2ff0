//! The work of a publisher: finding commits in each publish mode, publishing, the sweep and the
//! reconciliation.
use super::{app::hide, streams_reader};
use crate::support::{Call, Fate, Server, event, given, stream};
use async_trait::async_trait;
use foldstream::{
    CommitId, RecordedEvent, StreamHead, StreamId, Timestamp, Version,
    operate::Reason,
    ports::{Append, CommitKey, EventStore as _},
    publisher::{
        BootstrapMode, DirtyReason, Outbox, OutboxError, PollConfig, Publication, Publisher,
        ReconcileBudget, SweepConfig,
    },
};
use foldstream_dynamodb::{DynamoDb, PublishMode};
use foldstream_testkit::InMemoryMessageBus;
use std::time::Duration;

pub(super) const TOPIC: &str = "GlobalEvents";

/// An outbox that refuses the events of one payload.
#[derive(Debug)]
pub(super) struct Refusing;
#[async_trait]
impl Outbox for Refusing {
    async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError> {
        match &event.payload[..] {
            b"\"refused\"" => Err(OutboxError::Refused {
                reason: "by the test".into(),
            }),
            _ => Ok(Publication::AsStored),
        }
    }
}

/// Stores an event that the outbox refuses, and returns its stream.
pub(super) async fn given_a_refused_event(writer: &DynamoDb) -> StreamId {
    let stream = stream();
    let now = Timestamp::from_micros(1_767_225_600_000_000);
    let head = StreamHead::empty(stream.clone());
    let append = Append::after(head, CommitId::random(), now, [event("\"refused\"")]);
    let _ = writer.event_store().append(&append).await.unwrap();
    stream
}

/// Does the work, and returns the requests.
pub(super) async fn work(server: &Server, mode: PublishMode) -> Vec<Call> {
    let config = server.config().with_publish_mode(mode);
    let writer = DynamoDb::connect(config.clone()).await.unwrap();
    let (stores, wire) = server.connect_over(config, |_| Fate::Pass).await;
    let stores = stores.unwrap();
    let bus = InMemoryMessageBus::new();
    bus.create_topic(TOPIC, 1);
    let publisher =
        Publisher::new(stores.event_store(), bus, stores.control_store()).with_outbox(Refusing);
    publisher.check_topics([]).await.unwrap();

    let found = stream();
    given(&writer.event_store(), &found, &[1, 1, 1]).await;
    wire.decide(hide(&found, 2));
    if mode.marks_commits() {
        let published = async {
            while publisher.status().published < 3 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        publisher
            .poll(PollConfig::default(), published)
            .await
            .unwrap();
    }
    if mode != PublishMode::Poller {
        let noticed = stream();
        given(&writer.event_store(), &noticed, &[1, 1, 1]).await;
        wire.decide(hide(&noticed, 2));
        let notices = [1, 3].map(|v| CommitKey::new(noticed.clone(), Version::new(v)));
        let report = publisher.publish(notices).await;
        assert!(report.failed.is_empty(), "{report:?}");
    }
    wire.decide(|_| Fate::Pass);

    let aside = stream();
    given(&writer.event_store(), &aside, &[1]).await;
    let first = Version::new(1);
    publisher
        .set_aside(&aside, first, DirtyReason::Backlog)
        .await
        .unwrap();
    let swept = publisher.sweep(&SweepConfig::default()).await.unwrap();
    assert_eq!(swept.published, 1, "{swept:?}");

    // Before it gives an event up, it asks whether an operator has skipped the event.
    let stuck = given_a_refused_event(&writer).await;
    let report = publisher.publish_stream(&stuck).await;
    assert!(report.failed[0].is_dirty, "{report:?}");
    let reason = Reason::new("ann", "the service is gone").unwrap();
    publisher.skip(&stuck, first, &reason).await.unwrap();

    given(&writer.event_store(), &stream(), &[1]).await;
    let budget = ReconcileBudget::default();
    let reconciled = publisher.reconcile(None, &budget).await.unwrap();
    assert!(reconciled.next.is_none(), "{reconciled:?}");

    if mode != PublishMode::Poller {
        streams_reader::work(server, &writer, &stores, &wire, &publisher).await;
    }

    publisher.accept_partitions(TOPIC, 1).await.unwrap();
    let named = publisher.with_name("audit".parse().unwrap());
    named.bootstrap(BootstrapMode::Tail).await.unwrap();
    wire.calls()
}
