//! The clients of a member: the first one, and one more each time that the member starts over.
//!
//! # Why does a member start over?
//! A group can expel a member while a rebalance is under way: the member does not answer in time,
//! or the coordinator forgets it. Outside of a rebalance librdkafka then reports that all
//! partitions are lost. During a rebalance it only writes a debug line, and joins again later
//! *with* the partitions that it still holds. Meanwhile another member may have read and committed
//! them, and no callback tells. So the adapter reads the line, reports the loss at once, and
//! replaces the client: the new one owns nothing, and starts at what the group has committed.
use super::{
    context::{Client, GroupContext, Rebalance, add, remove},
    poll::{PollLoop, RETRY_PAUSE},
    wake::Wake,
};
use crate::{client::list, error::Errors, security::Login, worked_before::Uses};
use rdkafka::{
    ClientConfig, Offset as Place, TopicPartitionList, consumer::Consumer as _, error::KafkaResult,
};
use std::{sync::Arc, time::Instant};

/// The settings from which the clients of one member are created.
pub(super) struct Member {
    pub(super) config: ClientConfig,
    pub(super) topics: Vec<Arc<str>>,
    pub(super) errors: Arc<Errors>,
    pub(super) wake: Arc<Wake>,
    pub(super) login: Login,
    /// True if the configuration asks for the debug lines of the clients.
    pub(super) logs_debug: bool,
}

impl Member {
    /// Creates a client and lets it join the group.
    pub(super) fn join(&self) -> KafkaResult<Arc<Client>> {
        let login = self.login.of_another_client();
        let context = GroupContext::new(Arc::clone(&self.errors), login, self.logs_debug);
        let mut client: Client = self.config.create_with_context(context)?;
        let wake = Arc::clone(&self.wake);
        client.set_nonempty_callback(move || wake.notify());
        let mut names: Vec<&str> = self.topics.iter().map(|topic| &**topic).collect();
        names.sort_unstable();
        names.dedup();
        client.subscribe(&names)?;
        Ok(Arc::new(client))
    }
}

impl PollLoop {
    /// Reports all partitions as lost if the client has kept a loss to itself, and replaces the
    /// client.
    pub(super) fn start_over_when_expelled(&mut self) {
        let context = self.client.context();
        if context.take_hidden_loss() {
            // After a fatal error the member may not come back. The error itself ends the
            // partitions.
            if self.client.client().fatal_error().is_some() {
                return;
            }
            tracing::warn!(
                group = self.settings.group,
                "the group expelled this member during a rebalance: all partitions are lost"
            );
            self.queues.clear();
            self.unexplained.clear();
            self.shared.end(&self.shared.assigned(), true);
            self.start_over_at = Some(Instant::now());
        }
        if self.start_over_at.is_some_and(|due| due <= Instant::now()) {
            self.start_over();
        }
    }

    fn start_over(&mut self) {
        match self.member.join() {
            Ok(client) => {
                self.start_over_at = None;
                self.shared.set_client(&client);
                let unanswered = self.take_unanswered();
                let expelled = std::mem::replace(&mut self.client, client);
                answer(&expelled, unanswered);
                // Dropping a client waits for its threads, and the new one must be served
                // meanwhile.
                let thread = std::thread::Builder::new().name("kafka-close".into());
                // Without a thread this one drops the client, which is slow but correct.
                let _ = thread.spawn(move || drop(expelled));
            }
            Err(error) => {
                self.start_over_at = Some(Instant::now() + RETRY_PAUSE);
                let doing = format_args!("joining the group {} again", self.settings.group);
                self.tell(doing, Uses::nothing(), error);
            }
        }
    }

    /// Takes the decisions of the group that this member has begun to serve.
    pub(super) fn take_unanswered(&mut self) -> Vec<Rebalance> {
        let assigning = self.assigning.take();
        let revoking = self.revoking.take();
        let assign = assigning.map(|assigning| Rebalance::Assign(assigning.partitions));
        let revoke = revoking.map(|revoking| Rebalance::Revoke(revoking.partitions));
        assign.into_iter().chain(revoke).collect()
    }
}

/// Answers all decisions of the group, without which the client does not close.
pub(super) fn answer(client: &Client, unanswered: Vec<Rebalance>) {
    client.context().close();
    let noted = std::iter::from_fn(|| client.context().take());
    for decision in unanswered.into_iter().chain(noted) {
        let _ = match decision {
            Rebalance::Assign(_) => add(client, &TopicPartitionList::new()),
            Rebalance::Revoke(partitions) => {
                list(&partitions, |_| Place::Invalid).and_then(|list| remove(client, &list))
            }
        };
    }
}
