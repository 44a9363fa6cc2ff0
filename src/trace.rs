//! [`TraceContext`]: spans of `tracing` as parts of a distributed trace.
use std::fmt;
use tracing::Span;

/// Connects the spans of this process with the traces of others, which travel as W3C trace contexts
/// in [`Metadata::traceparent`](crate::Metadata::traceparent).
///
/// The library makes spans with `tracing` alone, which knows no traces. An implementation of this
/// trait asks the layer that exports the spans, such as `tracing-opentelemetry`. It is given to
/// [`Repository::with_trace_context`](crate::Repository::with_trace_context),
/// [`Publisher::with_trace_context`](crate::publisher::Publisher::with_trace_context) and
/// [`RunnerBuilder::with_trace_context`](crate::runner::RunnerBuilder::with_trace_context). Then
/// - a command without a traceparent stores that of its span with its events,
/// - the span in which a record is published, and the span of each call of a handler, are children
///   of the span that stored the event, also in another process,
/// - a command that a handler executes is a child of the handler's span,
/// - the span of a call that an operator has asked for by a redrive begins a trace of its own, with
///   a link to the span that stored the event. The event may be weeks old, and its trace long
///   closed.
///
/// # Example
/// An implementation for tests, in which every span belongs to the same trace:
/// ```
/// use foldstream::TraceContext;
/// use tracing::Span;
///
/// #[derive(Debug)]
/// struct OneTrace;
/// impl TraceContext for OneTrace {
///     fn current(&self) -> Option<String> {
///         let span = Span::current().id()?.into_u64();
///         Some(format!("00-0af7651916cd43dd8448eb211c80319c-{span:016x}-01"))
///     }
///     fn adopt(&self, _: &Span, _: &str) {}
///     fn link(&self, _: &Span, _: &str) {}
/// }
/// assert_eq!(OneTrace.current(), None, "no span is entered");
/// ```
pub trait TraceContext: fmt::Debug + Send + Sync + 'static {
    /// Returns the W3C traceparent of the current span, or `None` if the span belongs to no trace.
    fn current(&self) -> Option<String>;
    /// Makes a span, which was not entered yet, a child of the span that the traceparent names. A
    /// traceparent that cannot be read is ignored.
    fn adopt(&self, span: &Span, traceparent: &str);
    /// Adds a link to the span that the traceparent names, without making the span its child. A
    /// traceparent that cannot be read is ignored.
    fn link(&self, span: &Span, traceparent: &str);
}
