//! `ControlStore`: small mutable rows under compare-and-set.
use super::RefusedKind;
use crate::{BoxError, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt, fmt::Debug, num::NonZeroU32, time::Duration};

/// The key of a row. The rows of a partition are ordered by `sort`, bytewise.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct RowKey {
    /// Groups rows; 1 to [`RowKey::MAX_PARTITION`] bytes.
    pub partition: String,
    /// Orders them; 1 to [`RowKey::MAX_SORT`] bytes.
    pub sort: String,
}
impl RowKey {
    /// Bytes of a partition.
    pub const MAX_PARTITION: usize = 1024;
    /// Bytes of a sort key (DynamoDB's end at 1,024).
    pub const MAX_SORT: usize = 900;

    /// A key.
    #[must_use]
    pub fn new(partition: impl Into<String>, sort: impl Into<String>) -> Self {
        Self {
            partition: partition.into(),
            sort: sort.into(),
        }
    }
    /// Checks what every adapter must refuse before any call.
    ///
    /// # Errors
    /// [`ControlStoreError::Invalid`] for an empty or too long part.
    pub fn validate(&self) -> Result<(), ControlStoreError> {
        for (what, len, max) in [
            ("partition", self.partition.len(), Self::MAX_PARTITION),
            ("sort key", self.sort.len(), Self::MAX_SORT),
        ] {
            if len == 0 || len > max {
                return Err(ControlStoreError::Invalid {
                    reason: format!("a {what} has 1 to {max} bytes, this one has {len}"),
                });
            }
        }
        Ok(())
    }
}
impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.partition, self.sort)
    }
}

/// Names one write of one row: 128 random bits, chosen by the writer and never used twice.
///
/// So a lost answer can be settled by reading, and a row that was deleted and made again does not look unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revision(u128);
impl Revision {
    /// From its bits. Code makes fresh ones by [`IdSource::revision`](crate::IdSource::revision).
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }
    /// Its bits.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// Its key.
    pub key: RowKey,
    /// Names this write of it.
    pub revision: Revision,
    /// From this time on, by the adapter's clock, it reads as absent and may be overwritten. Backends may keep whole
    /// seconds only, then rounded up.
    pub expires_at: Option<Timestamp>,
    /// At most [`Row::MAX_VALUE`] bytes.
    pub value: Bytes,
}
impl Row {
    /// Bytes of a value: 256 KiB.
    pub const MAX_VALUE: usize = 256 * 1024;

    /// A row without expiry, under a fresh revision.
    #[must_use]
    pub fn new(key: RowKey, value: impl Into<Bytes>, revision: Revision) -> Self {
        Self {
            key,
            revision,
            expires_at: None,
            value: value.into(),
        }
    }
    /// Lets the row end.
    #[must_use]
    pub const fn with_expiry(mut self, at: Option<Timestamp>) -> Self {
        self.expires_at = at;
        self
    }
    /// Checks what every adapter must refuse before any call.
    ///
    /// # Errors
    /// [`ControlStoreError::Invalid`] or [`ControlStoreError::TooLarge`].
    pub fn validate(&self) -> Result<(), ControlStoreError> {
        self.key.validate()?;
        if self.value.len() > Self::MAX_VALUE {
            return Err(ControlStoreError::TooLarge {
                key: self.key.clone(),
                bytes: self.value.len(),
                limit: Self::MAX_VALUE,
            });
        }
        Ok(())
    }
}

/// The condition on the row before a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// No row, or one that is past its expiry.
    Absent,
    /// Exactly this write, not past its expiry.
    Revision(Revision),
}

/// The condition on the row before a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteExpect {
    /// Anything, also nothing.
    Any,
    /// Exactly this write, not past its expiry.
    Revision(Revision),
}

/// The outcome of a put.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum PutOutcome {
    /// Written, now or by an earlier attempt with the same revision.
    Written,
    /// Not written; the row as it is, if there is one.
    Conflict(Option<Row>),
}

/// The outcome of a delete.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum DeleteOutcome {
    /// There is no row now.
    Deleted,
    /// Not deleted; the row as it is. `None`: it was gone already, which a caller that wants absence takes as done.
    Conflict(Option<Row>),
}

/// Bounds of a range over sort keys, bytewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SortBounds {
    /// The whole partition.
    #[default]
    All,
    /// Those that start so; empty is all.
    Prefix(String),
    /// From the first to the last, both included.
    Between(String, String),
}

/// Order of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Smallest sort key first.
    #[default]
    Ascending,
    /// Largest sort key first.
    Descending,
}

/// A range of one partition.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RangeQuery {
    /// The partition.
    pub partition: String,
    /// The range of its rows.
    pub bounds: SortBounds,
    /// The sort key after which the page starts, in the direction of the query.
    pub after: Option<String>,
    /// Rows a page at the most.
    pub limit: NonZeroU32,
    /// In which order.
    pub direction: Direction,
}
impl RangeQuery {
    /// All rows of a partition, ascending, 1,000 a page.
    #[must_use]
    pub fn new(partition: impl Into<String>) -> Self {
        const PAGE: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
        Self {
            partition: partition.into(),
            bounds: SortBounds::All,
            after: None,
            limit: PAGE,
            direction: Direction::Ascending,
        }
    }
    /// Only some rows.
    #[must_use]
    pub fn with_bounds(mut self, bounds: SortBounds) -> Self {
        self.bounds = bounds;
        self
    }
    /// Starts the page after a row: [`RowPage::next`].
    #[must_use]
    pub fn with_after(mut self, sort: Option<String>) -> Self {
        self.after = sort;
        self
    }
    /// Another page size.
    #[must_use]
    pub const fn with_limit(mut self, rows: NonZeroU32) -> Self {
        self.limit = rows;
        self
    }
    /// Another order.
    #[must_use]
    pub const fn with_direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }
}

/// Rows of a range, and where to go on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RowPage {
    /// May be empty before the end.
    pub rows: Vec<Row>,
    /// The `after` of the next query; `None` on the last page.
    pub next: Option<String>,
}
impl RowPage {
    /// One page.
    #[must_use]
    pub const fn new(rows: Vec<Row>, next: Option<String>) -> Self {
        Self { rows, next }
    }
}

/// The error returned by a [`ControlStore`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlStoreError {
    /// Too many requests; wait first.
    #[error("the control store throttles")]
    Throttled {
        /// The least pause, if the backend named one.
        retry_after: Option<Duration>,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// Not reachable, timed out, or busy. A write may have been applied: repeat it with the same revision.
    #[error("the control store is unavailable")]
    Unavailable {
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
    /// A value over the limit, found before any call.
    #[error("row {key} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The key of the row.
        key: RowKey,
        /// Bytes of the value.
        bytes: usize,
        /// The most it takes.
        limit: usize,
    },
    /// A key that is empty or too long.
    #[error("invalid request: {reason}")]
    Invalid {
        /// A description of the mistake.
        reason: String,
    },
    /// A stored row cannot be read.
    #[error("row {key} is corrupt: {reason}")]
    Corrupt {
        /// The key of the row.
        key: RowKey,
        /// A description of what was found.
        reason: String,
    },
    /// Something must be changed first: table, credentials, permission.
    #[error("the control store refuses: {reason}")]
    Refused {
        /// The kind of refusal: what must change.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The backend's answer.
        #[source]
        source: BoxError,
    },
}
impl ControlStoreError {
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
}

/// Strongly consistent rows. Leases, watermarks, breakers, dead letters and checkpoints are logic over these methods.
///
/// # Contract
/// - What was written is what every later `get`, `get_many` and `range` returns, byte for byte, with its revision and expiry.
/// - `put` with `Absent` writes only where there is no row, with `Revision` only over exactly that write, with `Any` always.
/// - A failed condition changes nothing and returns the row as it is.
/// - A put whose revision is already the row's is `Written`: repeating a lost write is harmless.
/// - A row deleted and made again does not match its old revision.
/// - Of several writers that expect the same exactly one wins.
/// - `delete` with `Revision` deletes only exactly that write; where nothing is, it is `Conflict(None)`. With `Any` it is always `Deleted`.
/// - A row past its expiry, by the adapter's clock, is absent: not returned, not matched by a revision, overwritten by `Absent`.
/// - `get_many` answers in the order of the keys, `None` for absent rows, any number of keys, also the same key twice.
/// - `range` returns the rows of one partition within its bounds, ordered by sort key bytewise in its direction, at most
///   `limit` a page; following `next` until `None` returns each once. An empty page is not the end.
/// - Keys and values over their limits are refused before any call; a value of exactly [`Row::MAX_VALUE`] is taken.
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a control store",
    label = "not a `ControlStore`",
    note = "use an adapter such as `foldstream_dynamodb::DynamoDbControlStore`, by value or in an `Arc`, or implement `foldstream::ports::ControlStore`"
)]
pub trait ControlStore: Debug + Send + Sync + 'static {
    /// The row as last written.
    ///
    /// # Errors
    /// [`ControlStoreError`].
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError>;

    /// Several rows, not as of one instant.
    ///
    /// # Errors
    /// [`ControlStoreError`].
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError>;

    /// Writes the row if what is there is as expected. Atomic.
    ///
    /// # Errors
    /// [`ControlStoreError`].
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError>;

    /// Deletes the row if it is as expected. Atomic.
    ///
    /// # Errors
    /// [`ControlStoreError`].
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError>;

    /// One page of a range.
    ///
    /// # Errors
    /// [`ControlStoreError`].
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError>;
}
