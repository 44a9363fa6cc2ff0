//! The rows of a publisher besides its watermarks.
//!
//! ```text
//! dirty/<shard>   <stream> -> DirtyRow, until the stream is published
//! skip/<shard>    <stream>\u{1f}<version:020> -> SkipRow, never deleted
//! pub             bootstrap -> BootstrapRow
//! pub             sweep -> a lease: which process retries the dirty streams
//! pub             reconcile -> ReconcileRow
//! pub             inst/<id> -> PublisherInstanceRow: the status of a process that publishes
//! pub             poller/.. -> leases: which poller walks through a segment of the list
//! ```
//! The rows about streams are in the same shards as the watermarks. A publisher with a name has
//! rows of its own: `dirty/<name>/<shard>`, `skip/<name>/<shard>`, `pub/<name>`.
mod bootstrap;
mod dirty;
mod instance;
mod poller;
mod reconcile;
mod skip;

pub use bootstrap::BootstrapMode;
pub(crate) use bootstrap::BootstrapRow;
pub use dirty::DirtyReason;
pub(crate) use dirty::DirtyRow;
pub(crate) use instance::{PublisherInstanceRow, TopicNumbers};
pub(crate) use poller::PollerRows;
pub(crate) use reconcile::{ReconcileRow, ReconcileRun};
pub(crate) use skip::SkipRow;

use super::{Rows, Watermarks};
use crate::{StreamId, ports::RowKey};
use std::{fmt, str::FromStr, sync::Arc};

/// The name of a publisher that runs beside the one without a name, and has rows of its own.
///
/// # Example
/// ```
/// use foldstream::control::PublisherName;
///
/// let name: PublisherName = "private".parse()?;
/// assert_eq!(name.as_str(), "private");
/// assert!("a/b".parse::<PublisherName>().is_err());
/// # Ok::<(), foldstream::control::InvalidPublisherName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublisherName(Arc<str>);

impl PublisherName {
    /// The most characters of a name.
    pub const MAX_LEN: usize = 64;

    /// Returns the text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for PublisherName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for PublisherName {
    type Err = InvalidPublisherName;

    fn from_str(text: &str) -> Result<Self, InvalidPublisherName> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.chars().all(is_allowed) {
            return Ok(Self(text.into()));
        }
        Err(InvalidPublisherName { text: text.into() })
    }
}

/// The error returned for a text that cannot be the name of a publisher.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot name a publisher: use 1 to 64 letters, digits, hyphens, underscores and dots"
)]
pub struct InvalidPublisherName {
    text: String,
}

/// Returns the partition of the rows of one shard.
pub(super) fn shard_partition(kind: &str, name: Option<&PublisherName>, shard: u32) -> String {
    match name {
        None => format!("{kind}/{shard}"),
        Some(name) => format!("{kind}/{name}/{shard}"),
    }
}

/// The rows of one publisher.
#[derive(Clone, Debug)]
pub(crate) struct PublisherRows {
    rows: Rows,
    name: Option<PublisherName>,
}

impl PublisherRows {
    /// The number of partitions over which the rows about streams are spread.
    pub(crate) const SHARDS: u32 = Watermarks::SHARDS;

    pub(crate) const fn over(rows: Rows, name: Option<PublisherName>) -> Self {
        Self { rows, name }
    }
    /// Returns the key of a row that the publisher has once.
    pub(crate) fn single_key(&self, sort: &str) -> RowKey {
        let partition = match &self.name {
            None => "pub".to_owned(),
            Some(name) => format!("pub/{name}"),
        };
        RowKey::new(partition, sort)
    }
    fn shard(&self, kind: &str, shard: u32) -> String {
        shard_partition(kind, self.name.as_ref(), shard)
    }
    fn shard_of(&self, kind: &str, stream: &StreamId) -> String {
        self.shard(kind, stream.shard(Self::SHARDS))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_store::TestStore, *};

    fn rows(name: Option<&str>) -> PublisherRows {
        let store = TestStore::new(1);
        let name = name.map(|name| name.parse().unwrap());
        PublisherRows::over(Rows::new(store.clone(), store), name)
    }

    #[test]
    fn a_named_publisher_has_partitions_of_its_own() {
        let stream = StreamId::new("cart", "c-1").unwrap();
        let unnamed = rows(None);
        assert_eq!(unnamed.shard_of("dirty", &stream), "dirty/55");
        assert_eq!(unnamed.single_key("bootstrap").to_string(), "pub/bootstrap");
        let named = rows(Some("audit"));
        assert_eq!(named.shard_of("skip", &stream), "skip/audit/55");
        assert_eq!(named.single_key("sweep").to_string(), "pub/audit/sweep");
    }

    #[test]
    fn a_name_holds_nothing_that_separates_the_parts_of_a_key() {
        for text in ["", "a/b", "a\u{1f}b", "a b", "ä", &"a".repeat(65)] {
            let error = text.parse::<PublisherName>().unwrap_err();
            assert!(error.to_string().contains("1 to 64"), "{error}");
        }
        for text in ["a", "A-1_b.c", &"a".repeat(64)] {
            assert_eq!(text.parse::<PublisherName>().unwrap().as_str(), text);
        }
    }
}
