//! The progress of one run on one producer, as a pure state machine. The driver in `mod.rs` queues
//! records and awaits their acknowledgements as [`Pipeline::next`] says.
use super::priming::Admission;
use foldstream::ports::Offset;

/// The most records of a run that are in flight at the same time.
pub(super) const WINDOW: usize = 1_000;

/// The next step of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Queue the record at this index.
    Queue(usize),
    /// Await the acknowledgement of the record at this index, the oldest that is in flight.
    Await(usize),
    /// Wait a moment, since the queue is full of records of other runs.
    Pause,
    /// Nothing more can be done on this producer.
    End,
}

/// The reason why a run ended on a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending<E> {
    /// All records are acknowledged.
    Complete,
    /// The producer takes no more records. The rest of the run must go to another one.
    Left,
    /// A record was refused before it was queued. Nothing of the run is in flight.
    Refused(E),
    /// A record that was in flight failed. Records after it may still be in flight, so the producer
    /// must be retired.
    Failed(E),
}

/// One run on one producer.
///
/// - Records are queued in order, and acknowledgements count in order only.
/// - After a record that was refused, or that failed, nothing more of the run is queued.
/// - While the partition is being primed, one record is in flight.
#[derive(Debug)]
pub(super) struct Pipeline<E> {
    len: usize,
    queued: usize,
    acknowledged: usize,
    last_offset: Option<Offset>,
    /// True until the record that primes the partition is acknowledged.
    is_alone: bool,
    /// True from the moment at which the queue was full until the next acknowledgement.
    is_full: bool,
    /// The reason why nothing more is queued.
    stopped: Option<Ending<E>>,
}

impl<E> Pipeline<E> {
    /// Creates the progress of a run of `len` records. A run that must wait is not admitted yet.
    pub(super) fn new(len: usize, admission: Admission) -> Self {
        Self {
            len,
            queued: 0,
            acknowledged: 0,
            last_offset: None,
            is_alone: admission != Admission::Freely,
            is_full: false,
            stopped: None,
        }
    }

    const fn in_flight(&self) -> usize {
        self.queued - self.acknowledged
    }

    /// Returns the next step.
    pub(super) fn next(&self) -> Next {
        match self.stopped {
            Some(Ending::Failed(_)) => return Next::End,
            Some(_) if self.in_flight() == 0 => return Next::End,
            Some(_) => return Next::Await(self.acknowledged),
            None => {}
        }
        if self.acknowledged == self.len {
            return Next::End;
        }
        let window = if self.is_alone { 1 } else { WINDOW };
        match self.in_flight() {
            0 if self.is_full => Next::Pause,
            n if n < window && self.queued < self.len && !self.is_full => Next::Queue(self.queued),
            _ => Next::Await(self.acknowledged),
        }
    }

    /// Notes that the record of [`Next::Queue`] was queued.
    pub(super) fn queued(&mut self) {
        self.queued += 1;
    }

    /// Notes that the queue was full.
    pub(super) fn was_full(&mut self) {
        self.is_full = true;
    }

    /// Notes that a pause has ended.
    pub(super) fn paused(&mut self) {
        self.is_full = false;
    }

    /// Notes that the record of [`Next::Queue`] was refused before it was queued.
    pub(super) fn refused(&mut self, error: E) {
        self.stopped = Some(Ending::Refused(error));
    }

    /// Notes that the producer takes no more records.
    pub(super) fn left(&mut self) {
        self.stopped = Some(Ending::Left);
    }

    /// Notes that the producer was retired for a failure of another run, and has given up what it
    /// had in flight.
    pub(super) fn purged(&mut self) {
        self.stopped = Some(Ending::Left);
        self.queued = self.acknowledged;
    }

    /// Notes that the record of [`Next::Await`] failed.
    pub(super) fn failed(&mut self, error: E) {
        self.stopped = Some(Ending::Failed(error));
    }

    /// Notes that the record of [`Next::Await`] was acknowledged with this offset, -1001 if it has
    /// none. Returns true if the record is durable.
    ///
    /// An acknowledgement without an offset is not an acknowledgement, since the record may be
    /// lost. librdkafka takes the success of a later request as a proof of an earlier one that was
    /// refused, and acknowledges the records of the earlier one without an offset. An answer that a
    /// record is a duplicate ends in the same way. In both cases the record must be sent again.
    pub(super) fn acknowledged(&mut self, offset: i64, without_offset: impl FnOnce() -> E) -> bool {
        let Ok(offset) = u64::try_from(offset) else {
            self.failed(without_offset());
            return false;
        };
        self.acknowledged += 1;
        self.last_offset = Some(Offset::new(offset));
        (self.is_alone, self.is_full) = (false, false);
        true
    }

    /// Returns the number of durable records, the offset of the last of them, and the reason of the
    /// end.
    pub(super) fn end(self) -> (usize, Option<Offset>, Ending<E>) {
        let ending = self.stopped.unwrap_or(Ending::Complete);
        (self.acknowledged, self.last_offset, ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Steps = Pipeline<&'static str>;

    fn queue(pipeline: &mut Steps, count: usize) {
        for _ in 0..count {
            assert!(matches!(pipeline.next(), Next::Queue(_)));
            pipeline.queued();
        }
    }

    fn acknowledge(pipeline: &mut Steps, offset: i64) -> bool {
        assert!(matches!(pipeline.next(), Next::Await(_)));
        pipeline.acknowledged(offset, || "no offset")
    }

    #[test]
    fn records_are_queued_in_order_up_to_the_window_which_slides() {
        let mut run = Steps::new(WINDOW + 2, Admission::Freely);
        queue(&mut run, WINDOW);
        assert_eq!(run.next(), Next::Await(0));
        acknowledge(&mut run, 7);
        assert_eq!(run.next(), Next::Queue(WINDOW));
        queue(&mut run, 1);
        assert_eq!(run.next(), Next::Await(1));
        acknowledge(&mut run, 8);
        queue(&mut run, 1);
        for n in 2..WINDOW + 2 {
            assert_eq!(run.next(), Next::Await(n));
            acknowledge(&mut run, 7 + n as i64);
        }
        assert_eq!(run.next(), Next::End);
        let last = Some(Offset::new(7 + WINDOW as u64 + 1));
        assert_eq!(run.end(), (WINDOW + 2, last, Ending::Complete));
    }

    #[test]
    fn one_record_is_in_flight_until_the_partition_is_primed() {
        for admission in [Admission::Alone, Admission::Wait] {
            let mut run = Steps::new(3, admission);
            queue(&mut run, 1);
            assert_eq!(run.next(), Next::Await(0), "{admission:?}");
            acknowledge(&mut run, 0);
            queue(&mut run, 2);
            assert_eq!(run.next(), Next::Await(1));
        }
    }

    #[test]
    fn an_acknowledgement_without_an_offset_is_a_failure() {
        let mut run = Steps::new(3, Admission::Freely);
        queue(&mut run, 3);
        assert!(acknowledge(&mut run, 5));
        assert!(!acknowledge(&mut run, -1001));
        assert_eq!(run.next(), Next::End);
        let last = Some(Offset::new(5));
        assert_eq!(run.end(), (1, last, Ending::Failed("no offset")));
    }

    #[test]
    fn nothing_is_queued_or_awaited_after_a_failure() {
        let mut run = Steps::new(WINDOW + 5, Admission::Freely);
        queue(&mut run, WINDOW);
        acknowledge(&mut run, 0);
        run.failed("refused by the broker");
        assert_eq!(run.next(), Next::End);
        assert_eq!(run.end().2, Ending::Failed("refused by the broker"));
    }

    #[test]
    fn what_is_before_a_refused_record_is_awaited_and_nothing_after_it_is_queued() {
        let mut run = Steps::new(5, Admission::Freely);
        queue(&mut run, 2);
        run.refused("too large");
        assert_eq!(run.next(), Next::Await(0));
        acknowledge(&mut run, 0);
        assert_eq!(run.next(), Next::Await(1));
        acknowledge(&mut run, 1);
        assert_eq!(run.next(), Next::End);
        let last = Some(Offset::new(1));
        assert_eq!(run.end(), (2, last, Ending::Refused("too large")));
    }

    #[test]
    fn a_failure_counts_more_than_the_refusal_of_a_later_record() {
        let mut run = Steps::new(5, Admission::Freely);
        queue(&mut run, 2);
        run.refused("too large");
        run.failed("timed out");
        assert_eq!(run.next(), Next::End);
        assert_eq!(run.end(), (0, None, Ending::Failed("timed out")));
    }

    #[test]
    fn a_full_queue_is_tried_again_after_an_acknowledgement_or_a_pause() {
        let mut run = Steps::new(3, Admission::Freely);
        run.was_full();
        assert_eq!(run.next(), Next::Pause);
        run.paused();
        queue(&mut run, 1);
        run.was_full();
        assert_eq!(run.next(), Next::Await(0));
        acknowledge(&mut run, 0);
        assert_eq!(run.next(), Next::Queue(1));
    }

    #[test]
    fn a_producer_that_takes_no_more_records_is_left_after_what_it_has() {
        let mut run = Steps::new(3, Admission::Freely);
        queue(&mut run, 1);
        run.left();
        assert_eq!(run.next(), Next::Await(0));
        acknowledge(&mut run, 0);
        assert_eq!(run.next(), Next::End);
        assert_eq!(run.end(), (1, Some(Offset::new(0)), Ending::Left));
        let mut run = Steps::new(3, Admission::Freely);
        queue(&mut run, 2);
        run.purged();
        assert_eq!(run.next(), Next::End);
        assert_eq!(run.end(), (0, None, Ending::Left));
    }
}
