//! Buses that break a rule of deliveries and positions.
use super::{Committed, Member, Next, Sabotage, Suspects, broken};
use async_trait::async_trait;
use bytes::Bytes;
use foldstream::ports::{
    ConsumerEvent, Delivery, MessageBus, Offset, OffsetCommit, StartOffset, StartedFrom,
    Subscription,
};
use foldstream_testkit::InMemoryMessageBus;
use futures::FutureExt;
use std::sync::Mutex;
use tokio::task::yield_now;

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<FillsTombstones>(&["everything_of_a_message_arrives_as_sent"]),
        broken::<FillsKeys>(&["everything_of_a_message_arrives_as_sent"]),
        broken::<FillsHeaders>(&["everything_of_a_message_arrives_as_sent"]),
        broken::<HidesPartitions>(&["everything_of_a_message_arrives_as_sent"]),
        broken::<MixesGroups>(&["each_group_gets_all_messages"]).and_by(&[
            "a_position_that_retention_has_passed_is_out_of_range",
            "a_name_that_no_group_can_have_is_invalid",
        ]),
        broken::<SaysThatItWasCommitted>(&["an_assignment_comes_before_the_first_delivery"]),
        broken::<RepeatsDeliveries>(&["deliveries_of_a_partition_are_in_order_without_repeats"])
            .and_by(&[
                "a_paused_partition_delivers_nothing_and_continues_without_a_gap",
                "a_dropped_run_leaves_a_first_part_and_can_be_sent_again",
            ]),
        broken::<TakesOneTopic>(&["a_subscription_of_several_topics_gets_all_of_them"])
            .and_by(&["a_missing_topic_is_refused_and_never_made"]),
        broken::<PrefersStartMarks>(&[
            "a_partition_starts_at_the_committed_offset_else_at_its_start_offset",
        ])
        .and_by(&[
            "what_is_not_committed_comes_again",
            "a_reached_offset_can_be_committed",
            "a_static_member_that_comes_back_gets_its_partitions",
        ]),
        broken::<ResetsToTheBeginning>(&[
            "a_partition_without_position_is_missing_and_delivers_nothing",
        ])
        .and_by(&["a_recreated_topic_has_no_committed_offsets"]),
        broken::<ResetsToTheEnd>(&["a_position_after_the_end_is_out_of_range"]),
        broken::<SkipsWhatIsGone>(&["a_position_that_retention_has_passed_is_out_of_range"]),
        broken::<CommitsWhatItDelivers>(&["what_is_not_committed_comes_again"]).and_by(&[
            "a_commit_is_stored_when_it_returns",
            "a_commit_under_another_epoch_is_stale_and_stores_nothing",
            "after_leave_everything_is_closed",
            "a_commit_during_a_revocation_counts",
        ]),
        broken::<TakesBeforeItReturns>(&["a_dropped_next_loses_nothing"]),
        broken::<LosesWhatIsTried>(&["a_dropped_next_loses_nothing"]),
        broken::<DoesNotWakeUp>(&[
            "next_waits_for_what_comes",
            "messages_published_while_a_member_reads_are_delivered_once",
        ])
        .and_by(&[
            "members_share_the_partitions_and_each_message_goes_to_one",
            "a_commit_during_a_revocation_counts",
            "a_commit_after_the_partition_has_moved_is_stale",
            "a_leaving_members_partitions_go_to_the_others",
            "a_pause_ends_with_its_assignment",
            "a_member_that_has_paused_everything_stays_in_the_group",
            "a_static_member_that_comes_back_gets_its_partitions",
            "a_static_member_that_stays_away_loses_its_partitions",
        ]),
    ]
}

#[derive(Debug, Default)]
struct FillsTombstones;
#[async_trait]
impl Sabotage for FillsTombstones {
    async fn next(&self, member: &Member) -> Next {
        let mut event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(delivery) = &mut event {
            delivery.message.value.get_or_insert(Bytes::new());
        }
        Ok(event)
    }
}

#[derive(Debug, Default)]
struct FillsKeys;
#[async_trait]
impl Sabotage for FillsKeys {
    async fn next(&self, member: &Member) -> Next {
        let mut event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(delivery) = &mut event {
            delivery.message.key.get_or_insert(Bytes::new());
        }
        Ok(event)
    }
}

#[derive(Debug, Default)]
struct FillsHeaders;
#[async_trait]
impl Sabotage for FillsHeaders {
    async fn next(&self, member: &Member) -> Next {
        let mut event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(delivery) = &mut event {
            let headers = &mut delivery.message.headers;
            let filled = headers.iter().map(|(name, value)| {
                let value = value.unwrap_or_default();
                (name.clone(), Some(value))
            });
            *headers = filled.collect();
        }
        Ok(event)
    }
}

#[derive(Debug, Default)]
struct HidesPartitions;
#[async_trait]
impl Sabotage for HidesPartitions {
    async fn next(&self, member: &Member) -> Next {
        let mut event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(delivery) = &mut event {
            delivery.message.partition = None;
        }
        Ok(event)
    }
}

/// Uses one group for all.
#[derive(Debug, Default)]
struct MixesGroups;
#[async_trait]
impl Sabotage for MixesGroups {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        subscription.group = "all".into();
        subscription
    }
    async fn committed(&self, bus: &InMemoryMessageBus, _: &str, topic: &str) -> Committed {
        bus.committed("all", topic).await
    }
    async fn delete_group(&self, bus: &InMemoryMessageBus, _: &str) -> super::Done {
        bus.delete_group("all").await
    }
}

#[derive(Debug, Default)]
struct SaysThatItWasCommitted;
#[async_trait]
impl Sabotage for SaysThatItWasCommitted {
    async fn next(&self, member: &Member) -> Next {
        let mut event = member.inner.next().await?;
        if let ConsumerEvent::Assigned(assignment) = &mut event {
            for added in &mut assignment.partitions {
                added.from = StartedFrom::Committed;
            }
        }
        Ok(event)
    }
}

/// Delivers one message of many twice.
#[derive(Debug, Default)]
struct RepeatsDeliveries(Mutex<Option<Delivery>>);
#[async_trait]
impl Sabotage for RepeatsDeliveries {
    async fn next(&self, member: &Member) -> Next {
        if let Some(again) = self.0.lock().unwrap().take() {
            return Ok(ConsumerEvent::Delivery(again));
        }
        let event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(delivery) = &event {
            let mut notes = member.notes.lock().unwrap();
            notes.deliveries += 1;
            if notes.deliveries == 100 {
                *self.0.lock().unwrap() = Some(delivery.clone());
            }
        }
        Ok(event)
    }
}

#[derive(Debug, Default)]
struct TakesOneTopic;
#[async_trait]
impl Sabotage for TakesOneTopic {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        subscription.topics.truncate(1);
        subscription
    }
}

#[derive(Debug, Default)]
struct PrefersStartMarks;
#[async_trait]
impl Sabotage for PrefersStartMarks {
    async fn subscription(
        &self,
        bus: &InMemoryMessageBus,
        subscription: Subscription,
    ) -> Subscription {
        if !subscription.start.is_empty() {
            bus.forget_committed(&subscription.group);
        }
        subscription
    }
}

/// Starts as `auto.offset.reset = earliest` if nothing is committed.
#[derive(Debug, Default)]
struct ResetsToTheBeginning;
#[async_trait]
impl Sabotage for ResetsToTheBeginning {
    async fn subscription(
        &self,
        bus: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        for topic in &subscription.topics {
            for partition in bus.offsets(topic).await.unwrap_or_default() {
                if subscription
                    .start
                    .iter()
                    .all(|m| m.partition != partition.partition)
                {
                    let start = StartOffset::new(partition.partition, partition.begin);
                    subscription.start.push(start);
                }
            }
        }
        subscription
    }
}

/// Starts as `auto.offset.reset = latest` if an offset commit is after the end.
#[derive(Debug, Default)]
struct ResetsToTheEnd;
#[async_trait]
impl Sabotage for ResetsToTheEnd {
    async fn subscription(
        &self,
        bus: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        for topic in subscription.topics.clone() {
            for found in bus.offsets(&topic).await.unwrap_or_default() {
                for start in &mut subscription.start {
                    if start.partition == found.partition {
                        start.next = start.next.min(found.end);
                    }
                }
            }
        }
        subscription
    }
}

/// Starts as `auto.offset.reset = earliest` if retention has passed the position.
#[derive(Debug, Default)]
struct SkipsWhatIsGone;
#[async_trait]
impl Sabotage for SkipsWhatIsGone {
    async fn subscription(
        &self,
        bus: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        let topic = subscription.topics[0].clone();
        let offsets = bus.offsets(&topic).await.unwrap_or_default();
        if offsets.iter().all(|found| found.begin == Offset::new(0)) {
            return subscription;
        }
        let committed = bus
            .committed(&subscription.group, &topic)
            .await
            .unwrap_or_default();
        for (found, (partition, committed)) in offsets.into_iter().zip(committed) {
            let mut starts = subscription.start.iter_mut();
            if let Some(start) = starts.find(|start| start.partition == partition) {
                start.next = committed.unwrap_or(start.next).max(found.begin);
            }
        }
        bus.forget_committed(&subscription.group);
        subscription
    }
}

#[derive(Debug, Default)]
struct CommitsWhatItDelivers;
#[async_trait]
impl Sabotage for CommitsWhatItDelivers {
    async fn next(&self, member: &Member) -> Next {
        let event = member.inner.next().await?;
        if let ConsumerEvent::Delivery(d) = &event {
            let commit = OffsetCommit::new(d.partition.clone(), d.epoch, d.offset.next());
            member.inner.commit(&[commit]).await?;
        }
        Ok(event)
    }
}

#[derive(Debug, Default)]
struct TakesBeforeItReturns;
#[async_trait]
impl Sabotage for TakesBeforeItReturns {
    async fn next(&self, member: &Member) -> Next {
        let event = member.inner.next().await?;
        yield_now().await;
        Ok(event)
    }
}

/// Takes what is there, and does not return it.
#[derive(Debug, Default)]
struct LosesWhatIsTried;
#[async_trait]
impl Sabotage for LosesWhatIsTried {
    fn tried(&self, _: Option<Next>) -> Option<Next> {
        None
    }
}

/// Looks once, and then never waits for new messages.
#[derive(Debug, Default)]
struct DoesNotWakeUp;
#[async_trait]
impl Sabotage for DoesNotWakeUp {
    async fn next(&self, member: &Member) -> Next {
        match tokio::task::unconstrained(member.inner.next()).now_or_never() {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}
