//! The time for which rows have stood still, as one process has seen them.
use crate::ports::Revision;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// The writes that this process has seen in rows, and since when. The clocks of two processes are
/// not compared.
#[derive(Clone, Debug)]
pub(crate) struct Lasting<K>(BTreeMap<K, (Revision, Instant)>);

impl<K> Default for Lasting<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Lasting<K> {
    /// Returns the time for which this very write has been the row.
    pub(crate) fn of(&mut self, key: K, revision: Revision, now: Instant) -> Duration {
        let seen = self.0.entry(key).or_insert((revision, now));
        if seen.0 != revision {
            *seen = (revision, now);
        }
        now.duration_since(seen.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_counts_from_the_last_write_of_the_row() {
        let (mut seen, start) = (Lasting::default(), Instant::now());
        let (first, second) = (Revision::from_u128(1), Revision::from_u128(2));
        assert_eq!(seen.of(1, first, start), Duration::ZERO);
        let later = start + Duration::from_secs(600);
        assert_eq!(seen.of(1, first, later), Duration::from_secs(600));
        assert_eq!(seen.of(1, second, later), Duration::ZERO);
        assert_eq!(seen.of(2, second, later), Duration::ZERO);
    }
}
