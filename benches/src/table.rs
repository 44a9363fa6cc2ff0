//! The rows and their table.
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// The side of its goal on which a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast,
    AtMost,
    /// The value must be the goal: a count that both sides share.
    Exactly,
    /// The value is shown, and has no goal.
    Noted,
}

/// One measured value and its goal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The name of the work.
    pub(crate) work: String,
    /// The name of the measure.
    pub(crate) measure: String,
    /// The median over the rounds.
    pub(crate) value: f64,
    /// The goal of the value.
    pub(crate) goal: f64,
    /// The side of the goal on which the value must be.
    pub(crate) bound: Bound,
    /// True if the value reaches its goal.
    pub(crate) holds: bool,
    /// The unit of the samples.
    pub(crate) unit: String,
    /// The samples of our side, one per round.
    pub(crate) ours: Vec<f64>,
    /// The samples of the other side, from the same rounds.
    pub(crate) theirs: Vec<f64>,
    /// The settings of both sides, if the names do not say them.
    #[serde(default)]
    pub(crate) note: Option<String>,
}

/// A measure of a work, and its goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Goal {
    pub(crate) measure: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
    pub(crate) goal: f64,
    /// True if the value is our side divided by the other; otherwise it is our side alone.
    pub(crate) is_ratio: bool,
}

impl Row {
    /// Creates a row from the samples of both sides.
    ///
    /// A ratio is taken round by round, so that a machine whose speed drifts does not decide it.
    pub(crate) fn new(work: &str, goal: Goal, ours: Vec<f64>, theirs: Vec<f64>) -> Self {
        let value = if goal.is_ratio {
            let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
            median(&ratios)
        } else {
            median(&ours)
        };
        // Counts are exact, and rounding in the last digit of a ratio must not decide.
        let holds = match goal.bound {
            Bound::AtLeast => value >= goal.goal - 1e-9,
            Bound::AtMost => value <= goal.goal + 1e-9,
            Bound::Exactly => (value - goal.goal).abs() <= 1e-9,
            Bound::Noted => true,
        };
        Self {
            work: work.into(),
            measure: goal.measure.into(),
            value,
            goal: goal.goal,
            bound: goal.bound,
            holds,
            unit: goal.unit.into(),
            ours,
            theirs,
            note: None,
        }
    }

    /// Adds the settings of both sides.
    pub(crate) fn with_note(mut self, note: String) -> Self {
        self.note = Some(note);
        self
    }

    const fn verdict(&self) -> &'static str {
        if self.holds { "holds" } else { "MISSES" }
    }

    /// Returns the name of the row as `--sabotage` takes it.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.work, self.measure)
    }
}

/// Formats the rows as a table for a person.
pub(crate) fn draw(rows: &[Row]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<34} {:>10} {:>10} {:<12} {:>8} {:>8}",
        "work/measure", "ours", "theirs", "", "value", "goal"
    );
    for row in rows {
        let (goal, verdict) = match row.bound {
            Bound::AtLeast => (format!(">= {}", row.goal), row.verdict()),
            Bound::AtMost => (format!("<= {}", row.goal), row.verdict()),
            Bound::Exactly => (format!("= {}", row.goal), row.verdict()),
            Bound::Noted => ("-".to_owned(), ""),
        };
        let _ = writeln!(
            text,
            "{:<34} {:>10} {:>10} {:<12} {:>8.2} {:>8} {}",
            row.name(),
            short(median(&row.ours)),
            short(median(&row.theirs)),
            row.unit,
            row.value,
            goal,
            verdict,
        );
    }
    // One line for all rows with the same settings.
    let mut said: Vec<&str> = Vec::new();
    for row in rows {
        if let Some(note) = &row.note
            && !said.contains(&note.as_str())
        {
            let _ = writeln!(text, "{}: {note}", row.name());
            said.push(note);
        }
    }
    text
}

fn short(value: f64) -> String {
    if value >= 1_000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
