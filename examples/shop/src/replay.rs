//! `shop replay`: read models that are built again from the event store, with a bar.
use crate::steps::Ending;
use clap::Args;
use foldstream::{
    BoxError,
    operate::Operator,
    replay::{CancelOutcome, Replay, ReplayHandle, ReplayProgress, ReplayReport, RunId},
    runner::{Runner, RunnerHandle},
};
use futures::StreamExt;
use indicatif::ProgressBar;
use shop::{backend::Backend, hot_products::AddedRow, pipeline, progress, read_model::OrderRow};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The pause between two looks at the generations.
const LOOK: Duration = Duration::from_millis(500);

/// The choices of a replay.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The projectors, by name; default: all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    projectors: Vec<String>,
    /// The event types, by name; default: all. These projectors can only be built as a whole, so
    /// that the types must be all that they read.
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    events: Vec<String>,
    /// The read units that the scan may spend in a second.
    #[arg(long, value_name = "UNITS")]
    read_units_per_second: Option<f64>,
    /// Estimates what the replay would read, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Goes on with a replay whose process has ended.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["projectors", "events", "dry_run"])]
    resume: Option<RunId>,
    /// Cancels a replay. The read models stay as they are.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["projectors", "events", "dry_run", "resume"])]
    cancel: Option<RunId>,
}

impl ReplayArgs {
    fn replay(&self, runner: &Runner) -> Replay {
        let mut replay = if self.projectors.is_empty() {
            Replay::all(runner)
        } else {
            Replay::of(runner, self.projectors.iter().cloned())
        };
        if !self.events.is_empty() {
            replay = replay.event_types(self.events.iter().cloned());
        }
        match self.read_units_per_second {
            Some(units) => replay.with_read_units_per_second(units),
            None => replay,
        }
    }

    /// Returns the names of the projectors whose models are built again.
    fn names(&self) -> Vec<String> {
        if self.projectors.is_empty() {
            vec![OrderRow::NAME.into(), AddedRow::NAME.into()]
        } else {
            self.projectors.clone()
        }
    }
}

/// Carries out `shop replay`.
pub(crate) async fn replay(
    backend: &Backend,
    args: &ReplayArgs,
    shutdown: &CancellationToken,
) -> Result<Ending, BoxError> {
    let runner = pipeline::shop_runner(backend, || ())?;
    if let Some(run) = args.cancel {
        match args.replay(&runner).cancel(run).await? {
            CancelOutcome::TooLate => println!("replay     {run} has ended, and its models serve"),
            _ => println!("cancelled  {run}; the models of before serve"),
        }
        return Ok(Ending::AllWell);
    }
    let handle = if let Some(run) = args.resume {
        args.replay(&runner).resume(run).await?
    } else {
        let estimate = args.replay(&runner).dry_run().await?;
        println!(
            "estimated  {} events in {} commits of {} streams, {:.0} read units",
            estimate.events, estimate.commits, estimate.streams, estimate.read_units
        );
        if args.dry_run {
            return Ok(Ending::AllWell);
        }
        args.replay(&runner)
            .with_estimate(&estimate)
            .start()
            .await?
    };
    let run = handle.run();
    println!("replay     {run}; the models of before serve meanwhile");
    let report = tokio::select! {
        report = scan(handle) => report?,
        () = shutdown.cancelled() => {
            println!("stopped    go on with: shop replay --resume {run}");
            return Ok(Ending::Interrupted);
        }
    };
    let done = &report.progress;
    println!(
        "scanned    {} events of {} streams in {:.1} s, {:.0} read units",
        done.events,
        done.streams,
        done.elapsed.as_secs_f64(),
        done.read_units
    );
    if report.is_partial {
        return Ok(Ending::AllWell);
    }
    // The processes of `shop run` catch up and switch. This one does so too, in case none is there.
    let (operator, processors) = (backend.operator(), runner.start());
    let switched = tokio::select! {
        switched = switched(&operator, run, args.names()) => Some(switched?),
        () = shutdown.cancelled() => None,
    };
    stop(processors).await?;
    let Some(models) = switched else {
        println!("stopped    the models are built; processes of `shop run` bring them up to date");
        return Ok(Ending::Interrupted);
    };
    println!("switched   {} serve now", models.join(" and "));
    Ok(Ending::AllWell)
}

/// Waits for the scan, and draws how far it is.
async fn scan(handle: ReplayHandle) -> Result<ReplayReport, BoxError> {
    let (bar, mut changes) = (progress::bar("replaying", 0), handle.progress());
    let drawing = async {
        while let Some(progress) = changes.next().await {
            draw(&bar, &progress);
        }
    };
    let (report, ()) = tokio::join!(handle.wait(), drawing);
    bar.finish_and_clear();
    Ok(report?)
}

fn draw(bar: &ProgressBar, progress: &ReplayProgress) {
    bar.set_length(progress.expected_events.unwrap_or(progress.events));
    bar.set_position(progress.events);
}

/// Waits until generations that a replay has built serve, and returns their models.
async fn switched(
    operator: &Operator,
    run: RunId,
    names: Vec<String>,
) -> Result<Vec<String>, BoxError> {
    let waiting = progress::counter("catching up");
    let mut models = Vec::new();
    for name in names {
        loop {
            let processor = operator.processor(&name).await?;
            if processor.next.is_none() && processor.state == "live" {
                models.push(format!("{name}.g{}", processor.generation));
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    tracing::info!(%run, "the replay has ended");
    waiting.finish_and_clear();
    Ok(models)
}

async fn stop(processors: RunnerHandle) -> Result<(), BoxError> {
    processors.stop();
    processors.wait().await.into_result()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use foldstream::runner::ModelId;
    use shop::{generate::shopping, report::Report, tally::Tally};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn args(line: &[&str]) -> ReplayArgs {
        let line = ["replay"].into_iter().chain(line.iter().copied());
        Line::try_parse_from(line).unwrap().args
    }

    async fn replayed(backend: &Backend, line: &[&str]) -> Result<Ending, BoxError> {
        replay(backend, &args(line), &CancellationToken::new()).await
    }

    async fn buy(backend: &Backend, seed: u64, prefix: &str, tally: &mut Tally) {
        let carts = backend.carts();
        for (id, command) in shopping(seed, 20, prefix) {
            if let Ok(done) = carts.execute(&id, command).await {
                tally.add(&id, done.events()).unwrap();
            }
        }
        pipeline::publish_all(backend).await.unwrap();
    }

    async fn report_of(backend: &Backend, generation: u32) -> Report {
        let model = ModelId::new(OrderRow::NAME, generation);
        let report = Report::read(&backend.read_model, &model, |_| true);
        report.await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn every_model_is_built_again_while_the_shop_goes_on() {
        let (backend, mut tally) = (Backend::embedded(), Tally::default());
        buy(&backend, 1, "a", &mut tally).await;
        let shop = pipeline::shop_runner(&backend, || ()).unwrap().start();
        assert_eq!(replayed(&backend, &[]).await.unwrap(), Ending::AllWell);
        buy(&backend, 2, "b", &mut tally).await;
        while report_of(&backend, 2).await != tally.report() {
            tokio::time::sleep(LOOK).await;
        }
        let check = pipeline::check(&backend, &tally).await.unwrap();
        assert_eq!(check, tally.report(), "queries read the new model");
        stop(shop).await.unwrap();
    }

    /// The example of the library for Node.js.
    #[tokio::test(start_paused = true)]
    async fn all_the_events_of_one_projector_are_a_full_replay_of_it() {
        let (backend, mut tally) = (Backend::embedded(), Tally::default());
        buy(&backend, 1, "a", &mut tally).await;
        let hot = ["--projectors", "hot-products", "--events", "CartItemAdded"];
        let shop = pipeline::shop_runner(&backend, || ()).unwrap();
        shop.run_until_caught_up().await.into_result().unwrap();
        let model = |generation| ModelId::new(AddedRow::NAME, generation);
        let before = backend.hot_products.top(&model(1), 100).await.unwrap();
        assert!(!before.is_empty());
        replayed(&backend, &hot).await.unwrap();
        let after = backend.hot_products.top(&model(2), 100).await.unwrap();
        assert_eq!(after, before);
        let sales = backend.operator().processor(OrderRow::NAME).await.unwrap();
        assert_eq!(sales.generation, 1);
        let part = ["--projectors", "sales", "--events", "CartItemAdded"];
        let refused = replayed(&backend, &part).await.unwrap_err();
        assert!(refused.to_string().contains("only as a whole"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dry_run_changes_nothing() {
        let (backend, mut tally) = (Backend::embedded(), Tally::default());
        buy(&backend, 1, "a", &mut tally).await;
        let shop = pipeline::shop_runner(&backend, || ()).unwrap();
        shop.run_until_caught_up().await.into_result().unwrap();
        replayed(&backend, &["--dry-run"]).await.unwrap();
        let sales = backend.operator().processor(OrderRow::NAME).await.unwrap();
        assert_eq!((sales.generation, sales.next.is_some()), (1, false));
        assert_eq!(sales.state, "live");
    }
}
