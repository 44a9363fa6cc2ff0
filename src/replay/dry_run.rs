//! [`DryRun`]: what a replay would read, estimated from a sample.
use super::{
    ReplayError, ReplaySettings,
    scan::{counts_of, read_page},
};
use crate::{
    control::SegmentCounts,
    ports::{EventStore, ScanItems, Segment},
};

/// The number of parts of which some are read.
const PARTS: u32 = 64;

/// The numbers that a replay is expected to have.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DryRun {
    /// The number of events in the event store.
    pub events: u64,
    /// The number of commits in the event store.
    pub commits: u64,
    /// The number of streams in the event store.
    pub streams: u64,
    /// The cost of the scan in read units, as far as the event store reports one.
    pub read_units: f64,
    /// The part of the event store that was read for the estimate, from 0 to 1. At 1 the numbers
    /// are exact.
    pub sampled: f64,
    /// The cost of this dry run in read units.
    pub cost: f64,
}

impl DryRun {
    /// Returns the price of the scan, from the price of a million read units.
    pub fn price(&self, per_million_read_units: f64) -> f64 {
        self.read_units / 1_000_000.0 * per_million_read_units
    }

    /// Returns the numbers of the whole, of which `parts` of [`PARTS`] have these.
    fn of_sample(counts: &SegmentCounts, parts: u32) -> Self {
        let factor = f64::from(PARTS) / f64::from(parts.max(1));
        let whole = |part: u64| {
            // Counts are far below 2^52.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let whole = (part as f64 * factor).round() as u64;
            whole
        };
        Self {
            events: whole(counts.events),
            commits: whole(counts.commits),
            streams: whole(counts.streams),
            read_units: counts.read_units * factor,
            sampled: 1.0 / factor,
            cost: counts.read_units,
        }
    }
}

/// Reads parts of the event store until the sample has `enough` commits, or until all is read.
pub(super) async fn dry_run(
    store: &dyn EventStore,
    settings: &ReplaySettings,
    enough: u64,
) -> Result<DryRun, ReplayError> {
    let (mut counts, mut parts) = (SegmentCounts::default(), 0);
    for segment in Segment::split(PARTS) {
        let mut cursor = None;
        loop {
            let page = read_page(store, settings, segment, &cursor).await?;
            if let ScanItems::Commits(commits) = &page.items {
                counts.add(&counts_of(commits));
            }
            counts.read_units += page.read_units.unwrap_or(0.0);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        parts += 1;
        if counts.commits >= enough {
            break;
        }
    }
    Ok(DryRun::of_sample(&counts, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_for_the_whole_and_its_price_comes_from_the_caller() {
        let counts = SegmentCounts {
            commits: 100,
            events: 1000,
            streams: 10,
            handled: 0,
            read_units: 50.0,
        };
        let found = DryRun::of_sample(&counts, 16);
        assert_eq!(
            (found.commits, found.events, found.streams),
            (400, 4000, 40)
        );
        assert_eq!(
            (found.read_units, found.sampled, found.cost),
            (200.0, 0.25, 50.0)
        );
        assert_eq!(found.price(500_000.0), 100.0);
        let all = DryRun::of_sample(&counts, 64);
        assert_eq!((all.commits, all.sampled), (100, 1.0));
    }
}
