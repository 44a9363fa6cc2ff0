//! The window of one partition: which records are done, and how far the group may commit.
use crate::ports::Offset;
use std::collections::VecDeque;

/// Offsets between the low watermark and the newest record received. Offsets may have holes (compaction, markers).
#[derive(Debug)]
pub(super) struct Window {
    /// What may be committed: the first record that is not done, or one past the last that is.
    low: Offset,
    committed: Offset,
    records: VecDeque<Held>,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    offset: Offset,
    bytes: usize,
    is_done: bool,
}

impl Window {
    pub(super) const fn starting_at(next: Offset) -> Self {
        Self {
            low: next,
            committed: next,
            records: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes a record in. False: it is behind the window already, thus done, and must be dropped.
    pub(super) fn push(&mut self, offset: Offset, bytes: usize) -> bool {
        let expected = self.records.back().map_or(self.low, |r| r.offset.next());
        if offset < expected {
            return false;
        }
        self.records.push_back(Held {
            offset,
            bytes,
            is_done: false,
        });
        self.bytes += bytes;
        true
    }

    /// Marks a record as done and moves the low watermark over what is done.
    pub(super) fn done(&mut self, offset: Offset) {
        if let Ok(at) = self.records.binary_search_by_key(&offset, |r| r.offset) {
            self.records[at].is_done = true;
        }
        while let Some(first) = self.records.pop_front_if(|r| r.is_done) {
            self.bytes -= first.bytes;
            self.low = first.offset.next();
        }
        // A hole in front of the first open record holds nothing to wait for.
        if let Some(first) = self.records.front() {
            self.low = first.offset;
        }
    }

    /// The next offset that the group may commit, if it is further than what is committed.
    pub(super) fn to_commit(&self) -> Option<Offset> {
        (self.low > self.committed).then_some(self.low)
    }

    pub(super) fn committed(&mut self, next: Offset) {
        self.committed = self.committed.max(next);
    }

    /// The low watermark.
    pub(super) const fn low(&self) -> Offset {
        self.low
    }

    /// The first record that is not done.
    pub(super) fn first_open(&self) -> Option<Offset> {
        self.records.front().map(|record| record.offset)
    }

    /// Records done but not committed, about: holes count.
    pub(super) const fn uncommitted(&self) -> u64 {
        self.low.get() - self.committed.get()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(offset: u64) -> Offset {
        Offset::new(offset)
    }

    #[test]
    fn the_low_watermark_never_passes_an_open_record() {
        let mut window = Window::starting_at(at(10));
        for offset in [10, 11, 14] {
            assert!(window.push(at(offset), 100));
        }
        window.done(at(11));
        assert_eq!(
            (window.low(), window.to_commit(), window.len()),
            (at(10), None, 3)
        );
        window.done(at(10));
        assert_eq!((window.low(), window.to_commit()), (at(14), Some(at(14))));
        window.done(at(14));
        assert_eq!((window.low(), window.len(), window.bytes()), (at(15), 0, 0));
        window.committed(at(15));
        assert_eq!((window.to_commit(), window.uncommitted()), (None, 0));
    }

    #[test]
    fn a_record_behind_the_window_is_refused() {
        let mut window = Window::starting_at(at(5));
        assert!(!window.push(at(4), 1));
        assert!(window.push(at(5), 1));
        assert!(!window.push(at(5), 1));
        window.done(at(5));
        assert!(!window.push(at(5), 1));
    }
}
