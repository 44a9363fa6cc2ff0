//! Cases of groups with several members.
use super::{
    crowd::Crowd,
    given::{Fixture, Topic, assert_same_places, assert_stale, place},
};
use foldstream::ports::{Offset, OffsetCommit, PartitionId};
use std::time::Duration;

/// Creates a topic with messages, and one member that has received all of them.
async fn given_first_member(topic: &Topic, each: usize) -> Crowd {
    let places = topic.publish_everywhere(each).await;
    let mut crowd = Crowd::new();
    crowd.join(topic).await;
    let found = crowd
        .until("the first member reads everything", |_, found| {
            found.len() == places.len()
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), places);
    crowd
}

/// Adds a second member, and waits until both hold partitions.
async fn second_member(crowd: &mut Crowd, topic: &Topic) -> usize {
    let number = crowd.join(topic).await;
    let partitions = topic.partitions as usize;
    let early = crowd
        .until("two members share the partitions", |crowd, _| {
            crowd.is_settled(partitions)
        })
        .await;
    // The first member committed everything when its partitions were revoked.
    assert!(early.is_empty(), "delivered again: {early:?}");
    number
}

/// Members of a group share the partitions, one reader each, and each message is delivered to one
/// of them.
pub async fn members_share_the_partitions_and_each_message_goes_to_one(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 4).await;
    let mut crowd = given_first_member(&topic, 3).await;
    second_member(&mut crowd, &topic).await;
    let places = topic.publish_everywhere(5).await;
    // `Held::observe` and `Crowd::next` check that each delivery is the only holder's.
    let found = crowd
        .until("all messages are delivered", |_, found| {
            found.len() >= places.len()
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), places);
}

/// A commit counts until the revocation is dropped, and the next reader starts where the commit
/// ended.
pub async fn a_commit_during_a_revocation_counts(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let mut crowd = given_first_member(&topic, 4).await;
    // A member of the crowd commits only when a partition is revoked.
    assert_eq!(topic.committed().await, [None, None]);
    let second = second_member(&mut crowd, &topic).await;
    let moved = crowd.held()[second][0].clone();
    assert_eq!(topic.committed().await[moved.partition as usize], Some(4));
    let next = topic.publish(moved.partition, 1).await;
    let found = crowd
        .until("the next message", |_, found| !found.is_empty())
        .await;
    assert_eq!(found[0].0, second, "the reader");
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), next);
}

/// A commit of a partition that now belongs to another member is `StaleAssignment`, and nothing of
/// the call is stored.
pub async fn a_commit_after_the_partition_has_moved_is_stale(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let mut crowd = given_first_member(&topic, 4).await;
    let before = crowd.members[0].held.offset_commits();
    let second = second_member(&mut crowd, &topic).await;
    let moved = crowd.held()[second][0].clone();
    let kept = crowd.held()[0][0].clone();
    let committed = topic.committed().await;

    let mut late = before.into_iter().find(|m| m.partition == moved).unwrap();
    late.next = Offset::new(1);
    let mine = crowd.members[0].held.offset_commit(&kept);
    let mine = OffsetCommit::new(kept, mine.epoch, Offset::new(1));
    let first = crowd.consumer(0);
    for commits in [
        vec![late.clone()],
        vec![mine.clone(), late.clone()],
        vec![late, mine.clone()],
    ] {
        assert_stale(&first.commit(&commits).await, &moved);
        assert_eq!(topic.committed().await, committed);
    }
    first.commit(&[mine]).await.unwrap();
    let theirs = crowd.members[second].held.offset_commit(&moved);
    crowd.consumer(second).commit(&[theirs]).await.unwrap();
}

/// The partitions of a member that leaves go to the others at once.
pub async fn a_leaving_members_partitions_go_to_the_others(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 3).await;
    let mut crowd = given_first_member(&topic, 2).await;
    let second = second_member(&mut crowd, &topic).await;
    crowd.leave(second).await;
    let all = |crowd: &Crowd| crowd.held()[0].len() == 3;
    // Messages that were delivered to the leaving member but not committed would be delivered
    // again. There are none here, since everything was read before.
    crowd
        .until("the first member holds all", |crowd, _| all(crowd))
        .await;
    let places = topic.publish_everywhere(3).await;
    let found = crowd
        .until("all messages are delivered", |_, found| {
            found.len() >= places.len()
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), places);
}

/// A pause ends with its assignment, so a partition that comes back delivers.
pub async fn a_pause_ends_with_its_assignment(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let mut crowd = given_first_member(&topic, 1).await;
    let first = crowd.consumer(0);
    first.pause(&topic.all_partitions()).await.unwrap();
    let second = second_member(&mut crowd, &topic).await;
    let moved: PartitionId = crowd.held()[second][0].clone();
    crowd.leave(second).await;
    crowd
        .until("the first member holds all", |crowd, _| {
            crowd.held()[0].len() == 2
        })
        .await;
    let next = topic.publish(moved.partition, 3).await;
    let found = crowd
        .until("the partition that came back delivers", |_, found| {
            found.len() >= 3
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), next);
}

/// A member that has paused its partitions stays in the group and keeps them.
pub async fn a_member_that_has_paused_everything_stays_in_the_group(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let mut crowd = given_first_member(&topic, 1).await;
    let first = crowd.consumer(0);
    first.pause(&topic.all_partitions()).await.unwrap();
    let places = topic.publish_everywhere(2).await;
    let epochs = crowd.members[0].held.offset_commits();
    crowd.quiet_for(Duration::from_secs(4)).await;
    assert_eq!(
        crowd.members[0].held.offset_commits(),
        epochs,
        "still the same assignment"
    );
    first.resume(&topic.all_partitions()).await.unwrap();
    let found = crowd
        .until("all messages are delivered", |_, found| {
            found.len() >= places.len()
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), places);
}
