//! Lists that lag, and commits that are not yet seen.
use foldstream::{
    StreamId,
    ports::{Commit, CommitKey},
};
use std::collections::BTreeMap;

/// What an event store's reads and lists do not show yet, and for how many more calls.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    streams: BTreeMap<StreamId, u32>,
    unpublished: BTreeMap<CommitKey, u32>,
    /// Cleared by the caller, but still listed: cleared at the store when its time has come.
    cleared: BTreeMap<CommitKey, u32>,
    hidden: BTreeMap<CommitKey, u32>,
    /// As of which healing of the faults.
    healings: u64,
}

/// Takes one off each; what is at 0 goes, and is returned.
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
    /// Everything is shown at once if the faults were healed since. Returns what is to be cleared now.
    pub(super) fn heal(&mut self, healings: u64) -> Vec<CommitKey> {
        if self.healings == healings {
            return Vec::new();
        }
        let cleared = std::mem::take(&mut self.cleared);
        *self = Self {
            healings,
            ..Self::default()
        };
        cleared.into_keys().collect()
    }

    /// An append is not listed for so many calls of either list.
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

    /// Nothing of this place lags.
    pub(super) fn show(&mut self, key: &CommitKey) {
        self.unpublished.remove(key);
        self.hidden.remove(key);
        if key.first_version.get() == 1 {
            self.streams.remove(&key.stream);
        }
    }

    /// The streams that a call does not list; `is_start` if it begins at the beginning.
    pub(super) fn unlisted_streams(&mut self, is_start: bool) -> BTreeMap<StreamId, u32> {
        let unlisted = self.streams.clone();
        if is_start {
            count_down(&mut self.streams);
        }
        unlisted
    }
    /// The commits that a call does not list, and what is to be cleared before it.
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
    /// The commits of a stream that this read does not see.
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

/// Takes away a commit that others follow: the one at `place` of those that there are.
pub(super) fn with_hole(mut commits: Vec<Commit>, place: usize) -> Vec<Commit> {
    if commits.len() > 1 {
        commits.remove(place % (commits.len() - 1));
    }
    commits
}

/// Takes the last event from a commit that has several: the one at `place` of those that there are.
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
