//! Benchmarks of foldstream: ratios to other ways of doing the same, measured side by side in one
//! run.
//!
//! ```sh
//! cargo run --release -p foldstream-bench -- store
//! ```
//! prints a table, and so do `replay`, and `runner` and `publisher`, which need Docker for a Kafka
//! broker.
//! `--json FILE` writes its rows with the raw samples of both sides, and `--only WORK` measures one
//! work. `--sabotage ROW` adds a read, a write or 1 ms to our side of that row, which must then
//! miss its goal: a benchmark that cannot fail shows nothing. The exit status is 2 if a row misses
//! its goal.
mod account;
mod memory;
mod publisher;
mod replay;
mod runner;
mod store;
mod table;

use clap::{Args, Parser, Subcommand};
use std::{
    io::Write,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};
use table::Row;

/// Ratios to other ways of doing the same, measured side by side in one run.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Subcommand)]
enum Suite {
    /// The event store on DynamoDB (an emulator in this process) against the raw SDK, then
    /// `memory`.
    Store(Options),
    /// Commands on the in-memory event store, one core, against cqrs-es 0.5 with its MemStore.
    Memory(Options),
    /// The runner on Kafka against a loop over rdkafka's StreamConsumer, its memory, and its cost.
    Runner(Options),
    /// Runs of the Kafka adapter against a raw idempotent producer, on a Kafka broker.
    Publisher(Options),
    /// A full replay against a loop over the SDK's Scan, on an emulator in this process, and the
    /// memory of a replay.
    Replay {
        #[command(flatten)]
        options: Options,
        /// Takes this part of the events, for a quick look.
        #[arg(long, value_name = "PARTS", default_value_t = 1)]
        divide_by: u64,
    },
    /// The process whose memory `runner` measures.
    #[command(hide = true)]
    SlowKey(runner::SlowKey),
    /// The process whose memory `replay` measures.
    #[command(hide = true)]
    ReplayMemory(replay::ReplayMemory),
}

#[derive(Args)]
struct Options {
    /// Writes the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures only this work.
    #[arg(long, conflicts_with = "sabotage")]
    only: Option<String>,
    /// Slows down our side of this row (work/measure), and measures only its work.
    #[arg(long)]
    sabotage: Option<String>,
    /// Measures the in-memory rows and writes them to stderr.
    ///
    /// The parent process runs it with stdout discarded, because the other library's store prints a
    /// line per load.
    #[arg(long, hide = true)]
    worker: bool,
}

#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the measuring process failed: {0}")]
    Worker(String),
    #[error("the rows cannot be read or written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("nothing is measured under this name: {0}")]
    UnknownRow(String),
    #[error("the work failed")]
    Work(#[source] foldstream::BoxError),
}

impl BenchError {
    fn other(source: impl Into<foldstream::BoxError>) -> Self {
        Self::Work(source.into())
    }
}

fn main() -> ExitCode {
    let suite = Cli::parse().suite;
    let done = match suite {
        Suite::Memory(options) if options.worker => measure(options.which()),
        Suite::SlowKey(process) => runner::work_off_slow_key(&process),
        Suite::ReplayMemory(process) => replay::work_off(&process),
        Suite::Replay { options, divide_by } => report_replay(&options, divide_by),
        Suite::Store(options) => report(&options, true),
        Suite::Memory(options) => report(&options, false),
        Suite::Runner(options) => report_runner(&options),
        Suite::Publisher(options) => report_publisher(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprint!("error: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                eprint!(": {error}");
                source = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.to_owned();
    move |source| BenchError::Io { what, source }
}

/// Creates the runtime of a measurement, with two threads.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Runs this program with other arguments, and returns the number that it prints.
fn measured(arguments: &[String]) -> Result<f64, BenchError> {
    let program = std::env::current_exe().map_err(io("this program cannot be found"))?;
    let mut process = Command::new(program);
    process.args(arguments).stderr(Stdio::inherit());
    let output = process.output();
    let output = output.map_err(io("the measuring process cannot be started"))?;
    if !output.status.success() {
        return Err(BenchError::Worker(arguments.join(" ")));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs the process that measures.
fn measure(which: Which<'_>) -> Result<bool, BenchError> {
    let rows = memory::rows(&memory::Size::default(), which)?;
    let text = serde_json::to_vec(&rows)?;
    std::io::stderr()
        .write_all(&text)
        .map_err(io("the rows cannot be written"))?;
    Ok(true)
}

/// The rows that are measured.
#[derive(Clone, Copy, Debug)]
enum Which<'a> {
    All,
    /// All rows of this work.
    Of(&'a str),
    /// This row (work/measure), with our side slowed down.
    Sabotaged(&'a str),
}

impl<'a> Which<'a> {
    /// Returns the work if only one is measured.
    fn work(self) -> Option<&'a str> {
        match self {
            Self::All => None,
            Self::Of(work) => Some(work),
            Self::Sabotaged(row) => Some(row.split_once('/').map_or(row, |(work, _)| work)),
        }
    }
}

impl Options {
    fn which(&self) -> Which<'_> {
        match (&self.only, &self.sabotage) {
            (_, Some(row)) => Which::Sabotaged(row),
            (Some(work), None) => Which::Of(work),
            (None, None) => Which::All,
        }
    }
}

/// Prints the rows of a suite. Returns true if all of them hold.
fn report(options: &Options, with_store: bool) -> Result<bool, BenchError> {
    let which = options.which();
    let (in_store, in_memory) = (with_store && store::has(which), memory::has(which));
    if !in_store && !in_memory {
        return Err(BenchError::UnknownRow(format!("{which:?}")));
    }
    let mut rows = Vec::new();
    if in_store {
        rows.extend(store::rows(&store::Size::default(), which)?);
    }
    if in_memory {
        rows.extend(memory_rows(which)?);
    }
    show(options, &rows)
}

/// Prints the rows about the runner. Returns true if all of them hold.
fn report_runner(options: &Options) -> Result<bool, BenchError> {
    let rows = runner::rows(&runner::Size::default(), options.which())?;
    show(options, &rows)
}

/// Prints the rows about publishing. Returns true if all of them hold.
fn report_publisher(options: &Options) -> Result<bool, BenchError> {
    let rows = publisher::rows(&publisher::Size::default(), options.which())?;
    show(options, &rows)
}

/// Prints the rows about replays. Returns true if all of them hold.
fn report_replay(options: &Options, divide_by: u64) -> Result<bool, BenchError> {
    let size = replay::Size::divided_by(divide_by);
    let rows = replay::rows(&size, options.which())?;
    show(options, &rows)
}

fn show(options: &Options, rows: &[Row]) -> Result<bool, BenchError> {
    print!("{}", table::draw(rows));
    if let Some(file) = &options.json {
        let text = serde_json::to_vec_pretty(rows)?;
        std::fs::write(file, text).map_err(io("the JSON file cannot be written"))?;
    }
    Ok(rows.iter().all(|row| row.holds))
}

/// Starts the process that measures the in-memory rows, and reads its rows.
fn memory_rows(which: Which<'_>) -> Result<Vec<Row>, BenchError> {
    let program = std::env::current_exe().map_err(io("this program cannot be found"))?;
    let mut worker = Command::new(program);
    worker.args(["memory", "--worker"]).stdout(Stdio::null());
    match which {
        Which::All => &mut worker,
        Which::Of(work) => worker.args(["--only", work]),
        Which::Sabotaged(row) => worker.args(["--sabotage", row]),
    };
    let output = worker
        .output()
        .map_err(io("the measuring process cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::Worker(said));
    }
    Ok(serde_json::from_slice(&output.stderr)?)
}
