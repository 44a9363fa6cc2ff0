//! Streams: their ids, and the versions of their events.
use crate::text::forbidden_char;
use std::{
    fmt::{self, Display, Write as _},
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

/// The position of an event in its stream, without gaps. The first event has version 1; 0 means "no
/// events".
///
/// # Example
/// ```
/// use foldstream::Version;
/// assert_eq!(Version::NONE.next(), Version::new(1));
/// assert_eq!(Version::new(7).plus(3).get(), 10);
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Version(u64);

impl Version {
    /// The version before the first event: that of an empty stream.
    pub const NONE: Self = Self(0);

    /// Creates a version from a number, for instance from an HTTP `If-Match` header.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
    /// Returns the number of the version.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Returns the version of the next event.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }
    /// Returns the version that is `events` events later. The highest version is a limit.
    #[must_use]
    pub const fn plus(self, events: u64) -> Self {
        Self(self.0.saturating_add(events))
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of one stream, written `<aggregate type>#<id>`. Cloning it increments a reference
/// count.
///
/// The aggregate type has 1 to 64 characters of `[A-Za-z0-9_.-]`. The first `#` ends it, so the id
/// may contain `#`. The id holds neither control characters nor Unicode noncharacters: it becomes
/// part of record keys, of headers and of rows whose keys join several ids with U+001F. The whole
/// text has at most [`StreamId::MAX_LEN`] bytes.
#[derive(Clone)]
pub struct StreamId {
    text: Arc<str>,
    /// The number of bytes before the `#`.
    split: u8,
}

/// The error returned for a text that cannot name a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidStreamId {
    /// The id of the stream is empty.
    #[error("the id of a stream of {aggregate} is empty")]
    EmptyId {
        /// The aggregate type of the stream.
        aggregate: String,
    },
    /// The aggregate type is empty, too long, or has a character that is not allowed.
    #[error("{found:?} is no aggregate type: 1 to 64 characters of A-Z a-z 0-9 _ . -")]
    AggregateType {
        /// The text that was given.
        found: String,
    },
    /// There is no `#` between the aggregate type and the id.
    #[error("{found:?} is no stream id: it is written <aggregate type>#<id>")]
    NoSeparator {
        /// The text that was given.
        found: String,
    },
    /// The id holds a control character (C0, DEL, C1) or a Unicode noncharacter.
    #[error("the id of a stream of {aggregate} holds the character U+{code:04X}, which record keys and headers must not: encode it", code = u32::from(*found))]
    Character {
        /// The aggregate type of the stream.
        aggregate: String,
        /// The first such character in the id.
        found: char,
    },
    /// The `Display` of the id returned an error. The text that it wrote before may be the
    /// beginning of another id, so it is not used.
    #[error("the `Display` of the id of a stream of {aggregate} returned an error")]
    NotDisplayed {
        /// The aggregate type of the stream.
        aggregate: String,
    },
    /// The text is longer than [`StreamId::MAX_LEN`] bytes.
    #[error("a stream id has at most {max} bytes, this one has {len}", max = StreamId::MAX_LEN)]
    TooLong {
        /// The length of the text in bytes.
        len: usize,
    },
}

impl StreamId {
    /// The largest length of a stream id in bytes. Every adapter can store such an id and still has
    /// room for a composite key: DynamoDB limits sort keys to 1,024 bytes.
    pub const MAX_LEN: usize = 512;
    /// The largest number of characters in an aggregate type.
    pub const MAX_AGGREGATE_LEN: usize = 64;

    /// Joins an aggregate type and an id.
    ///
    /// # Errors
    /// [`InvalidStreamId`] if the two cannot name a stream; it names the broken rule.
    ///
    /// # Example
    /// ```
    /// use foldstream::StreamId;
    /// let stream = StreamId::new("cart", "a#b")?;
    /// assert_eq!((stream.aggregate(), stream.id(), stream.as_str()), ("cart", "a#b", "cart#a#b"));
    /// # Ok::<(), foldstream::InvalidStreamId>(())
    /// ```
    pub fn new(aggregate: &str, id: &(impl Display + ?Sized)) -> Result<Self, InvalidStreamId> {
        let mut text = String::with_capacity(aggregate.len() + 40);
        text.push_str(aggregate);
        text.push('#');
        // Writing to a String cannot fail, but the id's `Display` can.
        write!(text, "{id}").map_err(|_| InvalidStreamId::NotDisplayed {
            aggregate: aggregate.chars().take(80).collect(),
        })?;
        Self::checked(aggregate.len(), text.into())
    }

    /// Parses the stored form of a stream id.
    ///
    /// # Errors
    /// [`InvalidStreamId`] if the text cannot name a stream; it names the broken rule.
    ///
    /// # Example
    /// ```
    /// use foldstream::StreamId;
    /// let stream = StreamId::parse("cart#7")?;
    /// assert_eq!(stream, StreamId::new("cart", "7")?);
    /// assert!(StreamId::parse("cart").is_err());
    /// # Ok::<(), foldstream::InvalidStreamId>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, InvalidStreamId> {
        let split = text.find('#').ok_or_else(|| InvalidStreamId::NoSeparator {
            found: text.chars().take(80).collect(),
        })?;
        Self::checked(split, text.into())
    }

    fn checked(split: usize, text: Arc<str>) -> Result<Self, InvalidStreamId> {
        let aggregate = &text[..split];
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if split == 0 || split > Self::MAX_AGGREGATE_LEN || !aggregate.bytes().all(allowed) {
            return Err(InvalidStreamId::AggregateType {
                found: aggregate.chars().take(80).collect(),
            });
        }
        if text.len() == split + 1 {
            return Err(InvalidStreamId::EmptyId {
                aggregate: aggregate.into(),
            });
        }
        if text.len() > Self::MAX_LEN {
            return Err(InvalidStreamId::TooLong { len: text.len() });
        }
        if let Some(found) = forbidden_char(&text[split + 1..]) {
            return Err(InvalidStreamId::Character {
                aggregate: aggregate.into(),
                found,
            });
        }
        // At most 64, checked above.
        let split = split as u8;
        Ok(Self { text, split })
    }

    /// Returns the stored form, `<aggregate type>#<id>`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
    /// Returns the aggregate type.
    pub fn aggregate(&self) -> &str {
        &self.text[..usize::from(self.split)]
    }
    /// Returns the id within its aggregate type.
    pub fn id(&self) -> &str {
        &self.text[usize::from(self.split) + 1..]
    }
    /// Returns the shard to which rows about this stream belong: `murmur2(stream) % shards`. A
    /// `shards` of 0 counts as 1.
    pub fn shard(&self, shards: u32) -> u32 {
        crate::murmur2(self.text.as_bytes()) % shards.max(1)
    }
}

impl PartialEq for StreamId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}
impl Eq for StreamId {}
impl Hash for StreamId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl PartialOrd for StreamId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for StreamId {
    /// Byte by byte, by the stored form.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}
impl Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({})", self.text)
    }
}
impl FromStr for StreamId {
    type Err = InvalidStreamId;
    fn from_str(text: &str) -> Result<Self, InvalidStreamId> {
        Self::parse(text)
    }
}
impl serde::Serialize for StreamId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}
impl<'de> serde::Deserialize<'de> for StreamId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Declares a typed text id with `new`, `as_str`, `Display`, `FromStr`, serde and `From<&str>`:
/// `id!(pub CartId);`
///
/// # Example
/// ```
/// foldstream::id!(CartId);
/// assert_eq!(CartId::from("c-1").to_string(), "c-1");
/// ```
#[macro_export]
macro_rules! id {
    ($(#[$attr:meta])* $vis:vis $name:ident) => {
        $(#[$attr])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis struct $name(::std::sync::Arc<str>);
        #[allow(dead_code, unreachable_pub, reason = "a generated id offers more than every user needs")]
        impl $name {
            /// Creates an id from a text.
            $vis fn new(text: impl Into<::std::sync::Arc<str>>) -> Self { Self(text.into()) }
            /// Returns the text of the id.
            $vis fn as_str(&self) -> &str { &self.0 }
        }
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result { f.write_str(&self.0) }
        }
        impl ::std::str::FromStr for $name {
            type Err = ::std::convert::Infallible;
            fn from_str(text: &str) -> ::std::result::Result<Self, Self::Err> { Ok(Self(text.into())) }
        }
        impl From<&str> for $name { fn from(text: &str) -> Self { Self(text.into()) } }
        impl From<String> for $name { fn from(text: String) -> Self { Self(text.into()) } }
        impl $crate::__private::serde::Serialize for $name {
            fn serialize<S: $crate::__private::serde::Serializer>(&self, s: S) -> ::std::result::Result<S::Ok, S::Error> { s.serialize_str(&self.0) }
        }
        impl<'de> $crate::__private::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::__private::serde::Deserializer<'de>>(d: D) -> ::std::result::Result<Self, D::Error> {
                <::std::string::String as $crate::__private::serde::Deserialize>::deserialize(d).map(|text| Self(text.into()))
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_splits() {
        let stream = StreamId::parse("cart#a#b").unwrap();
        assert_eq!((stream.aggregate(), stream.id()), ("cart", "a#b"));
        assert_eq!(stream, StreamId::new("cart", "a#b").unwrap());
    }

    #[test]
    fn an_aggregate_type_is_of_letters_digits_and_three_signs_at_most_64() {
        for byte in 0..=127_u8 {
            let aggregate = char::from(byte).to_string();
            let allowed = byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            assert_eq!(StreamId::new(&aggregate, "x").is_ok(), allowed, "{byte}");
        }
        assert!(StreamId::new(&"x".repeat(64), "x").is_ok());
        assert!(StreamId::new(&"x".repeat(65), "x").is_err());
    }

    #[test]
    fn the_length_of_a_stream_id_is_counted_in_bytes_of_utf8() {
        // "cart#" and 253 letters of two bytes, and one of one: 512.
        let id = "ä".repeat(253);
        assert!(StreamId::new("cart", &format!("{id}x")).is_ok());
        let one_more = StreamId::new("cart", &format!("{id}xy"));
        assert_eq!(one_more, Err(InvalidStreamId::TooLong { len: 513 }));
    }

    #[test]
    fn the_stored_form_reads_back_whatever_the_id_holds() {
        for id in [
            "x", "#", "a#b#", " ", "\u{a0}", "\u{200d}", "Käse/7", "cart#x",
        ] {
            let stream = StreamId::new("cart", id).unwrap();
            let back = StreamId::parse(stream.as_str()).unwrap();
            assert_eq!((back.aggregate(), back.id()), ("cart", id));
            assert_eq!(back, stream);
        }
    }

    #[test]
    fn an_id_with_a_control_character_or_noncharacter_is_refused() {
        for found in [
            '\0', '\t', '\n', '\u{1f}', '\u{7f}', '\u{80}', '\u{9f}', '\u{fdd0}', '\u{ffff}',
        ] {
            let error = InvalidStreamId::Character {
                aggregate: "cart".into(),
                found,
            };
            assert_eq!(
                StreamId::new("cart", &format!("a{found}b")),
                Err(error.clone())
            );
            assert_eq!(StreamId::parse(&format!("cart#{found}")), Err(error));
        }
        let error = StreamId::new("cart", "a\u{1f}").unwrap_err().to_string();
        assert!(
            error.contains("U+001F") && !error.contains('\u{1f}'),
            "{error}"
        );
    }

    #[test]
    fn an_id_whose_display_fails_names_no_stream() {
        struct Cut(&'static str);
        impl Display for Cut {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("user-")?;
                if self.0.len() > 3 {
                    return Err(fmt::Error);
                }
                f.write_str(self.0)
            }
        }
        assert!(StreamId::new("user", &Cut("ann")).is_ok());
        for id in [Cut("anna"), Cut("bert")] {
            let aggregate = "user".into();
            let error = InvalidStreamId::NotDisplayed { aggregate };
            assert_eq!(StreamId::new("user", &id), Err(error));
        }
    }

    #[test]
    fn versions_begin_at_1_and_0_is_no_event() {
        assert_eq!(Version::NONE.next(), Version::new(1));
        assert_eq!(Version::new(3).plus(4), Version::new(7));
        assert_eq!(Version::new(u64::MAX).next(), Version::new(u64::MAX));
    }

    #[test]
    fn invalid_stream_ids_name_the_broken_rule() {
        let new = |aggregate: &str, id: &str| StreamId::new(aggregate, id).unwrap_err();
        assert!(matches!(new("cart", ""), InvalidStreamId::EmptyId { .. }));
        for aggregate in ["", "ca#rt", "ca rt", "käse", &"x".repeat(65)] {
            assert!(
                matches!(new(aggregate, "x"), InvalidStreamId::AggregateType { .. }),
                "{aggregate}"
            );
        }
        assert_eq!(
            new("cart", &"x".repeat(508)),
            InvalidStreamId::TooLong { len: 513 }
        );
        assert!(StreamId::new("cart", &"x".repeat(507)).is_ok());
        assert!(matches!(
            StreamId::parse("cart"),
            Err(InvalidStreamId::NoSeparator { .. })
        ));
    }
}
