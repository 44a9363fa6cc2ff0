//! A service whose read models are replayed: its stores, its topic, and a projector that keeps
//! what it saw.
use crate::support::{AccountEvent, stream};
use foldstream::{
    IdSource, SourceUri, StreamHead, StreamId, Timestamp,
    adapter::to_message,
    ports::{
        Append, AppendOutcome, Commit, ControlStore, EventData, EventStore, EventStoreError,
        MessageBus, RowKey, ScanCursor, ScanItems, ScanPage, ScanScope, Segment,
    },
    replay::{Replay, ReplayError, ReplayReport},
    runner::{
        EventContext, HandlerError, HandlerResult, Listener, ModelId, PartialReplay, Position,
        ProcessorPolicy, Projector, ReplayPart, Runner,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds,
    faults::Faults,
    intercept::{self, EventStoreLayer, Scan, async_trait},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

pub(super) const TOPIC: &str = "GlobalEvents";
const SENT_AT: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

pub(super) struct World {
    pub(super) store: Arc<InMemoryEventStore>,
    pub(super) bus: Arc<InMemoryMessageBus>,
    pub(super) control: Arc<InMemoryControlStore>,
    pub(super) model: Arc<Model>,
    pub(super) ids: Arc<SeededIds>,
    heads: Mutex<BTreeMap<StreamId, StreamHead>>,
    /// Commits that are not published yet.
    pub(super) late: Mutex<VecDeque<Commit>>,
    /// The partition, offset, stream and version of each record.
    pub(super) log: Mutex<Vec<(u32, u64, String, u64)>>,
}

/// Starts a replay and waits for its end.
pub(super) async fn to_the_end(replay: Replay) -> Result<ReplayReport, ReplayError> {
    replay.start().await.unwrap().wait().await
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let bus = InMemoryMessageBus::new();
        assert!(bus.create_topic(TOPIC, 3));
        Arc::new(Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::new(),
            model: Arc::default(),
            ids: SeededIds::new(seed),
            heads: Mutex::default(),
            late: Mutex::default(),
            log: Mutex::default(),
        })
    }

    /// Stores a commit of deposits, without publishing it.
    pub(super) async fn store(&self, id: &str, events: usize) -> Commit {
        self.store_at(id, events, Timestamp::from_micros(1)).await
    }
    pub(super) async fn store_at(&self, id: &str, events: usize, at: Timestamp) -> Commit {
        let head = {
            let heads = self.heads.lock().unwrap();
            let known = heads.get(&stream(id)).cloned();
            known.unwrap_or_else(|| StreamHead::empty(stream(id)))
        };
        let event = EventData::new("Deposited", 1, &br#"{"amount":1}"#[..]);
        let append = Append::after(head, self.ids.commit_id(), at, vec![event; events]);
        let AppendOutcome::Appended(head) = self.store.append(&append).await.unwrap() else {
            panic!("nobody else appends")
        };
        self.heads.lock().unwrap().insert(stream(id), head);
        append.to_commit()
    }
    pub(super) async fn publish(&self, commit: &Commit) {
        for event in commit.recorded() {
            let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), SENT_AT);
            let (partition, offset) = self.bus.publish(&message).await.unwrap();
            let (id, version) = (commit.stream.id().to_owned(), event.header.version.get());
            let record = (partition.partition, offset.get(), id, version);
            self.log.lock().unwrap().push(record);
        }
    }
    /// Stores and publishes a commit.
    pub(super) async fn deposit(&self, id: &str, events: usize) {
        let commit = self.store(id, events).await;
        self.publish(&commit).await;
    }
    /// Stores and publishes `commits` commits of two events in each of `streams` streams.
    pub(super) async fn fill(&self, streams: u32, commits: u32) {
        for _ in 0..commits {
            for n in 0..streams {
                self.deposit(&n.to_string(), 2).await;
            }
        }
    }
    /// Returns all versions of each stream, as a model must hold them.
    pub(super) fn history(&self) -> BTreeMap<String, Vec<u64>> {
        let heads = self.heads.lock().unwrap();
        let versions = heads
            .iter()
            .map(|(stream, head)| (stream.id().to_owned(), (1..=head.version().get()).collect()));
        versions.collect()
    }

    pub(super) fn runner(&self, policy: ProcessorPolicy) -> Runner {
        self.runner_on(&Faults::none(), self.store.clone(), policy)
    }
    /// Creates a runner with the projector and a listener, on stores with faults.
    pub(super) fn runner_on(
        &self,
        faults: &Faults,
        store: Arc<dyn EventStore>,
        policy: ProcessorPolicy,
    ) -> Runner {
        let bus = faults.message_bus(self.bus.clone());
        Runner::builder(bus, faults.control_store(self.control.clone()), "shop")
            .with_event_store(faults.event_store(store))
            .with_ids(self.ids.clone())
            .projector_with(self.model.clone(), policy)
            .listener(Mails)
            .build()
            .unwrap()
    }
    pub(super) fn replay(&self) -> Replay {
        Replay::all(&self.runner(ProcessorPolicy::projector()))
    }

    /// Returns the value of a row.
    pub(super) async fn row(&self, partition: &str, sort: &str) -> Option<serde_json::Value> {
        let row = self
            .control
            .get(&RowKey::new(partition, sort))
            .await
            .unwrap()?;
        Some(serde_json::from_slice(&row.value).unwrap())
    }
    pub(super) async fn proc(&self) -> serde_json::Value {
        self.row("proc", Model::NAME).await.unwrap()
    }
    /// Returns where a generation begins to consume in each partition.
    pub(super) async fn boot(&self, generation: u32) -> Vec<u64> {
        let mut offsets = Vec::new();
        for partition in 0..3 {
            let key = format!("{TOPIC}/{partition:020}");
            let row = self
                .row(&format!("boot/{}/{generation}", Model::NAME), &key)
                .await;
            offsets.push(row.unwrap()["o"].as_u64().unwrap());
        }
        offsets
    }
    /// Returns where the topic ends in each partition.
    pub(super) async fn ends(&self) -> Vec<u64> {
        let offsets = self.bus.offsets(TOPIC).await.unwrap();
        offsets.iter().map(|of| of.end.get()).collect()
    }
}

/// One generation of the model.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation {
    /// The versions that took effect, by stream.
    pub(super) versions: BTreeMap<String, Vec<u64>>,
    /// The versions of which only the model in memory knows, with their streams.
    pub(super) buffered: Vec<(String, u64)>,
    pub(super) resets: u32,
    /// The calls that came although the version was there.
    pub(super) repeated: u64,
}

/// A projector that buffers until it is flushed, and stores its position if told to.
#[derive(Default)]
pub(super) struct Model {
    pub(super) generations: Arc<Mutex<BTreeMap<u32, Generation>>>,
    pub(super) stores_position: Mutex<bool>,
    /// The versions of a stream that fail.
    pub(super) failing: Mutex<BTreeSet<(String, u64)>>,
    /// The number of resets that fail.
    pub(super) failing_resets: Mutex<u32>,
    /// The ids of streams that a scoped reset was called for.
    pub(super) scoped: Mutex<Vec<ReplayPart>>,
    pub(super) holes: Mutex<Vec<String>>,
    /// Resets may take long, and then have their effect whether or not anybody waits for it.
    pub(super) late_resets: Mutex<Option<fastrand::Rng>>,
}

impl Model {
    pub(super) const NAME: &'static str = "accounts";

    pub(super) fn versions(&self, generation: u32) -> BTreeMap<String, Vec<u64>> {
        let generations = self.generations.lock().unwrap();
        generations
            .get(&generation)
            .map_or_else(BTreeMap::new, |of| of.versions.clone())
    }
    pub(super) fn resets(&self, generation: u32) -> u32 {
        let generations = self.generations.lock().unwrap();
        generations.get(&generation).map_or(0, |of| of.resets)
    }
    /// Loses what is in memory only, as a crash does.
    pub(super) fn crash(&self) {
        for generation in self.generations.lock().unwrap().values_mut() {
            generation.buffered.clear();
        }
    }
    /// Takes an event. A version that is there changes nothing, and one after a hole leaves the
    /// hole for good.
    pub(super) fn take(&self, generation: u32, id: &str, version: u64) {
        let mut generations = self.generations.lock().unwrap();
        let of = generations.entry(generation).or_default();
        let stored = of.versions.get(id).and_then(|all| all.last()).copied();
        let buffered = of.buffered.iter().rev().find(|(stream, _)| stream == id);
        let last = buffered
            .map(|(_, version)| *version)
            .or(stored)
            .unwrap_or(0);
        if version <= last {
            of.repeated += 1;
            return;
        }
        if version > last + 1 {
            let hole = format!("generation {generation}: {id} from {last} to {version}");
            self.holes.lock().unwrap().push(hole);
        }
        of.buffered.push((id.to_owned(), version));
    }
    pub(super) fn flush_all(&self, generation: u32) {
        if let Some(of) = self.generations.lock().unwrap().get_mut(&generation) {
            for (id, version) in std::mem::take(&mut of.buffered) {
                of.versions.entry(id).or_default().push(version);
            }
        }
    }
}

impl Projector for Model {
    const NAME: &'static str = Self::NAME;
    const PARTIAL_REPLAY: PartialReplay = PartialReplay::ScopedReset;
    type Events = AccountEvent;

    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let (id, version) = (ctx.stream().id().to_owned(), ctx.version().get());
        if self
            .failing
            .lock()
            .unwrap()
            .contains(&(id.clone(), version))
        {
            return Err(HandlerError::permanent("told to fail"));
        }
        tokio::task::yield_now().await;
        self.take(ctx.model().generation(), &id, version);
        Ok(())
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        let late = {
            let mut late = self.late_resets.lock().unwrap();
            let late = late.as_mut().map(|rng| (rng.u32(0..3), rng.u64(0..20_000)));
            late.filter(|(is_late, _)| *is_late == 0)
                .map(|(_, millis)| Duration::from_millis(millis))
        };
        let (generations, generation) = (self.generations.clone(), model.generation());
        {
            let mut generations = generations.lock().unwrap();
            generations.entry(generation).or_default().resets += 1;
        }
        let effect = tokio::spawn(async move {
            if let Some(late) = late {
                tokio::time::sleep(late).await;
            }
            let mut generations = generations.lock().unwrap();
            let of = generations.entry(generation).or_default();
            *of = Generation {
                resets: of.resets,
                ..Generation::default()
            };
        });
        effect.await?;
        let mut failing = self.failing_resets.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return Err(HandlerError::transient("told to fail"));
        }
        Ok(())
    }
    async fn reset_part(&self, model: &ModelId, part: &ReplayPart) -> HandlerResult {
        self.scoped.lock().unwrap().push(part.clone());
        let mut generations = self.generations.lock().unwrap();
        let of = generations.entry(model.generation()).or_default();
        for stream in part.streams.iter().flatten() {
            of.versions.remove(stream.id());
        }
        Ok(())
    }
    async fn flush(&self, model: &ModelId) -> HandlerResult {
        tokio::task::yield_now().await;
        self.flush_all(model.generation());
        Ok(())
    }
    async fn position(&self, model: &ModelId, of: &StreamId) -> Result<Position, HandlerError> {
        if !*self.stores_position.lock().unwrap() {
            return Ok(Position::KeptByRunner);
        }
        let versions = self.versions(model.generation());
        let version = versions.get(of.id()).and_then(|all| all.last()).copied();
        Ok(Position::Stored {
            version: foldstream::Version::new(version.unwrap_or(0)),
            commit_id: None,
        })
    }
}

/// A listener, which must never be replayed.
pub(super) struct Mails;

impl Listener for Mails {
    const NAME: &'static str = "mails";
    type Events = AccountEvent;
    async fn handle(&self, _: &AccountEvent, _: &EventContext) -> HandlerResult {
        panic!("a replay has called a listener")
    }
}

/// A store whose segments hold the commits of each stream in turn, with the last ones first.
pub(super) struct Scattered;

#[async_trait]
impl EventStoreLayer for Scattered {
    async fn scan(
        &self,
        inner: &Arc<dyn EventStore>,
        scan: Scan,
    ) -> Result<ScanPage, EventStoreError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let max = std::num::NonZeroU32::new(1000).unwrap();
            let page = inner
                .scan(Segment::ALL, after, ScanScope::Commits, max)
                .await?;
            if let ScanItems::Commits(commits) = page.items {
                all.extend(commits);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let total = u64::from(scan.segment.total());
        let of = |commit: &Commit| {
            let turn = commit.first_version.get() + u64::from(commit.stream.shard(7));
            turn % total == u64::from(scan.segment.index())
        };
        let key = |commit: &Commit| {
            let first = commit.first_version.get();
            format!("{}\u{1f}{first:020}", commit.stream)
        };
        all.sort_by_key(key);
        let from = scan
            .after
            .as_ref()
            .map(|c| String::from_utf8_lossy(c.as_bytes()).into_owned());
        let rest = all
            .into_iter()
            .filter(of)
            .filter(|c| from.as_ref().is_none_or(|f| key(c) > *f));
        let mut page: Vec<_> = rest.collect();
        let is_more = page.len() > scan.max_items.get() as usize;
        page.truncate(scan.max_items.get() as usize);
        let next = page
            .last()
            .filter(|_| is_more)
            .map(|c| ScanCursor::from_bytes(key(c)));
        Ok(ScanPage::new(ScanItems::Commits(page), next).with_read_units(Some(2.0)))
    }
}

pub(super) fn scattered(store: Arc<InMemoryEventStore>) -> Arc<dyn EventStore> {
    intercept::event_store(store, Scattered)
}
