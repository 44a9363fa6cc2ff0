//! Benchmarks of foldstream: ratios to other ways of doing the same, measured side by side in one run.
//!
//! ```sh
//! cargo run --release -p foldstream-bench -- memory
//! ```
//! prints a table; `--json FILE` writes its rows with the raw samples of both sides. `--sabotage ROW` adds 1 ms to each of
//! our commands in that row, which must then miss its goal: a benchmark that cannot fail shows nothing.
mod account;
mod memory;
mod table;

use clap::{Parser, Subcommand};
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
    /// Commands on the in-memory event store, one core, against cqrs-es 0.5 with its MemStore.
    Memory {
        /// Writes the rows as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Slows our side of this row down.
        #[arg(long)]
        sabotage: Option<String>,
        /// Measures and writes the rows to stderr. Run by the parent process with stdout thrown away, since the other
        /// library's store prints a line at each load.
        #[arg(long, hide = true)]
        worker: bool,
    },
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
    #[error("no row is named {0}")]
    UnknownRow(String),
}

fn main() -> ExitCode {
    let Suite::Memory {
        json,
        sabotage,
        worker,
    } = Cli::parse().suite;
    let done = if worker {
        measure(sabotage.as_deref())
    } else {
        report(sabotage.as_deref(), json)
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            let source = std::error::Error::source(&error).map(|e| format!(": {e}"));
            eprintln!("error: {error}{}", source.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.to_owned();
    move |source| BenchError::Io { what, source }
}

/// The measuring process.
fn measure(sabotage: Option<&str>) -> Result<bool, BenchError> {
    let rows = memory::rows(&memory::Size::default(), sabotage)?;
    let text = serde_json::to_vec(&rows)?;
    std::io::stderr()
        .write_all(&text)
        .map_err(io("the rows cannot be written"))?;
    Ok(true)
}

/// Runs the measuring process and shows its rows; whether all of them hold.
fn report(sabotage: Option<&str>, json: Option<PathBuf>) -> Result<bool, BenchError> {
    let program = std::env::current_exe().map_err(io("this program cannot be found"))?;
    let mut worker = Command::new(program);
    worker.args(["memory", "--worker"]).stdout(Stdio::null());
    if let Some(row) = sabotage {
        worker.args(["--sabotage", row]);
    }
    let output = worker
        .output()
        .map_err(io("the measuring process cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::Worker(said));
    }
    let rows: Vec<Row> = serde_json::from_slice(&output.stderr)?;
    print!("{}", table::draw(&rows));
    if let Some(file) = json {
        let text = serde_json::to_vec_pretty(&rows)?;
        std::fs::write(&file, text).map_err(io("the JSON file cannot be written"))?;
    }
    Ok(rows.iter().all(|row| row.holds))
}
