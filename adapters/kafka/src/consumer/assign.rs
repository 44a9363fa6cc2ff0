//! The assignment of partitions, and the offset at which each of them starts.
use super::{
    context::add,
    poll::{PollLoop, RETRY_PAUSE},
    pull::Queue,
    shared::Start,
    topic_ids::{TopicId, committed_for},
};
use crate::{
    client::{Range, committed_places, kafka_number, list, topics_of},
    worked_before::{Access, Uses},
};
use foldstream::ports::{MessageBusError, NoPosition, Offset, PartitionId, StartedFrom};
use rdkafka::{Offset as Place, TopicPartitionList, consumer::Consumer as _};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

/// A partition's committed offset, and the id of the topic that it was committed for.
type Committed = (Option<Offset>, Option<TopicId>);

/// New partitions whose positions are being looked up.
pub(super) struct Assigning {
    pub(super) partitions: Vec<PartitionId>,
    pub(super) due: Instant,
}

impl PollLoop {
    pub(super) fn assign_when_due(&mut self) {
        let Some(assigning) = self.assigning.take_if(|a| a.due <= Instant::now()) else {
            return;
        };
        match self.starts(&assigning.partitions) {
            Ok(starts) => self.assign(&starts),
            Err(problem) => {
                // The group waits for the answer while heartbeats continue. Without positions
                // nothing can be read.
                self.shared.tell(problem);
                self.assigning = Some(Assigning {
                    due: Instant::now() + RETRY_PAUSE,
                    ..assigning
                });
            }
        }
    }

    /// Returns the start of each partition: its committed offset, the configured one, or none.
    fn starts(
        &self,
        partitions: &[PartitionId],
    ) -> Result<Vec<(PartitionId, Start)>, MessageBusError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let committed = self.committed(partitions)?;
        let ranges = self.reader.ranges(partitions)?;
        let context = self.client.context();
        let starts = partitions.iter().zip(committed).zip(ranges);
        Ok(starts
            .map(|((id, (committed, made_for)), range)| {
                let declared = self.settings.start.get(id).copied();
                let is_outdated = made_for.is_some_and(|topic| context.is_outdated(id, topic));
                let start = if is_outdated || context.is_recreated(&id.topic) {
                    Start::Nowhere(NoPosition::Recreated)
                } else {
                    start(committed, declared, range)
                };
                (id.clone(), start)
            })
            .collect())
    }

    /// Returns the committed offset of each partition, in the order given.
    pub(super) fn committed(
        &self,
        partitions: &[PartitionId],
    ) -> Result<Vec<Committed>, MessageBusError> {
        let topics = topics_of(partitions);
        let group = &self.settings.group;
        let uses = Uses::topics(Access::Describe, &topics).with_group(group);
        let errors = &self.client.context().errors;
        let committed = list(partitions, |_| Place::Invalid)
            .and_then(|asked| {
                self.client
                    .committed_offsets(asked, self.settings.request_timeout)
            })
            .and_then(|answer| {
                let places = committed_places(&answer, partitions)?;
                let ids = partitions.iter().map(|id| topic_id(&answer, id));
                Ok(places.into_iter().zip(ids).collect())
            })
            .map_err(|error| {
                errors.failed(
                    format_args!("asking where the group {group} is"),
                    uses,
                    error,
                )
            })?;
        errors.succeeded(uses);
        Ok(committed)
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
                // A partition without a position is paused at its end, where it fetches nothing.
                _ => Place::End,
            }
        };
        let nowhere: Vec<_> = starts
            .iter()
            .filter(|(_, start)| matches!(start, Start::Nowhere(_)))
            .map(|(id, _)| id.clone())
            .collect();
        // Must happen before the client starts to fetch, or the first records would go to the
        // common queue.
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
                let doing = format_args!("taking partitions for group {}", self.settings.group);
                self.tell(doing, Uses::nothing(), error);
            }
        }
    }

    fn open_queue(&mut self, id: &PartitionId, next: Offset) {
        let partition = kafka_number(id.partition);
        let Some(mut records) = self.client.split_partition_queue(&id.topic, partition) else {
            // Only for names that cannot be C strings, which a subscription refuses.
            tracing::error!(%id, "no queue for a partition");
            return;
        };
        let wake = Arc::clone(&self.shared.wake);
        records.set_nonempty_callback(move || wake.notify());
        self.queues.push(Queue::new(id.clone(), records, next));
    }
}

/// Returns the id of the topic that an offset was committed for, if this library committed it.
fn topic_id(answer: &TopicPartitionList, id: &PartitionId) -> Option<TopicId> {
    let element = answer.find_partition(&id.topic, kafka_number(id.partition))?;
    // rdkafka panics on metadata of other tools that is not UTF-8.
    let read = catch_unwind(AssertUnwindSafe(|| committed_for(element.metadata())));
    read.unwrap_or_default()
}

/// Returns the start of a partition, from its committed offset, the configured one and its range.
fn start(committed: Option<Offset>, declared: Option<Offset>, range: Range) -> Start {
    let position = match (committed, declared) {
        (Some(offset), _) => (offset, StartedFrom::Committed),
        (None, Some(offset)) => (offset, StartedFrom::Configured),
        (None, None) => return Start::Nowhere(NoPosition::Missing),
    };
    let Range { begin, end } = range;
    if (begin..=end).contains(&position.0) {
        Start::At(position.0, position.1)
    } else {
        Start::Nowhere(NoPosition::OutOfRange { begin, end })
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
        let declared = |offset| Start::At(Offset::new(offset), StartedFrom::Configured);
        for (commit, configured, expected) in [
            (at(5), at(3), committed(5)),
            (at(3), None, committed(3)),
            (at(9), None, committed(9)),
            (None, at(4), declared(4)),
            (None, None, Start::Nowhere(NoPosition::Missing)),
            // A committed offset that is gone is reported, and never replaced by the configured
            // one.
            (at(2), at(4), outside),
            (at(10), at(4), outside),
            (None, at(2), outside),
            (None, at(10), outside),
        ] {
            assert_eq!(
                start(commit, configured, range),
                expected,
                "{commit:?} {configured:?}"
            );
        }
    }
}
