//! The cost of one more processor in a process: threads, connections and memory, on a real broker.
//!
//! The figures are in the book's chapter on operations. To print them again:
//! `cargo test -p foldstream-live -- --ignored --nocapture costs`
use crate::kafka::{config, unique};
use foldstream::{
    CommitId, DomainEvent, EventHeader, SourceUri, StreamId, Timestamp, Version,
    adapter::{recorded_event, to_message},
    ports::{MessageBus, PartitionId},
    runner::{
        EventContext, HandlerResult, Listener, ProcessorPolicy, ProcessorState, Runner,
        RunnerHandle, Start,
    },
};
use foldstream_kafka::{GroupProtocol, KafkaConfig, KafkaMessageBus, TopicSpec};
use foldstream_testkit::InMemoryControlStore;
use std::{collections::BTreeMap, fs, process::Command, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The processors over which the cost is averaged.
const MORE: u32 = 20;
const PARTITIONS: u32 = 3;
/// The variable with the brokers, in the process that measures.
const BROKERS: &str = "FOLDSTREAM_COSTS_BROKERS";

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub(crate) enum Happened {
    Deposited { amount: u64 },
}

struct Ignore;
impl Listener for Ignore {
    const NAME: &'static str = "ignore";
    type Events = Happened;
    async fn handle(&self, _: &Happened, _: &EventContext) -> HandlerResult {
        Ok(())
    }
}

/// The threads, connections and memory that this process uses.
#[derive(Clone, Debug)]
struct Used {
    /// The threads, by name.
    threads: BTreeMap<String, i64>,
    /// Established TCP connections.
    connections: i64,
    /// Resident memory in KiB.
    memory: i64,
}

impl Used {
    fn now() -> Self {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir("/proc/self/task").unwrap() {
            // A thread may have ended since.
            if let Ok(name) = fs::read_to_string(task.unwrap().path().join("comm")) {
                let name = name.trim();
                // Threads of the runtime come and go. Those of brokers have their number.
                let name = match name.strip_prefix("rdk:broker") {
                    Some("-1") => "rdk:broker-1",
                    Some(_) => "rdk:broker",
                    None if name.starts_with("tokio") => continue,
                    None => name,
                };
                *threads.entry(name.to_owned()).or_default() += 1;
            }
        }
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.unwrap().trim().trim_end_matches(" kB");
        Self {
            threads,
            connections: connections(),
            memory: memory.parse().unwrap(),
        }
    }
    fn all_threads(&self) -> i64 {
        self.threads.values().sum()
    }
}

/// Counts the established TCP connections of this process.
fn connections() -> i64 {
    let mut established = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let table = fs::read_to_string(table).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // The state 1 is ESTABLISHED.
            if fields.get(3) == Some(&"01") {
                established.push(format!("socket:[{}]", fields[9]));
            }
        }
    }
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let targets = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    let own = targets.filter(|target| {
        established
            .iter()
            .any(|socket| target.as_os_str() == &**socket)
    });
    i64::try_from(own.count()).unwrap()
}

async fn start(bus: &KafkaMessageBus, topic: &str, names: std::ops::Range<u32>) -> RunnerHandle {
    let control = InMemoryControlStore::new();
    let mut runner = Runner::builder(bus.clone(), control, unique("costs")).with_topics([topic]);
    let count = names.len();
    for name in names {
        let policy = ProcessorPolicy::listener().with_start(Start::Beginning);
        let policy = policy.with_name(format!("processor-{name}"));
        runner = runner.listener_with(Ignore, policy);
    }
    let handle = runner.build().unwrap().start();
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let health = handle.health();
        let is_done = |p: &foldstream::runner::ProcessorHealth| {
            p.state == ProcessorState::Running
                && p.partitions == PARTITIONS
                && p.lag.records == Some(0)
        };
        if health.processors.iter().filter(|p| is_done(p)).count() == count {
            return handle;
        }
        assert!(Instant::now() < deadline, "{health:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Publishes an event of a stream of its own for each number, to the partitions in turn.
pub(crate) async fn publish(
    bus: &KafkaMessageBus,
    topic: &str,
    partitions: u32,
    numbers: std::ops::Range<u64>,
) {
    let topic = Arc::from(topic);
    for n in numbers {
        let stream = StreamId::new("account", &n).unwrap();
        let id = CommitId::random().event_id(0);
        let now = Timestamp::now();
        let header = EventHeader::new(id, stream, Version::new(1), "Deposited", now);
        let event = recorded_event(header, r#"{"amount":1}"#.into());
        let message = to_message(&event, &topic, &SourceUri::default(), now);
        let number = u32::try_from(n % u64::from(partitions)).unwrap();
        bus.publish(&message.with_partition(number)).await.unwrap();
    }
}

async fn measure(brokers: &str, protocol: GroupProtocol) {
    let config = KafkaConfig::default().with_brokers(brokers);
    let bus = KafkaMessageBus::new(config.with_group_protocol(protocol)).unwrap();
    let topic: Arc<str> = unique("costs").into();
    let spec = TopicSpec::new(&*topic, PARTITIONS);
    bus.create_topic(&spec).await.unwrap();
    publish(&bus, &topic, PARTITIONS, 0..300).await;
    // The first processor has its share of what all share: producer, reader, allocator.
    let first = start(&bus, &topic, 0..1).await;
    let one = Used::now();
    let others = start(&bus, &topic, 1..1 + MORE).await;
    sleep(Duration::from_secs(3)).await;
    let many = Used::now();
    let each = |of: i64| of as f64 / f64::from(MORE);
    let by_name: Vec<_> = many
        .threads
        .iter()
        .map(|(name, count)| (name, each(count - one.threads.get(name).unwrap_or(&0))))
        .filter(|(_, each)| *each > 0.0)
        .map(|(name, each)| format!("{name} {each:.2}"))
        .collect();
    let threads = each(many.all_threads() - one.all_threads());
    let connections = each(many.connections - one.connections);
    let memory = each(many.memory - one.memory);
    println!(
        "one more processor, {protocol:?}, {PARTITIONS} partitions, 1 broker, mean of {MORE}: {threads:.2} threads ({}), {connections:.2} connections, {memory:.0} KiB",
        by_name.join(", ")
    );
    println!("a process with one processor: {one:?}");
    // What the book says, with room for reconnections under way. Memory is printed only.
    assert!(threads <= 6.0, "{threads}");
    assert!(connections <= 3.5, "{connections}");
    for handle in [first, others] {
        handle.stop();
        handle.wait().await.into_result().unwrap();
    }
    let id = PartitionId::new(&*topic, 0);
    let offsets = bus.offsets(&topic).await.unwrap();
    assert!(
        offsets
            .iter()
            .any(|of| of.partition == id && of.end.get() == 100)
    );
}

/// Measured in a process of its own, since the other tests of this one have members, too.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn one_more_processor_costs_what_the_book_says() {
    if let Ok(brokers) = std::env::var(BROKERS) {
        for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
            measure(&brokers, protocol).await;
        }
        return;
    }
    let brokers = config().await.brokers().to_owned();
    let test = "costs::one_more_processor_costs_what_the_book_says";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored", "--nocapture"]);
    child.env(BROKERS, brokers);
    let output = tokio::task::spawn_blocking(move || child.output().unwrap());
    let output = output.await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    println!("{printed}");
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{failed}");
    assert!(printed.contains("1 passed"), "{printed}");
}
