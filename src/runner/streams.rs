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
    /// The first event seen was of a version after this one, in this partition. The versions up to
    /// it come before it in the same partition, so there they are duplicates. From another
    /// partition they may be new: the topic may have grown in between.
    before_base: Option<(PartitionId, Version, Version)>,
    /// Gaps that could not be filled, in order; the ends are included.
    gaps: Vec<(Version, Version)>,
}

impl Position {
    /// Returns true if an event of a version that is not after the newest one was never handled.
    pub(super) fn is_unhandled(&self, version: Version, from: &PartitionId) -> bool {
        self.unhandled.as_ref().is_some_and(|unhandled| {
            let base = unhandled.before_base.as_ref();
            base.is_some_and(|(partition, first, last)| {
                partition != from && (*first..=*last).contains(&version)
            }) || (unhandled.gaps.iter()).any(|(first, last)| (*first..=*last).contains(&version))
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
            Self::At(position) if version <= position.version => position.late(version),
            Self::At(position) => (position.version, position.commit_id) = (version, commit_id),
            Self::Unknown | Self::NoBase => {
                let last = Version::new(version.get().saturating_sub(1));
                let before_base =
                    (last > Version::NONE).then(|| (partition.clone(), Version::NONE.next(), last));
                let unhandled = before_base.map(|before_base| {
                    Box::new(Unhandled {
                        before_base: Some(before_base),
                        gaps: Vec::new(),
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

    /// Moves over versions that could not be had: they were never handled.
    pub(super) fn passed(&mut self, first: Version, last: Version) {
        if let Self::At(position) = self {
            (position.version, position.commit_id) = (last, None);
            let gaps = &mut position.unhandled.get_or_insert_default().gaps;
            gaps.push((first, last));
            if gaps.len() > MAX_GAPS {
                // The oldest ones become one: an event between them that comes again is handled
                // again, and none is dropped.
                let (_, end) = gaps.remove(1);
                gaps[0].1 = end;
            }
        }
    }
}

impl Position {
    /// An event of a lower version was handled.
    fn late(&mut self, version: Version) {
        let Some(unhandled) = &mut self.unhandled else {
            return;
        };
        if let Some((_, first, last)) = &mut unhandled.before_base {
            // Each partition delivers a stream in order, so what comes before this event there has
            // been handled as well.
            *first = (*first).max(version.next());
            if *first > *last {
                unhandled.before_base = None;
            }
        }
        if let Some(at) =
            (unhandled.gaps.iter()).position(|(first, last)| (*first..=*last).contains(&version))
        {
            let (first, last) = unhandled.gaps.remove(at);
            if version < last {
                unhandled.gaps.insert(at, (version.next(), last));
            }
            if first < version {
                let before = Version::new(version.get() - 1);
                unhandled.gaps.insert(at, (first, before));
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
