//! The handlers of one instance, which fail as the world says and report what they do to it.
use super::{
    ears::{Heard, Windows},
    schedule::ATTEMPT_TIMEOUT,
    world::{Ailment, Event, Moved, NAME, World},
};
use crate::support::stream;
use foldstream::{
    CommitId, StreamId, Version,
    ports::{ConsumerEvent, PartitionId},
    runner::{
        BatchResult, DeliveryLevel, EventContext, EventSource, HandlerError, HandlerResult,
        Listener, ModelId, Position, Projector,
    },
};
use foldstream_testkit::faults::Faults;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// One life of an instance, as far as its handlers are concerned.
pub(super) struct Body {
    pub(super) world: Arc<World>,
    pub(super) id: u64,
    pub(super) faults: Faults,
    /// The instance hears nothing of its group before this time.
    pub(super) deaf_until: Mutex<Option<Instant>>,
    pub(super) windows: Mutex<Windows>,
    pub(super) operators: Mutex<Heard>,
    state: Mutex<State>,
    rng: Mutex<fastrand::Rng>,
}

#[derive(Default)]
struct State {
    /// The assigned partitions, and since when.
    owned: BTreeMap<PartitionId, u64>,
    /// The positions that the read model has told this instance since it was assigned the stream.
    told: BTreeMap<u32, u64>,
    /// The events that went well, with the assignment in which they did.
    done: BTreeSet<(u64, Event)>,
    /// The lanes and streams that are being handled.
    running: BTreeSet<u32>,
    is_flushing: bool,
    buffer: Vec<Buffered>,
}

#[derive(Clone, Copy, PartialEq)]
struct Buffered {
    event: Event,
    commit_id: CommitId,
    began: u64,
}

/// Marks a lane or a flush as running until it is dropped, also by a cancellation.
struct Guard<'a, F: Fn(&mut State)>(&'a Mutex<State>, F);
impl<F: Fn(&mut State)> Drop for Guard<'_, F> {
    fn drop(&mut self) {
        (self.1)(&mut self.0.lock().unwrap());
    }
}

fn event_of(ctx: &EventContext) -> Event {
    (ctx.stream().id().parse().unwrap(), ctx.version().get())
}

impl Body {
    pub(super) fn new(world: &Arc<World>, id: u64, seed: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            id,
            faults,
            deaf_until: Mutex::default(),
            windows: Mutex::default(),
            operators: Mutex::default(),
            state: Mutex::default(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
        })
    }

    /// Draws something that goes wrong once in `n` times while there are faults.
    fn goes_wrong(&self, n: u32) -> bool {
        !self.world.plan.is_peaceful
            && !self.world.facts().is_calm
            && self.rng.lock().unwrap().u32(0..n) == 0
    }

    /// Takes note of what the instance hears of its group.
    pub(super) fn heard(&self, event: &ConsumerEvent) {
        let mut state = self.state.lock().unwrap();
        match event {
            ConsumerEvent::Assigned(assignment) => {
                let mut facts = self.world.facts();
                for assigned in &assignment.partitions {
                    let moment = facts.moment();
                    let partition = assigned.partition.clone();
                    state.owned.insert(partition.clone(), moment);
                    facts.owners.insert(partition, (self.id, moment));
                }
                drop(facts);
                state.told.clear();
                let partitions: Vec<_> = state.owned.keys().map(|p| p.partition).collect();
                self.world
                    .note(|| format!("i{} is assigned, has {partitions:?}", self.id));
            }
            ConsumerEvent::Lost(partitions) => {
                state
                    .owned
                    .retain(|partition, _| !partitions.contains(partition));
                self.world.hit("lost assignment");
                self.world
                    .note(|| format!("i{} has lost {partitions:?}", self.id));
            }
            ConsumerEvent::Revoking(revocation) => {
                self.world.hit("revocation");
                let partitions = revocation.partitions();
                self.world
                    .note(|| format!("i{} gives up {partitions:?}", self.id));
            }
            _ => {}
        }
    }

    /// Notes that the instance works under its assignment of a partition.
    pub(super) fn works_at(&self, partition: &PartitionId) {
        let wrong = self.windows.lock().unwrap().works_at(partition);
        if let Some(wrong) = wrong {
            self.world.violated(format!("i{} {wrong}", self.id));
        }
    }

    /// Dies if that was drawn: nothing happens in this process any more.
    async fn may_die(&self, n: u32, at: &str) {
        if self.goes_wrong(n) {
            self.world.hit(format!("died {at}"));
            self.world.note(|| format!("i{} dies {at}", self.id));
            self.faults.crash();
        }
        self.lives().await;
    }
    async fn lives(&self) {
        if self.faults.is_crashed() {
            std::future::pending::<()>().await;
        }
    }

    /// Checks that the runner may call the handler now. Returns the assignment and this moment.
    fn called(&self, event: Event, ctx: &EventContext) -> (u64, u64) {
        let partition = self.world.partition_of(event.0);
        let mut state = self.state.lock().unwrap();
        let since = state.owned.get(&partition).copied().unwrap_or(0);
        let told = state.told.get(&event.0).copied().unwrap_or(0);
        let (mut wrong, is_redriven) = (None, *ctx.source() == EventSource::History);
        let mut facts = self.world.facts();
        let now = facts.moment();
        if is_redriven {
            facts.calls_of_history += 1;
            facts.of_history.insert(event);
        } else if state.done.contains(&(since, event)) {
            wrong = Some("was handled in this assignment");
        } else if since > 0 && facts.position_before(event.0, since) >= event.1 {
            wrong = Some("lies before the position that was stored before the assignment");
        } else if told >= event.1 && !facts.exempt.contains(&event) {
            // A late event is tried again although the model has told a later position meanwhile.
            wrong = Some("lies before the position that the read model has told");
        }
        drop(facts);
        if let Some(wrong) = wrong {
            self.world
                .violated(format!("i{}: {event:?} comes again, and {wrong}", self.id));
        }
        self.works_at(&partition);
        let lane = self.world.plan.lane(event.0);
        if let Some(wrong) = self.operators.lock().unwrap().called(lane) {
            self.world
                .violated(format!("i{}: {event:?} comes {wrong}", self.id));
        }
        state.told.entry(event.0).or_default();
        (since, now)
    }

    fn runs(&self, stream: u32) -> Guard<'_, impl Fn(&mut State)> {
        let lane = self.world.plan.lane(stream);
        if !self.state.lock().unwrap().running.insert(lane) {
            self.world
                .violated(format!("i{}: lane {lane} runs twice", self.id));
        }
        Guard(&self.state, move |state| {
            state.running.remove(&lane);
        })
    }

    /// Handles neighbouring events of one lane, until one fails.
    async fn handle_all(&self, events: &[&EventContext]) -> (usize, HandlerResult) {
        let Some(first) = events.first() else {
            return (0, Ok(()));
        };
        let _running = self.runs(event_of(first).0);
        let mut done = Vec::new();
        let mut result = Ok(());
        for ctx in events {
            match self.handle_one(ctx).await {
                Ok(handled) => done.push(handled),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if events.len() > 1 {
            self.world.hit("batch");
        }
        let count = done.len();
        self.state.lock().unwrap().done.extend(done);
        (count, result)
    }

    async fn handle_one(&self, ctx: &EventContext) -> Result<(u64, Event), HandlerError> {
        self.lives().await;
        let event = event_of(ctx);
        let (since, began) = self.called(event, ctx);
        let source = if *ctx.source() == EventSource::History {
            "history"
        } else {
            "bus"
        };
        self.world
            .note(|| format!("i{} call {event:?} of {source}, {}", self.id, ctx.attempt()));
        self.world.hit(format!("call of {source}"));
        self.fails(event).await?;
        if self.goes_wrong(30) {
            return Err(HandlerError::transient("down"));
        }
        let millis = self.rng.lock().unwrap().u64(0..30);
        if millis > 10 {
            sleep(Duration::from_millis(millis)).await;
        } else {
            tokio::task::yield_now().await;
        }
        self.may_die(150, "before an effect").await;
        let buffered = Buffered {
            event,
            commit_id: ctx.event_id().commit_id(),
            began,
        };
        match self.world.plan.role {
            super::schedule::Role::Buffers => self.state.lock().unwrap().buffer.push(buffered),
            _ => self.store(buffered),
        }
        self.may_die(150, "after an effect").await;
        if self.goes_wrong(40) {
            self.world.hit("lost answer of a handler");
            return Err(HandlerError::transient("the answer was lost"));
        }
        Ok((since, event))
    }

    /// Fails as the event does at this time.
    async fn fails(&self, event: Event) -> HandlerResult {
        let (ailment, is_outage) = {
            let facts = self.world.facts();
            (facts.ailments.get(&event).copied(), facts.is_outage)
        };
        if is_outage {
            self.world.hit("call during an outage");
            return Err(HandlerError::transient("the service is down"));
        }
        if let Some(ailment) = ailment {
            let name = format!("{ailment:?}");
            let name = name.split('(').next().unwrap_or_default();
            self.world.hit(format!("failed: {name}"));
        }
        match ailment {
            None | Some(Ailment::Undecodable) => {}
            Some(Ailment::Permanent) => return Err(HandlerError::permanent("bad")),
            Some(Ailment::Transient) => return Err(HandlerError::transient("not yet")),
            // No panic hook is called, which would print each one.
            Some(Ailment::Panic) => std::panic::resume_unwind(Box::new("a bug")),
            Some(Ailment::Slow) => sleep(ATTEMPT_TIMEOUT * 2).await,
            Some(Ailment::Flaky(until)) if Instant::now() < until => {
                return Err(HandlerError::transient("flaky"));
            }
            Some(Ailment::Throttled(until)) if Instant::now() < until => {
                return Err(HandlerError::throttled(
                    Duration::from_millis(400),
                    "too fast",
                ));
            }
            Some(Ailment::Flaky(_) | Ailment::Throttled(_)) => {}
            Some(Ailment::Fatal) => {
                // The next instance can.
                self.world.fix(event);
                return Err(HandlerError::fatal("this process is broken"));
            }
        }
        Ok(())
    }

    /// Writes an event into the durable model. An older version that is applied late changes
    /// nothing there.
    fn store(&self, buffered: Buffered) {
        let Buffered {
            event,
            commit_id,
            began,
        } = buffered;
        if self.world.plan.level == DeliveryLevel::ExactlyOnceEffect {
            let mut facts = self.world.facts();
            if facts
                .rows
                .get(&event.0)
                .is_some_and(|(version, _)| *version >= event.1)
            {
                return;
            }
            facts.rows.insert(event.0, (event.1, commit_id));
        }
        self.world.takes_effect(event, began, self.id);
    }

    async fn flush(&self) -> HandlerResult {
        self.lives().await;
        if std::mem::replace(&mut self.state.lock().unwrap().is_flushing, true) {
            self.world
                .violated(format!("i{}: two flushes run", self.id));
        }
        let _flushing = Guard(&self.state, |state| state.is_flushing = false);
        tokio::task::yield_now().await;
        if self.goes_wrong(20) {
            self.world.hit("failed flush");
            return Err(HandlerError::transient("the flush failed"));
        }
        let events = self.state.lock().unwrap().buffer.clone();
        for buffered in events {
            self.may_die(200, "in a flush").await;
            self.store(buffered);
            self.state
                .lock()
                .unwrap()
                .buffer
                .retain(|other| *other != buffered);
            if self.goes_wrong(40) {
                self.world.hit("partial flush");
                return Err(HandlerError::transient("the flush failed halfway"));
            }
        }
        self.may_die(200, "after a flush").await;
        Ok(())
    }

    async fn forget(&self, streams: &[StreamId]) -> HandlerResult {
        self.lives().await;
        let numbers: Vec<u32> = streams.iter().filter_map(|s| s.id().parse().ok()).collect();
        let mut state = self.state.lock().unwrap();
        let lanes = numbers.iter().map(|number| self.world.plan.lane(*number));
        let runs =
            !self.world.plan.shares_lanes && lanes.clone().any(|l| state.running.contains(&l));
        let has_some = state.buffer.iter().any(|b| numbers.contains(&b.event.0));
        state.buffer.retain(|b| !numbers.contains(&b.event.0));
        let is_flushing = state.is_flushing;
        drop(state);
        if has_some {
            self.world.hit("buffered effects forgotten");
        }
        if runs || is_flushing {
            self.world
                .violated(format!("i{}: forgets {numbers:?} while it runs", self.id));
        }
        Ok(())
    }

    async fn position(&self, of: &StreamId) -> Result<Position, HandlerError> {
        self.lives().await;
        if self.world.plan.level != DeliveryLevel::ExactlyOnceEffect {
            return Ok(Position::KeptByRunner);
        }
        if self.goes_wrong(25) {
            return Err(HandlerError::transient("the read model is down"));
        }
        let number: u32 = of.id().parse().unwrap();
        let row = self.world.facts().rows.get(&number).copied();
        let version = row.map_or(0, |(version, _)| version);
        self.state.lock().unwrap().told.insert(number, version);
        Ok(Position::Stored {
            version: Version::new(version),
            commit_id: row.map(|(_, commit_id)| commit_id),
        })
    }
}

fn batch_result((done, result): (usize, HandlerResult)) -> BatchResult {
    match result {
        Ok(()) => BatchResult::done(done),
        Err(error) => BatchResult::failed(done, error),
    }
}

pub(super) struct Reacts(pub(super) Arc<Body>);
impl Listener for Reacts {
    const NAME: &'static str = NAME;
    type Events = Moved;
    async fn handle(&self, _: &Moved, ctx: &EventContext) -> HandlerResult {
        self.0.handle_all(&[ctx]).await.1
    }
    async fn handle_batch(&self, events: &[(Moved, EventContext)]) -> BatchResult {
        let events: Vec<_> = events.iter().map(|(_, ctx)| ctx).collect();
        batch_result(self.0.handle_all(&events).await)
    }
}

pub(super) struct Projects(pub(super) Arc<Body>);
impl Projector for Projects {
    const NAME: &'static str = NAME;
    type Events = Moved;
    async fn project(&self, _: &Moved, ctx: &EventContext) -> HandlerResult {
        self.0.handle_all(&[ctx]).await.1
    }
    async fn project_batch(&self, events: &[(Moved, EventContext)]) -> BatchResult {
        let events: Vec<_> = events.iter().map(|(_, ctx)| ctx).collect();
        batch_result(self.0.handle_all(&events).await)
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
    async fn flush(&self, _: &ModelId) -> HandlerResult {
        self.0.flush().await
    }
    async fn forget_buffered(&self, _: &ModelId, streams: &[StreamId]) -> HandlerResult {
        self.0.forget(streams).await
    }
    async fn position(&self, _: &ModelId, of: &StreamId) -> Result<Position, HandlerError> {
        self.0.position(of).await
    }
}

/// Returns the stream of a number.
pub(super) fn stream_of(number: u32) -> StreamId {
    stream(&number.to_string())
}
