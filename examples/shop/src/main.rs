//! The shop's command line.
use clap::{Args, Parser, Subcommand};
use foldstream::BoxError;
use shop::{
    backend::Backend,
    import::Imported,
    road::{self, chain},
    shutdown,
    story::{self, Customers},
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio_util::sync::CancellationToken;

/// The carts and orders of a shop, event-sourced with foldstream.
///
/// Without a subcommand the whole road is walked in one process: commands, event store, publisher, bus, projections,
/// report. In memory, unless --dynamodb and --kafka name real servers. The subcommands are the steps of the same road
/// as separate processes on real servers.
///
/// Ends with 0 if all went well, 1 after an error, 2 if the command line is wrong, 3 if some lines of the file were
/// refused and the rest was imported, 130 if it was interrupted.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    servers: Servers,
    #[command(subcommand)]
    step: Option<Step>,
}

#[derive(Debug, Args)]
struct What {
    /// Imports the invoices of this CSV file instead of generating customers.
    #[arg(long, value_name = "FILE", global = true)]
    import: Option<PathBuf>,
    /// Writes the report to this JSON file.
    #[arg(long, value_name = "FILE", global = true)]
    report: Option<PathBuf>,
    /// How many customers to generate.
    #[arg(long, default_value_t = 200, conflicts_with = "import")]
    customers: u32,
    /// What the generated customers do.
    #[arg(long, default_value_t = 1, conflicts_with = "import")]
    seed: u64,
}

#[derive(Debug, Args)]
struct Servers {
    /// Where DynamoDB is, as in http://localhost:8000; subcommands also read DYNAMODB_URL.
    #[arg(long, value_name = "URL", global = true)]
    dynamodb: Option<String>,
    /// Where Kafka is, as in localhost:9092; subcommands also read KAFKA_BROKERS.
    #[arg(long, value_name = "BROKERS", global = true)]
    kafka: Option<String>,
}

/// The steps of the road.
#[derive(Debug, Subcommand)]
enum Step {
    /// Imports the invoices of a CSV file as orders. May be repeated: what is there is left alone.
    Import {
        /// The file; the same as --import.
        file: Option<PathBuf>,
    },
    /// Publishes what is stored, until it is stopped.
    Publish {
        /// Ends when nothing is left to publish.
        #[arg(long)]
        until_idle: bool,
    },
    /// Projects what is published, until it is stopped.
    Run {
        /// The processor's name. A new one starts from the beginning.
        #[arg(long)]
        name: Option<String>,
        /// Ends when everything that is published now is projected.
        #[arg(long, visible_alias = "until-idle")]
        until_caught_up: bool,
    },
    /// Sums the read model to a report.
    Report {
        /// Where to write it; the same as --report.
        file: Option<PathBuf>,
    },
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    AllWell,
    SomeRefused,
    Interrupted,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    match run(cli).await {
        Ok(Ending::AllWell) => ExitCode::SUCCESS,
        Ok(Ending::SomeRefused) => ExitCode::from(3),
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}
