//! An operator who works on the rows of one processor, step by step, and may die between any two.
use crate::support::stream;
use foldstream::{
    StreamId, Version,
    adapter::kafka_partition,
    ports::{ControlStore, DeleteExpect, Expect, PutOutcome, RangeQuery, Revision, Row, RowKey},
};
use foldstream_testkit::InMemoryControlStore;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::super::harness::TOPIC;

pub(super) struct Operator {
    control: Arc<InMemoryControlStore>,
    processor: &'static str,
    partitions: u32,
    revisions: AtomicU64,
}

impl Operator {
    pub(super) fn new(
        control: Arc<InMemoryControlStore>,
        processor: &'static str,
        partitions: u32,
    ) -> Self {
        Self {
            control,
            processor,
            partitions,
            revisions: AtomicU64::new(1),
        }
    }

    fn rows(&self, kind: &str, partition: u32) -> String {
        format!("{kind}/{}/1/{TOPIC}/{partition}", self.processor)
    }
    fn key(&self, kind: &str, of: &StreamId, sort: String) -> RowKey {
        let partition = kafka_partition(of.as_str().as_bytes(), self.partitions);
        RowKey::new(self.rows(kind, partition), sort)
    }
    fn event_key(&self, kind: &str, id: &str, version: u64) -> RowKey {
        let stream = stream(id);
        self.key(kind, &stream, format!("{stream}\u{1f}{version:020}"))
    }
    fn fresh(&self) -> Revision {
        let number = self.revisions.fetch_add(1, Ordering::Relaxed);
        Revision::from_u128((0xA11CE << 64) | u128::from(number))
    }
    async fn put(&self, key: RowKey, value: &Value, expect: Expect) -> PutOutcome {
        let row = Row::new(key, value.to_string(), self.fresh());
        self.control.put(&row, expect).await.unwrap()
    }

    /// Returns the sort keys of all rows of a kind.
    pub(super) async fn all(&self, kind: &str) -> Vec<String> {
        let mut found = Vec::new();
        for partition in 0..self.partitions {
            let mut query = RangeQuery::new(self.rows(kind, partition));
            loop {
                let page = self.control.range(&query).await.unwrap();
                // The head of a value that was deleted stays for a while.
                let rows = page.rows.into_iter().filter(|row| &*row.value != b"-");
                found.extend(rows.map(|row| row.key.sort));
                let Some(next) = page.next else { break };
                query = RangeQuery::new(self.rows(kind, partition)).with_after(Some(next));
            }
        }
        found
    }
    /// Returns the versions of a stream with a row of a kind.
    pub(super) async fn versions(&self, kind: &str, id: &str) -> Vec<u64> {
        let stream = format!("{}\u{1f}", stream(id));
        let rows = self.all(kind).await;
        let mine = rows.iter().filter_map(|row| row.strip_prefix(&stream));
        mine.map(|version| version.parse().unwrap()).collect()
    }
    pub(super) async fn letters(&self, id: &str) -> Vec<u64> {
        self.versions("dlq", id).await
    }
    /// Returns `from`, `high` and the state of a parked stream.
    pub(super) async fn parked(&self, id: &str) -> Option<(u64, u64, String)> {
        let row = self.park_row(id).await?;
        let value: Value = serde_json::from_slice(&row.value).unwrap();
        let state = value["s"].as_str().unwrap().to_owned();
        Some((
            value["f"].as_u64().unwrap(),
            value["h"].as_u64().unwrap(),
            state,
        ))
    }
    /// Returns the stored position in a stream.
    pub(super) async fn position(&self, id: &str) -> Option<u64> {
        let stream = stream(id);
        let partition = format!("pos/{}/1/{}", self.processor, stream.shard(64));
        let key = RowKey::new(partition, stream.as_str());
        let row = self.control.get(&key).await.unwrap()?;
        let value: Value = serde_json::from_slice(&row.value).unwrap();
        value["v"].as_u64()
    }
    async fn park_row(&self, id: &str) -> Option<Row> {
        let stream = stream(id);
        let key = self.key("park", &stream, stream.to_string());
        self.control.get(&key).await.unwrap()
    }

    /// Tells the processes that rows have changed.
    pub(super) async fn announce(&self) {
        let token = self.fresh();
        let key = RowKey::new(format!("park/{}/1", self.processor), "!changed");
        let value = json!({ "k": format!("{:032x}", token.as_u128()) });
        let row = Row::new(key, value.to_string(), token);
        let put = self.control.put(&row, Expect::Any).await.unwrap();
        assert_eq!(put, PutOutcome::Written);
    }

    /// Asks for a redrive of a parked stream. Returns false if it is not parked.
    pub(super) async fn ask_redrive(&self, id: &str) -> bool {
        loop {
            let Some(row) = self.park_row(id).await else {
                return false;
            };
            let mut value: Value = serde_json::from_slice(&row.value).unwrap();
            if value["s"] != "parked" {
                return true;
            }
            (value["s"], value["b"]) = (json!("requested"), json!("ann"));
            let put = self.put(row.key, &value, Expect::Revision(row.revision));
            if put.await == PutOutcome::Written {
                return true;
            }
        }
    }
    pub(super) async fn redrive(&self, id: &str) -> bool {
        let is_parked = self.ask_redrive(id).await;
        self.announce().await;
        is_parked
    }

    pub(super) async fn ask_discard(&self, id: &str, version: u64) {
        let value = json!({ "r": "a duplicate", "b": "ann", "t": 7, "s": "asked" });
        let key = self.event_key("discarded", id, version);
        // A conflict means that it was asked for already.
        let _ = self.put(key, &value, Expect::Absent).await;
    }
    pub(super) async fn discard(&self, id: &str, version: u64) {
        self.ask_discard(id, version).await;
        self.announce().await;
    }
    /// Returns the state of a discard.
    pub(super) async fn discarded(&self, id: &str, version: u64) -> Option<String> {
        self.state_of(self.event_key("discarded", id, version))
            .await
    }
    /// Returns the state of a discard in the archive.
    pub(super) async fn archived(&self, id: &str, version: u64) -> Option<String> {
        self.state_of(self.event_key("archive", id, version)).await
    }
    async fn state_of(&self, key: RowKey) -> Option<String> {
        let row = self.control.get(&key).await.unwrap()?;
        let value: Value = serde_json::from_slice(&row.value).unwrap();
        Some(value["s"].as_str().unwrap().to_owned())
    }

    /// Replaces a header of a deferred record, so that the record is no event any more.
    pub(super) async fn damage_deferred(&self, id: &str, version: u64) {
        let key = self.event_key("def", id, version);
        let row = self.control.get(&key).await.unwrap().unwrap();
        let text = String::from_utf8(row.value.to_vec()).unwrap();
        let damaged = text.replace("ce_fsversion", "ce_fsdamaged");
        assert_ne!(text, damaged);
        let row = Row::new(key, damaged, self.fresh());
        let put = self.control.put(&row, Expect::Any).await.unwrap();
        assert_eq!(put, PutOutcome::Written);
    }

    /// Returns the head of a letter.
    pub(super) async fn letter(&self, id: &str, version: u64) -> Option<Value> {
        let key = self.event_key("dlq", id, version);
        let row = self.control.get(&key).await.unwrap()?;
        let line = row.value.split(|byte| *byte == b'\n').next().unwrap();
        serde_json::from_slice(line.strip_prefix(b"=")?).ok()
    }
    /// Asks the owner to handle the event of a letter once more, or to drop the letter.
    pub(super) async fn ask(&self, id: &str, version: u64, what: &str) {
        let letter = self.letter(id, version).await.unwrap();
        let value = json!({ "i": letter["i"], "w": what, "b": "ann", "t": 7 });
        let key = self.event_key("ask", id, version);
        // A conflict means that it was asked for already.
        let _ = self.put(key, &value, Expect::Absent).await;
        self.announce().await;
    }

    /// Deletes a park row, as an owner does that has handled all of its events.
    pub(super) async fn delete_park_row(&self, id: &str) {
        let row = self.park_row(id).await.unwrap();
        let deleted = self.control.delete(&row.key, DeleteExpect::Any).await;
        assert_eq!(deleted.unwrap(), foldstream::ports::DeleteOutcome::Deleted);
    }
    /// Replaces fields of a park row, as another owner does.
    pub(super) async fn change_park_row(&self, id: &str, fields: &[(&str, Value)]) {
        let row = self.park_row(id).await.unwrap();
        let mut value: Value = serde_json::from_slice(&row.value).unwrap();
        for (field, to) in fields {
            value[*field] = to.clone();
        }
        let put = self.put(row.key, &value, Expect::Any).await;
        assert_eq!(put, PutOutcome::Written);
    }
    /// Stores a park row, as another owner does.
    pub(super) async fn write_park_row(&self, id: &str, from: Version, high: Version) {
        let stream = stream(id);
        let value = json!({
            "i": format!("{:032x}", 1), "f": from, "h": high, "s": "parked",
            "p": format!("{:032x}", 2), "n": 1, "t": 7,
        });
        let key = self.key("park", &stream, stream.to_string());
        let put = self.put(key, &value, Expect::Any).await;
        assert_eq!(put, PutOutcome::Written);
    }
}
