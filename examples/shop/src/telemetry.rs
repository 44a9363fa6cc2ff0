//! Traces of the shop, by OpenTelemetry.
//!
//! The library makes spans with `tracing` and passes W3C trace contexts on with the events.
//! [`OpenTelemetry`] connects the two, for a subscriber with the layer of `tracing-opentelemetry`.
use foldstream::TraceContext;
use opentelemetry::{Context, propagation::TextMapPropagator, trace::TraceContextExt as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use std::collections::HashMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// The traces of a subscriber with the layer of `tracing-opentelemetry`.
#[derive(Clone, Debug, Default)]
pub struct OpenTelemetry {
    propagator: TraceContextPropagator,
}

impl TraceContext for OpenTelemetry {
    fn current(&self) -> Option<String> {
        let mut carrier = HashMap::new();
        let context = Span::current().context();
        self.propagator.inject_context(&context, &mut carrier);
        carrier.remove(TRACEPARENT)
    }

    fn adopt(&self, span: &Span, traceparent: &str) {
        if let Err(error) = span.set_parent(self.context_of(traceparent)) {
            tracing::debug!(%error, "a span does not continue the trace of its event");
        }
    }

    fn link(&self, span: &Span, traceparent: &str) {
        let linked = self.context_of(traceparent).span().span_context().clone();
        if linked.is_valid() {
            span.add_link(linked);
        }
    }
}

impl OpenTelemetry {
    fn context_of(&self, traceparent: &str) -> Context {
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
        self.propagator.extract(&carrier)
    }
}
