//! The context in which a payload is sealed and opened.
use crate::{CommitId, EventHeader, EventId, Metadata, StreamId, Version, ports::StoredSnapshot};

/// The context of a payload: its kind, and the place to which it belongs.
///
/// The whole context is known before the payload is stored and again when it is read, and never
/// changes in between.
///
/// # Example
/// ```
/// use foldstream::{CommitId, EventHeader, PayloadContext, StreamId, Timestamp, Version};
///
/// let (commit, at) = (CommitId::from_u128(1), Timestamp::default());
/// let event = |index: u16| {
///     let version = Version::new(u64::from(index) + 1);
///     let cart = StreamId::new("cart", "7")?;
///     let header = EventHeader::new(commit.event_id(index), cart, version, "Added", at);
///     Ok::<_, foldstream::BoxError>(header)
/// };
/// let (first, second) = (event(0)?, event(1)?);
/// let context = PayloadContext::of_event(&first);
/// assert_eq!(context.event_id(), Some(first.event_id));
/// // A ciphertext that is bound to one event cannot be opened as another.
/// let elsewhere = PayloadContext::of_event(&second);
/// assert_ne!(context.associated_data(), elsewhere.associated_data());
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PayloadContext<'a> {
    /// The stream that holds the event or snapshot.
    pub stream: &'a StreamId,
    /// The commit that holds the event, or that ends where the snapshot was taken.
    pub commit_id: CommitId,
    /// The version of the event, or of the last event that the snapshot includes.
    pub version: Version,
    /// The kind of the payload, with the facts about it.
    pub kind: PayloadKind<'a>,
}

/// The kind of a payload: an event or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PayloadKind<'a> {
    /// The payload of one event.
    #[non_exhaustive]
    Event {
        /// The index of the event in its commit, from 0.
        index: u16,
        /// The stored name of the event, before any upcaster.
        name: &'a str,
        /// The schema version in which the payload is written.
        schema_version: u16,
        /// The metadata of the commit, for instance whose data it is. It is stored beside the
        /// payload, unencrypted.
        metadata: &'a Metadata,
    },
    /// The folded state of the whole stream up to the version. It may hold the data of everyone in
    /// the stream.
    #[non_exhaustive]
    Snapshot {
        /// The [`Snapshot::STATE_VERSION`](crate::Snapshot::STATE_VERSION) of the build that
        /// encoded the state.
        state_version: u32,
    },
}

impl<'a> PayloadContext<'a> {
    /// Returns the context of a recorded event.
    #[must_use]
    pub fn of_event(header: &'a EventHeader) -> Self {
        Self {
            stream: &header.stream,
            commit_id: header.event_id.commit_id(),
            version: header.version,
            kind: PayloadKind::Event {
                index: header.event_id.index(),
                name: &header.name,
                schema_version: header.schema_version,
                metadata: &header.metadata,
            },
        }
    }

    /// Returns the context of a stored snapshot.
    #[must_use]
    pub const fn of_snapshot(snapshot: &'a StoredSnapshot) -> Self {
        Self {
            stream: &snapshot.stream,
            commit_id: snapshot.commit_id,
            version: snapshot.version,
            kind: PayloadKind::Snapshot {
                state_version: snapshot.state_version,
            },
        }
    }

    /// Returns the event's id; `None` for a snapshot.
    pub const fn event_id(&self) -> Option<EventId> {
        match self.kind {
            PayloadKind::Event { index, .. } => Some(self.commit_id.event_id(index)),
            PayloadKind::Snapshot { .. } => None,
        }
    }

    /// Returns bytes that differ for every two places, to be authenticated with a ciphertext.
    ///
    /// A ciphertext that was moved to another event, stream or snapshot then cannot be opened
    /// there. The bytes cover everything in the context except the metadata. They are stable
    /// forever, since stored ciphertexts depend on them.
    #[must_use]
    pub fn associated_data(&self) -> Vec<u8> {
        fn put_text(out: &mut Vec<u8>, text: &str) {
            out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(96);
        put_text(&mut out, self.stream.as_str());
        out.extend_from_slice(&self.commit_id.as_u128().to_be_bytes());
        out.extend_from_slice(&self.version.get().to_be_bytes());
        match self.kind {
            PayloadKind::Event {
                index,
                name,
                schema_version,
                ..
            } => {
                out.push(b'e');
                out.extend_from_slice(&index.to_be_bytes());
                put_text(&mut out, name);
                out.extend_from_slice(&schema_version.to_be_bytes());
            }
            PayloadKind::Snapshot { state_version } => {
                out.push(b's');
                out.extend_from_slice(&state_version.to_be_bytes());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static METADATA: Metadata = Metadata::new();

    fn event(index: u16, name: &str, schema_version: u16) -> PayloadKind<'_> {
        PayloadKind::Event {
            index,
            name,
            schema_version,
            metadata: &METADATA,
        }
    }

    fn bound(stream: &str, commit: u128, version: u64, kind: PayloadKind<'_>) -> Vec<u8> {
        let stream = StreamId::parse(stream).unwrap();
        let context = PayloadContext {
            stream: &stream,
            commit_id: CommitId::from_u128(commit),
            version: Version::new(version),
            kind,
        };
        context.associated_data()
    }

    #[test]
    fn associated_data_never_changes() {
        let event = bound("a#1", 0x01020304, 7, event(2, "Xy", 3));
        let mut expected = [
            &[0, 0, 0, 0, 0, 0, 0, 3][..],
            b"a#1",
            &[0; 12],
            &[1, 2, 3, 4],
        ]
        .concat();
        expected.extend([0, 0, 0, 0, 0, 0, 0, 7]);
        let snapshot = [&expected[..], b"s", &[0, 0, 0, 9]].concat();
        expected.extend(
            [
                &b"e"[..],
                &[0, 2],
                &[0, 0, 0, 0, 0, 0, 0, 2],
                b"Xy",
                &[0, 3],
            ]
            .concat(),
        );
        assert_eq!(event, expected);
        let kind = PayloadKind::Snapshot { state_version: 9 };
        assert_eq!(bound("a#1", 0x01020304, 7, kind), snapshot);
    }

    #[test]
    fn associated_data_differs_for_every_two_places() {
        let places = [
            bound("a#1", 1, 1, event(0, "X", 1)),
            bound("a#2", 1, 1, event(0, "X", 1)),
            bound("a#1", 2, 1, event(0, "X", 1)),
            bound("a#1", 1, 2, event(0, "X", 1)),
            bound("a#1", 1, 1, event(1, "X", 1)),
            bound("a#1", 1, 1, event(0, "Y", 1)),
            bound("a#1", 1, 1, event(0, "X", 2)),
            bound("a#1", 1, 1, PayloadKind::Snapshot { state_version: 1 }),
            bound("a#1", 1, 1, PayloadKind::Snapshot { state_version: 2 }),
        ];
        for (n, one) in places.iter().enumerate() {
            assert!(!places[..n].contains(one), "{n}");
        }
    }
}
