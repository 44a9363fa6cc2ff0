//! The I/O of a run on one session, which decides nothing: see `pipeline.rs`.
use super::{
    Producer,
    patience::Patience,
    pipeline::{Ending, Next, Pipeline},
    priming::Admission,
    record::to_record,
    session::{Alone, Enqueued, Gate, Session},
};
use crate::error::code;
use foldstream::ports::{Message, Offset, PartitionId};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::DeliveryFuture,
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// The pause before a record is offered again to a client whose queue is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// The outcome of a run on one session.
#[derive(Debug)]
pub(super) struct Stay {
    pub(super) durable: usize,
    /// The offset of the last durable message.
    pub(super) last: Option<Offset>,
    pub(super) ending: Ending<KafkaError>,
}

/// A run on one session.
pub(super) struct Driver<'a> {
    producer: &'a Producer,
    session: &'a Arc<Session>,
    partition: &'a PartitionId,
    run: &'a [Message],
    gate: Arc<Gate>,
    in_flight: VecDeque<DeliveryFuture>,
    /// The time for which the partition may acknowledge nothing.
    patience: Duration,
    /// The time since which the oldest record waits for its acknowledgement.
    waiting_since: Instant,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        producer: &'a Producer,
        session: &'a Arc<Session>,
        partition: &'a PartitionId,
        run: &'a [Message],
    ) -> Self {
        Self {
            producer,
            session,
            partition,
            run,
            gate: session.gate(partition),
            in_flight: VecDeque::new(),
            patience: producer.with_patience(partition, |patience| patience.get()),
            waiting_since: Instant::now(),
        }
    }

    /// Sends the run, until all its messages are durable or no more can be sent on this session.
    pub(super) async fn drive(mut self) -> Stay {
        let (admission, mut alone) = self.gate.admit(self.session).await;
        let mut pipeline = Pipeline::new(self.run.len(), admission);
        if admission == Admission::Wait {
            pipeline.left();
        }
        self.waiting_since = Instant::now();
        loop {
            match pipeline.next() {
                Next::Queue(index) => self.queue(index, &mut pipeline),
                Next::Await(_) => self.await_oldest(&mut pipeline, &mut alone).await,
                Next::Pause => self.pause(&mut pipeline).await,
                Next::End => break,
            }
        }
        let (durable, last, ending) = pipeline.end();
        if durable > 0 {
            self.producer
                .with_patience(self.partition, Patience::acknowledged);
        }
        if let Ending::Failed(error) = &ending
            && self.producer.sessions.retire(self.session, error)
            && code(error) == Some(RDKafkaErrorCode::MessageTimedOut)
        {
            // Only once per session, however many runs have waited in vain.
            self.producer.with_patience(self.partition, Patience::ended);
        }
        drop(alone);
        Stay {
            durable,
            last,
            ending,
        }
    }

    fn queue(&mut self, index: usize, pipeline: &mut Pipeline<KafkaError>) {
        let record = to_record(&self.run[index], self.partition.partition);
        match self.session.enqueue(record) {
            Enqueued::Queued(acknowledged) => {
                self.in_flight.push_back(acknowledged);
                pipeline.queued();
            }
            Enqueued::Full => pipeline.was_full(),
            Enqueued::Refused(error) => pipeline.refused(error),
            Enqueued::Closed(fatal) => {
                if let Some(error) = fatal {
                    self.producer.sessions.retire(self.session, &error);
                }
                pipeline.left();
            }
        }
    }

    async fn await_oldest(
        &mut self,
        pipeline: &mut Pipeline<KafkaError>,
        alone: &mut Option<Alone>,
    ) {
        let answer = match self.in_flight.pop_front() {
            Some(acknowledged) => self.answer(acknowledged).await,
            None => Err(KafkaError::Canceled),
        };
        let without_offset =
            || KafkaError::MessageProduction(RDKafkaErrorCode::DuplicateSequenceNumber);
        match answer {
            Ok(offset) => {
                if pipeline.acknowledged(offset, without_offset) {
                    self.gate.acknowledged();
                    *alone = None;
                }
            }
            Err(error) if is_purged(&error) => pipeline.purged(),
            Err(error) => pipeline.failed(error),
        }
        self.waiting_since = Instant::now();
    }

    async fn pause(&self, pipeline: &mut Pipeline<KafkaError>) {
        if self.waiting_since.elapsed() > self.producer.config.publish_timeout {
            let full = RDKafkaErrorCode::QueueFull;
            pipeline.refused(KafkaError::MessageProduction(full));
        } else {
            tokio::time::sleep(FULL_QUEUE_PAUSE).await;
            pipeline.paused();
        }
    }

    /// Awaits the acknowledgement of a record, and returns its offset.
    ///
    /// # Errors
    /// The error of the record, or `MessageTimedOut` if the partition has acknowledged nothing for
    /// as long as the patience with it lasts.
    async fn answer(&self, mut acknowledged: DeliveryFuture) -> Result<i64, KafkaError> {
        loop {
            // Records of a partition are acknowledged in order. As long as records of other runs
            // are acknowledged, this one gets nearer.
            let others = self.gate.last_acknowledged();
            let since = others.map_or(self.waiting_since, |at| at.max(self.waiting_since));
            let until = tokio::time::Instant::from_std(since + self.patience);
            match tokio::time::timeout_at(until, &mut acknowledged).await {
                Ok(Ok(Ok(delivery))) => return Ok(delivery.offset),
                Ok(Ok(Err((error, _)))) => return Err(error),
                Ok(Err(_)) => return Err(KafkaError::Canceled),
                Err(_) if self.gate.last_acknowledged() > Some(since) => {}
                Err(_) => {
                    let timed_out = RDKafkaErrorCode::MessageTimedOut;
                    return Err(KafkaError::MessageProduction(timed_out));
                }
            }
        }
    }
}

/// Returns true for the error of a record whose producer was retired for a failure of another run.
fn is_purged(error: &KafkaError) -> bool {
    let purged = [
        RDKafkaErrorCode::PurgeQueue,
        RDKafkaErrorCode::PurgeInflight,
    ];
    code(error).is_some_and(|code| purged.contains(&code))
}
