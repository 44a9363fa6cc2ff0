//! Scans and listings of an event store: segments, cursors and pages.
use super::{Commit, CommitKey};
use crate::{StreamHead, StreamId};
use bytes::Bytes;

/// One of `total` disjoint parts of a scan.
///
/// Every commit is in exactly one segment. The commits of one stream may be in several segments.
///
/// # Example
/// ```
/// use foldstream::ports::Segment;
///
/// // Four workers scan the store in parallel, each a segment of its own.
/// let segments: Vec<Segment> = Segment::split(4).collect();
/// assert_eq!((segments[3].index(), segments[3].total()), (3, 4));
/// assert_eq!(Segment::split(1).next(), Some(Segment::ALL));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    index: u32,
    total: u32,
}
impl Segment {
    /// The only segment of a scan that is not split: the whole store.
    pub const ALL: Self = Self { index: 0, total: 1 };

    /// Returns all segments of a scan in `total` parts; 0 counts as 1.
    pub fn split(total: u32) -> impl Iterator<Item = Self> {
        let total = total.max(1);
        (0..total).map(move |index| Self { index, total })
    }
    /// Returns the number of this segment, from 0.
    pub const fn index(self) -> u32 {
        self.index
    }
    /// Returns the number of segments in the scan.
    pub const fn total(self) -> u32 {
        self.total
    }
}

/// The position at which a scan or a listing continues.
///
/// A cursor continues only what it was returned by: the same method of the same store, with the
/// same segment and [`ScanScope`] or the same aggregate type. Anywhere else it is
/// [`Invalid`](super::EventStoreError::Invalid). The size of the page may change. A cursor may be
/// stored, used by another process, and used again.
///
/// An adapter makes it a place in the data, such as the last key that it has looked at, and puts
/// the name of the listing into it. A number of rows to skip would pass over commits, or repeat
/// them, when others append or clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanCursor(Bytes);
impl ScanCursor {
    /// Creates a cursor from stored bytes.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }
    /// Returns the bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The parts of commits that a scan returns.
///
/// Later versions of this crate may add variants. An adapter answers one that it does not know with
/// [`Refused`](super::EventStoreError::Refused) and
/// [`RefusedKind::Unsupported`](super::RefusedKind::Unsupported).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScanScope {
    /// Whole commits, with their events.
    Commits,
    /// Only the heads at which commits end. They are cheaper to transfer, and enough to compare the
    /// tails of streams with watermarks.
    Tails,
}

/// The content of one page of a scan.
#[derive(Clone, Debug, PartialEq)]
pub enum ScanItems {
    /// The answer to [`ScanScope::Commits`]. The commits of one stream are in version order.
    Commits(Vec<Commit>),
    /// The answer to [`ScanScope::Tails`]. A stream may appear again with a higher version: the
    /// last head returned for a stream in a segment is its tail there, and the highest of all
    /// segments is the tail of the stream.
    Tails(Vec<StreamHead>),
}

/// A page of a scan, and the cursor of the next page.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ScanPage {
    /// The content of the page. It may be empty before the end of the scan.
    pub items: ScanItems,
    /// The start of the next page; `None` on the last page.
    pub next: Option<ScanCursor>,
    /// The cost of the page in read units of the backend; `None` if the backend does not report
    /// one.
    pub read_units: Option<f64>,
}
impl ScanPage {
    /// Creates a page without a cost.
    #[must_use]
    pub const fn new(items: ScanItems, next: Option<ScanCursor>) -> Self {
        Self {
            items,
            next,
            read_units: None,
        }
    }
    /// Sets the cost of the page in read units of the backend.
    #[must_use]
    pub const fn with_read_units(mut self, units: Option<f64>) -> Self {
        self.read_units = units;
        self
    }
}

/// A page of the streams of one aggregate type, and the cursor of the next page.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StreamPage {
    /// The streams of the page. It may be empty before the end of the listing.
    pub streams: Vec<StreamId>,
    /// The start of the next page; `None` on the last page.
    pub next: Option<ScanCursor>,
}
impl StreamPage {
    /// Creates a page of streams.
    #[must_use]
    pub const fn new(streams: Vec<StreamId>, next: Option<ScanCursor>) -> Self {
        Self { streams, next }
    }
}

/// A page of commits that are not yet cleared as published, and the cursor of the next page.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct UnpublishedPage {
    /// The keys of the commits. The page may be empty before the end of the listing.
    pub keys: Vec<CommitKey>,
    /// The start of the next page; `None` on the last page.
    pub next: Option<ScanCursor>,
    /// The start of the next page without what is left of the stream at which this page ends. A
    /// page with keys that is not the last one has it. By default `None`.
    pub next_stream: Option<ScanCursor>,
}
impl UnpublishedPage {
    /// Creates a page of commit keys.
    #[must_use]
    pub const fn new(keys: Vec<CommitKey>, next: Option<ScanCursor>) -> Self {
        Self {
            keys,
            next,
            next_stream: None,
        }
    }
    /// Sets the start of the next page without what is left of the last stream.
    #[must_use]
    pub fn with_next_stream(mut self, cursor: Option<ScanCursor>) -> Self {
        self.next_stream = cursor;
        self
    }
}
