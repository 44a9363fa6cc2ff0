//! An account, and event stores that misbehave.
use async_trait::async_trait;
use foldstream::{
    Aggregate, BoxError, Context, Decide, Decision, DomainEvent, Snapshot, StreamHead, StreamId,
    id,
    ports::{
        Append, AppendAll, AppendOutcome, BoxStream, Capabilities, Commit, CommitKey, EventStore,
        EventStoreError, ReadFrom, ScanCursor, ScanPage, ScanWhat, Segment, StreamPage,
        UnpublishedPage,
    },
};
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU32, sync::Arc};

id!(pub(crate) AccountId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "account")]
pub(crate) enum AccountEvent {
    Deposited { amount: u64 },
    Withdrawn { amount: u64 },
}

#[derive(Clone, Debug)]
pub(crate) enum AccountCommand {
    Deposit {
        amount: u64,
    },
    Withdraw {
        amount: u64,
    },
    /// As many deposits of 1 in one commit.
    DepositOnes {
        times: usize,
    },
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("insufficient funds")]
pub(crate) struct InsufficientFunds;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) balance: u64,
    pub(crate) events: u64,
}

impl Aggregate for Account {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, event: &AccountEvent) {
        self.events += 1;
        match event {
            AccountEvent::Deposited { amount } => self.balance += amount,
            AccountEvent::Withdrawn { amount } => self.balance -= amount,
        }
    }
}

impl Decide<AccountCommand> for Account {
    type Error = InsufficientFunds;
    fn decide(&self, command: &AccountCommand, _: &Context) -> Decision<Self, InsufficientFunds> {
        match *command {
            AccountCommand::Deposit { amount: 0 } => Ok(vec![]),
            AccountCommand::Deposit { amount } => Ok(vec![AccountEvent::Deposited { amount }]),
            AccountCommand::Withdraw { amount } if amount > self.balance => Err(InsufficientFunds),
            AccountCommand::Withdraw { amount } => Ok(vec![AccountEvent::Withdrawn { amount }]),
            AccountCommand::DepositOnes { times } => {
                Ok(vec![AccountEvent::Deposited { amount: 1 }; times])
            }
        }
    }
}

impl Snapshot for Account {
    const STATE_VERSION: u32 = 1;
}

pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("account", id).unwrap()
}

/// What a misbehaving store does at its next calls.
#[async_trait]
pub(crate) trait Mischief: std::fmt::Debug + Send + Sync + 'static {
    /// Instead of an append.
    async fn append(
        &self,
        inner: &dyn EventStore,
        append: &Append,
    ) -> Result<AppendOutcome, EventStoreError> {
        inner.append(append).await
    }
    /// When a read begins.
    fn reading(&self) {}
    /// Before a read answers.
    async fn before_read(&self) {}
    /// To a commit that is read; none hides it.
    fn read(&self, commit: Commit) -> Option<Commit> {
        Some(commit)
    }
}

/// An event store that misbehaves.
#[derive(Debug)]
pub(crate) struct Misbehaving<M> {
    pub(crate) inner: Arc<dyn EventStore>,
    pub(crate) mischief: M,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<M: Mischief> EventStore for Misbehaving<M> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn append(&self, append: &Append) -> Result<AppendOutcome, EventStoreError> {
        self.mischief.append(&*self.inner, append).await
    }
    async fn append_all(
        &self,
        all: &AppendAll,
    ) -> Result<AppendOutcome<Vec<StreamHead>>, EventStoreError> {
        self.inner.append_all(all).await
    }
    fn read(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: Option<NonZeroU32>,
    ) -> BoxStream<'_, Result<Commit, EventStoreError>> {
        self.mischief.reading();
        let commits = self.inner.read(stream, from, limit);
        let commits = async move {
            self.mischief.before_read().await;
            commits
        };
        commits
            .flatten_stream()
            .filter_map(|commit| async {
                match commit {
                    Ok(commit) => self.mischief.read(commit).map(Ok),
                    Err(error) => Some(Err(error)),
                }
            })
            .boxed()
    }
    async fn streams(
        &self,
        aggregate: &str,
        after: Option<ScanCursor>,
    ) -> Result<StreamPage, EventStoreError> {
        self.inner.streams(aggregate, after).await
    }
    async fn scan(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        what: ScanWhat,
        max_items: NonZeroU32,
    ) -> Result<ScanPage, EventStoreError> {
        self.inner.scan(segment, after, what, max_items).await
    }
    async fn unpublished(
        &self,
        segment: Segment,
        after: Option<ScanCursor>,
        limit: NonZeroU32,
    ) -> Result<UnpublishedPage, EventStoreError> {
        self.inner.unpublished(segment, after, limit).await
    }
    async fn clear_unpublished(&self, commits: &[CommitKey]) -> Result<(), EventStoreError> {
        self.inner.clear_unpublished(commits).await
    }
}

/// An answer that never came.
pub(crate) fn no_answer() -> BoxError {
    "no answer".into()
}
