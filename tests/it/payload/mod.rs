//! Payload codecs in the repository, in snapshots and in the runner.
mod events;
mod snapshots;

use crate::support::{Account, AccountId, stream};
use async_trait::async_trait;
use bytes::Bytes;
use foldstream::{
    CodecError, Opened, PayloadCodec, PayloadCodecs, PayloadContext, PayloadError, Repository,
    Sealed, StreamHead,
    ports::{Commit, EventStore, ReadFrom},
};
use foldstream_testkit::InMemoryEventStore;
use futures::TryStreamExt;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// Keeps the rules of an encrypting codec without a cipher.
///
/// A payload does not show its text, is bound to its context, and is unreadable after its stream's
/// key is deleted. An amount of 1 is not secret and is left unchanged.
#[derive(Debug, Default)]
pub(crate) struct Vault {
    shredded: Mutex<BTreeSet<String>>,
    failures: Mutex<VecDeque<PayloadError>>,
    opened: AtomicU32,
}

impl Vault {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }
    /// Deletes the key of a stream by the stream's id.
    pub(crate) fn shred(&self, id: &str) {
        self.shredded.lock().unwrap().insert(id.into());
    }
    /// Fails the next calls, each with one of these errors.
    pub(crate) fn fail(&self, failures: impl IntoIterator<Item = PayloadError>) {
        self.failures.lock().unwrap().extend(failures);
    }
    /// Returns the number of attempts to open a payload.
    pub(crate) fn opened(&self) -> u32 {
        self.opened.load(Ordering::SeqCst)
    }
    fn ask(&self, context: &PayloadContext<'_>) -> Result<bool, PayloadError> {
        if let Some(failure) = self.failures.lock().unwrap().pop_front() {
            return Err(failure);
        }
        Ok(self.shredded.lock().unwrap().contains(context.stream.id()))
    }
}

#[async_trait]
impl PayloadCodec for Vault {
    fn tag(&self) -> &'static str {
        "vault"
    }
    async fn seal(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Sealed, PayloadError> {
        if payload == r#"{"amount":1}"# {
            return Ok(Sealed::AsItIs);
        }
        if self.ask(context)? {
            return Err(PayloadError::refused("the key was deleted"));
        }
        let mut sealed = context.associated_data();
        sealed.extend(payload.iter().map(|b| !b));
        Ok(Sealed::Payload(sealed.into()))
    }
    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        if self.ask(context)? {
            return Ok(Opened::Shredded);
        }
        match payload.strip_prefix(&*context.associated_data()) {
            Some(sealed) => Ok(Opened::Payload(sealed.iter().map(|b| !b).collect())),
            None => Err(PayloadError::damaged("it was sealed for another place")),
        }
    }
}

/// Reverses every payload under any tag.
#[derive(Debug)]
pub(crate) struct Reverse(pub(crate) &'static str);

#[async_trait]
impl PayloadCodec for Reverse {
    fn tag(&self) -> &'static str {
        self.0
    }
    async fn seal(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Sealed, PayloadError> {
        Ok(Sealed::Payload(payload.iter().rev().copied().collect()))
    }
    async fn open(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Opened, PayloadError> {
        Ok(Opened::Payload(payload.iter().rev().copied().collect()))
    }
}

pub(crate) fn writing(codec: &Arc<Vault>) -> PayloadCodecs {
    PayloadCodecs::new().with_writer(codec.clone())
}

pub(crate) fn sealed_accounts(
    store: &Arc<InMemoryEventStore>,
    codecs: &PayloadCodecs,
) -> Repository<Account> {
    Repository::new(store.clone()).with_payload_codecs(codecs.clone())
}

pub(crate) async fn stored(store: &InMemoryEventStore, id: &str) -> Vec<Commit> {
    let all = ReadFrom::After(StreamHead::empty(stream(id)));
    let commits = store.read(&stream(id), all, None);
    commits.try_collect().await.unwrap()
}

/// Returns the stored tags, each with true if the payload shows its text.
pub(crate) async fn forms(store: &InMemoryEventStore, id: &str) -> Vec<(Option<String>, bool)> {
    let commits = stored(store, id).await;
    let events = commits.iter().flat_map(|commit| commit.events.iter());
    let form = |e: &foldstream::ports::EventData| {
        let tag = e.codec.as_deref().map(str::to_owned);
        (tag, e.payload.windows(6).any(|w| w == b"amount"))
    };
    events.map(form).collect()
}

pub(crate) fn ann() -> AccountId {
    AccountId::from("ann")
}
