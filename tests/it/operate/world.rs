//! A control store with the rows that processors have written.
use foldstream::{
    StreamId, Version,
    operate::{LetterAddress, LetterKey, Operator, Reason},
    ports::{ControlStore, DeleteExpect, Expect, PartitionId, RangeQuery, Revision, Row, RowKey},
};
use foldstream_testkit::{InMemoryControlStore, ManualClock, SeededIds, faults::Faults};
use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub(crate) struct World {
    pub(crate) rows: Arc<InMemoryControlStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) faults: Faults,
    writes: AtomicU64,
}

pub(crate) fn stream(id: &str) -> StreamId {
    StreamId::new("cart", id).unwrap()
}
pub(crate) fn reason() -> Reason {
    Reason::new("ann", "ticket 17").unwrap()
}
pub(crate) fn page(rows: u32) -> NonZeroU32 {
    NonZeroU32::new(rows).unwrap()
}
pub(crate) fn hex(number: u128) -> String {
    format!("{number:032x}")
}
pub(crate) fn address(id: &str, version: u64) -> LetterAddress {
    let key = LetterKey::event(stream(id), Version::new(version));
    LetterAddress::new("billing", 1, PartitionId::new("orders", 0), key)
}

impl World {
    /// Creates a store with the processor `billing`, which reads the partitions of `orders`.
    pub(crate) async fn new(partitions: u32) -> Self {
        let clock = ManualClock::new();
        let world = Self {
            rows: InMemoryControlStore::with_clock(clock.clone()),
            clock,
            faults: Faults::none(),
            writes: AtomicU64::new(1 << 40),
        };
        world.processor("billing").await;
        let pin = format!(r#"{{"p":{partitions}}}"#);
        world.put("topic", "orders", &pin).await;
        world
    }
    pub(crate) fn operator(&self) -> Operator {
        Operator::new(self.faults.control_store(self.rows.clone()))
            // Another seed for each: two processes never draw the same revision.
            .with_ids(SeededIds::new(self.writes.fetch_add(1, Ordering::SeqCst)))
            .with_clock(self.clock.clone())
    }
    pub(crate) async fn processor(&self, name: &str) {
        let row = r#"{"a":1,"st":"live","e":0,"m":3}"#;
        self.put("proc", name, row).await;
    }
    pub(crate) async fn put(&self, partition: &str, sort: &str, value: &str) {
        let revision = self.writes.fetch_add(1, Ordering::SeqCst);
        let key = RowKey::new(partition, sort);
        let row = Row::new(key, value.to_owned(), Revision::from_u128(revision.into()));
        let _ = self.rows.put(&row, Expect::Any).await.unwrap();
    }
    pub(crate) async fn delete(&self, partition: &str, sort: &str) {
        let key = RowKey::new(partition, sort);
        let _ = self.rows.delete(&key, DeleteExpect::Any).await.unwrap();
    }
    /// Parks a stream, and writes the letter of the event that failed.
    pub(crate) async fn park(&self, id: &str, from: u64, high: u64, fingerprint: u128) {
        self.park_without_letter(id, from, high, fingerprint).await;
        self.letter(0, id, from, fingerprint).await;
    }
    pub(crate) async fn park_without_letter(&self, id: &str, from: u64, high: u64, print: u128) {
        let (id_of, print) = (hex(u128::from(from)), hex(print));
        let row = format!(
            r#"{{"i":"{id_of}","f":{from},"h":{high},"s":"parked","p":"{print}","n":3,"t":7}}"#
        );
        self.put("park/billing/1/orders/0", stream(id).as_str(), &row)
            .await;
    }
    pub(crate) async fn letter(&self, partition: u32, id: &str, version: u64, fingerprint: u128) {
        let sort = format!("{}\u{1f}{version:020}", stream(id));
        self.letter_of("billing", partition, &sort, fingerprint)
            .await;
    }
    pub(crate) async fn letter_of(&self, of: &str, partition: u32, sort: &str, print: u128) {
        let head = format!(
            r#"{{"i":"{}","c":"permanent","y":"shop::Declined","e":"card declined","t":"cart.Paid","p":"{}","n":3,"f":7,"l":{}}}"#,
            hex(9),
            hex(print),
            self.writes.load(Ordering::SeqCst)
        );
        let record = r#"{"k":"r","t":"orders","p":0,"o":41,"at":5,"b":3}"#;
        let value = format!("={head}\n{record}\nyes");
        let partition = format!("dlq/{of}/1/orders/{partition}");
        self.put(&partition, sort, &value).await;
    }
    /// Returns the rows of a partition as texts.
    pub(crate) async fn texts(&self, partition: &str) -> Vec<(String, String)> {
        let (mut texts, mut query) = (Vec::new(), RangeQuery::new(partition));
        loop {
            let page = self.rows.range(&query).await.unwrap();
            texts.extend(page.rows.into_iter().map(|row| {
                let value = String::from_utf8_lossy(&row.value).into_owned();
                (row.key.sort, value)
            }));
            if page.next.is_none() {
                return texts;
            }
            query = query.with_after(page.next);
        }
    }
    pub(crate) async fn token(&self) -> Option<String> {
        let rows = self.texts("park/billing/1").await;
        rows.into_iter().next().map(|(_, value)| value)
    }
    /// Returns the entries of the audit: action, target and number, the oldest first.
    pub(crate) async fn audit(&self) -> Vec<(String, String, Option<u64>)> {
        let now = foldstream::Clock::now(&*self.clock);
        let page = self.operator().audit(now, None).await.unwrap();
        let entries = page.entries.into_iter().rev();
        entries
            .map(|entry| {
                assert_eq!((&*entry.who, &*entry.why), ("ann", "ticket 17"));
                (entry.action, entry.target, entry.affected)
            })
            .collect()
    }
}
