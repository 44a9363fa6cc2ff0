//! The outbox: which events of the store become public, and in what form.
use crate::{
    CodecError, DomainEvent, EventHeader, EventName, EventSet, InvalidUpcasters, Opened,
    PayloadCodecs, PayloadContext, Recorded, RecordedEvent, Upcasters,
    codec::{ReadBack, decode, encode_events},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use std::{fmt, fmt::Debug, marker::PhantomData, panic::AssertUnwindSafe};

/// The form in which one event is published.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Publication {
    /// The event is published as it is stored.
    AsStored,
    /// The event is published under another name, with another payload.
    As(PublicEvent),
    /// The event stays out of the topic. The next record of its stream says so, so that readers do
    /// not take its version for a missing one.
    Private,
}
impl Publication {
    /// Creates the publication of an event as another event. The aggregate type of the public event
    /// does not count: the record keeps the stream of the stored one.
    ///
    /// # Errors
    /// [`OutboxError::Codec`] if the public event cannot be encoded.
    pub fn of<E: DomainEvent>(event: E) -> Result<Self, OutboxError> {
        let encoded = encode_events(&[event], &E::upcasters(), ReadBack::Checked)?;
        let Some(event) = encoded.first() else {
            return Ok(Self::Private);
        };
        let (name, payload) = (event.name.clone(), event.payload.clone());
        Ok(Self::As(PublicEvent::new(
            name,
            event.schema_version,
            payload,
        )))
    }
}

/// The name, schema version and payload under which an event is published. Everything else, such as
/// its id and its version, is that of the stored event.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PublicEvent {
    /// The name of the public event.
    pub name: EventName,
    /// The schema version of the payload.
    pub schema_version: u16,
    /// The payload, which is JSON.
    pub payload: Bytes,
}
impl PublicEvent {
    /// Creates a public event from its parts.
    #[must_use]
    pub fn new(name: impl Into<EventName>, schema_version: u16, payload: impl Into<Bytes>) -> Self {
        Self {
            name: name.into(),
            schema_version,
            payload: payload.into(),
        }
    }
}

/// The error returned by an [`Outbox`] that cannot tell how an event is published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The event cannot be decoded, or its public form cannot be encoded.
    #[error("the outbox cannot read or write the event")]
    Codec(#[from] CodecError),
    /// The outbox has no public form for the event.
    #[error("the outbox refuses the event: {reason}")]
    Refused {
        /// A description of what is wrong with the event.
        reason: String,
    },
}
impl OutboxError {
    /// Returns true if the same event may be published later without any change.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Codec(error) => error.is_transient(),
            Self::Refused { .. } => false,
        }
    }
}

/// The rule that makes public events of stored ones.
///
/// # Contract
/// The publication is a pure function of the event: two publishers, today and after a crash, must
/// agree. A rule that changes applies to events that are not published yet. Give the same outbox to
/// the runner ([`RunnerBuilder::with_outbox`](crate::runner::RunnerBuilder::with_outbox)), which
/// reads the event store where the topic has gaps: a handler must not see there what the topic does
/// not show.
///
/// A service that wants to see its private events runs a second publisher with a
/// [name](super::Publisher::with_name), another outbox and another topic.
///
/// # Example
/// ```
/// use async_trait::async_trait;
/// use foldstream::RecordedEvent;
/// use foldstream::publisher::{Outbox, OutboxError, Publication};
///
/// /// Keeps everything private that is about drafts.
/// #[derive(Debug)]
/// struct WithoutDrafts;
///
/// #[async_trait]
/// impl Outbox for WithoutDrafts {
///     async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError> {
///         let is_draft = event.header.name.as_str().starts_with("Draft");
///         Ok(if is_draft { Publication::Private } else { Publication::AsStored })
///     }
/// }
///
/// # use foldstream::{CommitId, EventHeader, StreamId, Timestamp, Version};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let post = StreamId::new("post", "7")?;
/// # let id = CommitId::random().event_id(0);
/// # let header = EventHeader::new(id, post, Version::new(1), "DraftSaved", Timestamp::now());
/// # let event = RecordedEvent::new(header, "{}".into());
/// assert_eq!(WithoutDrafts.publication(&event).await?, Publication::Private);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
pub trait Outbox: Debug + Send + Sync + 'static {
    /// Returns the form in which an event is published.
    ///
    /// # Errors
    /// [`OutboxError`] if the event has no form. A transient error is tried again. Any other stops
    /// the stream until the outbox is changed or an operator skips the event.
    async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError>;
}

/// Returns an event in its public form; `None` if it is private.
pub(crate) async fn public_form(
    outbox: Option<&dyn Outbox>,
    mut event: RecordedEvent,
) -> Result<Option<RecordedEvent>, OutboxError> {
    let Some(outbox) = outbox else {
        return Ok(Some(event));
    };
    // An outbox is code of the user. A panic in it concerns this event, and not the process.
    let publication = AssertUnwindSafe(outbox.publication(&event))
        .catch_unwind()
        .await;
    let publication = publication.unwrap_or_else(|_| {
        Err(OutboxError::Refused {
            reason: "the outbox panicked".into(),
        })
    })?;
    Ok(match publication {
        Publication::AsStored => Some(event),
        Publication::As(public) => {
            event.header.name = public.name;
            event.header.schema_version = public.schema_version;
            event.header.codec = None;
            event.payload = public.payload;
            Some(event)
        }
        Publication::Private => None,
    })
}

/// An [`Outbox`] that decides about decoded events of a set. Events that are not in the set are
/// published as they are stored.
///
/// Payloads are opened with the codecs and lifted by the upcasters before the function sees them.
/// A shredded event is published as it is stored.
///
/// # Example
/// ```
/// use foldstream::{DomainEvent, Recorded};
/// use foldstream::publisher::{Publication, TypedOutbox};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "order")]
/// enum OrderEvent {
///     Placed { total: u64, margin: u64 },
///     Reviewed,
/// }
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "order")]
/// enum PublicOrderEvent {
///     Placed { total: u64 },
/// }
///
/// let outbox = TypedOutbox::new(|event: &Recorded<OrderEvent>| match &event.event {
///     // The margin is nobody's business.
///     OrderEvent::Placed { total, .. } => {
///         Publication::of(PublicOrderEvent::Placed { total: *total })
///     }
///     OrderEvent::Reviewed => Ok(Publication::Private),
/// })?;
/// # use foldstream::{CommitId, EventHeader, RecordedEvent, StreamId, Timestamp, Version};
/// # use foldstream::publisher::Outbox;
/// # let id = CommitId::random().event_id(0);
/// # let order = StreamId::new("order", "7")?;
/// # let header = EventHeader::new(id, order, Version::new(1), "Reviewed", Timestamp::now());
/// # let reviewed = RecordedEvent::new(header, "null".into());
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// assert_eq!(outbox.publication(&reviewed).await?, Publication::Private);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
pub struct TypedOutbox<E, F> {
    decide: F,
    upcasters: Upcasters,
    codecs: PayloadCodecs,
    of: PhantomData<fn() -> E>,
}

impl<E, F> TypedOutbox<E, F>
where
    E: EventSet,
    F: Fn(&Recorded<E>) -> Result<Publication, OutboxError> + Send + Sync + 'static,
{
    /// Creates an outbox from a function, which must be pure.
    ///
    /// # Errors
    /// [`InvalidUpcasters`] if two upcasters of the events contradict each other.
    pub fn new(decide: F) -> Result<Self, InvalidUpcasters> {
        Ok(Self {
            decide,
            upcasters: Upcasters::new().with_own_of::<E>()?,
            codecs: PayloadCodecs::new(),
            of: PhantomData,
        })
    }
    /// Sets the codecs that open encrypted or compressed payloads. Without them such events cannot
    /// be published, except those that are not in the set.
    #[must_use]
    pub fn with_codecs(mut self, codecs: PayloadCodecs) -> Self {
        self.codecs = codecs;
        self
    }

    fn is_mine(header: &EventHeader) -> bool {
        let aggregate = header.stream.aggregate();
        E::selectors().iter().any(|s| s.aggregate == aggregate)
    }
}

impl<E, F> Debug for TypedOutbox<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedOutbox").finish_non_exhaustive()
    }
}

#[async_trait]
impl<E, F> Outbox for TypedOutbox<E, F>
where
    E: EventSet,
    F: Fn(&Recorded<E>) -> Result<Publication, OutboxError> + Send + Sync + 'static,
{
    async fn publication(&self, event: &RecordedEvent) -> Result<Publication, OutboxError> {
        let header = &event.header;
        if !Self::is_mine(header) {
            return Ok(Publication::AsStored);
        }
        let context = PayloadContext::of_event(header);
        let opened = self
            .codecs
            .open(&context, header.codec.as_deref(), &event.payload);
        let payload = match opened.await? {
            Opened::Payload(payload) => payload,
            Opened::Shredded => return Ok(Publication::AsStored),
        };
        let (aggregate, version) = (header.stream.aggregate(), header.schema_version);
        let decoded = decode(&self.upcasters, aggregate, &header.name, version, &payload)?;
        match decoded {
            Some(decoded) => (self.decide)(&Recorded::new(header.clone(), decoded)),
            // An upcaster has retired the event, for every reader.
            None => Ok(Publication::AsStored),
        }
    }
}
