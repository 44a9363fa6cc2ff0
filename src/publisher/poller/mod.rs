//! The poller: the trigger that needs nothing but the store's list of unpublished commits.
//!
//! The poller walks through the list in segments, a page of each in turn, while the streams that it
//! has found are being published. A stream that hangs or has a long backlog holds one of the slots,
//! and never the walk. A stream that fails is left alone for a growing time. Its markers stay, so
//! that nothing is lost, and it costs the walk no more than a page of keys.
//!
//! Several pollers share the segments by leases, so that each stream is published by one of them.
//! A poller that dies keeps its segments until its leases end, and then the others take them over.
//! What it had sent without moving the watermark is sent again. A lease makes duplicates rare, and
//! nothing more: the order of each stream does not depend on it.
mod leases;
mod walks;

use super::{
    Notice, PollConfig, PollError, PollReport, PublishError, Publisher, TopicRoute, budget::Budget,
    notice::Notices, report::Outcome,
};
use crate::{
    control::Leases,
    ports::{EventStoreError, UnpublishedPage},
};
use futures::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use leases::Holdings;
use std::{
    future::Future,
    num::NonZeroU32,
    pin::{Pin, pin},
    time::Duration,
};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use walks::{Look, Poller};

/// The longest time that the store may take to list a page.
const LISTING: Duration = Duration::from_secs(30);

impl Publisher {
    /// Publishes what the store lists as unpublished, until `shutdown` is ready. Then it finishes
    /// the runs in hand, moves their watermarks, hands its segments on, and returns.
    ///
    /// Pollers in other processes share the work if they have the same number of
    /// [segments](PollConfig::segments): each segment has a lease. A poller that joins gets its
    /// share once the others have finished what they had begun in it, and the segments of one that
    /// has died are taken over after the [lease time](PollConfig::lease).
    ///
    /// What may pass by itself never ends the poller: a store or bus that does not answer is tried
    /// again with growing pauses, and logged. If the future is dropped, nothing is lost.
    ///
    /// # Errors
    /// - [`PollError::NoList`] if the store keeps no list of unpublished commits.
    /// - [`PollError::Named`] if the publisher has a name: the list is that of the one without.
    /// - Another [`PollError`] if something must be changed before any stream can be published: a
    ///   missing table, credentials, or the topic if all events go to one. Streams in hand are
    ///   finished first. A topic of some aggregate types that is missing, denied, or has another
    ///   number of partitions ends nothing: its streams wait, and all others are published.
    pub async fn poll(
        &self,
        config: PollConfig,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<PollReport, PollError> {
        if !self.store.capabilities().lists_unpublished {
            return Err(PollError::NoList);
        }
        if let Some(name) = &self.name {
            return Err(PollError::Named { name: name.clone() });
        }
        let mut shutdown = pin!(shutdown.fuse());
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(PollReport::default()),
            checked = self.check_only_topic() => checked?,
        }
        // The row of the status is deleted before the poller returns.
        let ended = CancellationToken::new();
        let poll = async {
            let polled = self.poll_until(config.within_limits(), shutdown).await;
            ended.cancel();
            polled
        };
        tokio::join!(poll, self.show_status(ended.cancelled())).0
    }

    /// Walks through the list until `shutdown` is ready.
    async fn poll_until(
        &self,
        config: PollConfig,
        mut shutdown: Pin<&mut Fuse<impl Future<Output = ()> + Send>>,
    ) -> Result<PollReport, PollError> {
        let mut poller = Poller::new(self, config);
        let stop = poller.stop.clone();
        let mut holdings = Some(self.holdings(&config));
        let mut round = pin!(Fuse::terminated());
        let mut working = FuturesUnordered::new();
        let mut listing = pin!(Fuse::terminated());
        loop {
            if poller.is_failed() {
                stop.cancel();
            }
            if stop.is_cancelled() && working.is_empty() {
                break;
            }
            poller.stop_what_has_ended();
            while working.len() < self.concurrency
                && let Some((segment, notices, budget)) = poller.next_stream()
            {
                working.push(async move { (segment, self.publish_one(notices, &budget).await) });
            }
            if let Some(plan) = poller.next_round(holdings.is_some())
                && let Some(holdings) = holdings.take()
            {
                round.set(holdings.round(plan).fuse());
            }
            // Nothing is listed before there is room for it. A page of a segment that was looked
            // at later may be due now.
            if working.len() < self.concurrency
                && (listing.is_terminated() || poller.has_new_segments())
            {
                match poller.next_look() {
                    Some(look) => listing.set(list(self, look, config.batch).fuse()),
                    None => listing.set(Fuse::terminated()),
                }
            }
            let wake_at = poller.wake_at(holdings.is_some());
            tokio::select! {
                biased;
                () = &mut shutdown, if !shutdown.is_terminated() => stop.cancel(),
                (held, done) = &mut round, if !round.is_terminated() => {
                    holdings = Some(held);
                    poller.leased(done);
                }
                Some((segment, outcome)) = working.next(), if !working.is_empty() => {
                    poller.worked(segment, outcome);
                }
                page = &mut listing, if !stop.is_cancelled() && !listing.is_terminated() => {
                    poller.listed(page);
                }
                () = sleep_until(wake_at) => {}
            }
        }
        if holdings.is_none() {
            holdings = Some(round.await.0);
        }
        if let Some(holdings) = holdings {
            holdings.end().await;
        }
        poller.end()
    }

    fn holdings(&self, config: &PollConfig) -> Holdings {
        let leases = Leases::new(self.control.clone(), self.ids.clone(), config.lease);
        let id = format!("{:032x}", self.ids.revision().as_u128());
        let (rows, clock) = (self.rows.clone(), self.clock.clone());
        Holdings::new(rows, leases, clock, id, config.segments)
    }

    /// Checks the topic if all events go to one, so that a wrong one is found before the first
    /// event comes.
    async fn check_only_topic(&self) -> Result<(), PollError> {
        let TopicRoute::One(topic) = &self.route else {
            return Ok(());
        };
        match self.checked_topic(topic).await {
            Err(error) if error.is_transient() => {
                tracing::warn!(error = crate::chain(&error), "to be checked again");
                Ok(())
            }
            Err(source) => Err(PollError::Topic { source }),
            Ok(_) => Ok(()),
        }
    }
}

async fn list(
    publisher: &Publisher,
    look: Look,
    batch: NonZeroU32,
) -> (u64, Result<UnpublishedPage, EventStoreError>) {
    sleep_until(look.at).await;
    let page = publisher.store.unpublished(look.segment, look.after, batch);
    let page = timeout(LISTING, page).await.unwrap_or_else(|_| {
        let source = format!("no page within {} s", LISTING.as_secs()).into();
        Err(EventStoreError::Unavailable {
            source,
            pending: None,
        })
    });
    (look.number, page)
}
