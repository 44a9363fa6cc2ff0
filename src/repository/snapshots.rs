//! Reading snapshots, and taking them in the background.
//!
//! A due snapshot goes into a bounded table that holds the newest state per stream, and one
//! background task empties the table. The first due snapshot starts the task, and the task ends
//! when the table is empty, so nothing has to be shut down. The state is encoded in that task too:
//! a command pays for a reference count and a map entry.
use super::{
    Loaded,
    fold::LastSnapshot,
    metrics::{Counters, SnapshotEnd},
};
use crate::{
    BoxError, CodecError, LoadPolicy, Opened, PayloadCodecs, PayloadContext, SinceSnapshot,
    Snapshot, SnapshotPolicy, StreamId, Timestamp,
    codec::{ReadBack, decode_state, encode_state},
    ports::{Commit, SaveOutcome, SnapshotStore, SnapshotStoreError, StoredSnapshot},
};
use bytes::Bytes;
use futures::FutureExt;
use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    ops::Bound,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};
use tokio::{runtime::Handle, sync::Notify, time::Instant};

/// The largest number of streams that may wait for their snapshot. When the table is full, a due
/// snapshot is left for a later command.
const QUEUE: usize = 1024;

/// The assumed size of an event in the store in bytes, until a load has met one.
const EVENT_BYTES: u64 = 256;

/// The approximate bytes of a commit beside the names and payloads of its events: key, id and time.
const COMMIT_BYTES: usize = 100;

/// The snapshots of one aggregate type. Clones share the table.
pub(super) struct Snapshots<A> {
    store: Arc<dyn SnapshotStore>,
    policy: SnapshotPolicy,
    state_version: u32,
    encode: fn(&A, ReadBack) -> Result<Vec<u8>, CodecError>,
    check: ReadBack,
    decode: fn(&[u8]) -> Result<A, CodecError>,
    codecs: PayloadCodecs,
    queue: Arc<Queue<A>>,
    /// The size of an event in the store in bytes: a running mean over the events that loads have
    /// met.
    event_bytes: Arc<AtomicU64>,
    counters: Arc<Counters>,
}

struct Queue<A> {
    waiting: Mutex<Waiting<A>>,
    /// Notified when the writer ends.
    ended: Notify,
}

struct Waiting<A> {
    newest: BTreeMap<StreamId, Loaded<A>>,
    /// The stream that was written last. The next one comes after it, so that a busy stream never
    /// keeps others waiting.
    last: Option<StreamId>,
    is_running: bool,
}

impl<A> Waiting<A> {
    fn take_next(&mut self) -> Option<(StreamId, Loaded<A>)> {
        let after = self.last.take().and_then(|last| {
            let mut after = self.newest.range((Bound::Excluded(last), Bound::Unbounded));
            after.next().map(|(stream, _)| stream.clone())
        });
        let next = match after {
            Some(stream) => self.newest.remove_entry(&stream),
            None => self.newest.pop_first(),
        };
        self.last = next.as_ref().map(|(stream, _)| stream.clone());
        next
    }
}

impl<A> Queue<A> {
    fn lock(&self) -> MutexGuard<'_, Waiting<A>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Default for Queue<A> {
    fn default() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                newest: BTreeMap::new(),
                last: None,
                is_running: false,
            }),
            ended: Notify::new(),
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
            check: self.check,
            decode: self.decode,
            codecs: self.codecs.clone(),
            queue: self.queue.clone(),
            event_bytes: self.event_bytes.clone(),
            counters: self.counters.clone(),
        }
    }
}

impl<A: Snapshot> Snapshots<A> {
    pub(super) fn new(
        store: Arc<dyn SnapshotStore>,
        policy: SnapshotPolicy,
        codecs: PayloadCodecs,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            store,
            policy,
            state_version: A::STATE_VERSION,
            encode: encode_state::<A>,
            check: ReadBack::default(),
            decode: decode_state::<A>,
            codecs,
            queue: Arc::default(),
            event_bytes: Arc::new(AtomicU64::new(EVENT_BYTES)),
            counters,
        }
    }
}

impl<A: Clone + Send + Sync + 'static> Snapshots<A> {
    /// Sets the codecs and starts an empty table: what waits in the old one is written with the
    /// codecs of its owner.
    pub(super) fn with_codecs(self, codecs: PayloadCodecs) -> Self {
        Self {
            codecs,
            queue: Arc::default(),
            ..self
        }
    }

    /// Sets whether states are decoded again before they are stored.
    pub(super) fn with_check(self, check: ReadBack) -> Self {
        Self { check, ..self }
    }

    /// Returns the number of newest commits to request together with the snapshot.
    pub(super) fn newest(&self, load: LoadPolicy) -> Option<NonZeroU32> {
        load.newest(self.policy, self.event_bytes.load(Relaxed))
    }

    /// Updates the mean size of an event from commits that were read.
    pub(super) fn met(&self, commits: &[Commit]) {
        let (mut events, mut bytes) = (0, 0);
        for commit in commits {
            let event_bytes = commit.events.iter().map(|e| e.name.len() + e.payload.len());
            events += commit.events.len();
            bytes += COMMIT_BYTES + event_bytes.sum::<usize>();
        }
        if let Some(met) = bytes.checked_div(events) {
            // Of two loads at the same time one may overwrite the update of the other. The mean is
            // only an estimate.
            let old = self.event_bytes.load(Relaxed);
            self.event_bytes.store((7 * old + met as u64) / 8, Relaxed);
        }
    }

    /// Returns the stream's decoded snapshot. A snapshot that cannot be read, decoded or waited for
    /// costs only time, so the error ends here.
    pub(super) async fn load(
        &self,
        stream: &StreamId,
        deadline: Option<Instant>,
    ) -> Option<(StoredSnapshot, A)> {
        let loading = async {
            let found = match self.store.load(stream).await {
                Ok(found) => found?,
                Err(error) => {
                    tracing::warn!(%stream, error = crate::chain(&error), "the snapshot cannot be read");
                    return None;
                }
            };
            if found.state_version != self.state_version {
                return None;
            }
            match self.read(&found).await {
                Ok(Some(state)) => Some((found, state)),
                Ok(None) => {
                    // The snapshot can never be read again, but it would prevent every later one
                    // from being saved.
                    let why = "its key was deleted";
                    self.discard(&found, why, deadline).await;
                    None
                }
                Err(error) => {
                    tracing::warn!(%stream, error = crate::chain(&error), "the snapshot cannot be decoded");
                    None
                }
            }
        };
        let Some(found) = within(deadline, loading).await else {
            tracing::warn!(%stream, "the snapshot store is slow: the events are folded without a snapshot");
            return None;
        };
        found
    }

    /// Opens and decodes a snapshot; `None` if its key was deleted.
    async fn read(&self, snapshot: &StoredSnapshot) -> Result<Option<A>, CodecError> {
        let payload = match &snapshot.codec {
            None => snapshot.payload.clone(),
            Some(tags) => {
                let context = PayloadContext::of_snapshot(snapshot);
                let opened = self.codecs.open(&context, Some(tags), &snapshot.payload);
                match opened.await? {
                    Opened::Payload(payload) => payload,
                    Opened::Shredded => return Ok(None),
                }
            }
        };
        (self.decode)(&payload).map(Some)
    }

    /// Deletes a snapshot that does not fit the history. Since an older snapshot never replaces a
    /// newer one, it would prevent every later one from being saved. If the deletion fails, the
    /// next load finds the snapshot again.
    pub(super) async fn discard(
        &self,
        snapshot: &StoredSnapshot,
        why: &str,
        deadline: Option<Instant>,
    ) {
        let stream = &snapshot.stream;
        tracing::warn!(%stream, version = %snapshot.version, "the snapshot does not fit and is deleted: {why}");
        self.counters.misfit();
        match within(deadline, self.store.delete(stream)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(%stream, error = crate::chain(&error), "the snapshot cannot be deleted");
            }
            None => {
                tracing::warn!(%stream, "the snapshot store is slow: the snapshot is not deleted yet");
            }
        }
    }

    /// Deletes the stored snapshot and the one that waits to be written.
    pub(super) async fn forget(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        self.queue.lock().newest.remove(stream);
        self.store.delete(stream).await
    }

    /// Takes a snapshot of this state if the policy says so, and notes that in the state: the next
    /// one is due after it, even if this one cannot be written. Never waits and never fails.
    pub(super) fn offer(
        &self,
        loaded: &mut Loaded<A>,
        load: Duration,
        now: impl FnOnce() -> Timestamp,
    ) {
        let last = loaded.snapshot;
        let since = SinceSnapshot {
            events: loaded.version().get() - last.version.get(),
            age: last
                .recorded_at
                .map_or(Duration::ZERO, |at| now().since(at)),
            load,
        };
        if !self.policy.is_due(&since) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut waiting = self.queue.lock();
        let stream = loaded.head.stream();
        match waiting.newest.get(stream) {
            Some(queued) if queued.version() >= loaded.version() => return,
            Some(_) => self.counters.snapshot(SnapshotEnd::Superseded),
            None if waiting.newest.len() >= QUEUE => {
                self.counters.snapshot(SnapshotEnd::Skipped);
                tracing::debug!(%stream, "too many snapshots wait: this one is left for a later command");
                return;
            }
            None => {}
        }
        waiting.newest.insert(stream.clone(), loaded.clone());
        loaded.snapshot = LastSnapshot {
            version: loaded.version(),
            recorded_at: Some(loaded.head.recorded_at()),
        };
        let must_start = !std::mem::replace(&mut waiting.is_running, true);
        drop(waiting);
        if must_start {
            self.start(&runtime);
        }
    }

    /// Starts the writer, whose flag the caller has set. Must not be called under the lock: a
    /// runtime that shuts down drops the task at once, and the drop takes the lock.
    fn start(&self, runtime: &Handle) {
        // Created here and not in the task: the guard must also run if the task is dropped before
        // its first poll.
        let mut running = Running {
            queue: self.queue.clone(),
            is_over: false,
        };
        let snapshots = self.clone();
        runtime.spawn(async move {
            snapshots.write_all(&mut running).await;
        });
    }

    async fn write_all(&self, running: &mut Running<A>) {
        while let Some((stream, loaded)) = running.next() {
            let started = Instant::now();
            // A panic in the user's `Serialize` must not end the snapshots of other streams.
            let written = AssertUnwindSafe(self.write(&loaded)).catch_unwind().await;
            let took = started.elapsed();
            let end = match written {
                Ok(Ok(SaveOutcome::Saved)) => SnapshotEnd::Written,
                Ok(Ok(SaveOutcome::Stale)) => SnapshotEnd::Stale,
                Ok(Err(error)) => {
                    tracing::warn!(%stream, error = crate::chain(&*error), "the snapshot cannot be written");
                    SnapshotEnd::Failed
                }
                Err(_) => {
                    tracing::warn!(%stream, "writing the snapshot panicked");
                    SnapshotEnd::Failed
                }
            };
            tracing::debug!(%stream, version = %loaded.version(), ?end, ?took, "snapshot");
            self.counters.snapshot(end);
            self.counters.wrote_for(took);
        }
    }

    async fn write(&self, loaded: &Loaded<A>) -> Result<SaveOutcome, BoxError> {
        let Some(commit_id) = loaded.head.commit_id() else {
            return Err("a stream without commits has no snapshot".into());
        };
        let payload = (self.encode)(&loaded.state, self.check)?;
        let snapshot = StoredSnapshot::new(
            loaded.head.stream().clone(),
            loaded.version(),
            commit_id,
            self.state_version,
            Bytes::new(),
        );
        let context = PayloadContext::of_snapshot(&snapshot);
        let what = || format!("the snapshot of {}", snapshot.stream);
        let sealed = (self.codecs).seal_readable(&context, payload.into(), self.check, what);
        let (payload, codec) = sealed.await?;
        let sealed = StoredSnapshot {
            payload,
            codec,
            ..snapshot
        };
        match self.store.save(&sealed).await? {
            SaveOutcome::Stale if self.is_in_the_way(&sealed).await? => {
                self.store.delete(&sealed.stream).await?;
                Ok(self.store.save(&sealed).await?)
            }
            outcome => Ok(outcome),
        }
    }

    /// Returns true if the store has kept a snapshot instead of a new one, and the kept one is of
    /// no use to this build.
    ///
    /// The kept snapshot has the same version with the same or a higher state version, or a higher
    /// version. It comes from a process that runs a newer build or has read further, or from a
    /// longer history that the table held before it was restored. Until the stream has grown past
    /// it, every load would fold the whole history.
    ///
    /// A kept snapshot with a higher version that can be used stays, because a load checks whether
    /// it fits. Where builds of two state versions run side by side, each replaces the other's
    /// snapshot at its loads, which costs only time.
    async fn is_in_the_way(&self, new: &StoredSnapshot) -> Result<bool, BoxError> {
        let Some(stored) = self.store.load(&new.stream).await? else {
            return Ok(false);
        };
        if stored.version < new.version {
            return Ok(false);
        }
        let why = if stored.state_version != self.state_version {
            format!("it is of state version {}", stored.state_version)
        } else {
            match self.read(&stored).await {
                Ok(Some(_)) if stored.version > new.version => return Ok(false),
                Ok(Some(_)) if stored.commit_id == new.commit_id => return Ok(false),
                Ok(Some(_)) => "it is of another history".to_owned(),
                Ok(None) => "its key was deleted".to_owned(),
                // An unavailable key service says nothing about the snapshot.
                Err(error) if error.is_transient() => return Ok(false),
                Err(error) => crate::chain(&error).to_string(),
            }
        };
        tracing::warn!(stream = %new.stream, version = %new.version, "the stored snapshot cannot be used and is replaced: {why}");
        Ok(true)
    }

    /// Waits until nothing is left to write, even if the runtime of the writer has shut down
    /// meanwhile.
    pub(super) async fn settle(&self) {
        loop {
            let mut ended = std::pin::pin!(self.queue.ended.notified());
            // Registered before the check. A writer that ends between the check and the wait would
            // otherwise not wake this task.
            ended.as_mut().enable();
            let must_start = {
                let mut waiting = self.queue.lock();
                if !waiting.is_running && waiting.newest.is_empty() {
                    return;
                }
                !std::mem::replace(&mut waiting.is_running, true)
            };
            if must_start {
                match Handle::try_current() {
                    Ok(runtime) => self.start(&runtime),
                    Err(_) => {
                        self.queue.lock().is_running = false;
                        return;
                    }
                }
            }
            ended.await;
        }
    }
}

/// Returns the instant at which a time from now ends; `None` if it is too far away to be
/// represented.
pub(super) fn deadline(time: Duration) -> Option<Instant> {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    (time < FAR).then(|| Instant::now() + time)
}

/// Returns the output of a future that is ready by the deadline. The future is polled at least
/// once. Without a deadline, or outside a tokio runtime, there is no timer and the future is
/// awaited.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    // No timer is created if the answer is there at once.
    if let Poll::Ready(answer) = futures::poll!(future.as_mut()) {
        return Some(answer);
    }
    match deadline {
        Some(deadline) if Handle::try_current().is_ok() => {
            tokio::time::timeout_at(deadline, future).await.ok()
        }
        _ => Some(future.await),
    }
}

/// The right to write, which one task holds at a time. However the task ends, dropping it clears
/// the flag and wakes the tasks that wait for the end.
struct Running<A> {
    queue: Arc<Queue<A>>,
    is_over: bool,
}

impl<A> Running<A> {
    /// Returns the next snapshot to write. With `None` the flag was cleared in the same critical
    /// section as the check, so that an offer right after it starts a new task.
    fn next(&mut self) -> Option<(StreamId, Loaded<A>)> {
        let mut waiting = self.queue.lock();
        let next = waiting.take_next();
        waiting.is_running = next.is_some();
        self.is_over = next.is_none();
        next
    }
}

impl<A> Drop for Running<A> {
    fn drop(&mut self) {
        // If the flag was cleared already, it may belong to another task by now.
        if !self.is_over {
            self.queue.lock().is_running = false;
        }
        self.queue.ended.notify_waiters();
    }
}
