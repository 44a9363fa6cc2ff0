//! Where a payload belongs.
use crate::{CommitId, EventHeader, EventId, Metadata, StreamId, Version, ports::StoredSnapshot};

/// The context of a payload: its kind, and the place that it belongs to.
///
/// All of it is known before the payload is stored and again when it is read, and never changes in between.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PayloadContext<'a> {
    /// The stream.
    pub stream: &'a StreamId,
    /// The commit that holds the event, or that ends where the snapshot was taken.
    pub commit_id: CommitId,
    /// The event's version, or the last one folded into the snapshot.
    pub version: Version,
    /// An event or a snapshot.
    pub kind: PayloadKind<'a>,
}

/// An event or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PayloadKind<'a> {
    /// One event.
    #[non_exhaustive]
    Event {
        /// Its place in the commit, from 0.
        index: u16,
        /// Its stored name; upcasters come later.
        name: &'a str,
        /// Schema version that it is written in.
        schema_version: u16,
        /// The commit's metadata: for instance whose data it is. Stored beside the payload, unencrypted.
        metadata: &'a Metadata,
    },
    /// The folded state of the whole stream up to the version: it may hold the data of everybody who is in the stream.
    #[non_exhaustive]
    Snapshot {
        /// [`Snapshot::STATE_VERSION`](crate::Snapshot::STATE_VERSION) of the writer.
        state_version: u32,
    },
}

impl<'a> PayloadContext<'a> {
    /// The context of a recorded event.
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

    /// The context of a snapshot.
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

    /// The event's id; a snapshot has none.
    pub const fn event_id(&self) -> Option<EventId> {
        match self.kind {
            PayloadKind::Event { index, .. } => Some(self.commit_id.event_id(index)),
            PayloadKind::Snapshot { .. } => None,
        }
    }

    /// Bytes that differ for every two places, to be authenticated with a ciphertext: one that was moved to another
    /// event, stream or snapshot then cannot be read there. Stable forever, since stored ciphertexts depend on it.
    ///
    /// Holds everything in the context but the metadata.
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
