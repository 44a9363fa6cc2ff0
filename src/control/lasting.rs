//! The time for which rows have stood still, as one process has seen them. The clocks of two
//! processes are not compared.
use crate::ports::Revision;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// The last write that a process has seen in a row, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastSeen(pub(super) Option<(Revision, Instant)>);

impl LastSeen {
    /// Returns the time for which this very write has been the row. `None` if it is new to the
    /// reader: it begins to count now.
    pub(super) fn lasting(&mut self, revision: Revision, now: Instant) -> Option<Duration> {
        match self.0 {
            Some((seen, since)) if seen == revision => Some(now.duration_since(since)),
            _ => {
                self.0 = Some((revision, now));
                None
            }
        }
    }
}

/// The last writes that a process has seen in several rows, and since when.
#[derive(Clone, Debug)]
pub(crate) struct Lasting<K>(BTreeMap<K, LastSeen>);

impl<K> Default for Lasting<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Lasting<K> {
    /// Returns the time for which this very write has been the row.
    pub(crate) fn of(&mut self, key: K, revision: Revision, now: Instant) -> Duration {
        let seen = self.0.entry(key).or_default();
        seen.lasting(revision, now).unwrap_or_default()
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
