//! The times at which the process stood still.
use foldstream::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// The time that the monotonic clock may lose against the wall clock. A virtual machine that stands
/// still has a monotonic clock that stands still, too.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    wall: Timestamp,
    monotonic: Instant,
}

impl Reading {
    pub(crate) const fn new(wall: Timestamp, monotonic: Instant) -> Self {
        Self { wall, monotonic }
    }

    /// Returns true if the clocks went apart since an earlier reading.
    pub(crate) fn stood_still_since(self, earlier: Self) -> bool {
        let wall = self.wall.since(earlier.wall);
        wall.saturating_sub(self.monotonic - earlier.monotonic) >= STANDSTILL
    }

    /// Returns true if nothing was done for `limit` since an earlier reading, by either clock, or
    /// if the clocks went apart. Connections are likely to be dead then.
    pub(crate) fn is_after_a_freeze(self, earlier: Self, limit: Duration) -> bool {
        let wall = self.wall.since(earlier.wall);
        let idle = wall.max(self.monotonic - earlier.monotonic);
        idle >= limit || self.stood_still_since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_shows_in_either_clock_or_in_their_difference() {
        let (start, limit) = (Instant::now(), Duration::from_secs(30));
        let at = |wall: u64, monotonic: u64| {
            let wall = Timestamp::from_micros(0).plus(Duration::from_millis(wall));
            Reading::new(wall, start + Duration::from_millis(monotonic))
        };
        let first = at(0, 0);
        for (wall, monotonic, is_freeze) in [
            (0, 0, false),
            (29_999, 29_999, false),
            // A process that was stopped: both clocks went on.
            (30_000, 30_000, true),
            // A virtual machine that was stopped: only the wall clock went on, or was set.
            (1_000, 0, true),
            (20_999, 20_000, false),
            (21_000, 20_000, true),
            // The wall clock was set back.
            (0, 30_000, true),
            (0, 20_000, false),
        ] {
            let found = at(wall, monotonic).is_after_a_freeze(first, limit);
            assert_eq!(found, is_freeze, "{wall} {monotonic}");
        }
    }
}
