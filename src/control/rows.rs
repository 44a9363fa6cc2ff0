//! Typed rows: JSON values under compare-and-set.
use crate::{
    Backoff, IdSource, RetryPolicy, Timestamp,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome,
        RangeQuery, Revision, Row, RowKey,
    },
    resilience::{Attempts, FailureClass},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{sync::Arc, time::Duration};

/// The value of a row, and the id of the write that stored it, which the next compare-and-set
/// expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored<T> {
    /// The value of the row.
    pub value: T,
    /// The id of the write that stored the value.
    pub revision: Revision,
}

/// The outcome of a conditional put.
#[derive(Debug, PartialEq)]
#[must_use]
pub(crate) enum PutIf<T> {
    /// The row was written by this call.
    Written(Stored<T>),
    /// The row was not written. The conflict holds the stored row, if there is one.
    Conflict(Option<Stored<T>>),
}

/// The outcome of a conditional delete.
#[derive(Debug, PartialEq)]
#[must_use]
pub(crate) enum DeleteIf<T> {
    /// The row does not exist now: this call has deleted it, or it was gone already.
    Deleted,
    /// The row holds another write than the one that was to be deleted.
    Conflict(Stored<T>),
}

/// A page of typed rows, each under the key that its sort key stands for.
#[derive(Debug, PartialEq)]
pub(crate) struct KeyedPage<K, T> {
    /// The rows of the page. The page may be empty before the end of the list.
    pub(crate) rows: Vec<(K, Stored<T>)>,
    /// The sort key after which the next page starts; `None` on the last page.
    pub(crate) next: Option<String>,
}

/// The time for which a write is repeated that other writers overtake each time.
const RACES: RetryPolicy = RetryPolicy::new(
    Backoff::new(Duration::from_millis(2), Duration::from_millis(100)),
    Duration::from_secs(2),
)
.with_immediate(2);

/// The least time after which the row of a process that has died expires.
pub(super) const ALIVE: Duration = Duration::from_secs(600);

/// The lost races of one compare-and-set, or of one read of several rows. Each means that another
/// process has changed what was just read.
#[derive(Debug, Default)]
pub(crate) struct Races(Option<Attempts<'static>>);

impl Races {
    /// Waits before the row is read again.
    ///
    /// # Errors
    /// [`ControlStoreError::Unavailable`] if the row has been changing for too long.
    pub(super) async fn lost(
        &mut self,
        key: &RowKey,
        ids: &dyn IdSource,
    ) -> Result<(), ControlStoreError> {
        // The source of ids is the only randomness of the rows, so a source with a seed determines
        // the pauses, too.
        let attempts = self.0.get_or_insert_with(|| {
            let backoff = RACES.backoff.with_seed(ids.revision().as_u128() as u64);
            Attempts::new(RACES.with_backoff(backoff))
        });
        if attempts.wait(FailureClass::Transient).await {
            return Ok(());
        }
        let lost = attempts.failed();
        Err(ControlStoreError::Unavailable {
            source: format!("row {key} was changed by others {lost} times meanwhile").into(),
        })
    }
}

/// Reads and writes rows whose values are JSON, without expiry. Clones share the store.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    store: Arc<dyn ControlStore>,
    ids: Arc<dyn IdSource>,
}

impl Rows {
    pub(crate) fn new(store: Arc<dyn ControlStore>, ids: Arc<dyn IdSource>) -> Self {
        Self { store, ids }
    }

    /// Waits before a row is read again that other processes have changed meanwhile.
    pub(crate) async fn lost(
        &self,
        races: &mut Races,
        key: &RowKey,
    ) -> Result<(), ControlStoreError> {
        races.lost(key, &*self.ids).await
    }

    /// Returns the row as it was last written; `None` if it is absent.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        key: &RowKey,
    ) -> Result<Option<Stored<T>>, ControlStoreError> {
        self.store.get(key).await?.map(decode).transpose()
    }

    /// Writes the value if the row is as expected, under a fresh revision.
    ///
    /// A lost answer is settled here: the same write is sent once more, which is harmless because
    /// the revision is the same. If that fails too, the caller does not know whether the row was
    /// written.
    pub(crate) async fn put<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        value: T,
        expect: Expect,
    ) -> Result<PutIf<T>, ControlStoreError> {
        self.put_until(key, value, expect, None).await
    }

    /// Replaces exactly this write with another value, or deletes it. Returns false if the row
    /// holds another write.
    pub(super) async fn replace<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        seen: Revision,
        value: Option<T>,
    ) -> Result<bool, ControlStoreError> {
        Ok(match value {
            Some(value) => {
                let put = self.put(key, value, Expect::Revision(seen)).await?;
                matches!(put, PutIf::Written(_))
            }
            None => match self.store.delete(key, DeleteExpect::Revision(seen)).await? {
                // The row is gone, as wanted. This delete may have removed it if the adapter sent
                // it twice.
                DeleteOutcome::Deleted | DeleteOutcome::Conflict(None) => true,
                DeleteOutcome::Conflict(Some(_)) => false,
            },
        })
    }

    /// Writes a row that expires, as [`put`](Self::put) does.
    pub(crate) async fn put_until<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        value: T,
        expect: Expect,
        expires_at: Option<Timestamp>,
    ) -> Result<PutIf<T>, ControlStoreError> {
        let revision = self.ids.revision();
        self.put_as(key, value, revision, expect, expires_at).await
    }

    /// Writes the row of a process that runs. Every write has another revision, which shows that
    /// the process is alive. If the process dies, the row expires after [`ALIVE`], or after `lives`
    /// if that is longer.
    pub(super) async fn put_alive<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        value: T,
        now: Timestamp,
        lives: Duration,
    ) -> Result<PutIf<T>, ControlStoreError> {
        let expires_at = Some(now.plus(ALIVE.max(lives)));
        self.put_until(key, value, Expect::Any, expires_at).await
    }

    /// Returns a revision that no write has used.
    pub(super) fn fresh_revision(&self) -> Revision {
        self.ids.revision()
    }

    /// Writes a row under a [fresh revision](Self::fresh_revision) that the caller has drawn, as
    /// [`put`](Self::put) does. The value may hold that revision.
    pub(super) async fn put_as<T: Serialize + DeserializeOwned>(
        &self,
        key: &RowKey,
        value: T,
        revision: Revision,
        expect: Expect,
        expires_at: Option<Timestamp>,
    ) -> Result<PutIf<T>, ControlStoreError> {
        let bytes = serde_json::to_vec(&value).map_err(|e| ControlStoreError::Invalid {
            reason: format!("the value of row {key} is no JSON: {e}"),
        })?;
        let row = Row::new(key.clone(), bytes, revision).with_expiry(expires_at);
        let outcome = match self.store.put(&row, expect).await {
            Err(ControlStoreError::Unavailable { .. }) => self.store.put(&row, expect).await?,
            answered => answered?,
        };
        Ok(match outcome {
            PutOutcome::Written => PutIf::Written(Stored { value, revision }),
            PutOutcome::Conflict(theirs) => PutIf::Conflict(theirs.map(decode).transpose()?),
        })
    }

    /// Deletes exactly this write.
    ///
    /// A lost answer is settled here: the delete is sent once more, and a row that is gone then is
    /// deleted.
    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        key: &RowKey,
        seen: Revision,
    ) -> Result<DeleteIf<T>, ControlStoreError> {
        let expect = DeleteExpect::Revision(seen);
        let outcome = match self.store.delete(key, expect).await {
            Err(ControlStoreError::Unavailable { .. }) => self.store.delete(key, expect).await?,
            answered => answered?,
        };
        Ok(match outcome {
            DeleteOutcome::Deleted | DeleteOutcome::Conflict(None) => DeleteIf::Deleted,
            DeleteOutcome::Conflict(Some(theirs)) => DeleteIf::Conflict(decode(theirs)?),
        })
    }

    /// Deletes a row, whichever write it holds.
    pub(super) async fn remove(&self, key: &RowKey) -> Result<(), ControlStoreError> {
        let (DeleteOutcome::Deleted | DeleteOutcome::Conflict(_)) =
            self.store.delete(key, DeleteExpect::Any).await?;
        Ok(())
    }

    /// Deletes all rows of a partition, whichever writes they hold.
    pub(crate) async fn clear(&self, partition: &str) -> Result<(), ControlStoreError> {
        let mut after = None;
        loop {
            let page = (self.store)
                .range(&RangeQuery::new(partition).with_after(after))
                .await?;
            for row in &page.rows {
                self.remove(&row.key).await?;
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Returns several rows at once, in the order of their keys.
    pub(super) async fn get_raw(
        &self,
        keys: &[RowKey],
    ) -> Result<Vec<Option<Row>>, ControlStoreError> {
        self.store.get_many(keys).await
    }

    /// Returns one page of a range. `key_of` makes the key of a row from its sort key. Rows for
    /// which it returns `None` are of another kind and are left out.
    pub(crate) async fn page<K, T: DeserializeOwned>(
        &self,
        query: &RangeQuery,
        key_of: impl Fn(&str) -> Option<K>,
    ) -> Result<KeyedPage<K, T>, ControlStoreError> {
        let page = self.store.range(query).await?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            if let Some(key) = key_of(&row.key.sort) {
                rows.push((key, decode(row)?));
            }
        }
        Ok(KeyedPage {
            rows,
            next: page.next,
        })
    }
}

pub(super) fn decode<T: DeserializeOwned>(row: Row) -> Result<Stored<T>, ControlStoreError> {
    match serde_json::from_slice(&row.value) {
        Ok(value) => Ok(Stored {
            value,
            revision: row.revision,
        }),
        Err(e) => Err(ControlStoreError::Corrupt {
            key: row.key,
            reason: e.to_string(),
        }),
    }
}
