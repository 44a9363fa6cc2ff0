//! A table, its stream, a topic and a function.
use async_trait::async_trait;
use foldstream::{
    Clock, CommitId, StreamHead, StreamId, Timestamp, Version,
    control::Watermarks,
    ports::{Append, AppendOutcome, Capabilities, EventData, EventStore, MessageBus},
    publisher::{DirtyStream, Publisher},
};
use foldstream_lambda::{Connections, Handler, HandlerError, Response};
use foldstream_testkit::{
    InMemoryControlStore, InMemoryEventStore, InMemoryMessageBus,
    faults::{Call, Fault, Faults, Op, Rule},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::Instant;

pub(crate) const S: Duration = Duration::from_secs(1);
/// The time of the invocations of most tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// The first sequence number has 22 digits, as DynamoDB's have, and the tenth record one more.
const FIRST: u128 = 9_999_999_999_999_999_999_990;

/// The wall clock, which follows the runtime's clock and may run ahead of it.
#[derive(Debug)]
pub(crate) struct WallClock {
    start: Instant,
    ahead: AtomicU64,
}
impl WallClock {
    pub(crate) fn run_ahead(&self, by: Duration) {
        self.ahead.fetch_add(by.as_micros() as u64, SeqCst);
    }
}
impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let ahead = Duration::from_micros(self.ahead.load(SeqCst));
        Timestamp::from_micros(1_767_225_600_000_000).plus(self.start.elapsed() + ahead)
    }
}

/// Connections that count how often they are made again.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    pub(crate) unacknowledged: AtomicUsize,
    pub(crate) reconnects: AtomicUsize,
}
#[derive(Debug)]
pub(crate) struct SharedWires(Arc<Wires>);
#[async_trait]
impl Connections for SharedWires {
    fn unacknowledged(&self) -> usize {
        self.0.unacknowledged.load(SeqCst)
    }
    async fn reconnect(&self) {
        self.0.unacknowledged.store(0, SeqCst);
        self.0.reconnects.fetch_add(1, SeqCst);
    }
}

pub(crate) struct World {
    store: Arc<InMemoryEventStore>,
    bus: Arc<InMemoryMessageBus>,
    control: Arc<InMemoryControlStore>,
    pub(crate) faults: Faults,
    pub(crate) clock: Arc<WallClock>,
    pub(crate) wires: Arc<Wires>,
    heads: Mutex<HashMap<StreamId, StreamHead>>,
    records: AtomicU64,
}

pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("cart", id).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let bus = InMemoryMessageBus::new();
        bus.create_topic("GlobalEvents", 3);
        Self {
            // A table in stream mode keeps no list.
            store: InMemoryEventStore::with_capabilities(Capabilities::new(1_000_000)),
            bus,
            control: InMemoryControlStore::new(),
            faults: Faults::seeded(1),
            clock: Arc::new(WallClock {
                start: Instant::now(),
                ahead: AtomicU64::new(0),
            }),
            wires: Arc::default(),
            heads: Mutex::default(),
            records: AtomicU64::new(0),
        }
    }

    pub(crate) fn publisher(&self) -> Publisher {
        self.publisher_on(self.bus.clone())
    }
    pub(crate) fn publisher_on(&self, bus: Arc<InMemoryMessageBus>) -> Publisher {
        Publisher::new(
            self.faults.event_store(self.store.clone()),
            self.faults.message_bus(bus),
            self.faults.control_store(self.control.clone()),
        )
        .with_clock(self.clock.clone())
    }
    /// Creates a function: a process of its own.
    pub(crate) fn handler(&self) -> Handler {
        self.handler_of(self.publisher())
    }
    pub(crate) fn handler_of(&self, publisher: Publisher) -> Handler {
        Handler::new(publisher, SharedWires(self.wires.clone())).with_clock(self.clock.clone())
    }

    /// Appends events to a stream as one commit, and returns the record of the table's stream.
    pub(crate) async fn append(&self, id: &str, events: usize) -> Value {
        let stream = stream(id);
        let head = self.heads.lock().unwrap().get(&stream).cloned();
        let head = head.unwrap_or_else(|| StreamHead::empty(stream.clone()));
        let first = head.version().next();
        let events = vec![EventData::new("Added", 1, "{}"); events];
        let append = Append::after(head, CommitId::random(), self.clock.now(), events);
        let AppendOutcome::Appended(head) = self.store.append(&append).await.unwrap() else {
            panic!("the append has a conflict");
        };
        self.heads.lock().unwrap().insert(stream.clone(), head);
        self.record("INSERT", &stream, first)
    }

    /// Returns the next record of the table's stream.
    pub(crate) fn record(&self, name: &str, stream: &StreamId, version: Version) -> Value {
        let number = FIRST + u128::from(self.records.fetch_add(1, SeqCst));
        let seconds = self.clock.now().as_micros() / 1_000_000;
        json!({
            "eventID": number.to_string(), "eventName": name, "eventVersion": "1.1",
            "eventSource": "aws:dynamodb", "awsRegion": "eu-central-1",
            "dynamodb": {
                "ApproximateCreationDateTime": seconds,
                "Keys": {"pk": {"S": stream.as_str()}, "sk": {"N": version.to_string()}},
                "SequenceNumber": number.to_string(),
                "SizeBytes": 100, "StreamViewType": "NEW_IMAGE",
            },
        })
    }

    /// Makes what happens to the records of some streams fail on the bus.
    pub(crate) fn fail_runs_of(&self, ids: &'static [&'static str], fault: Fault) -> Rule {
        fault.on(Op::PublishRun).matching(move |call| {
            let Call::PublishRun(run) = call else {
                return false;
            };
            let key = run[0].key.as_deref().unwrap();
            ids.iter().any(|id| stream(id).as_str().as_bytes() == key)
        })
    }

    pub(crate) async fn watermark(&self, id: &str) -> u64 {
        let ids: Arc<dyn foldstream::IdSource> = Arc::new(foldstream::SystemIds);
        let marks = Watermarks::new(self.control.clone(), ids);
        let row = marks.get(&stream(id)).await.unwrap();
        row.map_or(0, |row| row.value.version.get())
    }
    /// Returns the number of records in the topic, duplicates included.
    pub(crate) async fn records_in_topic(&self) -> u64 {
        let partitions = self.bus.offsets("GlobalEvents").await.unwrap();
        partitions.iter().map(|p| p.end.get() - p.begin.get()).sum()
    }
    pub(crate) async fn dirty(&self) -> Vec<DirtyStream> {
        let publisher = Publisher::new(self.store.clone(), self.bus.clone(), self.control.clone());
        let (mut streams, mut after) = (Vec::new(), None);
        loop {
            let limit = NonZeroU32::new(10).unwrap();
            let page = publisher.dirty_streams(after, limit).await.unwrap();
            streams.extend(page.streams);
            after = page.next;
            if after.is_none() {
                streams.sort_by(|a, b| a.stream.cmp(&b.stream));
                return streams;
            }
        }
    }
}

/// Invokes a function with a batch of records, and returns from which sequence number on they come
/// again.
pub(crate) async fn invoke(world: &World, handler: &Handler, records: &[Value]) -> Option<String> {
    let event = json!({"Records": records});
    match handle(world, handler, &event, TIMEOUT).await.unwrap() {
        Response::Batch(answer) => answer.again_from().map(str::to_owned),
        other => panic!("{other:?}"),
    }
}
/// Invokes a function, which must answer within the time.
pub(crate) async fn handle(
    world: &World,
    handler: &Handler,
    event: &Value,
    timeout: Duration,
) -> Result<Response, HandlerError> {
    let began = Instant::now();
    let answer = handler.handle(event, world.clock.now().plus(timeout)).await;
    assert!(began.elapsed() < timeout, "{:?}", began.elapsed());
    answer
}
pub(crate) fn number(record: &Value) -> Option<String> {
    record["dynamodb"]["SequenceNumber"]
        .as_str()
        .map(str::to_owned)
}
