//! How far this process is in each stream that it has lately seen.
use crate::{CommitId, StreamId, Version, keyed::RecentlyUsed, ports::PartitionId};
use std::collections::HashSet;

/// How far a processor is in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nobody has looked yet.
    Unknown,
    /// Nobody remembers: the first event seen is the base.
    NoBase,
    /// Up to and including this version, which belongs to this commit (if known).
    At(Version, Option<CommitId>),
}

/// The [`Progress`] in the streams that were seen lately. What is forgotten is asked of the projector again, or is at least
/// once again.
#[derive(Debug)]
pub(super) struct Streams(RecentlyUsed<StreamId, (PartitionId, Progress)>);

impl Streams {
    /// Remembers the given number of streams in any case.
    pub(super) fn new(capacity: usize) -> Self {
        Self(RecentlyUsed::new(capacity))
    }

    pub(super) fn get(&mut self, stream: &StreamId) -> Progress {
        self.0.get(stream).map_or(Progress::Unknown, |(_, p)| *p)
    }

    pub(super) fn set(&mut self, stream: &StreamId, partition: PartitionId, progress: Progress) {
        // Nothing to remember: of a foreign aggregate type, or its position could not be had.
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
        let at = |n: u64| Progress::At(Version::new(n), None);
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
