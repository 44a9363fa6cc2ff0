//! The rules that are checked at each call of a port and at the end.
use super::{
    handlers::stream_of,
    instance::written,
    schedule::{GiveUp, Role},
    world::{Event, GROUP, NAME, World, passed},
};
use foldstream::{
    ports::{ControlStore, MessageBus, OffsetCommit, PartitionId, RangeQuery, RowKey},
    runner::DeliveryLevel,
};
use foldstream_testkit::faults::Call;
use futures::FutureExt;
use serde_json::Value;

use super::super::harness::TOPIC;

/// Checks what a call has done.
pub(super) fn after(world: &World, instance: u64, call: &Call<'_>) {
    match call {
        Call::Commit(commits) => {
            for commit in *commits {
                committed(world, instance, commit);
            }
        }
        Call::Put { row, .. } => {
            if let Some(kind) = written(call) {
                world.hit(format!("put {kind}"));
                if kind == "pos" {
                    position(world, &row.key.sort, &row.value);
                }
            }
        }
        Call::Delete { .. } => {
            if let Some(kind) = written(call) {
                world.hit(format!("delete {kind}"));
            }
        }
        _ => {}
    }
}

fn position(world: &World, stream: &str, value: &[u8]) {
    let value: Value = serde_json::from_slice(value).unwrap();
    let number = stream.split_once('#').unwrap().1.parse().unwrap();
    let version = value["v"].as_u64().unwrap();
    let mut facts = world.facts();
    let moment = facts.moment();
    let last = facts
        .positions
        .get(&number)
        .and_then(|all| all.last())
        .copied();
    facts
        .positions
        .entry(number)
        .or_default()
        .push((moment, version));
    drop(facts);
    if last.is_some_and(|(_, last)| last > version) {
        world.violated(format!("the position of {number} goes back to {version}"));
    }
}

/// Reads a row without waiting. Returns `None` also for the head of a large value that is deleted.
fn row(world: &World, partition: String, sort: String) -> Option<Value> {
    let key = RowKey::new(partition, sort);
    let row = world.control.get(&key).now_or_never()?.ok()??;
    if &*row.value == b"-" {
        return None;
    }
    // The value of a letter is no JSON as a whole.
    Some(serde_json::from_slice(&row.value).unwrap_or(Value::Null))
}

fn partition_of(kind: &str, partition: &PartitionId) -> String {
    format!("{kind}/{NAME}/1/{TOPIC}/{}", partition.partition)
}

/// Returns the first and the last version that wait in a parked stream.
fn parked(world: &World, partition: &PartitionId, number: u32) -> Option<(u64, u64)> {
    let row = row(
        world,
        partition_of("park", partition),
        stream_of(number).to_string(),
    )?;
    Some((row["f"].as_u64()?, row["h"].as_u64()?))
}

fn has_row(world: &World, kind: &str, partition: &PartitionId, event: Event) -> bool {
    let sort = format!("{}\u{1f}{:020}", stream_of(event.0), event.1);
    row(world, partition_of(kind, partition), sort).is_some()
}

/// Checks that every record before a committed offset is accounted for.
fn committed(world: &World, instance: u64, commit: &OffsetCommit) {
    let (partition, next) = passed(commit);
    world.note(|| format!("i{instance} commits {next} of {}", partition.partition));
    let (from, records) = {
        let mut facts = world.facts();
        let from = facts.committed.insert(partition.clone(), next).unwrap_or(0);
        let records = facts.records.get(&partition).cloned().unwrap_or_default();
        (from, records)
    };
    if next < from {
        world.violated(format!(
            "i{instance} commits {next} after {from} of {partition}"
        ));
    }
    let new = records.iter().take(next as usize).skip(from as usize);
    for event in new.flatten() {
        if let Some(wrong) = not_accounted(world, &partition, *event) {
            world.violated(format!(
                "i{instance} commits {next} of {partition} after {event:?}: {wrong}"
            ));
        }
    }
}

/// Returns the reason why the offset must not pass an event.
fn not_accounted(world: &World, partition: &PartitionId, event: Event) -> Option<String> {
    let (number, version) = event;
    let (is_done, is_settled, stored) = {
        let facts = world.facts();
        (
            facts.effects.contains_key(&event),
            facts.asked.contains(&event)
                || facts.discarded.contains(&event)
                || facts.exempt.contains(&event),
            facts.position_before(number, u64::MAX),
        )
    };
    if is_settled || has_row(world, "dlq", partition, event) && world.plan.give_up != GiveUp::Park {
        return None;
    }
    let parked = parked(world, partition, number);
    if is_done {
        let is_durable = world.plan.level != DeliveryLevel::Deduplicated
            || world.facts().of_history.contains(&event)
            || stored >= version
            // It lies before the durable position of a parked stream, or is redriven.
            || parked.is_some_and(|(_, high)| high >= version);
        return (!is_durable).then(|| format!("its position is not durable, but {stored}"));
    }
    if world.facts().given_up.contains(&event) && world.plan.role != Role::Listener {
        return None;
    }
    match parked {
        Some((from, high)) if (from..=high).contains(&version) => {
            let is_kept = world.plan.has_store || has_row(world, "def", partition, event);
            (!is_kept).then(|| "its deferred record is not stored".into())
        }
        other => Some(format!("it is not handled, parked: {other:?}")),
    }
}

/// Returns the rows of a kind that are left.
pub(super) async fn left(world: &World, kind: &str) -> Vec<String> {
    let mut found = Vec::new();
    for number in 0..world.plan.partitions {
        let partition = partition_of(kind, &PartitionId::new(TOPIC, number));
        let mut after = None;
        loop {
            let query = RangeQuery::new(partition.clone()).with_after(after);
            let page = world.control.range(&query).await.unwrap();
            let rows = page.rows.into_iter().filter(|row| &*row.value != b"-");
            found.extend(rows.map(|row| row.key.sort));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    found
}

/// Returns the end of each partition.
pub(super) async fn ends(world: &World) -> Vec<(PartitionId, u64)> {
    let offsets = world.bus.offsets(TOPIC).await.unwrap();
    offsets
        .into_iter()
        .map(|o| (o.partition, o.end.get()))
        .collect()
}

/// Checks the rules that hold once everything is quiet.
pub(super) async fn at_the_end(world: &World) {
    for kind in ["park", "dlq", "ask", "def", "order"] {
        let left = left(world, kind).await;
        if !left.is_empty() {
            world.violated(format!("rows of {kind} are left: {left:?}"));
        }
    }
    let committed = world.bus.committed(GROUP, TOPIC).await.unwrap();
    for (partition, end) in ends(world).await {
        let next = committed
            .iter()
            .find(|(of, _)| *of == partition)
            .and_then(|(_, next)| *next);
        let next = next.map_or(0, |next| next.get());
        if next != end {
            world.violated(format!(
                "the offset of {partition} is {next}, the end {end}"
            ));
        }
    }
    let wrong = effects(world);
    wrong.into_iter().for_each(|wrong| world.violated(wrong));
}

fn effects(world: &World) -> Vec<String> {
    let plan = &world.plan;
    let facts = world.facts();
    let mut wrong = Vec::new();
    for event in &facts.events {
        let times = facts.effects.get(event).copied().unwrap_or(0);
        let is_left_out = facts.asked.contains(event)
            || facts.discarded.contains(event)
            || facts.exempt.contains(event)
            // The redrive of a projector's letter cannot tell given up from handled.
            || (facts.given_up.contains(event) && plan.role != Role::Listener);
        if times == 0 && !is_left_out {
            wrong.push(format!("{event:?} never took effect"));
        }
        let is_repeated = facts.given_up.contains(event);
        let once = plan.level == DeliveryLevel::ExactlyOnceEffect
            || (plan.is_peaceful
                && plan.level == DeliveryLevel::Deduplicated
                && plan.max_batch == 1
                && !is_repeated);
        if once && times > 1 {
            wrong.push(format!("{event:?} took effect {times} times"));
        }
        if plan.level == DeliveryLevel::Deduplicated
            && times > 0
            // The row of a parked stream goes before the position of what was redriven is stored.
            && !facts.of_history.contains(event)
            && facts.position_before(event.0, u64::MAX) < event.1
        {
            wrong.push(format!("no position was stored for {event:?}"));
        }
    }
    wrong
}
