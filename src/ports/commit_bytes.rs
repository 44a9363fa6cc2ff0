//! A commit as bytes, for adapters that keep a commit as one value.
//!
//! # Format 1
//! ```text
//! 0x01
//! [commit id, stream, first version, recorded at, metadata, events]
//! 0x0A
//! payload of the first event, payload of the second event, ...
//! ```
//! The list is JSON text without line breaks. The payloads are as they were given, without
//! separators.
//! - `recorded at` is in microseconds since 1970.
//! - `metadata` is `null` if there is none, else
//!   `[command id, correlation id, causation id, actor, traceparent, user]`. Each of the first five
//!   is a text or `null`, and `user` is a list of `[key, value]`.
//! - each of `events` is `[name, schema version, bytes of the payload, codec]`, with `null` as the
//!   codec of JSON.
//!
//! The parts that a person looks for are text, and payloads need neither base64 nor escapes.
//!
//! # Which changes need another format?
//! All of them. A build reads every format up to the newest that it knows, and refuses what is of a
//! later format or has more fields than its format. A field that an older build passed over would
//! be lost when that build copies a commit.
use super::{Append, Commit, CommitKey, EventData, EventStoreError};
use crate::{CommitId, Metadata, StreamId, Timestamp, Version};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The number of the format that this build writes.
const FORMAT: u8 = 1;
const END_OF_HEADER: u8 = b'\n';

/// The error returned by [`Commit::from_bytes`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitBytesError {
    /// The value has no bytes at all.
    #[error(
        "there are no bytes: check that the value was read from the column or file that the commit was written to"
    )]
    Empty,
    /// The format is none that this build knows.
    #[error(
        "format {found} is not known to this build, which reads format {FORMAT}: deploy the build that wrote the commit or a \
         later one, or check that the bytes are those of a commit"
    )]
    UnknownFormat {
        /// The first byte.
        found: u8,
    },
    /// The value ends before the commit does.
    #[error(
        "the commit was cut off after {found} bytes{}: check the size limit of the value and restore the value from a backup",
        needed.map_or_else(String::new, |n| format!(" of {n}"))
    )]
    Truncated {
        /// The bytes that are there.
        found: usize,
        /// The bytes of the whole commit; `None` if the cut is before the place that tells.
        needed: Option<usize>,
    },
    /// More bytes follow after the last payload.
    #[error("{extra} bytes follow after the commit: store each commit as a value of its own")]
    TrailingBytes {
        /// The number of these bytes.
        extra: usize,
    },
    /// The bytes are not what [`Commit::to_bytes`] writes.
    #[error("the commit is damaged: {reason}; restore the value from a backup")]
    Damaged {
        /// A description of the part that cannot be read, without its content.
        reason: String,
    },
}

impl CommitBytesError {
    /// Returns the error that an [`EventStore`](super::EventStore) reports for a commit that is
    /// kept at `key`.
    ///
    /// # Example
    /// ```
    /// use foldstream::{StreamId, Version, ports::{Commit, CommitKey, EventStoreError}};
    /// let key = CommitKey::new(StreamId::new("cart", "a")?, Version::new(7));
    /// let read = |row: Vec<u8>| Commit::from_bytes(row).map_err(|error| error.at(&key));
    /// assert!(matches!(read(vec![9]), Err(EventStoreError::UnknownFormat { found: 9, .. })));
    /// assert!(matches!(read(vec![]), Err(EventStoreError::Corrupt { .. })));
    /// # Ok::<(), foldstream::InvalidStreamId>(())
    /// ```
    #[must_use]
    pub fn at(&self, key: &CommitKey) -> EventStoreError {
        let (stream, version) = (key.stream.clone(), key.first_version);
        match self {
            Self::UnknownFormat { found } => EventStoreError::UnknownFormat {
                stream,
                version,
                found: u64::from(*found),
            },
            error => EventStoreError::Corrupt {
                stream,
                after: before(key),
                reason: error.to_string(),
            },
        }
    }

    fn damaged(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Damaged { reason }
    }
}

/// The header as it is read. A list of another length is an error, so no field is passed over.
#[derive(Deserialize)]
struct Header(
    CommitId,
    StreamId,
    u64,
    i64,
    Option<StoredMetadata>,
    Vec<StoredEvent>,
);
#[derive(Deserialize)]
pub(crate) struct StoredMetadata(
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Vec<(String, String)>,
);
#[derive(Deserialize)]
struct StoredEvent(String, u16, usize, Option<String>);

impl Commit {
    /// The most bytes by which [`to_bytes`](Self::to_bytes) exceeds [`Append::bytes`]: 64 KiB, of
    /// which a usual commit needs less than 200 bytes.
    ///
    /// The rest is for metadata of control characters, which JSON writes with six bytes each. The
    /// bound does not hold for names and codecs of events with more than nine quotes or backslashes
    /// each. A store that cannot take a byte more than its limit checks the length of the value
    /// too.
    ///
    /// # Example
    /// ```
    /// use foldstream::ports::{Capabilities, Commit};
    ///
    /// // A column that takes 1 MiB.
    /// let capabilities = Capabilities::new(1024 * 1024 - Commit::MAX_OVERHEAD_BYTES);
    /// assert_eq!(capabilities.max_commit_bytes, 983_040);
    /// ```
    pub const MAX_OVERHEAD_BYTES: usize = 64 * 1024;

    /// Returns the commit as bytes that [`from_bytes`](Self::from_bytes) reads, for adapters that
    /// keep a commit as one value: in a column of SQLite or Postgres, or in a file.
    ///
    /// The first byte is the format, so that later builds can add to it. Every build reads the
    /// formats of all earlier builds. A later format is [`CommitBytesError::UnknownFormat`] to a
    /// build that does not know it, so the release that can read a new format comes before the one
    /// that writes it. The bytes hold no checksum. Payloads are stored as they are, and the rest
    /// costs about 100 bytes per commit and 20 per event beside its texts.
    ///
    /// # Example
    /// ```
    /// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, ports::*};
    /// let head = StreamHead::empty(StreamId::new("cart", "a")?);
    /// let added = [EventData::new("Added", 1, r#"{"sku":"x"}"#)];
    /// let append = Append::after(head, CommitId::random(), Timestamp::now(), added);
    ///
    /// // An adapter inserts the key and the bytes, and looks up by the key.
    /// let commit = append.to_commit();
    /// let (key, bytes) = (commit.key(), commit.to_bytes());
    /// assert_eq!(Commit::from_bytes_at(&key, bytes)?, commit);
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let events = self.events.iter().map(|event| {
            Value::Array(vec![
                event.name.as_str().into(),
                event.schema_version.into(),
                event.payload.len().into(),
                event.codec.as_deref().into(),
            ])
        });
        let header = Value::Array(vec![
            self.id.to_string().into(),
            self.stream.as_str().into(),
            self.first_version.get().into(),
            self.recorded_at.as_micros().into(),
            metadata_value(&self.metadata),
            events.collect(),
        ])
        .to_string();
        let payloads = self.events.iter().map(|event| event.payload.len());
        let mut bytes = Vec::with_capacity(2 + header.len() + payloads.sum::<usize>());
        bytes.push(FORMAT);
        bytes.extend_from_slice(header.as_bytes());
        bytes.push(END_OF_HEADER);
        for event in &*self.events {
            bytes.extend_from_slice(&event.payload);
        }
        bytes.into()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) has written, in any format up to the newest that
    /// this build knows.
    ///
    /// The payloads share the memory of `bytes`. An adapter calls
    /// [`from_bytes_at`](Self::from_bytes_at) instead, which notices that the bytes are those of
    /// another commit.
    ///
    /// # Errors
    /// [`CommitBytesError`]; [`at`](CommitBytesError::at) makes an [`EventStoreError`] of it.
    /// - `Empty` if there are no bytes.
    /// - `UnknownFormat` if a later build has written them, or if they are something else.
    /// - `Truncated` if they end too early, and `TrailingBytes` if more follow after the last
    ///   payload.
    /// - `Damaged` if they are not a commit, or one without events.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, CommitBytesError> {
        let bytes = bytes.into();
        match bytes.first() {
            None => Err(CommitBytesError::Empty),
            Some(&FORMAT) => read_format_1(&bytes),
            Some(&found) => Err(CommitBytesError::UnknownFormat { found }),
        }
    }

    /// Reads the commit that is kept at `key`: [`from_bytes`](Self::from_bytes) for event stores.
    ///
    /// # Errors
    /// - [`EventStoreError::UnknownFormat`] if a later build has written the bytes.
    /// - [`EventStoreError::Corrupt`] if they are damaged, or those of a commit with another key.
    pub fn from_bytes_at(
        key: &CommitKey,
        bytes: impl Into<Bytes>,
    ) -> Result<Self, EventStoreError> {
        let commit = Self::from_bytes(bytes).map_err(|error| error.at(key))?;
        if commit.key() == *key {
            return Ok(commit);
        }
        let (stream, version) = (&commit.stream, commit.first_version);
        Err(EventStoreError::Corrupt {
            stream: key.stream.clone(),
            after: before(key),
            reason: format!(
                "the row at version {} holds the commit of {stream} at version {version}: restore the row from a backup",
                key.first_version
            ),
        })
    }
}

/// Returns the last version that was read whole, if the commit at `key` cannot be read.
const fn before(key: &CommitKey) -> Version {
    Version::new(key.first_version.get().saturating_sub(1))
}

pub(crate) fn metadata_value(metadata: &Metadata) -> Value {
    if metadata.is_empty() {
        return Value::Null;
    }
    let user = metadata.user();
    let user = user.map(|(key, value)| Value::Array(vec![key.into(), value.into()]));
    Value::Array(vec![
        metadata.command_id().map(|id| id.as_str()).into(),
        metadata.correlation_id().map(|id| id.as_str()).into(),
        metadata.causation_id().map(|id| id.as_str()).into(),
        metadata.actor().map(|id| id.as_str()).into(),
        metadata.traceparent().into(),
        user.collect(),
    ])
}

impl StoredMetadata {
    pub(crate) fn into_metadata(self) -> Metadata {
        let Self(command, correlation, causation, actor, traceparent, user) = self;
        let mut metadata = Metadata::new();
        if let Some(id) = command {
            metadata = metadata.with_command_id(id);
        }
        if let Some(id) = correlation {
            metadata = metadata.with_correlation_id(id);
        }
        if let Some(id) = causation {
            metadata = metadata.with_causation_id(id);
        }
        if let Some(id) = actor {
            metadata = metadata.with_actor(id);
        }
        if let Some(value) = traceparent {
            metadata = metadata.with_traceparent(value);
        }
        user.into_iter()
            .fold(metadata, |metadata, (key, value)| metadata.with(key, value))
    }
}

fn read_format_1(bytes: &Bytes) -> Result<Commit, CommitBytesError> {
    let truncated = |needed| CommitBytesError::Truncated {
        found: bytes.len(),
        needed,
    };
    let end = bytes.iter().position(|byte| *byte == END_OF_HEADER);
    let end = end.ok_or_else(|| truncated(None))?;
    let header: Header = serde_json::from_slice(&bytes[1..end]).map_err(|error| {
        // The parser's own text is not used, since it quotes what it has found.
        let place = error.column();
        CommitBytesError::damaged(format!(
            "byte {place} is not that of a commit's header in format 1"
        ))
    })?;
    let Header(id, stream, first_version, recorded_at, metadata, stored) = header;
    check_versions(first_version, stored.len())?;

    let mut sizes = stored.iter().map(|StoredEvent(_, _, size, _)| *size);
    let needed = sizes
        .try_fold(end + 1, usize::checked_add)
        .ok_or_else(|| CommitBytesError::damaged("the sizes of the payloads exceed all memory"))?;
    if bytes.len() < needed {
        return Err(truncated(Some(needed)));
    }
    if bytes.len() > needed {
        let extra = bytes.len() - needed;
        return Err(CommitBytesError::TrailingBytes { extra });
    }
    let mut start = end + 1;
    let event = |StoredEvent(name, schema_version, size, codec)| {
        let payload = bytes.slice(start..start + size);
        start += size;
        EventData::new(name, schema_version, payload).with_codec(codec.map(Arc::from))
    };
    let events: Vec<_> = stored.into_iter().map(event).collect();
    Ok(Commit::new(
        CommitKey::new(stream, Version::new(first_version)),
        id,
        Timestamp::from_micros(recorded_at),
        metadata.map_or_else(Metadata::new, StoredMetadata::into_metadata),
        events,
    ))
}

/// Checks that a commit has a place: what is not one of a store's would be numbered wrongly.
fn check_versions(first_version: u64, events: usize) -> Result<(), CommitBytesError> {
    if events == 0 || events > Append::MAX_EVENTS {
        let most = Append::MAX_EVENTS;
        let reason = format!("a commit has 1 to {most} events, this one has {events}");
        return Err(CommitBytesError::Damaged { reason });
    }
    if first_version == 0 || first_version.checked_add(events as u64).is_none() {
        return Err(CommitBytesError::damaged(
            "the first version is not one that an event can have",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamHead;

    /// Returns the bytes by which a commit is larger than its append, without the time and the id,
    /// which have their most bytes.
    fn overhead(stream: &str, metadata: Metadata, events: Vec<EventData>) -> i64 {
        let head = StreamHead::observed(
            StreamId::new("a", stream).unwrap(),
            Version::new(u64::MAX - 100_000),
            CommitId::from_u128(u128::MAX),
            Timestamp::MIN,
        );
        let mut append = Append::after(head, CommitId::random(), Timestamp::MIN, events);
        append.metadata = metadata;
        append.validate().unwrap();
        append.to_commit().to_bytes().len() as i64 - append.bytes() as i64
    }

    #[test]
    fn a_commit_exceeds_its_append_by_no_more_than_the_bound() {
        let event = || EventData::new("A", u16::MAX, "{}");
        assert!(overhead("1", Metadata::new(), vec![event()]) < 200);
        let most = Commit::MAX_OVERHEAD_BYTES as i64;
        // Each entry has few bytes beside its frame, or many that are escaped.
        let small = (0..430u32).fold(Metadata::new(), |m, n| m.with(format!("{n}"), ""));
        let room = Append::MAX_METADATA_BYTES - 2 * Metadata::ENTRY_BYTES - 1;
        let escaped = Metadata::new()
            .with("k", "\u{1}".repeat(room - 2))
            .with_actor("\u{1}");
        let quoted = "\"".repeat(9);
        let names = EventData::new(quoted.clone(), u16::MAX, "{}");
        let codecs = event().with_codec(Some(quoted.into()));
        for metadata in [Metadata::new(), small, escaped] {
            for event in [event(), names.clone(), codecs.clone()] {
                for events in [vec![event.clone()], vec![event.clone(); Append::MAX_EVENTS]] {
                    let found = overhead(&"\"".repeat(500), metadata.clone(), events);
                    assert!(found <= most, "{found} bytes");
                }
            }
        }
    }
}
