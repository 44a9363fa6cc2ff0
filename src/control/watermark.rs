//! Watermarks: the last commit of each stream that the bus has acknowledged.
use super::{
    KeyedPage, PublisherName, PutIf, Rows, Stored,
    publisher_rows::shard_partition,
    rows::{Races, decode},
};
use crate::{
    CommitId, IdSource, StreamId, Version,
    ports::{ControlStore, ControlStoreError, Expect, RangeQuery, RowKey, shared},
};
use std::{num::NonZeroU32, sync::Arc};

/// The last commit of a stream that the bus has acknowledged. It is always a commit end.
///
/// It is stored as `{"v": version, "c": commit id, "p": last record}`. The id is stored with the
/// version, since a restored backup reuses version numbers for another history. `p` is absent if
/// the commit's last event has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Watermark {
    /// The version of the commit's last event.
    #[serde(rename = "v")]
    pub version: Version,
    /// The id of the commit.
    #[serde(rename = "c")]
    pub commit_id: CommitId,
    /// The last version that has a record in the topic, if that is not `version`.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    record: Option<Version>,
}
impl Watermark {
    /// Creates a watermark at the end of this commit, whose last event has a record.
    pub const fn new(version: Version, commit_id: CommitId) -> Self {
        Self {
            version,
            commit_id,
            record: None,
        }
    }
    /// Sets the last version that has a record in the topic; [`Version::NONE`] if none has.
    ///
    /// It is below the watermark's own version if the last events stay out of the topic, because
    /// they are private, were skipped, or are from before a bootstrap.
    #[must_use]
    pub fn with_last_record(mut self, version: Version) -> Self {
        self.record = (version != self.version).then_some(version);
        self
    }
    /// Returns the last version of the stream that has a record in the topic. The next record names
    /// it in `ce_fsprev` if the two versions do not follow each other.
    pub fn last_record(&self) -> Version {
        self.record.unwrap_or(self.version)
    }
    /// Returns true if the other watermark is at the end of the same commit.
    pub fn is_same_commit(&self, other: &Self) -> bool {
        (self.version, self.commit_id) == (other.version, other.commit_id)
    }
    /// Returns this watermark lowered to a commit of the same history. What is known about the last
    /// record stays known.
    pub(super) fn lowered_to(&self, version: Version, commit_id: CommitId) -> Self {
        let lowered = Self::new(version, commit_id);
        match self.record {
            Some(record) if record < version => lowered.with_last_record(record),
            _ => lowered,
        }
    }
}

/// The rows `wm/<shard>`, stream -> [`Watermark`], in 64 shards by [`StreamId::shard`]. They only
/// move forward, except by [`RestoreRepair`](super::RestoreRepair). A named publisher has rows of
/// its own, `wm/<name>/<shard>`.
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
    name: Option<PublisherName>,
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
        Self { rows, name: None }
    }
    /// Selects the watermarks of a publisher with this name, which has rows of its own.
    #[must_use]
    pub fn of_publisher(mut self, name: PublisherName) -> Self {
        self.name = Some(name);
        self
    }

    /// Returns the key of the row of a stream, for the publisher without a name.
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
    /// Returns the partition of the rows of one shard, for the publisher without a name.
    pub(super) fn partition(shard: u32) -> String {
        format!("wm/{shard}")
    }
    fn row_key(&self, stream: &StreamId) -> RowKey {
        let shard = stream.shard(Self::SHARDS);
        RowKey::new(
            shard_partition("wm", self.name.as_ref(), shard),
            stream.as_str(),
        )
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
        self.rows.get(&self.row_key(stream)).await
    }

    /// Returns the watermarks of several streams at once, in their order.
    pub(crate) async fn get_many(
        &self,
        streams: impl Iterator<Item = &StreamId>,
    ) -> Result<Vec<Option<Stored<Watermark>>>, ControlStoreError> {
        let keys: Vec<_> = streams.map(|stream| self.row_key(stream)).collect();
        let found = self.rows.get_raw(&keys).await?.into_iter();
        found.map(|row| row.map(decode).transpose()).collect()
    }

    /// Returns one page of at most `limit` watermarks of a shard.
    pub(crate) async fn page(
        &self,
        shard: u32,
        after: Option<String>,
        limit: NonZeroU32,
    ) -> Result<KeyedPage<StreamId, Watermark>, ControlStoreError> {
        let query = RangeQuery::new(shard_partition("wm", self.name.as_ref(), shard))
            .with_after(after)
            .with_limit(limit);
        self.rows
            .page(&query, |sort| StreamId::parse(sort).ok())
            .await
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
        let key = self.row_key(stream);
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
        let private = watermark.with_last_record(Version::new(5));
        let text = r#"{"v":7,"c":"00000000-0000-0000-0000-0000000000ab","p":5}"#;
        assert_eq!(serde_json::to_string(&private).unwrap(), text);
        assert_eq!(serde_json::from_str::<Watermark>(text).unwrap(), private);
        assert_eq!(private.last_record(), Version::new(5));
        assert!(private.is_same_commit(&watermark) && private != watermark);
        assert_eq!(private.with_last_record(Version::new(7)), watermark);
    }

    #[test]
    fn a_lowered_watermark_keeps_the_last_record_that_is_below_it() {
        let (at, id) = (|v| Version::new(v), CommitId::from_u128(1));
        let high = Watermark::new(at(9), id).with_last_record(at(4));
        let lowered = |version| high.lowered_to(at(version), id).last_record();
        assert_eq!((lowered(6), lowered(4), lowered(2)), (at(4), at(4), at(2)));
    }

    #[test]
    fn a_named_publisher_has_rows_of_its_own() {
        let store = super::super::test_store::TestStore::new(1);
        let watermarks = Watermarks::new(store.clone(), store);
        let stream = StreamId::new("cart", "c-1").unwrap();
        assert_eq!(watermarks.row_key(&stream), Watermarks::key(&stream));
        let named = watermarks.of_publisher("audit".parse().unwrap());
        assert_eq!(named.row_key(&stream).partition, "wm/audit/55");
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
