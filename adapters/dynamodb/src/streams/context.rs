//! The parts of a reader that its tasks share.
use super::{
    config::StreamsConfig,
    rows::ReaderRows,
    service::{ChangeStream, StreamService, StreamServiceError},
    status::{ReaderState, ShardStatus, StreamsStatus},
};
use foldstream::{
    RetryPolicy, Timestamp, chain,
    publisher::Publisher,
    resilience::{Attempts, FailureClass},
};
use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

#[derive(Debug)]
pub(super) struct Context {
    pub(super) service: Arc<dyn StreamService>,
    pub(super) publisher: Publisher,
    pub(super) rows: ReaderRows,
    pub(super) config: StreamsConfig,
    /// The name of this instance, which no other one has.
    pub(super) instance: String,
    /// One permit per page in memory.
    pub(super) pages: Arc<Semaphore>,
    /// Wakes the coordinator before its time.
    pub(super) poke: Notify,
    shared: Mutex<Shared>,
}

/// The state that tasks write and the status reads.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) status: StreamsStatus,
    pub(super) shards: BTreeMap<String, ShardStatus>,
    /// The last time that the bus has acknowledged a record.
    pub(super) last_success: Option<Instant>,
    /// True if the stream is to be described before its time.
    pub(super) describe_now: bool,
    /// The calls that fail, by shard and kind, and since when.
    failing: BTreeMap<(String, &'static str), (Timestamp, String)>,
}

impl Context {
    pub(super) fn new(
        service: Arc<dyn StreamService>,
        publisher: Publisher,
        rows: ReaderRows,
        config: StreamsConfig,
        instance: String,
    ) -> Self {
        Self {
            service,
            publisher,
            rows,
            pages: Arc::new(Semaphore::new(
                config.max_pages.clamp(1, Semaphore::MAX_PERMITS),
            )),
            config,
            instance,
            poke: Notify::new(),
            shared: Mutex::default(),
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn now(&self) -> Timestamp {
        self.rows.clock.now()
    }
    /// Returns repeats without an end, for what must succeed before anything else may happen.
    pub(super) fn attempts(&self) -> Attempts<'static> {
        Attempts::new(RetryPolicy::forever(self.config.backoff))
    }

    /// Returns the state of the reader.
    pub(super) fn status(&self) -> StreamsStatus {
        let shared = self.shared();
        let mut status = shared.status.clone();
        status.shards = shared.shards.values().cloned().collect();
        status.behind_since = status
            .shards
            .iter()
            .filter_map(|shard| shard.behind_since)
            .min();
        if let (false, Some((since, error))) = (
            status.state == ReaderState::Stopped,
            shared.failing.values().min(),
        ) {
            status.state = ReaderState::Unreachable {
                since: *since,
                error: error.clone(),
            };
        }
        status
    }

    /// Notes that a kind of call fails for a shard, once it has failed a few times in a row. A call
    /// for no shard in particular has an empty one.
    pub(super) fn fails(
        &self,
        shard: &str,
        what: &'static str,
        times: u32,
        error: &(dyn Error + 'static),
    ) {
        let text = chain(error);
        if times < 3 {
            tracing::debug!(shard, what, times, error = text, "to be tried again");
            return;
        }
        if times == 3 {
            tracing::warn!(
                shard,
                what,
                error = text,
                "fails repeatedly, to be tried again"
            );
        }
        let now = self.now();
        let failing = &mut self.shared().failing;
        failing
            .entry((shard.to_owned(), what))
            .or_insert((now, String::new()))
            .1 = text;
    }
    pub(super) fn works(&self, shard: &str, what: &'static str) {
        self.shared().failing.remove(&(shard.to_owned(), what));
    }
    /// Forgets a shard that is no longer read here, and what fails there.
    pub(super) fn forget(&self, shard: &str) {
        let mut shared = self.shared();
        shared.shards.remove(shard);
        shared.failing.retain(|(of, _), _| of != shard);
    }

    /// Notes durably that records were lost. It returns only once the note is written.
    pub(super) async fn note_loss(&self, shard: &str, why: &str) {
        tracing::error!(
            shard,
            why,
            "records of the change stream were lost: call Publisher::reconcile"
        );
        let mut attempts = self.attempts();
        let why = format!("shard {shard}: {why}");
        while let Err(error) = self.rows.need_reconcile(&why).await {
            self.fails(
                shard,
                "the note of lost records",
                attempts.failed() + 1,
                &error,
            );
            attempts.wait(FailureClass::Transient).await;
        }
        self.works(shard, "the note of lost records");
    }

    /// Returns all shards that the description of a stream lists, and their parents; `None` if the
    /// stream is gone.
    pub(super) async fn shards(
        &self,
        stream: &ChangeStream,
    ) -> Result<Option<BTreeMap<String, Option<String>>>, StreamServiceError> {
        let (mut shards, mut after) = (BTreeMap::new(), None::<String>);
        loop {
            let page = match self.service.shards(stream, after.as_deref()).await {
                Err(StreamServiceError::Gone) => return Ok(None),
                page => page?,
            };
            let listed = page.shards.into_iter();
            shards.extend(listed.map(|shard| (shard.id, shard.parent)));
            after = page.next;
            if after.is_none() {
                return Ok(Some(shards));
            }
        }
    }
}
