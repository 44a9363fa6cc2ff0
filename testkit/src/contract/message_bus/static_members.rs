//! Cases of static members, which keep their partitions while they are away.
use super::{
    crowd::Crowd,
    given::{
        Fixture, GROUP_PATIENCE, Member, Topic, assert_invalid, assert_refused, assert_same_places,
        next_event, place, within,
    },
};
use foldstream::ports::{ConsumerEvent, MessageBusError, RefusedKind, Subscription};
use std::time::Duration;
use tokio::time::Instant;

const ID: &str = "contract-instance";

fn as_static_member(topic: &Topic) -> Subscription {
    topic.subscription().with_instance_id(ID)
}

/// Creates a group in which member 0 is static and member 1 dynamic. Each has two of four
/// partitions, and everything is read and committed.
async fn given_static_member(topic: &Topic) -> Crowd {
    let places = topic.publish_everywhere(2).await;
    let mut crowd = Crowd::new();
    crowd.join_as(topic, as_static_member(topic)).await;
    crowd
        .until("the static member reads everything", |_, found| {
            found.len() == places.len()
        })
        .await;
    crowd.join(topic).await;
    crowd
        .until("two members share the partitions", |crowd, _| {
            crowd.is_settled(4)
        })
        .await;
    for number in 0..2 {
        let commits = crowd.members[number].held.offset_commits();
        crowd.consumer(number).commit(&commits).await.unwrap();
    }
    crowd
}

/// A static member that comes back gets its partitions at their committed offsets, and nothing
/// changes for the others.
///
/// This holds after the member has left, and after it was dropped.
pub async fn a_static_member_that_comes_back_gets_its_partitions(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 4).await;
    let mut crowd = given_static_member(&topic).await;
    let held = crowd.held();
    let others = crowd.members[1].held.offset_commits();
    let mut number = 0;
    for is_dropped in [false, true] {
        if is_dropped {
            crowd.vanish(number).await;
        } else {
            let consumer = crowd.consumer(number);
            crowd.leave(number).await;
            let answer = consumer.next().await;
            assert!(matches!(answer, Err(MessageBusError::Closed)), "{answer:?}");
        }
        crowd.quiet_for(fixture.session_timeout() / 4).await;
        number = crowd.join_as(&topic, as_static_member(&topic)).await;
        let found = crowd
            .until(
                "the member that came back has its partitions",
                |crowd, _| crowd.held()[number] == held[0],
            )
            .await;
        assert!(found.is_empty(), "all was committed, found {found:?}");
        assert_eq!(
            crowd.members[1].held.offset_commits(),
            others,
            "the other member"
        );
    }
    let places = topic.publish_everywhere(3).await;
    let found = crowd
        .until("all messages are delivered", |_, found| {
            found.len() >= places.len()
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), places);
    let readers = found.iter().map(|(reader, d)| (*reader, &d.partition));
    for (reader, partition) in readers {
        let expected = if held[0].contains(partition) {
            number
        } else {
            1
        };
        assert_eq!(reader, expected, "the reader of {partition}");
    }
}

/// A static member that stays away loses its partitions when its session expires, and not before.
pub async fn a_static_member_that_stays_away_loses_its_partitions(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 4).await;
    let mut crowd = given_static_member(&topic).await;
    crowd.leave(0).await;
    let left = Instant::now();
    crowd
        .until("the other member has all partitions", |crowd, _| {
            crowd.held()[1].len() == 4
        })
        .await;
    // The session counts from the last heartbeat, which may be some time before the member left.
    let passed = left.elapsed();
    assert!(
        passed * 2 >= fixture.session_timeout(),
        "the partitions moved after {passed:?} already"
    );
    let places = topic.publish_everywhere(1).await;
    let found = crowd
        .until("all messages are delivered", |_, found| {
            found.len() >= places.len()
        })
        .await;
    assert_same_places(found.iter().map(|(_, d)| place(d)).collect(), places);
}

/// Of two members with one instance id at the same time, one is refused and the other continues.
pub async fn of_two_members_with_one_instance_id_one_is_refused(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    topic.publish(0, 1).await;
    let mut one = Member::subscribe(&*topic.bus, as_static_member(&topic)).await;
    one.deliveries(1).await;
    let mut two = Member::subscribe(&*topic.bus, as_static_member(&topic)).await;
    let race = async {
        loop {
            let (is_first, event) = tokio::select! {
                biased;
                event = next_event(&*one.consumer) => (true, event),
                event = next_event(&*two.consumer) => (false, event),
            };
            let member = if is_first { &mut one } else { &mut two };
            match event {
                Ok(event) => member.held.observe(&event),
                refused => {
                    assert_refused(&refused, RefusedKind::InstanceIdInUse);
                    return is_first;
                }
            }
        }
    };
    let is_first = within("the refusal of one of them", race).await;
    let (refused, mut other) = if is_first { (one, two) } else { (two, one) };
    let late = refused
        .consumer
        .commit(&refused.held.offset_commits())
        .await;
    assert!(
        refused.held.offset_commits().is_empty() || late.is_err(),
        "{late:?}"
    );
    refused.leave().await;

    let next = topic.publish(0, 1).await;
    let deadline = Instant::now() + GROUP_PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the other member gets nothing");
        match other.next("the message, at the other member").await {
            ConsumerEvent::Delivery(delivery) if place(&delivery) == next[0] => break,
            _ => {}
        }
    }
    other
        .consumer
        .commit(&other.held.offset_commits())
        .await
        .unwrap();
    other.leave().await;
    // The refused member has gone by now, and must take nothing from the group.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(topic.committed().await, [Some(2)]);
}

/// An instance id that is empty, too long or has characters other than ASCII letters, digits, `.`,
/// `_` and `-` is `Invalid` at once.
///
/// Otherwise the member would become a dynamic one, or would wait in vain.
pub async fn an_instance_id_that_no_member_can_have_is_invalid(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    topic.publish(0, 1).await;
    let long = "i".repeat(Subscription::MAX_INSTANCE_ID + 1);
    for id in ["", "a\0b", &*long, "a b", "a/b", "ä", ".", ".."] {
        let subscription = topic.subscription().with_instance_id(id);
        let joined = within("an answer", topic.bus.subscribe(subscription)).await;
        assert_invalid(&joined, &format!("{id:?}"));
    }
    // This is the longest id, with every allowed kind of character.
    let id = format!("Aa0._-{}", &long[7..]);
    let subscription = topic.subscription().with_instance_id(id);
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    member.deliveries(1).await;
    member.leave().await;
}
