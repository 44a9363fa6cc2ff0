//! Values that are too large for one row.
//!
//! ```text
//! head    the key itself: "=" and the value,
//!         or "#" and JSON { "c": chunk set, "n": chunks, "l": bytes, "x": note, if there is one },
//!         or "-": deleted
//! chunks  partition chunk/<partition>, sort <sort>\u{1f}<chunk set>\u{1f}<index:05>
//! ```
//! A new value gets a chunk set of its own. Its chunks are written first and the head last. **The
//! value exists if its head does**, so a reader finds the old value or the new one as a whole,
//! wherever the writer crashed. The chunks of the replaced value stay for an hour, for readers that
//! have its head already, and then expire. A crash, or a write whose outcome stays unknown, may
//! leave chunks without a head. They cost storage, and nothing else.
//!
//! A head is never deleted and never written without a condition. A write that arrives late finds
//! another revision than it expects, and cannot bring back a head whose chunks are expiring. Where
//! values come and go without end, the head of a deleted value expires a day later, when no write
//! can still be under way.
//!
//! A list of large values reads their heads only. What a list shows of a value stands at its
//! beginning, up to the first line break. The head of a value in chunks repeats it as its note.
use super::{Stored, rows::Races};
use crate::{
    Clock, IdSource,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, Expect, PutOutcome, RangeQuery, Revision,
        Row, RowKey, shared,
    },
};
use bytes::{Bytes, BytesMut};
use std::{sync::Arc, time::Duration};

/// The time that a reader may take from a head to its last chunk.
const ORPHANED: Duration = Duration::from_secs(3600);
/// The time after which the head of a removed value expires. No write is under way for so long.
const REMOVED: Duration = Duration::from_secs(24 * 3600);
const INLINE: u8 = b'=';
const CHUNKED: u8 = b'#';
const DELETED: u8 = b'-';

/// The content of a head about its chunks.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct ChunkSet {
    /// The id of the chunk set: a fresh revision in hexadecimal digits.
    #[serde(rename = "c")]
    id: String,
    #[serde(rename = "n")]
    chunks: u64,
    #[serde(rename = "l")]
    bytes: u64,
    /// The first line of the value, for lists.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

enum Head {
    Inline(Bytes),
    Chunks(ChunkSet),
    Deleted,
}

/// Rows whose values may be larger than [`Row::MAX_VALUE`]. Such a row must be read and written
/// only through this type.
///
/// A value of up to [`Row::MAX_VALUE`] - 1 bytes is one row. The keys of the chunks need a part of
/// the limits of a key: a partition has at most 1,018 bytes, and a sort key at most 861.
///
/// # Example
/// ```
/// use bytes::Bytes;
/// use foldstream::control::{LargePut, LargeRows};
/// use foldstream::{SystemClock, SystemIds, ports::{Row, RowKey}};
/// use foldstream_testkit::InMemoryControlStore;
/// use std::sync::Arc;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let store = InMemoryControlStore::new();
/// let rows = LargeRows::new(store, Arc::new(SystemIds), Arc::new(SystemClock));
/// let (key, image) = (RowKey::new("images", "7"), Bytes::from(vec![7; 3 * Row::MAX_VALUE]));
/// // `None`: only if there is no value yet.
/// assert!(matches!(rows.put(&key, &image, None).await?, LargePut::Written(_)));
/// assert_eq!(rows.put(&key, &image, None).await?, LargePut::Conflict);
/// let stored = rows.get(&key).await?.ok_or("the value is gone")?;
/// assert_eq!(stored.value, image);
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LargeRows {
    store: Arc<dyn ControlStore>,
    ids: Arc<dyn IdSource>,
    clock: Arc<dyn Clock>,
}

/// The outcome of a conditional put of a large value.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub enum LargePut {
    /// The value was written under this revision.
    Written(Revision),
    /// The value was not written, because the stored one is not as expected.
    Conflict,
}

impl LargeRows {
    /// Creates access to the large rows in this store. The ids make revisions, and the clock sets
    /// the expiry of replaced chunks.
    pub fn new(store: impl ControlStore, ids: Arc<dyn IdSource>, clock: Arc<dyn Clock>) -> Self {
        let store = shared::control_store(store);
        Self { store, ids, clock }
    }

    /// Returns the whole value as it was last written; `None` if there is none.
    ///
    /// # Errors
    /// - `Corrupt` if a chunk is missing although its head still exists.
    /// - `Unavailable` if the value was replaced each time it was read.
    /// - Another [`ControlStoreError`] if the store refuses or fails.
    pub async fn get(&self, key: &RowKey) -> Result<Option<Stored<Bytes>>, ControlStoreError> {
        let Some(mut row) = self.store.get(key).await? else {
            return Ok(None);
        };
        let mut races = Races::default();
        loop {
            let revision = row.revision;
            let value = match head(&row)? {
                Head::Deleted => return Ok(None),
                Head::Inline(value) => Some(value),
                Head::Chunks(set) => self.read(key, &set).await?,
            };
            if let Some(value) = value {
                return Ok(Some(Stored { value, revision }));
            }
            // Between the reads of the head and of the chunks the value was replaced, or it is
            // broken.
            match self.store.get(key).await? {
                None => return Ok(None),
                Some(now) if now.revision == revision => {
                    return Err(corrupt(key, "chunks are missing"));
                }
                // Another writer replaced the value during this read, which begins again.
                Some(now) => {
                    races.lost(key, &*self.ids).await?;
                    row = now;
                }
            }
        }
    }

    /// Writes the value in place of exactly the write that was `seen`. With `None` it is written
    /// only where there is no value.
    ///
    /// # Cancellation
    /// If this future is dropped, the old value or the new one is stored as a whole.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the value cannot be stored, or if the store refuses or fails. Then
    /// the old value or the new one is stored as a whole: [`get`](Self::get) tells which.
    pub async fn put(
        &self,
        key: &RowKey,
        value: &Bytes,
        seen: Option<Revision>,
    ) -> Result<LargePut, ControlStoreError> {
        self.put_noted(key, value, None, seen).await
    }

    /// Writes a value as [`put`](Self::put) does. `note` is its first line, which the head keeps
    /// for lists.
    pub(super) async fn put_noted(
        &self,
        key: &RowKey,
        value: &Bytes,
        note: Option<&str>,
        seen: Option<Revision>,
    ) -> Result<LargePut, ControlStoreError> {
        let old = self.store.get(key).await?;
        // No chunk is written for a condition that cannot hold.
        let Some(expect) = expected(old.as_ref(), seen)? else {
            return Ok(LargePut::Conflict);
        };
        let revision = self.ids.revision();
        chunk_key(key, &ChunkSet::new(revision, value), 0).validate()?;
        if value.len() < Row::MAX_VALUE {
            let row = Row::new(key.clone(), tagged(INLINE, value), revision);
            return self.replace(&row, expect, old).await;
        }
        let mut set = ChunkSet::new(revision, value);
        set.note = note.map(Into::into);
        let json = serde_json::to_vec(&set).map_err(|e| corrupt(key, &e.to_string()))?;
        let row = Row::new(key.clone(), tagged(CHUNKED, &json), revision);
        if let Err(error) = self.write(key, value, &set).await {
            self.remove(key, &set).await;
            return Err(error);
        }
        let put = self.replace(&row, expect, old).await?;
        if put == LargePut::Conflict {
            self.remove(key, &set).await;
        }
        Ok(put)
    }

    /// Deletes the value if it is still the one that was `seen`. Returns false if it is not.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. The call may be repeated.
    pub async fn delete(&self, key: &RowKey, seen: Revision) -> Result<bool, ControlStoreError> {
        let old = self.store.get(key).await?;
        let Some(expect) = expected(old.as_ref(), Some(seen))? else {
            return Ok(false);
        };
        let row = Row::new(key.clone(), tagged(DELETED, &[]), self.ids.revision());
        let put = self.replace(&row, expect, old).await?;
        Ok(put != LargePut::Conflict)
    }

    /// Returns what the head tells of a value: its first line. `None` if there is no value.
    pub(super) async fn first_line(
        &self,
        key: &RowKey,
    ) -> Result<Option<Stored<Bytes>>, ControlStoreError> {
        match self.store.get(key).await? {
            Some(row) => first_line(&row),
            None => Ok(None),
        }
    }

    /// Returns the first lines of one page of values with their sort keys, from their heads, and
    /// the start of the next page.
    pub(super) async fn first_lines(
        &self,
        query: &RangeQuery,
    ) -> Result<(Vec<(String, Stored<Bytes>)>, Option<String>), ControlStoreError> {
        let page = self.store.range(query).await?;
        let mut lines = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            if let Some(line) = first_line(&row)? {
                lines.push((row.key.sort, line));
            }
        }
        Ok((lines, page.next))
    }

    /// Returns the values of one page with their sort keys, whole, and the start of the next page.
    /// A value that is deleted meanwhile is left out.
    pub(super) async fn values(
        &self,
        query: &RangeQuery,
    ) -> Result<(Vec<(String, Stored<Bytes>)>, Option<String>), ControlStoreError> {
        let page = self.store.range(query).await?;
        let mut values = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            let revision = row.revision;
            let value = match head(&row)? {
                Head::Deleted => continue,
                Head::Inline(value) => Some(Stored { value, revision }),
                Head::Chunks(_) => self.get(&row.key).await?,
            };
            values.extend(value.map(|value| (row.key.sort, value)));
        }
        Ok((values, page.next))
    }

    /// Deletes the value, whichever write it is from. Its head expires a day later. Returns false
    /// if there was no value.
    pub(super) async fn remove_value(&self, key: &RowKey) -> Result<bool, ControlStoreError> {
        let mut races = Races::default();
        loop {
            let Some(old) = self.store.get(key).await? else {
                return Ok(false);
            };
            if matches!(head(&old)?, Head::Deleted) {
                return Ok(false);
            }
            let expect = Expect::Revision(old.revision);
            let row = Row::new(key.clone(), tagged(DELETED, &[]), self.ids.revision())
                .with_expiry(Some(self.clock.now().plus(REMOVED)));
            if self.replace(&row, expect, Some(old)).await? != LargePut::Conflict {
                return Ok(true);
            }
            races.lost(key, &*self.ids).await?;
        }
    }

    /// Waits before a value is written again that other processes have changed meanwhile.
    pub(super) async fn lost(
        &self,
        races: &mut Races,
        key: &RowKey,
    ) -> Result<(), ControlStoreError> {
        races.lost(key, &*self.ids).await
    }

    /// Writes a head, and lets the chunks of the previous one expire.
    async fn replace(
        &self,
        row: &Row,
        expect: Expect,
        old: Option<Row>,
    ) -> Result<LargePut, ControlStoreError> {
        let outcome = match self.store.put(row, expect).await {
            // Sent once more, which is harmless because the revision is the same.
            Err(ControlStoreError::Unavailable { .. }) => self.store.put(row, expect).await?,
            answered => answered?,
        };
        Ok(match outcome {
            PutOutcome::Written => {
                self.orphan(&row.key, old).await;
                LargePut::Written(row.revision)
            }
            PutOutcome::Conflict(_) => LargePut::Conflict,
        })
    }

    async fn write(
        &self,
        key: &RowKey,
        value: &Bytes,
        set: &ChunkSet,
    ) -> Result<(), ControlStoreError> {
        let starts = (0..value.len()).step_by(Row::MAX_VALUE);
        for (chunk_key, start) in set.keys(key).zip(starts) {
            let end = value.len().min(start + Row::MAX_VALUE);
            let chunk = Row::new(chunk_key, value.slice(start..end), self.ids.revision());
            // No other writer uses this chunk set.
            let _ = self.store.put(&chunk, Expect::Any).await?;
        }
        Ok(())
    }

    /// Returns the chunks, joined; `None` if one is missing.
    async fn read(&self, key: &RowKey, set: &ChunkSet) -> Result<Option<Bytes>, ControlStoreError> {
        let keys: Vec<_> = set.keys(key).collect();
        let chunks = self.store.get_many(&keys).await?;
        let mut value = BytesMut::new();
        for chunk in chunks {
            match chunk {
                Some(chunk) => value.extend_from_slice(&chunk.value),
                None => return Ok(None),
            }
        }
        if value.len() as u64 != set.bytes {
            return Err(corrupt(key, "its chunks have another length"));
        }
        Ok(Some(value.freeze()))
    }

    /// Lets the chunks of a replaced head expire. If that fails they stay, which costs only
    /// storage.
    async fn orphan(&self, key: &RowKey, old: Option<Row>) {
        let ending = async {
            let Some(Head::Chunks(set)) = old.as_ref().map(head).transpose()? else {
                return Ok(());
            };
            let at = Some(self.clock.now().plus(ORPHANED));
            for chunk_key in set.keys(key) {
                let Some(chunk) = self.store.get(&chunk_key).await? else {
                    continue;
                };
                let ending = Row::new(chunk_key, chunk.value, self.ids.revision()).with_expiry(at);
                // Another writer that replaces this row lets it expire, too.
                let expect = Expect::Revision(chunk.revision);
                let _ = self.store.put(&ending, expect).await?;
            }
            Ok(())
        };
        left_behind(key, ending.await);
    }

    /// Deletes chunks that never had a head.
    async fn remove(&self, key: &RowKey, set: &ChunkSet) {
        let removing = async {
            for chunk_key in set.keys(key) {
                let _ = self.store.delete(&chunk_key, DeleteExpect::Any).await?;
            }
            Ok(())
        };
        left_behind(key, removing.await);
    }
}

impl ChunkSet {
    fn new(revision: Revision, value: &Bytes) -> Self {
        let bytes = value.len() as u64;
        Self {
            id: format!("{:032x}", revision.as_u128()),
            chunks: chunks_of(bytes),
            bytes,
            note: None,
        }
    }
    fn keys<'a>(&'a self, key: &'a RowKey) -> impl Iterator<Item = RowKey> + 'a {
        (0..self.chunks).map(move |index| chunk_key(key, self, index))
    }
}

const fn chunks_of(bytes: u64) -> u64 {
    bytes.div_ceil(Row::MAX_VALUE as u64)
}

fn left_behind(key: &RowKey, cleared: Result<(), ControlStoreError>) {
    if let Err(error) = cleared {
        tracing::warn!(%key, error = crate::chain(&error), "chunks of an older value are left behind");
    }
}

/// Returns the condition on the head for a caller that has seen this value, or none. `None` if the
/// condition cannot hold any more.
fn expected(
    old: Option<&Row>,
    seen: Option<Revision>,
) -> Result<Option<Expect>, ControlStoreError> {
    let Some(old) = old else {
        return Ok(seen.is_none().then_some(Expect::Absent));
    };
    let is_deleted = matches!(head(old)?, Head::Deleted);
    let fits = match seen {
        None => is_deleted,
        Some(seen) => !is_deleted && seen == old.revision,
    };
    Ok(fits.then_some(Expect::Revision(old.revision)))
}

/// Returns the first line of the value of a head; `None` if the value is deleted.
fn first_line(row: &Row) -> Result<Option<Stored<Bytes>>, ControlStoreError> {
    let value = match head(row)? {
        Head::Deleted => return Ok(None),
        Head::Inline(value) => match value.iter().position(|byte| *byte == b'\n') {
            Some(end) => value.slice(..end),
            None => value,
        },
        Head::Chunks(ChunkSet {
            note: Some(note), ..
        }) => note.into(),
        Head::Chunks(_) => return Err(corrupt(&row.key, "its head has no note")),
    };
    let revision = row.revision;
    Ok(Some(Stored { value, revision }))
}

fn tagged(tag: u8, value: &[u8]) -> Bytes {
    let mut tagged = BytesMut::with_capacity(1 + value.len());
    tagged.extend_from_slice(&[tag]);
    tagged.extend_from_slice(value);
    tagged.freeze()
}

fn head(row: &Row) -> Result<Head, ControlStoreError> {
    match row.value.first() {
        Some(&DELETED) => Ok(Head::Deleted),
        Some(&INLINE) => Ok(Head::Inline(row.value.slice(1..))),
        Some(&CHUNKED) => match serde_json::from_slice::<ChunkSet>(&row.value[1..]) {
            Ok(set) if set.chunks == chunks_of(set.bytes) => Ok(Head::Chunks(set)),
            Ok(_) => Err(corrupt(&row.key, "its chunks do not make up its length")),
            Err(e) => Err(corrupt(&row.key, &e.to_string())),
        },
        _ => Err(corrupt(&row.key, "it is no head of a large value")),
    }
}

fn corrupt(key: &RowKey, reason: &str) -> ControlStoreError {
    ControlStoreError::Corrupt {
        key: key.clone(),
        reason: reason.into(),
    }
}

fn chunk_key(key: &RowKey, set: &ChunkSet, index: u64) -> RowKey {
    let partition = format!("chunk/{}", key.partition);
    let sort = format!("{}\u{1f}{}\u{1f}{index:05}", key.sort, set.id);
    RowKey::new(partition, sort)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_head_is_fixed() {
        let value = Bytes::from(vec![0; Row::MAX_VALUE + 1]);
        let set = ChunkSet::new(Revision::from_u128(10), &value);
        let text = serde_json::to_string(&set).unwrap();
        let id = format!("{:0>32}", "a");
        assert_eq!(text, format!(r#"{{"c":"{id}","n":2,"l":262145}}"#));
        let key = chunk_key(&RowKey::new("p", "s"), &set, 1);
        let expected = RowKey::new("chunk/p", format!("s\u{1f}{id}\u{1f}00001"));
        assert_eq!(key, expected);
    }
}
