//! One instance among others: which stream, which shards, which instances, and whose turn it is.
use super::{
    context::Context,
    error::StreamsError,
    rows::ShardRow,
    service::{ChangeStream, StreamServiceError},
    shard::Assignment,
    shards::{Plan, ShardState, Shards},
    status::{ReaderState, ReconcileNeeded},
};
use foldstream::{
    Timestamp,
    control::{Contender, Lease, Members},
    ports::Revision,
    resilience::{Attempts, FailureClass},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// The time without any shard after which a reader counts as idle.
const IDLE: Duration = Duration::from_secs(60);

/// The changes for this instance after a look at the others.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The shards that were taken. Each has to be read or released.
    pub(super) taken: Vec<Assignment>,
    /// The shards to stop reading.
    pub(super) released: Vec<String>,
    /// The failure after which the reader cannot go on.
    pub(super) fatal: Option<StreamsError>,
}

/// The part of an instance that decides which shards it reads.
#[derive(Debug)]
pub(super) struct Coordinator {
    stream: Option<ChangeStream>,
    /// The instances that share the shards of the stream.
    members: Option<Members>,
    is_disabled: bool,
    shards: Shards,
    contenders: BTreeMap<String, Contender>,
    next_at: Instant,
    describe_at: Instant,
    failures: Attempts<'static>,
    has_worked: bool,
    idle_since: Option<(Instant, Timestamp)>,
}

impl Coordinator {
    pub(super) fn new(cx: &Context) -> Self {
        Self {
            stream: None,
            members: None,
            is_disabled: false,
            shards: Shards::default(),
            contenders: BTreeMap::new(),
            next_at: Instant::now(),
            describe_at: Instant::now(),
            failures: cx.attempts(),
            has_worked: false,
            idle_since: None,
        }
    }

    /// Waits for the next look at the others, and takes and gives up shards by it.
    pub(super) async fn round(
        mut self,
        cx: &Context,
        held: BTreeSet<String>,
        stop: &CancellationToken,
    ) -> (Self, Round) {
        let mut round = Round::default();
        tokio::select! {
            biased;
            () = stop.cancelled() => return (self, round),
            () = cx.poke.notified() => {}
            () = sleep_until(self.next_at) => {}
        }
        let step = self.step(cx, &held, &mut round).await;
        self.next_at = Instant::now() + jittered(cx.config.coordination);
        match step {
            Ok(()) => {
                self.failures.reset();
                self.has_worked = true;
                cx.works("", "coordination");
            }
            Err(error) if !self.has_worked && !error.is_transient() => round.fatal = Some(error),
            Err(error) => {
                cx.fails("", "coordination", self.failures.failed() + 1, &error);
                let pause = self.failures.next(FailureClass::Transient);
                let pause = pause.unwrap_or(cx.config.backoff.max);
                self.next_at = Instant::now() + pause;
            }
        }
        (self, round)
    }

    async fn step(
        &mut self,
        cx: &Context,
        held: &BTreeSet<String>,
        round: &mut Round,
    ) -> Result<(), StreamsError> {
        let is_asked = std::mem::take(&mut cx.shared().describe_now);
        if is_asked || Instant::now() >= self.describe_at {
            self.describe(cx, held, round).await?;
        }
        let Some(stream) = self.stream.clone() else {
            self.show(cx, &Plan::default(), held, 1).await?;
            return Ok(());
        };
        let label = &stream.label;
        let listing = cx.rows.list(label).await?;
        self.shards.on_rows(listing.shards);
        if self.shards.awaits_children() {
            // Children may be listed a moment after their parent was closed.
            let soon = Instant::now() + cx.config.coordination / 2;
            self.describe_at = self.describe_at.min(soon);
        }
        self.observe(cx, &stream, held, &listing.leases);
        let (instance, lease) = (&cx.instance, cx.config.lease);
        let members = self
            .members
            .get_or_insert_with(|| cx.rows.members(label, instance, lease));
        members.observe(listing.members)?;
        members.announce(cx.now()).await?;
        let instances = members.count();
        let share = |all| members.share(all);
        let plan = self.shards.plan(instance, share, held);
        for shard in &plan.sweep {
            cx.rows.sweep(label, shard).await?;
        }
        round.released.extend(plan.release.iter().cloned());
        self.take(cx, &stream, &plan, held, round).await?;
        let held: BTreeSet<String> = held
            .iter()
            .cloned()
            .chain(round.taken.iter().map(|a| a.shard.clone()))
            .collect();
        self.show(cx, &plan, &held, instances).await
    }

    /// Describes the stream. A table whose stream is another one than before has lost records.
    async fn describe(
        &mut self,
        cx: &Context,
        held: &BTreeSet<String>,
        round: &mut Round,
    ) -> Result<(), StreamsError> {
        let found = cx.service.stream().await?;
        self.is_disabled = found.is_none();
        let now = Instant::now();
        // The shards of a stream that was disabled can be read for another day.
        if let Some(found) = found
            && self.stream.as_ref() != Some(&found)
        {
            if !held.is_empty() {
                // Shards of two streams are never held at the same time.
                round.released.extend(held.iter().cloned());
                self.stream = None;
                return Ok(());
            }
            self.change_to(cx, found).await?;
        }
        let Some(stream) = &self.stream else {
            self.describe_at = now + jittered(cx.config.coordination);
            return Ok(());
        };
        let shards = match cx.shards(stream).await? {
            Some(shards) => shards,
            // The stream was disabled a day ago.
            None if self.is_disabled => BTreeMap::new(),
            None => return Err(StreamServiceError::Gone.into()),
        };
        self.shards.on_description(shards);
        self.describe_at = now + jittered(cx.config.description);
        Ok(())
    }

    async fn change_to(&mut self, cx: &Context, stream: ChangeStream) -> Result<(), StreamsError> {
        let known = cx.rows.stream().await?;
        if known.as_ref() != Some(&stream.label) {
            if let Some(known) = known {
                let why = format!("stream {known} was replaced by {}", stream.label);
                tracing::error!(why, "records may be lost: call Publisher::reconcile");
                cx.rows.need_reconcile(&why).await?;
            }
            cx.rows.set_stream(&stream.label).await?;
        }
        tracing::info!(stream = stream.arn, "reading the change stream");
        self.shards = Shards::default();
        self.contenders.clear();
        self.members = None;
        self.stream = Some(stream);
        Ok(())
    }

    /// Watches the leases of others, so that the time of a holder that has died counts from its
    /// last renewal, and not from the moment when this instance wants the shard.
    fn observe(
        &mut self,
        cx: &Context,
        stream: &ChangeStream,
        held: &BTreeSet<String>,
        leases: &BTreeMap<String, Revision>,
    ) {
        self.contenders.retain(|shard, _| !held.contains(shard));
        for (shard, revision) in leases {
            let is_ready = matches!(self.shards.state(shard), ShardState::Ready { .. });
            if is_ready && !held.contains(shard) {
                self.contender(cx, stream, shard).observe(*revision);
            } else {
                self.contenders.remove(shard);
            }
        }
    }
    fn contender(&mut self, cx: &Context, stream: &ChangeStream, shard: &str) -> &mut Contender {
        self.contenders.entry(shard.to_owned()).or_insert_with(|| {
            let time = cx.config.lease;
            cx.rows.contender(&stream.label, shard, &cx.instance, time)
        })
    }

    /// Contends for shards until this instance has its share.
    async fn take(
        &mut self,
        cx: &Context,
        stream: &ChangeStream,
        plan: &Plan,
        held: &BTreeSet<String>,
        round: &mut Round,
    ) -> Result<(), StreamsError> {
        let is_ready = |id: &&String| matches!(self.shards.state(id), ShardState::Ready { .. });
        let mut room = plan
            .target
            .saturating_sub(held.iter().filter(is_ready).count());
        for shard in &plan.take {
            if room == 0 {
                break;
            }
            let contender = self.contender(cx, stream, shard);
            let Some(lease) = contender.try_take().await? else {
                continue;
            };
            if let Some(assignment) = self.begin(cx, stream, shard, lease).await? {
                round.taken.push(assignment);
                room -= 1;
            }
        }
        Ok(())
    }

    /// Reads the progress in a shard that was just taken, and notes that the shard has begun.
    async fn begin(
        &self,
        cx: &Context,
        stream: &ChangeStream,
        shard: &str,
        lease: Lease,
    ) -> Result<Option<Assignment>, StreamsError> {
        let loss = ShardState::Ready {
            is_after_loss: true,
        };
        // The rows were read before the lease was taken: another instance may have begun the shard
        // meanwhile.
        if self.shards.state(shard) == loss && cx.rows.shard(&stream.label, shard).await?.is_none()
        {
            cx.note_loss(shard, "the shard before it was deleted before it was read")
                .await;
        }
        let begun = ShardRow {
            parent: self.shards.parent(shard).cloned(),
            ..ShardRow::default()
        };
        let row = cx.rows.advance(&stream.label, shard, begun).await?;
        if row.is_done {
            lease.release().await?;
            return Ok(None);
        }
        Ok(Some(Assignment {
            stream: stream.clone(),
            shard: shard.to_owned(),
            lease,
            row,
        }))
    }

    /// Shows what this instance does, and whether it should do more.
    async fn show(
        &mut self,
        cx: &Context,
        plan: &Plan,
        held: &BTreeSet<String>,
        instances: usize,
    ) -> Result<(), StreamsError> {
        let reconcile = cx.rows.reconcile().await?;
        let should_read = plan.target > 0 || !plan.has_work;
        let (now, at) = (Instant::now(), cx.now());
        if self.stream.is_none() || !held.is_empty() || !should_read {
            self.idle_since = None;
        } else {
            self.idle_since.get_or_insert((now, at));
        }
        let state = match self.idle_since {
            _ if self.is_disabled => ReaderState::Disabled,
            Some((since, at)) if now - since >= IDLE => ReaderState::Idle { since: at },
            _ if !held.is_empty() => ReaderState::Reading,
            _ if self.stream.is_some() && !should_read => ReaderState::Standby,
            _ => ReaderState::Starting,
        };
        let mut shared = cx.shared();
        let status = &mut shared.status;
        if state.is_error() && state != status.state {
            tracing::error!(?state, "nothing is read from the change stream");
        }
        status.state = state;
        status.stream = self.stream.as_ref().map(|stream| stream.label.clone());
        status.instances = instances;
        (status.waiting, status.done) = self.shards.counts();
        status.reconcile = reconcile.map(|(row, revision)| ReconcileNeeded {
            since: Timestamp::from_micros(row.micros),
            why: row.why,
            revision,
        });
        Ok(())
    }
}

/// Returns nine to eleven tenths of a pause, so that instances do not look at the same time.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}
