//! In-memory adapters behind a faulty network, and the invariants that hold whatever happens on it.
use async_trait::async_trait;
use foldstream::{
    BoxError, Clock, EventId, RetryPolicy, StreamHead, StreamId, Timestamp, Version,
    control::{Stored, Watermark, Watermarks},
    from_message,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, Consumer,
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, EventData, EventStore,
        EventStoreError, Expect, Message, MessageBus, MessageBusError, Offset, PartitionId,
        PartitionOffsets, PutOutcome, RangeQuery, ReadFrom, RefusedKind, Row, RowKey, RowPage,
        ScanCursor, ScanPage, ScanWhat, Segment, StreamPage, Subscription, TopicDescription,
        UnpublishedPage,
    },
    publisher::Publisher,
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds};
use futures::StreamExt;
use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

pub(crate) const TOPIC: &str = "GlobalEvents";

/// A call on its way to a backend.
#[derive(Debug)]
pub(crate) enum Call<'a> {
    Read,
    List,
    Clear,
    Send(&'a Message),
    Describe,
    Get,
    Put,
}
impl Call<'_> {
    pub(crate) fn is_send_of(&self, stream: &StreamId) -> bool {
        matches!(self, Call::Send(message) if message.key == stream.as_str().as_bytes())
    }
}

/// What the network makes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Arrives,
    /// Not done.
    Fails,
    /// Done, but the answer is lost.
    AnswerLost,
    /// The caller is told that it failed; it is done later.
    ArrivesLate(Duration),
    /// Refused until somebody changes something.
    Refused(RefusedKind),
    /// No answer, ever.
    Hangs,
}

/// What was done at the backends, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Done {
    Sent(StreamId, Version, EventId),
    Marked(StreamId, Version),
    Cleared(StreamId, Version),
    Read(StreamId),
}

type Decider = dyn Fn(&Call<'_>) -> (Fate, Duration) + Send + Sync;

/// All records of a stream in their order, and the version up to which none is missing.
type Sent = (Vec<(Version, EventId)>, Version);

/// The network between publishers and backends.
pub(crate) struct Network {
    decide: Mutex<Arc<Decider>>,
    done: Mutex<Vec<Done>>,
    /// What the bus has of each stream, repeats included, and up to where without a gap.
    sent: Mutex<BTreeMap<StreamId, Sent>>,
}
impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}
impl Network {
    async fn pass(&self, call: &Call<'_>) -> Fate {
        let decide = self.decide.lock().unwrap().clone();
        let (fate, takes) = decide(call);
        // At least one point where the caller may be dropped, before and after.
        tokio::task::yield_now().await;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        if fate == Fate::Hangs {
            std::future::pending::<()>().await;
        }
        fate
    }
    pub(crate) fn done(&self) -> Vec<Done> {
        self.done.lock().unwrap().clone()
    }
    pub(crate) fn forget(&self) {
        self.done.lock().unwrap().clear();
        self.sent.lock().unwrap().clear();
    }
    fn note(&self, done: impl IntoIterator<Item = Done>) {
        for done in done {
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
    }
    /// The versions of a stream as the bus has them, repeats included.
    pub(crate) fn sent(&self, stream: &StreamId) -> Vec<(Version, EventId)> {
        let sent = self.sent.lock().unwrap();
        sent.get(stream)
            .map(|(all, _)| all.clone())
            .unwrap_or_default()
    }
    /// Up to where the bus has a stream without a gap.
    fn sent_to(&self, stream: &StreamId) -> Version {
        let sent = self.sent.lock().unwrap();
        sent.get(stream)
            .map_or(Version::NONE, |(_, gapless)| *gapless)
    }
    /// How often the watermark of any stream was written.
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

fn lost() -> BoxError {
    "the network".into()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }
    /// A topic of three partitions, nothing else.
    pub(crate) fn seeded(seed: u64) -> Self {
        let bus = InMemoryMessageBus::new();
        bus.create_topic(TOPIC, 3);
        let arrives: Arc<Decider> = Arc::new(|_: &Call<'_>| (Fate::Arrives, Duration::ZERO));
        let network = Arc::new(Network {
            decide: Mutex::new(arrives),
            done: Mutex::default(),
            sent: Mutex::default(),
        });
        Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::new(),
            network,
            ids: SeededIds::new(seed),
            heads: Arc::default(),
        }
    }
    /// Another store, for instance restored from a backup: the same bus and rows.
    pub(crate) fn with_restored_store(&self) -> Self {
        Self {
            store: InMemoryEventStore::new(),
            heads: Arc::default(),
            ..self.clone()
        }
    }
    pub(crate) fn set_fates(&self, fate: impl Fn(&Call<'_>) -> Fate + Send + Sync + 'static) {
        self.set_network(move |call| (fate(call), Duration::ZERO));
    }
    pub(crate) fn set_network(
        &self,
        decide: impl Fn(&Call<'_>) -> (Fate, Duration) + Send + Sync + 'static,
    ) {
        *self.network.decide.lock().unwrap() = Arc::new(decide);
    }
    pub(crate) fn heal(&self) {
        self.set_fates(|_| Fate::Arrives);
    }
    /// A publisher as a process of its own. It repeats a failing call twice, without a pause.
    pub(crate) fn publisher(&self) -> Publisher {
        let faulty = Faulty(self.clone());
        Publisher::new(
            Arc::new(faulty.clone()),
            Arc::new(faulty.clone()),
            Arc::new(faulty),
        )
        .with_clock(Arc::new(TokioClock(Instant::now())))
        .with_ids(self.ids.clone())
        .with_retry(RetryPolicy::default().with_attempts(2, 0))
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
    /// Appends a commit of so many small events.
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
    /// What the store still lists, sorted.
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

    /// Per stream the first occurrences are 1, 2, 3, ..., and an event never comes under two ids.
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
    /// The same, and everything is sent, marked and cleared.
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

    /// What must hold before a watermark is written: every event up to it is on the bus.
    fn assert_mark_is_acknowledged(&self, row: &Row) -> Option<Done> {
        row.key.partition.strip_prefix("wm/")?;
        let stream = StreamId::parse(&row.key.sort).unwrap();
        let mark: Watermark = serde_json::from_slice(&row.value).unwrap();
        let sent = self.network.sent_to(&stream);
        assert!(
            mark.version <= sent,
            "{stream} is marked at {}, sent to {sent}",
            mark.version
        );
        Some(Done::Marked(stream, mark.version))
    }
    /// What must hold before a marker is cleared: the watermark covers it.
    async fn assert_clear_is_covered(&self, keys: &[CommitKey]) {
        for key in keys {
            let mark = self.watermark(&key.stream).await;
            let mark = mark.map_or(Version::NONE, |m| m.value.version);
            assert!(
                key.first_version <= mark,
                "{key:?} is cleared, the watermark is {mark}"
            );
        }
    }
}

/// The ports, over the network.
#[derive(Clone, Debug)]
struct Faulty(World);

/// What the caller of `$act` sees, by the network's fate.
macro_rules! settle {
    ($fate:expr, $act:expr, $error:ident) => {
        settle!($fate, $act, $error, $error::Unavailable { source: lost() })
    };
    ($fate:expr, $act:expr, $error:ident, $unavailable:expr) => {{
        let answer = match $fate {
            Fate::Arrives => $act.await,
            Fate::AnswerLost => $act.await.and_then(|_| Err($unavailable)),
            Fate::Refused(kind) => Err($error::Refused {
                kind,
                reason: "the test says so".into(),
                source: lost(),
            }),
            Fate::Fails | Fate::ArrivesLate(_) | Fate::Hangs => Err($unavailable),
        };
        tokio::task::yield_now().await;
        answer
    }};
}

impl Faulty {
    async fn send(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        let sent = self.0.bus.publish(message).await?;
        let header = from_message(message).unwrap().header;
        let done = Done::Sent(header.stream, header.version, header.event_id);
        self.0.network.note([done]);
        Ok(sent)
    }
    async fn write(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        let done = self.0.assert_mark_is_acknowledged(row);
        let outcome = self.0.control.put(row, expect).await?;
        if outcome == PutOutcome::Written {
            self.0.network.note(done);
        }
        Ok(outcome)
    }
    async fn clear(&self, keys: &[CommitKey]) -> Result<(), EventStoreError> {
        self.0.assert_clear_is_covered(keys).await;
        self.0.store.clear_unpublished(keys).await?;
        let cleared = |key: &CommitKey| Done::Cleared(key.stream.clone(), key.first_version);
        self.0.network.note(keys.iter().map(cleared));
        Ok(())
    }
}

fn store_unavailable() -> EventStoreError {
    EventStoreError::Unavailable {
        pending: None,
        source: lost(),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MessageBus for Faulty {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        let fate = self.0.network.pass(&Call::Send(message)).await;
        if let Fate::ArrivesLate(after) = fate {
            let (this, message) = (self.clone(), message.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                this.send(&message).await.unwrap();
            });
        }
        settle!(fate, self.send(message), MessageBusError)
    }
    async fn subscribe(&self, s: Subscription) -> Result<Arc<dyn Consumer>, MessageBusError> {
        self.0.bus.subscribe(s).await
    }
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        self.0.bus.offsets(topic).await
    }
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        self.0.bus.committed(group, topic).await
    }
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        let fate = self.0.network.pass(&Call::Describe).await;
        settle!(fate, self.0.bus.describe_topic(topic), MessageBusError)
    }
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        self.0.bus.delete_group(group).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ControlStore for Faulty {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        let fate = self.0.network.pass(&Call::Get).await;
        settle!(fate, self.0.control.get(key), ControlStoreError)
    }
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.0.control.get_many(keys).await
    }
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        let fate = self.0.network.pass(&Call::Put).await;
        if let Fate::ArrivesLate(after) = fate {
            let (this, row) = (self.clone(), row.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let _ = this.write(&row, expect).await.unwrap();
            });
        }
        settle!(fate, self.write(row, expect), ControlStoreError)
    }
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        self.0.control.delete(key, expect).await
    }
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        self.0.control.range(query).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl EventStore for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.0.store.capabilities()
    }
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        self.0.store.append(append).await
    }
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        self.0.store.append_all(all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        let stream = stream.clone();
        let read = async move {
            let fate = self.0.network.pass(&Call::Read).await;
            self.0.network.note([Done::Read(stream.clone())]);
            let commits = async { Ok(self.0.store.read(&stream, from, limit)) };
            match settle!(fate, commits, EventStoreError, store_unavailable()) {
                Ok(commits) => commits,
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            }
        };
        futures::stream::once(read).flatten().boxed()
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        self.0.store.streams(aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanWhat,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        self.0.store.scan(segment, after, what, max_items).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        let fate = self.0.network.pass(&Call::List).await;
        let list = self.0.store.unpublished(segment, after, limit);
        settle!(fate, list, EventStoreError, store_unavailable())
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        let fate = self.0.network.pass(&Call::Clear).await;
        settle!(
            fate,
            self.clear(commits),
            EventStoreError,
            store_unavailable()
        )
    }
}
