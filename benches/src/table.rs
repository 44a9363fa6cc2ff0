//! Rows and how they are shown.
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One measured ratio and its goal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was done.
    pub(crate) work: String,
    /// What `value` is.
    pub(crate) measure: String,
    /// The median of the rounds' ratios.
    pub(crate) value: f64,
    /// What it must reach at least.
    pub(crate) goal: f64,
    /// Whether it does.
    pub(crate) holds: bool,
    /// Commands per second of our side, a number a round.
    pub(crate) ours: Vec<f64>,
    /// Commands per second of the other side in the same round.
    pub(crate) theirs: Vec<f64>,
}

impl Row {
    /// The ratio of commands per second, round by round, so that a machine whose speed drifts does not decide it.
    pub(crate) fn of_rates(work: &str, goal: f64, ours: Vec<f64>, theirs: Vec<f64>) -> Self {
        let mut ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        let value = ratios.get(ratios.len() / 2).copied().unwrap_or(0.0);
        Self {
            work: work.into(),
            measure: "commands/s, ours / theirs".into(),
            value,
            goal,
            holds: value >= goal,
            ours,
            theirs,
        }
    }
}

/// The rows as a table for a person.
pub(crate) fn draw(rows: &[Row]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<28} {:>12} {:>12} {:>8} {:>8}",
        "work", "ours", "theirs", "ratio", "goal"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<28} {:>10.0}/s {:>10.0}/s {:>8.2} {:>8} {}",
            row.work,
            median(&row.ours),
            median(&row.theirs),
            row.value,
            format!(">= {}", row.goal),
            if row.holds { "holds" } else { "MISSES" },
        );
    }
    text
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
