//! The priming of a partition: the first record of a producer is acknowledged alone. Pure.
//!
//! # Why is a partition primed?
//! The leader of a partition checks the sequence numbers of a producer only if it has stored a
//! record of that producer. Before that, it accepts any first number. Suppose that a new producer
//! sends two requests at the same time, and that the leader refuses the first one for a passing
//! reason. It then stores the second one, and librdkafka takes that success as a proof that the
//! first one was stored too. The records of the first request are lost, although they were
//! acknowledged.
//!
//! After one acknowledged record, the leader itself refuses every gap. All records that a producer
//! has in a partition are then a sequence without gaps that starts at most one after an
//! acknowledged record. Any number of such sequences can be interleaved, as happens when late
//! requests of an old producer arrive after those of its successor. Before the first occurrence of
//! a version, its predecessor is always there.
use std::time::{Duration, Instant};

/// The time without an acknowledgement after which a partition is primed again.
///
/// Brokers forget producers that are idle for `producer.id.expiration.ms`, by default a day.
pub(super) const PRIMED_FOR: Duration = Duration::from_secs(60);

/// The knowledge of one producer about the leader of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Priming {
    /// The leader may not know this producer.
    #[default]
    Unknown,
    /// One record is being sent alone.
    Asking,
    /// The leader has acknowledged a record of this producer, last at this time.
    Known(Instant),
}

/// The number of records that a run may have in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// One record, whose acknowledgement primes the partition for all runs.
    Alone,
    /// None, until the record of another run is acknowledged.
    Wait,
    /// Several.
    Freely,
}

impl Priming {
    /// Decides how a run may begin. A run that may send alone must report an acknowledgement, or
    /// that it has given up.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match *self {
            Self::Known(at) if now.saturating_duration_since(at) < PRIMED_FOR => Admission::Freely,
            Self::Asking => Admission::Wait,
            Self::Known(_) | Self::Unknown => {
                *self = Self::Asking;
                Admission::Alone
            }
        }
    }

    /// Notes that the leader has acknowledged a record of this producer.
    pub(super) fn acknowledged(&mut self, now: Instant) {
        *self = Self::Known(now);
    }

    /// Notes that a run that was to send alone has ended without an acknowledgement.
    pub(super) fn gave_up(&mut self) {
        if *self == Self::Asking {
            *self = Self::Unknown;
        }
    }

    /// Returns the time of the last acknowledgement.
    pub(super) const fn last_acknowledged(&self) -> Option<Instant> {
        match *self {
            Self::Known(at) => Some(at),
            Self::Unknown | Self::Asking => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_record_is_sent_alone_and_the_others_wait_for_its_acknowledgement() {
        let (now, mut priming) = (Instant::now(), Priming::default());
        assert_eq!(priming.admit(now), Admission::Alone);
        assert_eq!(priming.admit(now), Admission::Wait);
        priming.acknowledged(now);
        assert_eq!(priming.admit(now), Admission::Freely);
        assert_eq!(priming.admit(now), Admission::Freely);
    }

    #[test]
    fn another_run_sends_alone_after_one_that_gave_up() {
        let (now, mut priming) = (Instant::now(), Priming::default());
        assert_eq!(priming.admit(now), Admission::Alone);
        priming.gave_up();
        assert_eq!(priming.admit(now), Admission::Alone);
        // The acknowledgement came, although the run that waited for it has ended.
        priming.acknowledged(now);
        priming.gave_up();
        assert_eq!(priming.admit(now), Admission::Freely);
    }

    #[test]
    fn a_partition_without_acknowledgements_for_a_minute_is_primed_again() {
        let (start, mut priming) = (Instant::now(), Priming::default());
        priming.acknowledged(start);
        let just_before = start + PRIMED_FOR - Duration::from_nanos(1);
        assert_eq!(priming.admit(just_before), Admission::Freely);
        assert_eq!(priming.admit(start + PRIMED_FOR), Admission::Alone);
        assert_eq!(priming.admit(start + PRIMED_FOR), Admission::Wait);
        // Each acknowledgement counts, not only the first one.
        priming.acknowledged(start + PRIMED_FOR);
        priming.acknowledged(start + 2 * PRIMED_FOR);
        assert_eq!(
            priming.admit(start + 3 * PRIMED_FOR - Duration::from_nanos(1)),
            Admission::Freely
        );
    }
}
