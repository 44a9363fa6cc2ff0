//! Buses that break a rule of recreated topics or of static members.
use super::{Committed, Member, Next, SESSION, Sabotage, Suspects, broken, sabotaged};
use crate::matrix::Suspect;
use async_trait::async_trait;
use foldstream::ports::{
    Consumer, ConsumerEvent, MessageBus, MessageBusError, NoPosition, Offset, PartitionId,
    RefusedKind, Subscription, TopicDescription, TopicId,
};
use foldstream_testkit::InMemoryMessageBus;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<RemembersCommits>(&["a_recreated_topic_has_no_committed_offsets"])
            .and_by(&["a_deleted_group_is_forgotten"]),
        broken::<GoesOnInTheNewTopic>(&["a_running_member_never_continues_in_a_recreated_topic"]),
        broken::<NamesItsTopicsByName>(&["a_recreated_topic_has_another_id"]),
        broken::<IgnoresInstanceIds>(&["a_static_member_that_comes_back_gets_its_partitions"])
            .and_by(&[
                "a_static_member_that_stays_away_loses_its_partitions",
                "of_two_members_with_one_instance_id_one_is_refused",
                "an_instance_id_that_no_member_can_have_is_invalid",
            ]),
        Suspect::named(
            "keeps the partitions of absent members forever",
            super::GROUPS,
            || sabotaged::<super::Nothing>(SESSION * 100),
            &["a_static_member_that_stays_away_loses_its_partitions"],
        ),
        broken::<JoinsWithoutABadId>(&["an_instance_id_that_no_member_can_have_is_invalid"]),
        broken::<SaysNothingToTheRefused>(&["of_two_members_with_one_instance_id_one_is_refused"]),
    ]
}

/// Answers with the last offset that a group had committed.
#[derive(Debug, Default)]
struct RemembersCommits(Mutex<BTreeMap<(String, PartitionId), Offset>>);
#[async_trait]
impl Sabotage for RemembersCommits {
    async fn committed(&self, bus: &InMemoryMessageBus, group: &str, topic: &str) -> Committed {
        let mut committed = bus.committed(group, topic).await?;
        let mut known = self.0.lock().unwrap();
        for (partition, offset) in &mut committed {
            let key = (group.to_owned(), partition.clone());
            match *offset {
                Some(offset) => drop(known.insert(key, offset)),
                None => *offset = known.get(&key).copied(),
            }
        }
        Ok(committed)
    }
}

/// Subscribes again by itself when its topic was recreated, like a client that knows topics only by
/// name.
#[derive(Debug, Default)]
struct GoesOnInTheNewTopic {
    subscriptions: Mutex<BTreeMap<String, Subscription>>,
    again: Mutex<BTreeMap<String, Arc<dyn Consumer>>>,
}
#[async_trait]
impl Sabotage for GoesOnInTheNewTopic {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        subscription: Subscription,
    ) -> Subscription {
        let mut subscriptions = self.subscriptions.lock().unwrap();
        subscriptions.insert(subscription.group.clone(), subscription.clone());
        subscription
    }
    async fn next(&self, member: &Member) -> Next {
        let again = self.again.lock().unwrap().get(&member.group).cloned();
        let event = match again {
            Some(again) => return again.next().await,
            None => member.inner.next().await?,
        };
        let ConsumerEvent::NoPosition(_, NoPosition::Recreated) = &event else {
            return Ok(event);
        };
        member.inner.leave().await?;
        let subscription = self.subscriptions.lock().unwrap()[&member.group].clone();
        let again = member.bus.subscribe(subscription).await?;
        let group = member.group.clone();
        self.again.lock().unwrap().insert(group, again.clone());
        again.next().await
    }
}

#[derive(Debug, Default)]
struct NamesItsTopicsByName;
#[async_trait]
impl Sabotage for NamesItsTopicsByName {
    fn described(&self, sound: TopicDescription) -> TopicDescription {
        sound.with_topic_id(Some(TopicId::new("the same for all")))
    }
}

#[derive(Debug, Default)]
struct IgnoresInstanceIds;
#[async_trait]
impl Sabotage for IgnoresInstanceIds {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        subscription.instance_id = None;
        subscription
    }
}

/// Joins as a dynamic member if the instance id is empty.
#[derive(Debug, Default)]
struct JoinsWithoutABadId;
#[async_trait]
impl Sabotage for JoinsWithoutABadId {
    async fn subscription(
        &self,
        _: &InMemoryMessageBus,
        mut subscription: Subscription,
    ) -> Subscription {
        if subscription.check().is_err() {
            subscription.instance_id = None;
        }
        subscription
    }
}

/// Lets a member that was replaced wait forever.
#[derive(Debug, Default)]
struct SaysNothingToTheRefused;
#[async_trait]
impl Sabotage for SaysNothingToTheRefused {
    async fn next(&self, member: &Member) -> Next {
        match member.inner.next().await {
            Err(MessageBusError::Refused {
                kind: RefusedKind::InstanceIdInUse,
                ..
            }) => std::future::pending().await,
            other => other,
        }
    }
}
