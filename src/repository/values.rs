//! The values that a repository returns.
use super::fold::{Fold, LastSnapshot};
use crate::{Aggregate, StreamHead, Version};
use std::sync::Arc;

/// A state and where its stream ends. Cloning is two reference counts.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    pub(super) state: Arc<A>,
    pub(super) head: StreamHead,
    pub(super) snapshot: LastSnapshot,
}

impl<A: Clone> Loaded<A> {
    /// The state.
    pub fn state(&self) -> &A {
        &self.state
    }
    /// Returns the state, owned; cloned only while it has another owner.
    pub fn into_state(self) -> A {
        Arc::unwrap_or_clone(self.state)
    }
    /// The version of the state; 0 if the stream does not exist.
    pub const fn version(&self) -> Version {
        self.head.version()
    }
    /// Returns the head to pass to the next append.
    pub const fn head(&self) -> &StreamHead {
        &self.head
    }
}

impl<A: Aggregate> Loaded<A> {
    /// Goes on folding; the state is cloned only while it has another owner.
    pub(super) fn into_fold(self) -> Fold<A> {
        Fold::resume(Arc::unwrap_or_clone(self.state), self.head, self.snapshot)
    }
}

/// The effect of a command.
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
    /// The state after the command.
    pub fn state(&self) -> &A {
        self.loaded.state()
    }
    /// The state, owned.
    pub fn into_state(self) -> A {
        self.loaded.into_state()
    }
    /// The version after the command.
    pub const fn version(&self) -> Version {
        self.loaded.version()
    }
    /// Returns the head to pass to the next append.
    pub const fn head(&self) -> &StreamHead {
        self.loaded.head()
    }
    /// The new facts; empty if there was nothing to do.
    pub fn events(&self) -> &[A::Event] {
        &self.events
    }
    /// Returns whether an earlier attempt at this command had already stored its events; `events` are the stored ones.
    pub const fn is_repeat(&self) -> bool {
        self.repeated
    }
}

/// The outcome of an append that was not known.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// It was stored; the new heads, in the order of the request.
    Applied(Vec<StreamHead>),
    /// Another commit is in one of its slots, or a stream that it checks has moved: it was not stored and never will be.
    Superseded,
    /// Its slots are free: the request may still land. Ask again, or send the same append again.
    Open,
}
