//! Runs of the Kafka adapter against a raw idempotent producer, on one real Kafka broker; and what
//! each trigger costs and how long it takes.
//!
//! Both sides send the same records to the same topic, in turns. The raw side queues all records
//! and awaits their acknowledgements at the end. It stands for the fastest way that keeps no
//! promise about an error. Our side sends each stream in runs, as a publisher does, and knows of
//! each stream how far it is durable.
mod raw;
mod changes;
mod tables;
mod cost;
mod idle;
mod lag;

use crate::{
    BenchError, Which,
    runner::{cpu, topic},
    store::Endpoint,
    table::{Bound, Goal, Row},
};
use foldstream::{
    SourceUri, StreamId, Timestamp, Version,
    adapter::{kafka_partition, to_message},
    ports::{Message, MessageBus},
};
use foldstream_kafka::{KafkaMessageBus, TopicSpec};
use std::{sync::Arc, time::Instant};
use topic::Broker;

const PARTITIONS: u32 = 6;
/// The most messages of a run, as the publisher sends them.
const RUN: usize = 1_000;

/// The size of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// The number of events of a round.
    pub(crate) events: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            rounds: 7,
            events: 20_000,
        }
    }
}

/// The streams that share the events of a round, and the goals.
struct Work {
    name: &'static str,
    streams: usize,
    goals: &'static [Goal],
}

const fn throughput(goal: f64) -> Goal {
    Goal {
        measure: "throughput",
        unit: "events/s",
        bound: Bound::AtLeast,
        goal,
        is_ratio: true,
    }
}

/// The processor time of the process, which a busy machine changes less than the throughput.
const CPU: Goal = Goal {
    measure: "cpu",
    unit: "us/event",
    bound: Bound::Noted,
    goal: 0.0,
    is_ratio: true,
};

const WORKS: &[Work] = &[
    Work {
        name: "runs-streams",
        streams: 1_000,
        goals: &[throughput(1.0), CPU],
    },
    Work {
        name: "runs-hot",
        streams: 1,
        goals: &[throughput(0.5), CPU],
    },
];

/// Returns the names of all works.
fn works() -> impl Iterator<Item = &'static str> {
    let runs = WORKS.iter().map(|work| work.name);
    let costs = cost::WORKS.into_iter().map(|(name, ..)| name);
    let idle = idle::WORKS.into_iter().map(|(name, _)| name);
    runs.chain(costs)
        .chain(idle)
        .chain(lag::WORKS.into_iter().map(|(name, _)| name))
}

/// Measures the rows. The sabotaged side of runs awaits each record before it sends the next one,
/// and that of costs reads and writes once more at each write.
pub(crate) fn rows(size: &Size, which: Which<'_>) -> Result<Vec<Row>, BenchError> {
    let is_wanted = |name: &str| which.work().is_none_or(|only| only == name);
    if !works().any(is_wanted) {
        return Err(BenchError::UnknownRow(format!("{which:?}")));
    }
    let is_sabotaged = matches!(which, Which::Sabotaged(_));
    let runtime = crate::runtime().map_err(crate::io("no runtime"))?;
    let mut rows = Vec::new();
    let runs = WORKS.iter().filter(|work| is_wanted(work.name));
    let lags = lag::WORKS.iter().filter(|(name, _)| is_wanted(name));
    if runs.clone().count() + lags.clone().count() > 0 {
        // Their runtimes are made and ended outside of this one.
        let endpoints = lags.clone().map(|_| Endpoint::start());
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        let measured = runtime.block_on(async {
            let mut broker = Broker::start().await?;
            let mut rows = Vec::new();
            for work in runs {
                let run = if is_sabotaged { 1 } else { RUN };
                rows.extend(side_by_side(size, &mut broker, work, run).await?);
            }
            for (work, endpoint) in lags.zip(&endpoints) {
                rows.extend(lag::rows(&mut broker, endpoint, *work).await?);
            }
            Ok::<_, BenchError>(rows)
        });
        rows.extend(measured?);
    }
    for work in cost::WORKS.iter().filter(|(name, ..)| is_wanted(name)) {
        let endpoints = [Endpoint::start()?, Endpoint::start()?];
        rows.extend(runtime.block_on(cost::rows(&endpoints, *work, is_sabotaged))?);
    }
    for (name, goals) in idle::WORKS.iter().filter(|(name, _)| is_wanted(name)) {
        rows.extend(idle::rows(name, goals, is_sabotaged)?);
    }
    Ok(rows)
}

/// The rate in events per second, and the processor time per event in microseconds.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rate: f64,
    cpu: f64,
}

/// Measures one way of sending `events` events.
async fn measured(
    events: usize,
    sending: impl Future<Output = Result<(), BenchError>>,
) -> Result<Sample, BenchError> {
    let (started, cpu_before) = (Instant::now(), cpu().unwrap_or_default());
    sending.await?;
    let events = events as f64;
    Ok(Sample {
        rate: events / started.elapsed().as_secs_f64(),
        cpu: (cpu().unwrap_or_default() - cpu_before) * 1e6 / events,
    })
}

async fn side_by_side(
    size: &Size,
    broker: &mut Broker,
    work: &Work,
    run: usize,
) -> Result<Vec<Row>, BenchError> {
    let topic: Arc<str> = broker.new_name("published").into();
    let bus = broker.bus()?;
    let spec = TopicSpec::new(&*topic, PARTITIONS);
    bus.create_topic(&spec).await.map_err(BenchError::other)?;
    let streams = streams(&topic, work.streams, size.events / work.streams)?;
    let raw = raw::producer(broker.address())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first round warms up the broker, the program and both producers.
    for round in 0..=size.rounds {
        let own = measured(size.events, send(&bus, &streams, run));
        let their = measured(size.events, raw::send(&raw, &streams));
        let (own, their) = if round % 2 == 0 {
            let their = their.await?;
            (own.await?, their)
        } else {
            (own.await?, their.await?)
        };
        if round > 0 {
            ours.push(own);
            theirs.push(their);
        }
    }
    let rows = work.goals.iter().map(|goal| {
        let value = |sample: &Sample| match goal.measure {
            "cpu" => sample.cpu,
            _ => sample.rate,
        };
        let of = |samples: &[Sample]| samples.iter().map(value).collect();
        let row = Row::new(work.name, *goal, of(&ours), of(&theirs));
        match goal.measure {
            "throughput" => row.with_note(format!(
                "theirs: a FutureProducer with {}; all {} records queued, and awaited at the end. ours: runs of up to {run} messages, default settings",
                raw::settings(),
                size.events,
            )),
            _ => row,
        }
    });
    Ok(rows.collect())
}

/// The messages of each stream.
type Streams = Vec<Arc<[Message]>>;

fn streams(topic: &Arc<str>, count: usize, events: usize) -> Result<Streams, BenchError> {
    let source = SourceUri::new("urn:bench").map_err(BenchError::other)?;
    let mut streams = Vec::with_capacity(count);
    for n in 0..count {
        let stream = StreamId::new("account", &format!("a-{n:06}")).map_err(BenchError::other)?;
        let partition = kafka_partition(stream.as_str().as_bytes(), PARTITIONS);
        let mut version = Version::NONE;
        let messages = (0..events as u64).map(|n| {
            version = version.next();
            let event = topic::event(&stream, version, n);
            to_message(&event, topic, &source, Timestamp::now()).with_partition(partition)
        });
        streams.push(messages.collect());
    }
    Ok(streams)
}

/// Sends all streams side by side, each in runs.
async fn send(bus: &KafkaMessageBus, streams: &Streams, run: usize) -> Result<(), BenchError> {
    let mut tasks = tokio::task::JoinSet::new();
    for stream in streams {
        let (bus, stream) = (bus.clone(), Arc::clone(stream));
        tasks.spawn(async move {
            for run in stream.chunks(run) {
                if let Some(error) = bus.publish_run(run).await.error {
                    return Err(BenchError::other(error));
                }
            }
            Ok(())
        });
    }
    while let Some(sent) = tasks.join_next().await {
        sent.map_err(BenchError::other)??;
    }
    Ok(())
}
