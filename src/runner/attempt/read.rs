//! The reading of an event: open its payload, lift it, decode it. Panics in it are failures of the
//! event, as those of a handler are.
use super::Attempt;
use crate::{
    CodecError, EventHeader, Opened, PayloadContext, RecordedEvent,
    runner::{HandlerError, UnknownEvents, erased::AnyEvent},
};
use bytes::Bytes;
use futures::FutureExt;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// The result of decoding an event; `None` for one of no interest.
type Decoded = Result<Option<Box<AnyEvent>>, CodecError>;

/// The result of reading an event.
pub(super) enum Read {
    Event(Box<AnyEvent>),
    /// Retired, or of no interest.
    Nothing,
    Shredded,
}

impl Attempt {
    /// Opens, lifts and decodes.
    pub(super) async fn read(&self, event: &RecordedEvent) -> Result<Read, HandlerError> {
        let header = &event.header;
        let decoded = match header.codec.as_deref() {
            None => self.decode(header, &event.payload)?,
            Some(tags) if self.may_know(header) => {
                match Box::pin(self.open(header, tags, &event.payload)).await? {
                    Opened::Payload(payload) => self.decode(header, &payload)?,
                    Opened::Shredded => return Ok(Read::Shredded),
                }
            }
            // What is of no interest needs no codec, nor a key that this service may not even have.
            Some(_) => Err(CodecError::UnknownEvent {
                aggregate: header.stream.aggregate().into(),
                name: header.name.to_string(),
            }),
        };
        match decoded {
            Ok(decoded) => Ok(decoded.map_or(Read::Nothing, Read::Event)),
            Err(CodecError::UnknownEvent { .. })
                if self.shared.rules.unknown_events == UnknownEvents::Skip =>
            {
                Ok(Read::Nothing)
            }
            Err(error) => Err(HandlerError::unreadable(error)),
        }
    }

    /// Opens a payload that was encoded with these tags.
    async fn open(
        &self,
        header: &EventHeader,
        tags: &str,
        payload: &Bytes,
    ) -> Result<Opened, HandlerError> {
        let context = PayloadContext::of_event(header);
        let open = (self.shared.codecs).open(&context, Some(tags), payload);
        let open = async { open.await.map_err(HandlerError::unreadable) };
        self.in_time("payload codec", open).await
    }

    /// Lifts and decodes. An upcaster or a deserializer is code of the user, which may panic.
    fn decode(&self, header: &EventHeader, payload: &Bytes) -> Result<Decoded, HandlerError> {
        let shared = &*self.shared;
        let decode = || {
            if let Some(only) = &shared.only {
                let (aggregate, version) = (header.stream.aggregate(), header.schema_version);
                let lifted = &shared.upcasters;
                let lifted = lifted.apply(aggregate, &header.name, version, payload)?;
                if lifted.is_some_and(|lifted| !only.has_event(&lifted.name)) {
                    return Ok(None);
                }
            }
            shared.processor.decode(&shared.upcasters, header, payload)
        };
        catch_unwind(AssertUnwindSafe(decode))
            .map_err(|panic| HandlerError::poison(panic_message("decoding of the event", &*panic)))
    }

    /// Returns true if the event is in the processor's set, or may be after a rename.
    fn may_know(&self, header: &EventHeader) -> bool {
        let aggregate = header.stream.aggregate();
        let selectors = self.shared.processor.selectors();
        let mut mine = selectors.iter().filter(|s| s.aggregate == aggregate);
        mine.any(|s| s.types.iter().any(|t| header.name == t.name()))
            || self.shared.upcasters.know(aggregate, &header.name)
    }

    /// Awaits a step of the attempt that is not the handler: it has the same time, and a panic in
    /// it is a failure of the event, too.
    pub(super) async fn in_time<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, HandlerError>>,
    ) -> Result<T, HandlerError> {
        let timeout = self.shared.rules.timeout;
        let work = AssertUnwindSafe(work).catch_unwind();
        match tokio::time::timeout(timeout, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(HandlerError::permanent(panic_message(what, &*panic))),
            Err(_) => Err(HandlerError::timed_out(timeout)),
        }
    }
}

/// Returns what a panic of this function said.
pub(in crate::runner) fn panic_message(what: &str, payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("the {what} panicked: {}", text.unwrap_or("no message"))
}
