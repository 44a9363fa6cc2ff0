//! The window of one partition: the records that are not committed, and the offset that the group
//! may commit.
use crate::ports::Offset;
use std::collections::VecDeque;

/// The records from the committed offset to the newest one. Offsets may have holes (compaction,
/// transaction markers).
///
/// A record that is done counts until its offset is committed: until then a crash repeats it, and a
/// projector may hold its effect in memory. So the bounds of the window bound both.
#[derive(Debug)]
pub(super) struct Window {
    /// The offset that may be committed: the first record that is not done, or `next`.
    low: Offset,
    /// One past the newest offset that the consumer has delivered or has said to hold nothing.
    next: Offset,
    committed: Offset,
    /// The records from `committed` on, in the order of their offsets.
    records: VecDeque<Held>,
    /// The number of records at the front that are done: those before `low`.
    done: usize,
    done_bytes: usize,
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
            done: 0,
            done_bytes: 0,
            bytes: 0,
        }
    }

    /// Takes a record in. Returns false if the window has passed its offset already, so that the
    /// record must be dropped.
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
        self.move_low();
        true
    }

    /// Moves over offsets that hold nothing: everything before `next` has been taken in, or does
    /// not exist.
    pub(super) fn reached(&mut self, next: Offset) {
        self.next = self.next.max(next);
        self.move_low();
    }

    /// Marks a record as done, and moves the low watermark over the records that are done.
    pub(super) fn done(&mut self, offset: Offset) {
        if let Some(at) = self.find(offset) {
            self.records[at].is_done = true;
            self.move_low();
        }
    }

    /// Returns the index of the record at an offset.
    fn find(&self, offset: Offset) -> Option<usize> {
        // Offsets seldom have holes.
        let first = self.records.front()?.offset;
        let at = usize::try_from(offset.get().checked_sub(first.get())?).ok()?;
        if self.records.get(at).is_some_and(|r| r.offset == offset) {
            return Some(at);
        }
        self.records
            .binary_search_by_key(&offset, |r| r.offset)
            .ok()
    }

    /// A hole before the first open record, or at the end, holds nothing to wait for.
    fn move_low(&mut self) {
        while let Some(record) = self.records.get(self.done).filter(|r| r.is_done) {
            self.done += 1;
            self.done_bytes += record.bytes;
        }
        self.low = self.first_open().unwrap_or(self.next);
    }

    /// Returns the next offset that the group may commit, if it is greater than the committed one.
    pub(super) fn to_commit(&self) -> Option<Offset> {
        (self.low > self.committed).then_some(self.low)
    }

    /// Drops the records before an offset that was committed.
    pub(super) fn committed(&mut self, next: Offset) {
        self.committed = self.committed.max(next);
        while self.done > 0
            && let Some(first) = self.records.front()
            && first.offset < next
        {
            self.bytes -= first.bytes;
            self.done_bytes -= first.bytes;
            self.records.pop_front();
            self.done -= 1;
        }
    }

    /// Returns the low watermark.
    pub(super) const fn low(&self) -> Offset {
        self.low
    }

    /// Returns the offset up to which everything is committed.
    pub(super) const fn committed_to(&self) -> Offset {
        self.committed
    }

    /// Returns the first record that is not done.
    pub(super) fn first_open(&self) -> Option<Offset> {
        self.records.get(self.done).map(|record| record.offset)
    }

    /// Returns the number of records that are done and not committed.
    pub(super) const fn uncommitted(&self) -> usize {
        self.done
    }

    /// Returns the size of the records that are done and not committed.
    pub(super) const fn uncommitted_bytes(&self) -> usize {
        self.done_bytes
    }

    /// Returns the number of records that are not committed.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the size of the records that are not committed.
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
        assert_eq!((window.low(), window.to_commit()), (at(10), None));
        window.done(at(10));
        assert_eq!((window.low(), window.to_commit()), (at(14), Some(at(14))));
        window.done(at(14));
        assert_eq!((window.low(), window.first_open()), (at(15), None));
        window.committed(at(15));
        assert_eq!((window.to_commit(), window.uncommitted()), (None, 0));
    }

    #[test]
    fn a_record_counts_until_it_is_committed() {
        let mut window = Window::starting_at(at(0));
        for offset in 0..4 {
            assert!(window.push(at(offset), 100));
            window.done(at(offset));
        }
        assert_eq!((window.len(), window.bytes()), (4, 400));
        assert_eq!((window.uncommitted(), window.uncommitted_bytes()), (4, 400));
        window.committed(at(3));
        assert_eq!((window.len(), window.bytes()), (1, 100));
        assert_eq!((window.uncommitted(), window.uncommitted_bytes()), (1, 100));
        assert_eq!(window.to_commit(), Some(at(4)));
    }

    #[test]
    fn a_hole_at_the_end_is_passed_once_all_before_it_is_done() {
        let mut window = Window::starting_at(at(0));
        window.reached(at(2));
        assert_eq!((window.low(), window.to_commit()), (at(2), Some(at(2))));
        assert!(!window.push(at(1), 1), "a record before a reached offset");
        assert!(window.push(at(2), 1));
        window.reached(at(5));
        assert_eq!((window.low(), window.len()), (at(2), 1));
        window.done(at(2));
        assert_eq!((window.low(), window.to_commit()), (at(5), Some(at(5))));
        window.reached(at(4));
        assert_eq!(window.low(), at(5));
    }

    #[test]
    fn a_record_before_the_window_is_refused() {
        let mut window = Window::starting_at(at(5));
        assert!(!window.push(at(4), 1));
        assert!(window.push(at(5), 1));
        assert!(!window.push(at(5), 1));
        window.done(at(5));
        assert!(!window.push(at(5), 1));
    }
}
