//! The walks of a poller through its segments, and the streams that it leaves alone for a while.
use super::{
    Budget, Notice, Notices, Outcome, PollConfig, PollError, PollReport, PublishError, Publisher,
    TopicRoute,
    leases::{Holdings, Plan, Round},
};
use crate::{
    Backoff, RetryPolicy, StreamId,
    ports::{EventStoreError, ScanCursor, Segment, UnpublishedPage},
    resilience::{Attempts, Failure, FailureClass},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A page to list, and the instant before which it is not listed.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) segment: Segment,
    pub(super) after: Option<ScanCursor>,
    pub(super) at: Instant,
    /// The number of this look, so that a page that comes too late is known.
    pub(super) number: u64,
}

/// The walk through one segment of the list.
#[derive(Debug)]
struct Walk {
    segment: Segment,
    /// The instant from which nothing new begins, unless the lease is renewed.
    until: Instant,
    /// Cancelled when this poller may not go on with the segment. Runs in flight end.
    stop: CancellationToken,
    /// True if the segment is handed on to another poller once nothing of it is being published.
    is_leaving: bool,
    after: Option<ScanCursor>,
    /// True if this walk has found a stream to publish.
    has_found: bool,
    pause: Duration,
    next_at: Instant,
    /// The number of the last look, so that of equal times the segments take turns.
    looked: u64,
}

/// A stream or a topic that has failed, and is left alone for a while.
#[derive(Debug)]
struct Stuck {
    attempts: Attempts<'static>,
    until: Instant,
    /// The segment of the stream.
    segment: u32,
}

impl Stuck {
    /// Returns the state after another failure: the pause grows. What is permanent is tried again,
    /// too, since it stays listed and an operator may have mended it.
    fn again(
        known: Option<Self>,
        segment: u32,
        backoff: Backoff,
        class: FailureClass,
    ) -> (Self, Duration) {
        let fresh = || Attempts::new(RetryPolicy::forever(backoff));
        let mut attempts = known.map_or_else(fresh, |stuck| stuck.attempts);
        let class = match class {
            FailureClass::Permanent => FailureClass::Transient,
            class => class,
        };
        let pause = attempts.next(class).unwrap_or(backoff.max);
        let stuck = Self {
            attempts,
            until: Instant::now() + pause,
            segment,
        };
        (stuck, pause)
    }
}

#[derive(Debug)]
pub(super) struct Poller<'a> {
    publisher: &'a Publisher,
    config: PollConfig,
    /// Cancelled when the poller ends.
    pub(super) stop: CancellationToken,
    /// The walks through the segments that this poller holds.
    walks: BTreeMap<u32, Walk>,
    /// The number of the look whose page is being listed, and the segment that it is of.
    looks: u64,
    current: u32,
    has_new_segments: bool,
    /// The looks that have failed in a row.
    listing: Attempts<'static>,
    /// The rounds of leases that have failed in a row.
    leasing: Attempts<'static>,
    next_round_at: Instant,
    /// The streams that wait for a slot: at most a page.
    found: VecDeque<(u32, Notices)>,
    /// The streams that wait for a slot or are being published, with their segments.
    busy: BTreeMap<StreamId, u32>,
    stuck: BTreeMap<StreamId, Stuck>,
    /// The topics that cannot be used, and the time for which their streams are left alone.
    stuck_topics: BTreeMap<Arc<str>, Stuck>,
    /// The one stream that tries each topic that is not known to be usable: others would only hold
    /// slots.
    trying: BTreeMap<Arc<str>, StreamId>,
    rng: fastrand::Rng,
    report: PollReport,
    ended_by: Option<PollError>,
}

impl<'a> Poller<'a> {
    /// The most streams whose pause is remembered. With more, the rest is tried at every walk: then
    /// everything is stuck anyway.
    const MAX_STUCK: usize = 10_000;

    pub(super) fn new(publisher: &'a Publisher, config: PollConfig) -> Self {
        // The source of ids is the only randomness, so a source with a seed determines the pauses.
        let seed = publisher.ids.revision().as_u128() as u64;
        Self {
            publisher,
            config,
            stop: CancellationToken::new(),
            walks: BTreeMap::new(),
            looks: 0,
            current: 0,
            has_new_segments: false,
            listing: Attempts::new(RetryPolicy::forever(config.backoff)),
            leasing: Attempts::new(RetryPolicy::forever(Backoff::new(
                config.lease / 12,
                config.lease / 3,
            ))),
            next_round_at: Instant::now(),
            found: VecDeque::new(),
            busy: BTreeMap::new(),
            stuck: BTreeMap::new(),
            stuck_topics: BTreeMap::new(),
            trying: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
            report: PollReport::default(),
            ended_by: None,
        }
    }

    /// Returns a time between half of this time and all of it, so that processes do not act in
    /// step.
    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.5 + self.rng.f64() / 2.0)
    }

    pub(super) const fn is_failed(&self) -> bool {
        self.ended_by.is_some()
    }

    /// Returns the plan of a round if one is due. It releases the segments that are to be handed
    /// on, and of which nothing is being published any more. A poller that ends renews until its
    /// streams are done.
    pub(super) fn next_round(&mut self, may_begin: bool) -> Option<Plan> {
        if !may_begin {
            return None;
        }
        let is_idle = |index: &u32| !self.busy.values().any(|segment| segment == index);
        let leaving = self.walks.iter().filter(|(_, walk)| walk.is_leaving);
        let idle: Vec<u32> = leaving.map(|(index, _)| *index).filter(is_idle).collect();
        if idle.is_empty() && Instant::now() < self.next_round_at {
            return None;
        }
        for index in &idle {
            self.leave(*index);
        }
        Some(Plan {
            released: idle,
            may_take: !self.stop.is_cancelled(),
        })
    }

    /// Returns the instant at which the poller must look at its leases again.
    pub(super) fn wake_at(&self, may_begin: bool) -> Instant {
        let ends = self.walks.values().filter(|walk| !walk.stop.is_cancelled());
        let ends = ends.map(|walk| walk.until);
        let round = may_begin.then_some(self.next_round_at);
        let far = Instant::now() + Duration::from_secs(3600);
        ends.chain(round).min().unwrap_or(far)
    }

    /// Stops the segments whose leases could not be renewed in time.
    pub(super) fn stop_what_has_ended(&mut self) {
        let now = Instant::now();
        let ended = self.walks.iter().filter(|(_, walk)| walk.until <= now);
        let ended: Vec<u32> = ended.map(|(index, _)| *index).collect();
        for index in ended {
            tracing::warn!(
                segment = index,
                "the lease of a segment could not be renewed"
            );
            self.leave(index);
        }
    }

    /// Takes note of the segments that this poller holds now.
    pub(super) fn leased(&mut self, round: Round) {
        let gone = self
            .walks
            .keys()
            .filter(|index| !round.held.contains_key(index));
        let gone: Vec<u32> = gone.copied().collect();
        for index in gone {
            self.leave(index);
        }
        self.report.leases_lost += round.lost;
        if !round.taken.is_empty() {
            // Another poller may have moved the watermarks that this process remembers.
            self.publisher.state.marks.forget();
        }
        for (index, until) in &round.held {
            if round.taken.contains(index) {
                self.leave(*index);
            }
            match self.walks.get_mut(index) {
                Some(walk) => walk.until = *until,
                None => self.enter(*index, *until),
            }
        }
        self.hand_on(round.surplus);
        let pause = match round.error {
            None => {
                self.leasing.reset();
                Holdings::pause(self.config.lease, round.wants_more)
            }
            Some(error) if error.is_transient() => {
                let error_text = crate::chain(&error);
                tracing::warn!(error = error_text, "leases of the poller cannot be renewed");
                let pause = self.leasing.next(error.failure_class());
                pause.unwrap_or(self.config.lease / 3)
            }
            Some(source) => return self.end_by(PollError::Leases { source }),
        };
        self.next_round_at = Instant::now() + self.jittered(pause);
    }

    /// Begins the walk through a segment.
    fn enter(&mut self, index: u32, until: Instant) {
        let Some(segment) = Segment::split(self.config.segments).nth(index as usize) else {
            return;
        };
        self.has_new_segments = true;
        self.walks.insert(
            index,
            Walk {
                segment,
                until,
                stop: self.stop.child_token(),
                is_leaving: false,
                after: None,
                has_found: false,
                pause: self.config.min_pause,
                next_at: Instant::now(),
                looked: 0,
            },
        );
    }

    /// Ends the walk through a segment. What has begun ends its runs, and nothing else begins.
    fn leave(&mut self, index: u32) {
        let Some(walk) = self.walks.remove(&index) else {
            return;
        };
        walk.stop.cancel();
        self.drop_found(index);
        self.stuck.retain(|_, stuck| stuck.segment != index);
    }

    /// Forgets the streams of a segment that wait for a slot.
    fn drop_found(&mut self, index: u32) {
        for (segment, notices) in std::mem::take(&mut self.found) {
            if segment == index {
                self.busy.remove(&notices.stream);
                self.trying.retain(|_, stream| *stream != notices.stream);
            } else {
                self.found.push_back((segment, notices));
            }
        }
    }

    /// Begins to hand on as many segments as are too many.
    fn hand_on(&mut self, surplus: usize) {
        let leaving: Vec<u32> = self.walks.keys().rev().take(surplus).copied().collect();
        for (index, walk) in &mut self.walks {
            let is_leaving = leaving.contains(index);
            if walk.is_leaving && !is_leaving {
                // The other poller is gone.
                walk.stop = self.stop.child_token();
                self.has_new_segments = true;
            } else if is_leaving {
                walk.stop.cancel();
            }
            walk.is_leaving = is_leaving;
        }
        for index in leaving {
            self.drop_found(index);
        }
    }

    /// Returns the next stream to publish, with the budget of its segment.
    pub(super) fn next_stream(&mut self) -> Option<(u32, Notices, Budget)> {
        if self.stop.is_cancelled() {
            return None;
        }
        let (segment, notices) = self.found.pop_front()?;
        // A segment that was left has no streams that wait. If it had, they would be interrupted.
        let cancelled = || {
            let stop = CancellationToken::new();
            stop.cancel();
            stop
        };
        let walk = self.walks.get(&segment);
        let budget = Budget {
            stop: walk.map_or_else(cancelled, |walk| walk.stop.clone()),
            ..Budget::default()
        };
        Some((segment, notices, budget))
    }

    /// Returns true if segments have come since the last look.
    pub(super) const fn has_new_segments(&self) -> bool {
        self.has_new_segments
    }

    /// Returns the page to list next: of the segment that may be looked at first, and of several
    /// such segments the one that was not looked at for longest.
    pub(super) fn next_look(&mut self) -> Option<Look> {
        self.has_new_segments = false;
        let turns = self.walks.iter_mut().filter(|(_, walk)| !walk.is_leaving);
        let (index, walk) = turns.min_by_key(|(_, walk)| (walk.next_at, walk.looked))?;
        self.looks += 1;
        self.current = *index;
        walk.looked = self.looks;
        Some(Look {
            segment: walk.segment,
            after: walk.after.clone(),
            at: walk.next_at,
            number: self.looks,
        })
    }

    pub(super) fn listed(
        &mut self,
        (number, page): (u64, Result<UnpublishedPage, EventStoreError>),
    ) {
        let is_current = |walk: &Walk| walk.looked == number && !walk.is_leaving;
        if !self.walks.get(&self.current).is_some_and(is_current) {
            // The segment was left meanwhile.
            return;
        }
        match page {
            Ok(page) => {
                self.listing.reset();
                self.take_in(page);
            }
            Err(error) if error.is_transient() => {
                let pause = self.listing.next(error.failure_class());
                let pause = pause.unwrap_or(self.config.backoff.max);
                if let Some(walk) = self.walks.get_mut(&self.current) {
                    walk.next_at = Instant::now() + pause;
                }
                tracing::warn!(
                    ?pause,
                    error = crate::chain(&error),
                    "the unpublished commits cannot be listed"
                );
            }
            Err(source) => self.end_by(PollError::List { source }),
        }
    }

    /// Queues the streams of a page that may be published now, each with all its keys and once per
    /// walk.
    fn take_in(&mut self, page: UnpublishedPage) {
        let now = Instant::now();
        let segment = self.current;
        let (busy, stuck) = (&self.busy, &self.stuck);
        let may_take = |stream: &StreamId| {
            !busy.contains_key(stream) && stuck.get(stream).is_none_or(|s| s.until <= now)
        };
        let mut keys = page.keys;
        keys.retain(|key| may_take(&key.stream));
        keys.retain(|key| self.may_try_topic_of(&key.stream, now));
        let keys = keys.into_iter().map(|key| (None, Notice::Key(key)));
        let streams = Notices::by_stream(keys);
        let has_found = !streams.is_empty();
        self.busy
            .extend(streams.keys().map(|stream| (stream.clone(), segment)));
        self.found
            .extend(streams.into_values().map(|notices| (segment, notices)));
        let (shortest, longest) = (self.config.min_pause, self.config.max_pause);
        let jitter = self.rng.f64();
        let Some(walk) = self.walks.get_mut(&segment) else {
            return;
        };
        walk.has_found |= has_found;
        // One key of a stream is enough to publish all of it. So the walk goes on with the next
        // stream, also if the page ends in the middle of a long backlog.
        walk.after = page.next_stream.or(page.next);
        walk.next_at = now;
        if walk.after.is_some() {
            return;
        }
        walk.pause = if walk.has_found {
            shortest
        } else {
            walk.pause.saturating_mul(2).min(longest)
        };
        // Pollers that have started together do not look together.
        walk.next_at += walk.pause.mul_f64(0.5 + jitter / 2.0);
        walk.has_found = false;
    }

    /// Returns true if a stream may be tried, as far as its topic is concerned.
    fn may_try_topic_of(&mut self, stream: &StreamId, now: Instant) -> bool {
        let topic = self.publisher.route.topic(stream);
        if self.publisher.state.topics.is_checked(&topic) {
            return true;
        }
        let stuck = self.stuck_topics.get(&topic);
        stuck.is_none_or(|stuck| stuck.until <= now)
            && self.trying.entry(topic).or_insert_with(|| stream.clone()) == stream
    }

    /// Leaves the streams of a topic alone for a growing time if it is unusable.
    fn tried_topic_of(&mut self, stream: &StreamId, is_unusable: bool) {
        let topic = self.publisher.route.topic(stream);
        if self.trying.get(&topic) == Some(stream) {
            self.trying.remove(&topic);
        }
        if !is_unusable {
            self.stuck_topics.remove(&topic);
            return;
        }
        let known = self.stuck_topics.remove(&topic);
        let stuck = match known {
            // Several streams may have been under way to the topic.
            Some(stuck) if stuck.until > Instant::now() => stuck,
            known => Stuck::again(known, 0, self.config.backoff, FailureClass::Permanent).0,
        };
        self.stuck_topics.insert(topic, stuck);
    }

    pub(super) fn worked(&mut self, segment: u32, outcome: Outcome) {
        let stream = outcome.stream;
        self.busy.remove(&stream);
        self.report.messages += outcome.messages;
        let is_unusable = matches!(&outcome.result, Err(error) if error.is_topic_unusable());
        self.tried_topic_of(&stream, is_unusable);
        let error = match outcome.result {
            Ok(()) => {
                self.report.brought_up += 1;
                self.stuck.remove(&stream);
                return;
            }
            Err(PublishError::Interrupted { .. }) => {
                self.report.interrupted += 1;
                return;
            }
            Err(error) => error,
        };
        self.report.failures += 1;
        let is_only_topic = matches!(self.publisher.route, TopicRoute::One(_));
        if error.is_set_up_wrong() || is_unusable && is_only_topic {
            return self.end_by(PollError::Refused { source: error });
        }
        let known = self.stuck.remove(&stream);
        let class = error.failure_class();
        let (stuck, pause) = Stuck::again(known, segment, self.config.backoff, class);
        let failures = stuck.attempts.failed();
        tracing::warn!(%stream, failures, ?pause, error = crate::chain(&error), "not published, to be tried again");
        if !self.walks.contains_key(&segment) {
            // Another poller tries the stream again.
            return;
        }
        if self.stuck.len() >= Self::MAX_STUCK {
            let now = Instant::now();
            self.stuck.retain(|_, stuck| stuck.until > now);
        }
        if self.stuck.len() < Self::MAX_STUCK {
            self.stuck.insert(stream, stuck);
        }
    }

    fn end_by(&mut self, error: PollError) {
        self.ended_by.get_or_insert(error);
    }

    pub(super) fn end(self) -> Result<PollReport, PollError> {
        let mut report = self.report;
        let stuck = self.stuck.into_iter();
        report.stuck = stuck
            .map(|(stream, s)| (stream, s.attempts.failed()))
            .collect();
        self.ended_by.map_or(Ok(report), Err)
    }
}
