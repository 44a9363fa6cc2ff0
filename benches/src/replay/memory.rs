//! The memory of a replay, in a process of its own.
use super::{
    count::{Began, Count},
    generated::Generated,
    ours::{Counts, Pace, empty_bus, to_the_end},
};
use crate::{
    BenchError,
    runner::{peak, resident},
    table::{Bound, Goal, Row},
};
use clap::Args;
use foldstream::{
    replay::Replay,
    runner::{ProcessorPolicy, Runner},
};
use foldstream_testkit::InMemoryControlStore;
use std::sync::Arc;

/// The number of events of each stream, one per commit.
const EVENTS_EACH: u64 = 10;
const MIB: f64 = 1024.0 * 1024.0;

/// A replay whose memory is measured.
pub(super) struct Work {
    pub(super) name: &'static str,
    /// The bytes of commits that the replay may hold; `None` for its default.
    memory: Option<usize>,
    pub(super) goals: &'static [Goal],
}

const PEAK: &str = "peak";
/// The peak of a tenth of the history. A replay remembers up to 50,000 streams, which are not in
/// it.
const TENTH: &str = "peak-of-a-tenth";
/// The peak of twice the history, divided by that of the history.
const GROWTH: &str = "growth-of-twice";

const fn at_most(measure: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit: "MiB",
        bound: Bound::AtMost,
        goal,
        is_ratio: false,
    }
}

const NOTED_TENTH: Goal = Goal {
    bound: Bound::Noted,
    ..at_most(TENTH, 0.0)
};

const NO_GROWTH: Goal = Goal {
    is_ratio: true,
    ..at_most(GROWTH, 1.25)
};

pub(super) const WORKS: &[Work] = &[
    Work {
        name: "memory-default",
        memory: None,
        goals: &[at_most(PEAK, 96.0), NOTED_TENTH, NO_GROWTH],
    },
    Work {
        name: "memory-4-mib",
        memory: Some(4 * 1024 * 1024),
        goals: &[at_most(PEAK, 40.0), NOTED_TENTH, NO_GROWTH],
    },
];

/// The process whose memory is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReplayMemory {
    events: u64,
    /// The bytes of commits that the replay may hold; 0 for its default.
    memory: usize,
}

/// Measures the rows of a work. A sabotaged replay holds as much as there is.
pub(super) fn rows(work: &Work, events: u64, is_sabotaged: bool) -> Result<Vec<Row>, BenchError> {
    let memory = if is_sabotaged {
        usize::MAX
    } else {
        work.memory.unwrap_or(0)
    };
    let all = process(events, memory)?;
    let tenth = process(events / 10, memory)?;
    let twice = process(events * 2, memory)?;
    let rows = work.goals.iter().map(|goal| {
        let (ours, theirs) = match goal.measure {
            PEAK => (all, Vec::new()),
            TENTH => (tenth, Vec::new()),
            _ => (twice, vec![all]),
        };
        let row = Row::new(work.name, *goal, vec![ours], theirs);
        row.with_note(format!(
            "highest resident memory of a process that replays {events} events of {} streams in commits of one, above that before the start. The events are made when a page is read, so that the store takes no memory, and the scan is always ahead of the projector; the control store is in memory",
            events / EVENTS_EACH
        ))
    });
    Ok(rows.collect())
}

/// Replays in a process of its own, and returns its memory in MiB.
fn process(events: u64, memory: usize) -> Result<f64, BenchError> {
    let arguments = [
        "replay-memory".into(),
        events.to_string(),
        memory.to_string(),
    ];
    let bytes = crate::measured(&arguments)?;
    Ok(bytes / MIB)
}

/// Replays, and prints the highest memory of this process above that before the start.
pub(crate) fn work_off(args: &ReplayMemory) -> Result<bool, BenchError> {
    let runtime = crate::runtime().map_err(crate::io("no runtime"))?;
    let unknown = || BenchError::other("/proc does not tell the memory of this process");
    let count = Arc::new(Count::default());
    let store = Generated {
        streams: args.events / EVENTS_EACH,
        commits: EVENTS_EACH,
    };
    let grown = runtime.block_on(async {
        let projector = Counts {
            count: count.clone(),
            pace: Pace::Waits,
        };
        let runner = Runner::builder(empty_bus(), InMemoryControlStore::new(), "bench")
            .with_event_store(store)
            .projector_with(projector, ProcessorPolicy::projector())
            .build()
            .map_err(BenchError::other)?;
        let mut replay = Replay::all(&runner);
        if args.memory > 0 {
            replay = replay.with_memory(args.memory);
        }
        let before = resident().ok_or_else(unknown)?;
        let began = Began::now()?;
        to_the_end(replay).await?;
        let after = peak().ok_or_else(unknown)?;
        let scanned = began.end(&count, 0.0)?;
        if scanned.events != store.streams * store.commits {
            let events = scanned.events;
            return Err(BenchError::other(format!(
                "only {events} events were handled"
            )));
        }
        Ok::<_, BenchError>(after - before)
    })?;
    println!("{grown}");
    Ok(true)
}
