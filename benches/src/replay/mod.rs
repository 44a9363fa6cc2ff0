//! A full replay against a loop over the SDK's `Scan` that is written by hand, on one emulator; and
//! the memory of a replay.
//!
//! Both sides scan the same table with consistent reads, in as many segments at the same time and
//! in pages of the same size. Both decode the same items into the same headers and events, and
//! count them. They work in turns. A replay is measured as a whole: from its start, with its lease
//! and the rows of its generation, to the end of its scan.
//!
//! # Which base?
//! `scan-*` use the emulator in this process, as `store` does: it answers faster than DynamoDB
//! Local, so that it hides less of what our side does. `recorded-*` repeat the answers of the
//! emulator from memory. Such a base costs next to nothing, as DynamoDB costs the client's machine
//! nothing, and shows the difference between the sides most sharply.
mod table;
mod count;
mod raw;
mod ours;
mod generated;
mod memory;

pub(crate) use memory::{ReplayMemory, work_off};

use crate::{
    BenchError, Which,
    store::{Cost, Endpoint},
    table::{Bound, Goal, Row},
};
use count::Scanned;
use foldstream::runner::DeliveryLevel;
use foldstream_dynamodb::DynamoDb;
use ours::{Ours, Pace};
use std::collections::HashMap;
use table::{Shape, Table};

/// The number of segments of both sides, which is the default of a replay.
const SEGMENTS: u32 = 8;
/// The most commits of a page of both sides, which is the default of a replay.
const PAGE: u32 = 500;
/// The page of a sabotaged replay. Each page rounds its read units up.
const SMALL_PAGE: u32 = 2;

/// The size of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// The number of events in a table.
    pub(crate) events: u64,
    /// The number of events of a replay whose memory is measured.
    pub(crate) remembered: u64,
}

impl Size {
    /// Returns the size with this part of the events.
    pub(crate) fn divided_by(parts: u64) -> Self {
        let parts = parts.max(1);
        Self {
            rounds: 7,
            events: 100_000 / parts,
            remembered: 1_000_000 / parts,
        }
    }
}

/// The endpoint that answers both sides.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Base {
    Emulator,
    /// The answers of the emulator to scans, from memory.
    Recorded,
}

/// A work on a table and its goals.
struct Work {
    name: &'static str,
    events_each: u64,
    base: Base,
    level: DeliveryLevel,
    goals: &'static [Goal],
}

const fn goal(measure: &'static str, unit: &'static str, bound: Bound, goal: f64) -> Goal {
    Goal {
        measure,
        unit,
        bound,
        goal,
        is_ratio: true,
    }
}

const fn noted(measure: &'static str, unit: &'static str) -> Goal {
    Goal {
        is_ratio: false,
        ..goal(measure, unit, Bound::Noted, 0.0)
    }
}

const THROUGHPUT: &str = "throughput";
const CPU: &str = "cpu";
/// The read units of the scan, as the endpoint counts them.
const UNITS: &str = "rcu";
/// The read units of the scan, as each side tells them.
const TOLD_UNITS: &str = "rcu-told";
/// The read units of a replay for its own rows.
const OWN_READS: &str = "rcu-own-rows";
/// The write units of a replay for its own rows.
const OWN_WRITES: &str = "wcu-own-rows";

const AT_LEAST: Goal = goal(THROUGHPUT, "events/s", Bound::AtLeast, 0.9);
/// The rate without a goal: at an endpoint that costs nothing, all that a replay does beside the
/// scan is in the ratio.
const RATE: Goal = goal(THROUGHPUT, "events/s", Bound::Noted, 0.0);
/// The processor time of this process, the emulator included.
const PROCESSOR: Goal = goal(CPU, "us/event", Bound::Noted, 0.0);

const SCAN: &[Goal] = &[
    AT_LEAST,
    PROCESSOR,
    goal(UNITS, "a scan", Bound::Exactly, 1.0),
    goal(TOLD_UNITS, "a scan", Bound::Exactly, 1.0),
    noted(OWN_READS, "a replay"),
    noted(OWN_WRITES, "a replay"),
];

const WORKS: &[Work] = &[
    Work {
        name: "scan-one",
        events_each: 1,
        base: Base::Emulator,
        level: DeliveryLevel::AtLeastOnce,
        goals: SCAN,
    },
    Work {
        name: "recorded-one",
        events_each: 1,
        base: Base::Recorded,
        level: DeliveryLevel::AtLeastOnce,
        goals: &[RATE, PROCESSOR],
    },
    Work {
        name: "scan-ten",
        events_each: 10,
        base: Base::Emulator,
        level: DeliveryLevel::AtLeastOnce,
        goals: SCAN,
    },
    Work {
        name: "recorded-ten",
        events_each: 10,
        base: Base::Recorded,
        level: DeliveryLevel::AtLeastOnce,
        goals: &[RATE, PROCESSOR],
    },
    Work {
        name: "rows-deduplicated",
        events_each: 10,
        base: Base::Emulator,
        level: DeliveryLevel::Deduplicated,
        goals: &[
            goal(UNITS, "a scan", Bound::Exactly, 1.0),
            noted(OWN_READS, "a replay"),
            noted(OWN_WRITES, "a replay"),
        ],
    },
];

impl Work {
    fn goal(&self, measure: &str) -> Option<&Goal> {
        self.goals.iter().find(|goal| goal.measure == measure)
    }
}

/// The samples of our side and of the other, by measure.
type Samples = HashMap<&'static str, (Vec<f64>, Vec<f64>)>;

/// Returns every goal of this suite with the name of its work.
fn goals() -> impl Iterator<Item = (&'static str, &'static Goal)> {
    let works = WORKS.iter().map(|work| (work.name, work.goals));
    let works = works.chain(memory::WORKS.iter().map(|work| (work.name, work.goals)));
    works.flat_map(|(name, goals)| goals.iter().map(move |goal| (name, goal)))
}

/// Returns true if this suite has a row to measure.
pub(crate) fn has(which: Which<'_>) -> bool {
    goals().any(|(work, goal)| match which {
        Which::All => true,
        Which::Of(name) => work == name,
        // What has no goal cannot miss it.
        Which::Sabotaged(row) => {
            goal.bound != Bound::Noted && row.split_once('/') == Some((work, goal.measure))
        }
    })
}

/// Measures the rows.
///
/// If a row is sabotaged, only its work is measured. Our projector then takes 200 microseconds more
/// per event, our replay reads smaller pages if units are counted, and its memory has no bound if
/// memory is measured.
pub(crate) fn rows(size: &Size, which: Which<'_>) -> Result<Vec<Row>, BenchError> {
    if !has(which) {
        return Err(BenchError::UnknownRow(format!("{which:?}")));
    }
    let wants = |name: &str| which.work().is_none_or(|only| only == name);
    let sabotaged = match which {
        Which::Sabotaged(row) => row.split_once('/').map(|(_, measure)| measure),
        Which::All | Which::Of(_) => None,
    };
    let runtime = crate::runtime().map_err(crate::io("no runtime"))?;
    let mut rows = Vec::new();
    for events_each in [1, 10] {
        let works = WORKS.iter().filter(|work| work.events_each == events_each);
        let works: Vec<_> = works.filter(|work| wants(work.name)).collect();
        if works.is_empty() {
            continue;
        }
        let shape = Shape::of(size.events, events_each);
        let endpoint = Endpoint::start()?;
        let on_table = async {
            let table = Table::fill(&endpoint, shape).await?;
            on_table(*size, table, &works, sabotaged).await
        };
        rows.extend(runtime.block_on(on_table)?);
    }
    for work in memory::WORKS.iter().filter(|work| wants(work.name)) {
        rows.extend(memory::rows(work, size.remembered, sabotaged.is_some())?);
    }
    Ok(rows)
}

/// Measures the works on a table.
async fn on_table(
    size: Size,
    table: Table<'_>,
    works: &[&Work],
    sabotaged: Option<&str>,
) -> Result<Vec<Row>, BenchError> {
    let shape = table.shape;
    let mut bench = Bench {
        size,
        table,
        sabotaged: sabotaged.map(str::to_owned),
        made: 0,
    };
    let mut rows = Vec::new();
    for work in works {
        let mut samples = Samples::new();
        bench.count(work, &mut samples).await?;
        bench.time(work, &mut samples).await?;
        rows.extend(work.goals.iter().map(|goal| {
            let (ours, theirs) = samples.remove(goal.measure).unwrap_or_default();
            let row = Row::new(work.name, *goal, ours, theirs);
            match goal.measure {
                THROUGHPUT => row.with_note(format!(
                    "{} events in commits of {} on {} streams, base {:?}; both sides: {SEGMENTS} segments at once, pages of up to {PAGE} items, consistent reads. ours: a full replay of a projector that counts, {:?}, else defaults",
                    shape.events(),
                    shape.events_each,
                    shape.streams,
                    work.base,
                    work.level,
                )),
                _ => row,
            }
        }));
    }
    Ok(rows)
}

/// A table and the sides that scan it.
struct Bench<'a> {
    size: Size,
    table: Table<'a>,
    sabotaged: Option<String>,
    /// The number of replays so far. Each has a processor of its own.
    made: u64,
}

impl Bench<'_> {
    fn is_sabotaged(&self, measures: &[&str]) -> bool {
        let sabotaged = self.sabotaged.as_deref();
        sabotaged.is_some_and(|measure| measures.contains(&measure))
    }

    async fn ours(
        &mut self,
        stores: &DynamoDb,
        level: DeliveryLevel,
    ) -> Result<Scanned, BenchError> {
        self.made += 1;
        let ours = Ours {
            name: format!("counts-{}", self.made),
            level,
            page: match self.is_sabotaged(&[UNITS, TOLD_UNITS]) {
                true => SMALL_PAGE,
                false => PAGE,
            },
            pace: match self.is_sabotaged(&[THROUGHPUT]) {
                true => Pace::Slow,
                false => Pace::Fast,
            },
        };
        let scanned = ours.run(stores).await?;
        self.check(scanned)
    }

    async fn theirs(&self, stores: &DynamoDb) -> Result<Scanned, BenchError> {
        let scanned = raw::run(stores.client(), &self.table.name, SEGMENTS, PAGE).await?;
        self.check(scanned)
    }

    /// Checks that a side has seen each event once. A side that did not do its work must not be
    /// measured.
    fn check(&self, scanned: Scanned) -> Result<Scanned, BenchError> {
        let (events, sum) = (self.table.shape.events(), self.table.shape.sum());
        if (scanned.events, scanned.sum) == (events, sum) {
            return Ok(scanned);
        }
        Err(BenchError::other(format!(
            "{} events with the sum {} were scanned instead of {events} with {sum}",
            scanned.events, scanned.sum
        )))
    }

    /// Counts units, with both sides behind the meter.
    async fn count(&mut self, work: &Work, samples: &mut Samples) -> Result<(), BenchError> {
        if work.goal(UNITS).is_none() {
            return Ok(());
        }
        let metered = self.table.metered.clone();
        self.table.endpoint.take_cost();
        let told = self.ours(&metered, work.level).await?.read_units;
        let ours = self.table.endpoint.take_cost();
        let their_told = self.theirs(&metered).await?.read_units;
        let theirs = self.table.endpoint.take_cost();
        let own = |cost: Cost| (cost.read_units - cost.scan_units, cost.write_units);
        let (ours_own, theirs_own) = (own(ours), own(theirs));
        add(samples, UNITS, ours.scan_units, theirs.scan_units);
        add(samples, TOLD_UNITS, told, their_told);
        add(samples, OWN_READS, ours_own.0, theirs_own.0);
        add(samples, OWN_WRITES, ours_own.1, theirs_own.1);
        Ok(())
    }

    /// Takes the times of both sides; which of them comes first changes from round to round.
    async fn time(&mut self, work: &Work, samples: &mut Samples) -> Result<(), BenchError> {
        if work.goal(THROUGHPUT).is_none() {
            return Ok(());
        }
        let stores = match work.base {
            Base::Emulator => self.table.direct.clone(),
            Base::Recorded => self.table.recorded.clone(),
        };
        let rounds = match self.sabotaged {
            Some(_) => 1,
            None => self.size.rounds,
        };
        // The first round warms up, and records the answers.
        for round in 0..=rounds {
            let (ours, theirs) = if round % 2 == 0 {
                let theirs = self.theirs(&stores).await?;
                (self.ours(&stores, work.level).await?, theirs)
            } else {
                let ours = self.ours(&stores, work.level).await?;
                (ours, self.theirs(&stores).await?)
            };
            if round > 0 {
                add(samples, THROUGHPUT, ours.rate(), theirs.rate());
                add(samples, CPU, ours.cpu_per_event(), theirs.cpu_per_event());
            }
        }
        Ok(())
    }
}

fn add(samples: &mut Samples, measure: &'static str, ours: f64, theirs: f64) {
    let (a, b) = samples.entry(measure).or_default();
    a.push(ours);
    b.push(theirs);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size {
        rounds: 0,
        events: 400,
        remembered: 400,
    };

    #[test]
    fn a_row_that_is_sabotaged_misses_its_goal() {
        for work in WORKS {
            for goal in work.goals.iter().filter(|goal| goal.bound != Bound::Noted) {
                let name = format!("{}/{}", work.name, goal.measure);
                let rows = rows(&SMALL, Which::Sabotaged(&name)).unwrap();
                let row = rows.iter().find(|row| row.name() == name).unwrap();
                assert!(!row.ours.is_empty() && !row.holds, "{row:?}");
            }
        }
    }

    /// Units do not depend on the machine, so their goals are tests too.
    #[test]
    fn read_units_reach_their_goals() {
        for work in WORKS.iter().filter(|work| work.goal(UNITS).is_some()) {
            let rows = rows(&SMALL, Which::Of(work.name)).unwrap();
            let units = rows.iter().filter(|row| row.bound == Bound::Exactly);
            for row in units {
                assert!(!row.ours.is_empty() && row.holds, "{row:?}");
            }
        }
    }

    #[test]
    fn a_row_that_does_not_exist_or_has_no_goal_cannot_be_sabotaged() {
        for name in ["nothing", "scan-one/nothing", "scan-one/cpu"] {
            let rows = rows(&SMALL, Which::Sabotaged(name));
            assert!(matches!(rows, Err(BenchError::UnknownRow(_))), "{name}");
        }
    }
}
