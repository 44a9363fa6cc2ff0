//! Notices: hints that a stream has unpublished commits.
use crate::{
    StreamId, Version,
    ports::{Commit, CommitKey},
};
use std::collections::BTreeMap;

/// A trigger's hint that a stream has something new. It may come late, twice, and in any order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The whole commit, as a change stream shows it: saves the read where it is the next one to publish. A part of a
    /// commit that its adapter has split is never this, but a [`Key`](Self::Key).
    Commit(Commit),
    /// Its place; the store is read.
    Key(CommitKey),
}
impl Notice {
    /// The stream.
    pub const fn stream(&self) -> &StreamId {
        match self {
            Self::Commit(commit) => &commit.stream,
            Self::Key(key) => &key.stream,
        }
    }
    const fn first_version(&self) -> Version {
        match self {
            Self::Commit(commit) => commit.first_version,
            Self::Key(key) => key.first_version,
        }
    }
}
impl From<CommitKey> for Notice {
    fn from(key: CommitKey) -> Self {
        Self::Key(key)
    }
}
impl From<Commit> for Notice {
    fn from(commit: Commit) -> Self {
        Self::Commit(commit)
    }
}

/// All notices of one stream in one call.
#[derive(Debug)]
pub(super) struct Bells {
    pub(super) stream: StreamId,
    /// By the version of the commit's first event. A watermark at or above it covers the whole commit, since
    /// watermarks stand at commit ends only.
    by_version: BTreeMap<Version, Bell>,
}

#[derive(Debug)]
struct Bell {
    notice: Option<usize>,
    commit: Option<Commit>,
}

impl Bells {
    /// Joins the notices of each stream; `numbered` keeps their places.
    pub(super) fn by_stream(
        notices: impl IntoIterator<Item = (Option<usize>, Notice)>,
    ) -> BTreeMap<StreamId, Self> {
        let mut streams = BTreeMap::new();
        for (place, notice) in notices {
            let bells = streams
                .entry(notice.stream().clone())
                .or_insert_with_key(|stream| Self {
                    stream: StreamId::clone(stream),
                    by_version: BTreeMap::new(),
                });
            bells.add(place, notice);
        }
        streams
    }

    fn add(&mut self, place: Option<usize>, notice: Notice) {
        let version = notice.first_version();
        let commit = match notice {
            Notice::Commit(commit) => Some(commit),
            Notice::Key(_) => None,
        };
        match self.by_version.entry(version) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(Bell {
                    notice: place,
                    commit,
                });
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                let bell = slot.get_mut();
                bell.notice = bell.notice.min(place);
                match (&bell.commit, commit) {
                    (None, commit) => bell.commit = commit,
                    // Two commits claim one place: only the store knows which is real.
                    (Some(a), Some(b)) if a.id != b.id => bell.commit = None,
                    _ => {}
                }
            }
        }
    }

    /// The commit that starts at this version, if a notice brought it.
    pub(super) fn take_commit(&mut self, first: Version) -> Option<Commit> {
        self.by_version.get_mut(&first)?.commit.take()
    }

    /// The lowest version named above the watermark.
    pub(super) fn lowest_above(&self, watermark: Version) -> Option<Version> {
        let mut above = self.by_version.range(watermark.next()..);
        above.next().map(|(version, _)| *version)
    }

    /// The places named at or below the watermark.
    pub(super) fn covered(&self, watermark: Version) -> impl Iterator<Item = Version> + '_ {
        self.by_version.range(..=watermark).map(|(v, _)| *v)
    }

    /// The commits that notices brought at or below the watermark, newest first.
    pub(super) fn commits_covered(&self, watermark: Version) -> impl Iterator<Item = &Commit> + '_ {
        let covered = self.by_version.range(..=watermark).rev();
        covered.filter_map(|(_, bell)| bell.commit.as_ref())
    }

    /// Drops what the watermark covers and is dealt with.
    pub(super) fn forget_covered(&mut self, watermark: Version) {
        self.by_version = self.by_version.split_off(&watermark.next());
    }

    /// The first notice that the watermark does not cover.
    pub(super) fn first_uncovered(&self, watermark: Version) -> Option<usize> {
        let above = self.by_version.range(watermark.next()..);
        above.filter_map(|(_, bell)| bell.notice).min()
    }
}
