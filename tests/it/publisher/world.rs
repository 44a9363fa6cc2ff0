//! In-memory adapters behind faults, and the invariants that hold under every fault.
use foldstream::{
    Clock, EventId, RetryPolicy, StreamHead, StreamId, Timestamp, Version,
    adapter::from_message,
    control::{Stored, Watermark, Watermarks},
    ports::{
        Append, AppendOutcome, Capabilities, Commit, CommitKey, EventData, EventStore, Message,
        MessageBus, MessageBusError, Offset, PartitionId, Row, RunOutcome, Segment,
    },
    publisher::Publisher,
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds,
    faults::{Call, Fault, Faults, Moment, Rule},
    intercept::{self, MessageBusLayer, async_trait},
};
use futures::FutureExt;
use std::{
    collections::{BTreeMap, BTreeSet},
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
    /// Streams of which a watermark or a record says that not every event has a record.
    private: Mutex<BTreeSet<StreamId>>,
    /// The records in the order in which the bus has stored them.
    records: Mutex<Vec<Message>>,
}
impl Network {
    fn keep(&self, message: &Message) {
        self.records.lock().unwrap().push(message.clone());
    }
    /// Returns the records of a stream, with repeats.
    pub(crate) fn records(&self, stream: &StreamId) -> Vec<Message> {
        let records = self.records.lock().unwrap();
        let key = stream.as_str().as_bytes();
        let of_stream = records.iter().filter(|m| m.key.as_deref() == Some(key));
        of_stream.cloned().collect()
    }
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
    pub(crate) fn sent_to(&self, stream: &StreamId) -> Version {
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

/// Records what the bus has stored, and cuts runs short by a seed.
struct Recorder {
    network: Arc<Network>,
    /// One run in this many is cut; 0 for none.
    cuts: Arc<Mutex<(u32, fastrand::Rng)>>,
}

#[async_trait]
impl MessageBusLayer for Recorder {
    async fn publish(
        &self,
        inner: &Arc<dyn MessageBus>,
        message: &Message,
    ) -> Result<(PartitionId, Offset), MessageBusError> {
        let place = inner.publish(message).await?;
        let header = from_message(message).unwrap().header;
        let done = Done::Sent(header.stream, header.version, header.event_id);
        self.network.note(done);
        if message.header("ce_fsprev").is_some() {
            let key = std::str::from_utf8(message.key.as_deref().unwrap()).unwrap();
            let stream = StreamId::parse(key).unwrap();
            self.network.private.lock().unwrap().insert(stream);
        }
        self.network.keep(message);
        Ok(place)
    }

    async fn publish_run(&self, inner: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        let (stored, reported) = {
            let mut cuts = self.cuts.lock().unwrap();
            let (one_in, dice) = &mut *cuts;
            if *one_in > 0 && dice.u32(..*one_in) == 0 {
                let stored = dice.usize(..=run.len());
                (stored, dice.usize(..=stored))
            } else {
                (run.len(), run.len())
            }
        };
        for (done, message) in run[..stored].iter().enumerate() {
            // A process may die between two messages.
            tokio::task::yield_now().await;
            if let Err(error) = self.publish(inner, message).await {
                return RunOutcome::broken_off(done, error);
            }
        }
        if reported == run.len() {
            return RunOutcome::complete(reported);
        }
        let source = "the run was cut".into();
        RunOutcome::broken_off(reported, MessageBusError::Unavailable { source })
    }
}

/// Sends runs one message at a time, so that faults concern single messages.
struct OneByOne;

#[async_trait]
impl MessageBusLayer for OneByOne {
    async fn publish_run(&self, inner: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        for (done, message) in run.iter().enumerate() {
            if let Err(error) = inner.publish(message).await {
                return RunOutcome::broken_off(done, error);
            }
        }
        RunOutcome::complete(run.len())
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
    pub(crate) ids: Arc<SeededIds>,
    pub(crate) clock: Arc<dyn Clock>,
    cuts: Arc<Mutex<(u32, fastrand::Rng)>>,
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
    /// Creates a world with one topic of three partitions, whose store keeps a list of unpublished
    /// commits or none.
    pub(crate) fn seeded_with(seed: u64, lists: bool) -> Self {
        let mut world = Self::seeded(seed);
        if !lists {
            let capabilities = Capabilities::new(1_000_000);
            world.store = InMemoryEventStore::with_capabilities(capabilities);
        }
        world
    }
    /// Creates a world with one topic of three partitions.
    pub(crate) fn seeded(seed: u64) -> Self {
        let bus = InMemoryMessageBus::new();
        bus.create_topic(TOPIC, 3);
        let clock: Arc<dyn Clock> = Arc::new(TokioClock(Instant::now()));
        let control = InMemoryControlStore::with_clock(clock.clone());
        let network = Arc::<Network>::default();
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
            cuts: Arc::new(Mutex::new((0, fastrand::Rng::with_seed(seed)))),
            ids,
            clock,
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
    /// Cuts one run in this many short; 0 for none.
    pub(crate) fn cut_runs(&self, one_in: u32) {
        self.cuts.lock().unwrap().0 = one_in;
    }
    /// Creates a publisher as a process of its own. It retries a failing call at once, and again
    /// after a millisecond. Each message of a run is a call of its own.
    pub(crate) fn publisher(&self) -> Publisher {
        let bus = intercept::message_bus(self.faulty_bus(&self.faults), OneByOne);
        self.process(&self.faults, bus)
    }
    /// Creates a publisher whose runs are one call each, in a process that these faults may kill.
    pub(crate) fn publisher_of_runs(&self, faults: &Faults) -> Publisher {
        self.process(faults, self.faulty_bus(faults))
    }
    fn faulty_bus(&self, faults: &Faults) -> Arc<dyn MessageBus> {
        let (network, cuts) = (self.network.clone(), self.cuts.clone());
        let recorder = Recorder { network, cuts };
        faults.message_bus(intercept::message_bus(self.bus.clone(), recorder))
    }
    fn process(&self, faults: &Faults, bus: Arc<impl MessageBus + ?Sized>) -> Publisher {
        Publisher::new(
            faults.event_store(self.store.clone()),
            bus,
            faults.control_store(self.control.clone()),
        )
        .with_clock(self.clock.clone())
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
        let event = |payload: &String| EventData::new("Added", 1, payload.clone());
        let events = payloads.iter().map(event).collect();
        self.append_events(stream, events).await
    }
    /// Appends a commit of small events with these names.
    pub(crate) async fn append_named(&self, stream: &StreamId, names: &[&str]) -> Commit {
        let event = |name: &&str| EventData::new((*name).to_owned(), 1, "{}");
        let events = names.iter().map(event).collect();
        self.append_events(stream, events).await
    }
    async fn append_events(&self, stream: &StreamId, events: Vec<EventData>) -> Commit {
        use foldstream::IdSource;
        let head = self.heads.lock().unwrap().get(stream).cloned();
        let head = head.unwrap_or_else(|| StreamHead::empty(stream.clone()));
        let at = Timestamp::from_micros(1_767_225_600_000_000);
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
        if !self.store.capabilities().lists_unpublished {
            return Vec::new();
        }
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

    /// Returns the versions of a stream's records, each with the version that it names in
    /// `ce_fsprev`.
    pub(crate) fn explained(&self, stream: &StreamId) -> Vec<(u64, Option<u64>)> {
        let number = |message: &Message, header: &str| {
            message.header(header).map(|text| text.parse().unwrap())
        };
        let records = self.network.records(stream);
        let records = records.iter();
        records
            .map(|m| (number(m, "ce_fsversion").unwrap(), number(m, "ce_fsprev")))
            .collect()
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
/// Every event up to a watermark is on the bus before the watermark is written, unless events are
/// private: then the record that the watermark names is. The watermark covers a marker before the
/// marker is cleared.
fn assert_allowed(network: &Network, marks: &Watermarks, call: &Call<'_>) {
    match call {
        Call::Put { row, .. } => {
            if let Some((stream, mark)) = watermark_of(row) {
                let (version, record) = (mark.version, mark.last_record());
                let mut private = network.private.lock().unwrap();
                if record != version {
                    private.insert(stream.clone());
                }
                if private.contains(&stream) {
                    let is_sent = network.sent(&stream).iter().any(|(v, _)| *v == record);
                    assert!(
                        is_sent || record == Version::NONE,
                        "{stream} is marked at {version}, its record {record} is not sent"
                    );
                } else {
                    let sent = network.sent_to(&stream);
                    assert!(
                        version <= sent,
                        "{stream} is marked at {version}, sent to {sent}"
                    );
                }
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
