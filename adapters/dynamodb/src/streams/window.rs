//! The records of one shard that are in memory, and the checkpoint that follows from them. Pure.
//!
//! Pages are published at the same time, so a later page may be covered before an earlier one. The
//! checkpoint is the last sequence number up to which everything is covered: by a watermark, or by
//! a durable row of a dirty stream.
use super::service::{SequenceNumber, StreamRecord};
use foldstream::Timestamp;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Window {
    pages: VecDeque<Page>,
    next_id: u64,
    checkpoint: Option<SequenceNumber>,
}

#[derive(Debug)]
struct Page {
    id: u64,
    records: Vec<(SequenceNumber, Option<Timestamp>)>,
    /// The place of the first record that is not covered; the number of records if all are.
    uncovered: usize,
}

impl Window {
    /// Adds the records of a page, of which none is covered yet. Returns the id of the page.
    pub(super) fn add(&mut self, records: &[StreamRecord]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let places = records.iter().map(|r| (r.sequence.clone(), r.created_at));
        self.pages.push_back(Page {
            id,
            records: places.collect(),
            uncovered: 0,
        });
        id
    }

    /// Notes that everything in a page before the record at `first_to_keep` is covered; everything
    /// if it is `None`.
    pub(super) fn cover(&mut self, id: u64, first_to_keep: Option<usize>) {
        if let Some(page) = self.pages.iter_mut().find(|page| page.id == id) {
            let uncovered = first_to_keep.unwrap_or(page.records.len());
            page.uncovered = page.uncovered.max(uncovered.min(page.records.len()));
        }
        while let Some(page) = self.pages.front() {
            if let Some(covered) = page.uncovered.checked_sub(1) {
                let (sequence, _) = &page.records[covered];
                self.checkpoint = Some(sequence.clone());
            }
            if page.uncovered < page.records.len() {
                return;
            }
            self.pages.pop_front();
        }
    }

    /// Returns the last sequence number up to which everything is covered; `None` if nothing is.
    pub(super) const fn checkpoint(&self) -> Option<&SequenceNumber> {
        self.checkpoint.as_ref()
    }
    /// Returns the number of pages that hold a record after the checkpoint.
    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }
    /// Returns the time of the oldest record that is not covered.
    pub(super) fn behind_since(&self) -> Option<Timestamp> {
        let page = self.pages.front()?;
        page.records.get(page.uncovered)?.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(sequences: impl IntoIterator<Item = u64>) -> Vec<StreamRecord> {
        let record = |n: u64| StreamRecord {
            sequence: SequenceNumber::new(n.to_string()),
            created_at: Some(Timestamp::from_micros(n as i64)),
            notice: None,
        };
        sequences.into_iter().map(record).collect()
    }
    fn checkpoint(window: &Window) -> Option<&str> {
        window.checkpoint().map(SequenceNumber::as_str)
    }

    #[test]
    fn the_checkpoint_stops_before_the_first_record_that_is_not_covered() {
        let mut window = Window::default();
        let (a, b) = (window.add(&page(1..=3)), window.add(&page(4..=6)));
        window.cover(b, None);
        assert_eq!((checkpoint(&window), window.len()), (None, 2));
        window.cover(a, Some(2));
        assert_eq!(checkpoint(&window), Some("2"));
        assert_eq!(window.behind_since(), Some(Timestamp::from_micros(3)));
        window.cover(a, None);
        assert_eq!((checkpoint(&window), window.len()), (Some("6"), 0));
        assert_eq!(window.behind_since(), None);
    }

    #[test]
    fn coverage_never_shrinks() {
        let mut window = Window::default();
        let a = window.add(&page(1..=3));
        window.cover(a, Some(2));
        window.cover(a, Some(0));
        assert_eq!(checkpoint(&window), Some("2"));
        // A page that has left the window changes nothing.
        window.cover(a, None);
        window.cover(a, Some(0));
        assert_eq!(checkpoint(&window), Some("3"));
    }
}
