//! Stored positions: the last version of each stream that a processor has handled durably.
use super::{PutIf, Rows, Stored, rows::Races};
use crate::{
    CommitId, IdSource, StreamId, Version,
    ports::{ControlStore, ControlStoreError, Expect, RowKey},
};
use std::sync::Arc;

/// The value of the row `pos/<name>/<generation>/<shard>`, `<stream>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Position {
    #[serde(rename = "v")]
    version: Version,
    /// The commit of the event, if it is known: a forked history is noticed by it.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    commit_id: Option<CommitId>,
}

/// The positions of one generation of a processor, in 64 shards by [`StreamId::shard`]. They only
/// move forward.
#[derive(Clone, Debug)]
pub(crate) struct StreamPositions {
    rows: Rows,
    prefix: Arc<str>,
}

impl StreamPositions {
    /// The number of partitions over which the rows are spread. It determines stored keys, so it
    /// never changes.
    pub(super) const SHARDS: u32 = 64;

    pub(crate) fn new(
        control: Arc<dyn ControlStore>,
        ids: Arc<dyn IdSource>,
        processor: &str,
        generation: u32,
    ) -> Self {
        Self {
            rows: Rows::new(control, ids),
            prefix: format!("pos/{processor}/{generation}").into(),
        }
    }

    fn key(&self, stream: &StreamId) -> RowKey {
        let shard = stream.shard(Self::SHARDS);
        RowKey::new(format!("{}/{shard}", self.prefix), stream.as_str())
    }

    /// Returns the position in a stream; `None` if none was stored.
    pub(crate) async fn get(
        &self,
        stream: &StreamId,
    ) -> Result<Option<(Version, Option<CommitId>)>, ControlStoreError> {
        let row = self.rows.get::<Position>(&self.key(stream)).await?;
        Ok(row.map(|row| (row.value.version, row.value.commit_id)))
    }

    /// Moves the position in a stream forward. A position at this version or after it stays: the
    /// write of a process that has lost the stream's partition moves nothing back.
    pub(crate) async fn advance(
        &self,
        stream: &StreamId,
        version: Version,
        commit_id: Option<CommitId>,
    ) -> Result<(), ControlStoreError> {
        let (key, mut races) = (self.key(stream), Races::default());
        let to = Position { version, commit_id };
        let mut seen: Option<Stored<Position>> = self.rows.get(&key).await?;
        loop {
            if seen.is_some_and(|stored| stored.value.version >= version) {
                return Ok(());
            }
            let expect = seen.map_or(Expect::Absent, |s| Expect::Revision(s.revision));
            match self.rows.put(&key, to, expect).await? {
                PutIf::Written(_) => return Ok(()),
                PutIf::Conflict(theirs) => seen = theirs,
            }
            self.rows.lost(&mut races, &key).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_fixed() {
        let mut position = Position {
            version: Version::new(7),
            commit_id: Some(CommitId::from_u128(0xAB)),
        };
        let text = r#"{"v":7,"c":"00000000-0000-0000-0000-0000000000ab"}"#;
        assert_eq!(serde_json::to_string(&position).unwrap(), text);
        position.commit_id = None;
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(text, r#"{"v":7}"#);
        let newer = r#"{"v":7,"x":1}"#;
        assert_eq!(serde_json::from_str::<Position>(newer).unwrap(), position);
    }
}
