//! The values that a repository returns.
use super::fold::{Fold, LastSnapshot};
use crate::{Aggregate, StreamHead, Version};
use std::sync::Arc;

/// A state, and the head of its stream. Cloning increments two reference counts.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    pub(super) state: Arc<A>,
    pub(super) head: StreamHead,
    pub(super) snapshot: LastSnapshot,
}

impl<A: Clone> Loaded<A> {
    /// Returns the state of the stream.
    pub fn state(&self) -> &A {
        &self.state
    }
    /// Returns the state as an owned value. It is cloned only if it has another owner.
    pub fn into_state(self) -> A {
        Arc::unwrap_or_clone(self.state)
    }
    /// Returns the version of the state; 0 if the stream does not exist.
    pub const fn version(&self) -> Version {
        self.head.version()
    }
    /// Returns the head to pass to the next append.
    pub const fn head(&self) -> &StreamHead {
        &self.head
    }
}

impl<A: Aggregate> Loaded<A> {
    /// Returns a fold that continues from this state. The state is cloned only while it has another
    /// owner.
    pub(super) fn into_fold(self) -> Fold<A> {
        Fold::resume(Arc::unwrap_or_clone(self.state), self.head, self.snapshot)
    }
}

/// The effect of a command that was executed.
#[derive(Clone, Debug)]
pub struct Executed<A: Aggregate> {
    pub(super) loaded: Loaded<A>,
    pub(super) events: Vec<A::Event>,
    pub(super) repeated: bool,
}

impl<A: Aggregate> Executed<A> {
    pub(super) const fn new(loaded: Loaded<A>, events: Vec<A::Event>, repeated: bool) -> Self {
        Self {
            loaded,
            events,
            repeated,
        }
    }
    /// Returns the state after the command.
    pub fn state(&self) -> &A {
        self.loaded.state()
    }
    /// Returns the state after the command as an owned value.
    pub fn into_state(self) -> A {
        self.loaded.into_state()
    }
    /// Returns the version of the stream after the command.
    pub const fn version(&self) -> Version {
        self.loaded.version()
    }
    /// Returns the head to pass to the next append.
    pub const fn head(&self) -> &StreamHead {
        self.loaded.head()
    }
    /// Returns the new events; empty if there was nothing to do.
    pub fn events(&self) -> &[A::Event] {
        &self.events
    }
    /// Returns true if an earlier attempt at this command had already stored its events. Then
    /// [`events`](Self::events) returns the stored ones.
    pub const fn is_repeat(&self) -> bool {
        self.repeated
    }
}

/// The outcome of an append whose answer was lost.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// The append was stored; these are the new heads, in the order of the request.
    Applied(Vec<StreamHead>),
    /// The append was not stored and never will be: another commit is in one of its slots, or a
    /// stream that it checks has moved.
    Superseded,
    /// The slots of the append are free, and the request may still be stored. The caller asks
    /// again, or sends the same append again.
    Open,
}

/// The effect that an event of a history has on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepEffect {
    /// The event was folded into the state.
    Folded,
    /// The event is retired: an upcaster says that nothing reads it any more. The state stays.
    Retired,
    /// The event is shredded: its key was deleted, so that nobody can read it. The state stays.
    Shredded,
}
