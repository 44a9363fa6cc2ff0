//! The stored form of a commit, and its encoder.
//!
//! The form is final: items of this format remain readable forever. The tests in
//! `tests/it/stored_form.rs` fix it.
//!
//! ```text
//! pk S  "<type>#<id>"
//! sk N  version of the item's first event
//! c  B  commit id (16 bytes), then the time of recording (8 bytes: microseconds since 1970,
//!       signed, big-endian)
//! e  S  events as JSON text [name, payload, name, payload, ...], each payload as it is. The name
//!       of an event whose schema version is not 1 is [name, schema version], or
//! e  B  the same array in CBOR, with payloads as byte strings, if a payload is not JSON text that
//!       comes back byte for byte
//! k  S  codec of the events of a CBOR array (absent: JSON). The name of an event of another codec
//!       is [name, schema version, codec], with null for JSON
//! n  N  last version of the item (absent: sk)
//! f  N  format (absent: 1)
//! p  N  index of this part of a split commit (absent: 0)
//! pn N  number of parts (absent: 1)
//! m  M  metadata: command, correlation, causation, actor, traceparent, user_<key>
//! ls S  "<type>#<shard>", on the first commit of a stream
//! mk S  "<shard>", the marker of a commit that is not yet published
//! ```
//!
//! A commit is split between events. `sk` and `n` of a part are the versions of its own events, `c`
//! is on every part, and `m`, `ls` and `mk` are on the first part only.
//!
//! # Why so few attributes?
//! The SDK takes longer to decode an attribute than this adapter takes to decode an event, and
//! DynamoDB charges for the names of attributes as for their values. An item of one event therefore
//! has four attributes, as many as a key and a typed payload need at least.
//!
//! The commit id and the time of recording are bytes, because nobody searches for them and text
//! would double their size. All that a person searches for in the console remains text: the stream,
//! the names of the events and their payloads.
//!
//! The payload is embedded as it is, not parsed, so that its bytes come back as they were given.
//! Keys of user metadata have a prefix. A user's key can then neither collide with a key of this
//! adapter nor be empty, which DynamoDB refuses.
//!
//! # Which changes need another format?
//! A reader ignores attributes that it does not know. It refuses anything else that it does not
//! know: another value of `f`, another length of `c`, another element of `e`. A build that adds
//! data which older builds must not ignore writes `f`.
use super::events_attribute;
use crate::{
    DynamoDbConfig,
    attributes::{Attributes, binary, item_bytes, number, text},
    limits::{HARD_ITEM_BYTES, MAX_ITEM_BYTES, MAX_NAME_BYTES, MAX_TRANSACTION_BYTES},
};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    CommitId, Metadata, StreamId, Timestamp, Version,
    ports::{Append, EventData, EventStoreError},
};
use std::ops::Range;

/// The format that this build writes and reads.
pub(crate) const FORMAT: u64 = 1;
pub(super) const USER: &str = "user_";
/// The length of the attribute `c` in bytes: a commit id and a time.
pub(super) const STAMP_BYTES: usize = 16 + 8;

/// Returns the key of the item that starts at `first`.
pub(crate) fn key(stream: &StreamId, first: Version) -> Attributes {
    Attributes::from([
        ("pk".into(), text(stream.as_str())),
        ("sk".into(), number(first)),
    ])
}
/// Returns the partition of the index `streams` that lists a stream.
pub(crate) fn list_shard(aggregate: &str, shard: u32) -> String {
    format!("{aggregate}#{shard}")
}

/// Encodes a commit as one item, or as the parts of a split commit.
///
/// The items have at most [`MAX_TRANSACTION_BYTES`] together.
///
/// # Errors
/// - `Invalid` if a payload without a codec is not JSON, or if a key of metadata is too long.
/// - `TooLarge` if the commit or one of its events does not fit.
pub(crate) fn items(
    append: &Append,
    config: &DynamoDbConfig,
    may_split: bool,
) -> Result<Vec<Attributes>, EventStoreError> {
    let commit = Encoder { append, config };
    let whole = commit.item(0..append.events.len(), None)?;
    let bytes = item_bytes(&whole);
    if bytes <= MAX_ITEM_BYTES {
        return Ok(vec![whole]);
    }
    if may_split && append.events.len() > 1 {
        return commit.split();
    }
    match bytes {
        0..=HARD_ITEM_BYTES => Ok(vec![whole]),
        _ => Err(commit.too_large(bytes, HARD_ITEM_BYTES)),
    }
}

struct Encoder<'a> {
    append: &'a Append,
    config: &'a DynamoDbConfig,
}

impl Encoder<'_> {
    fn too_large(&self, bytes: usize, limit: usize) -> EventStoreError {
        let stream = self.append.head.stream().clone();
        EventStoreError::TooLarge {
            stream,
            bytes,
            limit,
        }
    }

    /// Encodes the item with these events of the commit. `part` is its index and the number of
    /// parts, if the commit is split.
    fn item(
        &self,
        events: Range<usize>,
        part: Option<(usize, usize)>,
    ) -> Result<Attributes, EventStoreError> {
        let mut item = self.frame(&events, part)?;
        let (events, codec) = events_attribute::encode(&self.append.events[events])?;
        item.insert("e".into(), events);
        if let Some(codec) = codec {
            item.insert("k".into(), text(&*codec));
        }
        Ok(item)
    }

    /// Encodes all attributes of an item other than its events.
    fn frame(
        &self,
        events: &Range<usize>,
        part: Option<(usize, usize)>,
    ) -> Result<Attributes, EventStoreError> {
        let Self { append, config } = self;
        let (head, stream) = (append.head.version(), append.head.stream());
        let first = head.plus(events.start as u64 + 1);
        let last = head.plus(events.end as u64);
        let mut item = key(stream, first);
        item.insert("c".into(), stamp(append.commit_id, append.recorded_at));
        if last != first {
            item.insert("n".into(), number(last));
        }
        if let Some((index, count)) = part {
            item.insert("p".into(), number(index));
            item.insert("pn".into(), number(count));
        }
        if events.start > 0 {
            return Ok(item);
        }
        if !append.metadata.is_empty() {
            item.insert("m".into(), encode_metadata(&append.metadata)?);
        }
        if head == Version::NONE {
            let shard = list_shard(stream.aggregate(), stream.shard(config.list_shards));
            item.insert("ls".into(), text(shard));
        }
        if config.marks_commits() {
            let shard = stream.shard(config.marker_shards);
            item.insert("mk".into(), text(shard.to_string()));
        }
        Ok(item)
    }

    /// Splits the commit between events, so that each part is as full as possible.
    fn split(&self) -> Result<Vec<Attributes>, EventStoreError> {
        let ranges = self.cuts()?;
        let count = ranges.len();
        let parts = ranges.into_iter().enumerate();
        let parts: Vec<_> = parts
            .map(|(index, events)| {
                let item = self.item(events, Some((index, count)))?;
                match item_bytes(&item) {
                    0..=HARD_ITEM_BYTES => Ok(item),
                    // The part is a single event, or it would have been split.
                    bytes => Err(self.too_large(bytes, HARD_ITEM_BYTES)),
                }
            })
            .collect::<Result<_, _>>()?;
        match parts.iter().map(item_bytes).sum() {
            0..=MAX_TRANSACTION_BYTES => Ok(parts),
            bytes => Err(self.too_large(bytes, MAX_TRANSACTION_BYTES)),
        }
    }

    fn cuts(&self) -> Result<Vec<Range<usize>>, EventStoreError> {
        let events = &self.append.events;
        let codec = |e: &EventData| e.codec.as_deref().map_or(0, str::len);
        // The attribute names `e` and `k`, the brackets of the list, and numbers that are longer
        // than those of the frame that is measured here.
        let slack = 64 + events.iter().map(codec).max().unwrap_or_default();
        let frame = |at: Range<usize>| Ok(slack + item_bytes(&self.frame(&at, Some((0, 1)))?));
        let (first, others) = (frame(0..events.len())?, frame(1..events.len())?);
        let (mut cuts, mut start, mut filled) = (Vec::new(), 0, first);
        for (index, event) in events.iter().enumerate() {
            let weight = events_attribute::weight(event);
            if index > start && filled + weight > MAX_ITEM_BYTES {
                cuts.push(start..index);
                (start, filled) = (index, others);
            }
            filled += weight;
        }
        cuts.push(start..events.len());
        Ok(cuts)
    }
}

/// Encodes the attribute `c`: the commit id and the time of recording.
fn stamp(id: CommitId, recorded_at: Timestamp) -> AttributeValue {
    let mut bytes = Vec::with_capacity(STAMP_BYTES);
    bytes.extend(id.as_u128().to_be_bytes());
    bytes.extend(recorded_at.as_micros().to_be_bytes());
    binary(bytes)
}

fn encode_metadata(metadata: &Metadata) -> Result<AttributeValue, EventStoreError> {
    let known = [
        ("command", metadata.command_id().map(|id| id.as_str())),
        (
            "correlation",
            metadata.correlation_id().map(|id| id.as_str()),
        ),
        ("causation", metadata.causation_id().map(|id| id.as_str())),
        ("actor", metadata.actor().map(|id| id.as_str())),
        ("traceparent", metadata.traceparent()),
    ];
    let mut map = Attributes::new();
    for (name, value) in known {
        if let Some(value) = value {
            map.insert(name.into(), text(value));
        }
    }
    for (key, value) in metadata.user() {
        let name = format!("{USER}{key}");
        if name.len() > MAX_NAME_BYTES {
            let reason = format!("a metadata key of {} bytes is too long", key.len());
            return Err(EventStoreError::Invalid { reason });
        }
        map.insert(name, text(value));
    }
    Ok(AttributeValue::M(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PublishMode, limits::MAX_EVENT_BYTES};
    use foldstream::{StreamHead, adapter::observed_head};

    /// Returns a commit of random shape, near the sizes at which it is split.
    fn random_commit(dice: &mut fastrand::Rng) -> Append {
        let aggregate = "a".repeat(dice.usize(1..=StreamId::MAX_AGGREGATE_LEN));
        let id = "i".repeat(dice.usize(1..=StreamId::MAX_LEN - aggregate.len() - 1));
        let stream = StreamId::new(&aggregate, &id).unwrap();
        let version = Version::new(dice.u64(1..1_000_000_000));
        let now = Timestamp::now();
        let head = match dice.bool() {
            true => StreamHead::empty(stream),
            false => observed_head(stream, version, CommitId::random(), now),
        };
        let mut metadata = Metadata::new();
        for n in 0..dice.usize(0..20) {
            metadata = metadata.with(n.to_string(), "v".repeat(dice.usize(0..200)));
        }
        let most = [
            200,
            5_000,
            100_000,
            MAX_EVENT_BYTES / 2,
            MAX_EVENT_BYTES - 300,
        ];
        let most = most[dice.usize(0..most.len())];
        let mut left = dice.usize(0..3_000_000);
        let mut events = vec![random_event(dice, most)];
        while let Some(rest) = left.checked_sub(events[events.len() - 1].bytes()) {
            left = rest;
            events.push(random_event(dice, most));
        }
        Append::after(head, CommitId::random(), now, events).with_metadata(metadata)
    }

    fn random_event(dice: &mut fastrand::Rng, most: usize) -> EventData {
        let name = "n".repeat(dice.usize(1..40));
        let payload = format!("\"{}\"", "x".repeat(dice.usize(0..most)));
        let codec = ["a", "application/cbor"][dice.usize(0..2)];
        let codec = dice.bool().then(|| codec.into());
        EventData::new(name, dice.u16(1..), payload).with_codec(codec)
    }

    /// The in-memory store counts as the port does, so its limits hold here too.
    #[test]
    fn no_commit_has_more_parts_or_bytes_than_the_port_counts() {
        let config = DynamoDbConfig::default().with_publish_mode(PublishMode::Both);
        let mut dice = fastrand::Rng::with_seed(7);
        let mut split = 0;
        for round in 0..150 {
            let append = random_commit(&mut dice);
            let items = items(&append, &config, true).unwrap();
            let parts = append.parts(MAX_ITEM_BYTES);
            assert!(items.len() <= parts, "{round}: {} of {parts}", items.len());
            let (bytes, counted) = (
                items.iter().map(item_bytes).sum::<usize>(),
                append.bytes_in_parts(MAX_ITEM_BYTES),
            );
            assert!(bytes <= counted, "{round}: {bytes} of {counted}");
            split += usize::from(items.len() > 1);
        }
        assert!(split > 30, "{split} were split");
    }
}
