//! A projector and a listener that fail at chosen events.
use super::super::harness::{Seen, TOPIC, World};
use super::operator::Operator;
use crate::support::AccountEvent;
use foldstream::{
    StreamId,
    runner::{
        EventContext, HandlerError, HandlerResult, ModelId, ProcessorPolicy, ProcessorReport,
        Projector, Runner, RunnerBuilder, Start,
    },
};
use foldstream_testkit::{
    InMemoryMessageBus,
    faults::{Call, Faults},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) const VIEWS: &str = "example-group.views.g1";

type Event = (String, u64);

/// The events that fail for good.
pub(super) type Bad = Arc<Mutex<BTreeSet<Event>>>;

/// A read model: the events that are durable in it, in the order in which they became so.
#[derive(Clone, Default)]
pub(super) struct Views {
    pub(super) durable: Arc<Mutex<Vec<Event>>>,
    pub(super) bad: Bad,
    buffered: Option<Arc<Mutex<Vec<Event>>>>,
    /// The number of calls of the handler, and of flushes.
    pub(super) calls: Arc<Mutex<(u32, u32)>>,
}

impl Views {
    pub(super) fn failing(bad: &[(&str, u64)]) -> Self {
        let views = Self::default();
        let bad = bad.iter().map(|(id, version)| ((*id).to_owned(), *version));
        views.bad.lock().unwrap().extend(bad);
        views
    }
    /// The same model in a process that buffers until the flush.
    pub(super) fn buffered(&self) -> Self {
        Self {
            buffered: Some(Arc::default()),
            ..self.clone()
        }
    }
    pub(super) fn of(&self, id: &str) -> Vec<u64> {
        let all = self.durable.lock().unwrap();
        let mine = all.iter().filter(|(of, _)| of == id);
        mine.map(|(_, version)| *version).collect()
    }
    pub(super) fn fix(&self) {
        self.bad.lock().unwrap().clear();
    }
}

impl Projector for Views {
    const NAME: &'static str = "views";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        tokio::task::yield_now().await;
        self.calls.lock().unwrap().0 += 1;
        let event = (ctx.stream().id().to_owned(), ctx.version().get());
        if self.bad.lock().unwrap().contains(&event) {
            return Err(HandlerError::permanent(format!("{event:?} is bad")));
        }
        match &self.buffered {
            Some(buffered) => buffered.lock().unwrap().push(event),
            None => self.durable.lock().unwrap().push(event),
        }
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        self.calls.lock().unwrap().1 += 1;
        if let Some(buffered) = &self.buffered {
            let events = std::mem::take(&mut *buffered.lock().unwrap());
            self.durable.lock().unwrap().extend(events);
        }
        Ok(())
    }
    async fn forget_buffered(&self, _: &ModelId, streams: &[StreamId]) -> HandlerResult {
        if let Some(buffered) = &self.buffered {
            let is_kept = |(id, _): &Event| !streams.iter().any(|stream| stream.id() == id);
            buffered.lock().unwrap().retain(is_kept);
        }
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.durable.lock().unwrap().clear();
        Ok(())
    }
}

/// A runner in a task of its own.
pub(super) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Vec<ProcessorReport>>,
}

impl Running {
    pub(super) fn start(runner: Runner) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move { runner.run(stopped).await.into_result().unwrap() });
        Self { stop, task }
    }
    pub(super) async fn stop(self) -> ProcessorReport {
        self.stop.cancel();
        self.task.await.unwrap().remove(0)
    }
    /// Lets the process die.
    pub(super) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// Lets this many seconds pass.
pub(super) async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A world with one partition, and a projector and an operator in it.
pub(super) struct Shop {
    pub(super) world: World,
    pub(super) views: Views,
    pub(super) operator: Operator,
    pub(super) has_store: bool,
}

impl Shop {
    pub(super) fn new(bad: &[(&str, u64)]) -> Self {
        let world = World::new(1);
        let operator = Operator::new(world.control.clone(), "views", 1);
        Self {
            world,
            views: Views::failing(bad),
            operator,
            has_store: true,
        }
    }
    pub(super) fn on(bus: Arc<InMemoryMessageBus>, bad: &[(&str, u64)]) -> Self {
        let world = World::on(bus, 1);
        let operator = Operator::new(world.control.clone(), "views", 1);
        Self {
            world,
            views: Views::failing(bad),
            operator,
            has_store: true,
        }
    }
    /// The same without the event store.
    pub(super) fn without_store(mut self) -> Self {
        self.has_store = false;
        self
    }
    pub(super) fn builder(&self) -> RunnerBuilder {
        let builder = self.world.builder();
        if self.has_store {
            builder.with_event_store(self.world.store.clone())
        } else {
            builder
        }
    }
    pub(super) fn start(&self) -> Running {
        self.start_as(self.views.clone(), policy())
    }
    pub(super) fn start_as(&self, views: Views, policy: ProcessorPolicy) -> Running {
        let runner = self.builder().projector_with(views, policy).build();
        Running::start(runner.unwrap())
    }
    /// Starts a process whose bus and control store have these faults.
    pub(super) fn start_with(
        &self,
        faults: &Faults,
        views: Views,
        policy: ProcessorPolicy,
    ) -> Running {
        let mut builder = self.world.faulty_builder(faults);
        if self.has_store {
            builder = builder.with_event_store(self.world.store.clone());
        }
        Running::start(builder.projector_with(views, policy).build().unwrap())
    }
    /// Stores and publishes deposits of these accounts, and starts a process that has met them.
    pub(super) async fn started_after(&self, ids: &[&str]) -> Running {
        self.deposits(ids).await;
        let running = self.start();
        seconds(5).await;
        running
    }
    /// Asserts that a stream waits at this version, up to this one.
    pub(super) async fn assert_parked(&self, id: &str, from: u64, high: u64) {
        let parked = Some((from, high, "parked".into()));
        assert_eq!(self.operator.parked(id).await, parked);
    }
    /// Stores and publishes deposits of these accounts.
    pub(super) async fn deposits(&self, ids: &[&str]) {
        for id in ids {
            self.world.deposit(id).await;
        }
    }
    /// Asserts that nothing is parked or dead, and that all is committed.
    pub(super) async fn assert_at_rest(&self) {
        for kind in ["park", "dlq", "def", "order", "ask"] {
            assert_eq!(self.operator.all(kind).await, [""; 0], "{kind}");
        }
        self.assert_committed().await;
    }
    pub(super) async fn assert_committed(&self) {
        let committed = self.world.committed(VIEWS).await;
        assert_eq!(committed, self.world.ends().await, "{TOPIC}");
    }
}

/// Returns true for the write that tells other processes of a change.
pub(super) fn announces(call: &Call<'_>) -> bool {
    matches!(call, Call::Put { row, .. } if row.key.sort == "!changed")
}

/// A projector from the beginning.
pub(super) fn policy() -> ProcessorPolicy {
    ProcessorPolicy::projector().with_start(Start::Beginning)
}

/// A world with one partition, and a listener and an operator in it.
pub(super) struct Desk {
    pub(super) world: World,
    pub(super) seen: Seen,
    pub(super) bad: Bad,
    pub(super) operator: Operator,
}

impl Desk {
    pub(super) fn new(bad: &[(&str, u64)]) -> Self {
        let world = World::new(1);
        let operator = Operator::new(world.control.clone(), "seen", 1);
        let bad = bad.iter().map(|(id, version)| ((*id).to_owned(), *version));
        let bad: Bad = Arc::new(Mutex::new(bad.collect()));
        let fails = bad.clone();
        let seen = Seen::failing(move |id, version, _| {
            match fails.lock().unwrap().contains(&(id.to_owned(), version)) {
                true => Err(HandlerError::permanent("refused")),
                false => Ok(()),
            }
        });
        Self {
            world,
            seen,
            bad,
            operator,
        }
    }
    pub(super) fn start(&self, policy: ProcessorPolicy) -> Running {
        let builder = self.world.builder();
        let runner = builder.listener_with(self.seen.clone(), policy).build();
        Running::start(runner.unwrap())
    }
}

/// A listener from the beginning.
pub(super) fn listening() -> ProcessorPolicy {
    ProcessorPolicy::listener().with_start(Start::Beginning)
}
