//! A producer client and what it knows about partitions, which are retired together.
//!
//! # Why does one failure retire the producer for all runs?
//! A record that failed may have later records of the same key after it, in the client's queue or
//! on their way. If they were stored without it, their order would be wrong. Only a purge of the
//! client removes them, and it removes the records of all runs. A run that was purged for another
//! one continues on the next producer.
use super::{
    lock,
    priming::{Admission, Priming},
};
use crate::{
    client::{DropElsewhere, Listening},
    config::KafkaConfig,
    error::{Errors, code},
    worked_before::Uses,
};
use foldstream::ports::{MessageBusError, PartitionId};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _, PurgeConfig},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};
use tokio::sync::Notify;

pub(super) type Client = FutureProducer<Listening>;

/// One producer client. It is replaced after the first failure of a record that was queued.
#[derive(Debug)]
pub(super) struct Session {
    client: DropElsewhere<Client>,
    /// The most bytes of a batch that has several records.
    batch_bytes: usize,
    /// False once nothing more may be queued.
    is_open: RwLock<bool>,
    is_retired: Mutex<bool>,
    gates: Mutex<HashMap<PartitionId, Arc<Gate>>>,
}

/// The answer to a record that was offered to a session.
pub(super) enum Enqueued {
    Queued(DeliveryFuture),
    /// The queue of the client is full. It empties itself.
    Full,
    /// The session takes no more records, or must be retired since its client has failed for good.
    Closed(Option<KafkaError>),
    Refused(KafkaError),
}

impl Session {
    pub(super) fn client(&self) -> Result<&Client, KafkaError> {
        self.client.get()
    }

    pub(super) fn is_open(&self) -> bool {
        *self.is_open.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of records that are queued or in flight.
    fn unacknowledged(&self) -> usize {
        let count = self.client.get().map_or(0, Client::in_flight_count);
        usize::try_from(count).unwrap_or(0)
    }

    /// Takes no more records. Records that were queued are still sent.
    fn close(&self) {
        *self.is_open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Queues a record, if the session is open.
    pub(super) fn enqueue(&self, record: FutureRecord<'_, [u8], [u8]>) -> Enqueued {
        // The lock is held while the record is queued. Otherwise another run could retire the
        // session between the check and the queue, and the record would be queued after the purge.
        // It would then be sent although records of the same key before it were purged.
        let is_open = self.is_open.read().unwrap_or_else(PoisonError::into_inner);
        if !*is_open {
            return Enqueued::Closed(None);
        }
        let sent = match self.client.get() {
            Ok(client) => client.send_result(record).map_err(|(error, _)| error),
            Err(error) => Err(error),
        };
        match sent {
            Ok(acknowledged) => Enqueued::Queued(acknowledged),
            Err(error) => match code(&error) {
                Some(RDKafkaErrorCode::QueueFull) => Enqueued::Full,
                Some(RDKafkaErrorCode::Fatal) => Enqueued::Closed(Some(error)),
                _ => Enqueued::Refused(error),
            },
        }
    }

    pub(super) fn gate(&self, partition: &PartitionId) -> Arc<Gate> {
        let mut gates = lock(&self.gates);
        if let Some(gate) = gates.get(partition) {
            return Arc::clone(gate);
        }
        Arc::clone(gates.entry(partition.clone()).or_default())
    }
}

/// The priming of one partition, and the runs that wait for it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    priming: Mutex<Priming>,
    changed: Notify,
}

/// The permission of a run to prime a partition. If it is dropped before an acknowledgement, the
/// next run primes the partition.
#[derive(Debug)]
pub(super) struct Alone(Arc<Gate>);

impl Drop for Alone {
    fn drop(&mut self) {
        lock(&self.0.priming).gave_up();
        self.0.changed.notify_waiters();
    }
}

impl Gate {
    /// Waits until a run may begin, and returns its permission to prime the partition, if that is
    /// due. Returns [`Admission::Wait`] if the session closes meanwhile.
    pub(super) async fn admit(self: &Arc<Self>, session: &Session) -> (Admission, Option<Alone>) {
        loop {
            let changed = self.changed.notified();
            if !session.is_open() {
                return (Admission::Wait, None);
            }
            let admission = lock(&self.priming).admit(Instant::now());
            match admission {
                Admission::Wait => changed.await,
                Admission::Alone => return (admission, Some(Alone(Arc::clone(self)))),
                Admission::Freely => return (admission, None),
            }
        }
    }

    pub(super) fn acknowledged(&self) {
        lock(&self.priming).acknowledged(Instant::now());
    }

    pub(super) fn last_acknowledged(&self) -> Option<Instant> {
        lock(&self.priming).last_acknowledged()
    }
}

/// The session of a bus, and its replacement.
#[derive(Debug)]
pub(super) struct Sessions {
    config: KafkaConfig,
    errors: Arc<Errors>,
    slot: Mutex<Slot>,
    changed: Notify,
}

#[derive(Debug)]
struct Slot {
    current: Current,
    batch_bytes: usize,
}

#[derive(Debug)]
enum Current {
    Empty,
    Session(Arc<Session>),
    /// The last session is being purged.
    Retiring,
}

impl Sessions {
    pub(super) fn new(config: KafkaConfig, errors: Arc<Errors>) -> Self {
        Self {
            config,
            errors,
            slot: Mutex::new(Slot {
                current: Current::Empty,
                batch_bytes: KafkaConfig::BATCH_BYTES,
            }),
            changed: Notify::new(),
        }
    }

    /// Returns the session that takes records. Waits while the last one is being purged, and
    /// creates one if there is none.
    pub(super) async fn current(&self) -> Result<Arc<Session>, MessageBusError> {
        loop {
            let changed = self.changed.notified();
            {
                let mut slot = lock(&self.slot);
                match &slot.current {
                    Current::Session(session) => return Ok(Arc::clone(session)),
                    Current::Empty => {
                        let session = Arc::new(self.create(slot.batch_bytes)?);
                        slot.current = Current::Session(Arc::clone(&session));
                        return Ok(session);
                    }
                    Current::Retiring => {}
                }
            }
            changed.await;
        }
    }

    fn create(&self, batch_bytes: usize) -> Result<Session, MessageBusError> {
        let context = Listening::new(&self.config, &self.errors);
        let client = self
            .config
            .producer(batch_bytes)
            .create_with_context(context)
            .map_err(|error| {
                let doing = "creating the producer";
                self.errors.failed(doing, Uses::nothing(), error)
            })?;
        Ok(Session {
            client: DropElsewhere::new(client),
            batch_bytes,
            is_open: RwLock::new(true),
            is_retired: Mutex::new(false),
            gates: Mutex::default(),
        })
    }

    /// Makes batches small enough for a topic that takes records of `limit` bytes.
    ///
    /// A session with larger batches takes no more records. Brokers refuse a batch as a whole, so a
    /// large batch of small records would be refused, too.
    pub(super) fn fit_batches(&self, limit: usize) {
        let mut slot = lock(&self.slot);
        slot.batch_bytes = slot.batch_bytes.min(limit.max(1));
        let fits = slot.batch_bytes;
        if let Current::Session(session) = &slot.current
            && session.batch_bytes > fits
        {
            session.close();
            slot.current = Current::Empty;
        }
    }

    /// Retires a session for all runs, and returns true the first time that it is called for this
    /// session.
    ///
    /// Nothing is queued in the session after this call. A thread of its own then purges the
    /// client, so that what is in flight fails promptly, and drops it. There is no other session
    /// until the purge has ended.
    pub(super) fn retire(self: &Arc<Self>, session: &Arc<Session>, why: &KafkaError) -> bool {
        let is_first = self.replace(session);
        if is_first {
            tracing::warn!(
                error = foldstream::chain(why),
                "a record could not be published, and the Kafka producer is replaced"
            );
        }
        is_first
    }

    /// Retires the current session, if there is one, and returns once it is purged. Returns the
    /// number of records that were queued or in flight.
    pub(super) async fn reset(self: &Arc<Self>) -> usize {
        let mut given_up = 0;
        let current = match &lock(&self.slot).current {
            Current::Session(session) => Some(Arc::clone(session)),
            Current::Empty | Current::Retiring => None,
        };
        if let Some(session) = current {
            given_up = session.unacknowledged();
            self.replace(&session);
        }
        loop {
            let changed = self.changed.notified();
            if !matches!(lock(&self.slot).current, Current::Retiring) {
                return given_up;
            }
            changed.await;
        }
    }

    /// Returns the number of records that are queued or in flight.
    pub(super) fn unacknowledged(&self) -> usize {
        match &lock(&self.slot).current {
            Current::Session(session) => session.unacknowledged(),
            Current::Empty | Current::Retiring => 0,
        }
    }

    fn replace(self: &Arc<Self>, session: &Arc<Session>) -> bool {
        session.close();
        if std::mem::replace(&mut *lock(&session.is_retired), true) {
            return false;
        }
        let is_current = {
            let mut slot = lock(&self.slot);
            let is_current =
                matches!(&slot.current, Current::Session(s) if Arc::ptr_eq(s, session));
            if is_current {
                slot.current = Current::Retiring;
            }
            is_current
        };
        let retirement = Retirement {
            sessions: Arc::clone(self),
            session: Arc::clone(session),
            is_current,
        };
        let thread = std::thread::Builder::new().name("kafka-retire".into());
        // Without a thread, the drop of the closure ends the retirement here, which blocks but is
        // correct.
        let _ = thread.spawn(move || drop(retirement));
        true
    }
}

/// The purge of a session, which is carried out when this value is dropped.
struct Retirement {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
    is_current: bool,
}

impl Drop for Retirement {
    fn drop(&mut self) {
        if let Ok(client) = self.session.client.get() {
            // The queue first: otherwise the client would send from it what comes after the
            // requests that are given up.
            client.purge(PurgeConfig::default().queue());
            client.purge(PurgeConfig::default().queue().inflight());
        }
        if self.is_current {
            lock(&self.sessions.slot).current = Current::Empty;
            self.sessions.changed.notify_waiters();
        }
        // Runs that wait for their turn to prime a partition learn that the session is closed.
        for gate in lock(&self.session.gates).values() {
            gate.changed.notify_waiters();
        }
    }
}
