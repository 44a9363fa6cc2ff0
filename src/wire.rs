//! The form of an event as a record on the bus: CloudEvents 1.0 in binary content mode.
//!
//! The key is the stream, so the events of a stream share a partition and keep their order. The
//! value is the payload as it is stored. Everything else is a header. This format is stored in
//! topics: it only grows.
//!
//! | header | content |
//! |---|---|
//! | `content-type` | `application/json`, or the media type that the codec names |
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | the event id, `<commit id>/<index>`; the same on every duplicate |
//! | `ce_source` | the publisher's source, a URI-reference |
//! | `ce_type` | `<aggregate type>.<event name>`; the aggregate type is also the key up to its first `#` |
//! | `ce_time` | the time of the commit: RFC 3339 with microseconds |
//! | `ce_subject` | the id within the aggregate type |
//! | `ce_fsversion` | the event's version in its stream |
//! | `ce_fsschema` | the payload's schema version; absent: 1 |
//! | `ce_fscommitlast` | the version of the commit's last event; absent: the event's own |
//! | `ce_fsprev` | the version of the stream's previous record in the topic, 0 if there is none; absent: the version before the event's own |
//! | `ce_fscodec` | the codec of the payload; absent: plain JSON |
//! | `ce_fsformat` | the number of this format; absent: 1 |
//! | `ce_correlationid`, `ce_causationid`, `ce_traceparent` | the metadata of that name, if there is any |
//! | `traceparent` | the same as `ce_traceparent`, where OpenTelemetry's propagators look for it |
//! | `fs_command`, `fs_actor`, `fs_user_<key>` | the command id, the actor and the user's own entries, if there are any |
//!
//! Everything that a reader needs to understand an event is a CloudEvents attribute, since the
//! CloudEvents SDKs drop all other headers. That is why the names of extensions consist of
//! lower-case letters and digits only. The record's timestamp is the time of sending, from which
//! the topic's retention counts; an event's own time is `ce_time`.
use crate::{
    BoxError, EventHeader, EventId, EventName, EventSelector, Metadata, RecordedEvent, SourceUri,
    StreamId, Timestamp, Version,
    ports::{HeaderName, Headers, HeadersIter, Message},
};
use bytes::Bytes;
use std::{str::FromStr, sync::Arc};

const CONTENT_TYPE: &str = "content-type";
const SPEC_VERSION: &str = "ce_specversion";
const ID: &str = "ce_id";
const SOURCE: &str = "ce_source";
const TYPE: &str = "ce_type";
const TIME: &str = "ce_time";
const SUBJECT: &str = "ce_subject";
const VERSION: &str = "ce_fsversion";
const FORMAT: &str = "ce_fsformat";
const SCHEMA: &str = "ce_fsschema";
const COMMIT_LAST: &str = "ce_fscommitlast";
const PREVIOUS: &str = "ce_fsprev";
const CODEC: &str = "ce_fscodec";
const CORRELATION: &str = "ce_correlationid";
const CAUSATION: &str = "ce_causationid";
const COMMAND: &str = "fs_command";
const ACTOR: &str = "fs_actor";
const USER: &str = "fs_user_";
const TRACEPARENT: &str = "ce_traceparent";
/// The header that OpenTelemetry reads. This module does not read it: a program that forwards a
/// record may put the context of the forwarding there.
const TRACEPARENT_OF_TRANSPORT: &str = "traceparent";

/// The names of the headers of an event.
pub(crate) const NAMES: [HeaderName; 19] = [
    HeaderName::from_static(CONTENT_TYPE),
    HeaderName::from_static(SPEC_VERSION),
    HeaderName::from_static(ID),
    HeaderName::from_static(SOURCE),
    HeaderName::from_static(TYPE),
    HeaderName::from_static(TIME),
    HeaderName::from_static(SUBJECT),
    HeaderName::from_static(VERSION),
    HeaderName::from_static(FORMAT),
    HeaderName::from_static(SCHEMA),
    HeaderName::from_static(COMMIT_LAST),
    HeaderName::from_static(PREVIOUS),
    HeaderName::from_static(CODEC),
    HeaderName::from_static(CORRELATION),
    HeaderName::from_static(CAUSATION),
    HeaderName::from_static(TRACEPARENT),
    HeaderName::from_static(TRACEPARENT_OF_TRANSPORT),
    HeaderName::from_static(COMMAND),
    HeaderName::from_static(ACTOR),
];

/// The number of the only format so far.
const FORMAT_NUMBER: u64 = 1;

/// The error returned for a record that cannot be read as an event, and for an event that cannot be
/// written as a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The record has no value: another program has deleted a key. Publishers of events never write
    /// such a record.
    #[error("the record has no value, so it is no event: is something else written to this topic?")]
    Tombstone,
    /// The key of the record is not a stream id.
    #[error("the key of the record is no stream id")]
    Key {
        /// The reason why the key is refused.
        #[source]
        source: BoxError,
    },
    /// A header that every event has is absent.
    #[error("the record has no header {header}: is something else written to this topic?")]
    Missing {
        /// The name of the header.
        header: &'static str,
    },
    /// The value of a header is not text.
    #[error("header {header} is not UTF-8")]
    NotText {
        /// The name of the header.
        header: HeaderName,
    },
    /// The value of a header has no meaning in that header.
    #[error("header {header} cannot be read")]
    Invalid {
        /// The name of the header.
        header: &'static str,
        /// The reason why the value is refused.
        #[source]
        source: BoxError,
    },
    /// The record is written in a format that this build does not know.
    #[error(
        "the record has format {found}, this build reads {FORMAT_NUMBER}: deploy the build that reads it"
    )]
    UnknownFormat {
        /// The number of the record's format.
        found: u64,
    },
}

/// Returns the record of an event, keyed by its stream, without a partition.
///
/// `source` and the event id together identify the event worldwide. `sent_at` is the time of
/// sending, from which the topic's retention counts. The stream's previous record in the topic is
/// the event of the version before. For a stream of which some events stay out of the topic, use
/// [`to_message_after`].
///
/// A user's metadata entry whose key holds a NUL cannot be a header and is left out. No event store
/// accepts such an entry.
///
/// # Example
/// ```
/// use foldstream::{
///     CommitId, EventHeader, RecordedEvent, SourceUri, StreamId, Timestamp, Version, adapter,
/// };
/// let header = EventHeader::new(
///     CommitId::random().event_id(0),
///     StreamId::new("cart", "c-1")?,
///     Version::new(1),
///     "CartItemAdded",
///     Timestamp::now(),
/// );
/// let event = RecordedEvent::new(header, "{}".into());
/// let source = SourceUri::new("urn:shop")?;
/// let topic = "GlobalEvents".into();
/// let message = adapter::to_message(&event, &topic, &source, Timestamp::now());
/// assert_eq!(message.header("ce_type"), Some("cart.CartItemAdded"));
/// assert_eq!(adapter::from_message(&message)?, event);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn to_message(
    event: &RecordedEvent,
    topic: &Arc<str>,
    source: &SourceUri,
    sent_at: Timestamp,
) -> Message {
    write(event, topic, source, sent_at, None)
}

/// Returns the record of an event whose predecessor in the topic is the stream's event of version
/// `previous`. With [`Version::NONE`] the event is the first of its stream in the topic.
///
/// Versions between the two are events that stay out of the topic. A reader that has seen
/// `previous` knows from the record that it has missed nothing.
///
/// # Errors
/// [`WireError::Invalid`] if `previous` is not before the event's own version.
pub fn to_message_after(
    event: &RecordedEvent,
    topic: &Arc<str>,
    source: &SourceUri,
    sent_at: Timestamp,
    previous: Version,
) -> Result<Message, WireError> {
    check_previous(previous, event.header.version)?;
    let is_gap = previous.next() != event.header.version;
    Ok(write(
        event,
        topic,
        source,
        sent_at,
        is_gap.then_some(previous),
    ))
}

/// Returns the record of an event. `previous` is the version of the stream's previous record, if
/// that is not the version before the event's own.
pub(crate) fn write(
    event: &RecordedEvent,
    topic: &Arc<str>,
    source: &SourceUri,
    sent_at: Timestamp,
    previous: Option<Version>,
) -> Message {
    let h = &event.header;
    let key = Bytes::copy_from_slice(h.stream.as_str().as_bytes());
    let name = HeaderName::from_static;
    let mut message = Message::new(topic.clone(), sent_at)
        .with_key(key)
        .with_value(event.payload.clone())
        .with_header(name(CONTENT_TYPE), content_type(h.codec.as_deref()))
        .with_header(name(SPEC_VERSION), "1.0")
        .with_header(name(ID), h.event_id.to_string())
        .with_header(name(SOURCE), source.to_string())
        .with_header(name(TYPE), format!("{}.{}", h.stream.aggregate(), h.name))
        .with_header(name(TIME), h.recorded_at.to_string())
        .with_header(name(SUBJECT), h.stream.id())
        .with_header(name(VERSION), h.version.to_string());
    let numbers = [
        (
            SCHEMA,
            (h.schema_version != 1).then(|| h.schema_version.to_string()),
        ),
        (
            COMMIT_LAST,
            (h.commit_last != h.version).then(|| h.commit_last.to_string()),
        ),
        (PREVIOUS, previous.map(|version| version.to_string())),
    ];
    let m = &h.metadata;
    let texts = [
        (CODEC, h.codec.as_deref()),
        (CORRELATION, m.correlation_id().map(|id| id.as_str())),
        (CAUSATION, m.causation_id().map(|id| id.as_str())),
        (TRACEPARENT, m.traceparent()),
        (TRACEPARENT_OF_TRANSPORT, m.traceparent()),
        (COMMAND, m.command_id().map(|id| id.as_str())),
        (ACTOR, m.actor().map(|id| id.as_str())),
    ];
    let numbers = numbers.iter().map(|(of, number)| (*of, number.as_deref()));
    for (header, value) in numbers.chain(texts) {
        if let Some(value) = value {
            message = message.with_header(name(header), value);
        }
    }
    for (key, value) in m.user() {
        match HeaderName::new(format!("{USER}{key}")) {
            Ok(header) => message = message.with_header(header, value),
            Err(error) => {
                tracing::error!(event = %h.event_id, error = crate::chain(&error), "an entry is left out");
            }
        }
    }
    message
}

/// Returns the event of a record.
///
/// Headers that this build does not know are ignored. Of a repeated header the first one counts,
/// and a header without a value counts as absent.
///
/// # Errors
/// [`WireError`] if a part of the record is missing or malformed.
pub fn from_message(message: &Message) -> Result<RecordedEvent, WireError> {
    read(message, &[]).map(|(event, _)| event)
}

/// Returns the event of a record as [`from_message`] does, and what [`previous_record`] returns.
/// Names of events that are `known` need no memory of their own.
pub(crate) fn read(
    message: &Message,
    known: &[EventSelector],
) -> Result<(RecordedEvent, Option<Version>), WireError> {
    let payload = message.value.clone().ok_or(WireError::Tombstone)?;
    let headers = Known::find(&message.headers);
    // The format comes first: in another format nothing below need mean what it means here.
    match parsed_if(FORMAT, headers.format)? {
        None | Some(FORMAT_NUMBER) => {}
        Some(found) => return Err(WireError::UnknownFormat { found }),
    }
    let spec = required(SPEC_VERSION, headers.spec_version)?;
    if !spec.starts_with("1.") {
        let reason = format!("CloudEvents {spec:?} is not 1.x");
        return Err(invalid(SPEC_VERSION, reason));
    }
    let key = std::str::from_utf8(message.key.as_deref().unwrap_or_default());
    let stream = key.map_err(BoxError::from);
    let stream = stream
        .and_then(|text| StreamId::parse(text).map_err(BoxError::from))
        .map_err(|source| WireError::Key { source })?;
    let name = event_name(required(TYPE, headers.kind)?, &stream, known)?;
    let event_id: EventId = parsed(ID, headers.id)?;
    let recorded_at: Timestamp = parsed(TIME, headers.time)?;
    let version = headers.version()?;
    // The commit began `index` events earlier, at version 1 or later.
    if version.get() <= u64::from(event_id.index()) {
        let reason = format!("version {version} is too low for event {event_id}");
        return Err(invalid(VERSION, reason));
    }
    let commit_last = parsed_if(COMMIT_LAST, headers.commit_last)?.map_or(version, Version::new);
    if commit_last < version {
        let reason = format!("the commit cannot end at {commit_last}, before version {version}");
        return Err(invalid(COMMIT_LAST, reason));
    }
    let previous = headers.previous()?;
    let schema = parsed_if(SCHEMA, headers.schema)?.unwrap_or(1);
    let header = EventHeader::new(event_id, stream, version, name, recorded_at)
        .with_commit_last(commit_last)
        .with_schema_version(schema)
        .with_codec(text(headers.codec)?.map(Arc::from))
        .with_metadata(headers.metadata()?);
    Ok((RecordedEvent::new(header, payload), previous))
}

/// Returns the version of the stream's previous record in the topic, if the record says that it is
/// not the version before the event's own. [`Version::NONE`] says that the record is the first of
/// its stream in the topic.
///
/// # Errors
/// [`WireError`] if the version of the event or of its predecessor is missing or malformed.
pub fn previous_record(message: &Message) -> Result<Option<Version>, WireError> {
    Known::find(&message.headers).previous()
}

fn check_previous(previous: Version, version: Version) -> Result<(), WireError> {
    if previous < version {
        return Ok(());
    }
    let reason = format!("the record before version {version} cannot be of version {previous}");
    Err(invalid(PREVIOUS, reason))
}

fn invalid(header: &'static str, reason: String) -> WireError {
    let source = reason.into();
    WireError::Invalid { header, source }
}

/// Returns the part of `ce_type` after the stream's aggregate type. Both parts may contain dots.
fn event_name(
    ce_type: &str,
    stream: &StreamId,
    known: &[EventSelector],
) -> Result<EventName, WireError> {
    let rest = ce_type.strip_prefix(stream.aggregate());
    match rest.and_then(|rest| rest.strip_prefix('.')) {
        Some(name) => {
            let mut of_aggregate = known.iter().filter(|s| s.aggregate == stream.aggregate());
            let known = of_aggregate.find_map(|s| s.types.iter().find(|t| t.name() == name));
            Ok(match known {
                Some(known) => known.name().into(),
                None => Arc::<str>::from(name).into(),
            })
        }
        None => Err(invalid(
            TYPE,
            format!(
                "{ce_type:?} does not begin with the aggregate type of the key, {}",
                stream.aggregate()
            ),
        )),
    }
}

/// A header of a record: its name and its value.
type Header<'a> = (&'a HeaderName, Option<&'a [u8]>);

/// The headers of a record that this build knows, found in one pass. Of a repeated header the first
/// one counts.
#[derive(Default)]
struct Known<'a> {
    format: Option<Header<'a>>,
    spec_version: Option<Header<'a>>,
    kind: Option<Header<'a>>,
    id: Option<Header<'a>>,
    time: Option<Header<'a>>,
    version: Option<Header<'a>>,
    commit_last: Option<Header<'a>>,
    previous: Option<Header<'a>>,
    schema: Option<Header<'a>>,
    codec: Option<Header<'a>>,
    correlation: Option<Header<'a>>,
    causation: Option<Header<'a>>,
    command: Option<Header<'a>>,
    actor: Option<Header<'a>>,
    traceparent: Option<Header<'a>>,
    /// The headers from the first one that holds an entry of the user.
    user: Option<HeadersIter<'a>>,
}

impl<'a> Known<'a> {
    fn find(headers: &'a Headers) -> Self {
        let mut found = Self::default();
        let mut rest = headers.iter();
        loop {
            let from_here = rest.clone();
            let Some(header) = rest.next() else {
                return found;
            };
            let place = match header.0.as_str() {
                SPEC_VERSION => &mut found.spec_version,
                ID => &mut found.id,
                TYPE => &mut found.kind,
                TIME => &mut found.time,
                VERSION => &mut found.version,
                FORMAT => &mut found.format,
                SCHEMA => &mut found.schema,
                COMMIT_LAST => &mut found.commit_last,
                PREVIOUS => &mut found.previous,
                CODEC => &mut found.codec,
                CORRELATION => &mut found.correlation,
                CAUSATION => &mut found.causation,
                TRACEPARENT => &mut found.traceparent,
                COMMAND => &mut found.command,
                ACTOR => &mut found.actor,
                name => {
                    if found.user.is_none() && name.starts_with(USER) {
                        found.user = Some(from_here);
                    }
                    continue;
                }
            };
            place.get_or_insert(header);
        }
    }

    fn version(&self) -> Result<Version, WireError> {
        parsed(VERSION, self.version).map(Version::new)
    }
    fn previous(&self) -> Result<Option<Version>, WireError> {
        let previous = parsed_if(PREVIOUS, self.previous)?.map(Version::new);
        if let Some(previous) = previous {
            check_previous(previous, self.version()?)?;
        }
        Ok(previous)
    }
    fn metadata(&self) -> Result<Metadata, WireError> {
        let mut metadata = Metadata::new();
        if let Some(id) = text(self.correlation)? {
            metadata = metadata.with_correlation_id(id);
        }
        if let Some(id) = text(self.causation)? {
            metadata = metadata.with_causation_id(id);
        }
        if let Some(id) = text(self.command)? {
            metadata = metadata.with_command_id(id);
        }
        if let Some(actor) = text(self.actor)? {
            metadata = metadata.with_actor(actor);
        }
        if let Some(value) = text(self.traceparent)? {
            metadata = metadata.with_traceparent(value);
        }
        for header in self.user.clone().into_iter().flatten() {
            if let Some(key) = header.0.strip_prefix(USER)
                && metadata.get(key).is_none()
                && let Some(value) = text(Some(header))?
            {
                metadata = metadata.with(key, value);
            }
        }
        Ok(metadata)
    }
}

/// Returns the value of a header that every event has.
fn required<'a>(name: &'static str, header: Option<Header<'a>>) -> Result<&'a str, WireError> {
    text(header)?.ok_or(WireError::Missing { header: name })
}

fn parsed_if<T: FromStr<Err: Into<BoxError>>>(
    name: &'static str,
    header: Option<Header<'_>>,
) -> Result<Option<T>, WireError> {
    let parse = |text: &str| {
        text.parse().map_err(|e: T::Err| WireError::Invalid {
            header: name,
            source: e.into(),
        })
    };
    text(header)?.map(parse).transpose()
}

fn parsed<T: FromStr<Err: Into<BoxError>>>(
    name: &'static str,
    header: Option<Header<'_>>,
) -> Result<T, WireError> {
    parsed_if(name, header)?.ok_or(WireError::Missing { header: name })
}

/// Returns the text of a header. A header without a value counts as absent.
fn text(header: Option<Header<'_>>) -> Result<Option<&str>, WireError> {
    let Some((name, value)) = header else {
        return Ok(None);
    };
    let text = value.map(std::str::from_utf8).transpose();
    text.map_err(|_| WireError::NotText {
        header: name.clone(),
    })
}

/// Returns the media type of the payload: JSON without a codec, the codec's tag if that is a media
/// type, and bytes otherwise.
///
/// A type that begins with `application/cloudevents` would tell readers that the whole event is in
/// the value (structured content mode), which it never is here.
fn content_type(codec: Option<&str>) -> &str {
    match codec {
        None => "application/json",
        Some(tag) if is_media_type(tag) && !is_structured_mode(tag) => tag,
        Some(_) => "application/octet-stream",
    }
}

/// Returns true for the media types of structured content mode. Case does not matter in media
/// types.
fn is_structured_mode(tag: &str) -> bool {
    const PREFIX: &str = "application/cloudevents";
    let start = tag.as_bytes().get(..PREFIX.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX.as_bytes()))
}

/// Returns true for `type/subtype`, with or without parameters, in the characters that RFC 9110
/// allows.
fn is_media_type(tag: &str) -> bool {
    let token = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        !text.is_empty() && text.bytes().all(allowed)
    };
    let (essence, parameters) = tag.split_once(';').unwrap_or((tag, ""));
    let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
    let parts = essence.trim_end_matches(' ').split_once('/');
    parts.is_some_and(|(kind, sub)| token(kind) && token(sub)) && parameters.bytes().all(printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_that_is_a_media_type_is_the_content_type_and_any_other_is_bytes() {
        for (codec, expected) in [
            (None, "application/json"),
            (Some("application/cbor"), "application/cbor"),
            (
                Some("application/protobuf; proto=a.B"),
                "application/protobuf; proto=a.B",
            ),
            (Some("zstd"), "application/octet-stream"),
            // Readers would look for the whole event in the value.
            (Some("application/cloudevents"), "application/octet-stream"),
            (
                Some("application/cloudevents+json"),
                "application/octet-stream",
            ),
            (
                Some("application/CloudEvents-batch+json; x=y"),
                "application/octet-stream",
            ),
            (Some("application/cloudevent"), "application/cloudevent"),
            (Some("a/b/c"), "application/octet-stream"),
            (Some("/x"), "application/octet-stream"),
            (Some("x/"), "application/octet-stream"),
            (Some("text/plain\r\n"), "application/octet-stream"),
            (Some(""), "application/octet-stream"),
        ] {
            assert_eq!(content_type(codec), expected, "{codec:?}");
        }
    }
}
