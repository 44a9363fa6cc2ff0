//! The command line of the shop.
mod replay;
mod servers;
mod steps;

use clap::{Args, Parser, Subcommand};
use foldstream::{BoxError, chain};
use shop::{
    backend::{Backend, Uses},
    history::HistoryArgs,
    operator::OperatorCommand,
    pipeline, shutdown,
};
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
use steps::{Ending, Until};

/// The carts and orders of a shop, event-sourced with foldstream.
///
/// Without a subcommand, one process runs the whole pipeline: commands, event store, publisher,
/// bus, projections, report. It runs in memory unless --dynamodb and --kafka name real servers. The
/// subcommands run the steps of the same pipeline as separate processes on real servers, or show
/// and repair what failed there.
///
/// The exit status is 0 if all went well, 1 after an error, 2 if the command line is wrong, 3 if
/// some lines of the file were refused and the rest was imported, 4 if an operator's command found
/// nothing at its target or a part of it failed again, and 130 if the run was interrupted.
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
    /// The number of customers to generate.
    #[arg(long, default_value_t = 200, conflicts_with = "import", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    customers: u32,
    /// The seed that decides what the generated customers do.
    #[arg(long, default_value_t = 1, conflicts_with = "import")]
    seed: u64,
    /// Tells the story of a bad day: a payment provider, a worker, the brokers and an old till
    /// fail, and an operator repairs what is left.
    #[arg(long, conflicts_with_all = ["import", "report", "customers"])]
    chaos: bool,
}

#[derive(Debug, Args)]
struct Servers {
    /// The URL of DynamoDB, as in http://localhost:8000; subcommands also read DYNAMODB_URL.
    #[arg(long, value_name = "URL", global = true)]
    dynamodb: Option<String>,
    /// The brokers of Kafka, as in localhost:9092; subcommands also read KAFKA_BROKERS.
    #[arg(long, value_name = "BROKERS", global = true)]
    kafka: Option<String>,
}

/// A step of the pipeline.
#[derive(Debug, Subcommand)]
enum Step {
    /// Imports the invoices of a CSV file as orders. Repeating it is safe: existing orders are left
    /// alone.
    Import {
        /// The CSV file; the same as --import.
        file: Option<PathBuf>,
    },
    /// Publishes stored events, which it finds by their markers, until it is stopped.
    Publish {
        /// Ends when no events are left to publish.
        #[arg(long)]
        until_idle: bool,
    },
    /// Publishes stored events, which the change stream of their table reports, until it is
    /// stopped. Any number of processes share the work.
    Stream,
    /// Projects published events until it is stopped.
    Run {
        /// The processor's name. A new name starts from the beginning.
        #[arg(long)]
        name: Option<String>,
        /// Ends when all events that are published now are projected.
        #[arg(long, visible_alias = "until-idle")]
        until_caught_up: bool,
    },
    /// Builds read models again from the event store, while those of before serve.
    Replay(replay::ReplayArgs),
    /// Lists the products that were put into carts most.
    HotProducts {
        /// The most products that are listed.
        #[arg(long, default_value_t = 10)]
        limit: usize,
    },
    /// Sums the read model to a report.
    Report {
        /// The file for the report; the same as --report.
        file: Option<PathBuf>,
        /// The processor whose read model is summed. Default: `sales`, or if that one has no rows,
        /// the first processor that has.
        #[arg(long)]
        name: Option<String>,
    },
    /// Shows each version of a cart or a payment: the event, and what it changed in the state.
    History(HistoryArgs),
    #[command(flatten)]
    Operator(OperatorCommand),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // The story tells of every failure by itself.
    let quiet = if cli.what.chaos {
        "off"
    } else {
        "warn,librdkafka=error"
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| quiet.into()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(cli).await {
        Ok(Ending::AllWell) => ExitCode::SUCCESS,
        Ok(Ending::SomeRefused) => ExitCode::from(3),
        Ok(Ending::NotAll) => ExitCode::from(4),
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
            steps::whole_pipeline(&backend, &what, &shutdown).await
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
        Some(Step::Stream) => {
            let (sent, topic) = servers::read_change_stream(servers, &shutdown).await?;
            println!("published  {sent} records to topic {topic}");
            Ok(Ending::AllWell)
        }
        Some(Step::Run {
            name,
            until_caught_up,
        }) => {
            let backend = servers::connect(servers, Uses::Everything).await?;
            steps::project(&backend, name.as_deref(), until(until_caught_up), &shutdown).await
        }
        Some(Step::Replay(args)) => {
            let backend = servers::connect(servers, Uses::Everything).await?;
            replay::replay(&backend, &args, &shutdown).await
        }
        Some(Step::HotProducts { limit }) => {
            let backend = servers::connect(servers, Uses::Everything).await?;
            steps::hot_products(&backend, limit).await
        }
        Some(Step::Report { file, name }) => {
            let file = one_of(file, what.report, "report")?;
            let (rows, operator) = servers::rows(servers).await?;
            let report = pipeline::report(&rows, &operator, name.as_deref()).await?;
            steps::write(&report, Some(&file))?;
            Ok(Ending::AllWell)
        }
        Some(Step::History(args)) => {
            let backend = servers::connect(servers, Uses::EventStore).await?;
            steps::history(&backend, &args).await
        }
        Some(Step::Operator(command)) => {
            let backend = servers::connect(servers, Uses::Everything).await?;
            steps::operate(&backend, &command, &shutdown).await
        }
    }
}

/// Converts the flag of a subcommand.
const fn until(is_done: bool) -> Until {
    if is_done { Until::Done } else { Until::Stopped }
}

/// Returns the file of a subcommand, which is given as its argument or by the option.
fn one_of(
    behind: Option<PathBuf>,
    option: Option<PathBuf>,
    step: &str,
) -> Result<PathBuf, BoxError> {
    let file = behind.or(option);
    file.ok_or_else(|| format!("name the file: shop {step} FILE").into())
}
