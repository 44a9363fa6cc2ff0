//! The shop's command line.
mod servers;
mod steps;

use clap::{Args, Parser, Subcommand};
use foldstream::{BoxError, chain};
use shop::{
    backend::{Backend, Uses},
    pipeline,
    report::Report,
    shutdown,
};
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
use steps::{Ending, Until};

/// The carts and orders of a shop, event-sourced with foldstream.
///
/// Without a subcommand the whole pipeline is walked in one process: commands, event store, publisher, bus, projections,
/// report. In memory, unless --dynamodb and --kafka name real servers. The subcommands are the steps of the same pipeline
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
    #[arg(long, default_value_t = 200, conflicts_with = "import", value_parser = clap::value_parser!(u32).range(1..=100_000))]
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

/// The steps of the pipeline.
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

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,librdkafka=error".into()))
        .with_ansi(std::io::stderr().is_terminal())
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

async fn run(cli: Cli) -> Result<Ending, BoxError> {
    let shutdown = shutdown::on_signal()?;
    let Cli {
        what,
        servers,
        step,
    } = cli;
    match step {
        None => {
            let backend = match servers {
                Servers {
                    dynamodb: None,
                    kafka: None,
                } => Backend::embedded(),
                named => servers::connect(named, Uses::Everything).await?,
            };
            steps::whole_road(&backend, &what, &shutdown).await
        }
        Some(Step::Import { file }) => {
            let file = one_of(file, what.import, "import")?;
            let backend = servers::connect(servers, Uses::EventStore).await?;
            let imported = pipeline::import_file(&backend, &file, &shutdown).await?;
            steps::ending_of(&imported)
        }
        Some(Step::Publish { until_idle }) => {
            let backend = servers::connect(servers, Uses::Everything).await?;
            steps::publish(&backend, until(until_idle), &shutdown).await
        }
        Some(Step::Run {
            name,
            until_caught_up,
        }) => {
            let backend = servers::connect(servers, Uses::Everything).await?;
            steps::project(&backend, name.as_deref(), until(until_caught_up), &shutdown).await
        }
        Some(Step::Report { file }) => {
            let file = one_of(file, what.report, "report")?;
            let read_model = servers::read_model(servers).await?;
            steps::write(&Report::read(&*read_model, |_| true).await?, Some(&file))?;
            Ok(Ending::AllWell)
        }
    }
}

/// From the flag of a subcommand.
const fn until(is_done: bool) -> Until {
    if is_done { Until::Done } else { Until::Stopped }
}

/// The file that a subcommand is about, given behind it or by its option.
fn one_of(
    behind: Option<PathBuf>,
    option: Option<PathBuf>,
    step: &str,
) -> Result<PathBuf, BoxError> {
    let file = behind.or(option);
    file.ok_or_else(|| format!("name the file: shop {step} FILE").into())
}
