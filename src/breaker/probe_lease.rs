//! The lease for the probe: which process tries the service on behalf of all.
//!
//! The row is that of a [`Lease`](crate::control::Lease) with the open time beside it, so that the
//! time between two probes passes whoever makes them. Two things differ from other leases:
//!
//! - A holder without a waiting caller does not renew. Its right does not end with the lease time,
//!   but when another process is seen to have taken over. Otherwise a service with few callers
//!   would never be tried: each would come after the lease of its process has expired. Two probes
//!   at once are harmless, one call each.
//! - A failed probe does not release the lease, and one that runs longer than the lease time is not
//!   waited for.
use super::{circuit::after, rows::ProbeRow};
use crate::ports::{Expect, Revision};
use serde_json::Map;
use std::time::Duration;
use tokio::time::Instant;

/// The wish of a process for the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A caller waits for the probe.
    Probe,
    /// No caller waits: the lease is neither taken nor renewed.
    Keep,
    /// The process has no work: another one should have the lease at once.
    Leave,
    /// The service is not to be probed on behalf of all any more. The open time starts again.
    End,
}

#[derive(Debug)]
pub(super) struct ProbeLease {
    /// The name of this process in this life: a process that starts again waits like any other.
    owner: String,
    /// The time between renewals.
    renew: Duration,
    /// The lease time.
    time: Duration,
    first_open: Duration,
    max_open: Duration,
    /// The row as it was last read or written, and since when it has been known.
    row: Option<(ProbeRow, Revision, Instant)>,
    /// The time between two probes, and when the next may start, while this process holds the
    /// lease.
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    open: Duration,
    probe_at: Instant,
}

impl ProbeLease {
    pub(super) const fn new(
        owner: String,
        renew: Duration,
        time: Duration,
        (first_open, max_open): (Duration, Duration),
    ) -> Self {
        Self {
            owner,
            renew,
            time,
            first_open,
            max_open,
            row: None,
            held: None,
        }
    }

    /// Returns the lease time.
    pub(super) const fn time(&self) -> Duration {
        self.time
    }

    /// Returns the time from which this process may probe; `None` if it does not hold the lease.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.held.map(|held| held.probe_at)
    }

    #[cfg(test)]
    pub(super) fn epoch(&self) -> Option<u64> {
        self.row.as_ref().map(|(row, _, _)| row.epoch)
    }

    /// Takes in the row as it is stored now.
    pub(super) fn found(&mut self, row: Option<(ProbeRow, Revision)>, now: Instant) {
        let before = self.row.take();
        let Some((row, revision)) = row else {
            self.held = None;
            return;
        };
        let is_mine = row.owner.as_ref() == Some(&self.owner);
        let is_same_hold = before
            .as_ref()
            .is_some_and(|(before, _, _)| before.epoch == row.epoch);
        self.held = match self.held {
            Some(held) if is_mine && is_same_hold => Some(held),
            _ if is_mine => {
                let open = self.open_time(&row);
                let probe_at = after(now, open);
                Some(Held { open, probe_at })
            }
            _ => None,
        };
        let since = match before {
            Some((_, known, since)) if known == revision => since,
            _ => now,
        };
        self.row = Some((row, revision, since));
    }

    /// Notes that a probe of this process has found the service. If that cannot be stored, another
    /// probe may have to follow.
    pub(super) fn succeeded(&mut self, now: Instant) {
        if let Some(held) = &mut self.held {
            held.probe_at = after(now, held.open);
        }
    }

    /// Notes that a probe of this process has failed: the next one follows after twice the time.
    pub(super) fn failed(&mut self, now: Instant) {
        if let Some(held) = &mut self.held {
            held.open = held.open.saturating_mul(2).min(self.max_open);
            held.probe_at = after(now, held.open);
        }
    }

    /// Returns the next write of the row and when it is due.
    pub(super) fn next(&self, wish: Wish, now: Instant) -> Option<(Instant, ProbeRow, Expect)> {
        let Some((row, revision, since)) = &self.row else {
            let first = (wish == Wish::Probe).then(|| self.taken(None))?;
            return Some((now, first, Expect::Absent));
        };
        let expect = Expect::Revision(*revision);
        let (due, next) = match (self.held, wish) {
            (Some(held), Wish::Leave) => (now, self.released(row, held.open)),
            (Some(_), Wish::End) => (now, self.released(row, self.first_open)),
            (Some(held), Wish::Probe) => {
                let next = ProbeRow {
                    open_millis: millis(held.open),
                    ..row.clone()
                };
                // The open time after a failed probe is written at once.
                let due = if next == *row {
                    *since + self.renew
                } else {
                    now
                };
                (due, next)
            }
            (None, Wish::Probe) => {
                let free = match &row.owner {
                    None => now,
                    Some(_) => {
                        let theirs = Duration::from_millis(row.lease_millis);
                        after(*since, self.time.max(theirs))
                    }
                };
                (free, self.taken(Some(row)))
            }
            (Some(_), Wish::Keep) | (None, _) => return None,
        };
        Some((due, next, expect))
    }

    /// Returns the row by which this process takes the lease.
    fn taken(&self, before: Option<&ProbeRow>) -> ProbeRow {
        ProbeRow {
            epoch: before.map_or(0, |row| row.epoch).saturating_add(1),
            owner: Some(self.owner.clone()),
            lease_millis: millis(self.time),
            open_millis: millis(before.map_or(self.first_open, |row| self.open_time(row))),
            rest: before.map_or_else(Map::new, |row| row.rest.clone()),
        }
    }

    fn released(&self, row: &ProbeRow, open: Duration) -> ProbeRow {
        ProbeRow {
            owner: None,
            open_millis: millis(open),
            ..row.clone()
        }
    }

    /// Returns the open time of a row, within the limits of this process.
    fn open_time(&self, row: &ProbeRow) -> Duration {
        Duration::from_millis(row.open_millis)
            .max(self.first_open)
            .min(self.max_open)
    }
}

/// Returns a time in milliseconds, rounded up.
pub(super) fn millis(time: Duration) -> u64 {
    let millis = time.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).unwrap_or(u64::MAX)
}
