//! Read models with generations, and a replay that has scanned and writes only its rows.
use crate::{
    runner::harness::{TOPIC, World},
    support::{AccountEvent, stream},
};
use foldstream::{
    IdSource, StreamId, Version,
    ports::{ControlStore, DeleteExpect, Expect, MessageBus, PutOutcome, RangeQuery, Row, RowKey},
    runner::{
        DeliveryLevel, EventContext, HandlerError, HandlerResult, ModelId, Position,
        ProcessorPolicy, ProcessorState, Projector, Runner, RunnerHandle, Start,
    },
};
use foldstream_testkit::faults::Faults;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(super) const RUN: &str = "0000000000000000000000000000000a";
pub(super) const OLD: &str = "example-group.books.g1";
pub(super) const NEW: &str = "example-group.books.g2";

type Applied = BTreeMap<(u32, StreamId), Vec<u64>>;

/// The versions that were projected, by generation and stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Books<const MODEL: u32> {
    pub(super) applied: Arc<Mutex<Applied>>,
    pub(super) deleted: Arc<Mutex<Vec<u32>>>,
    /// The generations of the calls, in order.
    pub(super) calls: Arc<Mutex<Vec<u32>>>,
    /// The generation that cannot handle events of this version now.
    pub(super) blocked: Arc<Mutex<Option<(u32, u64)>>>,
    /// The number of resets that fail.
    pub(super) failing_resets: Arc<Mutex<u32>>,
}

impl<const MODEL: u32> Books<MODEL> {
    pub(super) fn versions(&self, generation: u32, id: &str) -> Vec<u64> {
        let applied = self.applied.lock().unwrap();
        let found = applied.get(&(generation, stream(id)));
        found.cloned().unwrap_or_default()
    }
    /// Projects versions as the scan of a replay does.
    pub(super) fn scan(&self, generation: u32, id: &str, versions: std::ops::RangeInclusive<u64>) {
        let mut applied = self.applied.lock().unwrap();
        applied.insert((generation, stream(id)), versions.collect());
    }
}

impl<const MODEL: u32> Projector for Books<MODEL> {
    const NAME: &'static str = "books";
    const MODEL: u32 = MODEL;
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        tokio::task::yield_now().await;
        let generation = ctx.model().generation();
        self.calls.lock().unwrap().push(generation);
        if *self.blocked.lock().unwrap() == Some((generation, ctx.version().get())) {
            return Err(HandlerError::transient(
                "the tables of the new model are busy",
            ));
        }
        let mut applied = self.applied.lock().unwrap();
        let key = (generation, ctx.stream().clone());
        applied.entry(key).or_default().push(ctx.version().get());
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        let mut failing = self.failing_resets.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return Err(HandlerError::transient("the tables are busy"));
        }
        Ok(())
    }
    async fn delete_model(&self, model: &ModelId) -> HandlerResult {
        self.deleted.lock().unwrap().push(model.generation());
        Ok(())
    }
    async fn position(&self, model: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let applied = self.applied.lock().unwrap();
        let versions = applied.get(&(model.generation(), stream.clone()));
        let last = versions.and_then(|versions| versions.last()).copied();
        Ok(Position::stored(Version::new(last.unwrap_or(0))))
    }
}

pub(super) fn policy() -> ProcessorPolicy {
    ProcessorPolicy::projector()
        .with_start(Start::Beginning)
        .with_level(DeliveryLevel::ExactlyOnceEffect)
}

pub(super) fn start<const MODEL: u32>(world: &World, books: &Books<MODEL>) -> RunnerHandle {
    let label = format!("host-{}", world.ids.revision().as_u128());
    let runner = world.builder().with_instance(label);
    let runner = runner.with_event_store(world.store.clone());
    let runner = runner.projector_with(books.clone(), policy());
    runner.build().unwrap().start()
}

/// Creates a runner that can be replayed.
pub(super) fn runner(world: &World, books: &Books<1>) -> Runner {
    runner_on(&Faults::none(), world, books)
}
/// Creates a runner that can be replayed, from an event store with these faults.
pub(super) fn runner_on(faults: &Faults, world: &World, books: &Books<1>) -> Runner {
    let store = faults.event_store(world.store.clone());
    let runner = world.builder().with_event_store(store);
    let runner = runner.with_ids(world.ids.clone());
    runner
        .projector_with(books.clone(), policy())
        .build()
        .unwrap()
}

pub(super) fn state(handle: &RunnerHandle) -> ProcessorState {
    handle.health().processor("books").unwrap().state
}

pub(super) fn trouble(handle: &RunnerHandle) -> String {
    let health = handle.health();
    let trouble = health.processor("books").unwrap().trouble.clone();
    trouble.map_or_else(String::new, |trouble| trouble.error.to_string())
}

pub(super) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Stops a runner, and requires that no processor has halted.
pub(super) async fn stop(handle: RunnerHandle) {
    handle.stop();
    handle.wait().await.into_result().unwrap();
}

impl World {
    pub(super) async fn put(&self, partition: &str, sort: &str, value: String) {
        let row = Row::new(RowKey::new(partition, sort), value, self.ids.revision());
        let put = self.control.put(&row, Expect::Any).await.unwrap();
        assert!(matches!(put, PutOutcome::Written));
    }

    pub(super) async fn row(&self, partition: &str, sort: &str) -> Option<String> {
        let row = self.control.get(&RowKey::new(partition, sort)).await;
        let row = row.unwrap()?;
        Some(String::from_utf8(row.value.to_vec()).unwrap())
    }

    pub(super) async fn remove(&self, partition: &str, sort: &str) {
        let key = RowKey::new(partition, sort);
        let _ = self.control.delete(&key, DeleteExpect::Any).await.unwrap();
    }

    pub(super) async fn rows(&self, partition: &str) -> usize {
        let page = self.control.range(&RangeQuery::new(partition)).await;
        page.unwrap().rows.len()
    }

    pub(super) async fn row_values(&self, partition: &str) -> Vec<String> {
        let page = self.control.range(&RangeQuery::new(partition)).await;
        let rows = page.unwrap().rows.into_iter();
        rows.map(|row| String::from_utf8(row.value.to_vec()).unwrap())
            .collect()
    }

    pub(super) async fn proc(&self) -> String {
        self.row("proc", "books").await.unwrap()
    }

    pub(super) async fn end_offsets(&self) -> Vec<u64> {
        let offsets = self.bus.offsets(TOPIC).await.unwrap();
        offsets.iter().map(|o| o.end.get()).collect()
    }
}

/// A replay of the projector `books` from generation 1 to 2.
pub(super) struct Replay<'a> {
    pub(super) world: &'a World,
    pub(super) model: (u32, u32),
    pub(super) in_place: bool,
    pub(super) hand_over: Vec<u64>,
}

impl<'a> Replay<'a> {
    /// Begins: the hand-over is where the topic ends now.
    pub(super) async fn begin(world: &'a World) -> Self {
        let replay = Self {
            world,
            model: (1, 1),
            in_place: false,
            hand_over: world.end_offsets().await,
        };
        replay.write_run("preparing", "").await;
        replay.write_proc("preparing", 1, "").await;
        replay
    }

    pub(super) async fn write_proc(&self, state: &str, epoch: u64, more: &str) {
        let (stop, model) = (self.in_place, self.model.0);
        let row = format!(
            r#"{{"a":1,"st":"{state}","s":{stop},"e":{epoch},"m":{model},"t":2,"r":"{RUN}"{more}}}"#
        );
        self.world.put("proc", "books", row).await;
    }

    pub(super) async fn write_run(&self, state: &str, more: &str) {
        let mode = if self.in_place {
            "in_place"
        } else {
            "blue_green"
        };
        let (hand_over, model) = (&self.hand_over, self.model.1);
        let row = format!(
            r#"{{"s":"{state}","e":1,"p":[{{"n":"books","g":2,"m":{model},"w":false}}],"m":"{mode}","n":1,"b":"ann","t":1767225600000000,"h":{{"{TOPIC}":{hand_over:?}}}{more}}}"#
        );
        self.world.put("run", RUN, row).await;
    }

    /// Ends the scan: the runners bring the new generation up to where the topic ends now.
    pub(super) async fn catch_up(&self) {
        let ends = self.world.end_offsets().await;
        self.catch_up_to(&ends).await;
    }

    pub(super) async fn catch_up_to(&self, ends: &[u64]) {
        self.write_run("catch_up", &format!(r#","u":{{"{TOPIC}":{ends:?}}}"#))
            .await;
        for (number, offset) in self.hand_over.iter().enumerate() {
            let sort = format!("{TOPIC}/{number:020}");
            let boot = format!(r#"{{"o":{offset},"s":false}}"#);
            self.world.put("boot/books/2", &sort, boot).await;
        }
        let topic = format!(r#"{{"p":{}}}"#, self.hand_over.len());
        self.world.put("boot/books/2", TOPIC, topic).await;
        let more = format!(r#","n":2,"nm":{}"#, self.model.1);
        self.write_proc("catch_up", 2, &more).await;
    }

    pub(super) async fn is_done(&self) -> bool {
        let run = self.world.row("run", RUN).await.unwrap();
        run.contains(r#""s":"done""#) && run.contains(r#""w":true"#)
    }
}

/// Returns true if the generation serves and no replay is under way.
pub(super) fn serves(proc: &str, generation: u32) -> bool {
    proc.contains(&format!(r#""a":{generation},"st":"live""#)) && !proc.contains(r#""r":"#)
}
