//! The consumer: one member of a consumer group.
mod assign;
mod context;
mod convert;
mod member;
mod poll;
mod pull;
mod revoke;
mod shared;
mod topic_ids;
mod wake;

use crate::{
    client::{Reader, kafka_number, topics_of},
    config::KafkaConfig,
    error::{Class, Errors, class, code, task_failed},
    worked_before::{Access, Uses},
};
use async_trait::async_trait;
use context::GroupContext;
use foldstream::{
    Backoff, RetryPolicy,
    ports::{Consumer, ConsumerEvent, MessageBusError, OffsetCommit, PartitionId, Subscription},
    resilience::Attempts,
};
use member::Member;
use poll::{PollLoop, Settings};
use rdkafka::{
    Offset as Place, TopicPartitionList,
    consumer::{CommitMode, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use shared::Shared;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until, timeout_at},
};
use wake::Wake;

/// The pauses between attempts to commit while the group is rebalancing.
const REBALANCE_PAUSES: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_millis(200));

/// The Kafka side of a [`foldstream::ports::Consumer`].
pub(crate) struct KafkaConsumer {
    shared: Arc<Shared>,
    errors: Arc<Errors>,
    group: String,
    timeout: Duration,
    /// Admits one commit at a time, also after the caller has dropped its future: a late retry of
    /// an older commit must not undo a newer one that has returned.
    committing: Arc<Semaphore>,
}

impl fmt::Debug for KafkaConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConsumer")
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// Joins a group and starts the member's thread. Blocks for a short time.
pub(crate) fn join(
    config: &KafkaConfig,
    errors: &Errors,
    reader: Arc<Reader>,
    subscription: Subscription,
) -> Result<KafkaConsumer, MessageBusError> {
    let Subscription {
        group,
        topics,
        start,
        instance_id,
        ..
    } = subscription;
    let errors = Arc::new(errors.of_another_client());
    let wake = Arc::new(Wake::default());
    let member = Member {
        config: config.member(&group, instance_id.as_deref()),
        topics: topics.clone(),
        errors: Arc::clone(&errors),
        wake: Arc::clone(&wake),
        login: config.login(),
        logs_debug: config.logs_debug(),
    };
    let client = member.join().map_err(|error| {
        let doing = format_args!("joining the group {group}");
        errors.failed(doing, Uses::nothing(), error)
    })?;
    let shared = Arc::new(Shared::new(
        wake,
        config.buffer_records,
        config.buffer_bytes,
    ));
    shared.set_client(&client);
    let consumer = KafkaConsumer {
        shared: Arc::clone(&shared),
        errors: Arc::clone(&errors),
        group: group.clone(),
        timeout: config.request_timeout,
        committing: Arc::new(Semaphore::new(1)),
    };
    let settings = Settings {
        group,
        topics,
        start: start
            .into_iter()
            .map(|commit| (commit.partition, commit.next))
            .collect(),
        request_timeout: config.request_timeout,
        grace: config.revoke_grace(),
    };
    let poll_loop = PollLoop::new(member, client, shared, reader, settings);
    std::thread::Builder::new()
        .name("kafka-consumer".into())
        .spawn(move || poll_loop.run())
        .map_err(|error| MessageBusError::Unavailable {
            source: error.into(),
        })?;
    Ok(consumer)
}

impl KafkaConsumer {
    /// Sends one commit, on a thread of its own: it must proceed while the poll thread waits for a
    /// revocation to be released.
    async fn try_commit(
        &self,
        commits: &[OffsetCommit],
        deadline: Instant,
    ) -> Result<KafkaResult<()>, MessageBusError> {
        let timed_out = KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut);
        let permit = Arc::clone(&self.committing).acquire_owned();
        let Some(Ok(permit)) = self.within_grace(commits, deadline, permit).await else {
            return Ok(Err(timed_out));
        };
        let (held, client) = self.shared.begin_commit(commits)?;
        let client = client.upgrade().ok_or(MessageBusError::Closed)?;
        let metadata = commit_metadata(client.context(), commits)?;
        let commits_to_store = commits.to_vec();
        // The attempt continues if this future is dropped or its time is over. `held` ends with the
        // attempt itself.
        let attempt = tokio::task::spawn_blocking(move || {
            let stored = offsets(&commits_to_store, &metadata)
                .and_then(|list| client.commit(&list, CommitMode::Sync));
            drop(client);
            drop(held);
            drop(permit);
            stored
        });
        match self.within_grace(commits, deadline, attempt).await {
            Some(stored) => stored.map_err(task_failed),
            None => Ok(Err(timed_out)),
        }
    }

    /// Waits for a future until the deadline, and no longer than the grace of its partitions if
    /// they are being revoked.
    ///
    /// The grace also applies if the revocation begins during the wait.
    async fn within_grace<T>(
        &self,
        commits: &[OffsetCommit],
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut revocations = self.shared.watch_revocations();
        let mut work = std::pin::pin!(work);
        loop {
            let until = self.deadline(commits, deadline);
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(until) => return None,
                Ok(()) = revocations.changed() => {}
            }
        }
    }

    /// Returns the earlier of a deadline and the end of the grace of partitions that are being
    /// revoked.
    fn deadline(&self, commits: &[OffsetCommit], deadline: Instant) -> Instant {
        let grace = self.shared.end_of_grace(commits);
        grace.map_or(deadline, |end| deadline.min(end.into()))
    }
}

/// Returns the metadata of a commit: for each partition the id of its topic, by which the next
/// reader in the group recognizes the topic.
///
/// # Errors
/// [`MessageBusError::StaleAssignment`] if a topic was created again, even if its reader has not
/// been told yet.
fn commit_metadata(
    context: &GroupContext,
    commits: &[OffsetCommit],
) -> Result<Vec<String>, MessageBusError> {
    let metadata = commits.iter().map(|commit| {
        let metadata = context.commit_metadata(&commit.partition.topic);
        metadata.ok_or_else(|| MessageBusError::StaleAssignment {
            partition: commit.partition.clone(),
        })
    });
    metadata.collect()
}

fn offsets(commits: &[OffsetCommit], metadata: &[String]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for (commit, metadata) in commits.iter().zip(metadata) {
        let (id, next) = (&commit.partition, commit.next.get());
        let place = i64::try_from(next).map_or(Place::Invalid, Place::Offset);
        let number = kafka_number(id.partition);
        // The last of several offsets for one partition counts.
        if let Some(mut element) = list.find_partition(&id.topic, number) {
            element.set_offset(place)?;
            continue;
        }
        list.add_partition_offset(&id.topic, number, place)?;
        if let Some(mut element) = list.find_partition(&id.topic, number)
            && !metadata.is_empty()
        {
            element.set_metadata(metadata);
        }
    }
    Ok(list)
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&self) -> Result<ConsumerEvent, MessageBusError> {
        self.shared.next().await
    }

    fn try_next(&self) -> Option<Result<ConsumerEvent, MessageBusError>> {
        self.shared.take()
    }

    async fn commit(&self, commits: &[OffsetCommit]) -> Result<(), MessageBusError> {
        let deadline = Instant::now() + self.timeout;
        let topics = topics_of(commits.iter().map(|commit| &commit.partition));
        let uses = Uses::topics(Access::Read, &topics).with_group(&self.group);
        let mut attempts = Attempts::new(RetryPolicy::new(REBALANCE_PAUSES, self.timeout));
        loop {
            if commits.is_empty() {
                return self.shared.begin_commit(commits).map(drop);
            }
            let error = match self.try_commit(commits, deadline).await? {
                Ok(()) => {
                    self.errors.succeeded(uses);
                    return Ok(());
                }
                Err(error) => error,
            };
            let class = code(&error).map(class);
            if let (Some(Class::Expelled), Some(commit)) = (class, commits.first()) {
                return Err(MessageBusError::StaleAssignment {
                    partition: commit.partition.clone(),
                });
            }
            // While the group is rebalancing the broker refuses commits. Soon the partition is
            // either lost, which the next attempt notices, or kept, and the attempt succeeds
            // under the new assignment.
            let is_rebalancing = class == Some(Class::Rebalancing);
            let pause = attempts.next(is_rebalancing.into());
            let is_in_time =
                |pause: &Duration| Instant::now() + *pause < self.deadline(commits, deadline);
            let Some(pause) = pause.filter(is_in_time) else {
                let doing = format_args!("committing for the group {}", self.group);
                return Err(self.errors.failed(doing, uses, error));
            };
            attempts.rest(pause).await;
        }
    }

    async fn pause(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.shared.pause(partitions)
    }

    async fn resume(&self, partitions: &[PartitionId]) -> Result<(), MessageBusError> {
        self.shared.resume(partitions)
    }

    async fn leave(&self) -> Result<(), MessageBusError> {
        let mut gone = self.shared.watch_gone();
        self.shared.start_leaving();
        // Commits under way may take one request, and leaving takes another.
        let deadline = Instant::now() + self.timeout * 2;
        match timeout_at(deadline, gone.wait_for(|gone| *gone)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let doing = format_args!("leaving the group {}", self.group);
                let error = KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut);
                Err(self.errors.failed(doing, Uses::nothing(), error))
            }
        }
    }
}

impl Drop for KafkaConsumer {
    /// Lets the thread leave the group by itself. Nothing waits for it.
    fn drop(&mut self) {
        self.shared.start_leaving();
    }
}
