//! The decoder of stored items: reading one item, and joining the parts of a commit.
use super::{
    encode::{FORMAT, STAMP_BYTES, USER},
    events_attribute::{self, Names},
};
use crate::attributes::{Attributes, BadAttribute, required, to_binary, to_number, to_text};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    CommitId, Metadata, StreamHead, StreamId, Timestamp, Version,
    adapter::observed_head,
    ports::{Commit, CommitKey, EventData, EventStoreError},
};

/// The error of an item that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Format {
        version: Version,
        found: u64,
    },
    Bad {
        reason: String,
    },
    /// An item of which only the key can be read.
    BadItem {
        first: Version,
        reason: String,
    },
}
impl Unreadable {
    /// Returns the error of the port. `after` is the last version that was read as part of a whole
    /// commit. Of an item below that version, the damage begins at the item.
    pub(crate) fn into_error(self, stream: &StreamId, after: Version) -> EventStoreError {
        let stream = stream.clone();
        match self {
            Self::Format { version, found } => EventStoreError::UnknownFormat {
                stream,
                version,
                found,
            },
            Self::Bad { reason } => EventStoreError::Corrupt {
                stream,
                after,
                reason,
            },
            Self::BadItem { first, reason } => EventStoreError::Corrupt {
                stream,
                after: after.min(Version::new(first.get().saturating_sub(1))),
                reason,
            },
        }
    }
    /// Notes the version at which the item starts.
    fn of_item(self, first: Version) -> Self {
        match self {
            Self::Bad { reason } => Self::BadItem { first, reason },
            other => other,
        }
    }
}
impl From<BadAttribute> for Unreadable {
    fn from(bad: BadAttribute) -> Self {
        let reason = bad.to_string();
        Self::Bad { reason }
    }
}

/// An item whose keys are decoded and whose events are not: a whole commit, or a part of a split
/// one.
#[derive(Debug)]
pub(crate) struct StoredItem {
    pub(crate) first: Version,
    pub(crate) last: Version,
    pub(crate) commit_id: CommitId,
    pub(crate) recorded_at: Timestamp,
    /// The index of the part, from 0.
    pub(crate) part: u32,
    pub(crate) parts: u32,
    codec: Option<AttributeValue>,
    events: Option<AttributeValue>,
    metadata: Option<AttributeValue>,
}

/// The attributes of an item.
///
/// They are taken in one pass, since looking up each by name costs as much as decoding an event.
#[derive(Default)]
struct Fields {
    sk: Option<AttributeValue>,
    f: Option<AttributeValue>,
    n: Option<AttributeValue>,
    c: Option<AttributeValue>,
    p: Option<AttributeValue>,
    pn: Option<AttributeValue>,
    k: Option<AttributeValue>,
    e: Option<AttributeValue>,
    m: Option<AttributeValue>,
}

impl Fields {
    fn of(item: Attributes) -> Self {
        let mut fields = Self::default();
        for (name, value) in item {
            let field = match name.as_str() {
                "sk" => &mut fields.sk,
                "f" => &mut fields.f,
                "n" => &mut fields.n,
                "c" => &mut fields.c,
                "p" => &mut fields.p,
                "pn" => &mut fields.pn,
                "k" => &mut fields.k,
                "e" => &mut fields.e,
                "m" => &mut fields.m,
                // Keys, markers, and attributes that later builds add.
                _ => continue,
            };
            *field = Some(value);
        }
        fields
    }
}

impl StoredItem {
    pub(crate) fn read(item: Attributes) -> Result<Self, Unreadable> {
        let mut fields = Fields::of(item);
        let first = required(to_number(fields.sk.take(), "sk")?, "sk")?;
        let version = Version::new(first);
        // The format comes first, since nothing else is known about an item of another format.
        match to_number(fields.f.take(), "f")? {
            None | Some(FORMAT) => {}
            Some(found) => return Err(Unreadable::Format { version, found }),
        }
        Self::starting_at(version, fields).map_err(|error| error.of_item(version))
    }

    fn starting_at(first: Version, fields: Fields) -> Result<Self, Unreadable> {
        let last = to_number(fields.n, "n")?.map_or(first, Version::new);
        let (commit_id, recorded_at) = decode_stamp(required(to_binary(fields.c, "c")?, "c")?)?;
        let part = to_number(fields.p, "p")?.unwrap_or(0);
        let parts = to_number(fields.pn, "pn")?.unwrap_or(1);
        if first == Version::NONE || last < first || part >= parts {
            let reason = format!("item {first} to {last} is part {part} of {parts}");
            return Err(Unreadable::Bad { reason });
        }
        Ok(Self {
            first,
            last,
            commit_id,
            recorded_at,
            part,
            parts,
            codec: fields.k,
            events: fields.e,
            metadata: fields.m,
        })
    }
    /// Returns true if a commit ends where this item ends.
    pub(crate) const fn ends_commit(&self) -> bool {
        self.part + 1 == self.parts
    }
    /// Returns the head of the stream at this item, if a commit ends there.
    pub(crate) fn head(&self, stream: StreamId) -> Option<StreamHead> {
        self.ends_commit()
            .then(|| observed_head(stream, self.last, self.commit_id, self.recorded_at))
    }

    fn into_events(self, names: &mut Names) -> Result<Vec<EventData>, Unreadable> {
        let codec = to_text(self.codec, "k")?;
        let events = required(self.events, "e")?;
        let events = events_attribute::decode(events, codec.as_deref(), names)?;
        let expected = self.last.get() - self.first.get() + 1;
        if events.len() as u64 != expected {
            let (first, found) = (self.first, events.len());
            let reason = format!("the item at {first} has {found} events, not {expected}");
            return Err(Unreadable::Bad { reason });
        }
        Ok(events)
    }
}

/// Joins the parts of one commit: its first item and all others in order.
///
/// # Errors
/// If the parts do not follow each other without a gap, or if a part cannot be decoded.
pub(crate) fn join(
    stream: &StreamId,
    mut first: StoredItem,
    others: Vec<StoredItem>,
    names: &mut Names,
) -> Result<Commit, Unreadable> {
    let bad = |reason: String| Unreadable::Bad { reason };
    let (id, declared) = (first.commit_id, first.parts);
    let wrong = |item: &StoredItem, index: usize| {
        (item.commit_id, item.parts) != (id, declared) || item.part as usize != index
    };
    if wrong(&first, 0) || declared as usize != 1 + others.len() {
        return Err(bad(format!("commit {id} lacks parts")));
    }
    let key = CommitKey::new(stream.clone(), first.first);
    let recorded_at = first.recorded_at;
    let metadata = decode_metadata(first.metadata.take())?;
    let mut events = first.into_events(names)?;
    for (item, index) in others.into_iter().zip(1..) {
        if wrong(&item, index) {
            return Err(bad(format!("an item of another commit lies within {id}")));
        }
        events.extend(item.into_events(names)?);
    }
    Ok(Commit::new(key, id, recorded_at, metadata, events))
}

fn decode_stamp(bytes: Vec<u8>) -> Result<(CommitId, Timestamp), BadAttribute> {
    let length = bytes.len();
    let wrong = || {
        let problem = format!("{length} bytes instead of {STAMP_BYTES}");
        BadAttribute::new("c", &problem)
    };
    let bytes: [u8; STAMP_BYTES] = bytes.try_into().map_err(|_| wrong())?;
    let (id, micros) = bytes.split_first_chunk().ok_or_else(wrong)?;
    let micros = micros.try_into().map_err(|_| wrong())?;
    let id = CommitId::from_u128(u128::from_be_bytes(*id));
    Ok((id, Timestamp::from_micros(i64::from_be_bytes(micros))))
}

fn decode_metadata(value: Option<AttributeValue>) -> Result<Metadata, BadAttribute> {
    let map = match value {
        None => return Ok(Metadata::new()),
        Some(AttributeValue::M(map)) => map,
        Some(_) => return Err(BadAttribute::new("m", "not a map")),
    };
    map.into_iter()
        .try_fold(Metadata::new(), |m, (name, value)| {
            let AttributeValue::S(value) = value else {
                return Err(BadAttribute::new("m", &format!("{name} is not a string")));
            };
            Ok(match name.as_str() {
                "command" => m.with_command_id(value),
                "correlation" => m.with_correlation_id(value),
                "causation" => m.with_causation_id(value),
                "actor" => m.with_actor(value),
                "traceparent" => m.with_traceparent(value),
                _ => match name.strip_prefix(USER) {
                    Some(key) => m.with(key, value),
                    None => m,
                },
            })
        })
}
