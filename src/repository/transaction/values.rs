//! The results of transactions and of their commands.
use crate::{Aggregate, StreamHead, Version, repository::Loaded};

/// A state that a transaction has read, with the events that it has made so far.
#[derive(Clone, Debug)]
pub struct TransactionLoaded<A> {
    pub(super) loaded: Loaded<A>,
    pub(super) version: Version,
}

impl<A: Clone> TransactionLoaded<A> {
    /// Returns the state of the stream.
    pub fn state(&self) -> &A {
        self.loaded.state()
    }
    /// Returns the state as an owned value.
    pub fn into_state(self) -> A {
        self.loaded.into_state()
    }
    /// Returns the version of the state. The versions of events that the transaction has made do
    /// not exist before the commit.
    pub const fn version(&self) -> Version {
        self.version
    }
}

/// The effect of a command in a transaction, which takes place when the transaction is committed.
#[derive(Clone, Debug)]
pub struct TransactionExecuted<A: Aggregate> {
    pub(super) before: Loaded<A>,
    pub(super) after: Loaded<A>,
    pub(super) version: Version,
    pub(super) events: Vec<A::Event>,
}

impl<A: Aggregate> TransactionExecuted<A> {
    /// Returns the state that the command was decided on.
    pub fn before(&self) -> &A {
        self.before.state()
    }
    /// Returns the state after the command.
    pub fn after(&self) -> &A {
        self.after.state()
    }
    /// Returns the version that the stream has after the command, once the transaction is
    /// committed.
    pub const fn version(&self) -> Version {
        self.version
    }
    /// Returns the new events; empty if there was nothing to do.
    pub fn events(&self) -> &[A::Event] {
        &self.events
    }
    /// Returns the new events as owned values.
    pub fn into_events(self) -> Vec<A::Event> {
        self.events
    }
}

/// The result of a transaction that was run and committed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Committed<T> {
    /// The value that the work returned in the attempt that was committed.
    pub value: T,
    /// The new heads, in the order in which the streams were added to the transaction.
    pub heads: Vec<StreamHead>,
}
