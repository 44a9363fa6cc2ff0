//! [`PayloadCodec`]: payloads that are stored encrypted or compressed.
//!
//! ```text
//! written: DomainEvent::encode -> first writer -> second writer
//!          -> stored, with the tags of the writers that took it
//! read:    stored -> the codecs that the tags name, last first -> upcasters -> DomainEvent::decode
//! ```
//! A stored payload names the codecs that can read it. Codecs can be added, changed and retired
//! while old events stay as they are. Ports, adapters and the publisher carry the stored bytes and
//! never look inside, so a payload that is encrypted in the store is encrypted on the bus too.
mod context;
mod error;

pub use context::{PayloadContext, PayloadKind};
pub use error::PayloadError;

use crate::{
    CodecError, LoadError,
    codec::{ReadBack, SealedBut, not_opened},
    ports::{Append, Commit, EventData},
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    fmt::{self, Debug},
    sync::Arc,
};

/// The result of sealing a payload that is to be stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Sealed {
    /// The sealed bytes, which are stored with the codec's tag.
    Payload(Bytes),
    /// The payload is not for this codec. It is stored as it came, without the codec's tag.
    AsItIs,
}

/// The result of opening a stored payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Opened {
    /// The payload as it was before it was sealed.
    Payload(Bytes),
    /// The payload can never be read again, on purpose: its key was deleted. An event counts as
    /// retired: folds and handlers skip it, and its version stays occupied. A snapshot is deleted.
    Shredded,
}

/// A codec that stores payloads in another form, and reads them back: encryption or compression.
///
/// # Contract
/// - The tag has 1 to 64 printable ASCII characters without a comma, and is not `shredded`. It
///   never changes, because it is stored.
/// - A sealed payload is opened to the same bytes in the same context, by any instance in any
///   process, at any later time, whatever has been deployed since.
/// - An encrypting codec binds [`PayloadContext::associated_data`] to the ciphertext. In any other
///   context, and with any bit changed, opening is [`Damaged`](PayloadError::Damaged).
/// - **Sealing draws a fresh nonce each time, and never derives it from the context.** Different
///   payloads may be sealed under one event id, since a command that carries a command id keeps its
///   commit id when it is decided again.
/// - [`Shredded`](Opened::Shredded) means forever. A key that is not available at the moment is
///   [`Unavailable`](PayloadError::Unavailable), and a missing permission is
///   [`Refused`](PayloadError::Refused). A fold that took those for shredded would be wrong.
/// - Sealing for a person whose key was deleted is [`Refused`](PayloadError::Refused): a fresh key
///   would undo the deletion.
/// - A snapshot holds the data of everyone in its stream. A codec with keys for more than one
///   person per stream refuses snapshots, or seals them with a key that is deleted together with
///   any of those keys.
/// - Only the tag is stored beside a payload, never a key id. A codec with several keys puts the id
///   of the key into its sealed bytes, or derives the key from the context.
/// - Several tasks may call the codec at any time. A dropped call changes nothing.
///
/// A load calls `open` once for every sealed event. An append calls it once for every event that
/// was just sealed, to check that it can be read
/// ([`Repository::without_encode_check`](crate::Repository::without_encode_check)). A codec that
/// fetches keys should therefore cache them. A codec without such a fetch costs one allocation per
/// call, and a repository without codecs pays nothing.
///
/// # Example
/// ```
/// # use async_trait::async_trait;
/// use bytes::Bytes;
/// use foldstream::{Opened, PayloadCodec, PayloadContext, PayloadError, Sealed};
/// # use foldstream::{CommitId, EventHeader, StreamId, Timestamp, Version};
///
/// /// Compresses payloads of at least 256 bytes.
/// #[derive(Debug)]
/// struct Lz4;
///
/// #[async_trait]
/// impl PayloadCodec for Lz4 {
///     fn tag(&self) -> &'static str {
///         "lz4"
///     }
///     async fn seal(
///         &self,
///         _: &PayloadContext<'_>,
///         payload: &Bytes,
///     ) -> Result<Sealed, PayloadError> {
///         if payload.len() < 256 {
///             return Ok(Sealed::AsItIs);
///         }
///         let compressed = lz4_flex::compress_prepend_size(payload);
///         Ok(Sealed::Payload(compressed.into()))
///     }
///     async fn open(
///         &self,
///         _: &PayloadContext<'_>,
///         payload: &Bytes,
///     ) -> Result<Opened, PayloadError> {
///         let opened = lz4_flex::decompress_size_prepended(payload);
///         Ok(Opened::Payload(opened.map_err(PayloadError::damaged)?.into()))
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let event_id = CommitId::from_u128(1).event_id(0);
/// # let stream = StreamId::new("cart", "7")?;
/// # let (version, at) = (Version::new(1), Timestamp::default());
/// # let header = EventHeader::new(event_id, stream, version, "Added", at);
/// let context = PayloadContext::of_event(&header);
/// let payload = Bytes::from(vec![b' '; 10_000]);
/// let Sealed::Payload(stored) = Lz4.seal(&context, &payload).await? else {
///     return Err("a large payload is compressed".into());
/// };
/// assert!(stored.len() < 1_000);
/// assert_eq!(Lz4.open(&context, &stored).await?, Opened::Payload(payload));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a payload codec",
    label = "not a `PayloadCodec`",
    note = "implement `foldstream::PayloadCodec`; `foldstream_testkit::payload_codec_contract!` checks it"
)]
pub trait PayloadCodec: Debug + Send + Sync + 'static {
    /// Returns the name of the form, which is stored beside every payload in it.
    fn tag(&self) -> &'static str;

    /// Seals a payload that is to be stored.
    ///
    /// # Errors
    /// [`PayloadError`] if the payload cannot be sealed. The command then has no effect.
    async fn seal(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Sealed, PayloadError>;

    /// Opens a stored payload that has this codec's tag.
    ///
    /// # Errors
    /// [`PayloadError`] if the payload cannot be opened. A load fails with it, and a runner tries
    /// again if it is transient.
    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError>;
}

/// The codecs that write new payloads, and those that read stored payloads by their tag. Cloning
/// increments a reference count.
///
/// Every writer also reads. A codec that no longer writes must stay as a reader as long as payloads
/// with its tag are stored. Several writers work one after the other in the given order, and
/// reading undoes them from the last: compress first, encrypt second. A codec with the tag of an
/// earlier one replaces it as a reader.
///
/// [`new`](Self::new) holds no codec, and costs nothing.
///
/// # Example
/// ```
/// # use async_trait::async_trait;
/// # use bytes::Bytes;
/// use foldstream::PayloadCodecs;
/// # use foldstream::{Opened, PayloadCodec, PayloadContext, PayloadError, Sealed};
/// # use foldstream::{CommitId, EventHeader, StreamId, Timestamp, Version};
/// use std::sync::Arc;
///
/// /// Reverses payloads, to show the order of the writers.
/// #[derive(Debug)]
/// struct Reverse(&'static str);
/// # #[async_trait]
/// # impl PayloadCodec for Reverse {
/// #     fn tag(&self) -> &'static str {
/// #         self.0
/// #     }
/// #     async fn seal(
/// #         &self,
/// #         _: &PayloadContext<'_>,
/// #         payload: &Bytes,
/// #     ) -> Result<Sealed, PayloadError> {
/// #         Ok(Sealed::Payload(payload.iter().rev().copied().collect()))
/// #     }
/// #     async fn open(
/// #         &self,
/// #         _: &PayloadContext<'_>,
/// #         payload: &Bytes,
/// #     ) -> Result<Opened, PayloadError> {
/// #         Ok(Opened::Payload(payload.iter().rev().copied().collect()))
/// #     }
/// # }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let event_id = CommitId::from_u128(1).event_id(0);
/// # let (stream, version) = (StreamId::new("cart", "7")?, Version::new(1));
/// # let header = EventHeader::new(event_id, stream, version, "Added", Timestamp::default());
/// # let context = PayloadContext::of_event(&header);
/// let codecs = PayloadCodecs::new()
///     .with_writer(Arc::new(Reverse("first")))
///     .with_writer(Arc::new(Reverse("second")));
/// let (stored, tags) = codecs.seal(&context, Bytes::from("{}")).await?;
/// assert_eq!(tags.as_deref(), Some("first,second"));
/// let opened = codecs.open(&context, tags.as_deref(), &stored).await?;
/// assert_eq!(opened, Opened::Payload("{}".into()));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Default)]
pub struct PayloadCodecs {
    inner: Option<Arc<Inner>>,
}

#[derive(Clone, Default)]
struct Inner {
    writers: Vec<Arc<dyn PayloadCodec>>,
    readers: Vec<Arc<dyn PayloadCodec>>,
    /// The tags that are stored if every writer takes a payload: shared, and not built for each
    /// payload.
    all_tags: Arc<str>,
}

impl Debug for PayloadCodecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tags = |codecs: &[Arc<dyn PayloadCodec>]| -> Vec<&'static str> {
            codecs.iter().map(|codec| codec.tag()).collect()
        };
        let inner = self.inner.as_deref().cloned().unwrap_or_default();
        f.debug_struct("PayloadCodecs")
            .field("writers", &tags(&inner.writers))
            .field("readers", &tags(&inner.readers))
            .finish()
    }
}

impl PayloadCodecs {
    /// The tag of a payload that can never be read again. It is readable without any codec, and no
    /// codec may have it.
    pub const SHREDDED: &'static str = "shredded";

    /// Creates an empty set of codecs. Payloads are stored as they are, and a payload that was
    /// written by a codec is [`CodecError::UnknownCodec`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(self.inner.get_or_insert_default()));
        self
    }

    /// Adds a codec that writes new payloads, after the writers given before, and reads payloads
    /// with its tag.
    #[must_use]
    pub fn with_writer(self, codec: Arc<dyn PayloadCodec>) -> Self {
        self.with_reader(codec.clone()).edit(|inner| {
            inner.writers.push(codec);
            inner.all_tags = join(&inner.writers);
        })
    }

    /// Adds a codec that only reads payloads with its tag.
    #[must_use]
    pub fn with_reader(self, codec: Arc<dyn PayloadCodec>) -> Self {
        self.edit(|inner| {
            inner.readers.retain(|known| known.tag() != codec.tag());
            inner.readers.push(codec);
        })
    }

    /// Returns true if payloads are stored as they are.
    pub const fn is_empty(&self) -> bool {
        self.inner.is_none()
    }

    /// Passes a payload through the writers, one after the other. Also returns the tags to store,
    /// if any writer took the payload.
    ///
    /// # Errors
    /// - [`CodecError::Payload`] if a writer fails.
    /// - [`CodecError::InvalidTag`] if the tag of a writer cannot be stored.
    pub async fn seal(
        &self,
        context: &PayloadContext<'_>,
        mut payload: Bytes,
    ) -> Result<(Bytes, Option<Arc<str>>), CodecError> {
        let Some(inner) = self.inner.as_deref() else {
            return Ok((payload, None));
        };
        let mut took = Vec::with_capacity(inner.writers.len());
        for codec in &inner.writers {
            check_tag(codec.tag())?;
            let sealed = codec.seal(context, &payload).await;
            if let Sealed::Payload(sealed) = sealed.map_err(|e| failed(codec.tag(), e))? {
                payload = sealed;
                took.push(codec.clone());
            }
        }
        let tags = match took.len() {
            0 => None,
            all if all == inner.writers.len() => Some(inner.all_tags.clone()),
            _ => Some(join(&took)),
        };
        Ok((payload, tags))
    }

    /// Opens a payload with the codecs that the stored tags name, the last first. Without a tag the
    /// payload is returned as it is.
    ///
    /// # Errors
    /// - [`CodecError::UnknownCodec`] if no codec here has one of the tags.
    /// - [`CodecError::Payload`] if a codec fails.
    pub async fn open(
        &self,
        context: &PayloadContext<'_>,
        tags: Option<&str>,
        payload: &Bytes,
    ) -> Result<Opened, CodecError> {
        let mut payload = payload.clone();
        for tag in tags.into_iter().flat_map(|tags| tags.rsplit(',')) {
            if tag == Self::SHREDDED {
                return Ok(Opened::Shredded);
            }
            let codec = self.reader(tag)?;
            match codec.open(context, &payload).await {
                Ok(Opened::Payload(opened)) => payload = opened,
                Ok(Opened::Shredded) => return Ok(Opened::Shredded),
                Err(error) => return Err(failed(tag, error)),
            }
        }
        Ok(Opened::Payload(payload))
    }

    fn reader(&self, tag: &str) -> Result<&dyn PayloadCodec, CodecError> {
        let readers = self.inner.iter().flat_map(|inner| &inner.readers);
        let found = readers.into_iter().find(|codec| codec.tag() == tag);
        found
            .map(|codec| &**codec)
            .ok_or_else(|| CodecError::UnknownCodec { tag: tag.into() })
    }

    /// Seals a payload, and opens it again as `check` says. `what` names the payload in an error.
    ///
    /// # Errors
    /// - Those of [`seal`](Self::seal) and [`open`](Self::open).
    /// - [`CodecError::Encode`] if a reader would not get the payload back.
    pub(crate) async fn seal_readable(
        &self,
        context: &PayloadContext<'_>,
        payload: Bytes,
        check: ReadBack,
        what: impl FnOnce() -> String,
    ) -> Result<(Bytes, Option<Arc<str>>), CodecError> {
        let (sealed, tags) = self.seal(context, payload.clone()).await?;
        if tags.is_none() || check == ReadBack::Unchecked {
            return Ok((sealed, tags));
        }
        let failed = match self.open(context, tags.as_deref(), &sealed).await {
            Ok(Opened::Payload(opened)) if opened == payload => return Ok((sealed, tags)),
            Ok(Opened::Payload(_)) => SealedBut::Different,
            Ok(Opened::Shredded) => SealedBut::Shredded,
            // The key service is unavailable, or does not let this process read. The payload is not
            // the reason.
            Err(
                error @ CodecError::Payload {
                    source:
                        PayloadError::Throttled { .. }
                        | PayloadError::Unavailable { .. }
                        | PayloadError::Refused { .. },
                    ..
                },
            ) => return Err(error),
            Err(error) => SealedBut::Failed(error),
        };
        Err(not_opened(what(), failed))
    }

    /// Seals the payloads of an append that was validated, and opens them again as `check` says.
    pub(crate) async fn seal_append(
        &self,
        mut append: Append,
        check: ReadBack,
    ) -> Result<Append, CodecError> {
        let mut sealed = Vec::with_capacity(append.events.len());
        for (recorded, data) in append.to_commit().recorded().zip(append.events.iter()) {
            let context = PayloadContext::of_event(&recorded.header);
            let what = || format!("event {}.{}", append.head.stream().aggregate(), data.name);
            let payload = data.payload.clone();
            let (payload, tags) = self.seal_readable(&context, payload, check, what).await?;
            sealed.push(
                EventData::new(data.name.clone(), data.schema_version, payload).with_codec(tags),
            );
        }
        append.events = sealed.into();
        Ok(append)
    }

    /// Returns a commit as it was before it was sealed. A shredded event is left without payload,
    /// under the tag [`SHREDDED`](Self::SHREDDED).
    pub(crate) async fn open_commit(&self, mut commit: Commit) -> Result<Commit, LoadError> {
        let mut opened = Vec::with_capacity(commit.events.len());
        for recorded in commit.recorded() {
            let header = &recorded.header;
            let context = PayloadContext::of_event(header);
            let tags = header.codec.as_deref();
            let (payload, tag) = match self.open(&context, tags, &recorded.payload).await {
                Ok(Opened::Payload(payload)) => (payload, None),
                Ok(Opened::Shredded) => (Bytes::new(), Some(Self::SHREDDED.into())),
                Err(source) => {
                    return Err(LoadError::Codec {
                        stream: header.stream.clone(),
                        version: header.version,
                        source,
                    });
                }
            };
            opened.push(
                EventData::new(header.name.clone(), header.schema_version, payload).with_codec(tag),
            );
        }
        commit.events = opened.into();
        Ok(commit)
    }
}

fn failed(tag: &str, source: PayloadError) -> CodecError {
    CodecError::Payload {
        tag: tag.into(),
        source,
    }
}

fn join(codecs: &[Arc<dyn PayloadCodec>]) -> Arc<str> {
    let tags: Vec<_> = codecs.iter().map(|codec| codec.tag()).collect();
    tags.join(",").into()
}

fn check_tag(tag: &'static str) -> Result<(), CodecError> {
    let allowed = |b: u8| (b.is_ascii_graphic() || b == b' ') && b != b',';
    let is_valid =
        (1..=64).contains(&tag.len()) && tag.bytes().all(allowed) && tag != PayloadCodecs::SHREDDED;
    match is_valid {
        true => Ok(()),
        false => Err(CodecError::InvalidTag { tag: tag.into() }),
    }
}
