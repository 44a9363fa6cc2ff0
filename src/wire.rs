//! An event as a record of the bus, and back: CloudEvents 1.0 in binary content mode.
//!
//! The key is the stream, so the events of a stream share a partition and keep their order; the value is the payload as
//! it is stored. Everything else is a header. This format is stored in topics: it only grows.
//!
//! | header | content |
//! |---|---|
//! | `content-type` | `application/json`, or what the codec says |
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | the event id, `<commit id>/<index>`: the same on every duplicate |
//! | `ce_source` | the publisher's source |
//! | `ce_type` | `<aggregate type>.<event name>`; the aggregate type is also the key up to its first `#` |
//! | `ce_time` | when it was recorded: RFC 3339 with microseconds |
//! | `ce_subject` | the id within the aggregate type |
//! | `fs_version` | the event's version in its stream |
//!
//! and, only where it is not the default in brackets: `fs_format` (1), `fs_schema` (1), `fs_commit_last` (the event's own
//! version), `fs_codec`, `fs_correlation`, `fs_causation`, `fs_command`, `fs_actor`, `fs_user_<key>` for each of the user's
//! entries, and `traceparent`. They are no CloudEvents attributes, whose names have letters and digits only.
use crate::{
    BoxError, EventHeader, EventId, Metadata, RecordedEvent, StreamId, Timestamp, Version,
    ports::{HeaderName, Message},
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
const VERSION: &str = "fs_version";
const FORMAT: &str = "fs_format";
const SCHEMA: &str = "fs_schema";
const COMMIT_LAST: &str = "fs_commit_last";
const CODEC: &str = "fs_codec";
const CORRELATION: &str = "fs_correlation";
const CAUSATION: &str = "fs_causation";
const COMMAND: &str = "fs_command";
const ACTOR: &str = "fs_actor";
const USER: &str = "fs_user_";
const TRACEPARENT: &str = "traceparent";

/// The only format so far.
const FORMAT_NUMBER: u64 = 1;

/// Why a record cannot be read as an event.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A record without a value: somebody deleted a key. No publisher of events writes one.
    #[error("the record has no value, so it is no event: is something else written to this topic?")]
    Tombstone,
    /// The key names no stream.
    #[error("the key of the record is no stream id")]
    Key {
        /// Why.
        #[source]
        source: BoxError,
    },
    /// A header that every event has is not there.
    #[error("the record has no header {header}: is something else written to this topic?")]
    Missing {
        /// Its name.
        header: &'static str,
    },
    /// A header is not text.
    #[error("header {header} is not UTF-8")]
    NotText {
        /// Its name.
        header: HeaderName,
    },
    /// A header cannot be read.
    #[error("header {header} cannot be read")]
    Invalid {
        /// Its name.
        header: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// Written in a format that this build does not know.
    #[error(
        "the record has format {found}, this build reads {FORMAT_NUMBER}: deploy the build that reads it"
    )]
    UnknownFormat {
        /// The format's number.
        found: u64,
    },
}

/// Returns the record of an event, keyed by its stream, without a partition. `source` is the CloudEvents source: together
/// with the event id it is unique in the world. `sent_at` is the time of sending, from which the topic's retention counts.
///
/// # Example
/// ```
/// use foldstream::{CommitId, EventHeader, RecordedEvent, StreamId, Timestamp, Version};
/// let header = EventHeader::new(
///     CommitId::random().event_id(0),
///     StreamId::new("cart", "c-1")?,
///     Version::new(1),
///     "CartItemAdded",
///     Timestamp::now(),
/// );
/// let event = RecordedEvent::new(header, "{}".into());
/// let message = foldstream::to_message(&event, &"GlobalEvents".into(), "urn:shop", Timestamp::now());
/// assert_eq!(message.header("ce_type"), Some("cart.CartItemAdded"));
/// assert_eq!(foldstream::from_message(&message)?, event);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn to_message(
    event: &RecordedEvent,
    topic: &Arc<str>,
    source: &str,
    sent_at: Timestamp,
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
        .with_header(name(SOURCE), source.to_owned())
        .with_header(name(TYPE), format!("{}.{}", h.stream.aggregate(), h.name))
        .with_header(name(TIME), h.recorded_at.to_string())
        .with_header(name(SUBJECT), h.stream.id().to_owned())
        .with_header(name(VERSION), h.version.to_string());
    if h.schema_version != 1 {
        message = message.with_header(name(SCHEMA), h.schema_version.to_string());
    }
    if h.commit_last != h.version {
        message = message.with_header(name(COMMIT_LAST), h.commit_last.to_string());
    }
    let m = &h.metadata;
    let optional = [
        (CODEC, h.codec.as_deref()),
        (CORRELATION, m.correlation_id().map(|id| id.as_str())),
        (CAUSATION, m.causation_id().map(|id| id.as_str())),
        (COMMAND, m.command_id().map(|id| id.as_str())),
        (ACTOR, m.actor().map(|id| id.as_str())),
    ];
    for (header, value) in optional {
        if let Some(value) = value {
            message = message.with_header(name(header), value.to_owned());
        }
    }
    for (key, value) in m.user() {
        match HeaderName::new(format!("{USER}{key}")) {
            Ok(header) => message = message.with_header(header, value.to_owned()),
            Err(error) => tracing::error!(event = %h.event_id, %error, "an entry is left out"),
        }
    }
    if let Some(value) = m.traceparent() {
        message = message.with_header(name(TRACEPARENT), value.to_owned());
    }
    message
}

/// The event of a record. Headers that are not known are ignored; of a repeated header the first counts.
///
/// # Errors
/// [`WireError`] names the part that is missing or malformed.
pub fn from_message(message: &Message) -> Result<RecordedEvent, WireError> {
    let payload = message.value.clone().ok_or(WireError::Tombstone)?;
    let headers = Headers(&message.headers);
    // First: in another format nothing below need mean what it means here.
    match headers.number(FORMAT)? {
        None | Some(FORMAT_NUMBER) => {}
        Some(found) => return Err(WireError::UnknownFormat { found }),
    }
    let spec = headers.required(SPEC_VERSION)?;
    if !spec.starts_with("1.") {
        let reason = format!("CloudEvents {spec:?} is not 1.x");
        return Err(invalid(SPEC_VERSION, reason));
    }
    let key = std::str::from_utf8(message.key.as_deref().unwrap_or_default());
    let stream = key.map_err(BoxError::from);
    let stream = stream
        .and_then(|text| StreamId::parse(text).map_err(BoxError::from))
        .map_err(|source| WireError::Key { source })?;
    let name = event_name(headers.required(TYPE)?, &stream)?;
    let event_id: EventId = headers.parsed(ID)?;
    let recorded_at: Timestamp = headers.parsed(TIME)?;
    let version = headers
        .number(VERSION)?
        .ok_or(WireError::Missing { header: VERSION })?;
    // The commit began `index` events earlier, at 1 or later.
    if version <= u64::from(event_id.index()) {
        let reason = format!("version {version} is too low for event {event_id}");
        return Err(invalid(VERSION, reason));
    }
    let commit_last = headers.number(COMMIT_LAST)?.unwrap_or(version);
    if commit_last < version {
        let reason = format!("the commit cannot end at {commit_last}, before version {version}");
        return Err(invalid(COMMIT_LAST, reason));
    }
    let schema = headers.parsed_if(SCHEMA)?.unwrap_or(1);
    let header = EventHeader::new(event_id, stream, Version::new(version), name, recorded_at)
        .with_commit_last(Version::new(commit_last))
        .with_schema_version(schema)
        .with_codec(headers.text(CODEC)?.map(Arc::from))
        .with_metadata(headers.metadata()?);
    Ok(RecordedEvent::new(header, payload))
}

fn invalid(header: &'static str, reason: String) -> WireError {
    let source = reason.into();
    WireError::Invalid { header, source }
}

/// What follows the stream's aggregate type in `ce_type`: both may contain dots.
fn event_name(ce_type: &str, stream: &StreamId) -> Result<String, WireError> {
    let rest = ce_type.strip_prefix(stream.aggregate());
    match rest.and_then(|rest| rest.strip_prefix('.')) {
        Some(name) => Ok(name.to_owned()),
        None => Err(invalid(
            TYPE,
            format!(
                "{ce_type:?} does not begin with the aggregate type of the key, {}",
                stream.aggregate()
            ),
        )),
    }
}

struct Headers<'a>(&'a [(HeaderName, Option<Bytes>)]);

impl<'a> Headers<'a> {
    fn text(&self, name: &'static str) -> Result<Option<&'a str>, WireError> {
        let found = self.0.iter().find(|(n, _)| *n == *name);
        found.map(as_text).transpose()
    }
    fn required(&self, name: &'static str) -> Result<&'a str, WireError> {
        self.text(name)?.ok_or(WireError::Missing { header: name })
    }
    fn parsed_if<T: FromStr<Err: Into<BoxError>>>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, WireError> {
        let parse = |text: &str| {
            text.parse().map_err(|e: T::Err| WireError::Invalid {
                header: name,
                source: e.into(),
            })
        };
        self.text(name)?.map(parse).transpose()
    }
    fn parsed<T: FromStr<Err: Into<BoxError>>>(&self, name: &'static str) -> Result<T, WireError> {
        self.parsed_if(name)?
            .ok_or(WireError::Missing { header: name })
    }
    fn number(&self, name: &'static str) -> Result<Option<u64>, WireError> {
        self.parsed_if(name)
    }
    fn metadata(&self) -> Result<Metadata, WireError> {
        let mut metadata = Metadata::new();
        if let Some(id) = self.text(CORRELATION)? {
            metadata = metadata.with_correlation_id(id);
        }
        if let Some(id) = self.text(CAUSATION)? {
            metadata = metadata.with_causation_id(id);
        }
        if let Some(id) = self.text(COMMAND)? {
            metadata = metadata.with_command_id(id);
        }
        if let Some(actor) = self.text(ACTOR)? {
            metadata = metadata.with_actor(actor);
        }
        if let Some(value) = self.text(TRACEPARENT)? {
            metadata = metadata.with_traceparent(value);
        }
        for header in self.0 {
            if let Some(key) = header.0.strip_prefix(USER)
                && metadata.get(key).is_none()
            {
                metadata = metadata.with(key, as_text(header)?);
            }
        }
        Ok(metadata)
    }
}

fn as_text((name, value): &(HeaderName, Option<Bytes>)) -> Result<&str, WireError> {
    std::str::from_utf8(value.as_deref().unwrap_or_default()).map_err(|_| WireError::NotText {
        header: name.clone(),
    })
}

/// The payload's media type: JSON without a codec, the codec's tag if it is one, else bytes.
fn content_type(codec: Option<&str>) -> Bytes {
    match codec {
        None => Bytes::from_static(b"application/json"),
        Some(tag) if is_media_type(tag) => Bytes::copy_from_slice(tag.as_bytes()),
        Some(_) => Bytes::from_static(b"application/octet-stream"),
    }
}

/// `type/subtype`, with or without parameters, in the characters that RFC 9110 allows.
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
