//! The findings of a check or repair, and the errors that end it.
use super::{RestoreCursor, Watermark};
use crate::{
    StreamId, Version,
    ports::{ControlStoreError, EventStoreError, RowKey, SnapshotStoreError},
};
use std::fmt;

/// Something that does not fit the restored history. Its text is one line for a report.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Finding {
    /// The watermark is not of this history. It is lowered, or deleted if nothing of the stream is
    /// left.
    Watermark {
        /// The stream of the watermark.
        stream: StreamId,
        /// The watermark as it was found.
        from: Watermark,
        /// The watermark after the repair; `None` if it is deleted.
        to: Option<Watermark>,
    },
    /// The snapshot is not of this history, and is deleted.
    Snapshot {
        /// The stream of the snapshot.
        stream: StreamId,
        /// The version at which the snapshot was taken.
        version: Version,
        /// The version at which the stream ends.
        tail: Version,
    },
    /// The stream has reached its watermark with other commits, which contradicts
    /// [`WritesSinceRestore`](super::WritesSinceRestore). It is left as it is, and not published.
    Forked {
        /// The stream that has reached its watermark.
        stream: StreamId,
        /// The watermark as it is.
        watermark: Watermark,
        /// The version at which the stream ends.
        tail: Version,
    },
    /// The stream itself came back with a hole or in part, since a backup is not one instant for
    /// all items. It is left as it is: its items after the hole must be deleted by hand.
    Corrupt {
        /// The stream that cannot be read.
        stream: StreamId,
        /// A description of what was found.
        reason: String,
    },
}
impl Finding {
    /// Returns true if [`RestoreRepair::repair`](super::RestoreRepair::repair) repairs this
    /// finding.
    #[must_use]
    pub const fn is_repaired(&self) -> bool {
        !matches!(self, Self::Forked { .. } | Self::Corrupt { .. })
    }
}
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Watermark { stream, from, to } => {
                write!(f, "{stream}: watermark {}", from.version)?;
                match to {
                    Some(to) => write!(f, " comes down to {}", to.version),
                    None => {
                        f.write_str(" goes: nothing of the stream is left to be published before")
                    }
                }
            }
            Self::Snapshot {
                stream,
                version,
                tail,
            } => write!(
                f,
                "{stream}: snapshot at {version} goes, the stream ends at {tail}"
            ),
            Self::Corrupt { stream, reason } => write!(
                f,
                "{stream}: LEFT AS IT IS, it came back in part ({reason}): export it, delete its items from there on, and look again"
            ),
            Self::Forked {
                stream,
                watermark,
                tail,
            } => write!(
                f,
                "{stream}: LEFT AS IT IS, the stream ends at {tail} and its watermark {} is of another history: \
                 say since when it has been written to",
                watermark.version
            ),
        }
    }
}

/// The result of one page of streams.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RestorePage {
    /// The findings, in the order in which they were found.
    pub findings: Vec<Finding>,
    /// The number of streams that were visited. A listing by aggregate type takes a whole page of
    /// the store, so there may be more than requested.
    pub streams: u32,
    /// The cursor of the next page; `None` after the last page.
    pub next: Option<RestoreCursor>,
}

/// The error returned when a page could not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The events could not be read.
    #[error("the events cannot be read")]
    Events(#[from] EventStoreError),
    /// The watermarks could not be read or moved.
    #[error("the watermarks cannot be read or moved")]
    Watermarks(#[from] ControlStoreError),
    /// A snapshot could not be read or deleted.
    #[error("the snapshots cannot be read or deleted")]
    Snapshots(#[from] SnapshotStoreError),
    /// Another process is moving watermarks at the same time.
    #[error("the watermark of {stream} moved meanwhile: stop all publishers first")]
    InUse {
        /// The stream whose watermark was moved.
        stream: StreamId,
    },
    /// A row among the watermarks does not name a stream.
    #[error("row {key} names no stream: it is none of this library's")]
    Foreign {
        /// The key of the row.
        key: RowKey,
    },
}
impl RestoreError {
    /// Returns true if another call with the same cursor may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Events(error) => error.is_transient(),
            Self::Watermarks(error) => error.is_transient(),
            Self::Snapshots(error) => error.is_transient(),
            Self::InUse { .. } | Self::Foreign { .. } => false,
        }
    }
}
