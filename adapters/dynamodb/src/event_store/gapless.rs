//! Items of one stream, read without gaps.
//!
//! A query is only read-committed with respect to transactions: a page may miss an item although a
//! later item implies it. Items never change, so a gap is read again from the missing key, with
//! backoff. If it stays, a `GetItem` of the missing key decides, because it is serializable. A gap
//! that remains is `Corrupt`, never a shorter history.
//!
//! Streams are read from the table alone, since an index is eventually consistent.
use super::{
    decode::{self, StoredItem, Unreadable},
    events_attribute::Names,
    query::{From, Query, get_item},
};
use crate::client::Connection;
use foldstream::{
    Backoff, RetryPolicy, StreamId, Version,
    ports::{Commit, EventStoreError},
    resilience::{Attempts, FailureClass},
};
use std::time::Duration;

/// The retries of the read of a gap, before the missing key itself is requested.
const REREADS: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(10), Duration::from_millis(200)),
    Duration::from_millis(300),
);

/// The items of a stream in order, each starting where the one before it ended.
#[derive(Debug)]
pub(super) struct Items {
    connection: Connection,
    stream: StreamId,
    query: Query,
    expected: Version,
    /// The last version that was read as part of a whole commit, for errors.
    whole: Version,
}

impl Items {
    /// Starts to read at the item that starts at `first`.
    pub(super) fn new(
        connection: Connection,
        stream: StreamId,
        first: Version,
        page: Option<i32>,
    ) -> Self {
        let from = From::AtLeast(first);
        Self {
            query: Query::new(connection.clone(), stream.clone(), from, page),
            connection,
            stream,
            expected: first,
            whole: Version::new(first.get().saturating_sub(1)),
        }
    }

    /// Returns the version at which the next item must start.
    pub(super) const fn expected(&self) -> Version {
        self.expected
    }

    /// Returns the next item, or `None` at the tail.
    pub(super) async fn next(&mut self) -> Result<Option<StoredItem>, EventStoreError> {
        match self.query.next(self.whole).await? {
            None => Ok(None),
            Some(item) if item.first == self.expected => Ok(Some(self.accept(item))),
            Some(item) if item.first < self.expected => Err(self.corrupt(format!(
                "an item at {} overlaps the one before it",
                item.first
            ))),
            Some(_) => self.find_missing().await.map(Some),
        }
    }

    /// Returns the next item, which must exist because other items imply it.
    pub(super) async fn require(&mut self) -> Result<StoredItem, EventStoreError> {
        match self.next().await? {
            Some(item) => Ok(item),
            None => self.find_missing().await,
        }
    }

    /// Returns the next commit without a request, if it is a single item of the fetched page and
    /// follows the item before it.
    ///
    /// Most items of a long stream are like that. Anything else is left for [`next`](Self::next).
    ///
    /// Why not only `next`? Its future holds all that a query needs, several kilobytes, which would
    /// be moved once per commit.
    pub(super) fn next_whole(
        &mut self,
        names: &mut Names,
    ) -> Option<Result<Commit, EventStoreError>> {
        let expected = self.expected;
        let is_next = |item: &StoredItem| item.first == expected && item.parts == 1;
        let item = self.query.next_buffered_if(is_next)?;
        let item = self.accept(item);
        Some(self.join(item, Vec::new(), names))
    }

    /// Reads the rest of the commit that starts with `first`, the item read last.
    pub(super) async fn complete(
        &mut self,
        first: StoredItem,
        names: &mut Names,
    ) -> Result<Commit, EventStoreError> {
        let mut others = Vec::new();
        for _ in 1..first.parts {
            others.push(self.require().await?);
        }
        self.join(first, others, names)
    }

    fn join(
        &mut self,
        first: StoredItem,
        others: Vec<StoredItem>,
        names: &mut Names,
    ) -> Result<Commit, EventStoreError> {
        let commit = decode::join(&self.stream, first, others, names)
            .map_err(|e| e.into_error(&self.stream, self.whole))?;
        self.whole = commit.last_version();
        Ok(commit)
    }

    fn accept(&mut self, item: StoredItem) -> StoredItem {
        self.expected = item.last.next();
        item
    }

    async fn find_missing(&mut self) -> Result<StoredItem, EventStoreError> {
        let missing = self.expected;
        let mut attempts = Attempts::new(REREADS);
        while attempts.wait(FailureClass::Transient).await {
            self.restart_at(missing);
            if let Some(item) = self.query.next(self.whole).await?
                && item.first == missing
            {
                return Ok(self.accept(item));
            }
        }
        match get_item(&self.connection, &self.stream, missing, self.whole).await? {
            Some(item) => {
                self.restart_at(item.last.next());
                Ok(self.accept(item))
            }
            None => Err(self.corrupt(format!("the item at {missing} is missing"))),
        }
    }

    fn restart_at(&mut self, first: Version) {
        let (connection, stream) = (self.connection.clone(), self.stream.clone());
        self.query = Query::new(connection, stream, From::AtLeast(first), self.query.page);
    }

    fn corrupt(&self, reason: String) -> EventStoreError {
        Unreadable::Bad { reason }.into_error(&self.stream, self.whole)
    }
}
