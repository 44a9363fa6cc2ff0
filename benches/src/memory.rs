//! Commands on the in-memory stores, on one core.
//!
//! Both sides execute the same commands on the same number of streams, alternating round by round.
//! Each round starts with empty stores.
use crate::{
    BenchError, Which,
    account::{Account, AccountId, Deposit, TheirAccount},
    table::{Bound, Goal, Row},
};
use cqrs_es::{CqrsFramework, mem_store::MemStore};
use foldstream::{Repository, SnapshotPolicy};
use foldstream_testkit::{InMemoryEventStore, InMemorySnapshotStore};
use std::time::{Duration, Instant};

/// The size of a measurement.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// The approximate number of commands per round.
    pub(crate) commands: u64,
    pub(crate) rounds: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            commands: 60_000,
            rounds: 7,
        }
    }
}

/// One row: the commands, and the goal of the ratio.
struct Work {
    name: &'static str,
    events_per_stream: u64,
    ours: Ours,
    theirs: Theirs,
    goal: f64,
}

/// The side that ours is compared with.
#[derive(Clone, Copy)]
enum Theirs {
    CqrsEs,
    /// Our side without the check that each new event can be read back.
    Unchecked,
}

/// The configuration of our repository.
#[derive(Clone, Copy)]
enum Ours {
    /// The states are cached between commands.
    Warm,
    /// Each command folds the whole history.
    Cold,
    /// Each command loads a snapshot, which is taken every 20 events, and folds the events after
    /// it.
    Snapshots,
}

const WORKS: [Work; 7] = [
    Work {
        name: "execute-warm-5",
        events_per_stream: 5,
        ours: Ours::Warm,
        theirs: Theirs::CqrsEs,
        goal: 0.5,
    },
    Work {
        name: "execute-warm-30",
        events_per_stream: 30,
        ours: Ours::Warm,
        theirs: Theirs::CqrsEs,
        goal: 2.0,
    },
    Work {
        name: "execute-warm-100",
        events_per_stream: 100,
        ours: Ours::Warm,
        theirs: Theirs::CqrsEs,
        goal: 4.0,
    },
    Work {
        name: "execute-cold-30",
        events_per_stream: 30,
        ours: Ours::Cold,
        theirs: Theirs::CqrsEs,
        // Theirs neither encodes nor decodes in memory. Ours decodes the history, and since each
        // new event is read back before it is stored, this is a tenth less than before.
        goal: 0.9,
    },
    Work {
        name: "execute-cold-100",
        events_per_stream: 100,
        ours: Ours::Cold,
        theirs: Theirs::CqrsEs,
        goal: 1.0,
    },
    Work {
        name: "execute-snapshots-100",
        events_per_stream: 100,
        ours: Ours::Snapshots,
        theirs: Theirs::CqrsEs,
        goal: 2.0,
    },
    Work {
        name: "execute-checked-30",
        events_per_stream: 30,
        ours: Ours::Warm,
        theirs: Theirs::Unchecked,
        goal: 0.75,
    },
];

/// Measures the rows. Each command of a sabotaged row takes 1 ms longer on our side.
pub(crate) fn rows(size: &Size, which: Which<'_>) -> Result<Vec<Row>, BenchError> {
    if !has(which) {
        return Err(BenchError::UnknownRow(format!("{which:?}")));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(crate::io("no runtime"))?;
    // A sabotaged row is measured alone and in few rounds, because 1 ms per command is slow enough
    // to be seen.
    let (size, delay) = match which {
        Which::Sabotaged(_) => {
            let small = Size {
                commands: size.commands.min(1_000),
                rounds: 1,
            };
            (small, Duration::from_millis(1))
        }
        Which::All | Which::Of(_) => (*size, Duration::ZERO),
    };
    let of = |work: &&Work| which.work().is_none_or(|only| only == work.name);
    let rows = WORKS.iter().filter(of).map(|work| {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first round warms up and is not counted.
        for round in 0..=size.rounds {
            let accounts = repository(work);
            let a = runtime.block_on(our_rate(work, accounts, size.commands, delay));
            let b = match work.theirs {
                Theirs::CqrsEs => runtime.block_on(their_rate(work, size.commands)),
                Theirs::Unchecked => {
                    let accounts = repository(work).without_encode_check();
                    runtime.block_on(our_rate(work, accounts, size.commands, Duration::ZERO))
                }
            };
            if round > 0 {
                ours.push(a);
                theirs.push(b);
            }
        }
        Row::new(work.name, rate_goal(work.goal), ours, theirs)
    });
    Ok(rows.collect())
}

const MEASURE: &str = "commands";

const fn rate_goal(goal: f64) -> Goal {
    Goal {
        measure: MEASURE,
        unit: "commands/s",
        bound: Bound::AtLeast,
        goal,
        is_ratio: true,
    }
}

/// Returns true if this suite has a row to measure.
pub(crate) fn has(which: Which<'_>) -> bool {
    let mut works = WORKS.iter();
    match which {
        Which::All => true,
        Which::Of(name) => works.any(|work| work.name == name),
        Which::Sabotaged(row) => {
            works.any(|work| row.split_once('/') == Some((work.name, MEASURE)))
        }
    }
}

fn streams(work: &Work, commands: u64) -> u64 {
    (commands / work.events_per_stream).max(1)
}

fn rate(commands: u64, took: Duration) -> f64 {
    commands as f64 / took.as_secs_f64()
}

fn repository(work: &Work) -> Repository<Account> {
    let accounts = Repository::<Account>::new(InMemoryEventStore::new());
    match work.ours {
        Ours::Warm => accounts.with_cache(10_000),
        Ours::Cold => accounts,
        Ours::Snapshots => {
            accounts.with_snapshots(InMemorySnapshotStore::new(), SnapshotPolicy::every(20))
        }
    }
}

async fn our_rate(
    work: &Work,
    accounts: Repository<Account>,
    commands: u64,
    delay: Duration,
) -> f64 {
    let streams = streams(work, commands);
    let (mut done, started) = (0, Instant::now());
    for stream in 0..streams {
        let id = AccountId::from(format!("account-{stream}"));
        let mut sum = 0;
        for n in 1..=work.events_per_stream {
            let executed = accounts.execute(&id, Deposit::number(n)).await;
            sum += n;
            // The balance also proves that the work was done.
            if executed.is_ok_and(|e| e.state().balance == sum) {
                done += 1;
            }
            if !delay.is_zero() {
                std::thread::sleep(delay);
            }
            if matches!(work.ours, Ours::Snapshots) {
                // A command on a real store waits here. The yield lets the snapshots be written.
                tokio::task::yield_now().await;
            }
        }
    }
    rate(done, started.elapsed())
}

async fn their_rate(work: &Work, commands: u64) -> f64 {
    let streams = streams(work, commands);
    let store = MemStore::<TheirAccount>::default();
    let accounts = CqrsFramework::new(store, vec![], ());
    let (mut done, started) = (0, Instant::now());
    for stream in 0..streams {
        let id = format!("account-{stream}");
        for n in 1..=work.events_per_stream {
            if accounts.execute(&id, Deposit::number(n)).await.is_ok() {
                done += 1;
            }
        }
    }
    rate(done, started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_sabotaged_misses_its_goal() {
        for work in &WORKS {
            let size = Size {
                commands: 100,
                rounds: 1,
            };
            let name = format!("{}/{MEASURE}", work.name);
            let rows = rows(&size, Which::Sabotaged(&name)).unwrap();
            let row = rows.iter().find(|row| row.name() == name).unwrap();
            assert!(!row.holds, "{row:?}");
        }
    }

    #[test]
    fn a_row_that_does_not_exist_is_an_error() {
        let size = Size {
            commands: 1,
            rounds: 1,
        };
        assert!(matches!(
            rows(&size, Which::Of("nothing")),
            Err(BenchError::UnknownRow(_))
        ));
    }
}
