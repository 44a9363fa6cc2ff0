//! The other side: a loop over the SDK's `Scan` in segments, as one would write it by hand.
use super::count::{Began, Count, Scanned};
use crate::{
    BenchError,
    account::{AccountEvent, Deposit},
};
use aws_sdk_dynamodb::{
    Client,
    types::{AttributeValue, ReturnConsumedCapacity},
};
use foldstream::{CommitId, EventHeader, Metadata, StreamId, Timestamp, Version};
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use std::{collections::HashMap, fmt, sync::Arc};
use tokio::task::JoinSet;

type Item = HashMap<String, AttributeValue>;

/// Scans a table in as many segments at the same time.
pub(super) async fn run(
    client: &Client,
    table: &Arc<str>,
    segments: u32,
    page: u32,
) -> Result<Scanned, BenchError> {
    let total = i32::try_from(segments).map_err(BenchError::other)?;
    let limit = i32::try_from(page).map_err(BenchError::other)?;
    let began = Began::now()?;
    let count = Arc::new(Count::default());
    let mut tasks = JoinSet::new();
    for segment in 0..total {
        let scan = client
            .scan()
            .table_name(&**table)
            .consistent_read(true)
            .segment(segment)
            .total_segments(total)
            .limit(limit)
            .return_consumed_capacity(ReturnConsumedCapacity::Total);
        let count = count.clone();
        tasks.spawn(async move {
            let (mut start, mut units) = (None, 0.0);
            loop {
                let scan = scan.clone().set_exclusive_start_key(start);
                let page = scan.send().await.map_err(BenchError::other)?;
                let consumed = page.consumed_capacity.and_then(|c| c.capacity_units);
                units += consumed.ok_or_else(|| malformed("the consumed capacity"))?;
                for item in page.items.unwrap_or_default() {
                    take(&item, &count)?;
                }
                start = page.last_evaluated_key;
                if start.is_none() {
                    return Ok::<_, BenchError>(units);
                }
            }
        });
    }
    let mut units = 0.0;
    while let Some(scanned) = tasks.join_next().await {
        units += scanned.map_err(BenchError::other)??;
    }
    began.end(&count, units)
}

fn malformed(what: &str) -> BenchError {
    BenchError::other(format!("{what} cannot be read"))
}

/// Decodes the events of an item, and handles each.
fn take(item: &Item, count: &Count) -> Result<(), BenchError> {
    let stream: StreamId = text(item, "pk")?.parse().map_err(BenchError::other)?;
    let first = number(item, "sk")?.ok_or_else(|| malformed("sk"))?;
    let last = Version::new(number(item, "n")?.unwrap_or(first));
    let (id, time) = stamp(item)?;
    let metadata = metadata(item)?;
    let events: Events = serde_json::from_str(text(item, "e")?)?;
    for ((index, version), (name, deposit)) in (0u16..).zip(first..).zip(events.0) {
        let header = EventHeader::new(
            id.event_id(index),
            stream.clone(),
            Version::new(version),
            name,
            time,
        )
        .with_commit_last(last)
        .with_metadata(metadata.clone());
        count.handled(&header, &AccountEvent::Deposited(deposit));
    }
    Ok(())
}

fn text<'a>(item: &'a Item, name: &str) -> Result<&'a str, BenchError> {
    let value = item.get(name).and_then(|value| value.as_s().ok());
    value.map(String::as_str).ok_or_else(|| malformed(name))
}

fn number(item: &Item, name: &str) -> Result<Option<u64>, BenchError> {
    let Some(value) = item.get(name) else {
        return Ok(None);
    };
    let value = value.as_n().map_err(|_| malformed(name))?;
    value.parse().map(Some).map_err(BenchError::other)
}

/// Decodes the commit id and the time.
fn stamp(item: &Item) -> Result<(CommitId, Timestamp), BenchError> {
    let wrong = || malformed("c");
    let bytes = item.get("c").and_then(|value| value.as_b().ok());
    let bytes = bytes.ok_or_else(wrong)?.as_ref();
    let (id, time) = bytes.split_first_chunk().ok_or_else(wrong)?;
    let time = time.try_into().map_err(|_| wrong())?;
    let id = CommitId::from_u128(u128::from_be_bytes(*id));
    Ok((id, Timestamp::from_micros(i64::from_be_bytes(time))))
}

fn metadata(item: &Item) -> Result<Metadata, BenchError> {
    let mut metadata = Metadata::new();
    let Some(value) = item.get("m") else {
        return Ok(metadata);
    };
    for (name, value) in value.as_m().map_err(|_| malformed("m"))? {
        let value = value.as_s().map_err(|_| malformed(name))?.as_str();
        metadata = match name.as_str() {
            "command" => metadata.with_command_id(value),
            "correlation" => metadata.with_correlation_id(value),
            "causation" => metadata.with_causation_id(value),
            "actor" => metadata.with_actor(value),
            _ => metadata,
        };
    }
    Ok(metadata)
}

/// The events of an item: `[name, payload, name, payload, ...]`.
struct Events(Vec<(String, Deposit)>);

impl<'de> Deserialize<'de> for Events {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Events;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names and payloads in turns")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Events, A::Error> {
                let mut events = Vec::new();
                while let Some(name) = items.next_element::<String>()? {
                    if name != "Deposited" {
                        return Err(A::Error::unknown_variant(&name, &["Deposited"]));
                    }
                    let deposit = items.next_element()?;
                    let deposit = deposit.ok_or_else(|| A::Error::missing_field("payload"))?;
                    events.push((name, deposit));
                }
                Ok(Events(events))
            }
        }
        deserializer.deserialize_seq(Pairs)
    }
}
