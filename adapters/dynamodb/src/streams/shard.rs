//! One shard, read under a lease until it ends, the lease is lost, or the reader stops.
use super::{
    batch::Batch,
    context::Context,
    fetch::{Cursor, Fetched, fetch},
    rows::ShardRow,
    service::{ChangeStream, ShardStart},
    status::ShardStatus,
    window::Window,
};
use foldstream::{chain, control::Lease, resilience::FailureClass};
use futures::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use std::pin::pin;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// The most places of pages that wait for an earlier page, as a multiple of the most pages.
const COVERED: usize = 64;

/// A shard that this instance is to read.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) stream: ChangeStream,
    pub(super) shard: String,
    pub(super) lease: Lease,
    pub(super) row: ShardRow,
}

/// The reason why a shard is no longer read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShardEnd {
    /// Everything in the shard is covered, and its children may begin.
    Done,
    /// Another instance has taken over, or may have.
    Lost,
    /// The lease was given up, since the reader stops or another instance needs work.
    Released,
}

/// Reads a shard. What is still being published when the lease is lost is dropped: the next holder
/// publishes it again.
pub(super) async fn read(
    cx: &Context,
    assignment: Assignment,
    stop: CancellationToken,
) -> (String, ShardEnd) {
    let id = assignment.shard.clone();
    let mut shard = Shard {
        cx,
        stream: assignment.stream,
        id: assignment.shard,
        lease: assignment.lease,
        row: assignment.row,
        window: Window::default(),
    };
    let end = shard.run(&stop).await;
    cx.forget(&id);
    tracing::debug!(shard = id, ?end, "a shard is no longer read here");
    if end != ShardEnd::Lost
        && let Err(error) = shard.lease.release().await
    {
        tracing::debug!(
            shard = id,
            error = chain(&error),
            "the lease of a shard expires"
        );
    }
    (id, end)
}

struct Shard<'a> {
    cx: &'a Context,
    stream: ChangeStream,
    id: String,
    lease: Lease,
    row: ShardRow,
    window: Window,
}

impl Shard<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> ShardEnd {
        let cx = self.cx;
        let (stream, id) = (self.stream.clone(), self.id.clone());
        let start = self.row.checkpoint.clone();
        let start = start.map_or(ShardStart::Horizon, ShardStart::After);
        let mut cursor = Some(Cursor::at(start));
        let mut fetching = pin!(Fuse::terminated());
        let mut publishing = FuturesUnordered::new();
        let mut is_at_end = false;
        let mut checkpoint_at = Instant::now() + cx.config.checkpoint;
        let mut renew_at = self.renew_at();
        // Set once the shard is to be given up.
        let mut until = None;
        loop {
            self.show();
            if let Some(is_done) = self.is_over(is_at_end, until, publishing.len()) {
                return self.end(is_done).await;
            }
            if until.is_none()
                && self.has_room(publishing.len())
                && let Some(cursor) = cursor.take()
            {
                fetching.set(fetch(cx, &stream, &id, cursor).fuse());
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if until.is_none() => {
                    until = Some(Instant::now() + cx.config.grace);
                    // What is fetched now would only be dropped.
                    fetching.set(Fuse::terminated());
                }
                () = sleep_until(until.unwrap_or(checkpoint_at)), if until.is_some() => {}
                () = sleep_until(renew_at) => match self.renew().await {
                    Some(next) => renew_at = next,
                    None => return ShardEnd::Lost,
                },
                Some(batch) = publishing.next(), if !publishing.is_empty() => {
                    if let Some(batch) = self.cover(batch) {
                        publishing.push(batch.publish(cx));
                    }
                }
                () = sleep_until(checkpoint_at) => {
                    checkpoint_at = Instant::now() + cx.config.checkpoint;
                    self.checkpoint(false).await;
                }
                (next, fetched) = &mut fetching, if !fetching.is_terminated() => match fetched {
                    Fetched::End => is_at_end = true,
                    Fetched::Page(records, permit) => {
                        cursor = Some(next);
                        let page = self.window.add(&records);
                        publishing.push(Batch::new(cx, &id, page, records, permit).publish(cx));
                    }
                },
            }
        }
    }

    /// Returns whether the shard is done, once there is nothing left to do here: everything is
    /// covered, or the shard is given up and nothing is being published or the grace is over.
    fn is_over(&self, is_at_end: bool, until: Option<Instant>, publishing: usize) -> Option<bool> {
        if is_at_end && publishing == 0 && self.window.len() == 0 {
            return Some(true);
        }
        let is_given_up = until.is_some_and(|until| publishing == 0 || Instant::now() >= until);
        is_given_up.then_some(false)
    }

    /// Returns true if another page may be fetched. Pages that are covered hold only their places,
    /// but there is a limit to them as well.
    fn has_room(&self, publishing: usize) -> bool {
        let most = self.cx.config.max_pages_per_shard.max(1);
        publishing < most && self.window.len() < most.saturating_mul(COVERED)
    }

    /// Notes what an attempt at a page has covered. Returns the page if something is left.
    fn cover(&mut self, batch: Batch) -> Option<Batch> {
        let first_to_keep = batch.first_to_keep();
        self.window.cover(batch.page, first_to_keep);
        first_to_keep.map(|_| batch)
    }

    fn renew_at(&self) -> Instant {
        let lease = self.cx.config.lease;
        self.lease.valid_until() - (lease - lease / 3)
    }

    /// Renews the lease. Returns the time of the next renewal, or `None` if the lease is lost.
    async fn renew(&mut self) -> Option<Instant> {
        let until = self.lease.valid_until();
        match timeout_at(until, self.lease.renew()).await {
            Ok(Ok(true)) => {
                self.cx.works(&self.id, "renewing leases");
                Some(self.renew_at())
            }
            Ok(Err(error)) if Instant::now() < until => {
                self.cx.fails(&self.id, "renewing leases", 1, &error);
                let pause = self.cx.config.lease / 10;
                Some((Instant::now() + pause).min(until))
            }
            _ => None,
        }
    }

    /// Writes how far everything is covered. Returns true if the row says so now.
    async fn checkpoint(&mut self, is_done: bool) -> bool {
        let row = ShardRow {
            parent: self.row.parent.clone(),
            checkpoint: self
                .window
                .checkpoint()
                .cloned()
                .max(self.row.checkpoint.clone()),
            is_done,
        };
        if row == self.row {
            return true;
        }
        // A checkpoint is true whoever writes it. The time limit only keeps the lease renewed.
        let until = self.lease.valid_until();
        let write = self.cx.rows.advance(&self.stream.label, &self.id, row);
        match timeout_at(until, write).await {
            Ok(Ok(row)) => {
                self.row = row;
                self.cx.works(&self.id, "checkpoints");
                true
            }
            Ok(Err(error)) => {
                self.cx.fails(&self.id, "checkpoints", 3, &error);
                false
            }
            Err(_) => false,
        }
    }

    /// Writes the last checkpoint. That a shard is done must be written before it counts as done,
    /// since the children begin then.
    async fn end(&mut self, is_done: bool) -> ShardEnd {
        let mut attempts = self.cx.attempts();
        loop {
            let is_written = self.checkpoint(is_done).await;
            match (is_written, is_done) {
                (true, true) => return ShardEnd::Done,
                (_, false) => return ShardEnd::Released,
                (false, true) => {}
            }
            if !attempts.wait(FailureClass::Transient).await || self.renew().await.is_none() {
                return ShardEnd::Lost;
            }
        }
    }

    fn show(&self) {
        let status = ShardStatus {
            id: self.id.clone(),
            epoch: self.lease.epoch(),
            checkpoint: self.row.checkpoint.clone(),
            pages: self.window.len(),
            behind_since: self.window.behind_since(),
        };
        self.cx.shared().shards.insert(self.id.clone(), status);
    }
}
