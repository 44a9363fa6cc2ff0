//! Records on a bus, and handlers that record what they see.
use crate::support::{AccountEvent, stream};
use foldstream::{
    CommitId, IdSource, SourceUri, StreamHead, StreamId, Timestamp, Version,
    adapter::{to_message, to_message_after},
    ports::{
        Append, AppendOutcome, Commit, ControlStore, EventData, EventStore, MessageBus, Offset,
        PartitionId,
    },
    runner::{
        EventContext, HandlerResult, Listener, ModelId, Position, ProcessorPolicy, Projector,
        Runner, RunnerBuilder, RunnerError, RunnerReport,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds,
    faults::{Call, Fault, Faults, Op},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(super) const TOPIC: &str = "GlobalEvents";
/// The time at which every record is sent. A bus accepts none from before 1970.
pub(super) const SENT_AT: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// The store, bus and control store of a service.
pub(super) struct World {
    pub(super) store: Arc<InMemoryEventStore>,
    pub(super) bus: Arc<InMemoryMessageBus>,
    pub(super) control: Arc<InMemoryControlStore>,
    pub(super) ids: Arc<SeededIds>,
    heads: Mutex<BTreeMap<StreamId, StreamHead>>,
}

impl World {
    pub(super) fn new(partitions: u32) -> Self {
        Self::on(InMemoryMessageBus::new(), partitions)
    }

    pub(super) fn on(bus: Arc<InMemoryMessageBus>, partitions: u32) -> Self {
        assert!(bus.create_topic(TOPIC, partitions));
        Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::new(),
            ids: SeededIds::new(1),
            heads: Mutex::default(),
        }
    }

    /// Stores a commit with this number of deposits of 1, without publishing it.
    pub(super) async fn store(&self, id: &str, events: usize) -> Commit {
        let head = {
            let heads = self.heads.lock().unwrap();
            let known = heads.get(&stream(id)).cloned();
            known.unwrap_or_else(|| StreamHead::empty(stream(id)))
        };
        let event = EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
        let append = Append::after(
            head,
            self.ids.commit_id(),
            Timestamp::from_micros(1),
            vec![event; events],
        );
        let stored = self.store.append(&append).await.unwrap();
        let AppendOutcome::Appended(head) = stored else {
            panic!("{stored:?}")
        };
        self.heads.lock().unwrap().insert(stream(id), head);
        append.to_commit()
    }

    pub(super) async fn publish(&self, commit: &Commit) {
        for event in commit.recorded() {
            let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), SENT_AT);
            self.bus.publish(&message).await.unwrap();
        }
    }

    /// Publishes the last event of a commit, as the record after the one of version `previous`.
    pub(super) async fn publish_after(&self, previous: u64, commit: &Commit) {
        let event = commit.recorded().last().unwrap();
        let (topic, sent_at) = (TOPIC.into(), SENT_AT);
        let previous = Version::new(previous);
        let message = to_message_after(&event, &topic, &SourceUri::default(), sent_at, previous);
        self.bus.publish(&message.unwrap()).await.unwrap();
    }

    /// Stores and publishes one deposit of 1.
    pub(super) async fn deposit(&self, id: &str) {
        let commit = self.store(id, 1).await;
        self.publish(&commit).await;
    }

    /// Publishes an event that no store holds.
    pub(super) async fn publish_raw(&self, id: &str, version: u64, event: EventData) {
        let key = foldstream::ports::CommitKey::new(stream(id), Version::new(version));
        let commit = Commit::new(
            key,
            CommitId::random(),
            Timestamp::from_micros(1),
            foldstream::Metadata::new(),
            [event],
        );
        self.publish(&commit).await;
    }

    pub(super) fn builder(&self) -> RunnerBuilder {
        Runner::builder(
            self.bus.clone(),
            self.control.clone() as Arc<dyn ControlStore>,
            "example-group",
        )
    }

    /// Creates a builder whose bus and control store have these faults.
    pub(super) fn faulty_builder(&self, faults: &Faults) -> RunnerBuilder {
        Runner::builder(
            faults.message_bus(self.bus.clone()),
            faults.control_store(self.control.clone()),
            "example-group",
        )
    }

    /// Runs one listener until it has handled every record.
    pub(super) async fn catch_up(
        &self,
        listener: impl Listener,
        policy: ProcessorPolicy,
    ) -> RunnerReport {
        let runner = self
            .builder()
            .listener_with(listener, policy)
            .build()
            .unwrap();
        runner.run_until_caught_up().await
    }

    /// Returns the sum of the group's committed offsets over the partitions.
    pub(super) async fn committed(&self, group: &str) -> u64 {
        let committed = self.bus.committed(group, TOPIC).await.unwrap();
        committed
            .into_iter()
            .map(|(_, next)| next.map_or(0, Offset::get))
            .sum()
    }

    pub(super) async fn ends(&self) -> u64 {
        let offsets = self.bus.offsets(TOPIC).await.unwrap();
        offsets.iter().map(|o| o.end.get()).sum()
    }
}

/// Makes one call in ten fail, half of these after it was applied, and one in fifty late.
pub(super) fn unreliable(seed: u64) -> Faults {
    let calls = [
        Op::Get,
        Op::Put,
        Op::Offsets,
        Op::Subscribe,
        Op::Committed,
        Op::Next,
        Op::Commit,
        Op::Pause,
        Op::Resume,
    ];
    let late = Fault::Delay(Duration::from_millis(500));
    Faults::seeded(seed)
        .with(Fault::Unavailable.on(calls).one_in(20))
        .with(Fault::LoseReply.on(calls).one_in(20))
        .with(late.on(calls).one_in(50).jittered())
}

/// Returns true if a call writes the row of an instance.
pub(super) fn writes_the_instance(call: &Call<'_>) -> bool {
    matches!(call, Call::Put { row, .. } if row.key.partition.starts_with("inst/"))
}

/// Returns true if a call writes the boot row of a partition that has started.
pub(super) fn notes_the_start(call: &Call<'_>) -> bool {
    matches!(call, Call::Put { row, .. } if row.value.ends_with(br#""s":true}"#))
}

pub(super) const SEEN: &str = "example-group.seen.g1";

/// A listener from the beginning that halts at the first event that it cannot handle, without a
/// circuit breaker.
pub(super) fn from_beginning() -> ProcessorPolicy {
    ProcessorPolicy::listener()
        .with_start(foldstream::runner::Start::Beginning)
        .with_on_failure(|_| foldstream::runner::FailureAction::Halt)
        .without_breaker()
}

pub(super) fn error_of(report: &RunnerReport) -> &RunnerError {
    report.processors[0].error.as_deref().expect("it halted")
}

pub(super) fn partition(number: u32) -> PartitionId {
    PartitionId::new(TOPIC, number)
}

/// The result of a handler for one event, by stream id, version and attempt (from 1).
type Script = dyn Fn(&str, u64, u32) -> HandlerResult + Send + Sync;

/// A listener that records what it sees, and fails as configured.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) events: Arc<Mutex<Vec<(String, u64)>>>,
    script: Arc<Script>,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self::failing(|_, _, _| Ok(()))
    }
    pub(super) fn failing(
        script: impl Fn(&str, u64, u32) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        Self {
            events: Arc::default(),
            script: Arc::new(script),
        }
    }
    pub(super) fn all(&self) -> Vec<(String, u64)> {
        self.events.lock().unwrap().clone()
    }
    pub(super) fn of(&self, id: &str) -> Vec<u64> {
        let all = self.all();
        all.into_iter()
            .filter(|(s, _)| s == id)
            .map(|(_, v)| v)
            .collect()
    }
    pub(super) fn len(&self) -> usize {
        self.events.lock().unwrap().len()
    }
}

impl Listener for Seen {
    const NAME: &'static str = "seen";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        tokio::task::yield_now().await;
        let id = ctx.stream().id().to_owned();
        (self.script)(&id, ctx.version().get(), ctx.attempt())?;
        self.events.lock().unwrap().push((id, ctx.version().get()));
        Ok(())
    }
}

/// A read model that keeps the applied versions per stream, with the last as its position.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) rows: Mutex<BTreeMap<StreamId, Row>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) versions: Vec<u64>,
    pub(super) commit_id: Option<CommitId>,
}

impl Model {
    pub(super) fn versions(&self, id: &str) -> Vec<u64> {
        let rows = self.rows.lock().unwrap();
        rows.get(&stream(id)).cloned().unwrap_or_default().versions
    }
}

impl Projector for Model {
    const NAME: &'static str = "model";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        tokio::task::yield_now().await;
        let mut rows = self.rows.lock().unwrap();
        let row = rows.entry(ctx.stream().clone()).or_default();
        row.versions.push(ctx.version().get());
        row.commit_id = Some(ctx.event_id().commit_id());
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.rows.lock().unwrap().clear();
        Ok(())
    }
    async fn position(
        &self,
        _: &ModelId,
        stream: &StreamId,
    ) -> Result<Position, foldstream::runner::HandlerError> {
        let rows = self.rows.lock().unwrap();
        let row = rows.get(stream).cloned().unwrap_or_default();
        Ok(Position::Stored {
            version: Version::new(row.versions.last().copied().unwrap_or(0)),
            commit_id: row.commit_id,
        })
    }
}
