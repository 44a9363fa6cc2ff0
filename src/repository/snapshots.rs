//! Taking and reading snapshots beside the commands.
//!
//! A due snapshot goes into a bounded table, the newest per stream, which one background task empties. The task is
//! started by the first snapshot that is due and ends when the table is empty, so nothing has to be shut down. The
//! state is encoded in that task too: a command pays for a reference count and a map entry.
use super::Loaded;
use crate::{
    CodecError, Opened, PayloadCodecs, PayloadContext, Snapshot, SnapshotPolicy, StreamId,
    codec::{decode_json, encode_json},
    ports::{SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

/// Streams that may wait for their snapshot; beyond, a due snapshot is left for a later command.
const QUEUE: usize = 1024;

/// Reads and takes snapshots of one aggregate type. Cloning shares the table.
pub(super) struct Snapshots<A> {
    store: Arc<dyn SnapshotStore>,
    policy: SnapshotPolicy,
    state_version: u32,
    encode: fn(&A) -> Result<Vec<u8>, CodecError>,
    decode: fn(&[u8]) -> Result<A, CodecError>,
    codecs: PayloadCodecs,
    waiting: Arc<Mutex<Waiting<A>>>,
}

struct Waiting<A> {
    newest: BTreeMap<StreamId, Loaded<A>>,
    is_running: bool,
    task: Option<JoinHandle<()>>,
}

impl<A> Default for Waiting<A> {
    fn default() -> Self {
        Self {
            newest: BTreeMap::new(),
            is_running: false,
            task: None,
        }
    }
}

impl<A> Clone for Snapshots<A> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            policy: self.policy,
            state_version: self.state_version,
            encode: self.encode,
            decode: self.decode,
            codecs: self.codecs.clone(),
            waiting: self.waiting.clone(),
        }
    }
}

impl<A: Snapshot> Snapshots<A> {
    pub(super) fn new(
        store: Arc<dyn SnapshotStore>,
        policy: SnapshotPolicy,
        codecs: PayloadCodecs,
    ) -> Self {
        Self {
            store,
            policy,
            state_version: A::STATE_VERSION,
            encode: |state| {
                let mut out = Vec::new();
                encode_json(state, &mut out).map(|()| out)
            },
            decode: decode_json::<A>,
            codecs,
            waiting: Arc::default(),
        }
    }
}

impl<A: Clone + Send + Sync + 'static> Snapshots<A> {
    /// With a table of its own: what waits there is written by the codecs of whoever put it there.
    pub(super) fn with_codecs(self, codecs: PayloadCodecs) -> Self {
        Self {
            codecs,
            waiting: Arc::default(),
            ..self
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<A>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream's snapshot, decoded. One that cannot be had or read costs time only, so its error ends here.
    pub(super) async fn load(&self, stream: &StreamId) -> Option<(StoredSnapshot, A)> {
        let found = match self.store.load(stream).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(%stream, error = &error as &dyn std::error::Error, "the snapshot cannot be read");
                return None;
            }
        };
        if found.state_version != self.state_version {
            return None;
        }
        let unreadable = |error: CodecError| {
            tracing::warn!(%stream, error = &error as &dyn std::error::Error, "the snapshot cannot be decoded");
        };
        let payload = match &found.codec {
            None => found.payload.clone(),
            Some(tags) => {
                let context = PayloadContext::of_snapshot(&found);
                let opened = self.codecs.open(&context, Some(tags), &found.payload).await;
                match opened.map_err(unreadable).ok()? {
                    Opened::Payload(payload) => payload,
                    Opened::Shredded => {
                        // Never to be read again, but it would stand in the way of every later one.
                        self.discard(stream).await;
                        return None;
                    }
                }
            }
        };
        let state = (self.decode)(&payload).map_err(unreadable).ok()?;
        Some((found, state))
    }

    /// Deletes a snapshot that is of another history. If that fails, the next load finds it again.
    pub(super) async fn discard(&self, stream: &StreamId) {
        if let Err(error) = self.store.delete(stream).await {
            tracing::warn!(%stream, error = &error as &dyn std::error::Error, "the snapshot cannot be deleted");
        }
    }

    /// Deletes the snapshot that is stored, and the one that waits to be.
    pub(super) async fn forget(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        self.waiting().newest.remove(stream);
        self.store.delete(stream).await
    }

    /// Takes a snapshot of this state if the policy says so, and notes in it that it did: the next one is due behind it,
    /// even if it cannot be written. Never waits, never fails.
    pub(super) fn offer(&self, loaded: &mut Loaded<A>, load: Duration) {
        let since = loaded.version().get() - loaded.snapshot.get();
        if !self.policy.is_due(since, load) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut waiting = self.waiting();
        let stream = loaded.head.stream();
        let is_newer = waiting
            .newest
            .get(stream)
            .is_none_or(|queued| queued.version() < loaded.version());
        if !is_newer || (waiting.newest.len() >= QUEUE && !waiting.newest.contains_key(stream)) {
            return;
        }
        waiting.newest.insert(stream.clone(), loaded.clone());
        loaded.snapshot = loaded.version();
        if !waiting.is_running {
            waiting.is_running = true;
            waiting.task = Some(runtime.spawn(self.clone().write_all()));
        }
    }

    async fn write_all(self) {
        // The flag must fall even if encoding panics or the runtime goes away, or no later snapshot would be written.
        let running = Running(&self.waiting);
        loop {
            let next = {
                let mut waiting = self.waiting();
                let next = waiting.newest.pop_first();
                // In the same critical section as the empty look: an offer right behind it starts a new task.
                waiting.is_running = next.is_some();
                next
            };
            let Some((stream, loaded)) = next else {
                // The flag has fallen above; a task that was started since must keep its own.
                std::mem::forget(running);
                return;
            };
            if let Err(error) = self.write(&loaded).await {
                tracing::warn!(%stream, error = &*error, "the snapshot cannot be written");
            }
        }
    }

    async fn write(&self, loaded: &Loaded<A>) -> Result<(), crate::BoxError> {
        let Some(commit_id) = loaded.head.commit_id() else {
            return Ok(());
        };
        let payload = (self.encode)(&loaded.state)?;
        let snapshot = StoredSnapshot::new(
            loaded.head.stream().clone(),
            loaded.version(),
            commit_id,
            self.state_version,
            Bytes::new(),
        );
        let context = PayloadContext::of_snapshot(&snapshot);
        let (payload, codec) = self.codecs.seal(&context, payload.into()).await?;
        let sealed = StoredSnapshot {
            payload,
            codec,
            ..snapshot
        };
        self.store.save(&sealed).await?;
        Ok(())
    }

    /// Waits until nothing is left to write.
    pub(super) async fn settle(&self) {
        loop {
            let task = self.waiting().task.take();
            let Some(task) = task else { return };
            if let Err(error) = task.await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the snapshot writer ended early"
                );
            }
        }
    }
}

/// Lets the flag fall when the task ends before its work is done.
struct Running<'a, A>(&'a Mutex<Waiting<A>>);
impl<A> Drop for Running<'_, A> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_running = false;
    }
}
