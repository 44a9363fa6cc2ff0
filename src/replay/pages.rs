//! The pages of a scan that are under way, and the cursor that each segment may store.
use crate::{control::SegmentCounts, ports::ScanCursor};
use std::collections::VecDeque;

/// A page that was read.
#[derive(Debug)]
struct Page {
    /// The position after the page; `None` after the last one.
    next: Option<ScanCursor>,
    counts: SegmentCounts,
    /// The number of items of the page that are not applied yet.
    open: usize,
}

/// The place up to which a segment is applied, and what was read since the last one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mark {
    /// The position of the next page; `None` if there is none.
    pub(super) next: Option<ScanCursor>,
    pub(super) counts: SegmentCounts,
    /// The number of pages that the mark covers.
    pages: usize,
}

/// The pages of one segment. They are read in order, and applied in any order.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The number of the first page in the queue.
    first: u64,
    queue: VecDeque<Page>,
    is_read: bool,
    is_done: bool,
}

impl Pages {
    /// Creates the pages of a segment that was scanned to its end before.
    pub(super) const fn finished() -> Self {
        Self {
            first: 0,
            queue: VecDeque::new(),
            is_read: true,
            is_done: true,
        }
    }

    /// Notes a page with this number of items. Pages are numbered from 0.
    pub(super) fn read(&mut self, next: Option<ScanCursor>, counts: SegmentCounts, open: usize) {
        self.is_read = next.is_none();
        self.queue.push_back(Page { next, counts, open });
    }

    /// Notes that items of a page are applied, and returns the numbers that belong to them.
    pub(super) fn applied(&mut self, page: u64, items: usize, handled: u64) {
        let index = page.checked_sub(self.first).map(usize::try_from);
        if let Some(Ok(index)) = index
            && let Some(page) = self.queue.get_mut(index)
        {
            page.open = page.open.saturating_sub(items);
            page.counts.handled += handled;
        }
    }

    /// Returns the place up to which every page is applied; `None` if it has not moved.
    pub(super) fn mark(&self) -> Option<Mark> {
        let mut mark: Option<Mark> = None;
        for page in self.queue.iter().take_while(|page| page.open == 0) {
            let so_far = mark.take();
            let (mut counts, pages) = so_far.map_or_else(Default::default, |m| (m.counts, m.pages));
            counts.add(&page.counts);
            mark = Some(Mark {
                next: page.next.clone(),
                counts,
                pages: pages + 1,
            });
        }
        mark
    }

    /// Notes that the mark is stored.
    pub(super) fn stored(&mut self, mark: &Mark) {
        self.queue.drain(..mark.pages.min(self.queue.len()));
        self.first += mark.pages as u64;
        self.is_done = self.is_read && self.queue.is_empty();
    }

    /// Returns true if the segment is applied to its end, and that is stored.
    pub(super) const fn is_done(&self) -> bool {
        self.is_done
    }
    /// Returns true if nothing of the segment is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.is_read && self.queue.iter().all(|page| page.open == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(n: u8) -> Option<ScanCursor> {
        Some(ScanCursor::from_bytes(vec![n]))
    }
    fn counts(commits: u64) -> SegmentCounts {
        SegmentCounts {
            commits,
            ..SegmentCounts::default()
        }
    }

    #[test]
    fn a_cursor_stands_only_after_pages_that_are_applied_without_a_gap() {
        let mut pages = Pages::default();
        pages.read(cursor(1), counts(2), 2);
        pages.read(cursor(2), counts(3), 1);
        pages.read(cursor(3), counts(4), 1);
        assert_eq!(pages.mark(), None);
        pages.applied(1, 1, 5);
        assert_eq!(pages.mark(), None, "the first page is not applied");
        pages.applied(0, 1, 1);
        assert_eq!(pages.mark(), None, "half of the first page is not applied");
        pages.applied(0, 1, 1);
        let mark = pages.mark().unwrap();
        assert_eq!((mark.next.clone(), mark.counts.commits), (cursor(2), 5));
        assert_eq!(mark.counts.handled, 7);
        // The last page is applied while the mark is being stored.
        pages.applied(2, 1, 0);
        pages.stored(&mark);
        let mark = pages.mark().unwrap();
        assert_eq!((mark.next.clone(), mark.counts.commits), (cursor(3), 4));
    }

    #[test]
    fn a_segment_is_done_once_its_last_mark_is_stored() {
        let mut pages = Pages::default();
        pages.read(None, counts(1), 0);
        assert!(pages.is_idle() && !pages.is_done());
        let mark = pages.mark().unwrap();
        assert_eq!(mark.next, None);
        pages.stored(&mark);
        assert!(pages.is_done());
        assert!(Pages::finished().is_done());
    }
}
