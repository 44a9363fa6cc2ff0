//! Backends in memory, a scripted change stream, and instances of the reader.
use super::script::Script;
use foldstream::{
    Backoff, IdSource, RetryPolicy, StreamHead, StreamId, Timestamp, Version,
    adapter::from_message,
    control::Watermarks,
    ports::{
        Append, AppendOutcome, Capabilities, Commit, EventData, EventStore, Message, MessageBus,
        MessageBusError, Offset, PartitionId, RunOutcome,
    },
    publisher::{DirtyStream, Notice, Publisher},
};
use foldstream_dynamodb::streams::{
    StreamsConfig, StreamsError, StreamsReader, StreamsReport, StreamsStatus,
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds,
    faults::Faults,
    intercept::{self, MessageBusLayer, async_trait},
};
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const S: Duration = Duration::from_secs(1);
pub(crate) const MIN: Duration = Duration::from_secs(60);
const TOPIC: &str = "GlobalEvents";

/// Returns a stream of the tests.
pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("cart", id).unwrap()
}

/// The records of each stream in the order of the bus, and the streams that it refuses.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    versions: Mutex<BTreeMap<StreamId, Vec<u64>>>,
    /// The streams whose records the bus cannot take now; all with an empty id.
    down: Mutex<Vec<String>>,
    /// The streams whose records hang.
    hanging: Mutex<Vec<String>>,
}

struct Recorder(Arc<Sent>);

#[async_trait]
impl MessageBusLayer for Recorder {
    async fn publish(
        &self,
        inner: &Arc<dyn MessageBus>,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        let header = from_message(message).unwrap().header;
        let id = header.stream.id().to_owned();
        let is_down = |down: &String| *down == id || down.is_empty();
        if self.0.hanging.lock().unwrap().contains(&id) {
            std::future::pending::<()>().await;
        }
        if self.0.down.lock().unwrap().iter().any(is_down) {
            let source = "the bus is down".into();
            return Err(MessageBusError::Unavailable { source });
        }
        let place = inner.publish(message).await?;
        let mut sent = self.0.versions.lock().unwrap();
        sent.entry(header.stream)
            .or_default()
            .push(header.version.get());
        Ok(place)
    }
    async fn publish_run(&self, inner: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        for (done, message) in run.iter().enumerate() {
            // A process may die between two messages.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Err(error) = self.publish(inner, message).await {
                return RunOutcome::broken_off(done, error);
            }
        }
        RunOutcome::complete(run.len())
    }
}

/// The backends of one deployment.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) script: Script,
    pub(crate) store: Arc<InMemoryEventStore>,
    pub(crate) control: Arc<InMemoryControlStore>,
    bus: Arc<InMemoryMessageBus>,
    sent: Arc<Sent>,
    ids: Arc<SeededIds>,
    heads: Arc<Mutex<BTreeMap<StreamId, StreamHead>>>,
    pub(crate) config: StreamsConfig,
}

impl World {
    pub(crate) fn new(script: Script) -> Self {
        Self::seeded(script, 1)
    }
    pub(crate) fn seeded(script: Script, seed: u64) -> Self {
        let bus = InMemoryMessageBus::new();
        bus.create_topic(TOPIC, 3);
        // A store without a list of unpublished commits, as in the mode `stream`.
        let store = InMemoryEventStore::with_capabilities(Capabilities::new(1_000_000));
        Self {
            script,
            store,
            control: InMemoryControlStore::new(),
            bus,
            sent: Arc::default(),
            ids: SeededIds::new(seed),
            heads: Arc::default(),
            config: StreamsConfig::default().with_backoff(Backoff::new(S / 10, S).with_seed(seed)),
        }
    }

    /// Appends a commit of one event without telling the change stream.
    pub(crate) async fn append(&self, id: &str) -> Commit {
        let stream = stream(id);
        let head = self.heads.lock().unwrap().get(&stream).cloned();
        let head = head.unwrap_or_else(|| StreamHead::empty(stream.clone()));
        let events = vec![EventData::new("Added", 1, "{}")];
        let append = Append::after(head, self.ids.commit_id(), Timestamp::now(), events);
        match self.store.append(&append).await.unwrap() {
            AppendOutcome::Appended(head) => self.heads.lock().unwrap().insert(stream, head),
            other => panic!("{other:?}"),
        };
        append.to_commit()
    }
    /// Appends a commit, and reports it in a shard.
    pub(crate) async fn write(&self, shard: &str, id: &str) {
        let commit = self.append(id).await;
        self.script.write(shard, Some(Notice::Commit(commit)));
    }
    pub(crate) fn take_down(&self, id: &str) {
        self.sent.down.lock().unwrap().push(id.into());
    }
    pub(crate) fn bring_up(&self) {
        self.sent.down.lock().unwrap().clear();
    }
    pub(crate) fn hang(&self, id: &str) {
        self.sent.hanging.lock().unwrap().push(id.into());
    }
    pub(crate) fn sent(&self, id: &str) -> Vec<u64> {
        let sent = self.sent.versions.lock().unwrap();
        sent.get(&stream(id)).cloned().unwrap_or_default()
    }

    pub(crate) fn publisher(&self, faults: &Faults) -> Publisher {
        let bus = intercept::message_bus(self.bus.clone(), Recorder(self.sent.clone()));
        let retry = RetryPolicy::default()
            .with_backoff(Backoff::new(S / 10, S / 5).with_seed(1))
            .with_max_elapsed(S / 2)
            .with_max_throttle(S / 2);
        Publisher::new(
            faults.event_store(self.store.clone()),
            faults.message_bus(bus),
            faults.control_store(self.control.clone()),
        )
        .with_retry(retry)
        .with_clock(self.script.clock())
        .with_ids(self.ids.clone())
    }
    pub(crate) fn reader(&self, name: &str, faults: &Faults) -> StreamsReader {
        let control = faults.control_store(self.control.clone());
        StreamsReader::over(self.script.clone(), control, self.publisher(faults))
            .with_config(self.config.clone())
            .with_instance(name)
            .with_clock(self.script.clock())
            .with_ids(self.ids.clone())
    }
    pub(crate) fn start(&self, name: &str) -> Running {
        self.start_with(name, Faults::none())
    }
    pub(crate) fn start_with(&self, name: &str, faults: Faults) -> Running {
        let reader = self.reader(name, &faults);
        let stop = CancellationToken::new();
        let task = {
            let (reader, stop) = (reader.clone(), stop.clone());
            tokio::spawn(async move { reader.run(stop.cancelled_owned()).await })
        };
        Running {
            reader,
            stop,
            task,
            faults,
        }
    }

    pub(crate) async fn dirty(&self) -> Vec<DirtyStream> {
        let publisher = self.publisher(&Faults::none());
        let limit = NonZeroU32::new(1000).unwrap();
        let (mut streams, mut after) = (Vec::new(), None);
        loop {
            let page = publisher.dirty_streams(after, limit).await.unwrap();
            streams.extend(page.streams);
            after = page.next;
            if after.is_none() {
                return streams;
            }
        }
    }
    /// Asserts that the first occurrences of each stream are 1, 2, 3, ...
    pub(crate) fn assert_order(&self) {
        for (stream, versions) in self.sent.versions.lock().unwrap().iter() {
            let mut next = 1;
            for version in versions {
                assert!(*version <= next, "{stream}: {version} before {next}");
                next = next.max(version + 1);
            }
        }
    }
    /// Asserts the same, and that every stream is published and marked to its tail.
    pub(crate) async fn assert_at_rest(&self) {
        self.assert_order();
        let heads = self.heads.lock().unwrap().clone();
        for (stream, head) in heads {
            let tail = head.version();
            let sent = self.sent(stream.id()).into_iter().max().map(Version::new);
            assert_eq!(sent, Some(tail), "{stream} on the bus");
            let marks = Watermarks::new(self.control.clone(), self.ids.clone());
            let mark = marks
                .get(&stream)
                .await
                .unwrap()
                .map(|mark| mark.value.version);
            assert_eq!(mark, Some(tail), "the watermark of {stream}");
        }
    }
    /// Returns the rows of the reader, by their keys.
    pub(crate) async fn rows(&self, label: &str) -> BTreeMap<String, String> {
        use foldstream::ports::{ControlStore, RangeQuery};
        let query = RangeQuery::new(format!("streams/{label}"));
        let page = self.control.range(&query).await.unwrap();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        page.rows
            .into_iter()
            .map(|row| (row.key.sort.clone(), text(&row.value)))
            .collect()
    }
}

/// An instance that runs.
pub(crate) struct Running {
    pub(crate) reader: StreamsReader,
    stop: CancellationToken,
    task: JoinHandle<Result<StreamsReport, StreamsError>>,
    pub(crate) faults: Faults,
}

impl Running {
    pub(crate) fn status(&self) -> StreamsStatus {
        self.reader.status()
    }
    /// Returns the shards that this instance reads.
    pub(crate) fn shards(&self) -> Vec<String> {
        self.status()
            .shards
            .into_iter()
            .map(|shard| shard.id)
            .collect()
    }
    pub(crate) async fn stop(self) -> Result<StreamsReport, StreamsError> {
        self.stop.cancel();
        self.task.await.unwrap()
    }
    /// Kills the process: nothing of it is done any more.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

/// Lets the time pass, as the instances see it.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
