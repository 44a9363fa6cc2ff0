//! A processor without its types: one runner serves every listener and projector.
use super::{
    BatchResult, EventContext, HandlerError, HandlerResult, Listener, ModelId, PartialReplay,
    Position, Projector, ReplayPart,
};
use crate::{
    CodecError, EventHeader, EventSelector, EventSet, InvalidUpcasters, StreamId, Upcasters, codec,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::any::Any;

/// A decoded event whose type only the processor knows.
pub(super) type AnyEvent = dyn Any + Send + Sync;

/// The answer to a batch: how many events were handled, and the error of the next one.
pub(super) type Handled = (usize, Option<HandlerError>);

pub(super) trait ErasedProcessor: Send + Sync {
    /// Returns true for a projector.
    fn is_projector(&self) -> bool;
    fn selectors(&self) -> Vec<EventSelector>;
    /// These upcasters and those that the event types bring.
    fn upcasters(&self, given: &Upcasters) -> Result<Upcasters, InvalidUpcasters>;
    /// Decodes an opened payload. None: retired, or of no interest.
    fn decode(
        &self,
        upcasters: &Upcasters,
        header: &EventHeader,
        payload: &Bytes,
    ) -> Result<Option<Box<AnyEvent>>, CodecError>;
    fn handle<'a>(
        &'a self,
        event: &'a AnyEvent,
        ctx: &'a EventContext,
    ) -> BoxFuture<'a, HandlerResult>;
    fn handle_batch(&self, events: Vec<(Box<AnyEvent>, EventContext)>) -> BoxFuture<'_, Handled>;
    fn prepare<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult>;
    fn delete_model<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult>;
    fn reset<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult>;
    /// Returns the ways in which a filtered replay may change the model.
    fn partial_replay(&self) -> PartialReplay;
    fn reset_part<'a>(
        &'a self,
        model: &'a ModelId,
        part: &'a ReplayPart,
    ) -> BoxFuture<'a, HandlerResult>;
    fn flush<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult>;
    fn forget_buffered<'a>(
        &'a self,
        model: &'a ModelId,
        streams: &'a [StreamId],
    ) -> BoxFuture<'a, HandlerResult>;
    fn position<'a>(
        &'a self,
        model: &'a ModelId,
        stream: &'a StreamId,
    ) -> BoxFuture<'a, Result<Position, HandlerError>>;
}

fn decode<E: EventSet>(
    upcasters: &Upcasters,
    header: &EventHeader,
    payload: &Bytes,
) -> Result<Option<Box<AnyEvent>>, CodecError> {
    let (aggregate, version) = (header.stream.aggregate(), header.schema_version);
    let decoded = codec::decode::<E>(upcasters, aggregate, &header.name, version, payload)?;
    Ok(decoded.map(|event| Box::new(event) as Box<AnyEvent>))
}

fn typed<E: EventSet>(event: &AnyEvent) -> Result<&E, HandlerError> {
    event
        .downcast_ref()
        .ok_or_else(|| HandlerError::fatal("an event of another processor's type"))
}

/// The events of a batch, typed.
fn typed_batch<E: EventSet>(
    events: Vec<(Box<AnyEvent>, EventContext)>,
) -> Result<Vec<(E, EventContext)>, HandlerError> {
    let typed = events.into_iter().map(|(event, ctx)| {
        let event: Box<dyn Any> = event;
        let event = event.downcast::<E>();
        let event =
            event.map_err(|_| HandlerError::fatal("an event of another processor's type"))?;
        Ok((*event, ctx))
    });
    typed.collect()
}

fn handled(result: BatchResult) -> Handled {
    (result.done, result.error)
}

pub(super) struct ListenerCell<L>(pub(super) L);
pub(super) struct ProjectorCell<P>(pub(super) P);

impl<L: Listener> ErasedProcessor for ListenerCell<L> {
    fn is_projector(&self) -> bool {
        false
    }
    fn selectors(&self) -> Vec<EventSelector> {
        L::Events::selectors()
    }
    fn upcasters(&self, given: &Upcasters) -> Result<Upcasters, InvalidUpcasters> {
        given.with_own_of::<L::Events>()
    }
    fn decode(
        &self,
        upcasters: &Upcasters,
        header: &EventHeader,
        payload: &Bytes,
    ) -> Result<Option<Box<AnyEvent>>, CodecError> {
        decode::<L::Events>(upcasters, header, payload)
    }
    fn handle<'a>(
        &'a self,
        event: &'a AnyEvent,
        ctx: &'a EventContext,
    ) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async move { self.0.handle(typed::<L::Events>(event)?, ctx).await })
    }
    fn handle_batch(&self, events: Vec<(Box<AnyEvent>, EventContext)>) -> BoxFuture<'_, Handled> {
        Box::pin(async move {
            match typed_batch::<L::Events>(events) {
                Ok(events) => handled(self.0.handle_batch(&events).await),
                Err(error) => (0, Some(error)),
            }
        })
    }
    fn prepare<'a>(&'a self, _: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async { Ok(()) })
    }
    fn delete_model<'a>(&'a self, _: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async { Ok(()) })
    }
    fn reset<'a>(&'a self, _: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async { Err(HandlerError::fatal("a listener has no read model")) })
    }
    fn partial_replay(&self) -> PartialReplay {
        PartialReplay::Refused
    }
    fn reset_part<'a>(
        &'a self,
        model: &'a ModelId,
        _: &'a ReplayPart,
    ) -> BoxFuture<'a, HandlerResult> {
        self.reset(model)
    }
    fn flush<'a>(&'a self, _: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async { Ok(()) })
    }
    fn forget_buffered<'a>(
        &'a self,
        _: &'a ModelId,
        _: &'a [StreamId],
    ) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async { Ok(()) })
    }
    fn position<'a>(
        &'a self,
        _: &'a ModelId,
        _: &'a StreamId,
    ) -> BoxFuture<'a, Result<Position, HandlerError>> {
        Box::pin(async { Ok(Position::KeptByRunner) })
    }
}

impl<P: Projector> ErasedProcessor for ProjectorCell<P> {
    fn is_projector(&self) -> bool {
        true
    }
    fn selectors(&self) -> Vec<EventSelector> {
        P::Events::selectors()
    }
    fn upcasters(&self, given: &Upcasters) -> Result<Upcasters, InvalidUpcasters> {
        given.with_own_of::<P::Events>()
    }
    fn decode(
        &self,
        upcasters: &Upcasters,
        header: &EventHeader,
        payload: &Bytes,
    ) -> Result<Option<Box<AnyEvent>>, CodecError> {
        decode::<P::Events>(upcasters, header, payload)
    }
    fn handle<'a>(
        &'a self,
        event: &'a AnyEvent,
        ctx: &'a EventContext,
    ) -> BoxFuture<'a, HandlerResult> {
        Box::pin(async move { self.0.project(typed::<P::Events>(event)?, ctx).await })
    }
    fn handle_batch(&self, events: Vec<(Box<AnyEvent>, EventContext)>) -> BoxFuture<'_, Handled> {
        Box::pin(async move {
            match typed_batch::<P::Events>(events) {
                Ok(events) => handled(self.0.project_batch(&events).await),
                Err(error) => (0, Some(error)),
            }
        })
    }
    fn prepare<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.prepare(model))
    }
    fn delete_model<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.delete_model(model))
    }
    fn reset<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.reset(model))
    }
    fn partial_replay(&self) -> PartialReplay {
        P::PARTIAL_REPLAY
    }
    fn reset_part<'a>(
        &'a self,
        model: &'a ModelId,
        part: &'a ReplayPart,
    ) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.reset_part(model, part))
    }
    fn flush<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.flush(model))
    }
    fn forget_buffered<'a>(
        &'a self,
        model: &'a ModelId,
        streams: &'a [StreamId],
    ) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.forget_buffered(model, streams))
    }
    fn position<'a>(
        &'a self,
        model: &'a ModelId,
        stream: &'a StreamId,
    ) -> BoxFuture<'a, Result<Position, HandlerError>> {
        Box::pin(self.0.position(model, stream))
    }
}
