//! Events: the typed side ([`DomainEvent`], [`EventSet`]), and the envelope that ports carry
//! ([`RecordedEvent`]).
use crate::{
    CodecError, EventId, Metadata, StreamId, Timestamp, Upcasters, Version, shared_str::SharedStr,
};
use bytes::Bytes;
use std::{
    fmt::{self, Debug, Display},
    ops::Deref,
    sync::Arc,
};

/// The stored name and the schema version of one kind of event.
///
/// # Example
/// ```
/// use foldstream::EventType;
/// const ADDED: EventType = EventType::new("ItemAdded", 2);
/// assert_eq!((ADDED.name(), ADDED.schema_version()), ("ItemAdded", 2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventType {
    name: &'static str,
    schema_version: u16,
}

impl EventType {
    /// Creates the type of an event with this stored name; `schema_version` starts at 1.
    pub const fn new(name: &'static str, schema_version: u16) -> Self {
        Self {
            name,
            schema_version,
        }
    }
    /// Returns the stored name, which is unique within its aggregate type.
    pub const fn name(&self) -> &'static str {
        self.name
    }
    /// Returns the schema version that this build writes.
    pub const fn schema_version(&self) -> u16 {
        self.schema_version
    }
}

/// The events of one aggregate type: a closed set of facts and how each is stored. Usually derived.
///
/// The stored name of a variant defaults to its Rust name: renaming a variant without
/// `#[event(name = "...")]` changes what is stored.
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
///
/// let added = CartEvent::ItemAdded { sku: "milk".into(), quantity: 2, note: None };
/// let mut payload = Vec::new();
/// added.encode(&mut payload)?;
/// assert_eq!(payload, br#"{"sku":"milk","quantity":2}"#);
/// assert_eq!(CartEvent::decode(added.type_index(), &payload)?, added);
/// # Ok::<(), foldstream::CodecError>(())
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
    /// The stored name of the aggregate type whose streams hold these events:
    /// `[A-Za-z0-9_.-]{1,64}`.
    const AGGREGATE: &'static str;
    /// The kinds of events, in the order of [`type_index`](Self::type_index).
    const TYPES: &'static [EventType];
    /// Returns the index of this value's kind in [`TYPES`](Self::TYPES).
    fn type_index(&self) -> usize;
    /// Appends the payload, without name or version, to `out`.
    ///
    /// # Errors
    /// [`CodecError::Encode`] if the value cannot be encoded.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;
    /// Decodes a payload of `TYPES[type_index]` that has the current schema version of that type.
    ///
    /// # Errors
    /// [`CodecError::Decode`] if the bytes are not a payload of that type.
    fn decode(type_index: usize, payload: &[u8]) -> Result<Self, CodecError>;
    /// Returns true if `decoded`, which was decoded from the encoding of this value, is equal to
    /// this value.
    ///
    /// A repository calls this method before it stores an event, and refuses the event with
    /// [`CodecError::Encode`] if the answer is false.
    ///
    /// The default compares with [`PartialEq`]. It does not see a difference that `PartialEq`
    /// ignores, and it refuses a value that does not equal itself, such as one with NaN, in every
    /// format. The derive compares such a value by what it serializes: a NaN that is written as its
    /// bits is stored, and one that is written as `null` is not. Fields that are not serialized are
    /// not compared then.
    ///
    /// A type whose `PartialEq` means something else, such as the same identity, overrides this
    /// method.
    fn equals_decoded(&self, decoded: &Self) -> bool {
        self == decoded
    }
    /// Returns the upcasters that lift older payloads of this type. Default: none. Derived with
    /// `#[event(upcasters = path)]`.
    ///
    /// All readers use them: repositories, runners, and the testkit. Each reader calls this
    /// function once, when it is created.
    fn upcasters() -> Upcasters {
        Upcasters::new()
    }
    /// Returns the stored name and the schema version of this value.
    fn event_type(&self) -> &'static EventType {
        &Self::TYPES[self.type_index()]
    }
}

/// An event type whose payloads can be read from any serde format. Derived with [`DomainEvent`].
///
/// The schema check of `foldstream-testkit` uses this trait to trace the shapes of the payloads.
pub trait DeserializePayload: DomainEvent {
    /// Reads a payload of `TYPES[type_index]`. The deserializer is not used for a payload without
    /// fields.
    ///
    /// # Errors
    /// The error of the deserializer if the payload has another shape, or if there is no type with
    /// this index.
    fn deserialize_payload<'de, D: serde::Deserializer<'de>>(
        type_index: usize,
        deserializer: D,
    ) -> Result<Self, D::Error>;
}

/// The result of decoding one recorded event with an [`EventSet`].
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<E> {
    /// An event of the set, decoded.
    Event(E),
    /// An event of an aggregate type that is not in the set. It was skipped, and its payload was
    /// not read.
    NotMine,
    /// An event of an aggregate type in the set, under a name that this build does not know.
    Unknown,
}

/// An aggregate type, and the kinds of events that a set takes from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventSelector {
    /// The stored name of the aggregate type.
    pub aggregate: &'static str,
    /// The kinds of events that belong to the set.
    pub types: &'static [EventType],
}

/// A set of events that a handler receives: the events of one aggregate type (every
/// [`DomainEvent`]), or those of several ([`event_set!`](crate::event_set)).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a set of events that a handler can receive",
    label = "neither a `DomainEvent` nor an `event_set!`",
    note = "derive `DomainEvent` for the events of one aggregate type; declare `event_set!` for those of several"
)]
pub trait EventSet: Clone + Debug + Send + Sync + Sized + 'static {
    /// Returns the aggregate types and the kinds of events that belong to the set.
    fn selectors() -> Vec<EventSelector>;

    /// Decodes one event whose payload the upcasters have already lifted.
    ///
    /// # Errors
    /// - [`CodecError::TooNew`] if the name is known, but this build does not know the schema
    ///   version yet.
    /// - [`CodecError::NoUpcaster`] if the schema version is older, and no upcaster has lifted it.
    /// - [`CodecError::Decode`] if the bytes are not a payload of the event's type.
    fn decode_from(
        aggregate: &str,
        name: &str,
        schema_version: u16,
        payload: &[u8],
    ) -> Result<Decoded<Self>, CodecError>;

    /// Returns the upcasters of all event types in the set. Default: none.
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

/// Declares an enum over the events of several aggregate types:
/// `event_set!(pub enum ShopEvent { Cart(CartEvent), Loan(LoanEvent) });`
///
/// Two members that read the same aggregate type do not compile.
///
/// # Example
/// ```
/// use foldstream::{DomainEvent, EventSet, event_set};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "cart")]
/// enum CartEvent { CheckedOut }
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "loan")]
/// enum LoanEvent { Requested }
///
/// event_set!(enum ShopEvent { Cart(CartEvent), Loan(LoanEvent) });
///
/// let aggregates: Vec<_> = ShopEvent::selectors().iter().map(|s| s.aggregate).collect();
/// assert_eq!(aggregates, ["cart", "loan"]);
/// ```
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

/// The stored name of an event.
///
/// Names from this build are static, and names from a store are shared, so that cloning never
/// allocates.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EventName(SharedStr);

impl EventName {
    /// Returns the text of the name.
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

/// The description of a recorded event: everything except its payload.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EventHeader {
    /// The id of the event, which is unique and the same on every redelivery.
    pub event_id: EventId,
    /// The stream that the event belongs to.
    pub stream: StreamId,
    /// The position of the event in its stream, from 1 without gaps.
    pub version: Version,
    /// The version of the last event of the same commit. Heads, snapshots and watermarks exist only
    /// there.
    pub commit_last: Version,
    /// The stored name of the event.
    pub name: EventName,
    /// The schema version in which the payload was written.
    pub schema_version: u16,
    /// The tag of the codec that wrote the payload; `None` for JSON.
    pub codec: Option<Arc<str>>,
    /// The time of the commit, by the clock of its writer.
    pub recorded_at: Timestamp,
    /// The metadata of the commit: correlation, causation, trace and the entries of the user. All
    /// events of a commit share it.
    pub metadata: Metadata,
}

/// An event as a store and a bus carry it: a header and an encoded payload.
///
/// # Example
/// ```
/// use foldstream::{CommitId, EventHeader, RecordedEvent, StreamId, Timestamp, Version};
///
/// let commit = CommitId::random();
/// let cart = StreamId::new("cart", "7")?;
/// let first = Version::new(1);
/// let header = EventHeader::new(commit.event_id(0), cart, first, "ItemAdded", Timestamp::now());
/// let event = RecordedEvent::new(header, r#"{"sku":"milk"}"#.into());
/// // An event that ends its commit is also the commit's last.
/// assert_eq!(event.header.commit_last, event.header.version);
/// assert_eq!(event.header.event_id.commit_id(), commit);
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordedEvent {
    /// The identity, position and metadata of the event.
    pub header: EventHeader,
    /// The encoded payload, without name or version.
    pub payload: Bytes,
}

/// A decoded event of a history, with its header.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recorded<E> {
    /// The identity, position and metadata of the event.
    pub header: EventHeader,
    /// The event, decoded to its type.
    pub event: E,
}

impl EventHeader {
    /// Creates the header of an event that is alone in its commit, with a JSON payload of schema
    /// version 1. Handlers are given headers; tests of handlers create them.
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
    /// Sets the schema version of the payload.
    #[must_use]
    pub const fn with_schema_version(mut self, schema_version: u16) -> Self {
        self.schema_version = schema_version;
        self
    }
    /// Sets the codec that wrote the payload; `None` stands for JSON.
    #[must_use]
    pub fn with_codec(mut self, codec: Option<Arc<str>>) -> Self {
        self.codec = codec;
        self
    }
    /// Sets the metadata of the commit.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
}

impl RecordedEvent {
    /// Joins a header and its payload: [`adapter::recorded_event`](crate::adapter::recorded_event).
    #[doc(hidden)]
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
