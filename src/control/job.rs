//! The rows of bulk redrives.
//!
//! ```text
//! job/<name>        <id>      -> JobRow
//! job/<name>/<id>   <page:08> -> ItemPage
//! ```
//! The pages of items are written first and never change in what they select, so that a job
//! handles what its dry run has counted. The executor notes in a page what became of its items. The
//! counts of a page are added to the row of the job by the same write that moves the cursor to the
//! next page, so that a page counts once, whoever dies.
use super::{
    KeyedPage, LetterId, LetterKey, ParkId, PutIf, Rows, Stored, audit::KEPT, hex_id::hex_id,
};
use crate::{
    StreamId, Timestamp, Version,
    ports::{ControlStoreError, Direction, Expect, PartitionId, RangeQuery, Revision, RowKey},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

hex_id! {
    /// The id of a bulk redrive. Later jobs have greater ids.
    pub JobId, "the id of a job"
}

/// The state of a bulk redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// The selection is being written. Nothing is redriven yet.
    Selecting,
    /// The selection is frozen, and its items are redriven.
    Running,
    /// The job was aborted, and its open requests are being taken back.
    Aborting,
    /// The job was aborted. No request of it is left.
    Aborted,
    /// Every item was asked for, and is over.
    Done,
}

/// The value of a job's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobRow {
    #[serde(rename = "s")]
    pub(crate) state: JobState,
    /// The generation of the processor whose rows are redriven.
    #[serde(rename = "g")]
    pub(crate) generation: u32,
    /// The text of the selection.
    #[serde(rename = "w")]
    pub(crate) what: String,
    /// The name of the operator.
    #[serde(rename = "b")]
    pub(crate) by: String,
    #[serde(rename = "y")]
    pub(crate) why: String,
    /// The time at which the job was created.
    #[serde(rename = "t")]
    pub(crate) at: Timestamp,
    /// The number of events per second that are asked for at most; `None` for no limit.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<u32>,
    /// The number of pages of items.
    #[serde(rename = "p", default)]
    pub(crate) pages: u32,
    /// The page that is being redriven, from 0.
    #[serde(rename = "c", default)]
    pub(crate) cursor: u32,
    /// The number of selected items.
    #[serde(rename = "n", default)]
    pub(crate) items: u64,
    /// The number of selected events.
    #[serde(rename = "e", default)]
    pub(crate) events: u64,
    /// The outcomes of the items on the pages before the cursor.
    #[serde(flatten)]
    pub(crate) counts: JobCounts,
    /// The fields that a newer build has written. This build keeps them.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The outcomes of the items of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobCounts {
    /// The number of items whose selected events are all done.
    #[serde(rename = "d", default)]
    pub done: u64,
    /// The number of items that have failed again.
    #[serde(rename = "x", default)]
    pub failed: u64,
    /// The number of items that were gone before the job asked for them.
    #[serde(rename = "o", default)]
    pub gone: u64,
    /// The number of selected events that were handled.
    #[serde(rename = "h", default)]
    pub handled: u64,
}

impl JobCounts {
    /// Returns the sum of two counts.
    #[must_use]
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            done: self.done + other.done,
            failed: self.failed + other.failed,
            gone: self.gone + other.gone,
            handled: self.handled + other.handled,
        }
    }
}

impl JobRow {
    pub(crate) fn new(generation: u32, what: String, by: &str, why: &str, at: Timestamp) -> Self {
        Self {
            state: JobState::Selecting,
            generation,
            what,
            by: by.into(),
            why: why.into(),
            at,
            rate: None,
            pages: 0,
            cursor: 0,
            items: 0,
            events: 0,
            counts: JobCounts::default(),
            rest: Map::new(),
        }
    }
    /// Returns the row in another state.
    #[must_use]
    pub(crate) fn in_state(&self, state: JobState) -> Self {
        Self {
            state,
            ..self.clone()
        }
    }
}

/// The target of an item: what is redriven, and proof that it is what was selected.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ItemTarget {
    /// A parked stream, from one version to another.
    Stream {
        stream: StreamId,
        id: ParkId,
        from: Version,
        high: Version,
    },
    /// A letter of a stream that is not parked.
    Letter { key: LetterKey, id: LetterId },
}

/// The state of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ItemState {
    /// The job has not asked for the item.
    Waiting,
    /// The job asks for the item, or has asked.
    Asked,
    /// The selected events are done.
    Done,
    /// The item has failed again.
    Failed,
    /// The item was gone before the job asked for it.
    Gone,
}

/// An item of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredItem", into = "StoredItem")]
pub(crate) struct Item {
    pub(crate) partition: PartitionId,
    pub(crate) target: ItemTarget,
    /// The number of events that are redriven.
    pub(crate) events: u64,
    pub(crate) state: ItemState,
    /// The revision that the letter had when the job asked for it. A letter with another one has
    /// failed again.
    pub(crate) seen: Option<Revision>,
    /// The number of events that were handled, once the item is over.
    pub(crate) handled: u64,
}

/// The value of a page of items. Unknown fields of a newer build are refused: a build that passed
/// over them would write the page without them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemPage {
    #[serde(rename = "i")]
    pub(crate) items: Vec<Item>,
}

impl ItemPage {
    /// The number of items on a page. The longest possible items fit into one row.
    pub(crate) const ITEMS: usize = 100;

    pub(crate) fn counts(&self) -> JobCounts {
        let count = |state| self.items.iter().filter(|item| item.state == state).count() as u64;
        JobCounts {
            done: count(ItemState::Done),
            failed: count(ItemState::Failed),
            gone: count(ItemState::Gone),
            handled: self.items.iter().map(|item| item.handled).sum(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredItem {
    #[serde(rename = "t")]
    topic: String,
    #[serde(rename = "p")]
    partition: u32,
    /// The stream, or the sort key of the letter.
    #[serde(rename = "s")]
    sort: String,
    #[serde(rename = "i")]
    id: ParkId,
    /// The first version of a stream; absent: a letter.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    from: Option<Version>,
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    high: Option<Version>,
    #[serde(rename = "e")]
    events: u64,
    #[serde(rename = "o")]
    state: ItemState,
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    seen: Option<LetterId>,
    #[serde(rename = "d", default)]
    handled: u64,
}

impl From<Item> for StoredItem {
    fn from(item: Item) -> Self {
        let (sort, id, from, high) = match item.target {
            ItemTarget::Stream {
                stream,
                id,
                from,
                high,
            } => (stream.as_str().to_owned(), id, Some(from), Some(high)),
            ItemTarget::Letter { key, id } => {
                (key.sort(), ParkId::from_u128(id.as_u128()), None, None)
            }
        };
        Self {
            topic: item.partition.topic.as_ref().into(),
            partition: item.partition.partition,
            sort,
            id,
            from,
            high,
            events: item.events,
            state: item.state,
            seen: item.seen.map(|seen| LetterId::from_u128(seen.as_u128())),
            handled: item.handled,
        }
    }
}

impl TryFrom<StoredItem> for Item {
    type Error = String;
    fn try_from(item: StoredItem) -> Result<Self, String> {
        let target = match (item.from, item.high) {
            (Some(from), Some(high)) => ItemTarget::Stream {
                stream: StreamId::parse(&item.sort).map_err(|e| e.to_string())?,
                id: item.id,
                from,
                high,
            },
            _ => ItemTarget::Letter {
                key: LetterKey::parse(&item.sort).ok_or("an item is no stream and no letter")?,
                id: LetterId::from_u128(item.id.as_u128()),
            },
        };
        Ok(Self {
            partition: PartitionId::new(item.topic, item.partition),
            target,
            events: item.events,
            state: item.state,
            seen: item.seen.map(|seen| Revision::from_u128(seen.as_u128())),
            handled: item.handled,
        })
    }
}

/// The key of a job's row.
fn job_key(processor: &str, job: JobId) -> RowKey {
    RowKey::new(format!("job/{processor}"), job.to_string())
}
/// The key of a page of a job's items.
fn items_key(processor: &str, job: JobId, page: u32) -> RowKey {
    RowKey::new(format!("job/{processor}/{job}"), format!("{page:08}"))
}

impl Rows {
    /// Returns the row of a job; `None` if there is no such job.
    pub(crate) async fn job_get(
        &self,
        processor: &str,
        job: JobId,
    ) -> Result<Option<Stored<JobRow>>, ControlStoreError> {
        self.get(&job_key(processor, job)).await
    }

    /// Writes the row of a job in place of the write that was `seen`. Jobs are kept as long as the
    /// audit.
    pub(crate) async fn job_put(
        &self,
        processor: &str,
        job: JobId,
        row: JobRow,
        seen: Option<Revision>,
    ) -> Result<PutIf<JobRow>, ControlStoreError> {
        let expires_at = Some(row.at.plus(KEPT));
        let expect = seen.map_or(Expect::Absent, Expect::Revision);
        let key = job_key(processor, job);
        self.put_until(&key, row, expect, expires_at).await
    }

    /// Returns one page of the jobs of a processor, the newest first.
    pub(crate) async fn job_page(
        &self,
        processor: &str,
        after: Option<String>,
    ) -> Result<KeyedPage<JobId, JobRow>, ControlStoreError> {
        let query = RangeQuery::new(format!("job/{processor}"))
            .with_direction(Direction::Descending)
            .with_after(after);
        self.page(&query, |sort| sort.parse().ok()).await
    }

    /// Returns a page of a job's items; `None` if there is no such page.
    pub(crate) async fn items_get(
        &self,
        processor: &str,
        job: JobId,
        page: u32,
    ) -> Result<Option<Stored<ItemPage>>, ControlStoreError> {
        self.get(&items_key(processor, job, page)).await
    }

    /// Writes a page of a job's items in place of the write that was `seen`. `created` is the time
    /// at which the job was created.
    pub(crate) async fn items_put(
        &self,
        processor: &str,
        (job, created): (JobId, Timestamp),
        page: u32,
        items: ItemPage,
        seen: Option<Revision>,
    ) -> Result<PutIf<ItemPage>, ControlStoreError> {
        let expires_at = Some(created.plus(KEPT));
        let expect = seen.map_or(Expect::Absent, Expect::Revision);
        let key = items_key(processor, job, page);
        self.put_until(&key, items, expect, expires_at).await
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
