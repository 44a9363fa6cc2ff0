//! A control store for the unit tests of rows. The testkit's depends on this crate as users see it,
//! so that unit tests cannot use it.
use crate::{
    Clock, CommitId, IdSource, Timestamp,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Direction, Expect,
        PutOutcome, RangeQuery, Revision, Row, RowKey, RowPage, SortBounds,
    },
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The chance of each fault of a call: one in this many; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chaos {
    pub(crate) lose_request: u32,
    pub(crate) lose_reply: u32,
    /// Every call takes up to this time.
    pub(crate) delay: Duration,
}

/// A store in memory whose calls may be lost, by a seed. It is the clock and the source of ids,
/// too: its time is that of tokio.
#[derive(Debug)]
pub(crate) struct TestStore {
    rows: Mutex<BTreeMap<(String, String), Row>>,
    random: Mutex<fastrand::Rng>,
    chaos: Mutex<Chaos>,
    /// The faults of the next writes, before those of the chaos.
    script: Mutex<Vec<Lost>>,
    start: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Request,
    Reply,
}

impl TestStore {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            chaos: Mutex::default(),
            script: Mutex::default(),
            start: Instant::now(),
        })
    }
    pub(crate) fn set_chaos(&self, chaos: Chaos) {
        *lock(&self.chaos) = chaos;
    }
    /// Loses the next writes like this.
    pub(crate) fn lose(&self, lost: impl IntoIterator<Item = Lost>) {
        lock(&self.script).extend(lost);
    }
    pub(crate) fn random(&self, below: u64) -> u64 {
        lock(&self.random).u64(0..below)
    }
    /// Returns the keys and values of a partition, as text.
    pub(crate) fn texts(&self, partition: &str) -> Vec<(String, String)> {
        let rows = lock(&self.rows);
        let of = rows
            .iter()
            .filter(|((p, _), row)| p == partition && self.is_live(row));
        of.map(|((_, sort), row)| {
            (
                sort.clone(),
                String::from_utf8_lossy(&row.value).into_owned(),
            )
        })
        .collect()
    }
    pub(crate) fn partitions(&self) -> Vec<String> {
        let mut all: Vec<_> = lock(&self.rows).keys().map(|(p, _)| p.clone()).collect();
        all.dedup();
        all
    }
    fn is_live(&self, row: &Row) -> bool {
        row.expires_at.is_none_or(|at| self.now() < at)
    }
    fn live(&self, key: &RowKey) -> Option<Row> {
        let rows = lock(&self.rows);
        let found = rows.get(&(key.partition.clone(), key.sort.clone()));
        found.filter(|row| self.is_live(row)).cloned()
    }

    async fn pass(&self, is_write: bool) -> (bool, bool) {
        let chaos = *lock(&self.chaos);
        let hit = |one_in: u32| one_in > 0 && self.random(one_in.into()) == 0;
        if !chaos.delay.is_zero() {
            let micros = self.random(chaos.delay.as_micros().try_into().unwrap_or(u64::MAX));
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        if is_write && !lock(&self.script).is_empty() {
            let lost = lock(&self.script).remove(0);
            return (lost == Lost::Request, lost == Lost::Reply);
        }
        (hit(chaos.lose_request), is_write && hit(chaos.lose_reply))
    }
}

fn lost() -> ControlStoreError {
    ControlStoreError::Unavailable {
        source: "no answer".into(),
    }
}

impl Clock for TestStore {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000).plus(self.start.elapsed())
    }
}
impl IdSource for TestStore {
    fn commit_id(&self) -> CommitId {
        let time = u128::from(self.now().as_micros().unsigned_abs());
        CommitId::from_u128(time << 64 | u128::from(self.random(u64::MAX)))
    }
    fn revision(&self) -> Revision {
        Revision::from_u128(lock(&self.random).u128(..))
    }
}

#[async_trait]
impl ControlStore for TestStore {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        match self.pass(false).await {
            (true, _) => Err(lost()),
            _ => Ok(self.live(key)),
        }
    }
    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        match self.pass(false).await {
            (true, _) => Err(lost()),
            _ => Ok(keys.iter().map(|key| self.live(key)).collect()),
        }
    }
    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        row.validate()?;
        let (lose_request, lose_reply) = self.pass(true).await;
        if lose_request {
            return Err(lost());
        }
        let found = self.live(&row.key);
        let is_met = match expect {
            Expect::Any => true,
            Expect::Absent => found.is_none(),
            Expect::Revision(seen) => found.as_ref().is_some_and(|row| row.revision == seen),
        };
        let is_repeat = found
            .as_ref()
            .is_some_and(|found| found.revision == row.revision);
        if is_met && !is_repeat {
            let key = (row.key.partition.clone(), row.key.sort.clone());
            lock(&self.rows).insert(key, row.clone());
        }
        match (lose_reply, is_met || is_repeat) {
            (true, _) => Err(lost()),
            (false, true) => Ok(PutOutcome::Written),
            (false, false) => Ok(PutOutcome::Conflict(found)),
        }
    }
    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        let (lose_request, lose_reply) = self.pass(true).await;
        if lose_request {
            return Err(lost());
        }
        let found = self.live(key);
        let is_met = match expect {
            DeleteExpect::Any => true,
            DeleteExpect::Revision(seen) => found.as_ref().is_some_and(|row| row.revision == seen),
        };
        if is_met {
            lock(&self.rows).remove(&(key.partition.clone(), key.sort.clone()));
        }
        match (lose_reply, is_met) {
            (true, _) => Err(lost()),
            (false, true) => Ok(DeleteOutcome::Deleted),
            (false, false) => Ok(DeleteOutcome::Conflict(found)),
        }
    }
    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        if self.pass(false).await.0 {
            return Err(lost());
        }
        let within = |sort: &str| match &query.bounds {
            SortBounds::All => true,
            SortBounds::Prefix(prefix) => sort.starts_with(prefix.as_str()),
            SortBounds::Between(first, last) => first.as_str() <= sort && sort <= last.as_str(),
        };
        let is_descending = query.direction == Direction::Descending;
        let is_next = |sort: &str| {
            query.after.as_deref().is_none_or(|after| {
                if is_descending {
                    sort < after
                } else {
                    sort > after
                }
            })
        };
        let rows = lock(&self.rows);
        let of = rows.iter().filter(|((partition, sort), row)| {
            *partition == query.partition && within(sort) && is_next(sort) && self.is_live(row)
        });
        let mut found: Vec<Row> = of.map(|(_, row)| row.clone()).collect();
        if is_descending {
            found.reverse();
        }
        let limit = usize::try_from(query.limit.get()).unwrap_or(usize::MAX);
        let is_last = found.len() <= limit;
        found.truncate(limit);
        let next = found.last().map(|row| row.key.sort.clone());
        Ok(RowPage::new(found, next.filter(|_| !is_last)))
    }
}
