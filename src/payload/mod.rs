//! [`PayloadCodec`]: payloads that are stored encrypted or compressed.
//!
//! ```text
//! written: DomainEvent::encode -> first writer -> second writer -> stored, with the tags of those that took it
//! read:    stored -> the codecs that the tags name, last first -> upcasters -> DomainEvent::decode
//! ```
//! What is stored says itself how it is read: codecs can be added, changed and retired while old events stay as they are.
//! Ports, adapters and the publisher carry the stored bytes and never look inside, so what is encrypted in the store is
//! encrypted on the bus too.
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
    /// These bytes are stored, under the codec's tag.
    Payload(Bytes),
    /// Not for this codec: stored as it came, without its tag.
    AsItIs,
}

/// The result of opening a stored payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Opened {
    /// The payload as it was before.
    Payload(Bytes),
    /// It can never be read again, on purpose: its key was deleted. An event counts as retired: folds and handlers skip
    /// it, its version stays taken. A snapshot is deleted.
    Shredded,
}

/// Writes payloads in another form, and reads them back: encryption, compression.
///
/// # Contract
/// - The tag is 1 to 64 printable ASCII characters without a comma, is not `shredded`, and never changes: it is stored.
/// - What was sealed is opened to the same bytes in the same context, also by another instance in another process, any
///   time later, whatever has been deployed since.
/// - An encrypting codec binds [`PayloadContext::associated_data`] to the ciphertext: in any other context, and with any
///   bit changed, opening is [`Damaged`](PayloadError::Damaged).
/// - **Sealing draws a fresh nonce each time, and never derives it from the context**: under one event id different
///   payloads may be sealed, since a command that carries a command id keeps its commit id when it is decided again.
/// - [`Shredded`](Opened::Shredded) means forever. A key that cannot be had at the moment is
///   [`Unavailable`](PayloadError::Unavailable), a missing permission [`Refused`](PayloadError::Refused): a fold that
///   took those for shredded would be wrong.
/// - Sealing for somebody whose key was deleted is [`Refused`](PayloadError::Refused): a fresh key would undo it.
/// - A snapshot holds the data of everybody in its stream. A codec with keys for more than one person a stream refuses
///   snapshots, or seals them under a key that goes when any of those goes.
/// - It may be called at any time by several tasks; a dropped call changes nothing.
///
/// A load calls `open` once for every sealed event, and an append calls it once for every event that was just sealed, to
/// see that it can be read ([`Repository::without_encode_check`](crate::Repository::without_encode_check)): cache keys. A codec with no key to ask for costs one allocation a
/// call; without a codec nothing is paid.
#[async_trait]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a payload codec",
    label = "not a `PayloadCodec`",
    note = "implement `foldstream::PayloadCodec`; `foldstream_testkit::payload_codec_contract!` checks it"
)]
pub trait PayloadCodec: Debug + Send + Sync + 'static {
    /// Names the form; stored beside every payload in it.
    fn tag(&self) -> &'static str;

    /// Before a payload is stored.
    ///
    /// # Errors
    /// [`PayloadError`]; the command then has no effect.
    async fn seal(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Sealed, PayloadError>;

    /// After a payload with this codec's tag was read.
    ///
    /// # Errors
    /// [`PayloadError`]; a load fails with it, and a runner tries again if it is transient.
    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError>;
}

/// The codecs that write new payloads, and those that read stored payloads by their tag. Cloning is a reference count.
///
/// Every writer also reads. A codec that is no longer written stays as a reader as long as payloads with its tag are
/// stored. Several writers work one after the other in the order given, and reading undoes them from the last: compress
/// first, encrypt second. A codec with the tag of an earlier one replaces it as a reader.
///
/// [`new`](Self::new) holds none, and costs nothing.
#[derive(Clone, Default)]
pub struct PayloadCodecs {
    inner: Option<Arc<Inner>>,
}

#[derive(Clone, Default)]
struct Inner {
    writers: Vec<Arc<dyn PayloadCodec>>,
    readers: Vec<Arc<dyn PayloadCodec>>,
    /// What is stored if every writer takes a payload: shared, not built for each.
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
    /// The tag of a payload that is gone for good. Readable without any codec; no codec may have it.
    pub const SHREDDED: &'static str = "shredded";

    /// None: payloads are stored as they are, and one that was written by a codec is
    /// [`CodecError::UnknownCodec`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(self.inner.get_or_insert_default()));
        self
    }

    /// Writes new payloads with this codec, after the writers given before, and reads those with its tag.
    #[must_use]
    pub fn with_writer(self, codec: Arc<dyn PayloadCodec>) -> Self {
        self.with_reader(codec.clone()).edit(|inner| {
            inner.writers.push(codec);
            inner.all_tags = join(&inner.writers);
        })
    }

    /// Only reads payloads with this codec's tag.
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

    /// Lets the writers have a payload, one after the other; also says the tags to store, if any took it.
    ///
    /// # Errors
    /// [`CodecError::Payload`] if a writer fails, [`CodecError::InvalidTag`] if its tag cannot be stored.
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

    /// Undoes what the stored tags name, the last first. Without a tag the payload is as it was.
    ///
    /// # Errors
    /// [`CodecError::UnknownCodec`] for a tag that no codec here has, [`CodecError::Payload`] if a codec fails.
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
    /// As [`seal`](Self::seal) and [`open`](Self::open); [`CodecError::Encode`] if a reader would not get the payload back.
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
            // The key service is away, or does not let this process read: not the payload's fault.
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

    /// A commit as it was before it was sealed; a shredded event is left without payload, under the tag
    /// [`SHREDDED`](Self::SHREDDED).
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
