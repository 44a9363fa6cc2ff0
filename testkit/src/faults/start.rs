//! Cursors that mean "from the beginning": where an empty first page says to go on.
//!
//! No adapter gives such a cursor, so the wrapper makes one of its own and takes it back. It names its list, since a
//! cursor of one list must be refused by another.
use super::Call;
use foldstream::ports::ScanCursor;

const MARK: &str = "\u{10ffff}faults: from the beginning of ";

pub(super) fn cursor(call: &Call<'_>) -> ScanCursor {
    ScanCursor::from_bytes(format!("{MARK}{call}").into_bytes())
}

/// What the inner adapter is to be asked with. A start of another list is left as it is, to be refused there.
pub(super) fn resolved(call: &Call<'_>, after: Option<ScanCursor>) -> Option<ScanCursor> {
    after.filter(|after| *after != cursor(call))
}

/// The same for ranges of rows, which go on by sort key.
pub(super) const SORT: &str = MARK;
