//! Locked shards of the in-memory event store, which make an append to several streams atomic.
use super::{
    lock,
    shard::{Look, Shard, Slot},
};
use foldstream::{
    StreamHead, StreamId, VersionConflict,
    ports::{Append, AppendAll, AppendOutcome},
};
use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

/// The locked shards of all streams of one append.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    /// The guards of the shards, ordered by shard number.
    guards: Vec<(u32, MutexGuard<'a, Shard>)>,
    all: u32,
    look: Look,
}

impl<'a> Locked<'a> {
    /// Locks the shards of all streams of an append, in ascending order.
    ///
    /// All locks are taken before any stream is read, so no reader sees half of the append. The
    /// common order rules out deadlocks between appends.
    pub(super) fn new(shards: &'a [Mutex<Shard>], append: &AppendAll, look: Look) -> Self {
        let all = u32::try_from(shards.len()).unwrap_or(u32::MAX);
        let commits = append.commits.iter().map(|commit| &commit.head);
        let heads = commits.chain(&append.unchanged);
        let numbers: BTreeSet<_> = heads.map(|head| head.stream().shard(all)).collect();
        let guards = numbers.into_iter().map(|n| (n, lock(&shards[n as usize])));
        Self {
            guards: guards.collect(),
            all,
            look,
        }
    }

    #[expect(
        clippy::expect_used,
        reason = "`new` has locked the shard of every stream of the append"
    )]
    fn shard(&mut self, stream: &StreamId) -> &mut Shard {
        let number = stream.shard(self.all);
        let found = self.guards.iter_mut().find(|(n, _)| *n == number);
        &mut found.expect("the stream is one of the append").1
    }
    fn check(&mut self, head: &StreamHead) -> Option<VersionConflict> {
        let look = self.look;
        let shard = self.shard(head.stream());
        shard.check(shard.number(head.stream()), head, look).err()
    }

    /// Returns the first head of the append that is not part of its stream's history.
    pub(super) fn unknown(&mut self, append: &AppendAll) -> Option<StreamHead> {
        let commits = append.commits.iter().map(|commit| &commit.head);
        let mut heads = commits.chain(&append.unchanged);
        let found = heads.find(|head| {
            let shard = self.shard(head.stream());
            !shard.holds(shard.number(head.stream()), head)
        });
        found.cloned()
    }

    pub(super) fn append(
        &mut self,
        append: &AppendAll,
        listed: bool,
    ) -> AppendOutcome<Vec<StreamHead>> {
        let mut repeated = Vec::new();
        let mut conflict = None;
        let look = self.look;
        for commit in &append.commits {
            let shard = self.shard(commit.head.stream());
            match shard.slot(shard.number(commit.head.stream()), commit, look) {
                Slot::Free => {}
                Slot::Taken(found) => conflict = conflict.or(Some(found)),
                Slot::Mine(stored) => {
                    repeated.push(stored);
                    // This commit of the append is stored. Unless all others are stored too, its
                    // stream has moved past the head, which is a conflict.
                    conflict = conflict.or_else(|| self.check(&commit.head));
                }
            }
        }
        // An earlier attempt has stored all commits. That counts as success, even if other writers
        // have appended since.
        if repeated.len() == append.commits.len() {
            return AppendOutcome::Repeated(repeated);
        }
        let mut unchanged = append.unchanged.iter();
        if let Some(conflict) = conflict.or_else(|| unchanged.find_map(|head| self.check(head))) {
            return AppendOutcome::Conflict(conflict);
        }
        let push = |commit: &Append| {
            let shard = self.shard(commit.head.stream());
            shard.push(shard.number(commit.head.stream()), commit, listed)
        };
        AppendOutcome::Appended(append.commits.iter().map(push).collect())
    }
}
