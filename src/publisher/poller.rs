//! The poller: the trigger that needs nothing but the store's list of unpublished commits.
//!
//! The poller walks through the list in segments, a page of each in turn, while the streams that it
//! has found are being published. A stream that hangs or has a long backlog holds one of the slots,
//! and never the walk. A stream that fails is left alone for a growing time. Its markers stay, so
//! that nothing is lost, and it costs the walk no more than its keys.
use super::{
    Notice, PollConfig, PollError, PollReport, PublishError, Publisher, TopicRoute,
    notice::Notices, report::Outcome, worker::Budget,
};
use crate::{
    Backoff, RetryPolicy, StreamId,
    ports::{EventStoreError, ScanCursor, Segment, UnpublishedPage},
    resilience::{Attempts, Failure, FailureClass},
};
use futures::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    num::NonZeroU32,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

impl Publisher {
    /// Publishes what the store lists as unpublished, until `shutdown` is ready. Then it finishes
    /// the runs in hand, moves their watermarks, and returns.
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
        let budget = Budget::default();
        let stop = &budget.stop;
        let mut poller = Poller::new(self, config);
        let mut working = FuturesUnordered::new();
        let mut listing = pin!(Fuse::terminated());
        loop {
            if poller.ended_by.is_some() {
                stop.cancel();
            }
            if stop.is_cancelled() && working.is_empty() {
                return poller.end();
            }
            while !stop.is_cancelled()
                && working.len() < self.concurrency
                && let Some(notices) = poller.found.pop_front()
            {
                working.push(self.publish_one(notices, &budget));
            }
            // Nothing is listed before there is room for it.
            if listing.is_terminated() && working.len() < self.concurrency {
                listing.set(list(self, poller.next_look(), config.batch).fuse());
            }
            tokio::select! {
                biased;
                () = &mut shutdown, if !shutdown.is_terminated() => stop.cancel(),
                Some(outcome) = working.next(), if !working.is_empty() => poller.worked(outcome),
                page = &mut listing, if !stop.is_cancelled() && !listing.is_terminated() => {
                    poller.listed(page);
                }
            }
        }
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

/// A page to list, and the instant before which it is not listed.
#[derive(Debug)]
struct Look {
    segment: Segment,
    after: Option<ScanCursor>,
    at: Instant,
}

async fn list(
    publisher: &Publisher,
    look: Look,
    batch: NonZeroU32,
) -> Result<UnpublishedPage, EventStoreError> {
    tokio::time::sleep_until(look.at).await;
    let store = &publisher.store;
    store.unpublished(look.segment, look.after, batch).await
}

/// The walk through one segment of the list.
#[derive(Debug)]
struct Walk {
    segment: Segment,
    after: Option<ScanCursor>,
    /// The stream with which the last page has ended. It was taken in this walk, and the next page
    /// may continue with it.
    last: Option<StreamId>,
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
}

impl Stuck {
    /// Returns the state after another failure: the pause grows. What is permanent is tried again,
    /// too, since it stays listed and an operator may have mended it.
    fn again(known: Option<Self>, backoff: Backoff, class: FailureClass) -> (Self, Duration) {
        let fresh = || Attempts::new(RetryPolicy::forever(backoff));
        let mut attempts = known.map_or_else(fresh, |stuck| stuck.attempts);
        let class = match class {
            FailureClass::Permanent => FailureClass::Transient,
            class => class,
        };
        let pause = attempts.next(class).unwrap_or(backoff.max);
        let until = Instant::now() + pause;
        (Self { attempts, until }, pause)
    }
}

#[derive(Debug)]
struct Poller<'a> {
    publisher: &'a Publisher,
    config: PollConfig,
    walks: Vec<Walk>,
    /// The index of the walk whose page is being listed.
    current: usize,
    looks: u64,
    /// The looks that have failed in a row.
    listing: Attempts<'static>,
    /// The streams that wait for a slot: at most a page.
    found: VecDeque<Notices>,
    /// The streams that wait for a slot or are being published.
    busy: BTreeSet<StreamId>,
    stuck: BTreeMap<StreamId, Stuck>,
    /// The topics that cannot be used, and the time for which their streams are left alone.
    stuck_topics: BTreeMap<Arc<str>, Stuck>,
    /// The one stream that tries each topic that is not known to be usable: others would only hold
    /// slots.
    trying: BTreeMap<Arc<str>, StreamId>,
    report: PollReport,
    ended_by: Option<PollError>,
}

impl<'a> Poller<'a> {
    /// The most streams whose pause is remembered. With more, the rest is tried at every walk: then
    /// everything is stuck anyway.
    const MAX_STUCK: usize = 10_000;

    fn new(publisher: &'a Publisher, mut config: PollConfig) -> Self {
        config.min_pause = config.min_pause.max(Duration::from_millis(1));
        config.max_pause = config.max_pause.max(config.min_pause);
        let walk = |segment| Walk {
            segment,
            after: None,
            last: None,
            has_found: false,
            pause: config.min_pause,
            next_at: Instant::now(),
            looked: 0,
        };
        Self {
            publisher,
            config,
            walks: Segment::split(config.segments).map(walk).collect(),
            current: 0,
            looks: 0,
            listing: Attempts::new(RetryPolicy::forever(config.backoff)),
            found: VecDeque::new(),
            busy: BTreeSet::new(),
            stuck: BTreeMap::new(),
            stuck_topics: BTreeMap::new(),
            trying: BTreeMap::new(),
            report: PollReport::default(),
            ended_by: None,
        }
    }

    /// Returns the page to list next: of the segment that may be looked at first, and of several
    /// such segments the one that was not looked at for longest.
    fn next_look(&mut self) -> Look {
        self.looks += 1;
        let turns = self.walks.iter().enumerate();
        let next = turns.min_by_key(|(_, walk)| (walk.next_at, walk.looked));
        self.current = next.map_or(0, |(index, _)| index);
        let walk = &mut self.walks[self.current];
        walk.looked = self.looks;
        Look {
            segment: walk.segment,
            after: walk.after.clone(),
            at: walk.next_at,
        }
    }

    fn listed(&mut self, page: Result<UnpublishedPage, EventStoreError>) {
        match page {
            Ok(page) => {
                self.listing.reset();
                self.take_in(page);
            }
            Err(error) if error.is_transient() => {
                let pause = self.listing.next(error.failure_class());
                let pause = pause.unwrap_or(self.config.backoff.max);
                self.walks[self.current].next_at = Instant::now() + pause;
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
        let walk = &self.walks[self.current];
        let last = page.keys.last().map(|key| key.stream.clone());
        let (taken, busy, stuck) = (&walk.last, &self.busy, &self.stuck);
        let may_take = |stream: &StreamId| {
            taken.as_ref() != Some(stream)
                && !busy.contains(stream)
                && stuck.get(stream).is_none_or(|s| s.until <= now)
        };
        let mut keys = page.keys;
        keys.retain(|key| may_take(&key.stream));
        keys.retain(|key| self.may_try_topic_of(&key.stream, now));
        let keys = keys.into_iter().map(|key| (None, Notice::Key(key)));
        let streams = Notices::by_stream(keys);
        let walk = &mut self.walks[self.current];
        walk.has_found |= !streams.is_empty();
        self.busy.extend(streams.keys().cloned());
        self.found.extend(streams.into_values());
        walk.after = page.next;
        walk.next_at = now;
        if walk.after.is_some() {
            walk.last = last.or(walk.last.take());
            return;
        }
        let (shortest, longest) = (self.config.min_pause, self.config.max_pause);
        walk.pause = if walk.has_found {
            shortest
        } else {
            walk.pause.saturating_mul(2).min(longest)
        };
        walk.next_at += walk.pause;
        (walk.last, walk.has_found) = (None, false);
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
            known => Stuck::again(known, self.config.backoff, FailureClass::Permanent).0,
        };
        self.stuck_topics.insert(topic, stuck);
    }

    fn worked(&mut self, outcome: Outcome) {
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
        let (stuck, pause) = Stuck::again(known, self.config.backoff, class);
        let failures = stuck.attempts.failed();
        tracing::warn!(%stream, failures, ?pause, error = crate::chain(&error), "not published, to be tried again");
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

    fn end(self) -> Result<PollReport, PollError> {
        let mut report = self.report;
        let stuck = self.stuck.into_iter();
        report.stuck = stuck
            .map(|(stream, s)| (stream, s.attempts.failed()))
            .collect();
        self.ended_by.map_or(Ok(report), Err)
    }
}
