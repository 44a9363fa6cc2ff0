//! The span of a call of a handler, with the attribute names of OpenTelemetry for messaging.
use super::{EventContext, EventSource, HandlerError};
use crate::TraceContext;
use std::sync::Arc;
use tracing::{Span, field::Empty};

/// The parts that the spans of one processor share.
#[derive(Clone, Debug)]
pub(super) struct Spans {
    pub(super) group: Arc<str>,
    pub(super) context: Option<Arc<dyn TraceContext>>,
}

/// The reason why a handler is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The event was published, or fills a gap before one that was.
    Event,
    /// An operator has asked for the event, or it was parked after one that an operator has asked
    /// for.
    Redrive,
    /// A replay has read the event from the event store.
    Replay,
}

impl Spans {
    /// Opens the span of a call of a handler. The span is a child of the span that stored the first
    /// event. That of a redrive or replay is linked to it instead, since it has another cause and
    /// may come long after the trace of the event was closed.
    pub(super) fn process(&self, first: &EventContext, events: usize, cause: Cause) -> Span {
        let header = first.header();
        let name = first.model().processor();
        let span = tracing::info_span!(
            "process",
            otel.name = format_args!("process {name}"),
            otel.kind = "consumer",
            otel.status_code = Empty,
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.consumer.group.name = %self.group,
            messaging.message.id = %first.event_id(),
            messaging.batch.message_count = Empty,
            messaging.destination.name = Empty,
            messaging.destination.partition.id = Empty,
            messaging.kafka.offset = Empty,
            error.type = Empty,
            foldstream.processor = name,
            foldstream.stream = %header.stream,
            foldstream.version = header.version.get(),
            foldstream.event = &*header.name,
            foldstream.attempt = first.attempt(),
            foldstream.redrive = (cause == Cause::Redrive).then_some(true),
            foldstream.replay = (cause == Cause::Replay).then_some(true),
        );
        if !span.is_disabled() {
            record_messages(&span, first, events);
        }
        if let (Some(context), Some(parent)) = (&self.context, header.metadata.traceparent()) {
            match cause {
                Cause::Event => context.adopt(&span, parent),
                Cause::Redrive | Cause::Replay => context.link(&span, parent),
            }
        }
        span
    }

    /// Returns the traceparent for what a handler causes in this span.
    pub(super) fn caused(&self, span: &Span) -> Option<Arc<str>> {
        let context = self.context.as_ref()?;
        Some(span.in_scope(|| context.current())?.into())
    }
}

/// Notes the place of the first event, and the number of events.
fn record_messages(span: &Span, first: &EventContext, events: usize) {
    if events > 1 {
        span.record("messaging.batch.message_count", events);
    }
    if let EventSource::Bus { partition, offset } = first.source() {
        span.record("messaging.destination.name", &*partition.topic);
        let number = tracing::field::display(partition.partition);
        span.record("messaging.destination.partition.id", number);
        span.record("messaging.kafka.offset", offset.get());
    }
}

/// Notes the failure of a call in its span.
pub(super) fn failed(span: &Span, error: &HandlerError) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error.class().as_str());
}
