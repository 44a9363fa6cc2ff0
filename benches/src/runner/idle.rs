//! The price of a processor in an hour without events.
use super::{
    calls::price,
    still::{Happens, run},
};
use crate::{
    BenchError,
    table::{Bound, Goal, Row},
};
use foldstream::runner::DeliveryLevel;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

const fn at_most(measure: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit: "an hour",
        bound: Bound::AtMost,
        goal,
        is_ratio: false,
    }
}

/// The work and its goals.
pub(super) const WORK: (&str, &[Goal]) = (
    "idle",
    &[
        at_most("trips", 2_200.0),
        at_most("rcu", 2_600.0),
        at_most("wcu", 360.0),
    ],
);

/// Measures one processor with six partitions.
pub(super) fn rows(is_sabotaged: bool) -> Result<Vec<Row>, BenchError> {
    let period = run(
        DeliveryLevel::AtLeastOnce,
        Happens::Nothing(HOUR),
        is_sabotaged,
    )?;
    let cost = price(&period.calls, period.first, period.end)?;
    let rows = WORK.1.iter().map(|goal| {
        let value = match goal.measure {
            "rcu" => cost.read_units,
            "wcu" => cost.write_units,
            _ => cost.trips,
        };
        let note = "one processor in one process, 6 partitions; an hour of paused time in memory, whose calls are then made of DynamoDB; the same at each level";
        Row::new(WORK.0, *goal, vec![value], Vec::new()).with_note(note.into())
    });
    Ok(rows.collect())
}
