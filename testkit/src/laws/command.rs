//! Commands of any type on one aggregate, as values that a sequence can hold.
use foldstream::{
    Aggregate, Context, Decide, DomainEvent, ExecuteError, Metadata, Repository, StreamId, Version,
    chain,
};
use futures::future::LocalBoxFuture;
use std::{
    any::Any,
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

/// The outcome of a command. A rejection is held as its `Debug` output.
pub(super) type Told<E> = Result<Vec<E>, String>;

/// The outcome of executing a command through a repository.
pub(super) enum Executed<A: Aggregate> {
    Accepted {
        events: Vec<A::Event>,
        state: A,
        version: Version,
    },
    Rejected(String),
    /// The repository failed, with the chain of causes.
    Failed(String),
}

impl<A: Aggregate> Executed<A> {
    /// Returns the events, or `None` if the command was rejected.
    pub(super) fn into_events(self) -> Result<Option<Vec<A::Event>>, String> {
        match self {
            Self::Accepted { events, .. } => Ok(Some(events)),
            Self::Rejected(_) => Ok(None),
            Self::Failed(error) => Err(error),
        }
    }
}

/// A command without its Rust type.
pub(super) trait AnyCommand<A: Aggregate>: Debug + Send + Sync {
    fn decide(&self, state: &A, ctx: &Context) -> Told<A::Event>;
    fn execute<'a>(
        &'a self,
        on: &'a Repository<A>,
        id: &'a A::Id,
        metadata: Metadata,
    ) -> LocalBoxFuture<'a, Executed<A>>;
    fn as_any(&self) -> &dyn Any;
}

struct Typed<C>(C);

impl<C: Debug> Debug for Typed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hides the Rust type of a command.
pub(super) fn erase<A, C>(command: C) -> Arc<dyn AnyCommand<A>>
where
    A: Decide<C>,
    C: Clone + Debug + Send + Sync + 'static,
{
    Arc::new(Typed(command))
}

impl<A, C> AnyCommand<A> for Typed<C>
where
    A: Decide<C>,
    C: Clone + Debug + Send + Sync + 'static,
{
    fn decide(&self, state: &A, ctx: &Context) -> Told<A::Event> {
        state.decide(&self.0, ctx).map_err(|e| format!("{e:?}"))
    }

    fn execute<'a>(
        &'a self,
        on: &'a Repository<A>,
        id: &'a A::Id,
        metadata: Metadata,
    ) -> LocalBoxFuture<'a, Executed<A>> {
        Box::pin(async move {
            match on.execute_with(id, self.0.clone(), metadata).await {
                Ok(done) => Executed::Accepted {
                    events: done.events().to_vec(),
                    version: done.version(),
                    state: done.into_state(),
                },
                Err(ExecuteError::Rejected(reason)) => Executed::Rejected(format!("{reason:?}")),
                Err(error) => Executed::Failed(chain(&error)),
            }
        })
    }

    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

/// A command, and the time that passes between the command before it and this one.
pub(super) struct Step<A: Aggregate> {
    pub(super) command: Arc<dyn AnyCommand<A>>,
    pub(super) after: Duration,
}

impl<A: Aggregate> Clone for Step<A> {
    fn clone(&self) -> Self {
        Self {
            command: self.command.clone(),
            after: self.after,
        }
    }
}
impl<A: Aggregate> Debug for Step<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.command.fmt(f)
    }
}

/// An id whose type need not implement `Debug`.
pub(super) struct ShownId<A: Aggregate>(pub(super) A::Id);

impl<A: Aggregate> Clone for ShownId<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
impl<A: Aggregate> Debug for ShownId<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Returns the stream of an id, or the chain of causes if the id names none.
pub(super) fn stream_of<A: Aggregate>(id: &str) -> Result<StreamId, String> {
    StreamId::new(A::Event::AGGREGATE, id).map_err(|e| e.to_string())
}
