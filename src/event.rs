//! Events: the typed side ([`DomainEvent`], [`EventSet`]) and the envelope that ports carry ([`RecordedEvent`]).
use crate::{
    CodecError, EventId, Metadata, StreamId, Timestamp, Upcasters, Version, shared_str::SharedStr,
};
use bytes::Bytes;
use std::{
    fmt::{self, Debug, Display},
    ops::Deref,
    sync::Arc,
};

/// The stored name and schema version of one kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventType {
    name: &'static str,
    schema_version: u16,
}

impl EventType {
    /// Names a kind of event; `schema_version` starts at 1.
    pub const fn new(name: &'static str, schema_version: u16) -> Self {
        Self {
            name,
            schema_version,
        }
    }
    /// The stored name, unique within its aggregate type.
    pub const fn name(&self) -> &'static str {
        self.name
    }
    /// The version that this build writes.
    pub const fn schema_version(&self) -> u16 {
        self.schema_version
    }
}

/// The events of one aggregate type: a closed set of facts and how each is stored. Usually derived.
///
/// The stored name of a variant defaults to its Rust name: renaming a variant without `#[event(name = "...")]` changes
/// what is stored.
///
/// # Examples
/// ```
/// use foldstream::{DomainEvent, Upcasters};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "cart", upcasters = older_carts)]
/// enum CartEvent {
///     #[event(version = 2)]
///     ItemAdded {
///         sku: String,
///         quantity: u32,
///         #[serde(default, skip_serializing_if = "Option::is_none")]
///         note: Option<String>,
///     },
///     CheckedOut,
/// }
///
/// fn older_carts() -> Upcasters {
///     // Version 1 had no quantity.
///     Upcasters::new().with_json("cart", "ItemAdded", 1, |payload| {
///         payload["quantity"] = 1.into();
///         Ok(())
///     })
/// }
/// ```
///
/// An attribute of serde that would have no effect does not compile:
/// ```compile_fail
/// #[derive(Clone, Debug, PartialEq, foldstream::DomainEvent)]
/// #[event(aggregate = "cart")]
/// #[serde(rename_all = "camelCase")]
/// enum CartEvent { CheckedOut }
/// ```
///
/// Nor does a field whose type serde cannot write and read:
/// ```compile_fail
/// #[derive(Clone, Debug, PartialEq)]
/// struct Quantity(u32);
/// #[derive(Clone, Debug, PartialEq, foldstream::DomainEvent)]
/// #[event(aggregate = "cart")]
/// enum CartEvent { ItemAdded { quantity: Quantity } }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event type",
    label = "not a `DomainEvent`",
    note = "derive it for the enum: `#[derive(Clone, Debug, PartialEq, DomainEvent)]` and `#[event(aggregate = \"...\")]`"
)]
pub trait DomainEvent: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The stored name of the aggregate type whose streams hold these events: `[A-Za-z0-9_.-]{1,64}`.
    const AGGREGATE: &'static str;
    /// Every kind, in the order of [`type_index`](Self::type_index).
    const TYPES: &'static [EventType];
    /// Which of [`TYPES`](Self::TYPES) this value is.
    fn type_index(&self) -> usize;
    /// Appends the payload, without name or version, to `out`.
    ///
    /// # Errors
    /// [`CodecError::Encode`] if the value cannot be written.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;
    /// Reads a payload of `TYPES[type_index]` in that type's current schema version.
    ///
    /// # Errors
    /// [`CodecError::Decode`] if the bytes are not this type's.
    fn decode(type_index: usize, payload: &[u8]) -> Result<Self, CodecError>;
    /// Returns true if `decoded`, which was read back from what this value was encoded to, is this value.
    ///
    /// A repository asks before it stores an event, and refuses the event with [`CodecError::Encode`] if it is not. The
    /// default compares with [`PartialEq`]. A difference that `PartialEq` ignores is therefore not seen, and a value that
    /// does not equal itself, such as one with NaN, is refused in every format. The derive compares such a value by what it
    /// serializes, so a NaN that is written as its bits is stored, and one that is written as `null` is not; fields that are
    /// not serialized are not seen then. A type whose `PartialEq` means something else, such as the same identity,
    /// overrides this method.
    fn equals_decoded(&self, decoded: &Self) -> bool {
        self == decoded
    }
    /// The upcasters that lift older payloads of this type. Default: none. Derived with `#[event(upcasters = path)]`.
    ///
    /// All readers use them: repositories, runners, the testkit. Each calls this once, when it is made.
    fn upcasters() -> Upcasters {
        Upcasters::new()
    }
    /// The stored name and version of this value.
    fn event_type(&self) -> &'static EventType {
        &Self::TYPES[self.type_index()]
    }
}

/// Reads a payload from any serde format. Derived with [`DomainEvent`]; the schema check of `foldstream-testkit` traces
/// the payloads' shapes by it.
pub trait DeserializePayload: DomainEvent {
    /// Reads a payload of `TYPES[type_index]`; a payload without fields is not looked at.
    ///
    /// # Errors
    /// The deserializer's, also for an index that there is not.
    fn deserialize_payload<'de, D: serde::Deserializer<'de>>(
        type_index: usize,
        deserializer: D,
    ) -> Result<Self, D::Error>;
}

/// The result of decoding one recorded event with an [`EventSet`].
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<E> {
    /// In the set, and decoded.
    Event(E),
    /// Of another aggregate type: skipped without looking at the payload.
    NotMine,
    /// Of an aggregate type in the set, under a name that this build does not know.
    Unknown,
}

/// One aggregate type and the names that a set takes from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventSelector {
    /// The aggregate type.
    pub aggregate: &'static str,
    /// Its kinds of events.
    pub types: &'static [EventType],
}

/// A set of events that a handler receives: those of one aggregate type (every [`DomainEvent`]), or of several
/// ([`event_set!`](crate::event_set)).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a set of events that a handler can receive",
    label = "neither a `DomainEvent` nor an `event_set!`",
    note = "derive `DomainEvent` for the events of one aggregate type; declare `event_set!` for those of several"
)]
pub trait EventSet: Clone + Debug + Send + Sync + Sized + 'static {
    /// Which aggregate types and names belong to the set.
    fn selectors() -> Vec<EventSelector>;

    /// Decodes one event whose payload the upcasters have already lifted.
    ///
    /// # Errors
    /// [`CodecError::TooNew`] for a known name in a schema version that this build does not know yet,
    /// [`CodecError::NoUpcaster`] for an older one that nothing lifted, [`CodecError::Decode`] for foreign bytes.
    fn decode_from(
        aggregate: &str,
        name: &str,
        schema_version: u16,
        payload: &[u8],
    ) -> Result<Decoded<Self>, CodecError>;

    /// The upcasters that the event types in the set bring. Default: none.
    fn upcasters() -> Upcasters {
        Upcasters::new()
    }
}

impl<E: DomainEvent> EventSet for E {
    fn selectors() -> Vec<EventSelector> {
        vec![EventSelector {
            aggregate: E::AGGREGATE,
            types: E::TYPES,
        }]
    }

    fn decode_from(
        aggregate: &str,
        name: &str,
        schema_version: u16,
        payload: &[u8],
    ) -> Result<Decoded<Self>, CodecError> {
        if aggregate != E::AGGREGATE {
            return Ok(Decoded::NotMine);
        }
        let Some(index) = E::TYPES.iter().position(|t| t.name == name) else {
            return Ok(Decoded::Unknown);
        };
        let known = E::TYPES[index].schema_version;
        if schema_version != known {
            return Err(CodecError::schema(aggregate, name, schema_version, known));
        }
        E::decode(index, payload).map(Decoded::Event)
    }

    fn upcasters() -> Upcasters {
        E::upcasters()
    }
}

/// Declares a closed sum of several aggregates' events: `event_set!(pub enum ShopEvent { Cart(CartEvent), Loan(LoanEvent) });`
///
/// Two members that read the same aggregate type do not compile.
#[macro_export]
macro_rules! event_set {
    ($(#[$attr:meta])* $vis:vis enum $set:ident { $($variant:ident($event:ty)),+ $(,)? }) => {
        $(#[$attr])* #[derive(Clone, Debug, PartialEq)]
        $vis enum $set { $(#[doc = "Events of one aggregate type."] $variant($event)),+ }
        // Two members that read the same streams would make decoding depend on their order.
        const _: () = $crate::event_set!(@disjoint [$(<$event as $crate::DomainEvent>::AGGREGATE),+]);
        impl $crate::EventSet for $set {
            fn selectors() -> ::std::vec::Vec<$crate::EventSelector> {
                let mut all = ::std::vec::Vec::new();
                $(all.extend(<$event as $crate::EventSet>::selectors());)+
                all
            }
            fn decode_from(aggregate: &str, name: &str, schema_version: u16, payload: &[u8])
                -> ::core::result::Result<$crate::Decoded<Self>, $crate::CodecError> {
                $(match <$event as $crate::EventSet>::decode_from(aggregate, name, schema_version, payload)? {
                    $crate::Decoded::Event(event) => return Ok($crate::Decoded::Event(Self::$variant(event))),
                    $crate::Decoded::Unknown => return Ok($crate::Decoded::Unknown),
                    $crate::Decoded::NotMine => {}
                })+
                Ok($crate::Decoded::NotMine)
            }
            fn upcasters() -> $crate::Upcasters {
                let all = $crate::Upcasters::new();
                $(let all = all.with_all(&<$event as $crate::EventSet>::upcasters());)+
                all
            }
        }
    };
    (@disjoint [$($name:expr),+]) => {{
        let names: &[&str] = &[$($name),+];
        let mut i = 0;
        while i < names.len() {
            let mut j = i + 1;
            while j < names.len() {
                let (a, b) = (names[i].as_bytes(), names[j].as_bytes());
                if a.len() == b.len() {
                    let mut k = 0;
                    while k < a.len() && a[k] == b[k] { k += 1; }
                    assert!(k < a.len(), "two members of this event_set! read the same aggregate type");
                }
                j += 1;
            }
            i += 1;
        }
    }};
}

/// A stored event name. Names from this build are static, names from a store are shared: cloning allocates in neither case.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EventName(SharedStr);

impl EventName {
    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}
impl Deref for EventName {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}
impl From<&'static str> for EventName {
    fn from(text: &'static str) -> Self {
        Self(SharedStr::Static(text))
    }
}
impl From<String> for EventName {
    fn from(text: String) -> Self {
        Self(SharedStr::Shared(text.into()))
    }
}
impl From<Arc<str>> for EventName {
    fn from(text: Arc<str>) -> Self {
        Self(SharedStr::Shared(text))
    }
}
impl PartialEq<str> for EventName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}
impl PartialEq<&str> for EventName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}
impl Debug for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.0, f)
    }
}
impl Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// Everything about a recorded event except its payload.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EventHeader {
    /// Unique, and the same on every redelivery.
    pub event_id: EventId,
    /// The stream that the event belongs to.
    pub stream: StreamId,
    /// Place in the stream: 1 is the first event, without gaps.
    pub version: Version,
    /// Version of the last event of the same commit: only there do heads, snapshots and watermarks exist.
    pub commit_last: Version,
    /// Stored name.
    pub name: EventName,
    /// Schema version that the payload was written in.
    pub schema_version: u16,
    /// The tag of the codec that wrote the payload; `None` for JSON.
    pub codec: Option<Arc<str>>,
    /// The writer's clock at the commit.
    pub recorded_at: Timestamp,
    /// Correlation, causation, trace and the user's own entries; shared by the events of a commit.
    pub metadata: Metadata,
}

/// One event as the store and the bus carry it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordedEvent {
    /// Identity, place and metadata.
    pub header: EventHeader,
    /// The encoded payload, without name or version.
    pub payload: Bytes,
}

/// One decoded event of a history, with its header.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recorded<E> {
    /// Identity, place and metadata.
    pub header: EventHeader,
    /// The decoded event.
    pub event: E,
}

impl EventHeader {
    /// For adapters and the wire format: the header of a one-event commit with a JSON payload of schema version 1.
    #[must_use]
    pub fn new(
        event_id: EventId,
        stream: StreamId,
        version: Version,
        name: impl Into<EventName>,
        recorded_at: Timestamp,
    ) -> Self {
        Self {
            event_id,
            stream,
            version,
            commit_last: version,
            name: name.into(),
            schema_version: 1,
            codec: None,
            recorded_at,
            metadata: Metadata::default(),
        }
    }
    /// Sets the version of the commit's last event.
    #[must_use]
    pub const fn with_commit_last(mut self, last: Version) -> Self {
        self.commit_last = last;
        self
    }
    /// Sets the payload's schema version.
    #[must_use]
    pub const fn with_schema_version(mut self, schema_version: u16) -> Self {
        self.schema_version = schema_version;
        self
    }
    /// Sets what the payload is written in.
    #[must_use]
    pub fn with_codec(mut self, codec: Option<Arc<str>>) -> Self {
        self.codec = codec;
        self
    }
    /// Adds the commit's metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
}

impl RecordedEvent {
    /// Joins a header and its payload.
    #[must_use]
    pub const fn new(header: EventHeader, payload: Bytes) -> Self {
        Self { header, payload }
    }
}

impl<E> Recorded<E> {
    pub(crate) const fn new(header: EventHeader, event: E) -> Self {
        Self { header, event }
    }
}
