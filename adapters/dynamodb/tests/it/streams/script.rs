//! A change stream that a test writes: shards, splits, trimming, iterators, and faults.
use async_trait::async_trait;
use foldstream::{Clock, Timestamp, publisher::Notice};
use foldstream_dynamodb::streams::{
    ChangeStream, RecordPage, SequenceNumber, ShardDescription, ShardPage, ShardStart,
    StreamRecord, StreamService, StreamServiceError,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::Instant;

/// The time after which an iterator has expired.
pub(crate) const ITERATOR: Duration = Duration::from_secs(15 * 60);

/// A call of the streams API.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    Stream,
    Shards,
    Iterator(String, ShardStart),
    Records(String),
}

type Fate = dyn Fn(&Call) -> Option<StreamServiceError> + Send + Sync;

#[derive(Default)]
struct Model {
    stream: Option<ChangeStream>,
    shards: BTreeMap<String, Shard>,
    iterators: BTreeMap<String, Iterator>,
    next: u64,
    next_iterator: u64,
    page: usize,
    calls: Vec<(Instant, Call)>,
    fate: Option<Arc<Fate>>,
}

#[derive(Default)]
struct Shard {
    parent: Option<String>,
    records: Vec<StreamRecord>,
    /// The number of records that are deleted.
    trimmed: usize,
    is_closed: bool,
    /// The number of empty pages that come before each page.
    empty_pages: u32,
}

#[derive(Clone)]
struct Iterator {
    shard: String,
    place: usize,
    made: Instant,
    empty_pages: u32,
}

/// The service; clones share the stream.
#[derive(Clone)]
pub(crate) struct Script(Arc<Mutex<Model>>, Arc<TokioClock>);

/// The runtime's clock, which tests pause.
#[derive(Debug)]
pub(crate) struct TokioClock(Timestamp, Instant);
impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.0.plus(self.1.elapsed())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    /// Creates a stream with these root shards, whose pages have two records.
    pub(crate) fn new(roots: &[&str]) -> Self {
        let script = Self(
            Arc::default(),
            Arc::new(TokioClock(Timestamp::now(), Instant::now())),
        );
        script.replace("2026-01-01", roots);
        script.model().page = 2;
        script
    }
    fn model(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap()
    }
    pub(crate) fn clock(&self) -> Arc<TokioClock> {
        self.1.clone()
    }
    /// Replaces the stream by another one, as if it were disabled and enabled again.
    pub(crate) fn replace(&self, label: &str, roots: &[&str]) {
        let mut model = self.model();
        model.stream = Some(ChangeStream {
            arn: format!("arn/{label}"),
            label: label.into(),
        });
        model.shards.clear();
        model.iterators.clear();
        drop(model);
        for root in roots {
            self.add(root, None);
        }
    }
    pub(crate) fn disable(&self) {
        self.model().stream = None;
    }
    /// Adds an open shard.
    pub(crate) fn add(&self, id: &str, parent: Option<&str>) {
        let shard = Shard {
            parent: parent.map(Into::into),
            ..Shard::default()
        };
        self.model().shards.insert(id.into(), shard);
    }
    fn change(&self, id: &str, change: impl FnOnce(&mut Shard)) {
        change(self.model().shards.get_mut(id).unwrap());
    }
    pub(crate) fn close(&self, id: &str) {
        self.change(id, |shard| shard.is_closed = true);
    }
    /// Closes a shard, and adds its children.
    pub(crate) fn split(&self, id: &str, children: &[&str]) {
        self.close(id);
        for child in children {
            self.add(child, Some(id));
        }
    }
    /// Deletes the first records of a shard.
    pub(crate) fn trim(&self, id: &str, records: usize) {
        self.change(id, |shard| shard.trimmed = records);
    }
    /// Deletes a shard with everything in it.
    pub(crate) fn delete(&self, id: &str) {
        self.model().shards.remove(id);
    }
    pub(crate) fn set_empty_pages(&self, id: &str, pages: u32) {
        self.change(id, |shard| shard.empty_pages = pages);
    }
    /// Writes a record that was made this long ago.
    pub(crate) fn write_old(&self, id: &str, notice: Option<Notice>, age: Duration) -> u64 {
        let mut model = self.model();
        model.next += 1;
        let next = model.next;
        let age = i64::try_from(age.as_micros()).unwrap();
        let record = StreamRecord {
            sequence: SequenceNumber::new(next.to_string()),
            created_at: Some(Timestamp::from_micros(self.1.now().as_micros() - age)),
            notice,
        };
        let shard = model.shards.get_mut(id).unwrap();
        assert!(!shard.is_closed, "{id} is closed");
        shard.records.push(record);
        next
    }
    pub(crate) fn write(&self, id: &str, notice: Option<Notice>) -> u64 {
        self.write_old(id, notice, Duration::ZERO)
    }
    pub(crate) fn open_shards(&self) -> Vec<String> {
        let model = self.model();
        let open = model.shards.iter().filter(|(_, shard)| !shard.is_closed);
        open.map(|(id, _)| id.clone()).collect()
    }
    /// Sets the failures from now on.
    pub(crate) fn set_fate(
        &self,
        fate: impl Fn(&Call) -> Option<StreamServiceError> + Send + Sync + 'static,
    ) {
        self.model().fate = Some(Arc::new(fate));
    }
    pub(crate) fn heal(&self) {
        self.model().fate = None;
    }
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.model()
            .calls
            .iter()
            .map(|(_, call)| call.clone())
            .collect()
    }
    /// Returns the times of the requests for records of a shard.
    pub(crate) fn reads(&self, id: &str) -> Vec<Instant> {
        let model = self.model();
        let reads = model
            .calls
            .iter()
            .filter(|(_, call)| *call == Call::Records(id.into()));
        reads.map(|(at, _)| *at).collect()
    }
    pub(crate) fn forget_calls(&self) {
        self.model().calls.clear();
    }

    async fn call(&self, call: Call) -> Result<(), StreamServiceError> {
        let fate = {
            let mut model = self.model();
            model.calls.push((Instant::now(), call.clone()));
            model.fate.clone()
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        fate.and_then(|fate| fate(&call)).map_or(Ok(()), Err)
    }
    fn shard_of(&self, iterator: &str) -> String {
        let model = self.model();
        model
            .iterators
            .get(iterator)
            .map_or_else(String::new, |i| i.shard.clone())
    }
}

impl Model {
    fn keep(&mut self, iterator: Iterator) -> String {
        self.next_iterator += 1;
        let name = format!("iterator-{}", self.next_iterator);
        self.iterators.insert(name.clone(), iterator);
        name
    }
}

#[async_trait]
impl StreamService for Script {
    async fn stream(&self) -> Result<Option<ChangeStream>, StreamServiceError> {
        self.call(Call::Stream).await?;
        Ok(self.model().stream.clone())
    }

    async fn shards(
        &self,
        _stream: &ChangeStream,
        after: Option<&str>,
    ) -> Result<ShardPage, StreamServiceError> {
        self.call(Call::Shards).await?;
        let model = self.model();
        let all = model.shards.iter();
        let rest: Vec<ShardDescription> = all
            .filter(|(id, _)| after.is_none_or(|after| id.as_str() > after))
            .map(|(id, shard)| ShardDescription {
                id: id.clone(),
                parent: shard.parent.clone(),
            })
            .collect();
        let page: Vec<_> = rest.iter().take(2).cloned().collect();
        let next = (rest.len() > 2).then(|| page[1].id.clone());
        Ok(ShardPage { shards: page, next })
    }

    async fn iterator(
        &self,
        _stream: &ChangeStream,
        shard: &str,
        start: &ShardStart,
    ) -> Result<String, StreamServiceError> {
        self.call(Call::Iterator(shard.into(), start.clone()))
            .await?;
        let mut model = self.model();
        let found = model.shards.get(shard).ok_or(StreamServiceError::Gone)?;
        let place = match start {
            ShardStart::Horizon => found.trimmed,
            ShardStart::After(sequence) => {
                let place = found.records.iter().position(|r| r.sequence > *sequence);
                place.unwrap_or(found.records.len())
            }
        };
        if place < found.trimmed {
            return Err(StreamServiceError::Trimmed);
        }
        let empty_pages = found.empty_pages;
        Ok(model.keep(Iterator {
            shard: shard.into(),
            place,
            made: Instant::now(),
            empty_pages,
        }))
    }

    async fn records(&self, iterator: &str) -> Result<RecordPage, StreamServiceError> {
        self.call(Call::Records(self.shard_of(iterator))).await?;
        let mut model = self.model();
        let page = model.page;
        let Some(found) = model.iterators.get(iterator).cloned() else {
            return Err(StreamServiceError::Gone);
        };
        if found.made.elapsed() >= ITERATOR {
            return Err(StreamServiceError::ExpiredIterator);
        }
        let shard = model
            .shards
            .get(&found.shard)
            .ok_or(StreamServiceError::Gone)?;
        if found.place < shard.trimmed {
            return Err(StreamServiceError::Trimmed);
        }
        let mut next = Iterator {
            made: Instant::now(),
            ..found
        };
        let mut records = Vec::new();
        if next.empty_pages > 0 {
            next.empty_pages -= 1;
        } else {
            records = shard.records[next.place..]
                .iter()
                .take(page)
                .cloned()
                .collect();
            next.place += records.len();
            next.empty_pages = shard.empty_pages;
        }
        let is_at_end = shard.is_closed && next.place == shard.records.len();
        let next = (!is_at_end).then(|| model.keep(next));
        model.iterators.remove(iterator);
        Ok(RecordPage { records, next })
    }
}
