//! The votes that a process has seen, and which of them count.
use super::rows::VoteRow;
use crate::ports::Revision;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// The time after which a vote that is not renewed is deleted by whoever has seen it.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

#[derive(Clone, Copy, Debug)]
struct Seen {
    epoch: u64,
    revision: Revision,
    /// The time at which this process first saw the revision.
    since: Instant,
    /// The time at which this process saw the vote change.
    moved: Option<Instant>,
}

/// The votes of all processes. In memory there is one entry per process that has voted within the
/// last hour.
#[derive(Debug)]
pub(super) struct Votes {
    seen: BTreeMap<String, Seen>,
    /// The time for which a vote counts after it was seen to change.
    fresh: Duration,
}

impl Votes {
    pub(super) const fn new(fresh: Duration) -> Self {
        Self {
            seen: BTreeMap::new(),
            fresh,
        }
    }

    /// Takes in all votes that a read has found. A vote that is gone is forgotten, so that one
    /// which appears again, as by a write that arrives late, must be renewed before it counts.
    pub(super) fn read(&mut self, found: Vec<(String, VoteRow, Revision)>, now: Instant) {
        let mut before = std::mem::take(&mut self.seen);
        for (label, row, revision) in found {
            let seen = before.remove(&label);
            self.seen.insert(label, next(seen, row, revision, now));
        }
    }

    /// Takes in the vote that this process has written itself.
    pub(super) fn wrote(&mut self, label: &str, row: VoteRow, revision: Revision, now: Instant) {
        let seen = self.seen.get(label).copied();
        let seen = next(seen, row, revision, now);
        self.seen.insert(label.to_owned(), seen);
    }

    pub(super) fn deleted(&mut self, label: &str) {
        self.seen.remove(label);
    }

    /// Returns the revision of a vote if there is one.
    pub(super) fn of(&self, label: &str) -> Option<Revision> {
        self.seen.get(label).map(|seen| seen.revision)
    }

    /// Returns the number of votes that count: those of this epoch that were seen to change
    /// lately.
    ///
    /// A vote that was only seen once may have been left by a process that crashed long ago. If it
    /// counted, a process that starts would stop for it.
    pub(super) fn count(&self, epoch: u64, now: Instant) -> usize {
        self.counted(epoch)
            .filter(|moved| now.saturating_duration_since(*moved) < self.fresh)
            .count()
    }

    /// Returns the time at which no more than `most` votes count unless another one is renewed.
    pub(super) fn lapse(&self, epoch: u64, most: usize) -> Option<Instant> {
        let mut moved: Vec<_> = self.counted(epoch).collect();
        moved.sort_unstable_by(|a, b| b.cmp(a));
        moved.get(most).map(|moved| *moved + self.fresh)
    }

    fn counted(&self, epoch: u64) -> impl Iterator<Item = Instant> {
        self.seen
            .values()
            .filter(move |seen| seen.epoch == epoch)
            .filter_map(|seen| seen.moved)
    }

    /// Returns a vote that has not changed for an hour, and should be deleted.
    pub(super) fn forgotten(&self, now: Instant) -> Option<(&str, Revision)> {
        let (label, seen) = self
            .seen
            .iter()
            .find(|(_, seen)| now.saturating_duration_since(seen.since) >= FORGOTTEN)?;
        Some((label, seen.revision))
    }
}

fn next(before: Option<Seen>, row: VoteRow, revision: Revision, now: Instant) -> Seen {
    match before {
        Some(seen) if seen.revision == revision => seen,
        before => Seen {
            epoch: row.epoch,
            revision,
            since: now,
            moved: before.map(|_| now),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn vote(label: &str, epoch: u64, revision: u128) -> (String, VoteRow, Revision) {
        let revision = Revision::from_u128(revision);
        (label.into(), VoteRow { epoch }, revision)
    }

    #[test]
    fn a_vote_counts_from_its_first_renewal_until_it_stands_still_for_three_periods() {
        let base = Instant::now();
        let mut votes = Votes::new(3 * SECOND);
        votes.read(vec![vote("a", 7, 1)], base);
        assert_eq!(votes.count(7, base), 0, "seen once");
        votes.read(vec![vote("a", 7, 1)], base + SECOND);
        assert_eq!(votes.count(7, base + SECOND), 0, "seen twice, the same");
        votes.read(vec![vote("a", 7, 2)], base + 2 * SECOND);
        assert_eq!(votes.count(7, base + 2 * SECOND), 1);
        assert_eq!(votes.count(8, base + 2 * SECOND), 0, "another epoch");
        votes.read(vec![vote("a", 7, 2)], base + 4 * SECOND);
        let end = base + 5 * SECOND;
        assert_eq!(votes.lapse(7, 0), Some(end));
        assert_eq!(votes.count(7, end - SECOND / 1000), 1);
        assert_eq!(votes.count(7, end), 0);
    }

    #[test]
    fn a_vote_that_was_gone_must_be_renewed_again() {
        let base = Instant::now();
        let mut votes = Votes::new(3 * SECOND);
        votes.read(vec![vote("a", 0, 1)], base);
        votes.read(vec![vote("a", 0, 2)], base);
        votes.read(vec![], base);
        votes.read(vec![vote("a", 0, 3)], base);
        assert_eq!(votes.count(0, base), 0);
    }

    #[test]
    fn a_vote_that_stands_still_for_an_hour_is_forgotten() {
        let base = Instant::now();
        let mut votes = Votes::new(3 * SECOND);
        votes.read(vec![vote("a", 0, 1), vote("b", 0, 1)], base);
        let hour = base + FORGOTTEN;
        votes.read(vec![vote("a", 0, 2), vote("b", 0, 1)], hour - SECOND);
        assert_eq!(votes.forgotten(hour - SECOND), None);
        let expected = ("b", Revision::from_u128(1));
        assert_eq!(votes.forgotten(hour), Some(expected));
    }
}
