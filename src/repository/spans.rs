//! The spans of commands and appends, and the trace context that is stored with events.
use super::Repository;
use crate::{Aggregate, DomainEvent, Metadata, StreamId};
use tracing::Span;

/// Opens the span of one append.
pub(super) fn append_span(stream: &StreamId) -> Span {
    tracing::info_span!("append", otel.kind = "client", foldstream.stream = %stream)
}

impl<A: Aggregate> Repository<A> {
    /// Opens the span of a command. It continues the trace that the caller names.
    pub(super) fn span<C>(&self, stream: &StreamId, metadata: &Metadata) -> Span {
        let command = short_name(std::any::type_name::<C>());
        let span = tracing::info_span!(
            "execute",
            otel.name = format_args!("execute {command}"),
            foldstream.command = command,
            foldstream.aggregate = A::Event::AGGREGATE,
            foldstream.stream = %stream,
        );
        // Within a span, the command belongs to that one: a handler's command is its child.
        if let (Some(trace), Some(given)) = (&self.inner.trace, metadata.traceparent())
            && trace.current().is_none()
        {
            trace.adopt(&span, given);
        }
        span
    }

    /// Returns the metadata with the trace context of a span, unless the caller has given one.
    pub(super) fn traced(&self, span: &Span, metadata: Metadata) -> Metadata {
        match &self.inner.trace {
            Some(trace) if metadata.traceparent().is_none() => {
                match span.in_scope(|| trace.current()) {
                    Some(current) => metadata.with_traceparent(current),
                    None => metadata,
                }
            }
            _ => metadata,
        }
    }
}

/// Returns the name of a type without its path and its generics.
fn short_name(name: &'static str) -> &'static str {
    let name = name.split('<').next().unwrap_or(name);
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn a_command_is_named_without_its_path() {
        assert_eq!(short_name("shop::cart::AddItem"), "AddItem");
        assert_eq!(short_name("shop::Tagged<alloc::string::String>"), "Tagged");
        assert_eq!(short_name("u32"), "u32");
    }
}
