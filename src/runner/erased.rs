//! A processor without its types: one runner serves every listener and projector.
use super::{EventContext, HandlerError, HandlerResult, Listener, ModelId, Position, Projector};
use crate::{
    CodecError, EventHeader, EventSelector, EventSet, InvalidUpcasters, StreamId, Upcasters, codec,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::any::Any;

/// A decoded event whose type only the processor knows.
pub(super) type AnyEvent = dyn Any + Send + Sync;

pub(super) trait ErasedProcessor: Send + Sync {
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
    fn flush<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult>;
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

pub(super) struct ListenerCell<L>(pub(super) L);
pub(super) struct ProjectorCell<P>(pub(super) P);

impl<L: Listener> ErasedProcessor for ListenerCell<L> {
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
    fn flush<'a>(&'a self, _: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
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
    fn flush<'a>(&'a self, model: &'a ModelId) -> BoxFuture<'a, HandlerResult> {
        Box::pin(self.0.flush(model))
    }
    fn position<'a>(
        &'a self,
        model: &'a ModelId,
        stream: &'a StreamId,
    ) -> BoxFuture<'a, Result<Position, HandlerError>> {
        Box::pin(self.0.position(model, stream))
    }
}
