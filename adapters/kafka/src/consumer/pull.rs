//! The read of partitions: records, offsets without records, damaged records, and topics that were
//! created again.
use super::{
    context::GroupContext,
    convert::message,
    poll::{LONGEST_WAIT, PollLoop, RETRY_PAUSE},
    shared::Shared,
    topic_ids::Recreated,
};
use crate::{
    client::{Range, kafka_number},
    error::{Class, class, code},
    worked_before::{Access, Uses},
};
use foldstream::{
    adapter::MessageCopier,
    ports::{Delivery, NoPosition, Offset, PartitionId},
};
use rdkafka::{
    Message as _, Offset as Place,
    consumer::{Consumer as _, base_consumer::PartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
};
use std::time::{Duration, Instant};

/// The most records that are pulled from one partition at a time, so that no partition starves
/// another.
const RECORDS_AT_A_TIME: usize = 128;

/// The queue of one partition that is read.
pub(super) struct Queue {
    pub(super) id: PartitionId,
    records: PartitionQueue<GroupContext>,
    /// The next offset. Each lower offset has been delivered or holds no record.
    next: Offset,
    /// True if the position is out of range, or belongs to an earlier topic of that name.
    stopped: bool,
    /// The time at which fetching restarts from `next` after an error. No record is taken until
    /// then.
    fetch_again: Option<Instant>,
    /// True if all records that the client had were taken.
    drained: bool,
}

/// The records that were taken from one queue.
struct Pulled {
    id: PartitionId,
    /// Each with its size.
    deliveries: Vec<(Delivery, usize)>,
    error: Option<KafkaError>,
}

impl Queue {
    pub(super) fn new(
        id: PartitionId,
        records: PartitionQueue<GroupContext>,
        next: Offset,
    ) -> Self {
        Self {
            id,
            records,
            next,
            stopped: false,
            fetch_again: None,
            drained: false,
        }
    }

    fn is_read(&self) -> bool {
        !self.stopped && self.fetch_again.is_none()
    }

    /// Takes the records that fit into the buffer of the partition.
    fn pull(&mut self, shared: &Shared, copier: &mut MessageCopier) -> Option<Pulled> {
        let (room, epoch) = (shared.room(&self.id)?, shared.epoch(&self.id)?);
        let (mut deliveries, mut bytes, mut error) = (Vec::new(), 0, None);
        let most = room.records.min(RECORDS_AT_A_TIME);
        copier.begin_batch();
        self.drained = false;
        while deliveries.len() < most && (bytes < room.bytes || deliveries.is_empty()) {
            match self.records.poll(Duration::ZERO) {
                None => {
                    self.drained = true;
                    break;
                }
                Some(Ok(record)) => {
                    let offset = Offset::new(record.offset().unsigned_abs());
                    if record.offset() < 0 || offset < self.next {
                        continue;
                    }
                    self.next = offset.next();
                    let message = message(copier, &self.id, &record);
                    let size = message.size();
                    bytes += size;
                    let delivery = Delivery::new(self.id.clone(), offset, epoch, message);
                    if deliveries.is_empty() {
                        deliveries.reserve_exact(most);
                    }
                    deliveries.push((delivery, size));
                }
                Some(Err(e)) if code(&e) == Some(RDKafkaErrorCode::PartitionEOF) => {}
                Some(Err(e)) => {
                    // The client continues after a record that it cannot read, but the record must
                    // not be skipped. It also reports a refusal only once. So the client is made to
                    // fetch this offset again.
                    self.fetch_again = Some(Instant::now() + RETRY_PAUSE);
                    error = Some(e);
                    break;
                }
            }
        }
        (!deliveries.is_empty() || error.is_some()).then(|| Pulled {
            id: self.id.clone(),
            deliveries,
            error,
        })
    }
}

impl PollLoop {
    /// Takes the records that fit from every partition. Returns true if there were any.
    pub(super) fn pull(&mut self) -> bool {
        let (shared, copier) = (&self.shared, &mut self.copier);
        let reading = self.queues.iter_mut().filter(|queue| queue.is_read());
        let pulled: Vec<_> = reading
            .filter_map(|queue| queue.pull(shared, copier))
            .collect();
        if pulled.is_empty() {
            return false;
        }
        // librdkafka writes the line about a recreated topic before it fetches the first record of
        // the new topic. If one of these records is that first one, the line waits among the
        // events, and the record must not be delivered.
        self.drain_events();
        for Pulled {
            id,
            deliveries,
            error,
        } in pulled
        {
            let Some(queue) = self.queues.iter_mut().find(|queue| queue.id == id) else {
                continue;
            };
            if queue.stopped {
                continue;
            }
            if !deliveries.is_empty() {
                let uses = Uses::topic(Access::Read, &id.topic).with_group(&self.settings.group);
                self.client.context().errors.succeeded(uses);
                self.shared.deliver(&id, deliveries);
            }
            let Some(error) = error else { continue };
            if code(&error).map(class) == Some(Class::OutOfRange) {
                queue.stopped = true;
                self.unexplained.push(id);
                self.explain_at = Instant::now();
            } else {
                let uses = Uses::topic(Access::Read, &id.topic).with_group(&self.settings.group);
                self.tell(format_args!("reading {id}"), uses, error);
            }
        }
        true
    }

    /// Makes the client fetch again where an error has stopped a partition.
    pub(super) fn fetch_again_when_due(&mut self) {
        let now = Instant::now();
        for queue in &mut self.queues {
            if queue.stopped || queue.fetch_again.is_none_or(|due| due > now) {
                continue;
            }
            let (topic, partition) = (&queue.id.topic, kafka_number(queue.id.partition));
            let next = i64::try_from(queue.next.get()).map_or(Place::Invalid, Place::Offset);
            let timeout = self.settings.request_timeout;
            queue.fetch_again = match self.client.seek(topic, partition, next, timeout) {
                Ok(()) => None,
                // The partition is absent at present. Either the client learns of it, or the group
                // takes it away.
                Err(error) => {
                    tracing::debug!(id = %queue.id, error = foldstream::chain(&error), "a partition cannot be fetched yet");
                    Some(now + RETRY_PAUSE)
                }
            };
        }
    }

    /// Reports offsets without records at the end of the records read. The client's position moves
    /// past them as it is polled.
    pub(super) fn tell_holes(&mut self) {
        let now = Instant::now();
        let may_have_holes = |queue: &Queue| queue.is_read() && queue.drained;
        if now < self.holes_at || !self.queues.iter().any(may_have_holes) {
            return;
        }
        self.holes_at = now + LONGEST_WAIT;
        let positions = match self.client.position() {
            Ok(positions) => positions,
            Err(error) => {
                tracing::debug!(
                    error = foldstream::chain(&error),
                    "positions cannot be compared yet"
                );
                return;
            }
        };
        for queue in self.queues.iter_mut().filter(|queue| may_have_holes(queue)) {
            let number = kafka_number(queue.id.partition);
            let element = positions.find_partition(&queue.id.topic, number);
            let Some(Place::Offset(position)) = element.map(|element| element.offset()) else {
                continue;
            };
            let position = Offset::new(position.unsigned_abs());
            if position > queue.next {
                queue.next = position;
                self.shared.reached(&queue.id, position);
            }
        }
    }

    /// Stops the partitions whose positions were committed for an earlier topic of that name.
    pub(super) fn stop_recreated(&mut self) {
        for recreated in self.client.context().take_recreated() {
            let is_of = |id: &PartitionId| match &recreated {
                Recreated::Topic(topic) => *id.topic == **topic,
                Recreated::Partition(partition) => id == partition,
            };
            for queue in self.queues.iter_mut().filter(|queue| is_of(&queue.id)) {
                queue.stopped = true;
                tracing::error!(id = %queue.id, "the topic was deleted and created again");
                self.shared.recreated(&queue.id);
            }
            self.unexplained.retain(|id| !is_of(id));
        }
    }

    /// Reports the ranges that stopped partitions have now.
    pub(super) fn explain_when_due(&mut self) {
        if self.unexplained.is_empty() || Instant::now() < self.explain_at {
            return;
        }
        match self.reader.ranges(&self.unexplained) {
            Ok(ranges) => {
                for (id, Range { begin, end }) in self.unexplained.drain(..).zip(ranges) {
                    self.shared.stop(&id, NoPosition::OutOfRange { begin, end });
                }
            }
            Err(problem) => {
                self.shared.tell(problem);
                self.explain_at = Instant::now() + RETRY_PAUSE;
            }
        }
    }
}
