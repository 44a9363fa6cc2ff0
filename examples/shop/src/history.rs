//! The history of one cart or payment, as an operator reads it: what happened, and what it changed.
use crate::{backend::Backend, cart::CartEvent, operator::Outcome, payment::PaymentEvent};
use clap::Args;
use foldstream::{
    Difference, DomainEvent, StepEffect, StreamId, TimelineError, TimelineStep, Version,
    ports::BoxStream,
};
use futures::StreamExt;
use std::io;

/// The arguments of `shop history`.
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// The stream, as in cart#c0001 or payment#c0001.
    pub stream: StreamId,
    /// The first version that is shown.
    #[arg(long, value_name = "VERSION", default_value_t = 1)]
    pub from: u64,
    /// The last version that is shown. Default: the last one of the stream.
    #[arg(long, value_name = "VERSION", default_value_t = u64::MAX, hide_default_value = true)]
    pub to: u64,
}

/// The error returned when a history cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The history cannot be read.
    #[error("the history cannot be shown to its end")]
    Timeline(#[from] TimelineError),
    /// The shop has no such aggregates.
    #[error("{0} is neither a cart nor a payment: name a stream as in cart#c0001")]
    UnknownAggregate(StreamId),
    /// The output cannot be written.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

/// Writes each event of a stream with the differences that it has made in the state.
///
/// # Errors
/// [`HistoryError`] if the history cannot be read. The steps before the error are written.
pub async fn show(
    backend: &Backend,
    args: &HistoryArgs,
    mut out: impl io::Write,
) -> Result<Outcome, HistoryError> {
    let (stream, id) = (&args.stream, args.stream.id().into());
    let versions = Version::new(args.from)..=Version::new(args.to);
    let (carts, payments) = (backend.carts(), backend.payments());
    let mut steps: BoxStream<'_, Result<TimelineStep, TimelineError>> = match stream.aggregate() {
        CartEvent::AGGREGATE => carts.timeline(&id, versions),
        PaymentEvent::AGGREGATE => payments.timeline(&id, versions),
        _ => return Err(HistoryError::UnknownAggregate(stream.clone())),
    };
    let mut shown = 0;
    while let Some(step) = steps.next().await {
        match step {
            Ok(step) => write_step(&mut out, &step)?,
            Err(error @ (TimelineError::UnknownStream { .. } | TimelineError::Deleted { .. })) => {
                writeln!(out, "{error}")?;
                return Ok(Outcome::NotAll);
            }
            Err(error) => return Err(error.into()),
        }
        shown += 1;
    }
    let noun = if shown == 1 { "version" } else { "versions" };
    writeln!(out, "{shown} {noun} of {stream}")?;
    Ok(if shown == 0 {
        Outcome::NotAll
    } else {
        Outcome::Done
    })
}

fn write_step(out: &mut impl io::Write, step: &TimelineStep) -> io::Result<()> {
    let header = &step.header;
    write!(
        out,
        "{} {} {}",
        header.version, header.recorded_at, header.name
    )?;
    let metadata = &header.metadata;
    if let Some(actor) = metadata.actor() {
        write!(out, ", by {actor}")?;
    }
    if let Some(command) = metadata.command_id() {
        write!(out, ", command {command}")?;
    }
    if let Some(cause) = metadata.causation_id() {
        write!(out, ", because of {cause}")?;
    }
    match step.effect {
        StepEffect::Retired => write!(out, ", which nothing reads any more")?,
        StepEffect::Shredded => write!(out, ", which nobody can read any more")?,
        _ => {}
    }
    writeln!(out)?;
    step.differences
        .iter()
        .try_for_each(|difference| writeln!(out, "  {}", line(difference)))
}

/// Writes a difference as one line: `+` for a place that is new, and `-` for one that is gone.
fn line(difference: &Difference) -> String {
    let path = match &*difference.path {
        "" => "state",
        path => path,
    };
    match (&difference.before, &difference.after) {
        (Some(before), Some(after)) => format!("{path} {before} -> {after}"),
        (Some(before), None) => format!("- {path} {before}"),
        (None, Some(after)) => format!("+ {path} {after}"),
        (None, None) => path.into(),
    }
}
