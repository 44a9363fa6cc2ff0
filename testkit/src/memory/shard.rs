//! A shard of the in-memory event store, which holds some of the streams in the order of their
//! first commit.
use super::event_store::unsupported;
use foldstream::{
    CommitId, StreamHead, StreamId, Version, VersionConflict,
    adapter::version_conflict,
    ports::{Append, Commit, CommitKey, EventStoreError, ReadFrom},
};
use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

/// A hash without a random seed (Fx, eight bytes per step).
///
/// The map is only used for look-ups, but a random seed would still make two runs of one simulation
/// differ in timing and memory.
#[derive(Debug, Default)]
struct FixedHasher(u64);
impl FixedHasher {
    const fn step(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
impl Hasher for FixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.step(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.step(u64::from_le_bytes(last));
    }
    fn finish(&self) -> u64 {
        // The map takes its bucket from the low bits, which a multiplication mixes least.
        self.0 ^ (self.0 >> 32)
    }
}

/// The commits of one stream, which are never changed.
#[derive(Debug, Default)]
struct History {
    commits: Vec<Commit>,
    /// The version and id of the last commit. Most appends and reads need nothing else.
    tail: (Version, Option<CommitId>),
    /// The index below which all commits are cleared. Publishers clear in order, so usually no
    /// commit at or above it is cleared.
    cleared: usize,
    /// The indexes at or above `cleared` of commits that were cleared out of order.
    cleared_ahead: BTreeSet<usize>,
}

impl History {
    fn push(&mut self, commit: Commit) {
        let place = self.place_of(commit.first_version);
        if commit.last_version() > self.tail.0 {
            self.tail = (commit.last_version(), Some(commit.id));
        }
        if place < self.commits.len() {
            self.make_room(place);
        }
        self.commits.insert(place, commit);
    }
    /// Returns the index at which a commit is inserted.
    ///
    /// This is almost always the end. Only a store that does not check heads has commits after a
    /// hole.
    fn place_of(&self, first: Version) -> usize {
        match self.commits.last() {
            Some(last) if last.first_version > first => {
                self.commits.partition_point(|c| c.first_version < first)
            }
            _ => self.commits.len(),
        }
    }
    /// Moves the cleared indexes from `place` on by one, so that a commit can be inserted that is
    /// not cleared.
    fn make_room(&mut self, place: usize) {
        let cleared = (place..self.cleared).map(|index| index + 1);
        let ahead = self.cleared_ahead.iter();
        let ahead = ahead.map(|&index| index + usize::from(index >= place));
        self.cleared_ahead = cleared.chain(ahead).collect();
        self.cleared = self.cleared.min(place);
    }
    /// Returns true if the head's commit ends at the head's version. Version 0 is in every history.
    fn holds(&self, head: &StreamHead) -> bool {
        let version = head.version();
        let ends = |c: &Commit| c.last_version() == version && Some(c.id) == head.commit_id();
        version == Version::NONE || self.commits.iter().any(ends)
    }
    /// Returns the commit that starts at a version, with its index.
    fn starting_at(&self, version: Version) -> Option<(usize, &Commit)> {
        let found = self
            .commits
            .binary_search_by_key(&version, |c| c.first_version);
        found.ok().map(|index| (index, &self.commits[index]))
    }
    fn has_unpublished(&self) -> bool {
        self.cleared < self.commits.len()
    }
    fn clear(&mut self, index: usize) {
        if index < self.cleared {
            return;
        }
        self.cleared_ahead.insert(index);
        while self.cleared_ahead.remove(&self.cleared) {
            self.cleared += 1;
        }
    }
}

/// The check of an append's head before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The head must be the tail, commit id included.
    AtTheTail,
    /// No commit may start right after the head, whatever is before it. DynamoDB checks the same.
    AtTheSlot,
}

/// The state of the slot in which an append would store its commit, right after its head.
#[derive(Debug)]
pub(super) enum Slot {
    /// The commit can be stored.
    Free,
    /// The commit of this append is stored already.
    Mine(Commit),
    /// Another commit conflicts with the append.
    Taken(VersionConflict),
}

/// The position of a read: the index of the next commit, plus one for a backwards read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadAt {
    Forwards(usize),
    Backwards(usize),
}

/// Refuses a start that no read of this stream can have, whether or not the stream exists.
fn check_start(stream: &StreamId, from: &ReadFrom) -> Result<(), EventStoreError> {
    match from {
        ReadFrom::After(head) if head.stream() != stream => Err(EventStoreError::Invalid {
            reason: format!(
                "a read of {stream} cannot start after a head of {}",
                head.stream()
            ),
        }),
        ReadFrom::After(_)
        | ReadFrom::Event(_)
        | ReadFrom::Newest
        | ReadFrom::NewestAtOrBelow(_) => Ok(()),
        other => Err(unknown_start(other)),
    }
}

fn unknown_start(from: &ReadFrom) -> EventStoreError {
    unsupported(format!(
        "this store does not know how to read from {from:?}"
    ))
}

#[derive(Debug, Default)]
pub(super) struct Shard {
    numbers: HashMap<StreamId, usize, BuildHasherDefault<FixedHasher>>,
    histories: Vec<History>,
    /// The numbers of the streams with commits that are not cleared.
    unpublished: BTreeSet<usize>,
}

impl Shard {
    /// Returns the number of a stream, if the stream has commits.
    pub(super) fn number(&self, stream: &StreamId) -> Option<usize> {
        self.numbers.get(stream).copied()
    }

    /// Returns true if a head is part of the history of the stream with this number.
    pub(super) fn holds(&self, number: Option<usize>, head: &StreamHead) -> bool {
        match number {
            Some(number) => self.histories[number].holds(head),
            None => head.version() == Version::NONE,
        }
    }

    /// Checks that an append after this head can be stored.
    ///
    /// The commit id of the head counts too, because a version alone does not identify a history.
    pub(super) fn check(
        &self,
        number: Option<usize>,
        head: &StreamHead,
        look: Look,
    ) -> Result<(), VersionConflict> {
        let conflict = |actual| {
            let (stream, expected) = (head.stream().clone(), head.version());
            Err(version_conflict(stream, expected, Some(actual)))
        };
        if look == Look::AtTheSlot {
            return match self.in_slot(number, head) {
                Some(taken) => conflict(taken.last_version()),
                None => Ok(()),
            };
        }
        let tail = number.map_or((Version::NONE, None), |n| self.histories[n].tail);
        if tail == (head.version(), head.commit_id()) {
            return Ok(());
        }
        conflict(tail.0)
    }

    /// Returns the commit that starts right after a head.
    fn in_slot(&self, number: Option<usize>, head: &StreamHead) -> Option<&Commit> {
        let history = &self.histories[number?];
        let (_, commit) = history.starting_at(head.version().next())?;
        Some(commit)
    }

    pub(super) fn slot(&self, number: Option<usize>, append: &Append, look: Look) -> Slot {
        let Err(conflict) = self.check(number, &append.head, look) else {
            return Slot::Free;
        };
        match self.in_slot(number, &append.head) {
            Some(commit) if commit.id == append.commit_id => Slot::Mine(commit.clone()),
            _ => Slot::Taken(conflict),
        }
    }

    /// Stores a commit whose slot is free.
    pub(super) fn push(
        &mut self,
        number: Option<usize>,
        append: &Append,
        listed: bool,
    ) -> StreamHead {
        self.store(number, append.to_commit(), listed);
        append.head_after()
    }

    /// Stores a commit at its version.
    pub(super) fn store(&mut self, number: Option<usize>, commit: Commit, listed: bool) {
        let number = number.unwrap_or_else(|| {
            let number = self.histories.len();
            self.numbers.insert(commit.stream.clone(), number);
            self.histories.push(History::default());
            number
        });
        let history = &mut self.histories[number];
        if listed && !history.has_unpublished() {
            self.unpublished.insert(number);
        }
        history.push(commit);
    }

    /// Returns the start position of a read, or `None` if the stream is empty.
    pub(super) fn start(
        &self,
        stream: &StreamId,
        from: &ReadFrom,
    ) -> Result<Option<(usize, ReadAt)>, EventStoreError> {
        check_start(stream, from)?;
        let Some(number) = self.number(stream) else {
            return Ok(None);
        };
        let history = &self.histories[number];
        let commits = &history.commits;
        let at = match from {
            ReadFrom::After(head) => {
                let first = head.version().next();
                if first > history.tail.0 {
                    ReadAt::Forwards(commits.len())
                } else if let Some((index, _)) = history.starting_at(first) {
                    ReadAt::Forwards(index)
                } else {
                    // No store returns a head that points into a commit. A read from here on would
                    // omit events of that commit.
                    let version = head.version();
                    return Err(EventStoreError::Corrupt {
                        stream: stream.clone(),
                        after: version,
                        reason: format!("no commit starts after version {version}"),
                    });
                }
            }
            ReadFrom::Event(version) => {
                ReadAt::Forwards(commits.partition_point(|c| c.last_version() < *version))
            }
            ReadFrom::Newest => ReadAt::Backwards(commits.len()),
            ReadFrom::NewestAtOrBelow(version) => {
                ReadAt::Backwards(commits.partition_point(|c| c.last_version() <= *version))
            }
            other => return Err(unknown_start(other)),
        };
        Ok(Some((number, at)))
    }

    /// Returns the next commits of a read, at most `max`, and the position after them.
    pub(super) fn page(&self, number: usize, at: ReadAt, max: usize) -> (Vec<Commit>, ReadAt) {
        let commits = &self.histories[number].commits;
        match at {
            ReadAt::Forwards(start) => {
                let end = start.saturating_add(max).min(commits.len());
                (commits[start..end].to_vec(), ReadAt::Forwards(end))
            }
            ReadAt::Backwards(end) => {
                let start = end.saturating_sub(max);
                let page = commits[start..end].iter().rev().cloned().collect();
                (page, ReadAt::Backwards(start))
            }
        }
    }

    /// Passes the commits from a position on to `take` until it returns false.
    ///
    /// Returns the position of the commit that was not taken, or `None` at the end.
    pub(super) fn walk_commits(
        &self,
        stream: usize,
        commit: usize,
        mut take: impl FnMut(&Commit) -> bool,
    ) -> Option<(usize, usize)> {
        let mut first = commit;
        for number in stream..self.histories.len() {
            for (index, commit) in self.histories[number]
                .commits
                .iter()
                .enumerate()
                .skip(first)
            {
                if !take(commit) {
                    return Some((number, index));
                }
            }
            first = 0;
        }
        None
    }

    /// Passes commits that are not cleared to `take`, as [`walk_commits`](Self::walk_commits) does.
    pub(super) fn walk_unpublished(
        &self,
        stream: usize,
        commit: usize,
        mut take: impl FnMut(CommitKey) -> bool,
    ) -> Option<(usize, usize)> {
        for &number in self.unpublished.range(stream..) {
            let history = &self.histories[number];
            let first = if number == stream { commit } else { 0 };
            let first = first.max(history.cleared);
            for (index, commit) in history.commits.iter().enumerate().skip(first) {
                if !history.cleared_ahead.contains(&index) && !take(commit.key()) {
                    return Some((number, index));
                }
            }
        }
        None
    }

    /// Returns the key of the first commit of the stream with this number.
    pub(super) fn first_key(&self, stream: usize) -> Option<CommitKey> {
        let history = self.histories.get(stream)?;
        history.commits.first().map(Commit::key)
    }

    /// Passes streams to `take`, as [`walk_commits`](Self::walk_commits) does with commits.
    pub(super) fn walk_streams(
        &self,
        stream: usize,
        mut take: impl FnMut(&StreamId) -> bool,
    ) -> Option<(usize, usize)> {
        for (number, history) in self.histories.iter().enumerate().skip(stream) {
            // Every history has a commit, because both are added under one lock.
            if history.commits.first().is_some_and(|c| !take(&c.stream)) {
                return Some((number, 0));
            }
        }
        None
    }

    pub(super) fn clear_unpublished(&mut self, key: &CommitKey) {
        let Some(number) = self.number(&key.stream) else {
            return;
        };
        let history = &mut self.histories[number];
        if let Some((index, _)) = history.starting_at(key.first_version) {
            history.clear(index);
            if !history.has_unpublished() {
                self.unpublished.remove(&number);
            }
        }
    }
}
