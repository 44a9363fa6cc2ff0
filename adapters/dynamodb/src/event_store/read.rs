//! Reads of a stream, forwards and backwards: lazy, complete, and without gaps.
use super::{
    decode::{self, StoredItem, Unreadable},
    events_attribute::Names,
    gapless::Items,
    query::{From, Query},
    unsupported,
};
use crate::client::Connection;
use foldstream::{
    StreamId, Version,
    ports::{BoxStream, Commit, EventStoreError, ReadFrom},
};
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use std::{
    num::NonZeroU32,
    pin::Pin,
    task::{Context, Poll},
};

pub(super) fn read(
    connection: Connection,
    stream: StreamId,
    from: ReadFrom,
    limit: Option<NonZeroU32>,
) -> BoxStream<'static, Result<Commit, EventStoreError>> {
    // A page holds up to 1 MB, and without this limit a short read would pay for commits that it
    // does not return.
    let page = limit.and_then(|l| i32::try_from(l.get()).ok());
    let reader = match from {
        ReadFrom::After(head) => {
            // The head names its stream too, and must not belong to another one.
            if *head.stream() != stream {
                let reason = format!(
                    "a head of {} cannot start a read of {stream}",
                    head.stream()
                );
                return stream::once(async { Err(EventStoreError::Invalid { reason }) }).boxed();
            }
            Reader::Forward(Forward::new(
                connection,
                stream,
                head.version().next(),
                page,
            ))
        }
        ReadFrom::Event(version) => Reader::Event(connection, stream, version, page),
        ReadFrom::Newest => Reader::Backward(Backward::new(connection, stream, None, page)),
        ReadFrom::NewestAtOrBelow(version) => {
            Reader::Backward(Backward::new(connection, stream, Some(version), page))
        }
        other => {
            let error = unsupported(&format!("this adapter cannot read from {other:?}"));
            return stream::once(async { Err(error) }).boxed();
        }
    };
    let commits = Commits::Ready(Box::new(reader));
    match limit {
        Some(limit) => commits.take(limit.get() as usize).boxed(),
        None => commits.boxed(),
    }
}

/// The commits of a read. The stream ends after an error.
enum Commits {
    Ready(Box<Reader>),
    Waiting(BoxFuture<'static, Next>),
    Done,
}

/// The commit that a reader found, and the reader.
type Next = (Result<Option<Commit>, EventStoreError>, Box<Reader>);

impl Stream for Commits {
    type Item = Result<Commit, EventStoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut *self, Self::Done) {
                Self::Ready(mut reader) => match reader.next_whole() {
                    Some(Ok(commit)) => {
                        *self = Self::Ready(reader);
                        return Poll::Ready(Some(Ok(commit)));
                    }
                    Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                    None => {
                        let next = async move { (reader.next().await, reader) };
                        *self = Self::Waiting(next.boxed());
                    }
                },
                Self::Waiting(mut next) => match next.poll_unpin(cx) {
                    Poll::Pending => {
                        *self = Self::Waiting(next);
                        return Poll::Pending;
                    }
                    Poll::Ready((Ok(Some(commit)), reader)) => {
                        *self = Self::Ready(reader);
                        return Poll::Ready(Some(Ok(commit)));
                    }
                    Poll::Ready((found, _)) => return Poll::Ready(found.transpose()),
                },
                Self::Done => return Poll::Ready(None),
            }
        }
    }
}

enum Reader {
    Forward(Forward),
    /// A forward read from the commit that holds this event, which has not been found yet.
    Event(Connection, StreamId, Version, Option<i32>),
    Backward(Backward),
}
impl Reader {
    /// Returns the next commit, if it needs neither a request nor more than one item.
    fn next_whole(&mut self) -> Option<Result<Commit, EventStoreError>> {
        match self {
            Self::Forward(forward) => forward.next_whole(),
            Self::Event(..) | Self::Backward(_) => None,
        }
    }

    async fn next(&mut self) -> Result<Option<Commit>, EventStoreError> {
        loop {
            match self {
                Self::Forward(forward) => return forward.next().await,
                Self::Backward(backward) => return backward.next().await,
                Self::Event(connection, stream, version, page) => {
                    let found = Forward::from_event(connection, stream, *version, *page).await?;
                    *self = Self::Forward(found);
                }
            }
        }
    }
}

struct Forward {
    items: Items,
    names: Names,
    /// The first version that the caller wants. Commits that end before it are not returned.
    from: Version,
}
impl Forward {
    fn new(connection: Connection, stream: StreamId, first: Version, page: Option<i32>) -> Self {
        Self {
            items: Items::new(connection, stream, first, page),
            names: Names::default(),
            from: first,
        }
    }

    /// Finds the commit that holds the event: the newest item that starts at or before it, and from
    /// there the first part of its commit.
    ///
    /// A page may miss an item, and the search then ends too early in the stream, never too late.
    /// The read from there finds and skips the commits in between.
    async fn from_event(
        connection: &Connection,
        stream: &StreamId,
        version: Version,
        page: Option<i32>,
    ) -> Result<Self, EventStoreError> {
        let version = version.max(Version::new(1));
        let mut first = Version::new(1);
        let from = From::AtMost(Some(version));
        let mut below = Query::new(connection.clone(), stream.clone(), from, Some(1));
        while let Some(item) = below.next(Version::NONE).await? {
            if item.last < version && item.ends_commit() {
                first = item.last.next();
                break;
            }
            if item.part == 0 {
                first = item.first;
                break;
            }
        }
        let mut found = Self::new(connection.clone(), stream.clone(), first, page);
        found.from = version;
        Ok(found)
    }

    fn next_whole(&mut self) -> Option<Result<Commit, EventStoreError>> {
        loop {
            match self.items.next_whole(&mut self.names)? {
                Ok(commit) if commit.last_version() < self.from => {}
                found => return Some(found),
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Commit>, EventStoreError> {
        while let Some(first) = self.items.next().await? {
            let commit = self.items.complete(first, &mut self.names).await?;
            if commit.last_version() >= self.from {
                return Ok(Some(commit));
            }
        }
        Ok(None)
    }
}

/// A read from higher to lower versions.
///
/// Where an item does not reach up to the newer one, the items in between are read forwards and
/// returned first.
struct Backward {
    connection: Connection,
    stream: StreamId,
    query: Query,
    /// Items to return before those of the query. The next one is the last.
    first: Vec<StoredItem>,
    names: Names,
    /// The first version of the last item. `None` before the first item.
    newer: Option<Version>,
    /// The highest version that the caller wants. Commits that end after it are not returned.
    /// `None` once a commit was returned.
    ceiling: Option<Version>,
}
impl Backward {
    fn new(
        connection: Connection,
        stream: StreamId,
        ceiling: Option<Version>,
        page: Option<i32>,
    ) -> Self {
        let query = Query::new(
            connection.clone(),
            stream.clone(),
            From::AtMost(ceiling),
            page,
        );
        Self {
            // A backward reader looks for a commit near the end, and stops as soon as it is found.
            query: if page.is_none() {
                query.growing()
            } else {
                query
            },
            connection,
            stream,
            first: Vec::new(),
            names: Names::default(),
            newer: None,
            ceiling,
        }
    }

    async fn next(&mut self) -> Result<Option<Commit>, EventStoreError> {
        let mut parts = Vec::new();
        let mut skipping = false;
        while let Some(item) = self.next_item().await? {
            if parts.is_empty() && !skipping {
                skipping = match self.ceiling {
                    // If an item does not end its commit, the other parts are above the ceiling:
                    // they would have come first otherwise.
                    Some(ceiling) => item.last > ceiling || !item.ends_commit(),
                    None if item.ends_commit() => false,
                    None => return Err(self.corrupt("a commit lacks its last part")),
                };
            }
            let starts = item.part == 0;
            if skipping {
                skipping = !starts;
                continue;
            }
            if starts {
                self.ceiling = None;
                parts.reverse();
                let after = self.below();
                return decode::join(&self.stream, item, parts, &mut self.names)
                    .map(Some)
                    .map_err(|e| e.into_error(&self.stream, after));
            }
            parts.push(item);
        }
        if skipping || !parts.is_empty() {
            return Err(self.corrupt("a commit lacks its first part"));
        }
        Ok(None)
    }

    async fn next_item(&mut self) -> Result<Option<StoredItem>, EventStoreError> {
        if self.first.is_empty() {
            let below = self.query.next(self.below()).await?;
            let last = below.as_ref().map_or(Version::NONE, |item| item.last);
            let ends = below.as_ref().is_none_or(StoredItem::ends_commit);
            let above = self.items_above(last, ends).await?;
            self.first.extend(below);
            self.first.extend(above);
        }
        let item = self.first.pop();
        if let Some(item) = &item {
            self.newer = Some(item.first);
        }
        Ok(item)
    }

    /// Reads the items between one that ends at `last` (0 for the beginning) and the newer one,
    /// forwards.
    async fn items_above(
        &self,
        last: Version,
        ends: bool,
    ) -> Result<Vec<StoredItem>, EventStoreError> {
        let (connection, stream) = (self.connection.clone(), self.stream.clone());
        let mut above = Items::new(connection, stream, last.next(), Some(100));
        let mut found = Vec::new();
        match (self.newer, self.ceiling) {
            (Some(newer), _) => {
                while above.expected() < newer {
                    found.push(above.require().await?);
                }
                if above.expected() > newer {
                    let reason = format!("an item up to {last} overlaps the one at {newer}");
                    return Err(Unreadable::Bad { reason }.into_error(&self.stream, last));
                }
            }
            // The tail of the stream. A part of a commit implies the parts after it.
            (None, None) => {
                let mut ended = ends;
                while !ended {
                    let item = above.require().await?;
                    ended = item.ends_commit();
                    found.push(item);
                }
            }
            // No commit below the ceiling may be left out. This costs a query only where the stream
            // seems to end there.
            (None, Some(ceiling)) => {
                while above.expected() <= ceiling {
                    match above.next().await? {
                        Some(item) => found.push(item),
                        None if found.last().map_or(ends, StoredItem::ends_commit) => break,
                        None => found.push(above.require().await?),
                    }
                }
            }
        }
        Ok(found)
    }

    /// Returns the highest version that is lower than all versions that were read.
    ///
    /// An error names it as `after`, unless the item that ends there is itself the damage: then the
    /// damage begins where the item starts.
    fn below(&self) -> Version {
        self.newer
            .map_or(Version::NONE, |newer| Version::new(newer.get() - 1))
    }
    fn corrupt(&self, reason: &str) -> EventStoreError {
        let reason = reason.to_owned();
        Unreadable::Bad { reason }.into_error(&self.stream, self.below())
    }
}
