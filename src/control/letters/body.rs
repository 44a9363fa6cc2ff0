//! [`LetterBody`]: a record or a recorded event as bytes.
//!
//! ```text
//! {"k":"r","t":topic,"p":partition,"o":offset,"at":microseconds,
//!  "y":bytes of the key,"b":bytes of the value,"h":[[name,bytes]]}
//! {"k":"e","i":event id,"s":stream,"v":version,"l":last of the commit,"n":name,
//!  "e":schema,"c":codec,"at":microseconds,"m":metadata,"b":bytes}
//! 0x0A (the line before has no break of its own)
//! the key, the value, and the values of the headers, as they came, without separators
//! ```
//! A length that is absent, or `null` in the list of headers, stands for a part that the record
//! does not have. Metadata has the form that it has in a commit of format 1.
use crate::{
    EventHeader, EventId, RecordedEvent, StreamId, Timestamp, Version,
    ports::{HeaderName, Message, Offset, StoredMetadata, metadata_value},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A record as it came from the bus, with its offset.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StoredRecord {
    /// The key, the value and the headers, and the topic and the partition that held the record.
    pub message: Message,
    /// The offset of the record in its partition.
    pub offset: Offset,
}

impl StoredRecord {
    /// Creates a record from a message of a bus and its offset.
    #[must_use]
    pub const fn new(message: Message, offset: Offset) -> Self {
        Self { message, offset }
    }
    /// Returns the record as one value, for a row.
    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut value = Vec::new();
        write_record(self, &mut value);
        value.into()
    }
    /// Reads the offset from the first line of what [`to_bytes`](Self::to_bytes) has written.
    pub(crate) fn offset_in(line: &[u8]) -> Result<Offset, String> {
        match serde_json::from_slice(line).map_err(|e| e.to_string())? {
            Shape::Record { offset, .. } => Ok(offset),
            Shape::Event { .. } => Err("it is an event and not a record".into()),
        }
    }
    /// Reads what [`to_bytes`](Self::to_bytes) has written.
    pub(crate) fn from_bytes(value: &Bytes) -> Result<Self, String> {
        match LetterBody::read(value)? {
            LetterBody::Record(record) => Ok(record),
            LetterBody::Event(_) => Err("it is an event and not a record".into()),
        }
    }
}

/// The content of a dead letter: what failed, as the processor got it.
///
/// Payloads are as they are stored: sealed ones stay sealed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LetterBody {
    /// A record that came by the bus.
    Record(StoredRecord),
    /// An event that came from the event store, where a gap was filled or a stream was redriven.
    Event(RecordedEvent),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "k")]
enum Shape {
    #[serde(rename = "r")]
    Record {
        #[serde(rename = "t")]
        topic: String,
        #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
        partition: Option<u32>,
        #[serde(rename = "o")]
        offset: Offset,
        #[serde(rename = "at")]
        timestamp: Timestamp,
        #[serde(rename = "y", default, skip_serializing_if = "Option::is_none")]
        key: Option<usize>,
        #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
        value: Option<usize>,
        #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(String, Option<usize>)>,
    },
    #[serde(rename = "e")]
    Event {
        #[serde(rename = "i")]
        id: String,
        #[serde(rename = "s")]
        stream: StreamId,
        #[serde(rename = "v")]
        version: Version,
        #[serde(rename = "l")]
        commit_last: Version,
        #[serde(rename = "n")]
        name: String,
        #[serde(rename = "e")]
        schema_version: u16,
        #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
        codec: Option<String>,
        #[serde(rename = "at")]
        recorded_at: Timestamp,
        #[serde(
            rename = "m",
            default,
            skip_serializing_if = "serde_json::Value::is_null"
        )]
        metadata: serde_json::Value,
        #[serde(rename = "b")]
        payload: usize,
    },
}

impl LetterBody {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Record(record) => write_record(record, out),
            Self::Event(event) => write_event(event, out),
        }
    }

    pub(super) fn read(value: &Bytes) -> Result<Self, String> {
        let end = value.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or("the line that says what it holds does not end")?;
        let shape = serde_json::from_slice(&value[..end]).map_err(|e| e.to_string())?;
        let mut parts = Parts(value.slice(end + 1..));
        let body = parts.body(shape)?;
        match parts.0.len() {
            0 => Ok(body),
            extra => Err(format!("{extra} bytes follow after its last part")),
        }
    }
}

/// The bytes that are not read yet.
struct Parts(Bytes);

impl Parts {
    fn take(&mut self, len: usize) -> Result<Bytes, String> {
        if len > self.0.len() {
            return Err(format!("{} bytes are missing", len - self.0.len()));
        }
        Ok(self.0.split_to(len))
    }
    fn take_if(&mut self, len: Option<usize>) -> Result<Option<Bytes>, String> {
        len.map(|len| self.take(len)).transpose()
    }

    fn body(&mut self, shape: Shape) -> Result<LetterBody, String> {
        match shape {
            Shape::Record {
                topic,
                partition,
                offset,
                timestamp,
                key,
                value,
                headers,
            } => {
                let mut message = Message::new(topic, timestamp);
                message.partition = partition;
                message.key = self.take_if(key)?;
                message.value = self.take_if(value)?;
                for (name, len) in headers {
                    let name = HeaderName::new(name).map_err(|e| e.to_string())?;
                    message.headers.push(name, self.take_if(len)?.as_deref());
                }
                Ok(LetterBody::Record(StoredRecord::new(message, offset)))
            }
            Shape::Event {
                id,
                stream,
                version,
                commit_last,
                name,
                schema_version,
                codec,
                recorded_at,
                metadata,
                payload,
            } => {
                let id: EventId = id.parse().map_err(|e| format!("{e}"))?;
                let metadata: Option<StoredMetadata> =
                    serde_json::from_value(metadata).map_err(|e| e.to_string())?;
                let metadata = metadata.map(StoredMetadata::into_metadata);
                let header = EventHeader::new(id, stream, version, name, recorded_at)
                    .with_commit_last(commit_last)
                    .with_schema_version(schema_version)
                    .with_codec(codec.map(Arc::from))
                    .with_metadata(metadata.unwrap_or_default());
                let payload = self.take(payload)?;
                Ok(LetterBody::Event(RecordedEvent::new(header, payload)))
            }
        }
    }
}

fn write_record(record: &StoredRecord, out: &mut Vec<u8>) {
    let message = &record.message;
    let len = |part: Option<&[u8]>| part.map(<[u8]>::len);
    let headers = message.headers.iter();
    let shape = Shape::Record {
        topic: message.topic.as_ref().into(),
        partition: message.partition,
        offset: record.offset,
        timestamp: message.timestamp,
        key: len(message.key.as_deref()),
        value: len(message.value.as_deref()),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), len(value)))
            .collect(),
    };
    write_shape(&shape, out);
    let values = message.headers.iter().map(|(_, value)| value);
    let parts = [message.key.as_deref(), message.value.as_deref()];
    let parts = parts.into_iter().chain(values);
    parts.flatten().for_each(|part| out.extend_from_slice(part));
}

fn write_event(event: &RecordedEvent, out: &mut Vec<u8>) {
    let header = &event.header;
    let shape = Shape::Event {
        id: header.event_id.to_string(),
        stream: header.stream.clone(),
        version: header.version,
        commit_last: header.commit_last,
        name: header.name.as_str().to_owned(),
        schema_version: header.schema_version,
        codec: header.codec.as_deref().map(Into::into),
        recorded_at: header.recorded_at,
        metadata: metadata_value(&header.metadata),
        payload: event.payload.len(),
    };
    write_shape(&shape, out);
    out.extend_from_slice(&event.payload);
}

fn write_shape(shape: &Shape, out: &mut Vec<u8>) {
    // Numbers, texts and lists of them always have a JSON form, and writing to a Vec cannot fail.
    match serde_json::to_vec(shape) {
        Ok(line) => out.extend_from_slice(&line),
        Err(error) => tracing::error!(error = crate::chain(&error), "a letter has no JSON form"),
    }
    out.push(b'\n');
}
