//! Processes that come and go, over requests that get lost, on random schedules.
//!
//! Given some streams, each owned by one process at a time. When events are delivered as a runner
//! delivers them, owners change with and without notice, processes crash, and answers are lost,
//! then at the end every row is the fold of all events, each once and in order.
use super::{Board, Notebook, Process, World, model, notebook, noted_on};
use crate::support::{Call, Fate};
use foldstream::{StreamId, runner::Projector as _};
use foldstream_dynamodb::ReadModelRow;
use foldstream_testkit::length;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

const STREAMS: usize = 5;
const PROCESSES: usize = 3;
const STEPS: usize = 80;

/// Events of each kind that a schedule has met, so that none of them is never tried.
#[derive(Debug, Default)]
struct Met {
    events: u32,
    flushes: u32,
    failed_flushes: u32,
    moves: u32,
    silent_moves: u32,
    crashes: u32,
    late_flushes: u32,
}

struct Stage<T: ReadModelRow> {
    world: World,
    random: fastrand::Rng,
    processes: Vec<Process<T>>,
    /// The owner of each stream, and the version that it has projected.
    owned: Vec<(usize, u64)>,
    /// The last version of each stream that any process has projected.
    last: Vec<u64>,
    met: Met,
}

fn random_fates(seed: u64) -> impl Fn(&Call) -> Fate + Send + Sync + 'static {
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    move |call| {
        let dice = random.lock().unwrap().u32(0..100);
        match (call.operation.as_str(), dice) {
            ("PutItem", 0..12) => Fate::LoseAnswer,
            ("PutItem", 12..20) => Fate::LoseRequest,
            // About as long as the pause before the next attempt, so that either may be first.
            ("PutItem", 20..28) => Fate::ApplyLater(Duration::from_millis(u64::from(dice))),
            ("PutItem", 28..36) => Fate::error(400, "AccessDeniedException", "no"),
            _ => Fate::Pass,
        }
    }
}

impl<T: ReadModelRow<Events = super::NoteEvent>> Stage<T> {
    async fn new(seed: u64) -> Self {
        let world = World::new().await;
        let mut stage = Self {
            world,
            random: fastrand::Rng::with_seed(seed),
            processes: Vec::new(),
            owned: vec![(0, 0); STREAMS],
            last: vec![0; STREAMS],
            met: Met::default(),
        };
        for _ in 0..PROCESSES {
            let process = stage.process().await;
            stage.processes.push(process);
        }
        stage
    }

    async fn process(&mut self) -> Process<T> {
        let fates = random_fates(self.random.u64(..));
        self.world.process_over(fates).await
    }

    async fn deliver(&mut self, at: usize) {
        let (owner, version) = &mut self.owned[at];
        *version += 1;
        self.met.events += 1;
        let boards: &[&[&str]] = &[&["red"], &["red", "blue"], &[], &["blue"]];
        let boards = boards[(*version as usize + at) % boards.len()];
        let event = noted_on(*version, boards);
        self.last[at] = self.last[at].max(*version);
        let (stream, version) = (notebook(at), *version);
        self.processes[*owner]
            .project(&stream, version, event)
            .await;
    }

    async fn flush(&mut self, process: usize) {
        self.met.flushes += 1;
        if self.processes[process].rows.flush(&model()).await.is_err() {
            self.met.failed_flushes += 1;
        }
    }

    /// Gives a stream to another process, which begins at the stored position.
    async fn move_to(&mut self, at: usize, process: usize, is_told: bool) {
        let (stream, owner) = (notebook(at), self.owned[at].0);
        if is_told {
            self.met.moves += 1;
            let rows = &self.processes[owner].rows;
            rows.forget_buffered(&model(), std::slice::from_ref(&stream))
                .await
                .unwrap();
        } else {
            self.met.silent_moves += 1;
        }
        let position = self.processes[process].position(&stream).await;
        self.owned[at] = (process, position);
    }

    async fn crash(&mut self, process: usize) {
        self.met.crashes += 1;
        self.processes[process] = self.process().await;
        for at in 0..STREAMS {
            if self.owned[at].0 == process {
                let position = self.processes[process].position(&notebook(at)).await;
                self.owned[at].1 = position;
            }
        }
    }

    async fn step(&mut self) {
        let (at, process) = (
            self.random.usize(0..STREAMS),
            self.random.usize(0..PROCESSES),
        );
        match self.random.u32(0..100) {
            0..60 => self.deliver(at).await,
            60..80 => self.flush(process).await,
            80..86 => self.move_to(at, process, true).await,
            86..93 => self.move_to(at, process, false).await,
            93..97 => self.crash(process).await,
            _ => {
                // A process without streams writes what it still holds.
                self.met.late_flushes += 1;
                self.flush((process + 1) % PROCESSES).await;
            }
        }
    }

    /// Ends the schedule: every process stores what it has, and the owners do so last.
    async fn run(&mut self) {
        for _ in 0..STEPS {
            self.step().await;
        }
        for process in &self.processes {
            process.wire.decide(|_| Fate::Pass);
        }
        // Rows may be ahead of a position, and then the events in between come again.
        for at in 0..STREAMS {
            let last = self.last[at] + 1;
            while self.owned[at].1 < last {
                self.deliver(at).await;
            }
        }
        for process in 0..PROCESSES {
            self.processes[process].flush().await;
        }
    }
}

/// A stream that a process gets back without notice has events in its memory that another owner has
/// stored too. The runner begins at the stored position, and delivers these events again.
async fn simulate(seed: u64) -> Met {
    let mut stage = Stage::<Notebook>::new(seed).await;
    stage.run().await;
    let reader: Process<Notebook> = stage.world.process().await;
    for at in 0..STREAMS {
        let last = reader.position(&notebook(at)).await;
        assert_eq!(last, stage.last[at], "seed {seed}: {at}");
        let numbers: Vec<u64> = (1..=last).collect();
        assert_eq!(reader.numbers(&notebook(at)).await, numbers, "seed {seed}");
    }
    stage.met
}

async fn simulate_boards(seed: u64) -> Met {
    let mut stage = Stage::<Board>::new(seed).await;
    stage.run().await;
    let reader: Process<Board> = stage.world.process().await;
    let boards = reader.all().await;
    for at in 0..STREAMS {
        let stream = notebook(at);
        let last = reader.position(&stream).await;
        assert_eq!(last, stage.last[at], "seed {seed}: {at}");
        let expected = |has: fn(u64) -> bool| -> Vec<u64> {
            (1..=last).filter(|v| has((v + at as u64) % 4)).collect()
        };
        let found = |key: &str, stream: &StreamId| {
            let board = boards.get(key);
            board
                .and_then(|b| b.numbers.get(stream))
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(found("red", &stream), expected(|n| n < 2), "seed {seed}");
        assert_eq!(
            found("blue", &stream),
            expected(|n| n == 1 || n == 3),
            "seed {seed}"
        );
    }
    stage.met
}

fn assert_all_met(all: &[Met]) {
    let sum = |count: fn(&Met) -> u32| all.iter().map(count).sum::<u32>();
    let counts = BTreeMap::from([
        ("events", sum(|m| m.events)),
        ("flushes", sum(|m| m.flushes)),
        ("failed flushes", sum(|m| m.failed_flushes)),
        ("moves", sum(|m| m.moves)),
        ("silent moves", sum(|m| m.silent_moves)),
        ("crashes", sum(|m| m.crashes)),
        ("late flushes", sum(|m| m.late_flushes)),
    ]);
    println!("{counts:?}");
    if all.len() >= 20 {
        assert!(counts.values().all(|count| *count > 0), "{counts:?}");
    }
}

#[tokio::test]
async fn rows_per_stream_hold_each_event_once_and_in_order() {
    let mut all = Vec::new();
    for seed in length::seeds(20, 2_000) {
        all.push(simulate(seed).await);
    }
    assert_all_met(&all);
}

#[tokio::test]
async fn rows_of_several_streams_hold_each_event_once_and_in_order() {
    let mut all = Vec::new();
    for seed in length::seeds(20, 2_000) {
        all.push(simulate_boards(seed).await);
    }
    assert_all_met(&all);
}
