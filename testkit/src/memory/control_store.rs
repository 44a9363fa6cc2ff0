//! The in-memory control store.
use super::lock;
use async_trait::async_trait;
use foldstream::{
    Clock, SystemClock, Timestamp,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Direction, Expect,
        PutOutcome, RangeQuery, Row, RowKey, RowPage, SortBounds,
    },
};
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex},
};

/// The rows by partition, then by sort key. Two maps let a look-up by `&str` allocate nothing.
type Rows = BTreeMap<String, BTreeMap<String, Row>>;

/// A [`ControlStore`] in memory.
///
/// The store keeps its rows until the last clone of the `Arc` is dropped. Expiry is kept in whole
/// seconds, rounded up, and bounds of ranges have at most 1,024 bytes, as in DynamoDB. All limits
/// of keys and values are those of the port.
///
/// Expired rows are invisible. They stay in memory until they are overwritten, deleted, or removed
/// by [`delete_expired`](Self::delete_expired), because DynamoDB also deletes them late.
///
/// # Example
/// ```
/// use foldstream::ports::{ControlStore, Expect, PutOutcome, Revision, Row, RowKey};
/// use foldstream_testkit::InMemoryControlStore;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let rows = InMemoryControlStore::new();
/// let row = Row::new(RowKey::new("leases", "billing"), "1", Revision::from_u128(7));
/// assert_eq!(rows.put(&row, Expect::Absent).await?, PutOutcome::Written);
/// assert_eq!(rows.get(&row.key).await?, Some(row));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Debug)]
pub struct InMemoryControlStore {
    rows: Mutex<Rows>,
    clock: Arc<dyn Clock>,
}

impl InMemoryControlStore {
    /// The bytes of values after which a page ends, as pages of DynamoDB queries do.
    const PAGE_BYTES: usize = 1024 * 1024;

    /// Creates an empty store whose rows expire by the system's clock.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// Creates an empty store whose rows expire by this clock.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::default(),
            clock,
        })
    }

    /// Deletes the expired rows from memory, as a backend does some time after they expire.
    ///
    /// Callers see no difference, because expired rows are invisible.
    pub fn delete_expired(&self) {
        let now = self.clock.now();
        lock(&self.rows).retain(|_, rows| {
            rows.retain(|_, row| is_live(row, now));
            !rows.is_empty()
        });
    }
}

fn is_live(row: &Row, now: Timestamp) -> bool {
    row.expires_at.is_none_or(|at| now < at)
}

/// Returns the row with its expiry rounded up to whole seconds, as DynamoDB keeps it.
fn whole_seconds(row: &Row) -> Row {
    const SECOND: i64 = 1_000_000;
    let round_up = |at: Timestamp| {
        let micros = at.as_micros();
        let second = micros.div_euclid(SECOND) + i64::from(micros.rem_euclid(SECOND) > 0);
        Timestamp::from_micros(second.saturating_mul(SECOND))
    };
    row.clone().with_expiry(row.expires_at.map(round_up))
}

fn live<'a>(rows: &'a Rows, key: &RowKey, now: Timestamp) -> Option<&'a Row> {
    let row = rows.get(&key.partition)?.get(&key.sort)?;
    is_live(row, now).then_some(row)
}

/// Returns the smallest text after all texts that start with `prefix`, or `None` if there is none.
///
/// UTF-8 sorts by characters, so the last character that has a successor is replaced by it.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut rest = prefix.chars();
    while let Some(last) = rest.next_back() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            let mut text = rest.as_str().to_owned();
            text.push(next);
            return Some(text);
        }
    }
    None
}

/// Refuses bounds that are longer than any sort key of DynamoDB, as the DynamoDB control store
/// does.
fn check_bounds(query: &RangeQuery) -> Result<(), ControlStoreError> {
    const MAX: usize = 1024;
    let (low, high) = match &query.bounds {
        SortBounds::Prefix(prefix) => (Some(prefix), None),
        SortBounds::Between(low, high) => (Some(low), Some(high)),
        _ => (None, None),
    };
    let mut bounds = [low, high, query.after.as_ref()].into_iter().flatten();
    match bounds.find(|bound| bound.len() > MAX) {
        Some(long) => Err(ControlStoreError::Invalid {
            reason: format!(
                "a bound of a range has at most {MAX} bytes, this one has {}",
                long.len()
            ),
        }),
        None => Ok(()),
    }
}

/// The ends of a range of sort keys.
type Ends<'a> = (Bound<&'a str>, Bound<String>);

/// Returns the range of sort keys that a query still has to read, or `None` if it is empty.
fn bounds(query: &RangeQuery) -> Result<Option<Ends<'_>>, ControlStoreError> {
    let (mut low, mut high) = match &query.bounds {
        SortBounds::All => (Bound::Unbounded, Bound::Unbounded),
        SortBounds::Prefix(prefix) => (
            Bound::Included(prefix.as_str()),
            after_prefix(prefix).map_or(Bound::Unbounded, Bound::Excluded),
        ),
        SortBounds::Between(first, last) => (
            Bound::Included(first.as_str()),
            Bound::Included(last.clone()),
        ),
        other => {
            return Err(ControlStoreError::Invalid {
                reason: format!("this store does not know the bounds {other:?}"),
            });
        }
    };
    if let Some(after) = query.after.as_deref() {
        match (query.direction, &low, &high) {
            // `after` lies before the bounds in the direction of the query, so the bounds decide.
            (Direction::Ascending, Bound::Included(first), _) if after < *first => {}
            (Direction::Descending, _, Bound::Included(last) | Bound::Excluded(last))
                if after > last.as_str() => {}
            (Direction::Ascending, ..) => low = Bound::Excluded(after),
            (Direction::Descending, ..) => high = Bound::Excluded(after.to_owned()),
        }
    }
    // `BTreeMap::range` panics if the start is after the end.
    let is_empty = match (low, &high) {
        (Bound::Included(low), Bound::Included(high)) => low > high.as_str(),
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => low >= high.as_str(),
        _ => false,
    };
    Ok((!is_empty).then_some((low, high)))
}

/// Returns one page of a range.
///
/// The limit also counts expired rows that the page does not show, as in production. So a page
/// before the last one may be empty.
fn page<'a>(
    query: &RangeQuery,
    now: Timestamp,
    rows: impl Iterator<Item = (&'a String, &'a Row)>,
) -> RowPage {
    let mut rows = rows.peekable();
    let mut found = Vec::new();
    let (mut looked_at, mut bytes) = (0, 0);
    while let Some((sort, row)) = rows.next() {
        looked_at += 1;
        if is_live(row, now) {
            bytes += row.value.len();
            found.push(row.clone());
        }
        let is_full = looked_at == query.limit.get() || bytes >= InMemoryControlStore::PAGE_BYTES;
        if is_full && rows.peek().is_some() {
            return RowPage::new(found, Some(sort.clone()));
        }
    }
    RowPage::new(found, None)
}

#[async_trait]
impl ControlStore for InMemoryControlStore {
    async fn get(&self, key: &RowKey) -> Result<Option<Row>, ControlStoreError> {
        key.validate()?;
        Ok(live(&lock(&self.rows), key, self.clock.now()).cloned())
    }

    async fn get_many(&self, keys: &[RowKey]) -> Result<Vec<Option<Row>>, ControlStoreError> {
        keys.iter().try_for_each(RowKey::validate)?;
        let (rows, now) = (lock(&self.rows), self.clock.now());
        Ok(keys
            .iter()
            .map(|key| live(&rows, key, now).cloned())
            .collect())
    }

    async fn put(&self, row: &Row, expect: Expect) -> Result<PutOutcome, ControlStoreError> {
        row.validate()?;
        let (mut rows, now) = (lock(&self.rows), self.clock.now());
        let current = live(&rows, &row.key, now);
        let found = current.map(|row| row.revision);
        // The stored row has the caller's own revision: an earlier attempt was applied and its
        // answer was lost.
        if found == Some(row.revision) {
            return Ok(PutOutcome::Written);
        }
        let is_met = match expect {
            Expect::Any => true,
            Expect::Absent => found.is_none(),
            Expect::Revision(revision) => found == Some(revision),
        };
        if !is_met {
            return Ok(PutOutcome::Conflict(current.cloned()));
        }
        let row = &whole_seconds(row);
        let RowKey {
            partition, sort, ..
        } = &row.key;
        match rows.get_mut(partition) {
            Some(rows) => rows.insert(sort.clone(), row.clone()),
            None => rows
                .entry(partition.clone())
                .or_default()
                .insert(sort.clone(), row.clone()),
        };
        Ok(PutOutcome::Written)
    }

    async fn delete(
        &self,
        key: &RowKey,
        expect: DeleteExpect,
    ) -> Result<DeleteOutcome, ControlStoreError> {
        key.validate()?;
        let (mut rows, now) = (lock(&self.rows), self.clock.now());
        let current = live(&rows, key, now);
        if let DeleteExpect::Revision(revision) = expect
            && current.map(|row| row.revision) != Some(revision)
        {
            return Ok(DeleteOutcome::Conflict(current.cloned()));
        }
        if let Some(partition) = rows.get_mut(&key.partition) {
            partition.remove(&key.sort);
            if partition.is_empty() {
                rows.remove(&key.partition);
            }
        }
        Ok(DeleteOutcome::Deleted)
    }

    async fn range(&self, query: &RangeQuery) -> Result<RowPage, ControlStoreError> {
        // Checks only the partition, since the sort key is valid.
        RowKey::new(query.partition.as_str(), "-").validate()?;
        check_bounds(query)?;
        let (rows, now) = (lock(&self.rows), self.clock.now());
        let (Some(rows), Some(bounds)) = (rows.get(&query.partition), bounds(query)?) else {
            return Ok(RowPage::new(Vec::new(), None));
        };
        let (low, high) = &bounds;
        let rows = rows.range::<str, _>((*low, high.as_ref().map(String::as_str)));
        Ok(match query.direction {
            Direction::Ascending => page(query, now, rows),
            Direction::Descending => page(query, now, rows.rev()),
        })
    }
}
