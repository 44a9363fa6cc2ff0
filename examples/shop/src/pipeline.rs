//! The pipeline of an event after the command: published, projected, reported. All ways to run the
//! shop use it.
use crate::{
    backend::Backend,
    cart::CartEvent,
    hot_products::HotProducts,
    import::{ImportError, Imported, InvoiceFile, RefusedLine, import},
    payment::PaymentEvent,
    progress,
    projector::SalesProjector,
    read_model::{ReadModelError, SalesModel},
    report::{Report, ReportError},
    tally::{Tally, differences},
};
use foldstream::{
    DomainEvent, RetryPolicy, StreamId, chain,
    operate::{OperateError, Operator},
    ports::{EventStoreError, MessageBusError},
    publisher::{PollConfig, PollError, PollReport, PublishError, StreamFailure, TopicError},
    resilience::{Attempts, Retryable},
    runner::{BuildError, ModelId, ProcessorPolicy, Projector, Runner},
};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The error of a pipeline that ends before the report.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The file cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The topic cannot be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The publisher cannot continue.
    #[error(transparent)]
    Poll(#[from] PollError),
    /// The unpublished events cannot be listed.
    #[error("the unpublished events cannot be listed")]
    List(#[from] EventStoreError),
    /// Some streams could not be published. They stay listed, so the next publisher tries again.
    #[error("{count} carts are not published, the first of them is {stream}")]
    Publish {
        /// The number of carts that are not published.
        count: usize,
        /// The first of these streams.
        stream: StreamId,
        /// The error of that stream.
        #[source]
        source: Box<PublishError>,
    },
    /// The bus does not say how far a processor is.
    #[error("the bus does not answer")]
    Bus(#[from] MessageBusError),
    /// The read model cannot be used.
    #[error(transparent)]
    ReadModel(#[from] ReadModelError),
    /// The read model is gone, and this processor has already read the events that were in it.
    #[error(
        "the read model is gone and {name} does not read old events again: run another --name, which starts from the beginning"
    )]
    ReadModelLost {
        /// The name of the processor.
        name: String,
    },
    /// The report cannot be read or written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The operator cannot tell which processors there are.
    #[error(transparent)]
    Operate(#[from] OperateError),
    /// The projections differ from the events that were decided.
    #[error("the projections differ from a direct aggregation: {}", .0.join("; "))]
    Mismatch(Vec<String>),
}

/// Imports a file and reports refused lines on standard error.
///
/// # Errors
/// [`PipelineError::Import`] if the import ends early. Invoices imported before the error stay.
pub async fn import_file(
    backend: &Backend,
    path: &Path,
    shutdown: &CancellationToken,
) -> Result<Imported, PipelineError> {
    let checking = progress::counter("checking");
    let refused = |line: RefusedLine| checking.suspend(|| eprintln!("refused: {line}"));
    let file = InvoiceFile::check(path, refused).map_err(ImportError::from);
    checking.finish_and_clear();
    let file = file?;
    println!(
        "checked    {} lines of {} invoices; {} lines refused",
        file.lines(),
        file.invoices(),
        file.refused()
    );
    let (bar, started) = (progress::bar("importing", file.lines()), Instant::now());
    let stop = shutdown.clone().cancelled_owned();
    let imported = import(&backend.carts(), &file, |lines| bar.inc(lines as u64), stop).await;
    bar.finish_and_clear();
    let imported = imported?;
    for (_, error) in &imported.failed {
        eprintln!("not imported: {}", chain(error));
    }
    println!(
        "imported   {} orders ({} were there before, {} are cancellations) in {:.1} s",
        imported.new + imported.known,
        imported.known,
        imported.cancellations,
        started.elapsed().as_secs_f64()
    );
    Ok(imported)
}

/// Publishes until no events are left to publish, and returns the number of records sent.
///
/// What fails for a moment is tried again, as a poller does, until nothing has succeeded for as
/// long as the default [`RetryPolicy`] says.
///
/// # Errors
/// [`PipelineError`] if some streams cannot be published. Records already sent are not taken back;
/// the other events stay listed as unpublished.
pub async fn publish_all(backend: &Backend) -> Result<u64, PipelineError> {
    let publisher = backend.publisher();
    publisher
        .check_topics([CartEvent::AGGREGATE, PaymentEvent::AGGREGATE])
        .await?;
    let mut attempts = Attempts::new(RetryPolicy::default());
    let (mut sent, mut quiet_since) = (0, Instant::now());
    loop {
        let report = match publisher.publish_pending().await {
            Ok(report) => report,
            Err(error) => {
                attempts.wait_or(error).await?;
                continue;
            }
        };
        sent += report.messages;
        if report.messages > 0 {
            quiet_since = Instant::now();
            attempts.reset();
        }
        let count = report.failed.len();
        // One that can never succeed says more than one that was tried in vain for long.
        let worst = |failure: &StreamFailure| failure.error.is_transient();
        if let Some(failure) = report.failed.into_iter().min_by_key(worst) {
            let stream = failure.stream;
            attempts.wait_or(failure.error).await.map_err(|error| {
                let source = error.into();
                PipelineError::Publish {
                    count,
                    stream,
                    source,
                }
            })?;
            continue;
        }
        if quiet_since.elapsed() >= backend.listing_delay {
            return Ok(sent);
        }
        tokio::time::sleep(backend.listing_delay.min(Duration::from_millis(100))).await;
    }
}

/// Publishes stored and new events until `shutdown` is cancelled.
///
/// # Errors
/// [`PipelineError`] if no events can be published until a setting, a topic or a permission
/// changes.
pub async fn publish(
    backend: &Backend,
    shutdown: &CancellationToken,
) -> Result<PollReport, PipelineError> {
    let publisher = backend.publisher();
    let stop = shutdown.clone().cancelled_owned();
    Ok(publisher.poll(PollConfig::default(), stop).await?)
}

/// Checks that a processor may fill the read model, which the runner creates if it is missing.
///
/// `name` is that of the processor that fills it; `None` means the projector's own name.
///
/// # Errors
/// [`PipelineError::ReadModelLost`] if the read model is missing and that processor has read events
/// before. It would not read them again, so the report would lack them.
pub async fn check_read_model(backend: &Backend, name: Option<&str>) -> Result<(), PipelineError> {
    let name = name.unwrap_or(SalesProjector::NAME);
    let model = active_model(&backend.operator(), name).await?;
    if backend.read_model.exists(&model).await? {
        return Ok(());
    }
    let group = format!("{}.{model}", backend.group_prefix);
    let ask = || backend.bus.committed(&group, &backend.topic);
    let committed = ask
        .retry(RetryPolicy::default())
        .when(MessageBusError::is_transient)
        .notify(|error, _, _| tracing::info!(error = chain(error), "once more"))
        .run()
        .await?;
    if committed.iter().any(|(_, offset)| offset.is_some()) {
        return Err(PipelineError::ReadModelLost { name: name.into() });
    }
    Ok(())
}

/// Returns the read model of a processor that serves. Each replay builds another generation, and a
/// processor that has never run will build the first.
///
/// A service that answers queries all the time asks
/// [`ReadModels::active_model`](foldstream::runner::ReadModels::active_model), which remembers the
/// answer for a moment. A command asks once.
///
/// # Errors
/// [`PipelineError::Operate`] if the control store cannot be read.
pub async fn active_model(operator: &Operator, name: &str) -> Result<ModelId, PipelineError> {
    match operator.processor(name).await {
        Ok(processor) => Ok(ModelId::new(name, processor.generation)),
        Err(OperateError::UnknownProcessor { .. }) => Ok(ModelId::new(name, 1)),
        Err(error) => Err(error.into()),
    }
}

/// Sums the read model of a processor. Without a name it is that of `sales`, or if that one has no
/// rows, that of the first projector that has.
///
/// # Errors
/// [`PipelineError`] if the rows or the names of the processors cannot be read.
pub async fn report(
    rows: &SalesModel,
    operator: &Operator,
    name: Option<&str>,
) -> Result<Report, PipelineError> {
    let model = active_model(operator, name.unwrap_or(SalesProjector::NAME)).await?;
    let report = Report::read(rows, &model, |_| true).await?;
    if name.is_some() || report.orders > 0 {
        return Ok(report);
    }
    for processor in operator.processors().await? {
        // Listeners have no model.
        if processor.model > 0 && processor.name != HotProducts::NAME {
            let model = ModelId::new(processor.name.as_str(), processor.generation);
            let other = Report::read(rows, &model, |_| true).await?;
            if other.orders > 0 {
                return Ok(other);
            }
        }
    }
    Ok(report)
}

/// Builds a runner with the sales projector, under its own name or another.
///
/// A processor with a new name starts from the beginning.
///
/// # Errors
/// [`BuildError`] if the name is not valid.
pub fn sales_runner(
    backend: &Backend,
    name: Option<&str>,
    progress: impl Fn() + Send + Sync + 'static,
) -> Result<Runner, BuildError> {
    let projector = backend.read_model.projector().with_progress(progress);
    let mut policy = ProcessorPolicy::projector();
    if let Some(name) = name {
        policy = policy.with_name(name);
    }
    backend.runner().projector_with(projector, policy).build()
}

/// Builds the runner of `shop run`: the sales projector and the hot products.
///
/// # Errors
/// [`BuildError`] if the processors are not valid.
pub fn shop_runner(
    backend: &Backend,
    progress: impl Fn() + Send + Sync + 'static,
) -> Result<Runner, BuildError> {
    let sales = backend.read_model.projector().with_progress(progress);
    let runner = backend.runner().projector(sales);
    let hot_products = backend.hot_products.clone();
    runner
        .projector_with(hot_products, HotProducts::policy())
        .build()
}

/// Compares the projections with `tally` for its orders, and returns the report over all orders.
///
/// # Errors
/// [`PipelineError::Mismatch`] if they differ; it names the differences.
pub async fn check(backend: &Backend, tally: &Tally) -> Result<Report, PipelineError> {
    let expected = tally.report();
    let model = active_model(&backend.operator(), SalesProjector::NAME).await?;
    let rows = &backend.read_model;
    let found = Report::read(rows, &model, |order| tally.has(order.id())).await?;
    if found != expected {
        return Err(PipelineError::Mismatch(differences(&expected, &found)));
    }
    Ok(Report::read(rows, &model, |_| true).await?)
}
