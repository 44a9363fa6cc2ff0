//! The segments of a poller: which of them it walks through, so that several pollers share the
//! work.
//!
//! Each segment of the list has a lease. A poller renews its leases and a row of its own three
//! times in each lease time, and counts the pollers whose rows it sees moving. Its share follows
//! from that number. A poller with more than its share finishes what it has begun in the segments
//! that are too many, and then releases them. A poller with less takes released leases, and those
//! whose holder was silent for the lease time.
use crate::{
    Clock,
    control::{Contender, Lease, Leases, Members, PollerRows, PublisherRows},
    ports::ControlStoreError,
};
use futures::{FutureExt, future::join_all};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// The renewals in each lease time.
const RENEWALS: u32 = 3;
/// The part of the lease time, as a divisor, that is kept for runs in flight: a poller that cannot
/// renew begins nothing new after it.
const RESERVE: u32 = 6;

/// The leases of one poller.
#[derive(Debug)]
pub(super) struct Holdings {
    rows: PublisherRows,
    leases: Leases,
    clock: Arc<dyn Clock>,
    /// The pollers that share the segments, this one among them.
    pollers: Members,
    contenders: Vec<Contender>,
    held: BTreeMap<u32, Lease>,
}

/// The work of one round, besides the renewal of what is held.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The segments that are released.
    pub(super) released: Vec<u32>,
    /// True if free segments are taken.
    pub(super) may_take: bool,
}

/// The result of one round.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The segments that this poller holds, each with the instant from which it begins nothing new.
    pub(super) held: BTreeMap<u32, Instant>,
    /// Those of them that were taken in this round.
    pub(super) taken: BTreeSet<u32>,
    /// The number of segments that other pollers have taken over.
    pub(super) lost: u64,
    /// The number of segments beyond the share of this poller.
    pub(super) surplus: usize,
    /// True if this poller has less than its share.
    pub(super) wants_more: bool,
    /// The first failure of the round.
    pub(super) error: Option<ControlStoreError>,
}

impl Holdings {
    pub(super) fn new(
        rows: PublisherRows,
        leases: Leases,
        clock: Arc<dyn Clock>,
        id: String,
        segments: u32,
    ) -> Self {
        let keys = (0..segments).map(|index| rows.poller_lease_key(segments, index));
        let contenders = keys.map(|key| leases.contender(key, id.clone())).collect();
        Self {
            contenders,
            pollers: leases.members(rows.poller_key(segments, &id), id),
            rows,
            leases,
            clock,
            held: BTreeMap::new(),
        }
    }

    fn segments(&self) -> u32 {
        // There were made as many as there are segments.
        u32::try_from(self.contenders.len()).unwrap_or(u32::MAX)
    }

    /// Returns the pause between two rounds.
    pub(super) fn pause(time: Duration, wants_more: bool) -> Duration {
        let pause = time / RENEWALS;
        if wants_more { pause / 2 } else { pause }
    }

    /// Releases segments, renews the others, and takes what is free up to this poller's share. No
    /// call takes longer than a third of the lease time.
    pub(super) async fn round(mut self, plan: Plan) -> (Self, Round) {
        let mut round = Round::default();
        self.release(plan.released).await;
        self.renew(&mut round).await;
        if plan.may_take {
            match self.within(self.rows.pollers(self.segments())).await {
                Ok(found) => self.balance(found, &mut round).await,
                Err(error) => round.fail(error),
            }
        }
        let reserve = self.leases.time() / RESERVE;
        let until = |lease: &Lease| lease.valid_until() - reserve;
        round.held = self
            .held
            .iter()
            .map(|(i, lease)| (*i, until(lease)))
            .collect();
        (self, round)
    }

    /// Releases all leases, since this poller ends. What fails expires.
    pub(super) async fn end(mut self) {
        let held = self.held.keys().copied().collect();
        self.release(held).await;
        if let Err(error) = self.within(self.pollers.leave()).await {
            let error = crate::chain(&error);
            tracing::debug!(error, "the row of the poller expires");
        }
    }

    async fn release(&mut self, segments: Vec<u32>) {
        let leases = segments
            .into_iter()
            .filter_map(|index| self.held.remove(&index));
        let leases: Vec<_> = leases.collect();
        let this = &*self;
        let releases = leases.into_iter().map(|lease| this.within(lease.release()));
        for released in join_all(releases).await {
            if let Err(error) = released {
                tracing::debug!(
                    error = crate::chain(&error),
                    "a lease of the poller expires"
                );
            }
        }
    }

    /// Renews the leases and the row of this poller.
    async fn renew(&mut self, round: &mut Round) {
        let (time, now) = (self.leases.time(), self.clock.now());
        let alive = self.pollers.announce(now);
        let renewals = self
            .held
            .iter_mut()
            .map(|(index, lease)| async { (*index, within(time, lease.renew()).await) });
        let (alive, renewals) = tokio::join!(within(time, alive), join_all(renewals));
        if let Err(error) = alive {
            round.fail(error);
        }
        for (index, renewed) in renewals {
            match renewed {
                Ok(true) => {}
                Ok(false) => {
                    round.lost += 1;
                    self.held.remove(&index);
                    tracing::warn!(segment = index, "another poller has taken over a segment");
                }
                // The lease is held until its time is over.
                Err(error) => round.fail(error),
            }
        }
        // Another poller may have taken over, so these are to be taken again.
        self.held
            .retain(|_, lease| Instant::now() < lease.valid_until());
    }

    /// Takes segments up to the share of this poller.
    async fn balance(&mut self, found: PollerRows, round: &mut Round) {
        self.pollers.observe_found(&found.pollers);
        let share = self.pollers.share(self.contenders.len());
        // All rows are looked at, so that it is known since when each holder is silent.
        let mut free = Vec::new();
        for (index, contender) in (0..).zip(&mut self.contenders) {
            let may_take = contender.may_take(found.leases.get(&index));
            if may_take && !self.held.contains_key(&index) {
                free.push(index);
            }
        }
        for index in free {
            if self.held.len() >= share {
                break;
            }
            let Some(contender) = self.contenders.get_mut(index as usize) else {
                break;
            };
            let take = contender.take(found.leases.get(&index));
            match within(self.leases.time(), take).await {
                Ok(Some(lease)) => {
                    self.held.insert(index, lease);
                    round.taken.insert(index);
                }
                Ok(None) => {}
                Err(error) => round.fail(error),
            }
        }
        round.surplus = self.held.len().saturating_sub(share);
        round.wants_more = self.held.len() < share;
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, ControlStoreError>>,
    ) -> Result<T, ControlStoreError> {
        within(self.leases.time(), call).await
    }
}

impl Round {
    fn fail(&mut self, error: ControlStoreError) {
        // A refusal says more than a failure that may pass.
        if self
            .error
            .as_ref()
            .is_none_or(ControlStoreError::is_transient)
        {
            self.error = Some(error);
        }
    }
}

/// Gives a call up after a part of the lease time.
async fn within<T>(
    time: Duration,
    call: impl Future<Output = Result<T, ControlStoreError>>,
) -> Result<T, ControlStoreError> {
    let given_up = |_| {
        let source = "the control store has not answered within a third of the lease time".into();
        Err(ControlStoreError::Unavailable { source })
    };
    timeout(time / RENEWALS, call)
        .map(|done| done.unwrap_or_else(given_up))
        .await
}
