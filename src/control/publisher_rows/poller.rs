//! The rows by which pollers share the segments of the list of unpublished commits.
//!
//! ```text
//! pub   poller/<segments>/<index>     a lease: which poller walks through the segment
//!       poller/<segments>/by/<id>     a poller that runs: one of the `Members`
//! ```
//! A poller renews its own row and its leases together, so that others see within the lease time
//! that it is dead. Its row expires, since each start of a process has another id.
use super::PublisherRows;
use crate::{
    control::lease::{FoundLease, LeaseRow},
    ports::{ControlStoreError, RangeQuery, RowKey, SortBounds},
};
use std::collections::BTreeMap;

/// The rows of all pollers that have the same number of segments.
#[derive(Clone, Debug, Default)]
pub(crate) struct PollerRows {
    /// The rows of the segments' leases, by the number of the segment.
    pub(crate) leases: BTreeMap<u32, FoundLease>,
    /// The rows of the pollers, by their ids.
    pub(crate) pollers: BTreeMap<String, FoundLease>,
}

/// The meaning of a sort key.
enum Key {
    Segment(u32),
    Poller(String),
}

fn prefix(segments: u32) -> String {
    format!("poller/{segments}/")
}

fn key_of(sort: &str, prefix: &str) -> Option<Key> {
    let rest = sort.strip_prefix(prefix)?;
    match rest.strip_prefix("by/") {
        Some(id) => Some(Key::Poller(id.to_owned())),
        None => rest.parse().ok().map(Key::Segment),
    }
}

impl PublisherRows {
    /// Returns the key of the lease of one segment.
    pub(crate) fn poller_lease_key(&self, segments: u32, index: u32) -> RowKey {
        self.single_key(&format!("{}{index}", prefix(segments)))
    }

    /// Returns the key of the row of a poller.
    pub(crate) fn poller_key(&self, segments: u32, id: &str) -> RowKey {
        self.single_key(&format!("{}by/{id}", prefix(segments)))
    }

    /// Returns the rows of all pollers with this number of segments.
    pub(crate) async fn pollers(&self, segments: u32) -> Result<PollerRows, ControlStoreError> {
        let prefix = prefix(segments);
        let partition = self.single_key("").partition;
        let query = RangeQuery::new(partition).with_bounds(SortBounds::Prefix(prefix.clone()));
        let (mut found, mut after) = (PollerRows::default(), None);
        loop {
            let query = query.clone().with_after(after);
            let page = self
                .rows
                .page::<_, LeaseRow>(&query, |sort| key_of(sort, &prefix));
            let page = page.await?;
            for (key, row) in page.rows {
                match key {
                    Key::Segment(index) => found.leases.insert(index, FoundLease(row)),
                    Key::Poller(id) => found.pollers.insert(id, FoundLease(row)),
                };
            }
            after = page.next;
            if after.is_none() {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{Leases, Rows, test_store::TestStore},
        ports::ControlStore,
    };
    use std::time::Duration;

    #[tokio::test]
    async fn the_stored_form_of_a_pollers_rows_is_fixed() {
        let store = TestStore::new(1);
        let rows = PublisherRows::over(Rows::new(store.clone(), store.clone()), None);
        let leases = Leases::new(store.clone(), store.clone(), Duration::from_secs(15));
        let now = crate::Clock::now(&*store);
        let members = leases.members(rows.poller_key(8, "a1"), "a1");
        members.announce(now).await.unwrap();
        let mut contender = leases.contender(rows.poller_lease_key(8, 3), "a1");
        contender.try_take().await.unwrap().unwrap();

        let row = store.get(&RowKey::new("pub", "poller/8/by/a1")).await;
        let row = row.unwrap().unwrap();
        assert_eq!(row.value, r#"{"e":1,"o":"a1","t":15000}"#);
        assert_eq!(row.expires_at, Some(now.plus(Duration::from_secs(600))));
        let row = store.get(&RowKey::new("pub", "poller/8/3")).await;
        let row = row.unwrap().unwrap();
        assert_eq!(row.value, r#"{"e":1,"o":"a1","t":15000}"#);
        assert_eq!(row.expires_at, None, "epochs only grow");

        let found = rows.pollers(8).await.unwrap();
        assert_eq!(found.leases.keys().copied().collect::<Vec<_>>(), [3]);
        assert_eq!(found.pollers.keys().collect::<Vec<_>>(), ["a1"]);
        // Pollers with another number of segments share nothing with these.
        assert!(rows.pollers(80).await.unwrap().pollers.is_empty());
        members.leave().await.unwrap();
        assert!(rows.pollers(8).await.unwrap().pollers.is_empty());
    }
}
