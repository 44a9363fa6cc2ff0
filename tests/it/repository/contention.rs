//! Writers in several processes on one stream: the numbers in the docs of `ConflictRetry`.
use super::*;
use foldstream_testkit::faults::{Fault, Faults, Op};
use tokio::time::Instant;

/// The duration of every run, on the paused clock.
const RUN: Duration = Duration::from_secs(10);
/// The longest time that one call of the store takes. Each takes a random share of it.
const CALL: Duration = Duration::from_millis(10);

/// The outcomes of all writers' commands.
#[derive(Debug, Default)]
struct Met {
    /// The number of appends that met a conflict.
    conflicts: u64,
    /// The number of commands that were given up after conflicts.
    failed: u64,
    /// The time that each command took.
    times: Vec<Duration>,
}

impl Met {
    fn conflicts_per_command(&self) -> f64 {
        self.conflicts as f64 / self.times.len() as f64
    }
    fn failed_percent(&self) -> f64 {
        100.0 * self.failed as f64 / self.times.len() as f64
    }
    fn longest_but_one_percent(&mut self) -> Duration {
        self.times.sort();
        self.times[self.times.len() * 99 / 100]
    }
}

/// Runs writers that are processes of their own, each with a cache.
///
/// A writer sends commands one after the other, with a random pause of up to `rest` before each.
async fn contend(seed: u64, writers: u64, rest: Duration) -> Met {
    let slow = Faults::seeded(seed).with(Fault::Delay(CALL).anywhere().jittered());
    let store = slow.event_store(InMemoryEventStore::new());
    let end = Instant::now() + RUN;
    let writer = |n: u64| {
        let mut rng = fastrand::Rng::with_seed(seed * 1000 + n);
        let retry = ConflictRetry::default();
        let accounts = Repository::<Account>::new(store.clone())
            .with_cache(10)
            .with_conflict_retry(retry.with_backoff(retry.backoff.with_seed(rng.u64(..))));
        async move {
            let mut met = Met::default();
            while Instant::now() < end {
                tokio::time::sleep(rest.mul_f64(rng.f64())).await;
                let started = Instant::now();
                match accounts.execute(&ann(), Deposit { amount: 1 }).await {
                    Ok(_) => {}
                    Err(ExecuteError::Conflict(_)) => met.failed += 1,
                    Err(error) => panic!("{error:?}"),
                }
                met.times.push(started.elapsed());
            }
            met
        }
    };
    let mut all = Met::default();
    for met in futures::future::join_all((0..writers).map(writer)).await {
        all.failed += met.failed;
        all.times.extend(met.times);
    }
    let stored = all.times.len() as u64 - all.failed;
    all.conflicts = slow.calls(Op::Append) - stored;
    all
}

/// The table in the docs of `ConflictRetry`.
///
/// A row has the number of writers, the conflicts per command, and the time in ms within which 99 %
/// of the commands are done.
const DOCUMENTED: [(u64, f64, u64); 6] = [
    (1, 0.0, 10),
    (2, 0.7, 30),
    (4, 1.0, 45),
    (8, 1.3, 110),
    (16, 2.0, 370),
    (32, 3.0, 970),
];

#[tokio::test(start_paused = true)]
async fn conflicts_by_number_of_writers_are_as_documented() {
    for (writers, conflicts, millis) in DOCUMENTED {
        let mut met = contend(1, writers, Duration::from_millis(200)).await;
        let found = met.conflicts_per_command();
        assert!((found - conflicts).abs() <= 0.1, "{writers}: {found}");
        let found = met.longest_but_one_percent().as_millis() as u64;
        let near = millis - millis / 5..=millis + millis / 5;
        assert!(near.contains(&found), "{writers}: {found} ms");
        assert_eq!(met.failed, 0, "{writers}: given up");
    }
}

#[tokio::test(start_paused = true)]
async fn writers_without_any_pause_give_up_few_commands() {
    let met = contend(1, 32, Duration::ZERO).await;
    let (conflicts, failed) = (met.conflicts_per_command(), met.failed_percent());
    assert!((2.0..3.0).contains(&conflicts), "{conflicts}");
    assert!(failed < 1.0, "{failed} %");
}
