//! Cases of topics that are deleted and created again under the same name.
use super::given::{Fixture, Member, Topic, assert_same_places, assert_stale, place};
use foldstream::ports::{ConsumerEvent, NoPosition, Offset, StartOffset, Subscription};
use std::collections::BTreeSet;

/// The offsets that groups have committed for a topic are forgotten when the topic is deleted.
pub async fn a_recreated_topic_has_no_committed_offsets(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    topic.publish_everywhere(4).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(8).await;
    member
        .consumer
        .commit(&member.held.offset_commits())
        .await
        .unwrap();
    member.leave().await;
    assert_eq!(topic.committed().await, [Some(4), Some(4)]);

    fixture.recreate_topic(&topic.name, 2).await;
    assert_eq!(topic.committed().await, [None, None]);
    // There are more messages than before, so that an old offset would lie within the partition.
    topic.publish_everywhere(6).await;
    let subscription = Subscription::new(topic.group.clone(), [topic.name.clone()]);
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    let mut missing = BTreeSet::new();
    while missing.len() < 2 {
        match member.next("NoPosition of both partitions").await {
            ConsumerEvent::NoPosition(partition, NoPosition::Missing) => {
                missing.insert(partition);
            }
            other => panic!("found {other:?}"),
        }
    }
    member.leave().await;
}

/// A member whose topic was deleted and created again receives `NoPosition` for its partitions.
///
/// No message of the new topic is delivered, neither from the old position nor from the start
/// offsets, and the old assignments have ended.
pub async fn a_running_member_never_continues_in_a_recreated_topic(fixture: Fixture) {
    let mut topic = Topic::fresh(&fixture, 2).await;
    topic.publish_everywhere(4).await;
    let from_two = |partition| StartOffset::new(partition, Offset::new(2));
    let start = topic.all_partitions().into_iter().map(from_two).collect();
    let subscription = topic.subscription().with_start(start);
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    member.deliveries(4).await;
    let commits = member.held.offset_commits();
    member.consumer.commit(&commits[..1]).await.unwrap();

    fixture.recreate_topic(&topic.name, 2).await;
    // There are more messages than before, so that every old position lies within its partition.
    let places = topic.publish_everywhere(10).await;
    let mut told = BTreeSet::new();
    while told.len() < 2 {
        match member.next("NoPosition of both partitions").await {
            ConsumerEvent::NoPosition(partition, _) => {
                told.insert(partition);
            }
            ConsumerEvent::Lost(_) | ConsumerEvent::Revoking(_) => {}
            other => panic!("found {other:?}"),
        }
    }
    for commit in &commits {
        let late = member.consumer.commit(std::slice::from_ref(commit)).await;
        assert_stale(&late, &commit.partition);
    }
    assert_eq!(topic.committed().await, [None, None]);
    member.leave().await;

    topic.group.push_str("-new");
    let mut member = Member::join(&topic).await;
    let found = member.deliveries(places.len()).await;
    assert_same_places(found.iter().map(place).collect(), places);
    member.leave().await;
}

/// If the bus has topic ids, a topic keeps its id, and a recreated topic has another one.
pub async fn a_recreated_topic_has_another_id(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let id = async || {
        let described = topic.bus.describe_topic(&topic.name).await.unwrap();
        described.topic_id
    };
    let before = id().await;
    topic.publish(0, 1).await;
    assert_eq!(id().await, before, "of the same topic");
    fixture.recreate_topic(&topic.name, 1).await;
    let after = id().await;
    assert_eq!(after.is_some(), before.is_some());
    assert!(before.is_none() || before != after, "both have {after:?}");
}
