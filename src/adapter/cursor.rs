//! Cursors that are the last key of a page, for stores whose rows are ordered by commit key.
use crate::{
    Version,
    ports::{CommitKey, EventStoreError, ScanCursor},
};

/// Creates a cursor that continues a walk over commits after this key.
///
/// The cursor is a place in the data, so it stays valid for weeks, in other processes, and while
/// others append. `walk` names the walk and everything that decides which rows it returns, such as
/// its segment. A cursor of another walk is then refused.
///
/// # Example
/// ```
/// use foldstream::{StreamId, Version, adapter::{read_cursor, write_cursor}, ports::CommitKey};
///
/// let last = CommitKey::new(StreamId::new("cart", "7")?, Version::new(4));
/// let cursor = write_cursor("scan 0/1", &last);
/// assert_eq!(read_cursor("scan 0/1", &cursor)?, last);
/// assert!(read_cursor("scan 0/2", &cursor).is_err());
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[must_use]
pub fn write_cursor(walk: &str, last: &CommitKey) -> ScanCursor {
    ScanCursor::from_bytes(format!("{walk}@{} {}", last.first_version, last.stream))
}

/// Returns the key after which a walk continues, from a cursor of [`write_cursor`].
///
/// # Errors
/// [`Invalid`](EventStoreError::Invalid) if the cursor is one of another walk or of another store.
pub fn read_cursor(walk: &str, cursor: &ScanCursor) -> Result<CommitKey, EventStoreError> {
    let read = || {
        let text = std::str::from_utf8(cursor.as_bytes()).ok()?;
        let key = text.strip_prefix(walk)?.strip_prefix('@')?;
        let (version, stream) = key.split_once(' ')?;
        let version = Version::new(version.parse().ok()?);
        Some(CommitKey::new(stream.parse().ok()?, version))
    };
    read().ok_or_else(|| EventStoreError::Invalid {
        reason: format!("the cursor is not one of the walk {walk:?}"),
    })
}
