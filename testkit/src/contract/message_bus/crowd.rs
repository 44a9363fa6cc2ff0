//! Several members of one group, each polled by a task of its own.
use super::given::{GROUP_PATIENCE, Held, Topic, within};
use foldstream::ports::{
    Consumer, ConsumerEvent, Delivery, MessageBusError, OffsetCommit, PartitionId, Revocation,
    Subscription,
};
use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

/// The members of a group.
///
/// All events come through one channel. A revocation is in the channel before it is released, so no
/// later assignment of its partitions can overtake it.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) members: Vec<CrowdMember>,
    send: mpsc::UnboundedSender<Told>,
    events: mpsc::UnboundedReceiver<Told>,
    /// The events that other members received while a member left.
    pending: VecDeque<Told>,
}

/// The number of a member, and the event that it received.
type Told = (usize, Result<ConsumerEvent, MessageBusError>);

#[derive(Debug)]
pub(super) struct CrowdMember {
    /// The consumer, or `None` after it was dropped.
    consumer: Option<Arc<dyn Consumer>>,
    pub(super) held: Held,
    task: JoinHandle<()>,
    is_gone: bool,
}

impl Drop for CrowdMember {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Crowd {
    pub(super) fn new() -> Self {
        let (send, events) = mpsc::unbounded_channel();
        Self {
            members: Vec::new(),
            send,
            events,
            pending: VecDeque::new(),
        }
    }

    /// Adds a member and returns its number.
    pub(super) async fn join(&mut self, topic: &Topic) -> usize {
        self.join_as(topic, topic.subscription()).await
    }

    /// Adds a member with its own subscription, and returns its number.
    pub(super) async fn join_as(&mut self, topic: &Topic, subscription: Subscription) -> usize {
        let number = self.members.len();
        let consumer = topic.bus.subscribe(subscription).await.unwrap();
        let (asked, send) = (consumer.clone(), self.send.clone());
        let task = tokio::spawn(async move {
            loop {
                let event = asked.next().await;
                match event {
                    Err(error) if error.is_transient() => tokio::task::yield_now().await,
                    event => {
                        let is_end = event.is_err();
                        if send.send((number, event)).is_err() || is_end {
                            return;
                        }
                    }
                }
            }
        });
        self.members.push(CrowdMember {
            consumer: Some(consumer),
            held: Held::default(),
            task,
            is_gone: false,
        });
        number
    }

    /// Returns the next event of any member, until a deadline. Panics if a partition has two
    /// holders.
    async fn next(&mut self, deadline: Instant) -> Option<(usize, ConsumerEvent)> {
        loop {
            let (number, event) = match self.pending.pop_front() {
                Some(told) => told,
                None => timeout_at(deadline, self.events.recv()).await.ok()??,
            };
            let event = match event {
                Ok(event) => event,
                Err(MessageBusError::Closed) if self.members[number].is_gone => continue,
                Err(error) => panic!("member {number}: {error}"),
            };
            if let ConsumerEvent::Assigned(assignment) = &event {
                for added in &assignment.partitions {
                    let holder = self
                        .members
                        .iter()
                        .position(|m| !m.is_gone && m.held.partitions().contains(&added.partition));
                    assert_eq!(holder, None, "{} already has a reader", added.partition);
                }
            }
            self.members[number].held.observe(&event);
            return Some((number, event));
        }
    }

    /// Handles events until `done` returns true. On a revocation the member commits what was
    /// delivered and releases the partitions, as a runner does.
    ///
    /// Returns the deliveries, each with the member that received it.
    pub(super) async fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Self, &[(usize, Delivery)]) -> bool,
    ) -> Vec<(usize, Delivery)> {
        let deadline = Instant::now() + GROUP_PATIENCE;
        let mut deliveries = Vec::new();
        while !done(self, &deliveries) {
            let commits: Vec<_> = self
                .members
                .iter()
                .map(|m| m.held.offset_commits())
                .collect();
            match self.next(deadline).await {
                Some((number, ConsumerEvent::Delivery(delivery))) => {
                    deliveries.push((number, delivery));
                }
                Some((_, ConsumerEvent::Assigned(_))) => {}
                Some((number, ConsumerEvent::Revoking(revocation))) => {
                    self.let_go(number, &commits[number], revocation).await;
                }
                Some((number, event)) => panic!("{what}: member {number} was told {event:?}"),
                None => panic!("{what}: not within {GROUP_PATIENCE:?}; {:?}", self.held()),
            }
        }
        deliveries
    }

    async fn let_go(&mut self, number: usize, commits: &[OffsetCommit], revocation: Revocation) {
        let taken = |commit: &&OffsetCommit| revocation.partitions().contains(&commit.partition);
        let commits: Vec<_> = commits.iter().filter(taken).cloned().collect();
        // A commit counts until the revocation is dropped.
        let consumer = self.consumer(number);
        let commit = consumer.commit(&commits);
        within("a commit during a revocation", commit)
            .await
            .unwrap();
        drop(revocation);
    }

    /// Returns the consumer of a member that was not dropped.
    pub(super) fn consumer(&self, number: usize) -> Arc<dyn Consumer> {
        self.members[number].consumer.clone().unwrap()
    }

    /// Drops a member without leaving the group. Returns after nothing holds its consumer any more.
    pub(super) async fn vanish(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.is_gone = true;
        member.task.abort();
        // The task was cancelled here, or had ended before.
        let _ = within("the end of the member's task", &mut member.task).await;
        member.consumer = None;
    }

    /// Returns the partitions that every member holds.
    pub(super) fn held(&self) -> Vec<Vec<PartitionId>> {
        let members = self.members.iter();
        members
            .map(|m| {
                if m.is_gone {
                    Vec::new()
                } else {
                    m.held.partitions()
                }
            })
            .collect()
    }

    /// Returns true if all partitions are held, and every present member has at least one.
    pub(super) fn is_settled(&self, partitions: usize) -> bool {
        let held = self.held();
        let all: usize = held.iter().map(Vec::len).sum();
        let idle = (0..held.len()).any(|m| !self.members[m].is_gone && held[m].is_empty());
        all == partitions && !idle
    }

    /// Asserts that no member receives an event for a while.
    pub(super) async fn quiet_for(&mut self, pause: Duration) {
        if let Some((number, event)) = self.next(Instant::now() + pause).await {
            panic!("member {number} was told {event:?}");
        }
    }

    /// Lets a member leave the group. Its remaining events, including revocations, are dropped
    /// unseen.
    pub(super) async fn leave(&mut self, number: usize) {
        self.members[number].is_gone = true;
        let consumer = self.consumer(number);
        let mut leave = pin!(consumer.leave());
        let deadline = Instant::now() + GROUP_PATIENCE;
        loop {
            tokio::select! {
                biased;
                left = &mut leave => break left.unwrap(),
                Some(told) = self.events.recv() => {
                    if told.0 != number {
                        self.pending.push_back(told);
                    }
                }
                () = sleep_until(deadline) => panic!("leaving: not within {GROUP_PATIENCE:?}"),
            }
        }
    }
}
