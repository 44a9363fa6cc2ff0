//! How far this process is in each stream that it has lately seen.
use crate::{CommitId, StreamId, Version, ports::PartitionId};
use std::collections::HashMap;

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

/// A bounded cache of [`Progress`], in two generations: when the young one is full it becomes the old one, and what is
/// looked up moves to the young one. What is forgotten is asked of the projector again, or is at least once again.
#[derive(Debug)]
pub(super) struct Streams {
    young: HashMap<StreamId, (PartitionId, Progress)>,
    old: HashMap<StreamId, (PartitionId, Progress)>,
    capacity: usize,
}

impl Streams {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            capacity: capacity.max(1),
        }
    }

    pub(super) fn get(&mut self, stream: &StreamId) -> Progress {
        if let Some((_, progress)) = self.young.get(stream) {
            return *progress;
        }
        match self.old.remove(stream) {
            Some((partition, progress)) => {
                self.set(stream, partition, progress);
                progress
            }
            None => Progress::Unknown,
        }
    }

    pub(super) fn set(&mut self, stream: &StreamId, partition: PartitionId, progress: Progress) {
        // Nothing to remember: of a foreign aggregate type, or its position could not be had.
        if progress == Progress::Unknown {
            return;
        }
        if let Some(known) = self.young.get_mut(stream) {
            *known = (partition, progress);
            return;
        }
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stream.clone(), (partition, progress));
    }

    /// Forgets the streams of partitions that others may work on from now on.
    pub(super) fn forget(&mut self, partitions: &std::collections::HashSet<PartitionId>) {
        self.young.retain(|_, (p, _)| !partitions.contains(p));
        self.old.retain(|_, (p, _)| !partitions.contains(p));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let stream = |n: u64| StreamId::new("s", &n).unwrap();
        let at = |n: u64| Progress::At(Version::new(n), None);
        let mut streams = Streams::new(10);
        for n in 0..100 {
            streams.set(&stream(n), PartitionId::new("t", 0), at(n));
            assert_eq!(streams.get(&stream(0)), at(0));
        }
        assert!(streams.young.len() + streams.old.len() <= 20);
        assert_eq!(streams.get(&stream(1)), Progress::Unknown);
        assert_eq!(streams.get(&stream(99)), at(99));
    }

    #[test]
    fn a_stream_without_progress_takes_no_place() {
        let mut streams = Streams::new(10);
        let stream = StreamId::new("s", &1).unwrap();
        streams.set(&stream, PartitionId::new("t", 0), Progress::Unknown);
        assert!(streams.young.is_empty());
    }
}
