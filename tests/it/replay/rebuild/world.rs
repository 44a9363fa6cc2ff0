//! The world of one seed: the stores, the bus, and everything that has happened to them.
use super::plan::Plan;
use crate::{seeds::Log, support::stream};
use foldstream::{
    Clock, IdSource, SourceUri, StreamHead, StreamId, Timestamp,
    adapter::to_message,
    ports::{Append, AppendOutcome, Commit, EventData, EventStore, MessageBus, PartitionId},
    replay::RunId,
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

pub(super) const TOPIC: &str = "GlobalEvents";
/// The name of the projector.
pub(super) const NAME: &str = "accounts";
/// The prefix of the consumer groups.
pub(super) const PREFIX: &str = "shop";
const SENT_AT: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// The number of times that each thing has happened, over all seeds.
pub(super) type Hits = Arc<Mutex<BTreeMap<String, u64>>>;

/// A clock that follows tokio's.
#[derive(Debug)]
struct SimulatedClock(Instant);
impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        SENT_AT.plus(self.0.elapsed())
    }
}

/// A record of the topic.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) at: Instant,
    pub(super) partition: PartitionId,
    pub(super) offset: u64,
    pub(super) id: String,
    pub(super) version: u64,
}

/// The read model of one generation, as far as it is durable.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The versions of each stream that took effect.
    pub(super) rows: BTreeMap<String, Vec<u64>>,
    pub(super) resets: u32,
    pub(super) is_deleted: bool,
}

impl Model {
    pub(super) fn last(&self, id: &str) -> u64 {
        let rows = self.rows.get(id);
        rows.and_then(|rows| rows.last()).copied().unwrap_or(0)
    }
}

/// A generation that serves, since a moment and a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    pub(super) generation: u32,
    pub(super) moment: u64,
    pub(super) since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    heads: BTreeMap<StreamId, StreamHead>,
    /// The versions of each stream to which the projector subscribes.
    pub(super) relevant: BTreeMap<String, Vec<u64>>,
    /// Commits that are stored and not published yet.
    late: VecDeque<Commit>,
    pub(super) published: Vec<Published>,
    pub(super) models: BTreeMap<u32, Model>,
    /// The generations that have served, in order.
    pub(super) served: Vec<Served>,
    /// The run that has allocated each generation.
    pub(super) allocated: BTreeMap<u32, String>,
    /// The run that replayers work on.
    pub(super) run: Option<RunId>,
    /// The last rows that were written: that of the processor, and those of runs and segments.
    pub(super) proc: Option<Value>,
    pub(super) runs: BTreeMap<String, Value>,
    pub(super) segments: BTreeMap<(String, String), Value>,
    /// The epoch of the lease of each run.
    pub(super) leases: BTreeMap<String, u64>,
    /// The last version of each stream when the scan of a run began.
    pub(super) before_scan: BTreeMap<String, BTreeMap<String, u64>>,
    pub(super) is_calm: bool,
    moment: u64,
}

impl Facts {
    /// Returns a number that is higher than all before it.
    pub(super) const fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
    pub(super) fn active(&self) -> u32 {
        self.served.last().map_or(1, |served| served.generation)
    }
    /// Notes that a generation serves from now on.
    pub(super) fn serves(&mut self, generation: u32) {
        let moment = self.moment();
        self.served.push(Served {
            generation,
            moment,
            since: Instant::now(),
        });
    }
    /// Returns whether a generation has ever served, and the one that has taken its place.
    pub(super) fn served(&self, generation: u32) -> (bool, Option<Served>) {
        let mut from = self
            .served
            .iter()
            .skip_while(|of| of.generation != generation);
        (from.next().is_some(), from.next().copied())
    }
    pub(super) fn last_relevant(&self, id: &str) -> u64 {
        let versions = self.relevant.get(id);
        versions.and_then(|all| all.last()).copied().unwrap_or(0)
    }
    /// Returns the last version of each stream.
    pub(super) fn all_last(&self) -> BTreeMap<String, u64> {
        let ids = self.relevant.keys();
        ids.map(|id| (id.clone(), self.last_relevant(id))).collect()
    }
    /// Returns the streams in which a model lacks versions up to these.
    pub(super) fn behind(&self, generation: u32, needed: &BTreeMap<String, u64>) -> Vec<String> {
        let model = self.models.get(&generation);
        let last = |id: &str| model.map_or(0, |model| model.last(id));
        let behind = needed.iter().filter(|(id, version)| last(id) < **version);
        behind
            .map(|(id, version)| format!("{id} is at {}, not {version}", last(id)))
            .collect()
    }
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) store: Arc<InMemoryEventStore>,
    pub(super) bus: Arc<InMemoryMessageBus>,
    pub(super) control: Arc<InMemoryControlStore>,
    pub(super) clock: Arc<dyn Clock>,
    rng: Mutex<fastrand::Rng>,
    facts: Mutex<Facts>,
    hits: Hits,
    ids: Arc<SeededIds>,
    log: Log,
}

impl World {
    pub(super) fn new(plan: Plan, hits: Hits) -> Arc<Self> {
        // The library draws the jitter of its own pauses from the generator of this thread.
        fastrand::seed(plan.seed);
        let began = Instant::now();
        let clock: Arc<dyn Clock> = Arc::new(SimulatedClock(began));
        let bus = InMemoryMessageBus::with_grace(Duration::from_millis(1_500));
        assert!(bus.create_topic(TOPIC, plan.partitions));
        Arc::new(Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::with_clock(clock.clone()),
            clock,
            rng: Mutex::new(fastrand::Rng::with_seed(plan.seed)),
            facts: Mutex::default(),
            hits,
            ids: SeededIds::new(plan.seed),
            log: Log::new(began),
            plan,
        })
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }
    pub(super) fn hit(&self, what: impl Into<String>) {
        *self.hits.lock().unwrap().entry(what.into()).or_default() += 1;
    }
    pub(super) fn below(&self, n: u64) -> u64 {
        self.rng.lock().unwrap().u64(0..n)
    }
    pub(super) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub(super) fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.lock().unwrap().u64(range))
    }
    pub(super) fn seed(&self) -> u64 {
        self.rng.lock().unwrap().u64(..)
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.log.note(what);
    }
    pub(super) fn violated(&self, what: String) {
        self.log.violated(what);
    }
    /// Returns the rules that were broken, and the history that led to them.
    pub(super) fn violations(&self) -> Option<String> {
        self.log.violations(&self.plan)
    }

    /// Stores a commit. Some of its events are of a type to which the projector does not
    /// subscribe.
    pub(super) async fn append(&self) {
        if self.one_in(8) {
            let other = StreamId::new("order", &self.below(2)).unwrap();
            return self.store(other, vec!["Placed"]).await;
        }
        let of = stream(&self.below(self.plan.streams).to_string());
        let kinds = (0..=self.below(3)).map(|_| match self.below(6) {
            0 => "Renamed",
            1 => "Withdrawn",
            _ => "Deposited",
        });
        self.store(of, kinds.collect()).await;
    }

    async fn store(&self, of: StreamId, kinds: Vec<&'static str>) {
        let head = self.facts().heads.get(&of).cloned();
        let head = head.unwrap_or_else(|| StreamHead::empty(of.clone()));
        let before = head.version().get();
        let events = kinds
            .iter()
            .map(|kind| EventData::new(*kind, 1, &br#"{"amount":1}"#[..]));
        let at = self.clock.now();
        let append = Append::after(head, self.ids.commit_id(), at, events.collect::<Vec<_>>());
        let outcome = self.store.append(&append).await;
        let Ok(AppendOutcome::Appended(head)) = outcome else {
            panic!("nobody else appends")
        };
        let mut facts = self.facts();
        facts.heads.insert(of.clone(), head);
        if of.aggregate() == "account" {
            let id = of.id().to_owned();
            let versions = facts.relevant.entry(id).or_default();
            let numbered = (before + 1..).zip(&kinds);
            versions.extend(numbered.filter(|(_, k)| **k != "Renamed").map(|(v, _)| v));
        }
        facts.late.push_back(append.to_commit());
    }

    /// Publishes the oldest commit that is not published yet, sometimes twice.
    pub(super) async fn publish_next(&self) -> bool {
        let Some(commit) = self.facts().late.pop_front() else {
            return false;
        };
        let times = if self.one_in(8) { 2 } else { 1 };
        for _ in 0..times {
            for event in commit.recorded() {
                let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), SENT_AT);
                let (partition, offset) = self.bus.publish(&message).await.unwrap();
                let mut facts = self.facts();
                let version = event.header.version.get();
                let id = commit.stream.id().to_owned();
                if commit.stream.aggregate() == "account" {
                    facts.published.push(Published {
                        at: Instant::now(),
                        partition,
                        offset: offset.get(),
                        id,
                        version,
                    });
                }
            }
        }
        true
    }

    /// Adds offsets without records, as the marker of a transaction.
    pub(super) fn mark(&self, number: u32) {
        self.hit("transaction marker");
        let partition = PartitionId::new(TOPIC, number);
        self.bus.skip_offsets(&partition, 1).unwrap();
    }

    /// Returns the end of each partition.
    pub(super) async fn ends(&self) -> BTreeMap<u32, u64> {
        let offsets = self.bus.offsets(TOPIC).await.unwrap();
        let ends = offsets.iter();
        ends.map(|of| (of.partition.partition, of.end.get()))
            .collect()
    }

    pub(super) fn group(generation: u32) -> String {
        format!("{PREFIX}.{NAME}.g{generation}")
    }

    /// Takes a durable effect of an event. A version that is there changes nothing.
    pub(super) fn effect(&self, generation: u32, id: &str, version: u64, who: &str) {
        let mut wrong = None;
        {
            let mut facts = self.facts();
            let expected = {
                let last = facts.models.get(&generation).map_or(0, |of| of.last(id));
                if version <= last {
                    return;
                }
                let all = facts.relevant.get(id).into_iter().flatten();
                all.copied().find(|of| *of > last)
            };
            let model = facts.models.entry(generation).or_default();
            if expected != Some(version) {
                wrong = Some(format!("version {version} of {id}, not {expected:?}"));
            } else if model.is_deleted {
                wrong = Some(format!("version {version} of {id}, and it is deleted"));
            }
            model.rows.entry(id.to_owned()).or_default().push(version);
        }
        if let Some(wrong) = wrong {
            self.violated(format!("{who}: generation {generation} gets {wrong}"));
        }
    }

    /// Takes the call that empties a model. Its effect may come later.
    pub(super) fn resets(&self, generation: u32, who: &str) {
        self.note(|| format!("{who} resets generation {generation}"));
        let mut facts = self.facts();
        let (served, _) = facts.served(generation);
        let model = facts.models.entry(generation).or_default();
        model.resets += 1;
        let resets = model.resets;
        drop(facts);
        if served || resets > 1 {
            let wrong = format!("{who}: reset {resets} of generation {generation}");
            self.violated(format!("{wrong}, which has served: {served}"));
        }
    }

    /// Empties a model.
    pub(super) fn is_reset(&self, generation: u32, who: &str) {
        let mut facts = self.facts();
        let next = facts.proc.as_ref().map(|proc| proc["n"].clone());
        let is_used = facts.active() == generation || next == Some(generation.into());
        if let Some(model) = facts.models.get_mut(&generation) {
            model.rows.clear();
        }
        drop(facts);
        if is_used {
            self.violated(format!("{who} empties generation {generation} in use"));
        }
    }

    /// Deletes a model.
    pub(super) fn deletes(&self, generation: u32, who: &str) {
        self.note(|| format!("{who} deletes generation {generation}"));
        self.hit("model deleted");
        let mut facts = self.facts();
        let active = facts.active();
        let building: BTreeSet<u64> = facts.building().collect();
        let model = facts.models.entry(generation).or_default();
        model.is_deleted = true;
        model.rows.clear();
        drop(facts);
        if active == generation || building.contains(&u64::from(generation)) {
            self.violated(format!("{who} deletes generation {generation} in use"));
        }
    }
}

impl Facts {
    /// Returns the generations that the run named by the row of the processor builds.
    fn building(&self) -> impl Iterator<Item = u64> {
        let run = self.proc.as_ref().and_then(|proc| proc["r"].as_str());
        let run = run.and_then(|run| self.runs.get(run));
        let run = run.filter(|run| run["s"] != "cancelled" && run["s"] != "done");
        let generation = run.and_then(|run| run["p"][0]["g"].as_u64());
        generation.filter(|of| *of > 0).into_iter()
    }
}
