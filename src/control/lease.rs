//! Leases: which process does something that only one may do.
//!
//! ```text
//! row     { "e": epoch, "o": owner (absent: released), "t": lease time in ms }, never deleted, without expiry
//! take    no row, or a released one: at once. Held: once its revision has stood still for the whole lease time, that of the
//!         holder or of who waits, whichever is longer: a deployment may change it
//! renew   the same epoch under a new revision: whoever waits sees that the holder lives
//! lost    another process has taken over: its epoch is greater
//! ```
//! No two clocks are compared. Who waits counts, on its own monotonic clock, from when it *first saw* a revision; the
//! holder counts from *before* it sent the write that made it. So the holder knows first that its time is over, however
//! long the write took, as long as clocks run at about the same rate.
//!
//! A lease only makes doubles rare: a process may be stopped between its last look and what it does then. What must not
//! happen twice is guarded by the epoch, which grows with every take-over: whoever writes under it refuses a smaller one.
use super::{PutIf, Rows, Stored};
use crate::{
    IdSource,
    ports::{ControlStore, ControlStoreError, Expect, Revision, RowKey, shared},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The row's value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct LeaseRow {
    #[serde(rename = "e")]
    epoch: u64,
    /// Whose it is; for people, and to tell a process's own writes from others'.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// What the holder counts on.
    #[serde(rename = "t", default)]
    millis: u64,
}

/// Leases of one kind. Cloning shares the store.
///
/// # Example
/// ```
/// # use foldstream::{SystemIds, control::Leases, ports::RowKey};
/// # use std::{sync::Arc, time::Duration};
/// # async fn example(control: impl foldstream::ports::ControlStore) -> Result<(), foldstream::BoxError> {
/// let leases = Leases::new(control, Arc::new(SystemIds), Duration::from_secs(15));
/// let mut contender = leases.contender(RowKey::new("lease/poller", "7"), "node-1");
/// if let Some(mut lease) = contender.try_take().await? {
///     // Several times in each lease time:
///     assert!(lease.renew().await?);
///     lease.release().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Leases {
    rows: Rows,
    time: Duration,
}

impl Leases {
    /// Leases that may be taken over once they were not renewed for `time`. Renew them several times in it.
    pub fn new(store: impl ControlStore, ids: Arc<dyn IdSource>, time: Duration) -> Self {
        let rows = Rows::new(shared::control_store(store), ids);
        Self { rows, time }
    }

    fn millis(&self) -> u64 {
        // Rounded up, and no lease lasts for ages.
        let millis = self.time.as_nanos().div_ceil(1_000_000);
        u64::try_from(millis).unwrap_or(u64::MAX)
    }

    /// A process that wants the lease in this row. `owner` names the process: an instance, not a host.
    pub fn contender(&self, key: RowKey, owner: impl Into<String>) -> Contender {
        Contender {
            leases: self.clone(),
            key,
            owner: owner.into(),
            seen: None,
        }
    }
}

/// Waits for a lease. Keep it between the tries: it remembers since when the holder stands still.
#[derive(Debug)]
pub struct Contender {
    leases: Leases,
    key: RowKey,
    owner: String,
    seen: Option<(Revision, Instant)>,
}

impl Contender {
    /// Takes the lease if it is free, released, or its holder has stood still for the lease time. Ask again a few times
    /// in each lease time, with jitter.
    ///
    /// # Errors
    /// [`ControlStoreError`]; a lease that was taken by a write whose answer was lost is free again after the lease time.
    pub async fn try_take(&mut self) -> Result<Option<Lease>, ControlStoreError> {
        let found = self.leases.rows.get::<LeaseRow>(&self.key).await?;
        let (epoch, expect) = match &found {
            None => (1, Expect::Absent),
            Some(row) if row.value.owner.is_none() || self.stands_still(row) => {
                (row.value.epoch + 1, Expect::Revision(row.revision))
            }
            Some(_) => return Ok(None),
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
            // Somebody else was faster: their time begins.
            PutIf::Conflict(theirs) => {
                self.seen = theirs.map(|row| (row.revision, Instant::now()));
                None
            }
        })
    }

    /// Whether this very write has been the row for the lease time.
    fn stands_still(&mut self, row: &Stored<LeaseRow>) -> bool {
        match self.seen {
            Some((revision, since)) if revision == row.revision => {
                let theirs = Duration::from_millis(row.value.millis);
                since.elapsed() >= self.leases.time.max(theirs)
            }
            _ => {
                self.seen = Some((row.revision, Instant::now()));
                false
            }
        }
    }
}

/// A lease that is held. Dropping it leaves it to run out; [`release`](Self::release) hands it on at once.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    key: RowKey,
    row: Stored<LeaseRow>,
    /// Before the write that made this revision was sent.
    since: Instant,
}

impl Lease {
    /// Greater than that of every earlier holder.
    pub const fn epoch(&self) -> u64 {
        self.row.value.epoch
    }

    /// Until when nobody can have taken over. Stop before it.
    pub fn valid_until(&self) -> Instant {
        self.since + self.leases.time
    }

    /// Shows that the holder lives. False: another process has taken over, so stop.
    ///
    /// # Errors
    /// [`ControlStoreError`]; the lease is held on until [`valid_until`](Self::valid_until): try again.
    pub async fn renew(&mut self) -> Result<bool, ControlStoreError> {
        let row = self.row.value.clone();
        self.write(row).await
    }

    /// Hands it on: the next contender takes it at once. It is not deleted, so that epochs only grow.
    ///
    /// # Errors
    /// [`ControlStoreError`]; it then runs out by itself.
    pub async fn release(mut self) -> Result<(), ControlStoreError> {
        let epoch = self.epoch();
        let millis = self.leases.millis();
        let row = LeaseRow {
            epoch,
            owner: None,
            millis,
        };
        // Somebody who has taken over needs no release.
        self.write(row).await.map(drop)
    }

    /// Writes over my own write, and whether there was one.
    async fn write(&mut self, row: LeaseRow) -> Result<bool, ControlStoreError> {
        // A second time where an earlier renewal was applied though its answer was lost.
        for _ in 0..2 {
            let since = Instant::now();
            let expect = Expect::Revision(self.row.revision);
            let put = self.leases.rows.put(&self.key, row.clone(), expect).await?;
            match put {
                PutIf::Written(row) => {
                    (self.row, self.since) = (row, since);
                    return Ok(true);
                }
                // One process takes an epoch, so under my epoch only I have written. Its time is unknown: it stays the old.
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
