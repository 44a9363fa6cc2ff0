//! The facts outside of all processes: what was published, what took effect, and what fails.
use super::{schedule::Schedule, trace::SimulatedClock};
use crate::{seeds::Log, support::stream};
use foldstream::{
    CommitId, DomainEvent, IdSource, SourceUri, StreamHead, StreamId, Timestamp, Version,
    adapter::to_message_after,
    ports::{
        Append, AppendOutcome, EventData, EventStore, Message, MessageBus, OffsetCommit,
        PartitionId,
    },
};
use foldstream_testkit::{InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus, SeededIds};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

use super::super::harness::{SENT_AT, TOPIC};

pub(super) const NAME: &str = "views";
pub(super) const PREFIX: &str = "example-group";
pub(super) const GROUP: &str = "example-group.views.g1";

/// The number of a stream, and a version.
pub(super) type Event = (u32, u64);
pub(super) type Hits = Arc<Mutex<BTreeMap<String, u64>>>;

/// The number that stands in the payload of an event.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Amount(u64);

thread_local! {
    /// The amounts that cannot be decoded by the build that runs now.
    static UNDECODABLE: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let amount = u64::deserialize(deserializer)?;
        if UNDECODABLE.with_borrow(|set| set.contains(&amount)) {
            return Err(serde::de::Error::custom(
                "this build cannot read the amount",
            ));
        }
        Ok(Self(amount))
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub(super) enum Moved {
    Deposited { amount: Amount },
}

const fn amount(event: Event) -> u64 {
    event.0 as u64 * 1_000 + event.1
}

/// The reason why an event fails until it is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ailment {
    Permanent,
    Undecodable,
    Transient,
    Panic,
    Slow,
    /// Fails until this time by itself.
    Flaky(Instant),
    Throttled(Instant),
    Fatal,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The event at each offset. Holes, foreign and unreadable records have none.
    pub(super) records: BTreeMap<PartitionId, Vec<Option<Event>>>,
    /// The events that must be dealt with.
    pub(super) events: BTreeSet<Event>,
    pub(super) private: BTreeSet<Event>,
    /// Events of which the processor may never learn, or only too late.
    pub(super) exempt: BTreeSet<Event>,
    pub(super) ailments: BTreeMap<Event, Ailment>,
    /// The number of times that each event took effect durably.
    pub(super) effects: BTreeMap<Event, u32>,
    /// The read model of a projector that stores its positions.
    pub(super) rows: BTreeMap<u32, (u64, CommitId)>,
    /// Discards that an operator may have asked for, and those that were acknowledged, since when.
    pub(super) asked: BTreeSet<Event>,
    pub(super) passed: BTreeMap<Event, u64>,
    /// Events for which the policy said discard or dead letter.
    pub(super) discarded: BTreeSet<Event>,
    pub(super) given_up: BTreeSet<Event>,
    /// The stored positions, each with the moment since when.
    pub(super) positions: BTreeMap<u32, Vec<(u64, u64)>>,
    /// The instance that was assigned each partition last, and since when.
    pub(super) owners: BTreeMap<PartitionId, (u64, u64)>,
    /// The offset before which every record was accounted for when it was committed.
    pub(super) committed: BTreeMap<PartitionId, u64>,
    pub(super) is_calm: bool,
    pub(super) is_outage: bool,
    /// The events that came from the event store or from rows: in gaps and redrives.
    pub(super) of_history: BTreeSet<Event>,
    pub(super) calls_of_history: u64,
    moment: u64,
}

impl Facts {
    /// Returns a number that is higher than all before it.
    pub(super) const fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}

pub(super) struct World {
    pub(super) plan: Schedule,
    pub(super) store: Arc<InMemoryEventStore>,
    pub(super) bus: Arc<InMemoryMessageBus>,
    pub(super) control: Arc<InMemoryControlStore>,
    pub(super) rng: Mutex<fastrand::Rng>,
    facts: Mutex<Facts>,
    hits: Hits,
    ids: Arc<SeededIds>,
    heads: Mutex<BTreeMap<u32, StreamHead>>,
    log: Log,
    pub(super) clock: Arc<SimulatedClock>,
    /// Every call of a port is noted.
    pub(super) is_traced: bool,
}

impl World {
    pub(super) fn new(plan: Schedule, hits: Hits, is_traced: bool) -> Arc<Self> {
        // The library draws the jitter of its own pauses from the generator of this thread.
        fastrand::seed(plan.seed);
        let began = Instant::now();
        let clock = Arc::new(SimulatedClock(began));
        let grace = if plan.is_peaceful { 30_000 } else { 1_500 };
        let bus = InMemoryMessageBus::with_grace(Duration::from_millis(grace));
        assert!(bus.create_topic(TOPIC, plan.partitions));
        UNDECODABLE.with_borrow_mut(BTreeSet::clear);
        Arc::new(Self {
            store: InMemoryEventStore::new(),
            bus,
            control: InMemoryControlStore::with_clock(clock.clone()),
            rng: Mutex::new(fastrand::Rng::with_seed(plan.seed)),
            facts: Mutex::default(),
            hits,
            ids: SeededIds::new(plan.seed),
            heads: Mutex::default(),
            log: Log::new(began),
            clock,
            is_traced,
            plan,
        })
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }
    pub(super) fn hit(&self, what: impl Into<String>) {
        *self.hits.lock().unwrap().entry(what.into()).or_default() += 1;
    }
    pub(super) fn one_in(&self, n: u32) -> bool {
        self.rng.lock().unwrap().u32(0..n) == 0
    }
    pub(super) fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.lock().unwrap().u64(range))
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        self.log.note(what);
    }
    pub(super) fn violated(&self, what: String) {
        self.log.violated(what);
    }
    /// Returns everything that was noted.
    pub(super) fn notes(&self) -> Vec<String> {
        self.log.notes()
    }
    /// Returns the rules that were broken, and the history that led to them.
    pub(super) fn violations(&self) -> Option<String> {
        self.log.violations(&self.plan)
    }

    /// Stores a commit, and publishes it: once, twice, later, or with private events.
    pub(super) async fn write(&self) {
        let (number, events) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.u32(0..self.plan.streams), rng.u64(1..4))
        };
        let head = self.heads.lock().unwrap().get(&number).cloned();
        let head = head.unwrap_or_else(|| StreamHead::empty(stream(&number.to_string())));
        let before = head.version().get();
        let versions = before + 1..=before + events;
        let payload = |version| format!(r#"{{"amount":{}}}"#, amount((number, version)));
        let data = versions
            .clone()
            .map(|v| EventData::new("Deposited", 1, payload(v)));
        let append = Append::after(
            head,
            self.ids.commit_id(),
            Timestamp::from_micros(1),
            data.collect::<Vec<_>>(),
        );
        for version in versions {
            self.draw_ailment((number, version));
        }
        let Ok(AppendOutcome::Appended(head)) = self.store.append(&append).await else {
            panic!("the store has refused a commit")
        };
        self.heads.lock().unwrap().insert(number, head);
        let commit = append.to_commit();
        let withheld = self.draw_withheld((number, before + events));
        let mut messages = Vec::new();
        for event in commit.recorded() {
            let version = event.header.version;
            let event_of = (number, version.get());
            if self.is_private(event_of) {
                continue;
            }
            let previous = self.previous(event_of);
            let (topic, source) = (TOPIC.into(), SourceUri::default());
            let message = to_message_after(&event, &topic, &source, SENT_AT, previous).unwrap();
            self.facts().events.insert(event_of);
            if withheld != Some(event_of) {
                messages.push((event_of, message));
            } else if self.one_in(2) {
                self.hit("late record");
                messages.push((event_of, message));
            } else {
                self.hit("missing record");
            }
        }
        if let Some(late) = messages
            .iter()
            .position(|(event, _)| Some(*event) == withheld)
        {
            let late = messages.remove(late);
            messages.push(late);
        }
        let times = if self.one_in(5) { 2 } else { 1 };
        for _ in 0..times {
            for (event, message) in &messages {
                self.publish(Some(*event), message).await;
            }
        }
        if times > 1 {
            self.hit("duplicate records");
        }
    }

    fn draw_ailment(&self, event: Event) {
        let mut rng = self.rng.lock().unwrap();
        if rng.u32(0..5) > 0 {
            return;
        }
        let until = Instant::now() + Duration::from_millis(rng.u64(500..6_000));
        let ailment = match rng.u32(0..10) {
            0 | 1 => Ailment::Permanent,
            2 => Ailment::Undecodable,
            3 => Ailment::Transient,
            4 => Ailment::Panic,
            5 => Ailment::Slow,
            6 | 7 => Ailment::Flaky(until),
            8 => Ailment::Throttled(until),
            _ if self.plan.is_peaceful => Ailment::Permanent,
            _ => Ailment::Fatal,
        };
        drop(rng);
        if ailment == Ailment::Undecodable {
            UNDECODABLE.with_borrow_mut(|set| set.insert(amount(event)));
        }
        self.facts().ailments.insert(event, ailment);
    }

    /// A fix is deployed: the event does not fail any more.
    pub(super) fn fix(&self, event: Event) {
        UNDECODABLE.with_borrow_mut(|set| set.remove(&amount(event)));
        self.facts().ailments.remove(&event);
    }
    pub(super) fn fix_all(&self) {
        UNDECODABLE.with_borrow_mut(BTreeSet::clear);
        self.facts().ailments.clear();
    }

    /// Draws an event of a commit whose record is late or missing. It is not the last one, since
    /// nobody could know of it then.
    fn draw_withheld(&self, last: Event) -> Option<Event> {
        let event = (last.0, last.1 - 1);
        let is_known_gap =
            self.plan.level != foldstream::runner::DeliveryLevel::Deduplicated || event.1 > 1;
        if event.1 == 0 || !is_known_gap || !self.one_in(6) || self.is_published(event) {
            return None;
        }
        if !self.plan.fills_gaps() {
            self.facts().exempt.insert(event);
        }
        Some(event)
    }
    fn is_published(&self, event: Event) -> bool {
        let facts = self.facts();
        facts
            .records
            .values()
            .flatten()
            .any(|found| *found == Some(event))
    }

    /// Without an event store, some events stay out of the topic.
    fn is_private(&self, event: Event) -> bool {
        let is_private = !self.plan.has_store && event.1 > 1 && self.one_in(8);
        if is_private {
            self.fix(event);
            self.facts().private.insert(event);
            self.hit("private event");
        }
        is_private
    }
    fn previous(&self, event: Event) -> Version {
        let facts = self.facts();
        let before = (1..event.1)
            .rev()
            .find(|v| !facts.private.contains(&(event.0, *v)));
        Version::new(before.unwrap_or(0))
    }

    async fn publish(&self, event: Option<Event>, message: &Message) {
        let (partition, offset) = self.bus.publish(message).await.unwrap();
        self.note(|| {
            format!(
                "publish {event:?} at {}:{}",
                partition.partition,
                offset.get()
            )
        });
        let mut facts = self.facts();
        let records = facts.records.entry(partition).or_default();
        records.resize(offset.get() as usize, None);
        records.push(event);
    }

    /// Publishes what is no event of the processor: a record that nobody can read, a record
    /// without key, offsets without records.
    pub(super) async fn litter(&self) {
        let number = self.rng.lock().unwrap().u32(0..self.plan.partitions);
        let partition = PartitionId::new(TOPIC, number);
        if self.one_in(3) {
            self.hit("hole");
            let times = self.rng.lock().unwrap().u64(1..4);
            self.bus.skip_offsets(&partition, times).unwrap();
        } else if self.one_in(2) {
            self.hit("unreadable record");
            let foreign = Message::new(TOPIC, SENT_AT).with_key("foreign");
            self.publish(None, &foreign).await;
        }
    }

    /// Takes note of an effect that became durable.
    pub(super) fn takes_effect(&self, event: Event, began: u64, instance: u64) {
        let (number, version) = event;
        self.note(|| format!("i{instance} effect of {event:?}"));
        let mut wrong = Vec::new();
        {
            let mut facts = self.facts();
            if let Some(since) = facts.passed.get(&event)
                && *since < began
                && facts.is_owner(&self.partition_of(number), instance)
            {
                wrong.push(format!(
                    "{event:?} takes effect after its discard was acknowledged"
                ));
            }
            if facts.private.contains(&event) {
                wrong.push(format!("{event:?} is private"));
            }
            let times = facts.effects.entry(event).or_default();
            *times += 1;
            if *times == 1 && !facts.exempt.contains(&event) {
                for before in (1..version).map(|version| (number, version)) {
                    if !facts.is_settled(before) {
                        wrong.push(format!("{event:?} takes effect before {before:?}"));
                    }
                }
            }
        }
        wrong.into_iter().for_each(|wrong| self.violated(wrong));
    }

    pub(super) fn partition_of(&self, number: u32) -> PartitionId {
        let key: StreamId = stream(&number.to_string());
        let partition =
            foldstream::adapter::kafka_partition(key.as_str().as_bytes(), self.plan.partitions);
        PartitionId::new(TOPIC, partition)
    }

    pub(super) fn is_committed_to_the_end(&self, ends: &[(PartitionId, u64)]) -> bool {
        let facts = self.facts();
        (ends.iter()).all(|(of, end)| facts.committed.get(of).copied().unwrap_or(0) == *end)
    }
}

impl Facts {
    /// Returns true if nothing has to be done about an event before those after it.
    pub(super) fn is_settled(&self, event: Event) -> bool {
        !self.events.contains(&event)
            || self.exempt.contains(&event)
            || self.effects.contains_key(&event)
            || self.asked.contains(&event)
            || self.discarded.contains(&event)
            || self.given_up.contains(&event)
    }
    /// Returns true if no other instance was assigned the partition since this one was.
    pub(super) fn is_owner(&self, partition: &PartitionId, instance: u64) -> bool {
        self.owners
            .get(partition)
            .is_some_and(|(owner, _)| *owner == instance)
    }
    /// Returns the position that was stored before this moment.
    pub(super) fn position_before(&self, stream: u32, moment: u64) -> u64 {
        let positions = self.positions.get(&stream).into_iter().flatten();
        let before = positions.filter(|(at, _)| *at < moment);
        before.map(|(_, version)| *version).max().unwrap_or(0)
    }
}

/// A commit of offsets that was stored.
pub(super) fn passed(commit: &OffsetCommit) -> (PartitionId, u64) {
    (commit.partition.clone(), commit.next.get())
}
