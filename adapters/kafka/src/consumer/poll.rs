//! The one thread of a member: it serves the group, pulls records while there is room, and leaves in the end.
//!
//! # Why a queue per partition
//! Each partition's records are split off the client's common queue, so that back-pressure and pauses are simply not
//! pulling: the client stops fetching when its small queue is full, while the common queue, which carries the group's
//! decisions, is polled on. Pausing inside the client would throw away what it has fetched at every turn. And an error
//! of the fetch position says only in the partition's own queue which partition it is of.
//!
//! # Why a revocation is no callback that waits
//! The group waits for the *answer* to its decision, not for the callback. So a revocation is a state of this loop, and
//! the partitions that stay go on delivering while the ones that go are drained.
use super::{
    context::{Client, GroupContext, Rebalance, add, remove},
    convert::Names,
    state::{Pending, Shared, Start},
};
use crate::{
    client::{Range, Reader, committed_places, kafka_number, list},
    error::{Class, class, code},
};
use foldstream::ports::{Delivery, MessageBusError, NoPosition, Offset, PartitionId, StartedFrom};
use rdkafka::{
    Message as _, Offset as Place,
    consumer::{Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// The longest sleep: librdkafka rings for everything that matters, so this only bounds what it might miss.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// How soon a question that failed is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How many of the client's own events are served at a time.
const EVENTS_AT_A_TIME: usize = 32;
/// How many records of one partition are pulled at a time, so that none starves the others.
const RECORDS_AT_A_TIME: usize = 256;

/// What one member needs to know.
pub(super) struct Settings {
    pub(super) group: String,
    pub(super) start: HashMap<PartitionId, Offset>,
    pub(super) request_timeout: Duration,
    pub(super) grace: Duration,
}

struct Queue {
    id: PartitionId,
    records: PartitionQueue<GroupContext>,
    /// The lowest offset that is not delivered.
    next: Offset,
    /// Its position is out of range.
    stopped: bool,
}

/// New partitions whose positions are being looked up.
struct Assigning {
    partitions: Vec<PartitionId>,
    due: Instant,
}

/// Partitions that are being given back.
struct Revoking {
    partitions: Vec<PartitionId>,
    stage: Stage,
}
enum Stage {
    /// Their reader finishes.
    Draining { pending: Pending, until: Instant },
    /// They are refused to new commits, and those under way end.
    Settling { until: Instant },
}

pub(super) struct PollLoop {
    client: Arc<Client>,
    shared: Arc<Shared>,
    reader: Arc<Reader>,
    settings: Settings,
    queues: Vec<Queue>,
    assigning: Option<Assigning>,
    revoking: Option<Revoking>,
    /// Stopped partitions whose range could not be asked yet.
    unexplained: Vec<PartitionId>,
    explain_at: Instant,
    names: Names,
}

/// Marks the end of the thread, also when it panics.
struct Gone(Arc<Shared>);
impl Drop for Gone {
    fn drop(&mut self) {
        self.0.set_gone();
    }
}

impl PollLoop {
    pub(super) fn new(
        client: Arc<Client>,
        shared: Arc<Shared>,
        reader: Arc<Reader>,
        settings: Settings,
    ) -> Self {
        Self {
            client,
            shared,
            reader,
            settings,
            queues: Vec::new(),
            assigning: None,
            revoking: None,
            unexplained: Vec::new(),
            explain_at: Instant::now(),
            names: Names::default(),
        }
    }

    /// Until the consumer leaves.
    pub(super) fn run(mut self) {
        let _gone = Gone(Arc::clone(&self.shared));
        while !self.shared.is_leaving() {
            let served = self.serve_group();
            self.assign_when_due();
            self.revoke_when_drained();
            self.explain_when_due();
            let pulled = self.pull();
            if !served && !pulled {
                self.shared.wake.wait(LONGEST_WAIT);
            }
        }
        self.leave();
    }

    fn tell(&self, doing: impl std::fmt::Display, error: KafkaError) {
        let errors = &self.client.context().errors;
        self.shared.tell(errors.failed(doing, error));
    }

    /// Serves the client's events; says whether the group decided something.
    fn serve_group(&mut self) -> bool {
        for _ in 0..EVENTS_AT_A_TIME {
            match self.client.poll(Duration::ZERO) {
                None => {}
                // Only what the client had queued before the partition got its own queue; it comes again.
                Some(Ok(record)) => tracing::debug!(
                    topic = record.topic(),
                    partition = record.partition(),
                    "a record outside of its partition's queue"
                ),
                Some(Err(error)) => self.problem(error),
            }
        }
        let mut served = false;
        while let Some(decision) = self.client.context().take() {
            served = true;
            match decision {
                Rebalance::Assign(partitions) => {
                    self.assigning = Some(Assigning {
                        partitions,
                        due: Instant::now(),
                    });
                }
                Rebalance::Revoke(partitions) => self.start_revoking(partitions),
            }
        }
        served
    }

    fn problem(&self, error: KafkaError) {
        match code(&error) {
            // One broker of several, and the client reconnects by itself; when the last is gone it says so.
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {}
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            // The group takes the partitions back with the next decision, which is told as lost.
            Some(RDKafkaErrorCode::PollExceeded) => {
                tracing::warn!(group = self.settings.group, "the poll thread was held up");
            }
            _ => self.tell(
                format_args!("reading as group {}", self.settings.group),
                error,
            ),
        }
    }
}

/// Assigning.
impl PollLoop {
    fn assign_when_due(&mut self) {
        let Some(assigning) = self.assigning.take_if(|a| a.due <= Instant::now()) else {
            return;
        };
        match self.starts(&assigning.partitions) {
            Ok(starts) => self.assign(&starts),
            Err(problem) => {
                // The group waits with its heartbeats going on; without positions nothing can be read.
                self.shared.tell(problem);
                self.assigning = Some(Assigning {
                    due: Instant::now() + RETRY_PAUSE,
                    ..assigning
                });
            }
        }
    }

    /// Where each partition starts: committed, declared, or nowhere.
    fn starts(
        &self,
        partitions: &[PartitionId],
    ) -> Result<Vec<(PartitionId, Start)>, MessageBusError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let committed = list(partitions, |_| Place::Invalid)
            .and_then(|asked| {
                self.client
                    .committed_offsets(asked, self.settings.request_timeout)
            })
            .and_then(|answer| committed_places(&answer, partitions))
            .map_err(|error| {
                let doing = format_args!("asking where the group {} is", self.settings.group);
                self.client.context().errors.failed(doing, error)
            })?;
        let ranges = self.reader.ranges(partitions)?;
        let starts = partitions.iter().zip(committed).zip(ranges);
        Ok(starts
            .map(|((id, committed), range)| {
                let declared = self.settings.start.get(id).copied();
                (id.clone(), start(committed, declared, range))
            })
            .collect())
    }

    fn assign(&mut self, starts: &[(PartitionId, Start)]) {
        let ids: Vec<_> = starts.iter().map(|(id, _)| id.clone()).collect();
        let place = |id: &PartitionId| {
            let start = starts
                .iter()
                .find(|(i, _)| i == id)
                .map(|(_, start)| *start);
            match start {
                Some(Start::At(offset, _)) => {
                    i64::try_from(offset.get()).map_or(Place::End, Place::Offset)
                }
                // Held at the end and paused, it fetches nothing.
                _ => Place::End,
            }
        };
        let nowhere: Vec<_> = starts
            .iter()
            .filter(|(_, start)| matches!(start, Start::Nowhere(_)))
            .map(|(id, _)| id.clone())
            .collect();
        // Before the client starts to fetch, or the first records go to the common queue.
        for (id, start) in starts {
            if let Start::At(next, _) = *start {
                self.open_queue(id, next);
            }
        }
        let added = list(&ids, place).and_then(|list| add(&self.client, &list));
        let paused = list(&nowhere, |_| Place::Invalid).and_then(|list| match nowhere.len() {
            0 => Ok(()),
            _ => self.client.pause(&list),
        });
        match added.and(paused) {
            Ok(()) => self.shared.assign(starts),
            Err(error) => {
                self.queues.retain(|queue| !ids.contains(&queue.id));
                self.tell(
                    format_args!("taking partitions for group {}", self.settings.group),
                    error,
                );
            }
        }
    }

    fn open_queue(&mut self, id: &PartitionId, next: Offset) {
        let partition = kafka_number(id.partition);
        let Some(mut records) = self.client.split_partition_queue(&id.topic, partition) else {
            // Only for names that are no C strings, which a subscription refuses.
            tracing::error!(%id, "no queue for a partition");
            return;
        };
        let wake = Arc::clone(&self.shared.wake);
        records.set_nonempty_callback(move || wake.ring());
        self.queues.push(Queue {
            id: id.clone(),
            records,
            next,
            stopped: false,
        });
    }
}

/// Where a partition starts, by what is known of it.
fn start(committed: Option<Offset>, declared: Option<Offset>, range: Range) -> Start {
    let position = match (committed, declared) {
        (Some(offset), _) => (offset, StartedFrom::Committed),
        (None, Some(offset)) => (offset, StartedFrom::Declared),
        (None, None) => return Start::Nowhere(NoPosition::Missing),
    };
    let Range { begin, end } = range;
    if (begin..=end).contains(&position.0) {
        Start::At(position.0, position.1)
    } else {
        Start::Nowhere(NoPosition::OutOfRange { begin, end })
    }
}

/// Revoking and leaving.
impl PollLoop {
    fn start_revoking(&mut self, partitions: Vec<PartitionId>) {
        self.queues.retain(|queue| !partitions.contains(&queue.id));
        self.unexplained.retain(|id| !partitions.contains(id));
        // The group takes back what it gave before this member had found its positions.
        self.assigning = None;
        let stage = if self.client.assignment_lost() {
            self.shared.end(&partitions, true);
            self.settling()
        } else {
            Stage::Draining {
                pending: self.shared.revoke(&partitions, self.settings.grace),
                until: Instant::now() + self.settings.grace,
            }
        };
        self.revoking = Some(Revoking { partitions, stage });
    }

    fn settling(&self) -> Stage {
        Stage::Settling {
            until: Instant::now() + self.settings.request_timeout,
        }
    }

    fn revoke_when_drained(&mut self) {
        let Some(mut revoking) = self.revoking.take() else {
            return;
        };
        if let Stage::Draining { pending, until } = &revoking.stage {
            let lost = self.client.assignment_lost();
            if lost || pending.is_released() || *until <= Instant::now() {
                self.shared.end(&revoking.partitions, lost);
                revoking.stage = self.settling();
            }
        }
        match revoking.stage {
            // A commit that is sent after the partition was given back would move it under its next reader.
            Stage::Settling { until } if self.shared.commits() == 0 || until <= Instant::now() => {
                let given_back = list(&revoking.partitions, |_| Place::Invalid)
                    .and_then(|list| remove(&self.client, &list));
                if let Err(error) = given_back {
                    let group = &self.settings.group;
                    self.tell(
                        format_args!("giving back partitions of group {group}"),
                        error,
                    );
                }
            }
            _ => self.revoking = Some(revoking),
        }
    }

    fn leave(mut self) {
        // Commits that were accepted are stored before the partitions go to others.
        let until = Instant::now() + self.settings.request_timeout;
        while self.shared.commits() > 0 && Instant::now() < until {
            self.shared.wake.wait(LONGEST_WAIT);
        }
        self.client.context().close();
        // The client closes only after its decisions are answered.
        if self.assigning.take().is_some() {
            let _ = add(&self.client, &rdkafka::TopicPartitionList::new());
        }
        if let Some(revoking) = self.revoking.take() {
            let _ = list(&revoking.partitions, |_| Place::Invalid)
                .and_then(|list| remove(&self.client, &list));
        }
        while let Some(decision) = self.client.context().take() {
            let _ = match decision {
                Rebalance::Assign(_) => add(&self.client, &rdkafka::TopicPartitionList::new()),
                Rebalance::Revoke(partitions) => list(&partitions, |_| Place::Invalid)
                    .and_then(|list| remove(&self.client, &list)),
            };
        }
        // Each queue holds the client; dropping the last hold leaves the group and waits for it.
        self.queues.clear();
        let Self { client, .. } = self;
        drop(client);
    }
}

/// Pulling.
impl PollLoop {
    /// Takes what fits from every partition; says whether there was anything.
    fn pull(&mut self) -> bool {
        let mut pulled = false;
        let mut problems = Vec::new();
        for queue in &mut self.queues {
            if queue.stopped {
                continue;
            }
            let Some(room) = self.shared.room(&queue.id) else {
                continue;
            };
            let Some(epoch) = self.shared.epoch(&queue.id) else {
                continue;
            };
            let mut deliveries: Vec<Delivery> = Vec::new();
            let mut bytes = 0;
            let most = room.records.min(RECORDS_AT_A_TIME);
            while deliveries.len() < most && (bytes < room.bytes || deliveries.is_empty()) {
                match queue.records.poll(Duration::ZERO) {
                    None => break,
                    Some(Ok(record)) => {
                        let offset = Offset::new(record.offset().unsigned_abs());
                        if record.offset() < 0 || offset < queue.next {
                            continue;
                        }
                        queue.next = offset.next();
                        let message = self.names.message(&queue.id, &record);
                        bytes += message.size();
                        deliveries.push(Delivery::new(queue.id.clone(), offset, epoch, message));
                    }
                    Some(Err(error)) => {
                        queue.stopped = code(&error).map(class) == Some(Class::OutOfRange);
                        problems.push((queue.id.clone(), queue.stopped, error));
                        break;
                    }
                }
            }
            if !deliveries.is_empty() {
                pulled = true;
                self.shared.deliver(&queue.id, deliveries);
            }
        }
        for (id, stopped, error) in problems {
            pulled = true;
            if stopped {
                self.unexplained.push(id);
                self.explain_at = Instant::now();
            } else if code(&error) != Some(RDKafkaErrorCode::PartitionEOF) {
                self.tell(format_args!("reading {id}"), error);
            }
        }
        pulled
    }

    /// Says of stopped partitions what they hold now.
    fn explain_when_due(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_starts_at_the_commit_else_at_the_mark_and_never_outside() {
        let at = |offset| Some(Offset::new(offset));
        let range = Range {
            begin: Offset::new(3),
            end: Offset::new(9),
        };
        let outside = Start::Nowhere(NoPosition::OutOfRange {
            begin: range.begin,
            end: range.end,
        });
        let committed = |offset| Start::At(Offset::new(offset), StartedFrom::Committed);
        let declared = |offset| Start::At(Offset::new(offset), StartedFrom::Declared);
        for (commit, mark, expected) in [
            (at(5), at(3), committed(5)),
            (at(3), None, committed(3)),
            (at(9), None, committed(9)),
            (None, at(4), declared(4)),
            (None, None, Start::Nowhere(NoPosition::Missing)),
            // A commit that is gone is told, and never replaced by the mark.
            (at(2), at(4), outside),
            (at(10), at(4), outside),
            (None, at(2), outside),
            (None, at(10), outside),
        ] {
            assert_eq!(start(commit, mark, range), expected, "{commit:?} {mark:?}");
        }
    }
}
