//! The window of one partition: the records that are not done, and the offset that the group may commit.
use crate::ports::Offset;
use std::collections::VecDeque;

/// The offsets between the low watermark and the newest offset that the consumer has told. Offsets may have holes
/// (compaction, markers).
#[derive(Debug)]
pub(super) struct Window {
    /// The offset that may be committed: the first record that is not done, or `next`.
    low: Offset,
    /// One past the newest offset that the consumer has delivered or has said to hold nothing.
    next: Offset,
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
            next,
            committed: next,
            records: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes a record in. Returns false if the window has passed its offset already, so that the record must be dropped.
    pub(super) fn push(&mut self, offset: Offset, bytes: usize) -> bool {
        if offset < self.next {
            return false;
        }
        self.next = offset.next();
        self.records.push_back(Held {
            offset,
            bytes,
            is_done: false,
        });
        self.bytes += bytes;
        true
    }

    /// Moves over offsets that hold nothing: everything below `next` has been taken in, or does not exist.
    pub(super) fn reached(&mut self, next: Offset) {
        self.next = self.next.max(next);
        self.settle_low();
    }

    /// Marks a record as done and moves the low watermark over the records that are done.
    pub(super) fn done(&mut self, offset: Offset) {
        if let Ok(at) = self.records.binary_search_by_key(&offset, |r| r.offset) {
            self.records[at].is_done = true;
        }
        while let Some(first) = self.records.pop_front_if(|r| r.is_done) {
            self.bytes -= first.bytes;
        }
        self.settle_low();
    }

    /// A hole before the first open record, or at the end, holds nothing to wait for.
    fn settle_low(&mut self) {
        self.low = self.records.front().map_or(self.next, |r| r.offset);
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
    fn a_hole_at_the_end_is_passed_once_all_before_it_is_done() {
        let mut window = Window::starting_at(at(0));
        window.reached(at(2));
        assert_eq!((window.low(), window.to_commit()), (at(2), Some(at(2))));
        assert!(!window.push(at(1), 1), "a record below a reached offset");
        assert!(window.push(at(2), 1));
        window.reached(at(5));
        assert_eq!((window.low(), window.len()), (at(2), 1));
        window.done(at(2));
        assert_eq!((window.low(), window.to_commit()), (at(5), Some(at(5))));
        window.reached(at(4));
        assert_eq!(window.low(), at(5));
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
