//! Taking and reading snapshots beside the commands.
//!
//! A due snapshot goes into a bounded table, the newest per stream, which one background task empties. The task is
//! started by the first snapshot that is due and ends when the table is empty, so nothing has to be shut down. The
//! state is encoded in that task too: a command pays for a reference count and a map entry.
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

/// Streams that may wait for their snapshot; beyond, a due snapshot is left for a later command.
const QUEUE: usize = 1024;

/// The bytes that an event is taken to have in the store, as long as none was seen.
const EVENT_BYTES: u64 = 256;

/// The bytes of a commit beside the names and payloads of its events, about: key, id, time.
const COMMIT_BYTES: usize = 100;

/// Reads and takes snapshots of one aggregate type. Cloning shares the table.
pub(super) struct Snapshots<A> {
    store: Arc<dyn SnapshotStore>,
    policy: SnapshotPolicy,
    state_version: u32,
    encode: fn(&A, ReadBack) -> Result<Vec<u8>, CodecError>,
    check: ReadBack,
    decode: fn(&[u8]) -> Result<A, CodecError>,
    codecs: PayloadCodecs,
    queue: Arc<Queue<A>>,
    /// Bytes of an event in the store: a running mean of what loads have met.
    event_bytes: Arc<AtomicU64>,
    counters: Arc<Counters>,
}

struct Queue<A> {
    waiting: Mutex<Waiting<A>>,
    /// Rings when the writer ends.
    ended: Notify,
}

struct Waiting<A> {
    newest: BTreeMap<StreamId, Loaded<A>>,
    /// The stream that was taken last: the next one comes after it, so that a busy stream never keeps others waiting.
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
    /// With a table of its own: what waits there is written by the codecs of whoever put it there.
    pub(super) fn with_codecs(self, codecs: PayloadCodecs) -> Self {
        Self {
            codecs,
            queue: Arc::default(),
            ..self
        }
    }

    /// Says if states are read back before they are stored.
    pub(super) fn with_check(self, check: ReadBack) -> Self {
        Self { check, ..self }
    }

    /// Returns the number of the newest commits to ask for together with the snapshot.
    pub(super) fn newest(&self, load: LoadPolicy) -> Option<NonZeroU32> {
        load.newest(self.policy, self.event_bytes.load(Relaxed))
    }

    /// Learns from commits that were read how large events are.
    pub(super) fn met(&self, commits: &[Commit]) {
        let (mut events, mut bytes) = (0, 0);
        for commit in commits {
            let event_bytes = commit.events.iter().map(|e| e.name.len() + e.payload.len());
            events += commit.events.len();
            bytes += COMMIT_BYTES + event_bytes.sum::<usize>();
        }
        if let Some(met) = bytes.checked_div(events) {
            // Of two loads at the same time one may go uncounted.
            let old = self.event_bytes.load(Relaxed);
            self.event_bytes.store((7 * old + met as u64) / 8, Relaxed);
        }
    }

    /// Returns the stream's snapshot, decoded. One that cannot be had, read or waited for costs time only, so its error ends
    /// here.
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
                    // Never to be read again, but it would stand in the way of every later one.
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

    /// Opens and decodes a snapshot; none if its key was deleted.
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

    /// Deletes a snapshot that does not fit the history: since snapshots only move forward, it would stand in the way of
    /// every later one. If that fails, the next load finds it again.
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

    /// Deletes the snapshot that is stored, and the one that waits to be.
    pub(super) async fn forget(&self, stream: &StreamId) -> Result<(), SnapshotStoreError> {
        self.queue.lock().newest.remove(stream);
        self.store.delete(stream).await
    }

    /// Takes a snapshot of this state if the policy says so, and notes in it that it did: the next one is due after it,
    /// even if it cannot be written. Never waits, never fails.
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

    /// Starts the writer, whose flag the caller has set. Not under the lock: a runtime that is going away drops the task
    /// at once, which takes the lock.
    fn start(&self, runtime: &Handle) {
        // Made here and not in the task: it must also end if the task is dropped before its first poll.
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
            // A panic in the user's `Serialize` must not take the snapshots of other streams with it.
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

    /// Returns true if the store has kept a snapshot for a new one that is of no use to this build.
    ///
    /// The stored one is of the same version with the same or a later state version, or of a later version: of a process
    /// that is ahead, or of a longer history, as a table had before it was restored. Until the stream has grown beyond it,
    /// every load would fold the whole history. A later one that can be used stays: a load looks whether it fits.
    /// Between builds of two state versions, running side by side on a stream, the snapshot changes hands at their loads;
    /// that costs them time only.
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
                // A key service that is away says nothing about the snapshot.
                Err(error) if error.is_transient() => return Ok(false),
                Err(error) => crate::chain(&error).to_string(),
            }
        };
        tracing::warn!(stream = %new.stream, version = %new.version, "the stored snapshot cannot be used and is replaced: {why}");
        Ok(true)
    }

    /// Waits until nothing is left to write, also if the runtime that wrote has gone meanwhile.
    pub(super) async fn settle(&self) {
        loop {
            let mut ended = std::pin::pin!(self.queue.ended.notified());
            // Registered before the look, so that an end in between is not missed.
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

/// Returns the end of a time from now on; none if it is so far away that nobody lives to see it.
pub(super) fn deadline(time: Duration) -> Option<Instant> {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    (time < FAR).then(|| Instant::now() + time)
}

/// Returns the output of a future that is ready by the deadline. The future is polled once in any case. Without a deadline,
/// or outside of a tokio runtime, there is no timer, and the future is awaited.
async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    // Without a timer where the answer is there at once.
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

/// The right to write, of one task at a time. However the task ends, the flag falls and whoever waits for the end hears.
struct Running<A> {
    queue: Arc<Queue<A>>,
    is_over: bool,
}

impl<A> Running<A> {
    /// The next snapshot to write. None: the flag has fallen, in the critical section of the look, so that an offer right
    /// after it starts a new task.
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
        // If it has fallen already, it may be another task's by now.
        if !self.is_over {
            self.queue.lock().is_running = false;
        }
        self.queue.ended.notify_waiters();
    }
}
