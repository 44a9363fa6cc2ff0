//! Buses that break a rule of runs.
use super::{Sabotage, Suspects, broken};
use async_trait::async_trait;
use foldstream::{
    adapter::check_run,
    ports::{Message, MessageBus, MessageBusError, RunOutcome},
};
use foldstream_testkit::InMemoryMessageBus;
use futures::FutureExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::yield_now;

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<SendsBackwards>(&["a_run_is_durable_in_its_order"]).and_by(&[
            "a_run_that_breaks_off_is_durable_up_to_some_message",
            "a_dropped_run_leaves_a_first_part_and_can_be_sent_again",
            "concurrent_runs_of_different_keys_each_keep_their_order",
        ]),
        broken::<AcknowledgesBeforeItSends>(&["a_run_is_durable_in_its_order"]).and_by(&[
            "a_missing_topic_is_refused_and_never_made",
            "a_name_that_no_topic_can_have_is_invalid",
            "a_timestamp_that_the_bus_cannot_keep_is_invalid",
            "a_run_that_breaks_off_is_durable_up_to_some_message",
            "a_dropped_run_leaves_a_first_part_and_can_be_sent_again",
            "concurrent_runs_of_different_keys_each_keep_their_order",
        ]),
        broken::<RefusesEmptyRuns>(&["an_empty_run_is_durable_at_once"]),
        broken::<SendsMixedRuns>(&["a_run_of_mixed_messages_is_invalid_and_sends_nothing"]),
        broken::<ChecksWhileItSends>(&["a_run_of_mixed_messages_is_invalid_and_sends_nothing"]),
        broken::<SkipsWhatIsRefused>(&["a_run_that_breaks_off_is_durable_up_to_some_message"]),
        broken::<HidesFailures>(&["a_run_that_breaks_off_is_durable_up_to_some_message"])
            .and_by(&["a_missing_topic_is_refused_and_never_made"]),
        broken::<SendsItsLastWhenDropped>(&[
            "a_dropped_run_leaves_a_first_part_and_can_be_sent_again",
        ])
        .and_by(&["concurrent_runs_of_different_keys_each_keep_their_order"]),
        broken::<OvertakesWhileOthersSend>(&[
            "concurrent_runs_of_different_keys_each_keep_their_order",
        ]),
    ]
}

#[derive(Debug, Default)]
struct SendsBackwards;
#[async_trait]
impl Sabotage for SendsBackwards {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        let backwards: Vec<_> = run.iter().rev().cloned().collect();
        bus.publish_run(&backwards).await
    }
}

/// Acknowledges a run without sending it, like a client whose queue is never flushed.
#[derive(Debug, Default)]
struct AcknowledgesBeforeItSends;
#[async_trait]
impl Sabotage for AcknowledgesBeforeItSends {
    async fn publish_run(&self, _: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        match check_run(run) {
            Ok(()) => RunOutcome::complete(run.len()),
            Err(error) => RunOutcome::broken_off(0, error),
        }
    }
}

#[derive(Debug, Default)]
struct RefusesEmptyRuns;
#[async_trait]
impl Sabotage for RefusesEmptyRuns {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        if run.is_empty() {
            let reason = "an empty run".into();
            return RunOutcome::broken_off(0, MessageBusError::Invalid { reason });
        }
        bus.publish_run(run).await
    }
}

async fn send_each(bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
    for (durable, message) in run.iter().enumerate() {
        if let Err(error) = bus.publish(message).await {
            return RunOutcome::broken_off(durable, error);
        }
    }
    RunOutcome::complete(run.len())
}

#[derive(Debug, Default)]
struct SendsMixedRuns;
#[async_trait]
impl Sabotage for SendsMixedRuns {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        send_each(bus, run).await
    }
}

/// Finds the message that does not belong to the run only when it reaches that message.
#[derive(Debug, Default)]
struct ChecksWhileItSends;
#[async_trait]
impl Sabotage for ChecksWhileItSends {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        for index in 0..run.len() {
            if let Err(error) = check_run(&run[..=index]) {
                return RunOutcome::broken_off(0, error);
            }
            if let Err(error) = bus.publish(&run[index]).await {
                return RunOutcome::broken_off(index, error);
            }
        }
        RunOutcome::complete(run.len())
    }
}

/// Behaves like a producer with several messages in flight that does not stop at a failure.
#[derive(Debug, Default)]
struct SkipsWhatIsRefused;
#[async_trait]
impl Sabotage for SkipsWhatIsRefused {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        if let Err(error) = check_run(run) {
            return RunOutcome::broken_off(0, error);
        }
        let mut outcome = RunOutcome::complete(run.len());
        for (index, message) in run.iter().enumerate() {
            if let Err(error) = bus.publish(message).await
                && outcome.error.is_none()
            {
                outcome = RunOutcome::broken_off(index, error);
            }
        }
        outcome
    }
}

/// Reports the sent prefix of a run, but not the error that ended it.
#[derive(Debug, Default)]
struct HidesFailures;
#[async_trait]
impl Sabotage for HidesFailures {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        let mut outcome = bus.publish_run(run).await;
        let is_invalid = matches!(outcome.error, Some(MessageBusError::Invalid { .. }));
        outcome.error = outcome.error.filter(|_| is_invalid);
        outcome
    }
}

/// Behaves like a client that flushes only its newest message at shutdown.
#[derive(Debug, Default)]
struct SendsItsLastWhenDropped;
struct Last<'a>(&'a InMemoryMessageBus, Option<&'a Message>);
impl Drop for Last<'_> {
    fn drop(&mut self) {
        if let Some(last) = self.1 {
            let sent = tokio::task::unconstrained(self.0.publish(last)).now_or_never();
            assert!(sent.is_some_and(|sent| sent.is_ok()));
        }
    }
}
#[async_trait]
impl Sabotage for SendsItsLastWhenDropped {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        if let Err(error) = check_run(run) {
            return RunOutcome::broken_off(0, error);
        }
        let mut unsent = Last(bus, run.last());
        for (durable, message) in run.iter().enumerate() {
            if let Err(error) = bus.publish(message).await {
                unsent.1 = None;
                return RunOutcome::broken_off(durable, error);
            }
            yield_now().await;
        }
        unsent.1 = None;
        RunOutcome::complete(run.len())
    }
}

/// Behaves like a producer whose second request in flight overtakes the first one, which is
/// refused and sent again. That happens only while several runs are being sent.
#[derive(Debug, Default)]
struct OvertakesWhileOthersSend(AtomicUsize);
struct Sending<'a>(&'a AtomicUsize);
impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
#[async_trait]
impl Sabotage for OvertakesWhileOthersSend {
    async fn publish_run(&self, bus: &InMemoryMessageBus, run: &[Message]) -> RunOutcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        let _sending = Sending(&self.0);
        yield_now().await;
        let mut sent = run.to_vec();
        if check_run(run).is_ok() && run.len() > 1 && self.0.load(Ordering::SeqCst) > 1 {
            sent.swap(0, 1);
        }
        bus.publish_run(&sent).await
    }
}
