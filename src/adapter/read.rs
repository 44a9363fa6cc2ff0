//! Reads in pages that return a contiguous history or an error.
use crate::{
    StreamId, Version,
    ports::{BoxStream, Commit, EventStoreError, ReadFrom},
};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    future::Future,
    num::{NonZeroU32, NonZeroUsize},
};

/// Answers [`EventStore::read`](crate::ports::EventStore::read) from a function that reads one
/// page.
///
/// `page` returns the next commits of a read that starts at a [`ReadFrom`], at most as many as the
/// number says: oldest first from `After` and `Event`, newest first from the other starts. A page
/// with fewer commits is the last one. `page` is first called when the caller polls, is called with
/// less than `page_size` if the caller wants fewer commits, and is not called again after the last
/// page. One page is held at a time.
///
/// Every commit must join the one before it, also across pages, and a read to the beginning of a
/// stream must end with version 1. A store that can miss a row for a moment reads again in `page`.
///
/// # Errors
/// - [`Invalid`](EventStoreError::Invalid) if the read starts after a head of another stream.
/// - [`Corrupt`](EventStoreError::Corrupt) if a commit is missing or overlaps another one. It names
///   the last version before the hole.
/// - Those of `page`.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, adapter::read_in_pages, ports::*};
/// use futures::TryStreamExt;
/// use std::num::NonZeroUsize;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), foldstream::BoxError> {
/// let cart = StreamId::new("cart", "7")?;
/// let mut rows = Vec::new();
/// let mut head = StreamHead::empty(cart.clone());
/// for _ in 0..5 {
///     let events = [EventData::new("Added", 1, "{}")];
///     let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
///     head = append.head_after();
///     rows.push(append.to_commit());
/// }
/// let page = |from: ReadFrom, size| {
///     let ReadFrom::After(head) = from else { unreachable!() };
///     let after = rows.iter().filter(|row| row.first_version > head.version());
///     std::future::ready(Ok(after.take(size).cloned().collect()))
/// };
/// let start = ReadFrom::After(StreamHead::empty(cart.clone()));
/// let two = NonZeroUsize::MIN.saturating_add(1);
/// let read: Vec<Commit> = read_in_pages(cart, start, None, two, page).try_collect().await?;
/// assert_eq!(read, rows);
/// # Ok(())
/// # }
/// ```
pub fn read_in_pages<'a, F>(
    stream: StreamId,
    from: ReadFrom,
    limit: Option<NonZeroU32>,
    page_size: NonZeroUsize,
    page: impl FnMut(ReadFrom, usize) -> F + Send + 'a,
) -> BoxStream<'a, Result<Commit, EventStoreError>>
where
    F: Future<Output = Result<Vec<Commit>, EventStoreError>> + Send + 'a,
{
    let limit = limit.map_or(usize::MAX, |limit| limit.get() as usize);
    let size = page_size.get().min(limit);
    let history = History::of(stream, &from);
    let start = (Some(from), history, page);
    stream::try_unfold(start, move |(from, mut history, mut page)| async move {
        let Some(from) = from else { return Ok(None) };
        history.check_start(&from)?;
        let commits = page(from, size).await?;
        for commit in &commits {
            history.join(commit)?;
        }
        let is_last = commits.len() < size;
        if is_last {
            history.end()?;
        }
        let next = commits.last().filter(|_| !is_last);
        let next = next.map(|last| history.after(last));
        let commits = stream::iter(commits.into_iter().map(Ok));
        Ok(Some((commits, (next, history, page))))
    })
    .try_flatten()
    .take(limit)
    .boxed()
}

/// The part of a history that a read has returned so far.
struct History {
    stream: StreamId,
    is_backwards: bool,
    /// The version at which the next commit must begin, or end if the read is backwards. `None`
    /// if any commit may be the first.
    expected: Option<Version>,
    /// The version that the first commit must hold, or begin before.
    holds: Option<Version>,
}

impl History {
    fn of(stream: StreamId, from: &ReadFrom) -> Self {
        let is_backwards = matches!(from, ReadFrom::Newest | ReadFrom::NewestAtOrBelow(_));
        let expected = match from {
            ReadFrom::After(head) => Some(head.version().next()),
            _ => None,
        };
        let holds = match from {
            ReadFrom::Event(version) => Some(Version::new(version.get().max(1))),
            _ => None,
        };
        Self {
            stream,
            is_backwards,
            expected,
            holds,
        }
    }

    fn check_start(&self, from: &ReadFrom) -> Result<(), EventStoreError> {
        match from {
            ReadFrom::After(head) if *head.stream() != self.stream => {
                Err(EventStoreError::Invalid {
                    reason: format!(
                        "a read of {} cannot start after a head of {}",
                        self.stream,
                        head.stream()
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    /// Checks that a commit joins the one before it.
    fn join(&mut self, commit: &Commit) -> Result<(), EventStoreError> {
        let (first, last) = (commit.first_version, commit.last_version());
        let (near, next) = if self.is_backwards {
            (last, before(first))
        } else {
            (first, last.next())
        };
        if let Some(version) = self.holds.take()
            && first > version
        {
            return Err(self.hole(version, before(version)));
        }
        match self.expected {
            // Whatever the direction, the error names what is sound below the hole.
            Some(version) if version != near && self.is_backwards => {
                Err(self.hole(version, last.min(before(version))))
            }
            Some(version) if version != near => Err(self.hole(version, before(version))),
            _ => {
                self.expected = Some(next);
                Ok(())
            }
        }
    }

    /// Checks the end of a read: a history that is read backwards ends with version 1.
    fn end(&self) -> Result<(), EventStoreError> {
        match self.expected {
            Some(version) if self.is_backwards && version > Version::NONE => {
                Err(self.hole(version, Version::NONE))
            }
            _ => Ok(()),
        }
    }

    /// Returns the start of the page after the one that ends with this commit.
    fn after(&self, last: &Commit) -> ReadFrom {
        if self.is_backwards {
            ReadFrom::NewestAtOrBelow(before(last.first_version))
        } else {
            ReadFrom::After(last.head())
        }
    }

    fn hole(&self, version: Version, after: Version) -> EventStoreError {
        EventStoreError::Corrupt {
            stream: self.stream.clone(),
            after,
            reason: format!("no commit joins the one next to it at version {version}"),
        }
    }
}

const fn before(version: Version) -> Version {
    Version::new(version.get().saturating_sub(1))
}
