//! Events that are appended for as long as publishers are disturbed.
use super::Fleet;
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp,
    ports::{Append, AppendOutcome, EventData, EventStore as _},
};
use foldstream_dynamodb::DynamoDb;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const WRITERS: u64 = 4;
/// The streams of each writer. The first one of all is hot.
const STREAMS: u64 = 50;
/// The pause of a writer between two commits.
const PAUSE: Duration = Duration::from_millis(25);

/// Writers that append to streams of their own.
pub(super) struct Load {
    writers: JoinSet<Vec<StreamHead>>,
    events: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Load {
    pub(super) fn start(fleet: &Fleet, seed: u64) -> Self {
        let (events, stop) = (Arc::<AtomicU64>::default(), CancellationToken::new());
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let writer = Writer {
                stores: fleet.stores.clone(),
                random: fastrand::Rng::with_seed(seed ^ (number << 20)),
                heads: (0..STREAMS).map(|n| head(number * STREAMS + n)).collect(),
                events: events.clone(),
            };
            writers.spawn(writer.run(stop.clone()));
        }
        Self {
            writers,
            events,
            stop,
        }
    }

    /// Stops once there are this many events, and returns the tail of each stream.
    pub(super) async fn stop(self, events: u64) -> BTreeMap<String, u64> {
        while self.events.load(Ordering::Relaxed) < events {
            tokio::time::sleep(PAUSE).await;
        }
        self.stop.cancel();
        let heads = self.writers.join_all().await.into_iter().flatten();
        let tails = heads.map(|head| (head.stream().to_string(), head.version().get()));
        tails.filter(|(_, tail)| *tail > 0).collect()
    }
}

fn head(stream: u64) -> StreamHead {
    StreamHead::empty(StreamId::new("account", &stream).unwrap())
}

struct Writer {
    stores: DynamoDb,
    random: fastrand::Rng,
    heads: Vec<StreamHead>,
    events: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) -> Vec<StreamHead> {
        while !stop.is_cancelled() {
            // One of eight commits is the hot stream's.
            let stream = match self.random.u32(..8) {
                0 => 0,
                _ => self.random.usize(..self.heads.len()),
            };
            self.append(stream).await;
            tokio::time::sleep(PAUSE).await;
        }
        self.heads
    }

    async fn append(&mut self, stream: usize) {
        let head = self.heads[stream].clone();
        let first = head.version().get() + 1;
        let events: Vec<EventData> = (first..first + self.random.u64(1..=8))
            .map(|version| {
                let data = format!(r#"{{"of":"{}","version":{version}}}"#, head.stream());
                EventData::new("Deposited", 1, data)
            })
            .collect();
        let count = events.len() as u64;
        let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
        let appended = self.stores.event_store().append(&append).await.unwrap();
        let AppendOutcome::Appended(after) = appended else {
            panic!("{appended:?}");
        };
        self.heads[stream] = after;
        self.events.fetch_add(count, Ordering::Relaxed);
    }
}
