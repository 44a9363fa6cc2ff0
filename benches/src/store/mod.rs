//! The store on DynamoDB against the raw SDK, side by side on one emulator in this process.
//!
//! Both sides use one SDK client over one connection pool, do the same work in turns, and each round works on streams of
//! its own. Trips and capacity units are counted in a pass of their own, through the meter; times are taken without it.
mod endpoint;
mod raw;
mod works;

use crate::{
    BenchError,
    table::{Bound, Goal, Row},
};
use endpoint::Endpoint;
use works::{Bench, Samples};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// Streams of one round of commands.
    pub(crate) streams: u64,
    /// Events of a long stream.
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

/// A work and what is measured of it.
struct Work {
    name: &'static str,
    kind: Kind,
    goals: &'static [Goal],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Commands of one event, on streams that exist.
    Command { warm: bool, at_once: u64 },
    /// Ten events in one command; the other side puts ten items.
    TenEvents,
    /// A stream is loaded, all of it: a load that ends early is an error.
    Load { commits: Commits, events_each: u64 },
    /// A stream with a snapshot is loaded over a wire that is 5 ms long.
    LoadWithSnapshot,
}

/// How many commits a loaded stream has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Commits {
    These(u64),
    /// As many as [`Size::long`] says.
    Long,
}

const TRIPS: &str = "trips";
const WRITE_UNITS: &str = "wcu";
const READ_UNITS: &str = "rcu";
const TIME: &str = "time";

const fn at_most(measure: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit: "a command",
        bound: Bound::AtMost,
        goal,
        is_ratio: false,
    }
}

const fn ratio(measure: &'static str, unit: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit,
        bound: Bound::AtMost,
        goal,
        is_ratio: true,
    }
}

const fn time(goal: f64) -> Goal {
    ratio(TIME, "ms", goal)
}

const WORKS: &[Work] = &[
    Work {
        name: "command-warm",
        kind: Kind::Command {
            warm: true,
            at_once: 1,
        },
        goals: &[
            at_most(TRIPS, 1.0),
            at_most(WRITE_UNITS, 1.0),
            at_most(READ_UNITS, 0.0),
            time(0.55),
        ],
    },
    Work {
        name: "command-cold",
        kind: Kind::Command {
            warm: false,
            at_once: 1,
        },
        goals: &[
            at_most(TRIPS, 2.0),
            at_most(WRITE_UNITS, 1.0),
            at_most(READ_UNITS, 1.0),
            time(1.05),
        ],
    },
    Work {
        name: "command-warm-16-at-once",
        kind: Kind::Command {
            warm: true,
            at_once: 16,
        },
        goals: &[time(0.55)],
    },
    Work {
        name: "ten-events-in-one-command",
        kind: Kind::TenEvents,
        goals: &[at_most(WRITE_UNITS, 2.0), time(0.20)],
    },
    Work {
        name: "load-1000-commits",
        kind: Kind::Load {
            commits: Commits::These(1_000),
            events_each: 1,
        },
        goals: &[time(0.95), ratio(READ_UNITS, "a load", 1.0)],
    },
    Work {
        name: "load-100-commits-of-ten",
        kind: Kind::Load {
            commits: Commits::These(100),
            events_each: 10,
        },
        goals: &[time(0.45), ratio(READ_UNITS, "a load", 0.70)],
    },
    Work {
        name: "load-10000-commits",
        kind: Kind::Load {
            commits: Commits::Long,
            events_each: 1,
        },
        goals: &[time(0.95)],
    },
    Work {
        name: "load-with-snapshot-5ms-away",
        kind: Kind::LoadWithSnapshot,
        goals: &[ratio("round-trips", "ms", 1.3)],
    },
];

/// Measures every row. `sabotage` names one whose work gets one more read on our side (four beside ten puts, where one
/// would not be seen), or one more write where writes are counted; only that work is measured then.
pub(crate) fn rows(size: &Size, sabotage: Option<&str>) -> Result<Vec<Row>, BenchError> {
    let sabotage = sabotage.map(find).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(crate::io("no runtime"))?;
    let mut rows = Vec::new();
    for work in WORKS {
        if sabotage.is_some_and(|(sabotaged, _)| sabotaged != work.name) {
            continue;
        }
        let sabotaged = sabotage.map(|(_, measure)| measure);
        // A database of its own: what a work leaves behind slows no other down.
        let endpoint = Endpoint::start()?;
        let samples = runtime.block_on(async {
            let mut bench = Bench::start(*size, sabotaged, &endpoint).await?;
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

/// Whether a row of this name is measured here.
pub(crate) fn has_row(name: &str) -> bool {
    find(name).is_ok()
}

/// The work and the measure of a row's name.
fn find(name: &str) -> Result<(&'static str, &'static str), BenchError> {
    let unknown = || BenchError::UnknownRow(name.into());
    let (work, measure) = name.split_once('/').ok_or_else(unknown)?;
    let work = WORKS.iter().find(|w| w.name == work).ok_or_else(unknown)?;
    let mut measures = work.goals.iter().map(|goal| goal.measure);
    let measure = measures.find(|m| *m == measure).ok_or_else(unknown)?;
    Ok((work.name, measure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_sabotaged_misses_its_goal() {
        let size = Size {
            rounds: 3,
            streams: 2,
            long: 300,
        };
        for work in WORKS {
            for goal in work.goals {
                let name = format!("{}/{}", work.name, goal.measure);
                let rows = rows(&size, Some(&name)).unwrap();
                let row = rows.iter().find(|row| row.name() == name).unwrap();
                assert!(!row.holds, "{row:?}");
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
        let rows = rows(&size, None).unwrap();
        let counts = [TRIPS, WRITE_UNITS, READ_UNITS];
        for row in rows.iter().filter(|r| counts.contains(&&*r.measure)) {
            assert!(row.holds, "{row:?}");
        }
    }

    #[test]
    fn a_row_that_does_not_exist_is_an_error() {
        for name in ["nothing", "command-warm/nothing", "nothing/trips"] {
            let rows = rows(&Size::default(), Some(name));
            assert!(matches!(rows, Err(BenchError::UnknownRow(_))));
        }
    }
}
