//! The cursors of scans and lists of the in-memory event store, as bytes that outlive the process.
use foldstream::{
    adapter::murmur2,
    ports::{EventStoreError, ScanCursor, Segment},
};

/// The scan or list to which a cursor belongs. Every other one refuses the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// A scan of the commits of a segment.
    Scan(Segment),
    /// A scan of the tails of a segment.
    Tails(Segment),
    /// The list of unpublished commits of a segment.
    Unpublished(Segment),
    /// The list of streams of an aggregate type, identified by a hash of its name.
    Streams(u32),
}

impl Walk {
    pub(super) fn streams(aggregate: &str) -> Self {
        Self::Streams(murmur2(aggregate.as_bytes()))
    }

    /// Returns the shards to visit, in order.
    pub(super) fn shards(self, all: u32) -> impl Iterator<Item = u32> {
        let (index, total) = match self {
            Self::Scan(segment) | Self::Tails(segment) | Self::Unpublished(segment) => {
                (segment.index(), segment.total())
            }
            Self::Streams(_) => (0, 1),
        };
        (0..all).filter(move |shard| shard % total == index)
    }

    fn tag(self) -> (u8, u32, u32) {
        match self {
            Self::Scan(segment) => (b'c', segment.index(), segment.total()),
            Self::Tails(segment) => (b't', segment.index(), segment.total()),
            Self::Unpublished(segment) => (b'u', segment.index(), segment.total()),
            Self::Streams(hash) => (b's', hash, 0),
        }
    }
}

/// The position of the next item of a scan or list.
///
/// Streams are numbered per shard in the order of their first commit, and commits per stream.
/// Appends do not change these numbers, so a position stays valid while other writers append.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) shard: u32,
    pub(super) stream: usize,
    pub(super) commit: usize,
}

const BYTES: usize = 29;

impl Position {
    pub(super) fn encode(self, walk: Walk) -> ScanCursor {
        let (tag, a, b) = walk.tag();
        let mut out = Vec::with_capacity(BYTES);
        out.push(tag);
        out.extend(a.to_be_bytes());
        out.extend(b.to_be_bytes());
        out.extend(self.shard.to_be_bytes());
        out.extend((self.stream as u64).to_be_bytes());
        out.extend((self.commit as u64).to_be_bytes());
        ScanCursor::from_bytes(out)
    }

    /// Decodes the position of a cursor. Returns the beginning of the scan or list if there is no
    /// cursor.
    ///
    /// # Errors
    /// If the cursor belongs to another scan or list.
    pub(super) fn decode(cursor: Option<&ScanCursor>, walk: Walk) -> Result<Self, EventStoreError> {
        let Some(cursor) = cursor else {
            return Ok(Self::default());
        };
        Self::read(cursor.as_bytes(), walk).ok_or_else(|| EventStoreError::Invalid {
            reason: format!("the cursor is none of this store's for {walk:?}"),
        })
    }

    fn read(bytes: &[u8], walk: Walk) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let (a, rest) = rest.split_first_chunk()?;
        let (b, rest) = rest.split_first_chunk()?;
        let (shard, rest) = rest.split_first_chunk()?;
        let (stream, rest) = rest.split_first_chunk()?;
        let (commit, rest) = rest.split_first_chunk()?;
        let found = (*tag, u32::from_be_bytes(*a), u32::from_be_bytes(*b));
        if found != walk.tag() || !rest.is_empty() {
            return None;
        }
        Some(Self {
            shard: u32::from_be_bytes(*shard),
            stream: usize::try_from(u64::from_be_bytes(*stream)).ok()?,
            commit: usize::try_from(u64::from_be_bytes(*commit)).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_another_walk_is_invalid() {
        let position = Position {
            shard: 3,
            stream: 70_000,
            commit: 5,
        };
        let mut halves = Segment::split(2);
        let (first, second) = (halves.next().unwrap(), halves.next().unwrap());
        let cursor = position.encode(Walk::Scan(first));
        let decode = |walk| Position::decode(Some(&cursor), walk);
        assert_eq!(decode(Walk::Scan(first)).unwrap(), position);
        for other in [
            Walk::Scan(second),
            Walk::Scan(Segment::ALL),
            Walk::Tails(first),
            Walk::Unpublished(first),
            Walk::streams("cart"),
        ] {
            assert!(decode(other).is_err(), "{other:?}");
        }
        for bytes in [&b""[..], b"c", &[0; BYTES], &[b'c'; BYTES + 1]] {
            let cursor = ScanCursor::from_bytes(bytes.to_vec());
            assert!(Position::decode(Some(&cursor), Walk::Scan(first)).is_err());
        }
    }
}
