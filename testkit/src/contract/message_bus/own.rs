//! Cases of what a member may do with its partitions: commit, pause, leave.
use super::given::{
    Fixture, Member, Topic, assert_invalid, assert_same_places, assert_stale, place, within,
};
use foldstream::ports::{
    AssignmentEpoch, ConsumerEvent, MessageBusError, Offset, OffsetCommit, RefusedKind,
    Subscription,
};
use std::{fmt::Debug, time::Duration};

/// Joining a group, or asking for its offsets, is `Invalid` if its name is empty, too long or
/// contains a NUL.
pub async fn a_name_that_no_group_can_have_is_invalid(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let long = "g".repeat(Subscription::MAX_GROUP + 1);
    for (what, group) in [
        ("an empty name", ""),
        ("a NUL", "a\0b"),
        ("too long", &*long),
    ] {
        let mut subscription = topic.subscription();
        subscription.group = group.into();
        let joined = within(what, topic.bus.subscribe(subscription)).await;
        assert_invalid(&joined, what);
        let committed = within(what, topic.bus.committed(group, &topic.name)).await;
        assert_invalid(&committed, what);
    }
}

/// A commit is stored when the call returns, for the partitions that it names.
pub async fn a_commit_is_stored_when_it_returns(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    topic.publish_everywhere(4).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(12).await;
    let mut commits = member.held.offset_commits();
    commits[2].next = Offset::new(1);
    member
        .consumer
        .commit(&[commits[0].clone(), commits[2].clone()])
        .await
        .unwrap();
    assert_eq!(topic.committed().await, [Some(4), None, Some(1)]);
    commits[2].next = Offset::new(2);
    member.consumer.commit(&commits).await.unwrap();
    assert_eq!(topic.committed().await, [Some(4), Some(4), Some(2)]);
    member.consumer.commit(&[]).await.unwrap();
    assert_eq!(topic.committed().await, [Some(4), Some(4), Some(2)]);
    member.leave().await;
}

/// A commit with another epoch, or of a partition that is not held, is `StaleAssignment`, and
/// nothing of the call is stored.
pub async fn a_commit_under_another_epoch_is_stale_and_stores_nothing(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let other = Topic::fresh(&fixture, 1).await;
    topic.publish_everywhere(2).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(4).await;
    let good = member.held.offset_commits();
    let epoch = |n: u64| AssignmentEpoch::new(good[1].epoch.get().wrapping_add(n));
    let next = Offset::new(1);
    for bad in [
        OffsetCommit::new(topic.partition(1), epoch(1), next),
        OffsetCommit::new(topic.partition(1), epoch(1_000_000), next),
        OffsetCommit::new(other.partition(0), good[1].epoch, next),
        OffsetCommit::new(topic.partition(9), good[1].epoch, next),
    ] {
        for commits in [
            [good[0].clone(), bad.clone()],
            [bad.clone(), good[0].clone()],
        ] {
            assert_stale(&member.consumer.commit(&commits).await, &bad.partition);
            assert_eq!(topic.committed().await, [None, None]);
        }
    }
    member.consumer.commit(&good).await.unwrap();
    assert_eq!(topic.committed().await, [Some(2), Some(2)]);
    member.leave().await;
}

/// A paused partition delivers nothing while others do, and a resumed one continues without a gap.
pub async fn a_paused_partition_delivers_nothing_and_continues_without_a_gap(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    topic.publish_everywhere(2).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(4).await;
    let paused = [topic.partition(0)];
    member.consumer.pause(&paused).await.unwrap();
    // The pause is ignored, since the partition is not assigned.
    member.consumer.pause(&[topic.partition(7)]).await.unwrap();
    let (held_back, others) = (topic.publish(0, 10).await, topic.publish(1, 10).await);
    let found = member.deliveries(10).await;
    assert_same_places(found.iter().map(place).collect(), others);
    member.nothing_for(Duration::from_millis(1000)).await;

    member.consumer.resume(&paused).await.unwrap();
    member.consumer.resume(&[topic.partition(7)]).await.unwrap();
    let found = member.deliveries(10).await;
    assert_same_places(found.iter().map(place).collect(), held_back);
    // A pause in the middle of a backlog holds, whatever the adapter has fetched already.
    let backlog = topic.publish(0, 200).await;
    let mut found = member.deliveries(50).await;
    member.consumer.pause(&paused).await.unwrap();
    member.nothing_for(Duration::from_millis(500)).await;
    member.consumer.resume(&paused).await.unwrap();
    found.extend(member.deliveries(150).await);
    assert_same_places(found.iter().map(place).collect(), backlog);
    member.leave().await;
}

fn assert_closed<T: Debug>(what: &str, answer: &Result<T, MessageBusError>) {
    let closed = matches!(answer, Err(MessageBusError::Closed));
    assert!(closed, "{what}: expected Closed, found {answer:?}");
}

/// After `leave`, every call except `leave` itself is `Closed`, and `leave` commits nothing.
pub async fn after_leave_everything_is_closed(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    topic.publish(0, 3).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(2).await;
    let commits = member.held.offset_commits();
    let consumer = member.consumer.clone();
    member.leave().await;
    assert_closed("next", &consumer.next().await);
    assert_closed("commit", &consumer.commit(&commits).await);
    assert_closed("pause", &consumer.pause(&topic.all_partitions()).await);
    assert_closed("resume", &consumer.resume(&topic.all_partitions()).await);
    consumer.leave().await.unwrap();
    assert_eq!(topic.committed().await, [None]);
}

/// A group without members is forgotten together with its offsets. To delete a group that does not
/// exist succeeds.
pub async fn a_deleted_group_is_forgotten(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    topic.bus.delete_group(&topic.group).await.unwrap();
    topic.publish(0, 3).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(3).await;
    member
        .consumer
        .commit(&member.held.offset_commits())
        .await
        .unwrap();
    match topic.bus.delete_group(&topic.group).await {
        Err(MessageBusError::Refused { kind, .. }) => assert_eq!(kind, RefusedKind::Validation),
        other => panic!("with a member: expected Refused(Validation), found {other:?}"),
    }
    assert_eq!(topic.committed().await, [Some(3)], "after the refusal");
    member.leave().await;
    for _ in 0..2 {
        topic.bus.delete_group(&topic.group).await.unwrap();
        assert_eq!(topic.committed().await, [None]);
    }
    let mut member = Member::join(&topic).await;
    let found = member.deliveries(3).await;
    assert_eq!(
        found[0].offset,
        Offset::new(0),
        "from the start offset again"
    );
    member.leave().await;
}

/// A consumer that waits receives a message that is published later.
pub async fn next_waits_for_what_comes(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let mut member = Member::join(&topic).await;
    member.holds(&topic.all_partitions()).await;
    member.nothing_for(Duration::from_millis(300)).await;
    // The order of polls matters: the member waits before the message is sent.
    let waiting = member.next("the message");
    let (event, expected) = futures::join!(waiting, topic.publish(0, 1));
    let ConsumerEvent::Delivery(delivery) = event else {
        panic!("found {event:?}");
    };
    assert_same_places(vec![place(&delivery)], expected);
    member.leave().await;
}
