//! Cases of offsets that hold nothing to deliver.
use super::given::{Fixture, Member, Topic, assert_same_places, place};
use foldstream::ports::{ConsumerEvent, Delivery, Offset, StartedFrom};
use std::time::Duration;

async fn ends(topic: &Topic) -> Vec<Offset> {
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    found.into_iter().map(|offsets| offsets.end).collect()
}

/// Leaves a hole at the end of a partition and returns the new end.
async fn leave_hole(fixture: &Fixture, topic: &Topic, partition: u32) -> Offset {
    let before = ends(topic).await[partition as usize];
    fixture.leave_hole(&topic.partition(partition)).await;
    let after = ends(topic).await[partition as usize];
    assert!(before < after, "the fixture has left no hole at {before}");
    after
}

/// Asks until the member has reached these ends, and returns the deliveries.
///
/// [`Held`](super::given::Held) checks that every reached offset is new, and that no delivery has a
/// lower offset.
async fn reaches(member: &mut Member, topic: &Topic, ends: &[Offset]) -> Vec<Delivery> {
    let mut found = Vec::new();
    let is_there = |member: &Member| {
        let partitions = topic.all_partitions();
        partitions.iter().zip(ends).all(|(partition, end)| {
            let held = member.held.partitions();
            held.contains(partition) && member.held.offset_commit(partition).next == *end
        })
    };
    while !is_there(member) {
        match member.next("the ends, after the holes").await {
            ConsumerEvent::Delivery(delivery) => found.push(delivery),
            ConsumerEvent::Assigned(_) | ConsumerEvent::Reached(..) => {}
            other => panic!("found {other:?}"),
        }
    }
    found
}

/// A position that passes a hole at the end is reported once, after the records before the hole.
/// This also holds in a partition without records, and while the member waits.
pub async fn a_position_reaches_the_end_after_a_hole(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let places = topic.publish(0, 3).await;
    for partition in 0..2 {
        leave_hole(&fixture, &topic, partition).await;
    }
    let mut member = Member::join(&topic).await;
    let found = reaches(&mut member, &topic, &ends(&topic).await).await;
    assert_same_places(found.iter().map(place).collect(), places);
    member.nothing_for(Duration::from_millis(500)).await;

    leave_hole(&fixture, &topic, 0).await;
    let found = reaches(&mut member, &topic, &ends(&topic).await).await;
    assert!(found.is_empty(), "found {found:?}");
    member.nothing_for(Duration::from_millis(500)).await;
    member.leave().await;
}

/// Records after a hole are delivered, each once and in order, and no reached offset is reported
/// after the last record.
pub async fn records_after_a_hole_are_delivered(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let mut places = Vec::new();
    for count in [2, 1, 3] {
        leave_hole(&fixture, &topic, 0).await;
        places.extend(topic.publish(0, count).await);
    }
    let mut member = Member::join(&topic).await;
    let mut found = reaches(&mut member, &topic, &ends(&topic).await).await;
    member.nothing_for(Duration::from_millis(500)).await;
    // The same holds after a member that waits at the end.
    leave_hole(&fixture, &topic, 0).await;
    places.extend(topic.publish(0, 1).await);
    found.extend(reaches(&mut member, &topic, &ends(&topic).await).await);
    assert_eq!(found.iter().map(place).collect::<Vec<_>>(), places);
    member.leave().await;
}

/// A paused partition reports no reached offset, and a resumed one reports the end.
pub async fn a_paused_partition_reaches_nothing(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let places = topic.publish(0, 2).await;
    let mut member = Member::join(&topic).await;
    member.deliveries(places.len()).await;
    member
        .consumer
        .pause(&topic.all_partitions())
        .await
        .unwrap();
    leave_hole(&fixture, &topic, 0).await;
    member.nothing_for(Duration::from_millis(1000)).await;
    member
        .consumer
        .resume(&topic.all_partitions())
        .await
        .unwrap();
    let found = reaches(&mut member, &topic, &ends(&topic).await).await;
    assert!(found.is_empty(), "found {found:?}");
    member.leave().await;
}

/// A reached offset can be committed, and the group continues from there.
pub async fn a_reached_offset_can_be_committed(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let places = topic.publish(0, 2).await;
    let end = leave_hole(&fixture, &topic, 0).await;
    let mut member = Member::join(&topic).await;
    let found = reaches(&mut member, &topic, &[end]).await;
    assert_same_places(found.iter().map(place).collect(), places);
    member
        .consumer
        .commit(&member.held.offset_commits())
        .await
        .unwrap();
    assert_eq!(topic.committed().await, [Some(end.get())]);
    member.leave().await;

    let mut member = Member::join(&topic).await;
    let ConsumerEvent::Assigned(assignment) = member.next("the assignment").await else {
        panic!("no assignment");
    };
    let started = &assignment.partitions[0];
    assert_eq!((started.next, started.from), (end, StartedFrom::Committed));
    let places = topic.publish(0, 1).await;
    let found = member.deliveries(1).await;
    assert_same_places(found.iter().map(place).collect(), places);
    member.leave().await;
}
