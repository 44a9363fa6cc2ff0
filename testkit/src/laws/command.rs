//! Commands of any type on one aggregate: what makes a sequence of them a value.
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

/// What a command led to; a reason to refuse as `{:?}` shows it.
pub(super) type Told<E> = Result<Vec<E>, String>;

/// What executing it led to.
pub(super) enum Executed<A: Aggregate> {
    Accepted {
        events: Vec<A::Event>,
        state: A,
        version: Version,
    },
    Rejected(String),
    /// The repository could not: the chain of causes.
    Failed(String),
}

impl<A: Aggregate> Executed<A> {
    /// The events, none if it was refused.
    pub(super) fn into_events(self) -> Result<Option<Vec<A::Event>>, String> {
        match self {
            Self::Accepted { events, .. } => Ok(Some(events)),
            Self::Rejected(_) => Ok(None),
            Self::Failed(error) => Err(error),
        }
    }
}

/// A command whose type is forgotten.
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

/// Forgets the type of a command.
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

/// A command, and how long after the one before it is given.
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

/// An id, which need not be `Debug`.
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

/// The stream of an id; the chain of causes if it names none.
pub(super) fn stream_of<A: Aggregate>(id: &str) -> Result<StreamId, String> {
    StreamId::new(A::Event::AGGREGATE, id).map_err(|e| e.to_string())
}
