//! [`ReplayProgress`]: the numbers of a replay while it runs.
use super::{RunId, RunState};
use crate::control::SegmentCounts;
use std::time::Duration;

/// The numbers of a replay at one moment, all processes that have worked on it together.
///
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ReplayProgress {
    /// The id of the replay.
    pub run: RunId,
    /// The state of the replay.
    pub state: RunState,
    /// The number of events that were read and applied durably.
    pub events: u64,
    /// The number of commits with these events.
    pub commits: u64,
    /// The number of streams whose first commit is among them.
    pub streams: u64,
    /// The number of calls of projectors that went well, by events.
    pub handled: u64,
    /// The number of segments that are done.
    pub segments_done: u32,
    /// The number of segments of the scan.
    pub segments: u32,
    /// The cost of the scan in read units, as far as the event store reports one.
    pub read_units: f64,
    /// The number of events per second since this process works on the replay.
    pub rate: f64,
    /// The time that this process has worked on the replay.
    pub elapsed: Duration,
    /// The estimated time until the scan ends; `None` while there is nothing to estimate it from.
    pub left: Option<Duration>,
    /// The number of events that the scan is estimated to read; `None` as for `left`.
    pub expected_events: Option<u64>,
}

impl ReplayProgress {
    /// Returns the part of the scan that is done, from 0 to 1, as far as it can be estimated.
    pub fn fraction(&self) -> Option<f64> {
        if matches!(self.state, RunState::CatchUp | RunState::Done) {
            return Some(1.0);
        }
        let expected = self.expected_events.filter(|expected| *expected > 0)?;
        Some((self.events as f64 / expected as f64).min(1.0))
    }
}

/// The numbers with which a process estimates the progress of a scan.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    /// The number of events that a dry run has estimated.
    pub(super) estimate: Option<u64>,
    /// The events that earlier processes have applied.
    pub(super) before: u64,
}

impl Meter {
    /// Returns the progress. `segments` are the numbers of all segments, and true for those that
    /// are done.
    pub(super) fn progress(
        &self,
        (run, state): (RunId, RunState),
        segments: &[(SegmentCounts, bool)],
        elapsed: Duration,
    ) -> ReplayProgress {
        let mut all = SegmentCounts::default();
        for (counts, _) in segments {
            all.add(counts);
        }
        let done = segments.iter().filter(|(_, is_done)| *is_done);
        let (done_count, done_events) = done.fold((0u32, 0), |(n, events), (counts, _)| {
            (n + 1, events + counts.events)
        });
        let total = u32::try_from(segments.len()).unwrap_or(u32::MAX);
        // Segments are about equally large.
        let by_segments = (done_count > 0).then(|| {
            let expected = done_events * u64::from(total) / u64::from(done_count);
            expected.max(all.events)
        });
        let expected = match by_segments {
            Some(_) if done_count == total => Some(all.events),
            by_segments => self.estimate.map(|e| e.max(all.events)).or(by_segments),
        };
        let seconds = elapsed.as_secs_f64();
        let rate = if seconds > 0.0 {
            all.events.saturating_sub(self.before) as f64 / seconds
        } else {
            0.0
        };
        let left = expected.filter(|_| rate > 0.0).and_then(|expected| {
            let left = expected.saturating_sub(all.events) as f64 / rate;
            Duration::try_from_secs_f64(left).ok()
        });
        ReplayProgress {
            run,
            state,
            events: all.events,
            commits: all.commits,
            streams: all.streams,
            handled: all.handled,
            segments_done: done_count,
            segments: total,
            read_units: all.read_units,
            rate,
            elapsed,
            left,
            expected_events: expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(events: u64, is_done: bool) -> (SegmentCounts, bool) {
        let counts = SegmentCounts {
            events,
            ..SegmentCounts::default()
        };
        (counts, is_done)
    }
    fn progress(meter: &Meter, segments: &[(SegmentCounts, bool)], seconds: u64) -> ReplayProgress {
        let of = (RunId::from_u128(1), RunState::Scanning);
        meter.progress(of, segments, Duration::from_secs(seconds))
    }

    #[test]
    fn the_time_left_is_estimated_once_a_segment_is_done() {
        let meter = Meter {
            estimate: None,
            before: 0,
        };
        let segments = [segment(100, false), segment(50, false)];
        let early = progress(&meter, &segments, 10);
        assert_eq!((early.left, early.fraction()), (None, None));
        assert_eq!((early.events, early.rate), (150, 15.0));
        let segments = [segment(200, true), segment(100, false)];
        let later = progress(&meter, &segments, 10);
        assert_eq!(later.expected_events, Some(400));
        assert_eq!(later.fraction(), Some(0.75));
        assert_eq!(later.left.map(|left| left.as_secs()), Some(3));
    }

    #[test]
    fn a_dry_run_tells_the_time_left_from_the_start() {
        let meter = Meter {
            estimate: Some(1000),
            before: 100,
        };
        let found = progress(&meter, &[segment(200, false)], 10);
        assert_eq!(
            found.rate, 10.0,
            "what others have done before does not count"
        );
        assert_eq!(found.left, Some(Duration::from_secs(80)));
        let done = progress(&meter, &[segment(700, true)], 10);
        assert_eq!(done.fraction(), Some(1.0));
        assert_eq!(done.left, Some(Duration::ZERO));
    }
}
