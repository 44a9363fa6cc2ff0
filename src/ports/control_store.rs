//! The `ControlStore` port: small mutable rows under compare-and-set.
use super::RefusedKind;
use crate::{BoxError, Timestamp};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt, fmt::Debug, num::NonZeroU32, time::Duration};

/// The key of a row. The rows of a partition are ordered by `sort`, byte by byte.
///
/// # Example
/// ```
/// use foldstream::ports::RowKey;
///
/// let key = RowKey::new("lease/poller", "7");
/// assert!(key.validate().is_ok());
/// assert_eq!(key.to_string(), "lease/poller/7");
/// assert!(RowKey::new("lease/poller", "").validate().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct RowKey {
    /// The partition, which groups rows: 1 to [`RowKey::MAX_PARTITION`] bytes.
    pub partition: String,
    /// The sort key, which orders the rows of a partition: 1 to [`RowKey::MAX_SORT`] bytes.
    pub sort: String,
}
impl RowKey {
    /// The largest size of a partition in bytes. DynamoDB takes 2,048.
    pub const MAX_PARTITION: usize = 1024;
    /// The largest size of a sort key in bytes. DynamoDB takes 1,024.
    pub const MAX_SORT: usize = 900;

    /// Creates the key of a row. [`validate`](Self::validate) checks its lengths.
    #[must_use]
    pub fn new(partition: impl Into<String>, sort: impl Into<String>) -> Self {
        Self {
            partition: partition.into(),
            sort: sort.into(),
        }
    }
    /// Checks the lengths that every adapter must enforce before any call to its backend.
    ///
    /// # Errors
    /// [`ControlStoreError::Invalid`] if the partition or the sort key is empty or too long.
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

/// The id of one write of one row: 128 random bits that the writer chooses and never uses twice.
///
/// A writer that did not receive the answer to its write reads the row to find out whether it was
/// applied. A row that was deleted and created again does not look unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revision(u128);
impl Revision {
    /// Creates a revision from its bits. [`IdSource::revision`](crate::IdSource::revision) makes
    /// fresh ones.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }
    /// Returns the bits of the revision.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

/// A row of a control store.
///
/// # Example
/// ```
/// use foldstream::ports::{Revision, Row, RowKey};
/// use foldstream::Timestamp;
///
/// let key = RowKey::new("lease/poller", "7");
/// let row = Row::new(key, "node-1", Revision::from_u128(1)).with_expiry(Some(Timestamp::MAX));
/// assert!(row.validate().is_ok());
/// let large = vec![0; Row::MAX_VALUE + 1];
/// assert!(Row::new(row.key, large, Revision::from_u128(2)).validate().is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The key of the row.
    pub key: RowKey,
    /// The id of the write that stored the row.
    pub revision: Revision,
    /// The time, by the adapter's clock, from which the row is absent and may be overwritten.
    /// `None`, the default, is never. A backend may keep whole seconds only, rounded up.
    pub expires_at: Option<Timestamp>,
    /// The value: at most [`Row::MAX_VALUE`] bytes, and possibly none.
    pub value: Bytes,
}
impl Row {
    /// The largest size of a value in bytes: 256 KiB. A DynamoDB item, which holds the key too,
    /// takes 400 KB.
    pub const MAX_VALUE: usize = 256 * 1024;

    /// Creates a row without expiry that is written under this revision.
    #[must_use]
    pub fn new(key: RowKey, value: impl Into<Bytes>, revision: Revision) -> Self {
        Self {
            key,
            revision,
            expires_at: None,
            value: value.into(),
        }
    }
    /// Sets the time from which the row is absent; `None` is never.
    #[must_use]
    pub const fn with_expiry(mut self, at: Option<Timestamp>) -> Self {
        self.expires_at = at;
        self
    }
    /// Checks the sizes that every adapter must enforce before any call to its backend.
    ///
    /// # Errors
    /// - [`ControlStoreError::Invalid`] if the partition or the sort key is empty or too long.
    /// - [`ControlStoreError::TooLarge`] if the value has more than [`Row::MAX_VALUE`] bytes.
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

/// The condition on the stored row under which a put is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The put is applied always.
    Any,
    /// The put is applied if there is no row, or if the row is past its expiry.
    Absent,
    /// The put is applied if the row was stored by exactly this write, and is not past its expiry.
    Revision(Revision),
}

/// The condition on the stored row under which a delete is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteExpect {
    /// The delete is applied always, even where there is no row.
    Any,
    /// The delete is applied if the row was stored by exactly this write, and is not past its
    /// expiry.
    Revision(Revision),
}

/// The outcome of a put.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum PutOutcome {
    /// The row was written, now or by an earlier attempt with the same revision.
    Written,
    /// The row was not written. The conflict holds the stored row, if there is one.
    Conflict(Option<Row>),
}

/// The outcome of a delete.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum DeleteOutcome {
    /// The row does not exist now.
    Deleted,
    /// The row was not deleted. The conflict holds the stored row. `None` says that there was no
    /// row, which is success for a caller that wants the row to be absent.
    Conflict(Option<Row>),
}

/// The bounds of a range over sort keys, compared byte by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SortBounds {
    /// All rows of the partition.
    #[default]
    All,
    /// The rows whose sort keys start with this text. An empty text selects all rows.
    Prefix(String),
    /// The rows from the first sort key to the last, both included.
    Between(String, String),
}

/// The order in which a range returns its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// The smallest sort key first.
    #[default]
    Ascending,
    /// The largest sort key first.
    Descending,
}

/// A request for a range of the rows of one partition.
///
/// # Example
/// ```
/// use foldstream::ports::{Direction, RangeQuery, SortBounds};
/// use std::num::NonZeroU32;
///
/// let newest = RangeQuery::new("dead/billing")
///     .with_bounds(SortBounds::Prefix("orders/".into()))
///     .with_direction(Direction::Descending)
///     .with_limit(NonZeroU32::MIN);
/// assert_eq!((newest.limit.get(), newest.after), (1, None));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RangeQuery {
    /// The partition that holds the rows.
    pub partition: String,
    /// The bounds of the range; all rows by default.
    pub bounds: SortBounds,
    /// The sort key after which the page starts, in the direction of the query. `None`, the
    /// default, starts at the beginning of the range.
    pub after: Option<String>,
    /// The largest number of rows per page; 1,000 by default.
    pub limit: NonZeroU32,
    /// The order of the rows; ascending by default.
    pub direction: Direction,
}
impl RangeQuery {
    /// Creates a query for all rows of a partition, ascending, in pages of 1,000.
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
    /// Sets the bounds of the range.
    #[must_use]
    pub fn with_bounds(mut self, bounds: SortBounds) -> Self {
        self.bounds = bounds;
        self
    }
    /// Sets the sort key after which the page starts: [`RowPage::next`] of the page before.
    #[must_use]
    pub fn with_after(mut self, sort: Option<String>) -> Self {
        self.after = sort;
        self
    }
    /// Sets the largest number of rows per page.
    #[must_use]
    pub const fn with_limit(mut self, rows: NonZeroU32) -> Self {
        self.limit = rows;
        self
    }
    /// Sets the order of the rows.
    #[must_use]
    pub const fn with_direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }
}

/// A page of the rows of a range, and the start of the next page.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RowPage {
    /// The rows of the page. It may be empty before the end of the range.
    pub rows: Vec<Row>,
    /// The value for [`RangeQuery::after`] of the next query; `None` on the last page.
    pub next: Option<String>,
}
impl RowPage {
    /// Creates a page of rows.
    #[must_use]
    pub const fn new(rows: Vec<Row>, next: Option<String>) -> Self {
        Self { rows, next }
    }
}

/// The error returned by a [`ControlStore`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlStoreError {
    /// The backend rejected the request because there are too many. Nothing was stored.
    #[error("the control store throttles")]
    Throttled {
        /// The shortest pause before a retry, if the backend named one.
        retry_after: Option<Duration>,
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The backend is not reachable, busy, or did not answer in time. A write may have been
    /// applied: repeat it with the same revision.
    #[error("the control store is unavailable")]
    Unavailable {
        /// The answer of the backend.
        #[source]
        source: BoxError,
    },
    /// The value is over its limit. The adapter checks this before any call to the backend.
    #[error("row {key} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The key of the refused row.
        key: RowKey,
        /// The size of the value in bytes.
        bytes: usize,
        /// The limit of that size in bytes.
        limit: usize,
    },
    /// The request is malformed: a part of a key is empty or too long.
    #[error("invalid request: {reason}")]
    Invalid {
        /// A description of the mistake.
        reason: String,
    },
    /// The stored row cannot be read.
    #[error("row {key} is corrupt: {reason}")]
    Corrupt {
        /// The key of the unreadable row.
        key: RowKey,
        /// A description of what was found.
        reason: String,
    },
    /// The backend refuses until something is changed: table, credentials or permission.
    #[error("the control store refuses: {reason}")]
    Refused {
        /// The thing that must be changed.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The answer of the backend.
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

/// A store of small rows that are read strongly consistently and written under conditions.
///
/// Leases, watermarks, breakers, dead letters and checkpoints are logic over these methods. Every
/// method may be called concurrently.
///
/// # Contract
/// - Every later `get`, `get_many` and `range` returns what was written, byte for byte, with its
///   revision and expiry.
/// - `put` with `Absent` writes only where there is no row, with `Revision` only over exactly that
///   write, with `Any` always.
/// - A failed condition changes nothing, and the answer holds the stored row.
/// - A put whose revision is already stored in the row is `Written`, so that a write whose answer
///   was lost can be repeated.
/// - A row that was deleted and created again does not match its old revision.
/// - Of several writers with the same expectation exactly one wins.
/// - `delete` with `Revision` deletes only exactly that write. Where there is no row, the answer is
///   `Conflict(None)`. With `Any` the answer is always `Deleted`.
/// - A row past its expiry, by the adapter's clock, is absent: it is not returned, does not match a
///   revision, and is overwritten by `Absent`.
/// - `get_many` answers in the order of the keys, with `None` for absent rows. It takes any number
///   of keys, and the same key more than once.
/// - `range` returns the rows of one partition within its bounds, ordered by sort key in its
///   direction, at most `limit` per page. A caller that follows `next` until `None` gets each row
///   once. An empty page is not the end.
/// - Keys and values over their limits are refused before any call to the backend. A value of
///   exactly [`Row::MAX_VALUE`] is accepted.
///
/// # Example
/// The conditions of `put`, in a store for one process that ignores expiry:
/// ```
/// # use async_trait::async_trait;
/// use foldstream::ports::*;
/// use std::{collections::BTreeMap, sync::Mutex};
///
/// #[derive(Debug, Default)]
/// struct Rows(Mutex<BTreeMap<RowKey, Row>>);
///
/// #[async_trait]
/// impl ControlStore for Rows {
///     async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
///         row.validate()?;
///         let mut rows = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         let stored = rows.get(&row.key);
///         let is_repeat = stored.is_some_and(|stored| stored.revision == row.revision);
///         let is_expected = match expect {
///             Expect::Any => true,
///             Expect::Absent => stored.is_none(),
///             Expect::Revision(revision) => stored.is_some_and(|stored| stored.revision == revision),
///         };
///         if is_repeat {
///             return Ok(PutOutcome::Written);
///         }
///         if !is_expected {
///             return Ok(PutOutcome::Conflict(stored.cloned()));
///         }
///         rows.insert(row.key.clone(), row.clone());
///         Ok(PutOutcome::Written)
///     }
///     async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
///         key.validate()?;
///         let rows = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
///         Ok(rows.get(key).cloned())
///     }
///     // `get_many`, `delete` and `range` follow the same pattern.
/// #     async fn get_many(&self, _: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
/// #         Ok(Vec::new())
/// #     }
/// #     async fn delete(
/// #         &self,
/// #         _: &RowKey,
/// #         _: DeleteExpect,
/// #     ) -> Result<DeleteOutcome, ControlStoreError> {
/// #         Ok(DeleteOutcome::Deleted)
/// #     }
/// #     async fn range(&self, _: &RangeQuery) -> Result<RowPage, ControlStoreError> {
/// #         Ok(RowPage::new(Vec::new(), None))
/// #     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let store = Rows::default();
/// let row = |revision| Row::new(RowKey::new("p", "s"), "", Revision::from_u128(revision));
/// assert_eq!(store.put(&row(1), Expect::Absent).await?, PutOutcome::Written);
/// assert_eq!(store.put(&row(1), Expect::Absent).await?, PutOutcome::Written);
/// assert_eq!(store.put(&row(2), Expect::Absent).await?, PutOutcome::Conflict(Some(row(1))));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a control store",
    label = "not a `ControlStore`",
    note = "use an adapter such as `foldstream_dynamodb::DynamoDbControlStore`, by value or in an `Arc`, or implement `foldstream::ports::ControlStore`"
)]
pub trait ControlStore: Debug + Send + Sync + 'static {
    /// Returns the row as it was last written, or `None` if it is absent.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the key is invalid, if the row is corrupt, or if the backend
    /// refuses or fails.
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError>;

    /// Returns several rows, in the order of their keys. They are not read at one instant.
    ///
    /// # Errors
    /// [`ControlStoreError`] if a key is invalid, if a row is corrupt, or if the backend refuses or
    /// fails.
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError>;

    /// Writes the row atomically if the stored row is as expected.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the row is invalid or too large, or if the backend refuses or
    /// fails. After `Unavailable` the row may have been written.
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError>;

    /// Deletes the row atomically if the stored row is as expected.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the key is invalid, or if the backend refuses or fails. After
    /// `Unavailable` the row may have been deleted.
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError>;

    /// Returns one page of a range.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the query is invalid, if a row is corrupt, or if the backend
    /// refuses or fails.
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError>;
}
