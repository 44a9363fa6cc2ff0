//! Lists that lag, and commits that reads do not show yet.
use foldstream::{
    StreamId,
    ports::{Commit, CommitKey},
};
use std::collections::BTreeMap;

/// The commits and streams that an event store's reads and lists do not show yet.
///
/// Each value is the number of further calls that do not show its key.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    streams: BTreeMap<StreamId, u32>,
    unpublished: BTreeMap<CommitKey, u32>,
    /// Commits that the caller has cleared and that are still listed. They are cleared at the store
    /// once their number of calls is over.
    cleared: BTreeMap<CommitKey, u32>,
    hidden: BTreeMap<CommitKey, u32>,
    /// The number of times that the faults were disabled when this state was current.
    times_disabled: u64,
}

/// Subtracts one call from each entry. Removes and returns the entries that have none left.
fn count_down<K: Ord + Clone>(lagging: &mut BTreeMap<K, u32>) -> Vec<K> {
    let over = lagging
        .iter()
        .filter(|(_, left)| **left <= 1)
        .map(|(key, _)| key.clone())
        .collect::<Vec<_>>();
    lagging.retain(|_, left| {
        *left = left.saturating_sub(1);
        *left > 0
    });
    over
}

impl Lagging {
    /// Shows everything if the faults were disabled since the last call. Returns the commits to
    /// clear at the store now.
    pub(super) fn catch_up(&mut self, times_disabled: u64) -> Vec<CommitKey> {
        if self.times_disabled == times_disabled {
            return Vec::new();
        }
        let cleared = std::mem::take(&mut self.cleared);
        *self = Self {
            times_disabled,
            ..Self::default()
        };
        cleared.into_keys().collect()
    }

    /// Leaves an appended commit out of both lists for this number of calls each.
    pub(super) fn append(&mut self, key: CommitKey, is_first: bool, calls: u32) {
        if calls > 0 {
            if is_first {
                self.streams.insert(key.stream.clone(), calls);
            }
            self.unpublished.insert(key, calls);
        }
    }
    pub(super) fn clear(&mut self, keys: &[CommitKey], calls: u32) {
        let keys = keys.iter().cloned();
        self.cleared.extend(keys.map(|key| (key, calls.max(1))));
    }
    pub(super) fn hide(&mut self, key: CommitKey, reads: u32) {
        if reads > 0 {
            self.hidden.insert(key, reads);
        }
    }

    /// Shows a commit and its stream at once.
    pub(super) fn show(&mut self, key: &CommitKey) {
        self.unpublished.remove(key);
        self.hidden.remove(key);
        if key.first_version.get() == 1 {
            self.streams.remove(&key.stream);
        }
    }

    /// Returns the streams that a call does not list. `is_start` says that the call begins the
    /// list.
    pub(super) fn unlisted_streams(&mut self, is_start: bool) -> BTreeMap<StreamId, u32> {
        let unlisted = self.streams.clone();
        if is_start {
            count_down(&mut self.streams);
        }
        unlisted
    }
    /// Returns the commits that a call does not list, and those to clear at the store before the
    /// call.
    pub(super) fn unlisted_commits(
        &mut self,
        is_start: bool,
    ) -> (BTreeMap<CommitKey, u32>, Vec<CommitKey>) {
        let unlisted = self.unpublished.clone();
        if !is_start {
            return (unlisted, Vec::new());
        }
        count_down(&mut self.unpublished);
        let due = |left: &u32| *left == 0;
        let clear: Vec<_> = self
            .cleared
            .iter()
            .filter(|(_, left)| due(left))
            .map(|(key, _)| key.clone())
            .collect();
        self.cleared.retain(|_, left| {
            let is_due = due(left);
            *left = left.saturating_sub(1);
            !is_due
        });
        (unlisted, clear)
    }
    /// Returns the commits of a stream that a read does not show.
    pub(super) fn unseen(&mut self, stream: &StreamId) -> Vec<CommitKey> {
        let of_stream = |key: &&CommitKey| key.stream == *stream;
        let unseen: Vec<_> = self.hidden.keys().filter(of_stream).cloned().collect();
        self.hidden.retain(|key, left| {
            if key.stream == *stream {
                *left -= 1;
            }
            *left > 0
        });
        unseen
    }
}

/// Removes a commit that is not the last one. `place` selects it, modulo the number of candidates.
pub(super) fn with_hole(mut commits: Vec<Commit>, place: usize) -> Vec<Commit> {
    if commits.len() > 1 {
        commits.remove(place % (commits.len() - 1));
    }
    commits
}

/// Removes the last event of a commit that has several. `place` selects the commit, modulo the
/// number of candidates.
pub(super) fn with_torn_commit(mut commits: Vec<Commit>, place: usize) -> Vec<Commit> {
    let several: Vec<_> = (0..commits.len())
        .filter(|n| commits[*n].events.len() > 1)
        .collect();
    if let Some(&torn) = several.get(place % several.len().max(1)) {
        let commit = &mut commits[torn];
        commit.events = commit.events[..commit.events.len() - 1].into();
    }
    commits
}
