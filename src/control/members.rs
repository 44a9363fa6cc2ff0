//! The rows by which processes that share work see each other, and the share of each.
//!
//! ```text
//! row   the value of a lease under epoch 1: { "e": 1, "o": name, "t": lease time in ms }; expires
//! ```
//! Each process writes its row several times in each lease time, and deletes it when it stops.
//! Every write has another revision, so a row that stands still is that of a dead process. As with
//! leases, the clocks of two processes are never compared.
use super::{
    lasting::LastSeen,
    lease::{FoundLease, LeaseRow, Leases},
    rows::decode,
};
use crate::{
    Timestamp,
    ports::{ControlStoreError, Row, RowKey},
};
use std::collections::{BTreeMap, BTreeSet};

/// The processes that share the work under [`Leases`], as one of them sees them.
///
/// The members only decide how many leases each process should hold. That no two processes hold the
/// same lease does not depend on them.
///
/// # Example
/// ```
/// # use foldstream::{SystemIds, Timestamp, control::Leases};
/// # use foldstream::ports::{ControlStore, RangeQuery, RowKey};
/// # use std::{sync::Arc, time::Duration};
/// use foldstream_testkit::InMemoryControlStore;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let control = InMemoryControlStore::new();
/// let leases = Leases::new(control.clone(), Arc::new(SystemIds), Duration::from_secs(15));
/// let key = |name: &str| RowKey::new("members", name);
/// let other = leases.members(key("node-2"), "node-2");
/// other.announce(Timestamp::now()).await?;
///
/// // Several times in each lease time:
/// let mut members = leases.members(key("node-1"), "node-1");
/// members.announce(Timestamp::now()).await?;
/// let rows = control.range(&RangeQuery::new("members")).await?.rows;
/// members.observe(rows.into_iter().map(|row| (row.key.sort.clone(), row)))?;
/// assert_eq!((members.count(), members.share(7)), (2, 4));
/// # Ok::<(), foldstream::BoxError>(()) })?;
/// # Ok::<(), foldstream::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Members {
    leases: Leases,
    key: RowKey,
    me: String,
    seen: BTreeMap<String, LastSeen>,
    alive: BTreeSet<String>,
}

impl Leases {
    /// Returns the members as the process `me` sees them. `key` is the row of that process alone.
    /// The lease time of `self` is the time after which a silent process counts as dead.
    pub fn members(&self, key: RowKey, me: impl Into<String>) -> Members {
        let me = me.into();
        Members {
            leases: self.clone(),
            key,
            alive: BTreeSet::from([me.clone()]),
            me,
            seen: BTreeMap::new(),
        }
    }
}

impl Members {
    /// Writes the row of this process, which shows the others that it is alive. Call it several
    /// times in each lease time. The row expires after ten minutes, or four lease times if they are
    /// longer.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. The others then count this process out
    /// after the lease time.
    pub async fn announce(&self, now: Timestamp) -> Result<(), ControlStoreError> {
        let row = LeaseRow {
            epoch: 1,
            owner: Some(self.me.clone()),
            millis: self.leases.millis(),
        };
        let lives = self.leases.time().saturating_mul(4);
        let rows = self.leases.rows();
        // Without a condition there is no conflict.
        let _ = rows.put_alive(&self.key, row, now, lives).await?;
        Ok(())
    }

    /// Deletes the row of this process, which stops.
    ///
    /// # Errors
    /// [`ControlStoreError`] if the store refuses or fails. The row then expires.
    pub async fn leave(&self) -> Result<(), ControlStoreError> {
        self.leases.rows().remove(&self.key).await
    }

    /// Takes note of the rows of all members, each under its name, as they were just read. A member
    /// whose row has not changed for the lease time is dead: that of this process or that of the
    /// member, whichever is longer.
    ///
    /// # Errors
    /// [`ControlStoreError::Corrupt`] if a row is not that of a member.
    pub fn observe(
        &mut self,
        rows: impl IntoIterator<Item = (String, Row)>,
    ) -> Result<(), ControlStoreError> {
        let found = rows
            .into_iter()
            .map(|(name, row)| Ok((name, FoundLease(decode(row)?))));
        let found = found.collect::<Result<BTreeMap<_, _>, ControlStoreError>>()?;
        self.observe_found(&found);
        Ok(())
    }

    pub(crate) fn observe_found(&mut self, found: &BTreeMap<String, FoundLease>) {
        let time = self.leases.time();
        self.seen.retain(|name, _| found.contains_key(name));
        self.alive.clear();
        for (name, row) in found {
            let seen = self.seen.entry(name.clone()).or_default();
            if !seen.stands_still(row, time) {
                self.alive.insert(name.clone());
            }
        }
        // The row of this process may have been read before it was written.
        self.alive.insert(self.me.clone());
    }

    /// Returns the number of members that are alive, this process included.
    pub fn count(&self) -> usize {
        self.alive.len()
    }

    /// Returns the number of leases, out of `all`, that this process should hold. The shares of all
    /// members differ by one at most, and their sum is `all`.
    pub fn share(&self, all: usize) -> usize {
        let before = self.alive.iter().take_while(|name| **name < self.me);
        let is_first = before.count() < all % self.count();
        all / self.count() + usize::from(is_first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Clock,
        control::test_store::TestStore,
        ports::{ControlStore, RangeQuery},
    };
    use std::{sync::Arc, time::Duration};

    const LEASE: Duration = Duration::from_secs(15);

    fn members(store: &Arc<TestStore>, me: &str, time: Duration) -> Members {
        let leases = Leases::new(store.clone(), store.clone(), time);
        leases.members(RowKey::new("members", me), me)
    }
    async fn look(store: &Arc<TestStore>, members: &mut Members) {
        let rows = store.range(&RangeQuery::new("members")).await.unwrap().rows;
        let rows = rows.into_iter().map(|row| (row.key.sort.clone(), row));
        members.observe(rows).unwrap();
    }

    #[tokio::test]
    async fn the_shares_of_all_members_are_as_equal_as_possible_and_cover_everything() {
        for count in 1..12 {
            let store = TestStore::new(1);
            let names: Vec<_> = (0..count).map(|n| format!("{n:02}")).collect();
            let mut all: Vec<_> = (names.iter().map(|me| members(&store, me, LEASE))).collect();
            for member in &all {
                member.announce(store.now()).await.unwrap();
            }
            for member in &mut all {
                look(&store, member).await;
            }
            for leases in 0..20 {
                let shares: Vec<_> = all.iter().map(|member| member.share(leases)).collect();
                assert_eq!(shares.iter().sum::<usize>(), leases);
                let (least, most) = (shares.iter().min(), shares.iter().max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{shares:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_counts_until_its_row_stands_still_for_the_longer_lease_time() {
        let store = TestStore::new(1);
        let (mut me, other) = (members(&store, "a", LEASE), members(&store, "b", 2 * LEASE));
        other.announce(store.now()).await.unwrap();
        look(&store, &mut me).await;
        assert_eq!((me.count(), me.share(3)), (2, 2));
        tokio::time::advance(2 * LEASE - Duration::from_millis(1)).await;
        look(&store, &mut me).await;
        assert_eq!(me.count(), 2, "its own lease time is not over");
        tokio::time::advance(Duration::from_millis(1)).await;
        look(&store, &mut me).await;
        assert_eq!((me.count(), me.share(3)), (1, 3));
        other.announce(store.now()).await.unwrap();
        look(&store, &mut me).await;
        assert_eq!(me.count(), 2, "it was only slow");
        other.leave().await.unwrap();
        look(&store, &mut me).await;
        assert_eq!(me.count(), 1);
    }

    #[tokio::test]
    async fn the_stored_form_of_a_member_is_fixed() {
        let store = TestStore::new(1);
        let now = store.now();
        members(&store, "a", LEASE).announce(now).await.unwrap();
        let row = store.get(&RowKey::new("members", "a")).await.unwrap();
        let row = row.unwrap();
        assert_eq!(row.value, r#"{"e":1,"o":"a","t":15000}"#);
        assert_eq!(row.expires_at, Some(now.plus(Duration::from_secs(600))));
    }

    #[test]
    fn a_row_that_is_none_of_a_member_is_an_error() {
        let store = TestStore::new(1);
        let key = RowKey::new("members", "b");
        let row = Row::new(key, "nonsense", crate::IdSource::revision(&*store));
        let observed = members(&store, "a", LEASE).observe([("b".into(), row)]);
        assert!(matches!(observed, Err(ControlStoreError::Corrupt { .. })));
    }
}
