//! The runner against a loop over rdkafka's `StreamConsumer`, on one real Kafka broker; and what
//! the runner costs in memory and in capacity units.
//!
//! Both sides read the same topic from its beginning, in turns, decode the same headers and
//! payloads into the same types, and give them to the same handler. A run counts from the first
//! event that is handled to the last, so it has no start of a group in it.
pub(crate) mod topic;
mod raw;
mod ours;
mod meter;
mod slow_key;
mod still;
mod calls;
mod cost;
mod idle;

pub(crate) use calls::{Call, Recorder, metered_in, price};
pub(crate) use meter::{cpu, peak, resident};
pub(crate) use slow_key::{SlowKey, work_off as work_off_slow_key};

use crate::{
    BenchError, Which,
    table::{Bound, Goal, Row},
};
use foldstream::runner::DeliveryLevel;
use meter::{Meter, Stopwatch};
use ours::{Counts, Way};
use raw::Waits;
use std::{sync::Arc, time::Duration};
use topic::{Broker, Contents, Topic};

/// The time of a handler that is slow.
const SLOW: Duration = Duration::from_millis(5);

/// The size of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// The number of events of a run with empty handlers.
    pub(crate) events: u64,
    /// The number of events of a run with slow handlers.
    pub(crate) slow: u64,
    /// The number of records that are queued for one slow key.
    pub(crate) queued: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            rounds: 5,
            events: 300_000,
            slow: 600,
            queued: 1_000_000,
        }
    }
}

/// A work on Kafka and its goals.
struct Work {
    name: &'static str,
    way: Way,
    waits: Waits,
    is_slow: bool,
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
const CPU: Goal = noted("cpu", "us/event");

const fn noted(measure: &'static str, unit: &'static str) -> Goal {
    Goal {
        measure,
        unit,
        bound: Bound::Noted,
        goal: 0.0,
        is_ratio: true,
    }
}

const WORKS: &[Work] = &[
    Work {
        name: "empty",
        way: Way::Projector(DeliveryLevel::AtLeastOnce),
        waits: Waits::Default,
        is_slow: false,
        goals: &[throughput(0.8), CPU],
    },
    Work {
        name: "empty-tuned",
        way: Way::Projector(DeliveryLevel::AtLeastOnce),
        waits: Waits::OfAdapter,
        is_slow: false,
        goals: &[noted("throughput", "events/s"), CPU],
    },
    Work {
        name: "empty-batches",
        way: Way::Batches,
        waits: Waits::Default,
        is_slow: false,
        goals: &[throughput(0.9), CPU],
    },
    Work {
        name: "empty-breaker",
        way: Way::Listener,
        waits: Waits::Default,
        is_slow: false,
        goals: &[throughput(0.6), CPU],
    },
    Work {
        name: "empty-store",
        way: Way::WithStore,
        waits: Waits::Default,
        is_slow: false,
        goals: &[throughput(0.6), CPU],
    },
    Work {
        name: "empty-deduplicated",
        way: Way::Projector(DeliveryLevel::Deduplicated),
        waits: Waits::Default,
        is_slow: false,
        goals: &[throughput(0.6), CPU],
    },
    Work {
        name: "empty-exactly-once",
        way: Way::Projector(DeliveryLevel::ExactlyOnceEffect),
        waits: Waits::Default,
        is_slow: false,
        goals: &[throughput(0.6), CPU],
    },
    Work {
        name: "slow",
        way: Way::Projector(DeliveryLevel::AtLeastOnce),
        waits: Waits::Default,
        is_slow: true,
        goals: &[throughput(10.0)],
    },
];

/// Returns every goal of this suite with the name of its work.
fn goals() -> impl Iterator<Item = (&'static str, &'static Goal)> {
    let on_kafka = WORKS
        .iter()
        .flat_map(|work| work.goals.iter().map(move |goal| (work.name, goal)));
    let others = [slow_key::WORK, idle::WORK].into_iter().chain(cost::WORKS);
    on_kafka.chain(others.flat_map(|(name, goals)| goals.iter().map(move |goal| (name, goal))))
}

/// Returns true if this suite has a row to measure.
pub(crate) fn has(which: Which<'_>) -> bool {
    goals().any(|(work, goal)| match which {
        Which::All => true,
        Which::Of(name) => work == name,
        Which::Sabotaged(row) => row.split_once('/') == Some((work, goal.measure)),
    })
}

/// Measures the rows. If a row is sabotaged, its work is slowed down or made more expensive.
pub(crate) fn rows(size: &Size, which: Which<'_>) -> Result<Vec<Row>, BenchError> {
    if !has(which) {
        return Err(BenchError::UnknownRow(format!("{which:?}")));
    }
    let wants = |name: &str| which.work().is_none_or(|only| only == name);
    let is_sabotaged = matches!(which, Which::Sabotaged(_));
    let mut rows = Vec::new();
    let runtime = crate::runtime().map_err(crate::io("no runtime"))?;
    let on_kafka: Vec<_> = WORKS.iter().filter(|work| wants(work.name)).collect();
    let wants_slow_key = wants(slow_key::WORK.0);
    if !on_kafka.is_empty() || wants_slow_key {
        rows.extend(runtime.block_on(async {
            let mut broker = Broker::start().await?;
            let mut rows = Vec::new();
            if !on_kafka.is_empty() {
                rows.extend(side_by_side(size, &mut broker, &on_kafka, is_sabotaged).await?);
            }
            if wants_slow_key {
                rows.extend(slow_key::rows(size.queued, &mut broker, is_sabotaged).await?);
            }
            Ok::<_, BenchError>(rows)
        })?);
    }
    for (name, goals) in cost::WORKS {
        if wants(name) {
            rows.extend(cost::rows(name, goals, is_sabotaged)?);
        }
    }
    if wants(idle::WORK.0) {
        rows.extend(idle::rows(is_sabotaged)?);
    }
    Ok(rows)
}

/// The samples of both sides.
#[derive(Default)]
struct Samples {
    ours: Vec<Stopwatch>,
    theirs: Vec<Stopwatch>,
}

async fn side_by_side(
    size: &Size,
    broker: &mut Broker,
    works: &[&Work],
    is_sabotaged: bool,
) -> Result<Vec<Row>, BenchError> {
    let contents = Contents {
        events: size.events,
        streams: 1_000,
        partitions: 6,
    };
    let topic = broker.fill(contents).await?;
    let mut rows = Vec::new();
    for work in works {
        let mut samples = Samples::default();
        // The first round warms up the broker and the program.
        for round in 0..=size.rounds {
            let sides = turn(size, broker, &topic, work, (is_sabotaged, round)).await?;
            if round > 0 {
                samples.ours.push(sides.0);
                samples.theirs.push(sides.1);
            }
        }
        rows.extend(of_work(work, &samples));
    }
    Ok(rows)
}

/// Runs each side once; which of them comes first changes from round to round.
async fn turn(
    size: &Size,
    broker: &mut Broker,
    topic: &Topic,
    work: &Work,
    (is_slowed, round): (bool, usize),
) -> Result<(Stopwatch, Stopwatch), BenchError> {
    let (events, pause) = if work.is_slow {
        (size.slow.min(topic.contents.events), Some(SLOW))
    } else {
        (topic.contents.events, None)
    };
    let (group, theirs) = (broker.new_name("ours"), broker.new_name("theirs"));
    let (bus, address) = (broker.bus()?, broker.address());
    let counts = Counts {
        meter: Arc::new(Meter::new(events)),
        pause,
        is_slowed,
    };
    let raw = raw::run(address, &theirs, &topic.name, work.waits, (events, pause));
    let own = ours::run(bus, &group, &topic.name, work.way, counts);
    if round % 2 == 0 {
        let raw = raw.await?;
        Ok((own.await?, raw))
    } else {
        Ok((own.await?, raw.await?))
    }
}

fn of_work(work: &Work, samples: &Samples) -> Vec<Row> {
    let rows = work.goals.iter().map(|goal| {
        let value = |stopwatch: &Stopwatch| match goal.measure {
            "cpu" => stopwatch.cpu,
            _ => stopwatch.rate,
        };
        let ours = samples.ours.iter().map(value).collect();
        let theirs = samples.theirs.iter().map(value).collect();
        let row = Row::new(work.name, *goal, ours, theirs);
        if goal.measure != "throughput" {
            return row;
        }
        let settings = work.waits.settings().into_iter();
        let settings: Vec<_> = settings.map(|(of, value)| format!("{of}={value}")).collect();
        row.with_note(format!(
            "theirs: StreamConsumer with {}, else librdkafka's defaults; asynchronous commit every {} records. ours: {:?}, else defaults",
            settings.join(", "),
            raw::COMMIT_EVERY,
            work.way,
        ))
    });
    rows.collect()
}
