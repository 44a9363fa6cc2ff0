//! A message bus that writes down which runs of records are being sent, so that a test knows
//! whether a process that it killed had records in flight.
use crate::effects;
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, Message, MessageBus, MessageBusError, Offset, PartitionId, PartitionOffsets,
    RunOutcome, Subscription, TopicDescription,
};
use foldstream_kafka::KafkaMessageBus;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A bus that appends a line to a file before and after each run of records.
#[derive(Clone, Debug)]
pub struct RecordedBus {
    bus: KafkaMessageBus,
    sends: Arc<File>,
}

impl RecordedBus {
    /// Creates a bus that records in a folder which runs it sends.
    ///
    /// # Panics
    /// If the file cannot be opened.
    pub fn new(bus: KafkaMessageBus, folder: &Path) -> Self {
        let sends = Arc::new(effects::append_to(&file(folder)));
        Self { bus, sends }
    }

    fn begin(&self, records: usize) -> Run<'_> {
        self.add("begin", records);
        Run { bus: self, records }
    }

    fn add(&self, what: &str, records: usize) {
        let process = std::process::id();
        effects::add_line(&self.sends, format!("{process} {what} {records}"));
    }
}

/// A run that is being sent. It ends when its future returns or is dropped.
struct Run<'a> {
    bus: &'a RecordedBus,
    records: usize,
}
impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.bus.add("end", self.records);
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("sends")
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl MessageBus for RecordedBus {
    async fn publish(&self, message: &Message) -> Result<(PartitionId, Offset), MessageBusError> {
        let _run = self.begin(1);
        self.bus.publish(message).await
    }
    async fn publish_run(&self, run: &[Message]) -> RunOutcome {
        let _run = self.begin(run.len());
        self.bus.publish_run(run).await
    }
    async fn subscribe(
        &self,
        subscription: Subscription,
    ) -> Result<Arc<dyn Consumer>, MessageBusError> {
        self.bus.subscribe(subscription).await
    }
    async fn offsets(&self, topic: &str) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        self.bus.offsets(topic).await
    }
    async fn committed(
        &self,
        group: &str,
        topic: &str,
    ) -> Result<Vec<(PartitionId, Option<Offset>)>, MessageBusError> {
        self.bus.committed(group, topic).await
    }
    async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, MessageBusError> {
        self.bus.describe_topic(topic).await
    }
    async fn delete_group(&self, group: &str) -> Result<(), MessageBusError> {
        self.bus.delete_group(group).await
    }
}

/// The runs that processes have begun and not ended, as their files tell.
#[derive(Debug)]
pub struct Sends {
    path: PathBuf,
    place: u64,
    /// The records in flight, by process.
    in_flight: BTreeMap<u32, u64>,
    /// All records that a process began to send, by process.
    sent: BTreeMap<u32, u64>,
}

impl Sends {
    /// Follows the file in a folder from its start.
    pub fn follow(folder: &Path) -> Self {
        Self {
            path: file(folder),
            place: 0,
            in_flight: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Reads what processes have written since the last call, and returns the number of records
    /// that a process has in flight.
    ///
    /// # Panics
    /// If the file is not one of sends.
    pub fn in_flight(&mut self, process: u32) -> u64 {
        let mut text = String::new();
        // No process may have opened it yet.
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.place)).unwrap();
            file.read_to_string(&mut text).unwrap();
        }
        // The kernel appends a line as a whole.
        self.place += text.len() as u64;
        for line in text.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let [of, what, records] = parts[..] else {
                panic!("not a send: {line:?}");
            };
            let of = of.parse().unwrap();
            let records: u64 = records.parse().unwrap();
            let in_flight = self.in_flight.entry(of).or_default();
            if what == "begin" {
                *in_flight += records;
                *self.sent.entry(of).or_default() += records;
            } else {
                *in_flight -= records;
            }
        }
        self.in_flight.get(&process).copied().unwrap_or_default()
    }

    /// Returns the number of records that a process had begun to send at the last call of
    /// [`in_flight`](Self::in_flight).
    pub fn sent(&self, process: u32) -> u64 {
        self.sent.get(&process).copied().unwrap_or_default()
    }
}
