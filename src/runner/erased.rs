//! A processor without its types: one runner serves every listener and projector.
use super::{EventContext, HandlerError, HandlerResult, Listener, ModelId, Position, Projector};
use crate::{CodecError, Decoded, EventSelector, EventSet, Lifted, StreamId};
use futures::future::BoxFuture;
use std::any::Any;

/// A decoded event whose type only the processor knows.
pub(super) type AnyEvent = dyn Any + Send + Sync;

pub(super) trait ErasedProcessor: Send + Sync {
    fn selectors(&self) -> Vec<EventSelector>;
    fn decode(
        &self,
        aggregate: &str,
        lifted: &Lifted,
    ) -> Result<Decoded<Box<AnyEvent>>, CodecError>;
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
    aggregate: &str,
    lifted: &Lifted,
) -> Result<Decoded<Box<AnyEvent>>, CodecError> {
    let decoded = E::decode_from(
        aggregate,
        &lifted.name,
        lifted.schema_version,
        &lifted.payload,
    )?;
    Ok(match decoded {
        Decoded::Event(event) => Decoded::Event(Box::new(event)),
        Decoded::NotMine => Decoded::NotMine,
        Decoded::Unknown => Decoded::Unknown,
    })
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
    fn decode(
        &self,
        aggregate: &str,
        lifted: &Lifted,
    ) -> Result<Decoded<Box<AnyEvent>>, CodecError> {
        decode::<L::Events>(aggregate, lifted)
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
    fn decode(
        &self,
        aggregate: &str,
        lifted: &Lifted,
    ) -> Result<Decoded<Box<AnyEvent>>, CodecError> {
        decode::<P::Events>(aggregate, lifted)
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
