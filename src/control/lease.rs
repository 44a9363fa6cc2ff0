//! Leases: which process does work that only one process may do.
//!
//! ```text
//! row     { "e": epoch, "o": owner (absent: released), "t": lease time in ms }
//!         never deleted, without expiry
//! take    no row, or a released one: at once
//!         a held one: once its revision has not changed for the whole lease time, that of the
//!         holder or of the contender, whichever is longer: a deployment may change it
//! renew   the same epoch under a new revision: contenders see that the holder is alive
//! lost    another process has taken over: its epoch is greater
//! ```
//! The clocks of two processes are never compared. A contender measures, on its own monotonic
//! clock, from the moment when it *first saw* a revision. The holder measures from *before* it sent
//! the write that made the revision. The holder therefore knows first that its time is over,
//! however long the write took, as long as clocks run at about the same rate.
//!
//! A lease only makes duplicates rare: a process may be stopped between its last check and its next
//! action. Work that must not be done twice is guarded by the epoch, which grows with every
//! take-over. Storage that is written under an epoch refuses a smaller one.
use super::{PutIf, Rows, Stored, lasting::LastSeen};
use crate::{
    IdSource,
    ports::{ControlStore, ControlStoreError, Expect, Revision, RowKey, shared},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The value of a lease's row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct LeaseRow {
    #[serde(rename = "e")]
    pub(super) epoch: u64,
    /// The owner of the lease. It is for people, and to distinguish a process's own writes from
    /// those of others.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
    /// The lease time, in milliseconds, on which the holder relies.
    #[serde(rename = "t", default)]
    pub(super) millis: u64,
}

/// The row of a lease as it was read, for a contender that reads several rows at once.
#[derive(Clone, Debug)]
pub(crate) struct FoundLease(pub(super) Stored<LeaseRow>);

impl LastSeen {
    /// Returns true if this very write has been the row for the lease time, that of the reader or
    /// that of the writer, whichever is longer. A write that is new to the reader begins to count
    /// now.
    pub(super) fn stands_still(&mut self, found: &FoundLease, time: Duration) -> bool {
        let row = &found.0;
        let time = time.max(Duration::from_millis(row.value.millis));
        self.lasting(row.revision, Instant::now())
            .is_some_and(|lasting| lasting >= time)
    }
}

/// The leases of one kind. Clones share the store.
///
/// # Example
/// ```
/// # use foldstream::{SystemIds, control::Leases, ports::RowKey};
/// # use std::{sync::Arc, time::Duration};
/// use foldstream_testkit::InMemoryControlStore;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let control = InMemoryControlStore::new();
/// let leases = Leases::new(control, Arc::new(SystemIds), Duration::from_secs(15));
/// let mut contender = leases.contender(RowKey::new("lease/poller", "7"), "node-1");
/// if let Some(mut lease) = contender.try_take().await? {
///     // Several times in each lease time:
///     assert!(lease.renew().await?);
///     lease.release().await?;
/// }
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Leases {
    rows: Rows,
    time: Duration,
}

impl Leases {
    /// Creates leases that may be taken over once they were not renewed for `time`. A holder renews
    /// its lease several times within that time.
    pub fn new(store: impl ControlStore, ids: Arc<dyn IdSource>, time: Duration) -> Self {
        let rows = Rows::new(shared::control_store(store), ids);
        Self { rows, time }
    }

    pub(crate) const fn time(&self) -> Duration {
        self.time
    }
    pub(super) const fn rows(&self) -> &Rows {
        &self.rows
    }
    pub(super) fn millis(&self) -> u64 {
        // Rounded up, and limited to what the row can hold.
        let millis = self.time.as_nanos().div_ceil(1_000_000);
        u64::try_from(millis).unwrap_or(u64::MAX)
    }

    /// Returns a contender for the lease in this row. `owner` names the process: an instance, not a
    /// host.
    pub fn contender(&self, key: RowKey, owner: impl Into<String>) -> Contender {
        Contender {
            leases: self.clone(),
            key,
            owner: owner.into(),
            seen: LastSeen::default(),
        }
    }
}

/// A process that waits for a lease. Keep it between the attempts: it remembers since when the
/// holder has not renewed.
#[derive(Debug)]
pub struct Contender {
    leases: Leases,
    key: RowKey,
    owner: String,
    seen: LastSeen,
}

impl Contender {
    /// Takes the lease if it is free, released, or was not renewed for the lease time. Call again a
    /// few times in each lease time, with jitter.
    ///
    /// # Cancellation
    /// If this future is dropped, the lease may have been taken. It is then free again after the
    /// lease time.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. A lease that was taken by a write whose
    /// answer was lost is free again after the lease time.
    pub async fn try_take(&mut self) -> Result<Option<Lease>, ControlStoreError> {
        let found = self.leases.rows.get::<LeaseRow>(&self.key).await?;
        let found = found.map(FoundLease);
        if self.may_take(found.as_ref()) {
            self.take(found.as_ref()).await
        } else {
            Ok(None)
        }
    }

    /// Takes note of the row as it was read, and returns true if the lease may be taken.
    pub(crate) fn may_take(&mut self, found: Option<&FoundLease>) -> bool {
        found.is_none_or(|found| {
            found.0.value.owner.is_none() || self.seen.stands_still(found, self.leases.time)
        })
    }

    /// Takes the lease if its row is as it was read.
    pub(crate) async fn take(
        &mut self,
        found: Option<&FoundLease>,
    ) -> Result<Option<Lease>, ControlStoreError> {
        let (epoch, expect) = match found {
            None => (1, Expect::Absent),
            Some(FoundLease(row)) => (row.value.epoch + 1, Expect::Revision(row.revision)),
        };
        let row = LeaseRow {
            epoch,
            owner: Some(self.owner.clone()),
            millis: self.leases.millis(),
        };
        let since = Instant::now();
        Ok(match self.leases.rows.put(&self.key, row, expect).await? {
            PutIf::Written(row) => Some(Lease {
                leases: self.leases.clone(),
                key: self.key.clone(),
                row,
                since,
            }),
            // Another process was faster, and its lease time begins now.
            PutIf::Conflict(theirs) => {
                self.seen = LastSeen(theirs.map(|row| (row.revision, Instant::now())));
                None
            }
        })
    }

    /// Notes that the lease's row has this revision now, as a list of rows has shown. A contender
    /// that observes a holder before it wants the lease need not wait for the whole lease time
    /// later.
    pub fn observe(&mut self, revision: Revision) {
        let _ = self.seen.lasting(revision, Instant::now());
    }
}

/// A lease that is held. Dropping it lets it expire; [`release`](Self::release) hands it on at
/// once.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    key: RowKey,
    row: Stored<LeaseRow>,
    /// The instant before the write was sent that made this revision.
    since: Instant,
}

impl Lease {
    /// Returns the epoch, which is greater than that of every earlier holder.
    pub const fn epoch(&self) -> u64 {
        self.row.value.epoch
    }

    /// Returns the instant until which no other process can have taken over. The holder must stop
    /// before it.
    pub fn valid_until(&self) -> Instant {
        self.since + self.leases.time
    }

    /// Renews the lease, which shows that the holder is alive. Returns false if another process has
    /// taken over, and then the holder must stop.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. The lease is held until
    /// [`valid_until`](Self::valid_until), and the call may be repeated.
    pub async fn renew(&mut self) -> Result<bool, ControlStoreError> {
        let row = self.row.value.clone();
        self.write(row).await
    }

    /// Releases the lease, so that the next contender takes it at once. The row is not deleted, so
    /// that epochs only grow.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. The lease then expires.
    pub async fn release(mut self) -> Result<(), ControlStoreError> {
        let epoch = self.epoch();
        let millis = self.leases.millis();
        let row = LeaseRow {
            epoch,
            owner: None,
            millis,
        };
        // A lease that another process has taken over needs no release.
        self.write(row).await.map(drop)
    }

    /// Replaces the last write of this holder. Returns false if another process has taken over.
    async fn write(&mut self, row: LeaseRow) -> Result<bool, ControlStoreError> {
        // A second attempt, if an earlier renewal was applied although its answer was lost.
        for _ in 0..2 {
            let since = Instant::now();
            let expect = Expect::Revision(self.row.revision);
            let put = self.leases.rows.put(&self.key, row.clone(), expect).await?;
            match put {
                PutIf::Written(row) => {
                    (self.row, self.since) = (row, since);
                    return Ok(true);
                }
                // Only one process takes an epoch, so only this holder has written under its epoch.
                // The time of that write is not known, so the older time stays.
                PutIf::Conflict(Some(found)) if found.value == self.row.value => self.row = found,
                PutIf::Conflict(_) => return Ok(false),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_of_a_lease_is_fixed() {
        let text = |owner: Option<&str>| {
            let owner = owner.map(Into::into);
            let row = LeaseRow {
                epoch: 3,
                owner,
                millis: 15,
            };
            serde_json::to_string(&row).unwrap()
        };
        assert_eq!(text(Some("a")), r#"{"e":3,"o":"a","t":15}"#);
        assert_eq!(text(None), r#"{"e":3,"t":15}"#);
    }
}
