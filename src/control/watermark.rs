//! Watermarks: the last commit of each stream that the bus has acknowledged.
use super::{PutIf, Rows, Stored, rows::Races};
use crate::{
    CommitId, IdSource, StreamId, Version,
    ports::{ControlStore, ControlStoreError, Expect, RowKey, shared},
};
use std::sync::Arc;

/// The last commit of a stream that the bus has acknowledged. It is always a commit end.
///
/// It is stored as `{"v": version, "c": commit id}`. The id is stored with the version, since a
/// restored backup reuses version numbers for another history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Watermark {
    /// The version of the commit's last event.
    #[serde(rename = "v")]
    pub version: Version,
    /// The id of the commit.
    #[serde(rename = "c")]
    pub commit_id: CommitId,
}
impl Watermark {
    /// Creates a watermark at the end of this commit.
    pub const fn new(version: Version, commit_id: CommitId) -> Self {
        Self { version, commit_id }
    }
}

/// The rows `wm/<shard>`, stream -> [`Watermark`], in 64 shards by [`StreamId::shard`]. They only
/// move forward, except by [`RestoreRepair`](super::RestoreRepair).
///
/// # Example
/// ```
/// use foldstream::control::{Watermark, Watermarks};
/// use foldstream::{CommitId, StreamId, SystemIds, Version};
/// use foldstream_testkit::InMemoryControlStore;
/// use std::sync::Arc;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let watermarks = Watermarks::new(InMemoryControlStore::new(), Arc::new(SystemIds));
/// let cart = StreamId::new("cart", "7")?;
/// let at = |version| Watermark::new(Version::new(version), CommitId::from_u128(version.into()));
///
/// let first = watermarks.advance(&cart, None, at(3)).await?;
/// watermarks.advance(&cart, Some(first), at(5)).await?;
/// // A process that knows less does not move the watermark back.
/// let now = watermarks.advance(&cart, None, at(4)).await?;
/// assert_eq!(now.value, at(5));
/// # Ok::<(), foldstream::BoxError>(())
/// # })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Watermarks {
    rows: Rows,
}

impl Watermarks {
    /// The number of partitions over which the rows are spread. It determines stored keys, so it
    /// never changes.
    pub const SHARDS: u32 = 64;

    /// Creates access to the watermarks in this store.
    pub fn new(store: impl ControlStore, ids: Arc<dyn IdSource>) -> Self {
        Self::over(Rows::new(shared::control_store(store), ids))
    }

    pub(crate) const fn over(rows: Rows) -> Self {
        Self { rows }
    }

    /// Returns the key of a stream's row.
    ///
    /// # Example
    /// ```
    /// use foldstream::{StreamId, control::Watermarks};
    /// let cart = StreamId::new("cart", "7")?;
    /// let key = Watermarks::key(&cart);
    /// assert_eq!(key.partition, format!("wm/{}", cart.shard(Watermarks::SHARDS)));
    /// assert_eq!(key.sort, "cart#7");
    /// # Ok::<(), foldstream::InvalidStreamId>(())
    /// ```
    pub fn key(stream: &StreamId) -> RowKey {
        let shard = stream.shard(Self::SHARDS);
        RowKey::new(Self::partition(shard), stream.as_str())
    }
    /// Returns the partition of the rows of one shard.
    pub(super) fn partition(shard: u32) -> String {
        format!("wm/{shard}")
    }

    /// Returns the watermark of a stream; `None` before its first commit is acknowledged.
    ///
    /// # Errors
    /// - `Corrupt` if the row is not a watermark.
    /// - Another [`ControlStoreError`] if the store refuses or fails.
    pub async fn get(
        &self,
        stream: &StreamId,
    ) -> Result<Option<Stored<Watermark>>, ControlStoreError> {
        self.rows.get(&Self::key(stream)).await
    }

    /// Moves the watermark forward to `to`, and returns where it is now: at `to`, or where another
    /// process has moved it, at the same version or a higher one.
    ///
    /// `seen` is the watermark that the caller last knew; `None` if it knew of no row. If `seen` is
    /// at `to` or after it already, it is returned without a call to the store.
    ///
    /// At the same version the commit ids may differ. Then there are two histories, and the caller
    /// must stop. If the future is dropped, the watermark is moved or not.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. After `Unavailable` the watermark may
    /// have been moved, and a second call with the same `seen` is safe.
    pub async fn advance(
        &self,
        stream: &StreamId,
        seen: Option<Stored<Watermark>>,
        to: Watermark,
    ) -> Result<Stored<Watermark>, ControlStoreError> {
        let key = Self::key(stream);
        let (mut seen, mut races) = (seen, Races::default());
        loop {
            if let Some(theirs) = seen.filter(|s| s.value.version >= to.version) {
                return Ok(theirs);
            }
            let expect = seen.map_or(Expect::Absent, |s| Expect::Revision(s.revision));
            match self.rows.put(&key, to, expect).await? {
                PutIf::Written(ours) => return Ok(ours),
                PutIf::Conflict(theirs) => seen = theirs,
            }
            if seen.is_none_or(|s| s.value.version < to.version) {
                self.rows.lost(&mut races, &key).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_watermark_is_fixed() {
        let watermark = Watermark::new(Version::new(7), CommitId::from_u128(0xAB));
        let text = r#"{"v":7,"c":"00000000-0000-0000-0000-0000000000ab"}"#;
        assert_eq!(serde_json::to_string(&watermark).unwrap(), text);
        let newer = r#"{"v":7,"c":"00000000-0000-0000-0000-0000000000ab","x":true}"#;
        assert_eq!(serde_json::from_str::<Watermark>(newer).unwrap(), watermark);
    }

    #[test]
    fn a_stream_has_its_row_in_the_shard_of_its_hash() {
        let stream = StreamId::new("cart", "c-1").unwrap();
        let key = Watermarks::key(&stream);
        assert_eq!(
            (key.partition.as_str(), key.sort.as_str()),
            ("wm/55", "cart#c-1")
        );
    }
}
