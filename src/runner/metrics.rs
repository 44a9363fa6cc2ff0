//! The names under which the runner records metrics by the facade `metrics`, behind the feature
//! `metrics`.
//!
//! Names of OpenTelemetry's messaging conventions are used where there is one. Every metric has the
//! label [`PROCESSOR`]. No label holds the id of a stream or of an event.
//!
//! The runner records them every 100 ms at most, and every second at least, from what
//! [`RunnerHandle::health`](super::RunnerHandle::health) and
//! [`report`](super::RunnerHandle::report) tell. [`PROCESS_DURATION`] is recorded at each call.
use super::{ErrorClass, ProcessorHealth, ProcessorState, report::Counts};
use std::{sync::Mutex, time::Duration};

/// The label that holds the name of the processor.
pub const PROCESSOR: &str = "foldstream.processor";
/// The label that holds the name of the operation, which is always `process`.
pub const OPERATION: &str = "messaging.operation.name";
/// The label that holds the class of a failure: `transient`, `throttled`, `permanent`, `poison` or
/// `fatal`. Calls that went well do not have it.
pub const ERROR_TYPE: &str = "error.type";
/// The label of [`EVENTS`] and [`DEAD_LETTER_RECORDS`] that holds what became of the events or
/// copies, and the label of [`STATE`] that holds the state.
pub const OUTCOME: &str = "foldstream.outcome";

/// A histogram: the time that a call of a handler took, in seconds.
pub const PROCESS_DURATION: &str = "messaging.process.duration";
/// A counter: the events and records by their outcome, which is `handled`, `skipped`, `shredded`,
/// `duplicate`, `filled`, `gap_unverified`, `out_of_order`, `unreadable`, `dead_letter`,
/// `discarded` or `deferred`.
pub const EVENTS: &str = "foldstream.processor.events";
/// A counter: the attempts that were repeated.
pub const RETRIES: &str = "foldstream.processor.retries";
/// A gauge: 1 for the state that the processor is in, and 0 for each other state.
pub const STATE: &str = "foldstream.processor.state";
/// A gauge: the lag in records. It is not recorded while the lag is not known.
pub const LAG: &str = "foldstream.processor.lag";
/// A gauge: the age of the oldest event that is not handled, in seconds. It is not recorded while
/// the age is not known.
pub const LAG_TIME: &str = "foldstream.processor.lag.time";
/// A gauge: the partitions that the processor owns.
pub const PARTITIONS: &str = "foldstream.processor.partitions";
/// A gauge: the attempts that run.
pub const IN_FLIGHT: &str = "foldstream.processor.in_flight";
/// A gauge: the attempts that block their threads.
pub const STUCK: &str = "foldstream.processor.stuck";
/// A gauge: the lanes that wait for the next attempt at their first event.
pub const WAITING_LANES: &str = "foldstream.processor.waiting_lanes";
/// A gauge: the bytes of the records that were received and are not committed.
pub const HELD_BYTES: &str = "foldstream.processor.held_bytes";
/// A gauge: the parked streams. It is not recorded while the number is not known.
pub const PARKED: &str = "foldstream.processor.parked";
/// A counter: the copies of dead letters for the topic of
/// [`with_dead_letter_topic`](super::ProcessorPolicy::with_dead_letter_topic), with the outcome
/// `sent` or `not_sent`.
pub const DEAD_LETTER_RECORDS: &str = "foldstream.processor.dead_letter_records";
/// A gauge: the dead letters. It is not recorded while the number is not known.
pub const DEAD_LETTERS: &str = "foldstream.processor.dead_letters";

const STATES: [ProcessorState; 10] = [
    ProcessorState::Starting,
    ProcessorState::Running,
    ProcessorState::Unreachable,
    ProcessorState::Held,
    ProcessorState::Paused,
    ProcessorState::Waiting,
    ProcessorState::Superseded,
    ProcessorState::Stopping,
    ProcessorState::Stopped,
    ProcessorState::Halted,
];

/// The counts of a processor that were recorded last.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Counts>);

impl Meter {
    /// Records the difference to the last counts, and the state.
    pub(super) fn record(&self, counts: Counts, health: &ProcessorHealth) {
        let before = {
            let mut last = self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            std::mem::replace(&mut *last, counts)
        };
        let name = health.name.to_string();
        for ((outcome, now), (_, before)) in outcomes(&counts).into_iter().zip(outcomes(&before)) {
            if now > before {
                metrics::counter!(EVENTS, PROCESSOR => name.clone(), OUTCOME => outcome)
                    .increment(now - before);
            }
        }
        let sent = counts.letters_sent - before.letters_sent;
        let not_sent = counts.letters_not_sent - before.letters_not_sent;
        for (outcome, copies) in [("sent", sent), ("not_sent", not_sent)] {
            if copies > 0 {
                metrics::counter!(DEAD_LETTER_RECORDS, PROCESSOR => name.clone(), OUTCOME => outcome)
                    .increment(copies);
            }
        }
        if counts.retries > before.retries {
            metrics::counter!(RETRIES, PROCESSOR => name.clone())
                .increment(counts.retries - before.retries);
        }
        for state in STATES {
            let is_in = f64::from(u8::from(health.state == state));
            metrics::gauge!(STATE, PROCESSOR => name.clone(), OUTCOME => state.as_str()).set(is_in);
        }
        let gauges = [
            (LAG, health.lag.records.map(float)),
            (LAG_TIME, health.lag.time.map(|age| age.as_secs_f64())),
            (PARTITIONS, Some(f64::from(health.partitions))),
            (IN_FLIGHT, Some(count(health.in_flight))),
            (STUCK, Some(count(health.stuck))),
            (WAITING_LANES, Some(count(health.waiting_lanes))),
            (HELD_BYTES, Some(count(health.held_bytes))),
            (PARKED, health.parked.map(float)),
            (DEAD_LETTERS, health.dead_letters.map(float)),
        ];
        for (gauge, value) in gauges {
            if let Some(value) = value {
                metrics::gauge!(gauge, PROCESSOR => name.clone()).set(value);
            }
        }
    }
}

/// Records the time of one call of a handler.
pub(super) fn called(processor: &str, took: Duration, error: Option<ErrorClass>) {
    let name = processor.to_owned();
    let histogram = match error {
        None => {
            metrics::histogram!(PROCESS_DURATION, PROCESSOR => name, OPERATION => "process")
        }
        Some(class) => metrics::histogram!(
            PROCESS_DURATION, PROCESSOR => name, OPERATION => "process", ERROR_TYPE => class.as_str()
        ),
    };
    histogram.record(took.as_secs_f64());
}

const fn outcomes(counts: &Counts) -> [(&'static str, u64); 11] {
    [
        ("handled", counts.handled),
        ("skipped", counts.skipped),
        ("shredded", counts.shredded),
        ("duplicate", counts.duplicates),
        ("filled", counts.filled),
        ("gap_unverified", counts.gaps_unverified),
        ("out_of_order", counts.out_of_order),
        ("unreadable", counts.unreadable),
        ("dead_letter", counts.dead_letters),
        ("discarded", counts.discarded),
        ("deferred", counts.deferred),
    ]
}

/// A gauge is a floating-point number: exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "a gauge needs no more digits")]
const fn float(value: u64) -> f64 {
    value as f64
}
#[allow(clippy::cast_precision_loss, reason = "a gauge needs no more digits")]
const fn count(value: usize) -> f64 {
    value as f64
}
