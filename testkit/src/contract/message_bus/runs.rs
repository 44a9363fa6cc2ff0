//! Cases of ordered runs: messages of one key that are sent in order.
use super::given::{Fixture, Member, Topic, assert_refused};
use crate::contract::support::unique;
use foldstream::ports::{Message, MessageBusError, Offset, RefusedKind, RunOutcome};
use futures::FutureExt;
use std::{future::Future, pin::pin, time::Duration};

/// Returns messages of one key that name a partition other than the key's own. Their values are
/// their numbers.
fn run(topic: &Topic, partition: u32, key: &str, count: usize) -> Vec<Message> {
    let template = topic.message((partition + 1) % topic.partitions, 0);
    let numbered = |n: usize| {
        let message = template.clone().with_partition(partition);
        message.with_key(key.to_owned()).with_value(n.to_string())
    };
    (0..count).map(numbered).collect()
}

/// Returns the keys and values of everything in a topic of one partition.
async fn records(topic: &Topic) -> Vec<(String, String)> {
    let end = topic.bus.offsets(&topic.name).await.unwrap()[0].end;
    let mut subscription = topic.subscription();
    subscription.group = format!("contract-{}", unique());
    let mut member = Member::subscribe(&*topic.bus, subscription).await;
    let found = member.deliveries(end.get() as usize).await;
    member.leave().await;
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap()).into_owned();
    let record = |message: &Message| {
        let (key, value) = (message.key.as_deref(), message.value.as_deref());
        (text(key), text(value))
    };
    found.iter().map(|found| record(&found.message)).collect()
}

/// Returns the values of a key, each where it occurs for the first time.
fn first_occurrences(records: &[(String, String)], key: &str) -> Vec<String> {
    let mut first = Vec::new();
    for (_, value) in records.iter().filter(|(of, _)| of == key) {
        if !first.contains(value) {
            first.push(value.clone());
        }
    }
    first
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

fn assert_complete(outcome: &RunOutcome, len: usize) {
    assert!(outcome.error.is_none(), "{outcome:?}");
    assert_eq!(outcome.durable, len);
}

/// A run is durable in its order when `publish_run` returns, in the partition that its messages
/// name.
pub async fn a_run_is_durable_in_its_order(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let sent = run(&topic, 1, "key", 30);
    assert_complete(&topic.bus.publish_run(&sent[..20]).await, 20);
    let ends = |found: Vec<_>| {
        found
            .iter()
            .map(|o: &foldstream::ports::PartitionOffsets| o.end.get())
            .collect::<Vec<_>>()
    };
    let found = topic.bus.offsets(&topic.name).await.unwrap();
    assert_eq!(ends(found), [0, 20]);
    assert_complete(&topic.bus.publish_run(&sent[20..]).await, 10);
    let mut member = Member::join(&topic).await;
    let found = member.deliveries(30).await;
    for (n, (found, sent)) in found.iter().zip(&sent).enumerate() {
        assert_eq!(found.offset, Offset::new(n as u64));
        assert_eq!(
            (&found.message.key, &found.message.value),
            (&sent.key, &sent.value)
        );
    }
    member.leave().await;
}

/// An empty run is durable at once.
pub async fn an_empty_run_is_durable_at_once(fixture: Fixture) {
    assert_complete(&fixture.bus().publish_run(&[]).await, 0);
}

/// A run whose messages differ in topic, key or partition, or name no partition, is `Invalid`, and
/// nothing is sent.
pub async fn a_run_of_mixed_messages_is_invalid_and_sends_nothing(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 2).await;
    let other = Topic::fresh(&fixture, 2).await;
    let good = run(&topic, 0, "key", 2);
    let mut elsewhere = good[0].clone();
    elsewhere.topic = other.name.clone();
    let mut nowhere = good[0].clone();
    nowhere.partition = None;
    let mut keyless = good[0].clone();
    keyless.key = None;
    let others = [
        elsewhere,
        keyless,
        good[0].clone().with_key("other"),
        good[0].clone().with_partition(1),
        nowhere.clone(),
    ];
    let mut runs = vec![vec![nowhere.clone(), nowhere]];
    for odd in others {
        runs.push(vec![good[0].clone(), good[1].clone(), odd.clone()]);
        runs.push(vec![odd, good[0].clone(), good[1].clone()]);
    }
    for run in runs {
        let outcome = topic.bus.publish_run(&run).await;
        let refused = matches!(outcome.error, Some(MessageBusError::Invalid { .. }));
        assert!(refused && outcome.durable == 0, "{outcome:?} of {run:?}");
    }
    for topic in [&topic, &other] {
        let found = topic.bus.offsets(&topic.name).await.unwrap();
        assert!(found.iter().all(|o| o.end == Offset::new(0)), "{found:?}");
    }
}

/// A run that fails in the middle returns its error, and is durable up to some message.
///
/// It is durable at least as far as the error says, and no message is durable without those before
/// it. The rest can be sent afterwards.
pub async fn a_run_that_breaks_off_is_durable_up_to_some_message(fixture: Fixture) {
    let topic = Topic::fresh(&fixture, 1).await;
    let described = topic.bus.describe_topic(&topic.name).await.unwrap();
    let mut noise = vec![0; described.message_limit().unwrap_or(24 << 20) as usize + 1024];
    // A message that can be compressed might fit after all.
    fastrand::Rng::with_seed(7).fill(&mut noise);
    let mut sent = run(&topic, 0, "key", 6);
    sent[3].value = Some(noise.into());
    let outcome = topic.bus.publish_run(&sent).await;
    let refused = matches!(outcome.error, Some(MessageBusError::TooLarge { .. }));
    assert!(refused && outcome.durable <= 3, "{outcome:?}");
    let found: Vec<_> = records(&topic).await.into_iter().map(|(_, v)| v).collect();
    assert!(
        found.len() >= outcome.durable,
        "{outcome:?}, there are {found:?}"
    );
    assert!(numbers(3).starts_with(&found), "there are {found:?}");

    sent[3].value = Some("3".into());
    let rest = &sent[outcome.durable..];
    assert_complete(&topic.bus.publish_run(rest).await, rest.len());
    let found = first_occurrences(&records(&topic).await, "key");
    assert_eq!(found, numbers(6));

    let lacking = run(&topic, 5, "key", 2);
    let outcome = topic.bus.publish_run(&lacking).await;
    assert_eq!(outcome.durable, 0);
    assert_refused(
        &outcome.error.map_or(Ok(()), Err),
        RefusedKind::UnknownPartition,
    );
}

/// Polls a future this many times, and drops it if it is not ready by then.
async fn dropped_after<T>(polls: u64, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if future.as_mut().now_or_never().is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A dropped run leaves some first part of it durable. If it is sent again, first occurrences are
/// in order.
pub async fn a_dropped_run_leaves_a_first_part_and_can_be_sent_again(fixture: Fixture) {
    const LEN: usize = 8;
    let topic = Topic::fresh(&fixture, 1).await;
    let keys: Vec<_> = (0..12).map(|n| format!("{n}-{}", unique())).collect();
    for (polls, key) in (1..).zip(&keys) {
        let sent = run(&topic, 0, key, LEN);
        dropped_after(polls, topic.bus.publish_run(&sent)).await;
        assert_complete(&topic.bus.publish_run(&sent).await, LEN);
    }
    let records = records(&topic).await;
    for key in &keys {
        assert_eq!(first_occurrences(&records, key), numbers(LEN), "of {key}");
    }
}

/// Runs of different keys that are sent at the same time are each durable in their own order, also
/// when one of them is dropped.
pub async fn concurrent_runs_of_different_keys_each_keep_their_order(fixture: Fixture) {
    const LEN: usize = 12;
    let topic = Topic::fresh(&fixture, 1).await;
    let keys: Vec<_> = (0..6).map(|n| format!("{n}-{}", unique())).collect();
    let dropped = run(&topic, 0, "dropped", LEN);
    let sends = keys.iter().map(|key| {
        let (topic, sent) = (&topic, run(&topic, 0, key, LEN));
        async move {
            // Two runs per key, so that the second begins while the other keys are being sent.
            for half in sent.chunks(LEN / 2) {
                assert_complete(&topic.bus.publish_run(half).await, LEN / 2);
            }
        }
    });
    let drop_one = dropped_after(2, topic.bus.publish_run(&dropped));
    futures::join!(futures::future::join_all(sends), drop_one);
    let records = records(&topic).await;
    for key in &keys {
        assert_eq!(first_occurrences(&records, key), numbers(LEN), "of {key}");
    }
    let found = first_occurrences(&records, "dropped");
    assert!(numbers(LEN).starts_with(&found), "there are {found:?}");
}
