//! The subcommands and their messages on standard output.
use crate::What;
use foldstream::{BoxError, runner::Projector};
use shop::{
    backend::Backend,
    chaos,
    history::{self, HistoryArgs},
    hot_products::HotProducts,
    import::Imported,
    operator::{Console, OperatorCommand, Outcome},
    pipeline, progress,
    report::Report,
    story::{self, Customers},
};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// The result of a run that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    AllWell,
    SomeRefused,
    NotAll,
    Interrupted,
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::AllWell,
            Outcome::NotAll => Self::NotAll,
            Outcome::Interrupted => Self::Interrupted,
        }
    }
}

/// The condition on which a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// The step ends on a signal.
    Stopped,
    /// The step ends when no work is left.
    Done,
}

/// Runs the whole pipeline in one process, with generated customers or a file.
pub(crate) async fn whole_pipeline(
    backend: &Backend,
    what: &What,
    shutdown: &CancellationToken,
) -> Result<Ending, BoxError> {
    if what.chaos {
        return tokio::select! {
            told = chaos::tell(backend, what.seed, std::io::stdout()) => {
                told?;
                Ok(Ending::AllWell)
            }
            () = shutdown.cancelled() => Ok(Ending::Interrupted),
        };
    }
    let Some(file) = &what.import else {
        let customers = Customers {
            count: what.customers,
            seed: what.seed,
        };
        let told = tokio::select! {
            report = story::tell(backend, &customers) => report?,
            () = shutdown.cancelled() => return Ok(Ending::Interrupted),
        };
        write(&told, what.report.as_deref())?;
        return Ok(Ending::AllWell);
    };
    let imported = pipeline::import_file(backend, file, shutdown).await?;
    if imported.is_interrupted {
        return Ok(Ending::Interrupted);
    }
    publish(backend, Until::Done, shutdown).await?;
    project(backend, None, Until::Done, shutdown).await?;
    if shutdown.is_cancelled() {
        return Ok(Ending::Interrupted);
    }
    let report = pipeline::check(backend, &imported.tally).await?;
    println!("checked    the projections equal a direct aggregation of the file");
    write(&report, what.report.as_deref())?;
    ending_of(&imported)
}

/// Publishes events from the event store to the bus.
pub(crate) async fn publish(
    backend: &Backend,
    until: Until,
    shutdown: &CancellationToken,
) -> Result<Ending, BoxError> {
    let counter = progress::counter("publishing");
    let sent = match until {
        Until::Stopped => pipeline::publish(backend, shutdown).await?.messages,
        Until::Done => tokio::select! {
            sent = pipeline::publish_all(backend) => sent?,
            () = shutdown.cancelled() => return Ok(Ending::Interrupted),
        },
    };
    counter.finish_and_clear();
    println!("published  {sent} records to topic {}", backend.topic);
    Ok(Ending::AllWell)
}

/// Projects events from the bus into the read model.
pub(crate) async fn project(
    backend: &Backend,
    name: Option<&str>,
    until: Until,
    shutdown: &CancellationToken,
) -> Result<Ending, BoxError> {
    pipeline::check_read_model(backend, name).await?;
    let counter = progress::counter("projecting");
    let ticks = counter.clone();
    let progress = move || ticks.inc(1);
    let runner = match name {
        None => pipeline::shop_runner(backend, progress)?,
        Some(_) => pipeline::sales_runner(backend, name, progress)?,
    };
    let report = match until {
        Until::Stopped => runner.run(shutdown.clone().cancelled_owned()).await,
        Until::Done => tokio::select! {
            report = runner.run_until_caught_up() => report,
            () = shutdown.cancelled() => return Ok(Ending::Interrupted),
        },
    };
    counter.finish_and_clear();
    for processor in report.into_result()? {
        println!(
            "projected  {} events as {}; {} known already and dropped",
            processor.handled, processor.name, processor.duplicates
        );
    }
    Ok(Ending::AllWell)
}

/// Lists the products with the most units.
pub(crate) async fn hot_products(backend: &Backend, limit: usize) -> Result<Ending, BoxError> {
    let model = pipeline::active_model(&backend.operator(), HotProducts::NAME).await?;
    for product in backend.hot_products.top(&model, limit).await? {
        println!("{:12} {:8}", product.stock_code, product.units);
    }
    Ok(Ending::AllWell)
}

/// Carries out a command of the operator.
pub(crate) async fn operate(
    backend: &Backend,
    command: &OperatorCommand,
    shutdown: &CancellationToken,
) -> Result<Ending, BoxError> {
    let (operator, publisher) = (backend.operator(), backend.publisher());
    let mut console = Console::new(&operator, &publisher, std::io::stdout());
    Ok(console.run(command, shutdown).await?.into())
}

/// Shows the versions of a stream.
pub(crate) async fn history(backend: &Backend, args: &HistoryArgs) -> Result<Ending, BoxError> {
    let shown = history::show(backend, args, std::io::stdout().lock()).await?;
    Ok(shown.into())
}

/// Writes the report if a file is named.
pub(crate) fn write(report: &Report, file: Option<&Path>) -> Result<(), BoxError> {
    if let Some(file) = file {
        report.write(file)?;
        println!(
            "reported   {} orders, {} events to {}",
            report.orders,
            report.events,
            file.display()
        );
    }
    Ok(())
}

/// Returns the ending of an import, or an error if some invoices could not be stored.
pub(crate) fn ending_of(imported: &Imported) -> Result<Ending, BoxError> {
    if !imported.failed.is_empty() {
        return Err(format!("{} invoices are not imported", imported.failed.len()).into());
    }
    Ok(match imported {
        Imported {
            is_interrupted: true,
            ..
        } => Ending::Interrupted,
        Imported { refused: 1.., .. } => Ending::SomeRefused,
        _ => Ending::AllWell,
    })
}
