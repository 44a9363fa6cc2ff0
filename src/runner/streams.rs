//! The progress of a processor in the streams that it has lately seen.
use crate::{CommitId, StreamId, Version, keyed::RecentlyUsed, ports::PartitionId};
use std::collections::HashSet;

/// The most gaps that are remembered of one stream. Above it neighbours are merged, and an event
/// between them that comes again is handled again.
const MAX_GAPS: usize = 16;

/// The progress of a processor in one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nobody has asked yet.
    Unknown,
    /// Nobody remembers: the first event seen is the base.
    NoBase,
    /// Events of the stream were handled.
    At(Position),
}

/// The newest version of a stream that was handled, and what is not certain before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) version: Version,
    /// The commit of that event, if it is known.
    pub(super) commit_id: Option<CommitId>,
    /// Almost always nothing.
    unhandled: Option<Box<Unhandled>>,
}

/// Versions that may never have been handled although a newer one was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unhandled {
    before_base: Option<BeforeBase>,
    /// Gaps that could not be filled.
    gaps: Versions,
}

/// The versions before the first event seen. They may come from other partitions: the topic may
/// have grown in between, also more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct BeforeBase {
    /// The versions that were not handled since.
    open: Versions,
    /// The newest of these versions that each partition has passed. A partition holds a stream in
    /// order, so what it delivers of the versions up to there are duplicates.
    passed: Vec<(PartitionId, Version)>,
}

impl BeforeBase {
    fn contains(&self, version: Version, from: &PartitionId) -> bool {
        let mut passed = self.passed.iter();
        self.open.contains(version) && !passed.any(|(of, to)| of == from && version <= *to)
    }

    fn remove(&mut self, version: Version, from: &PartitionId) {
        self.open.remove(version);
        match self.passed.iter_mut().find(|(of, _)| of == from) {
            Some((_, to)) => *to = version.max(*to),
            None => self.passed.push((from.clone(), version)),
        }
    }
}

/// Ranges of versions in ascending order; the ends are included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Versions(Vec<(Version, Version)>);

impl Versions {
    fn contains(&self, version: Version) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&version))
    }

    fn add(&mut self, first: Version, last: Version) {
        self.0.push((first, last));
        self.bound();
    }

    fn remove(&mut self, version: Version) {
        let mut ranges = self.0.iter();
        let Some(at) = ranges.position(|(first, last)| (*first..=*last).contains(&version)) else {
            return;
        };
        let (first, last) = self.0.remove(at);
        if version < last {
            self.0.insert(at, (version.next(), last));
        }
        if first < version {
            let before = Version::new(version.get() - 1);
            self.0.insert(at, (first, before));
        }
        self.bound();
    }

    /// The two lowest ranges become one: an event between them that comes again is handled again,
    /// and none is dropped.
    fn bound(&mut self) {
        if self.0.len() > MAX_GAPS {
            let (_, end) = self.0.remove(1);
            self.0[0].1 = end;
        }
    }
}

impl Position {
    /// Returns true if an event of a version that is not after the newest one was never handled.
    pub(super) fn is_unhandled(&self, version: Version, from: &PartitionId) -> bool {
        self.unhandled.as_ref().is_some_and(|unhandled| {
            let base = unhandled.before_base.as_ref();
            base.is_some_and(|base| base.contains(version, from))
                || unhandled.gaps.contains(version)
        })
    }
}

impl Progress {
    /// The position that a store keeps.
    pub(super) const fn at(version: Version, commit_id: Option<CommitId>) -> Self {
        Self::At(Position {
            version,
            commit_id,
            unhandled: None,
        })
    }

    /// Moves over an event that was handled.
    pub(super) fn handled(
        &mut self,
        version: Version,
        commit_id: Option<CommitId>,
        partition: &PartitionId,
    ) {
        match self {
            Self::At(position) if version <= position.version => position.late(version, partition),
            Self::At(position) => (position.version, position.commit_id) = (version, commit_id),
            Self::Unknown | Self::NoBase => {
                let last = Version::new(version.get().saturating_sub(1));
                let unhandled = (last > Version::NONE).then(|| {
                    let base = BeforeBase {
                        open: Versions(vec![(Version::NONE.next(), last)]),
                        passed: vec![(partition.clone(), last)],
                    };
                    Box::new(Unhandled {
                        before_base: Some(base),
                        gaps: Versions::default(),
                    })
                });
                *self = Self::At(Position {
                    version,
                    commit_id,
                    unhandled,
                });
            }
        }
    }

    /// Moves over all versions up to this one, which were handled elsewhere. What was never handled
    /// before the newest version stays so.
    pub(super) fn reached(&mut self, version: Version) {
        match self {
            Self::At(position) if version <= position.version => {}
            Self::At(position) => (position.version, position.commit_id) = (version, None),
            Self::Unknown | Self::NoBase => *self = Self::at(version, None),
        }
    }

    /// Moves over versions that could not be had: they were never handled.
    pub(super) fn passed(&mut self, first: Version, last: Version) {
        if let Self::At(position) = self {
            (position.version, position.commit_id) = (last, None);
            let unhandled = position.unhandled.get_or_insert_default();
            unhandled.gaps.add(first, last);
        }
    }
}

impl Position {
    /// An event of a lower version was handled.
    fn late(&mut self, version: Version, from: &PartitionId) {
        let Some(unhandled) = &mut self.unhandled else {
            return;
        };
        unhandled.gaps.remove(version);
        if let Some(base) = &mut unhandled.before_base {
            base.remove(version, from);
            if base.open == Versions::default() {
                unhandled.before_base = None;
            }
        }
        if *self.unhandled.as_deref().unwrap_or(&Unhandled::default()) == Unhandled::default() {
            self.unhandled = None;
        }
    }
}

/// The [`Progress`] in the streams that were seen lately. What is forgotten is asked of the store
/// again, or delivered at least once again.
#[derive(Debug)]
pub(super) struct Streams(RecentlyUsed<StreamId, (PartitionId, Progress)>);

impl Streams {
    /// Remembers at least the given number of streams.
    pub(super) fn new(capacity: usize) -> Self {
        Self(RecentlyUsed::new(capacity))
    }

    pub(super) fn get(&mut self, stream: &StreamId) -> Progress {
        let known = self.0.get(stream);
        known.map_or(Progress::Unknown, |(_, progress)| progress.clone())
    }

    pub(super) fn set(&mut self, stream: &StreamId, partition: PartitionId, progress: Progress) {
        // There is nothing to remember of a foreign aggregate type, or if the position could not be
        // had.
        if progress != Progress::Unknown {
            self.0.insert(stream.clone(), (partition, progress));
        }
    }

    /// Forgets the streams of partitions that others may work on from now on.
    pub(super) fn forget(&mut self, partitions: &HashSet<PartitionId>) {
        self.0.retain(|_, (p, _)| !partitions.contains(p));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_streams_of_lost_partitions_are_forgotten() {
        let stream = |n: u64| StreamId::new("s", &n).unwrap();
        let at = |n: u64| Progress::at(Version::new(n), None);
        let mut streams = Streams::new(4);
        for n in 0..6 {
            streams.set(&stream(n), PartitionId::new("t", n as u32 % 2), at(n));
        }
        streams.forget(&[PartitionId::new("t", 0)].into());
        let known: Vec<_> = (0..6).map(|n| streams.get(&stream(n))).collect();
        assert_eq!(known[5], at(5));
        assert!([0, 2, 4].iter().all(|n| known[*n] == Progress::Unknown));
    }

    #[test]
    fn a_stream_without_progress_takes_no_place() {
        let mut streams = Streams::new(10);
        let stream = StreamId::new("s", &1).unwrap();
        streams.set(&stream, PartitionId::new("t", 0), Progress::Unknown);
        assert_eq!(streams.0.len(), 0);
    }
}
