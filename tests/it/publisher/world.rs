//! In-memory adapters behind faults, and the invariants that hold under every fault.
use foldstream::{
    Clock, EventId, RetryPolicy, StreamHead, StreamId, Timestamp, Version,
    adapter::from_message,
    control::{Stored, Watermark, Watermarks},
    ports::{
        Append, AppendOutcome, Commit, CommitKey, EventData, EventStore, MessageBus, Row, Segment,
    },
    publisher::Publisher,
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds,
    faults::{Call, Fault, Faults, Moment, Rule},
};
use futures::FutureExt;
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

pub(crate) const TOPIC: &str = "GlobalEvents";

/// Returns true if a call sends an event of a stream.
pub(crate) fn is_send_of(call: &Call<'_>, stream: &StreamId) -> bool {
    matches!(call, Call::Publish(_)) && call.is_about(stream)
}

/// An effect at a backend; the network records them in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Done {
    Sent(StreamId, Version, EventId),
    Marked(StreamId, Version),
    Cleared(StreamId, Version),
    Read(StreamId),
}

/// All records of a stream in order, and the version up to which none is missing.
type Sent = (Vec<(Version, EventId)>, Version);

/// The calls between publishers and backends that took effect.
#[derive(Debug, Default)]
pub(crate) struct Network {
    done: Mutex<Vec<Done>>,
    /// The records of each stream on the bus, with repeats, and the version up to which none is
    /// missing.
    sent: Mutex<BTreeMap<StreamId, Sent>>,
}
impl Network {
    pub(crate) fn done(&self) -> Vec<Done> {
        self.done.lock().unwrap().clone()
    }
    pub(crate) fn forget(&self) {
        self.done.lock().unwrap().clear();
        self.sent.lock().unwrap().clear();
    }
    fn note(&self, done: Done) {
        if let Done::Sent(stream, version, id) = &done {
            let mut sent = self.sent.lock().unwrap();
            let (all, gapless) = sent.entry(stream.clone()).or_default();
            all.push((*version, *id));
            if *version == gapless.next() {
                *gapless = *version;
            }
        }
        self.done.lock().unwrap().push(done);
    }
    /// Returns the versions of a stream on the bus, with repeats.
    pub(crate) fn sent(&self, stream: &StreamId) -> Vec<(Version, EventId)> {
        let sent = self.sent.lock().unwrap();
        sent.get(stream)
            .map(|(all, _)| all.clone())
            .unwrap_or_default()
    }
    /// Returns the version up to which the bus has a stream without a gap.
    fn sent_to(&self, stream: &StreamId) -> Version {
        let sent = self.sent.lock().unwrap();
        sent.get(stream)
            .map_or(Version::NONE, |(_, gapless)| *gapless)
    }
    /// Returns the number of watermark writes over all streams.
    pub(crate) fn marks(&self) -> usize {
        let done = self.done.lock().unwrap();
        done.iter()
            .filter(|d| matches!(d, Done::Marked(..)))
            .count()
    }
    pub(crate) fn reads(&self) -> usize {
        let done = self.done.lock().unwrap();
        done.iter().filter(|d| matches!(d, Done::Read(..))).count()
    }
}

/// Backends, and the network in front of them.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) store: Arc<InMemoryEventStore>,
    pub(crate) bus: Arc<InMemoryMessageBus>,
    pub(crate) control: Arc<InMemoryControlStore>,
    pub(crate) network: Arc<Network>,
    pub(crate) faults: Faults,
    ids: Arc<SeededIds>,
    heads: Arc<Mutex<BTreeMap<StreamId, StreamHead>>>,
}

/// The runtime's clock, which tests pause.
#[derive(Debug)]
pub(crate) struct TokioClock(Instant);
impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000).plus(self.0.elapsed())
    }
}

pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("cart", id).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }
    /// Creates a world with one topic of three partitions.
    pub(crate) fn seeded(seed: u64) -> Self {
        let bus = InMemoryMessageBus::new();
        bus.create_topic(TOPIC, 3);
        let (network, control) = (Arc::<Network>::default(), InMemoryControlStore::new());
        let ids = SeededIds::new(seed);
        let probe = {
            let network = network.clone();
            let marks = Watermarks::new(control.clone(), ids.clone());
            move |moment, call: &Call<'_>| match moment {
                Moment::Reaches => assert_allowed(&network, &marks, call),
                Moment::Done => note(&network, call),
            }
        };
        Self {
            store: InMemoryEventStore::new(),
            bus,
            control,
            network,
            faults: Faults::seeded(seed).with_probe(probe),
            ids,
            heads: Arc::default(),
        }
    }
    /// Replaces the store as a restore from a backup does. The bus and the rows stay.
    pub(crate) fn with_restored_store(&self) -> Self {
        Self {
            store: InMemoryEventStore::new(),
            heads: Arc::default(),
            ..self.clone()
        }
    }
    /// Sets the faults from now on, in place of all earlier ones.
    pub(crate) fn set_fates(
        &self,
        fate: impl Fn(&Call<'_>) -> Option<Fault> + Send + Sync + 'static,
    ) {
        self.faults.set([Rule::chosen_by(fate)]);
    }
    pub(crate) fn heal(&self) {
        self.faults.set([]);
    }
    /// Creates a publisher as a process of its own. It retries a failing call at once, and again
    /// after a millisecond.
    pub(crate) fn publisher(&self) -> Publisher {
        Publisher::new(
            self.faults.event_store(self.store.clone()),
            self.faults.message_bus(self.bus.clone()),
            self.faults.control_store(self.control.clone()),
        )
        .with_clock(Arc::new(TokioClock(Instant::now())))
        .with_ids(self.ids.clone())
        .with_retry(
            RetryPolicy::default()
                .with_immediate(1)
                .with_max_elapsed(Duration::from_millis(1))
                .with_max_throttle(Duration::from_secs(1)),
        )
    }

    /// Appends a commit of events with these payloads.
    pub(crate) async fn append_payloads(&self, stream: &StreamId, payloads: &[String]) -> Commit {
        use foldstream::IdSource;
        let head = self.heads.lock().unwrap().get(stream).cloned();
        let head = head.unwrap_or_else(|| StreamHead::empty(stream.clone()));
        let at = Timestamp::from_micros(1_767_225_600_000_000);
        let event = |payload: &String| EventData::new("Added", 1, payload.clone());
        let events: Vec<_> = payloads.iter().map(event).collect();
        let append = Append::after(head, self.ids.commit_id(), at, events);
        match self.store.append(&append).await.unwrap() {
            AppendOutcome::Appended(head) => {
                self.heads.lock().unwrap().insert(stream.clone(), head);
                append.to_commit()
            }
            other => panic!("{other:?}"),
        }
    }
    /// Appends a commit of this number of small events.
    pub(crate) async fn append(&self, stream: &StreamId, events: usize) -> Commit {
        self.append_payloads(stream, &vec!["{}".to_owned(); events])
            .await
    }
    pub(crate) fn tail(&self, stream: &StreamId) -> Version {
        let heads = self.heads.lock().unwrap();
        heads.get(stream).map_or(Version::NONE, StreamHead::version)
    }
    pub(crate) fn streams(&self) -> Vec<StreamId> {
        self.heads.lock().unwrap().keys().cloned().collect()
    }
    pub(crate) fn watermarks(&self) -> Watermarks {
        Watermarks::new(self.control.clone(), self.ids.clone())
    }
    pub(crate) async fn watermark(&self, stream: &StreamId) -> Option<Stored<Watermark>> {
        self.watermarks().get(stream).await.unwrap()
    }
    /// Returns the keys that the store still lists, sorted.
    pub(crate) async fn unpublished(&self) -> Vec<CommitKey> {
        let all = NonZeroU32::MAX;
        let page = self
            .store
            .unpublished(Segment::ALL, None, all)
            .await
            .unwrap();
        let mut keys = page.keys;
        keys.sort();
        keys
    }
    pub(crate) async fn records(&self) -> u64 {
        let offsets = self.bus.offsets(TOPIC).await.unwrap();
        offsets.iter().map(|p| p.end.get()).sum()
    }

    /// Asserts that each stream's first occurrences are 1, 2, 3, ..., and that no event has two
    /// ids.
    pub(crate) fn assert_order(&self) {
        for stream in self.streams() {
            let mut seen: Vec<EventId> = Vec::new();
            for (version, id) in self.network.sent(&stream) {
                let place = usize::try_from(version.get()).unwrap() - 1;
                assert!(
                    place <= seen.len(),
                    "{stream}: {version} before {}",
                    seen.len() + 1
                );
                if place == seen.len() {
                    seen.push(id);
                }
                assert_eq!(seen[place], id, "{stream} {version}");
            }
        }
    }
    /// Asserts the same, and that everything is sent, marked and cleared.
    pub(crate) async fn assert_at_rest(&self) {
        self.assert_order();
        for stream in self.streams() {
            let tail = self.tail(&stream);
            let sent = self.network.sent(&stream);
            assert_eq!(sent.iter().map(|(v, _)| *v).max(), Some(tail), "{stream}");
            let mark = self.watermark(&stream).await.map(|m| m.value);
            let head = self.heads.lock().unwrap()[&stream].clone();
            let expected = Watermark::new(tail, head.commit_id().unwrap());
            assert_eq!(mark, Some(expected), "{stream}");
        }
        assert_eq!(self.unpublished().await, []);
    }
}

/// Asserts what must hold when a call reaches its backend.
///
/// Every event up to a watermark is on the bus before the watermark is written. The watermark
/// covers a marker before the marker is cleared.
fn assert_allowed(network: &Network, marks: &Watermarks, call: &Call<'_>) {
    match call {
        Call::Put { row, .. } => {
            if let Some((stream, mark)) = watermark_of(row) {
                let sent = network.sent_to(&stream);
                let version = mark.version;
                assert!(
                    version <= sent,
                    "{stream} is marked at {version}, sent to {sent}"
                );
            }
        }
        Call::ClearUnpublished(keys) => {
            for key in *keys {
                let mark = tokio::task::unconstrained(marks.get(&key.stream)).now_or_never();
                let mark = mark.expect("memory answers at once").unwrap();
                let mark = mark.map_or(Version::NONE, |m| m.value.version);
                assert!(
                    key.first_version <= mark,
                    "{key:?} is cleared, the watermark is {mark}"
                );
            }
        }
        _ => {}
    }
}

fn note(network: &Network, call: &Call<'_>) {
    match call {
        Call::Publish(message) => {
            let header = from_message(message).unwrap().header;
            network.note(Done::Sent(header.stream, header.version, header.event_id));
        }
        Call::Put { row, .. } => {
            if let Some((stream, mark)) = watermark_of(row) {
                network.note(Done::Marked(stream, mark.version));
            }
        }
        Call::ClearUnpublished(keys) => {
            for key in *keys {
                network.note(Done::Cleared(key.stream.clone(), key.first_version));
            }
        }
        Call::Read { stream, .. } => network.note(Done::Read((*stream).clone())),
        _ => {}
    }
}

fn watermark_of(row: &Row) -> Option<(StreamId, Watermark)> {
    row.key.partition.strip_prefix("wm/")?;
    let stream = StreamId::parse(&row.key.sort).unwrap();
    Some((stream, serde_json::from_slice(&row.value).unwrap()))
}
