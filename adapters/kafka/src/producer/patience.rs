//! The time for which a partition may acknowledge nothing before its producer is replaced. Pure.
use std::time::Duration;

/// The shortest time to begin with. A new producer needs time to connect.
const LEAST: Duration = Duration::from_secs(1);

/// The patience with one partition, which grows while the partition acknowledges nothing.
///
/// A fixed patience could be shorter than a new producer needs to connect. Each producer would then
/// be replaced before it can send anything, forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    first: Duration,
    cap: Duration,
    now: Duration,
}

impl Patience {
    /// Creates a patience that never exceeds `cap`.
    pub(super) fn capped(cap: Duration) -> Self {
        let first = (cap / 2).max(LEAST).min(cap);
        Self {
            first,
            cap,
            now: first,
        }
    }

    /// Returns the time to wait for the next acknowledgement.
    pub(super) const fn get(self) -> Duration {
        self.now
    }

    /// Notes that the partition has acknowledged a record.
    pub(super) fn acknowledged(&mut self) {
        self.now = self.first;
    }

    /// Notes that the patience has ended without an acknowledgement.
    pub(super) fn ended(&mut self) {
        self.now = (self.now * 3 / 2).min(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_up_to_its_cap_until_a_record_is_acknowledged() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::capped(seconds(30));
        let mut waits = Vec::new();
        for _ in 0..4 {
            waits.push(patience.get());
            patience.ended();
        }
        let grown = [15_000, 22_500, 30_000, 30_000].map(Duration::from_millis);
        assert_eq!(waits, grown);
        patience.acknowledged();
        assert_eq!(patience.get(), seconds(15));
    }

    #[test]
    fn patience_begins_with_a_second_unless_its_cap_is_shorter() {
        for (cap, first) in [(1_500, 1_000), (1_000, 1_000), (400, 400)] {
            let patience = Patience::capped(Duration::from_millis(cap));
            assert_eq!(patience.get(), Duration::from_millis(first), "{cap}");
        }
    }
}
