//! The store on DynamoDB against stores written by hand with the SDK, side by side on one emulator.
//!
//! All sides use one SDK client with one connection pool, and do the same work in turns. Each round
//! uses streams of its own. Trips and capacity units are counted in a separate pass through the
//! meter; times are taken without it.
mod catalogue;
mod sides;
mod commands;
mod loads;
mod endpoint;
mod raw;

use crate::{
    BenchError, Which,
    table::{Goal, Row},
};
use catalogue::{WORKS, Work};
use sides::{Bench, Samples};

pub(crate) use endpoint::{Cost, Endpoint};
pub(crate) use sides::{config, over, without_stream};

/// The size of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// The number of streams in one round of commands.
    pub(crate) streams: u64,
    /// The number of events in a long stream.
    pub(crate) long: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            rounds: 15,
            streams: 20,
            long: 10_000,
        }
    }
}

/// Measures the rows.
///
/// If a row is sabotaged, only its work is measured. Our side then makes one more read, or one more
/// write if writes are counted. If time is measured it makes four more reads, because a busy
/// machine hides a single one.
pub(crate) fn rows(size: &Size, which: Which<'_>) -> Result<Vec<Row>, BenchError> {
    if !has(which) {
        return Err(BenchError::UnknownRow(format!("{which:?}")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(crate::io("no runtime"))?;
    let mut rows = Vec::new();
    for work in WORKS {
        if which.work().is_some_and(|only| only != work.name) {
            continue;
        }
        let sabotaged = match which {
            Which::Sabotaged(row) => find(row).map(|goal| goal.measure),
            Which::All | Which::Of(_) => None,
        };
        // Each work has a database of its own, so that data of other works does not slow it down.
        let endpoint = Endpoint::start()?;
        let samples = runtime.block_on(async {
            let mode = work.kind.mode();
            let mut bench = Bench::start(*size, sabotaged, &endpoint, mode).await?;
            bench.measure(work).await
        })?;
        rows.extend(of_work(work, samples));
    }
    Ok(rows)
}

fn of_work(work: &Work, mut samples: Samples) -> Vec<Row> {
    let rows = work.goals.iter().map(|goal| {
        let (ours, theirs) = samples.remove(goal.measure).unwrap_or_default();
        Row::new(work.name, *goal, ours, theirs)
    });
    rows.collect()
}

/// Returns true if this suite has a row to measure.
pub(crate) fn has(which: Which<'_>) -> bool {
    match which {
        Which::All => true,
        Which::Of(name) => WORKS.iter().any(|work| work.name == name),
        Which::Sabotaged(row) => find(row).is_some(),
    }
}

/// Finds the goal of a row.
fn find(row: &str) -> Option<&'static Goal> {
    let (name, measure) = row.split_once('/')?;
    let work = WORKS.iter().find(|work| work.name == name)?;
    work.goals.iter().find(|goal| goal.measure == measure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use catalogue::{
        READ_UNITS, READ_UNITS_VS_LEAN, READ_UNITS_VS_SAME_FACTS, TIME_VS_LEAN, TIME_VS_SAME_FACTS,
        TRIPS,
    };

    /// Measures that one sabotage spoils together, so that one run of the work covers all of them.
    const SPOILED_TOGETHER: [&[&str]; 2] = [
        &[
            TRIPS,
            READ_UNITS,
            READ_UNITS_VS_LEAN,
            READ_UNITS_VS_SAME_FACTS,
        ],
        &[TIME_VS_LEAN, TIME_VS_SAME_FACTS],
    ];

    fn together(a: &str, b: &str) -> bool {
        let both = |set: &&[&str]| set.contains(&a) && set.contains(&b);
        a == b || SPOILED_TOGETHER.iter().any(both)
    }

    #[test]
    fn a_row_that_is_sabotaged_misses_its_goal() {
        for work in WORKS {
            let mut left: Vec<&Goal> = work.goals.iter().collect();
            while let Some(goal) = left.first().copied() {
                // Counts come from a separate pass before the rounds.
                let rounds = if goal.unit == "ms" { 3 } else { 0 };
                let (streams, long) = (2, 300);
                let size = Size {
                    rounds,
                    streams,
                    long,
                };
                let name = format!("{}/{}", work.name, goal.measure);
                let rows = rows(&size, Which::Sabotaged(&name)).unwrap();
                let measure = goal.measure;
                for spoiled in left.extract_if(.., |other| together(measure, other.measure)) {
                    let row = rows
                        .iter()
                        .find(|row| row.measure == spoiled.measure)
                        .unwrap();
                    assert!(!row.ours.is_empty() && !row.holds, "{row:?}");
                }
            }
        }
    }

    /// Counts do not depend on the machine, so their goals are tests too.
    #[test]
    fn trips_and_units_reach_their_goals() {
        let size = Size {
            rounds: 1,
            streams: 3,
            long: 300,
        };
        let rows = rows(&size, Which::All).unwrap();
        let counted: Vec<_> = rows.iter().filter(|row| row.unit != "ms").collect();
        assert!(counted.len() > 20, "{counted:?}");
        for row in counted {
            assert!(row.holds, "{row:?}");
        }
    }

    #[test]
    fn a_row_that_does_not_exist_is_an_error() {
        for name in ["nothing", "command-warm/nothing", "nothing/trips"] {
            let rows = rows(&Size::default(), Which::Sabotaged(name));
            assert!(matches!(rows, Err(BenchError::UnknownRow(_))));
        }
    }
}
