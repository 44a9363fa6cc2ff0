//! A process: the projector in it, its ports, and what goes wrong with them.
use super::{
    checks,
    world::{NAME, PREFIX, World},
};
use crate::{replay::world::scattered, support::AccountEvent};
use foldstream::{
    StreamId, Version,
    ports::{ControlStore, ControlStoreError, EventStore, Expect, PutOutcome, Row},
    runner::{
        DeliveryLevel, EventContext, HandlerError, HandlerResult, ModelId, Position, Projector,
        Runner,
    },
};
use foldstream_testkit::{
    SeededIds,
    faults::{Call, Faults, Moment},
    intercept::{self, ControlStoreLayer, async_trait},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

/// The kind of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Replayer,
    Instance,
    Reader,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Replayer => "replayer",
            Self::Instance => "instance",
            Self::Reader => "reader",
        }
    }
}

/// The effects that are not durable yet, by generation.
type Buffer = BTreeMap<u32, Vec<(String, u64)>>;

pub(super) struct Process {
    pub(super) world: Arc<World>,
    pub(super) kind: Kind,
    /// Its name in the notes.
    pub(super) who: String,
    pub(super) faults: Faults,
    /// The process is told that its lease is renewed, which is not true.
    pub(super) is_robbed: AtomicBool,
    /// The run and the epoch of its lease.
    pub(super) lease: Mutex<Option<(String, u64)>>,
    /// The moment of the last read of a position, and its generation.
    pub(super) read: Mutex<(u64, u32)>,
    /// The place in the projector at which the process dies, and how many times it passes there
    /// before.
    pub(super) dies_at: Mutex<Option<(&'static str, u32)>>,
    buffer: Mutex<Buffer>,
    rng: Mutex<fastrand::Rng>,
}

impl Process {
    pub(super) fn new(world: &Arc<World>, kind: Kind, number: u64) -> Arc<Self> {
        let seed = world.seed();
        Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let probed = this.clone();
            let faults = Faults::seeded(seed).with_probe(move |moment, call| {
                if let (Moment::Done, Some(process)) = (moment, probed.upgrade()) {
                    checks::after(&process, call);
                }
            });
            Self {
                world: world.clone(),
                kind,
                who: format!("{} {number}", kind.name()),
                faults,
                is_robbed: AtomicBool::new(false),
                lease: Mutex::default(),
                read: Mutex::default(),
                dies_at: Mutex::default(),
                buffer: Mutex::default(),
                rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            }
        })
    }

    /// Returns a runner of this process.
    pub(super) fn runner(self: &Arc<Self>) -> Runner {
        let world = &self.world;
        let store: Arc<dyn EventStore> = match world.plan.is_scattered {
            true => scattered(world.store.clone()),
            false => world.store.clone(),
        };
        let control = intercept::control_store(world.control.clone(), Robbed(self.clone()));
        let bus = self.faults.message_bus(world.bus.clone());
        Runner::builder(bus, self.faults.control_store(control), PREFIX)
            .with_event_store(self.faults.event_store(store))
            .with_ids(SeededIds::new(self.below(u64::MAX)))
            .with_clock(world.clock.clone())
            .with_instance(self.who.clone())
            .projector_with(Projects(self.clone()), world.plan.policy())
            .build()
            .unwrap()
    }

    pub(super) fn below(&self, n: u64) -> u64 {
        self.rng.lock().unwrap().u64(0..n)
    }

    /// Draws something that goes wrong once in `n` times while there are faults.
    fn goes_wrong(&self, n: u64) -> bool {
        !self.world.facts().is_calm && self.below(n) == 0
    }

    /// Dies if it was drawn that the process dies here: nothing happens in it any more.
    async fn passes(&self, place: &'static str) {
        let dies = {
            let mut at = self.dies_at.lock().unwrap();
            match &mut *at {
                Some((of, 0)) if *of == place => true,
                Some((of, more)) if *of == place => {
                    *more -= 1;
                    false
                }
                _ => false,
            }
        };
        if dies {
            self.world.hit(format!("{} dies {place}", self.kind.name()));
            self.faults.crash();
        }
        if self.faults.is_crashed() {
            std::future::pending::<()>().await;
        }
        // A holder that was robbed and does not know it.
        let lease = self.lease.lock().unwrap().clone();
        if let Some((run, epoch)) = lease {
            let now = self.world.facts().leases.get(&run).copied();
            if now.is_some_and(|now| now > epoch) {
                self.world.hit(format!("robbed holder {place}"));
            }
        }
    }

    async fn write(&self, generation: u32, id: &str, version: u64) {
        self.passes("before an effect").await;
        self.world.effect(generation, id, version, &self.who);
        self.passes("after an effect").await;
    }

    async fn project(&self, ctx: &EventContext) -> HandlerResult {
        let (id, version) = (ctx.stream().id().to_owned(), ctx.version().get());
        let generation = ctx.model().generation();
        if self.goes_wrong(50) {
            return Err(HandlerError::transient("the read model is away"));
        }
        match self.below(40) {
            0 => sleep(Duration::from_millis(100)).await,
            _ => tokio::task::yield_now().await,
        }
        if !self.world.plan.buffers {
            self.write(generation, &id, version).await;
        } else {
            self.passes("before an effect").await;
            let mut buffer = self.buffer.lock().unwrap();
            buffer.entry(generation).or_default().push((id, version));
        }
        if self.goes_wrong(60) {
            return Err(HandlerError::transient("the answer was lost"));
        }
        Ok(())
    }

    async fn flush(&self, generation: u32) -> HandlerResult {
        self.passes("before a flush").await;
        tokio::task::yield_now().await;
        if self.goes_wrong(40) {
            return Err(HandlerError::transient("the flush failed"));
        }
        loop {
            let next = {
                let buffer = self.buffer.lock().unwrap();
                buffer.get(&generation).and_then(|all| all.first()).cloned()
            };
            let Some((id, version)) = next else { break };
            self.passes("in a flush").await;
            self.world.effect(generation, &id, version, &self.who);
            let mut buffer = self.buffer.lock().unwrap();
            if let Some(all) = buffer.get_mut(&generation) {
                all.retain(|of| *of != (id.clone(), version));
            }
        }
        self.passes("after a flush").await;
        Ok(())
    }

    /// Empties a model. The effect of some calls comes late, whether or not anybody waits for it.
    async fn reset(&self, generation: u32) -> HandlerResult {
        self.passes("before a reset").await;
        self.world.resets(generation, &self.who);
        let late = self.goes_wrong(3);
        let late = late.then(|| Duration::from_millis(self.below(20_000)));
        let (world, who) = (self.world.clone(), self.who.clone());
        let effect = tokio::spawn(async move {
            if let Some(late) = late {
                sleep(late).await;
            }
            world.is_reset(generation, &who);
        });
        effect.await?;
        self.passes("after a reset").await;
        if self.goes_wrong(8) {
            return Err(HandlerError::transient("the answer of the reset was lost"));
        }
        Ok(())
    }
}

/// The projector of a process.
pub(super) struct Projects(pub(super) Arc<Process>);

impl Projector for Projects {
    const NAME: &'static str = NAME;
    type Events = AccountEvent;

    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        self.0.project(ctx).await
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        self.0.reset(model.generation()).await
    }
    async fn flush(&self, model: &ModelId) -> HandlerResult {
        self.0.flush(model.generation()).await
    }
    async fn forget_buffered(&self, model: &ModelId, streams: &[StreamId]) -> HandlerResult {
        let mut buffer = self.0.buffer.lock().unwrap();
        if let Some(all) = buffer.get_mut(&model.generation()) {
            all.retain(|(id, _)| !streams.iter().any(|of| of.id() == id));
        }
        Ok(())
    }
    async fn delete_model(&self, model: &ModelId) -> HandlerResult {
        self.0.passes("before a deletion").await;
        self.0.world.deletes(model.generation(), &self.0.who);
        self.0.passes("after a deletion").await;
        Ok(())
    }
    async fn position(&self, model: &ModelId, of: &StreamId) -> Result<Position, HandlerError> {
        if self.0.world.plan.level != DeliveryLevel::ExactlyOnceEffect {
            return Ok(Position::KeptByRunner);
        }
        tokio::task::yield_now().await;
        let mut facts = self.0.world.facts();
        let moment = facts.moment();
        *self.0.read.lock().unwrap() = (moment, model.generation());
        let found = facts.models.get(&model.generation());
        let version = found.map_or(0, |found| found.last(of.id()));
        Ok(Position::Stored {
            version: Version::new(version),
            commit_id: None,
        })
    }
}

/// Tells a robbed process that its lease is renewed.
struct Robbed(Arc<Process>);

#[async_trait]
impl ControlStoreLayer for Robbed {
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        if row.key.partition == "run/lease" && self.0.is_robbed.load(Ordering::Relaxed) {
            let held = self.0.lease.lock().unwrap().clone();
            let value = serde_json::from_slice::<serde_json::Value>(&row.value).unwrap();
            let renews = |(_, epoch)| value["e"] == epoch && value["o"].is_string();
            if held.is_some_and(renews) {
                return Ok(PutOutcome::Written);
            }
        }
        inner.put(row, expect).await
    }
}

/// Returns the name of a write, by which hits are counted and crash points chosen.
pub(super) fn point(call: &Call<'_>) -> Option<String> {
    Some(match call {
        Call::Put { row, .. } => {
            let value = || serde_json::from_slice::<serde_json::Value>(&row.value);
            let state = |field: &str| {
                let value = value().unwrap_or_default();
                value[field].as_str().unwrap_or("?").to_owned()
            };
            match row.key.partition.as_str() {
                "run/lease" => "put lease".into(),
                "run" => format!("put run {}", state("s")),
                "proc" => format!("put proc {}", state("st")),
                other => format!("put {}", other.split('/').next().unwrap_or(other)),
            }
        }
        Call::Delete { key, .. } => {
            let of = key.partition.split('/').next();
            format!("delete {}", of.unwrap_or(&key.partition))
        }
        Call::Scan { .. } => "scan".into(),
        Call::Offsets { .. } => "offsets".into(),
        Call::Committed { .. } => "committed".into(),
        Call::Commit(_) => "commit".into(),
        Call::DeleteGroup { .. } => "delete group".into(),
        _ => return None,
    })
}
