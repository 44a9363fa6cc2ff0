//! Commits: the requests that append them, and the form in which they are read back.
#[cfg(doc)]
use super::Capabilities;
use crate::{
    CommitId, EventHeader, EventName, Metadata, RecordedEvent, StreamHead, StreamId, Timestamp,
    Version, VersionConflict,
};
use bytes::Bytes;
use std::sync::Arc;

/// The part of one event that it does not share with the other events of its commit, before and
/// after it is stored.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EventData {
    /// The name under which the event is stored.
    pub name: EventName,
    /// The schema version of the payload, from 1.
    pub schema_version: u16,
    /// The encoded payload: JSON, unless `codec` names another format.
    pub payload: Bytes,
    /// The codec that wrote the payload: a content type or the tag of a payload codec. `None`
    /// stands for JSON.
    pub codec: Option<Arc<str>>,
}
impl EventData {
    /// The bytes that [`EventData::bytes`] counts for each event beside its name, codec and
    /// payload. No backend adds more to an event.
    pub const OVERHEAD_BYTES: usize = 32;

    /// Returns the size in bytes by which every event store limits events: name, codec and payload,
    /// and [`EventData::OVERHEAD_BYTES`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        let codec = self.codec.as_deref().map_or(0, str::len);
        self.name.len() + self.payload.len() + codec + Self::OVERHEAD_BYTES
    }

    /// Creates an event with a JSON payload.
    #[must_use]
    pub fn new(name: impl Into<EventName>, schema_version: u16, payload: impl Into<Bytes>) -> Self {
        Self {
            name: name.into(),
            schema_version,
            payload: payload.into(),
            codec: None,
        }
    }
    /// Sets the codec that wrote the payload; `None` stands for JSON.
    #[must_use]
    pub fn with_codec(mut self, codec: Option<Arc<str>>) -> Self {
        self.codec = codec;
        self
    }
}

/// A request to extend one stream by one commit.
///
/// Cloning an append copies no events and no payload.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamHead, StreamId, Timestamp, Version};
/// use foldstream::ports::{Append, EventData};
///
/// let empty = StreamHead::empty(StreamId::new("cart", "7")?);
/// let added = EventData::new("ItemAdded", 1, r#"{"sku":"milk"}"#);
/// let append = Append::after(empty, CommitId::from_u128(1), Timestamp::now(), vec![added]);
/// append.validate()?;
/// assert_eq!(append.head_after().version(), Version::new(1));
/// assert_eq!(append.to_commit().events[0].name.as_str(), "ItemAdded");
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Append {
    /// The stream, and the tail that it must still have.
    pub head: StreamHead,
    /// The id of this content. It identifies the commit when the answer to an attempt was lost.
    pub commit_id: CommitId,
    /// The time of the commit by the writer's clock, within the years 0 to 9999. It is never before
    /// the time of the commit at `head`.
    pub recorded_at: Timestamp,
    /// The metadata that all events of the commit share.
    pub metadata: Metadata,
    /// The events of the commit: 1 to [`Append::MAX_EVENTS`].
    pub events: Arc<[EventData]>,
}
impl Append {
    /// The largest number of events in one commit. The limit comes from event ids, which hold the
    /// index of an event in 16 bits.
    pub const MAX_EVENTS: usize = 65_536;
    /// The largest size in bytes of a commit's metadata, as [`Metadata::bytes`] counts it: 8 KiB in
    /// every backend. Metadata becomes the headers of every record on the bus, so a large value
    /// belongs in an event.
    pub const MAX_METADATA_BYTES: usize = 8 * 1024;

    /// Returns the size in bytes by which every event store limits commits: the id of the stream,
    /// the metadata, and all events.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let events = self.events.iter().map(EventData::bytes);
        self.head.stream().as_str().len() + self.metadata.bytes() + events.sum::<usize>()
    }

    /// The bytes that [`Append::bytes_in_parts`] counts for each part. No backend adds more to a
    /// part.
    const PART_OVERHEAD_BYTES: usize = 128;
    /// The bytes that [`Append::parts`] leaves free in each part, for what a backend adds and for
    /// what its own measure counts beyond that of this crate.
    const PART_ROOM_BYTES: usize = 256;

    /// Returns the number of parts into which every event store splits this commit, if a part has
    /// at most `max_part_bytes`: see [`Capabilities::max_part_bytes`]. A backend may store fewer
    /// parts, but never more.
    ///
    /// Each part is filled with whole events, in order. An event that is larger than a part has a
    /// part of its own.
    #[must_use]
    pub fn parts(&self, max_part_bytes: usize) -> usize {
        let frame = Self::PART_ROOM_BYTES + self.repeated_bytes();
        let (mut parts, mut is_empty) = (1, true);
        let mut filled = frame + self.metadata.bytes();
        for event in self.events.iter().map(EventData::bytes) {
            if !is_empty && filled.saturating_add(event) > max_part_bytes {
                parts += 1;
                filled = frame;
            }
            filled += event;
            is_empty = false;
        }
        parts
    }

    /// Returns the size in bytes by which every event store limits what one append writes:
    /// [`Append::bytes`], and for each of the [`parts`](Append::parts) the bytes that all of them
    /// repeat.
    #[must_use]
    pub fn bytes_in_parts(&self, max_part_bytes: usize) -> usize {
        let parts = self.parts(max_part_bytes);
        self.bytes() + parts * Self::PART_OVERHEAD_BYTES + (parts - 1) * self.repeated_bytes()
    }

    /// Returns the bytes of the commit that each of its parts repeats.
    fn repeated_bytes(&self) -> usize {
        let codecs = self
            .events
            .iter()
            .filter_map(|event| event.codec.as_deref());
        let codec = codecs.map(str::len).max().unwrap_or_default();
        self.head.stream().as_str().len() + codec
    }

    /// Creates an append of these events after `head`.
    #[must_use]
    pub fn after(
        head: StreamHead,
        commit_id: CommitId,
        recorded_at: Timestamp,
        events: impl Into<Arc<[EventData]>>,
    ) -> Self {
        let recorded_at = head.next_at(recorded_at);
        Self {
            head,
            commit_id,
            recorded_at,
            metadata: Metadata::new(),
            events: events.into(),
        }
    }
    /// Sets the metadata, without the [digest](Metadata::with_command_digest) of a command: a
    /// digest is not stored with a commit.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata.of_commit();
        self
    }
    /// Returns the commit as it will be read back. Its parts are shared with the append, not
    /// copied.
    #[must_use]
    pub fn to_commit(&self) -> Commit {
        Commit {
            id: self.commit_id,
            stream: self.head.stream().clone(),
            first_version: self.head.version().next(),
            recorded_at: self.recorded_at,
            metadata: self.metadata.clone(),
            events: self.events.clone(),
        }
    }
    /// Returns the head after this commit, once it is stored.
    #[must_use]
    pub fn head_after(&self) -> StreamHead {
        StreamHead::observed(
            self.head.stream().clone(),
            self.head.version().plus(self.events.len() as u64),
            self.commit_id,
            self.recorded_at,
        )
    }
}

/// A request to append several commits atomically: all of them are stored, or none.
///
/// # Example
/// ```
/// use foldstream::{CommitId, StreamHead, StreamId, Timestamp};
/// use foldstream::ports::{Append, AppendAll, EventData};
///
/// let append = |account: &str, event: &'static str| {
///     let head = StreamHead::empty(StreamId::new("account", account)?);
///     let event = EventData::new(event, 1, "{}");
///     Ok::<_, foldstream::BoxError>(Append::after(
///         head,
///         CommitId::from_u128(1),
///         Timestamp::now(),
///         vec![event],
///     ))
/// };
/// let transfer = AppendAll::new(vec![append("a", "Withdrawn")?, append("b", "Deposited")?]);
/// assert!(transfer.validate().is_ok());
/// let twice = AppendAll::new(vec![append("a", "Withdrawn")?, append("a", "Deposited")?]);
/// assert!(twice.validate().is_err());
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AppendAll {
    /// The commits to store: at least one, and at most one per stream.
    pub commits: Vec<Append>,
    /// The heads of streams that were only read. Each stream must still be at its head when the
    /// commits are stored.
    pub unchanged: Vec<StreamHead>,
}
impl AppendAll {
    /// Creates a request to append these commits.
    #[must_use]
    pub const fn new(commits: Vec<Append>) -> Self {
        Self {
            commits,
            unchanged: Vec::new(),
        }
    }
    /// Sets the heads of the streams that must not have changed.
    #[must_use]
    pub fn with_unchanged(mut self, heads: Vec<StreamHead>) -> Self {
        self.unchanged = heads;
        self
    }
}

/// The outcome of an append. A conflict is an ordinary answer, not an error.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum AppendOutcome<T = StreamHead> {
    /// The commit was stored by this call.
    Appended(T),
    /// An earlier attempt with the same commit ids stored the commits in these very slots, all of
    /// them. The stored events count, not the events of the request. There is one commit per commit
    /// of the request, in the same order.
    Repeated(Vec<Commit>),
    /// Another writer has extended a stream of the request, and nothing was stored. Of several such
    /// streams the conflict names any one.
    Conflict(VersionConflict),
}

/// Several events of one stream that were stored atomically. Cloning a commit only increments a few
/// reference counts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Commit {
    /// The id that the writer gave to this content.
    pub id: CommitId,
    /// The stream that holds the commit.
    pub stream: StreamId,
    /// The version of the commit's first event.
    pub first_version: Version,
    /// The time of the commit by the writer's clock.
    pub recorded_at: Timestamp,
    /// The metadata that the events share.
    pub metadata: Metadata,
    /// The events in order of their versions; never empty.
    pub events: Arc<[EventData]>,
}
impl Commit {
    /// Creates a commit from its stored parts.
    #[must_use]
    pub fn new(
        key: CommitKey,
        id: CommitId,
        recorded_at: Timestamp,
        metadata: Metadata,
        events: impl Into<Arc<[EventData]>>,
    ) -> Self {
        Self {
            id,
            stream: key.stream,
            first_version: key.first_version,
            recorded_at,
            metadata,
            events: events.into(),
        }
    }
    /// Returns the version of the commit's last event: the commit end.
    pub fn last_version(&self) -> Version {
        Version::new(self.first_version.get() + (self.events.len() as u64).saturating_sub(1))
    }
    /// Returns the stream and the first version of the commit.
    pub fn key(&self) -> CommitKey {
        CommitKey {
            stream: self.stream.clone(),
            first_version: self.first_version,
        }
    }
    /// Returns the head at which the commit ends.
    pub fn head(&self) -> StreamHead {
        StreamHead::observed(
            self.stream.clone(),
            self.last_version(),
            self.id,
            self.recorded_at,
        )
    }
    /// Returns the events of the commit, each in an envelope with what it shares with the others.
    pub fn recorded(&self) -> impl Iterator<Item = RecordedEvent> + '_ {
        let last = self.last_version();
        (0u16..=u16::MAX)
            .zip(self.events.iter())
            .map(move |(i, event)| {
                let version = self.first_version.plus(u64::from(i));
                let header = EventHeader::new(
                    self.id.event_id(i),
                    self.stream.clone(),
                    version,
                    event.name.clone(),
                    self.recorded_at,
                )
                .with_commit_last(last)
                .with_schema_version(event.schema_version)
                .with_codec(event.codec.clone())
                .with_metadata(self.metadata.clone());
                RecordedEvent::new(header, event.payload.clone())
            })
    }
}

/// The stream and the first version of a commit. Together they name its slot in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct CommitKey {
    /// The stream that holds the commit.
    pub stream: StreamId,
    /// The version of the commit's first event.
    pub first_version: Version,
}
impl CommitKey {
    /// Creates the key of the commit that starts at this version.
    #[must_use]
    pub const fn new(stream: StreamId, first_version: Version) -> Self {
        Self {
            stream,
            first_version,
        }
    }
}
