//! One writer, which appends to its own streams through the proxy and then compares the table with
//! what the store told it.
use super::{Servers, server::ATTEMPT_TIMEOUT};
use fastrand::Rng;
use foldstream::{
    CommitId, Settled, StreamHead, StreamId, Timestamp,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventData, EventStoreError, PendingAppend},
};
use std::{iter, ops::Add, time::Instant};

const APPENDS: u64 = 4;
const STREAMS: usize = 3;
/// The most calls for one append. A call fails for good only if it meets a fault, so this many do
/// not happen.
const MOST_CALLS: usize = 50;
/// The size of an event of which two do not fit into one item.
const LARGE: usize = 205_000;

type Answer = Result<AppendOutcome<Vec<StreamHead>>, EventStoreError>;

/// The next step of a writer after an answer.
enum Next {
    /// The append is stored.
    Acknowledge,
    /// Nothing is known yet, so the same append is sent again.
    SendAgain,
    /// The append may still be applied. The writer leaves it and decides on another one.
    Abandon,
    /// The append is certainly not stored, so the writer decides on another one.
    DecideAgain,
}

/// A writer that is alone on its streams, and all that the store told it.
pub(super) struct Writer<'a> {
    servers: &'a Servers,
    seed: u64,
    rng: Rng,
    /// The heads of the streams, as far as they were acknowledged.
    heads: Vec<StreamHead>,
    /// The acknowledged commits of each stream.
    acknowledged: Vec<Vec<Commit>>,
    /// The appends that were abandoned while their outcome was unknown. They may still be applied.
    abandoned: Vec<AppendAll>,
    /// The commits of which the store said that they were certainly not applied.
    not_applied: Vec<CommitId>,
    calls: u64,
    tally: Tally,
}

impl<'a> Writer<'a> {
    pub(super) fn new(servers: &'a Servers, seed: u64) -> Self {
        let empty = |n| {
            let id = format!("run-{seed}-{n}");
            StreamHead::empty(StreamId::new("proxy", &id).unwrap())
        };
        Self {
            servers,
            seed,
            rng: Rng::with_seed(seed),
            heads: (0..STREAMS).map(empty).collect(),
            acknowledged: vec![Vec::new(); STREAMS],
            abandoned: Vec::new(),
            not_applied: Vec::new(),
            calls: 0,
            tally: Tally::default(),
        }
    }

    pub(super) async fn run(mut self) -> Tally {
        for _ in 0..APPENDS {
            let append = self.decide();
            self.append(append).await;
        }
        self.servers.proxy.drain(self.seed).await;
        let stored = self.read_at_rest().await;
        self.assert_that_the_acknowledged_is_stored(&stored);
        self.assert_that_the_abandoned_is_open_or_superseded().await;
        self.tally
    }

    /// Returns an append to one stream, of a split commit, or to several streams, of which one may
    /// be checked only.
    fn decide(&mut self) -> AppendAll {
        let kind = self.rng.u32(0..100);
        let mut streams: Vec<_> = (0..STREAMS).collect();
        self.rng.shuffle(&mut streams);
        let [first, second, third] = streams[..] else {
            unreachable!("there are three streams")
        };
        match kind {
            0..58 => AppendAll::new(vec![self.small(first)]),
            58..61 => AppendAll::new(vec![self.split(first)]),
            61..62 => AppendAll::new(vec![self.split(first), self.small(second)]),
            62..85 => AppendAll::new(vec![self.small(first), self.small(second)]),
            _ => AppendAll::new(vec![self.small(first), self.small(second)])
                .with_unchanged(vec![self.heads[third].clone()]),
        }
    }
    fn small(&mut self, stream: usize) -> Append {
        let events = self.rng.usize(1..4);
        self.commit(stream, events, "")
    }
    fn split(&mut self, stream: usize) -> Append {
        self.commit(stream, 2, &"x".repeat(LARGE))
    }
    fn commit(&mut self, stream: usize, events: usize, text: &str) -> Append {
        let events = (0..events).map(|n| {
            let payload = format!(r#"{{"amount":{n},"text":"{text}"}}"#);
            EventData::new("Entered", 1, payload)
        });
        let id = CommitId::from_u128(self.rng.u128(..));
        let head = self.heads[stream].clone();
        Append::after(head, id, Timestamp::now(), events.collect::<Vec<_>>())
    }

    /// Appends until an append is stored, which need not be the first one.
    async fn append(&mut self, mut append: AppendAll) {
        // True if an earlier call with this append may still take effect.
        let mut may_be_applied = false;
        for _ in 0..MOST_CALLS {
            let answer = self.call(&append, may_be_applied).await;
            match self.next_step(answer, &append, may_be_applied).await {
                Next::Acknowledge => return self.acknowledge(&append),
                Next::SendAgain => may_be_applied = true,
                Next::Abandon => {
                    let other = self.decide();
                    self.abandoned.push(std::mem::replace(&mut append, other));
                    may_be_applied = false;
                }
                Next::DecideAgain => {
                    append = self.decide();
                    may_be_applied = false;
                }
            }
        }
        panic!("{MOST_CALLS} calls have met faults");
    }

    /// Calls the store once. If the proxy lost nothing but the answer to an applied write, the
    /// store must find that out by itself.
    async fn call(&mut self, append: &AppendAll, may_be_applied: bool) -> Answer {
        self.calls += 1;
        let id = append.commits[0].commit_id;
        self.servers.proxy.begin(self.seed, self.calls, id);
        let started = Instant::now();
        let answer = self.servers.store.append_all(append).await;
        // On a machine that is too busy for these short timeouts, also an answer that the proxy
        // has passed on may come too late.
        let is_slow = started.elapsed() > ATTEMPT_TIMEOUT * 3 / 2;
        let seen = self.servers.proxy.seen(self.seed);
        if !seen.applied_and_lost || seen.met_more {
            return answer;
        }
        let heads: Vec<_> = append.commits.iter().map(Append::head_after).collect();
        let is_appended = matches!(&answer, Ok(AppendOutcome::Appended(found)) if *found == heads);
        assert!(
            is_appended || may_be_applied || is_slow || seen.is_slow,
            "only the answer was lost: {}",
            without_payloads(&answer)
        );
        self.tally.lost_and_settled += u64::from(is_appended);
        answer
    }

    /// Checks that an answer is possible, and returns what follows from it.
    async fn next_step(
        &mut self,
        answer: Answer,
        append: &AppendAll,
        may_be_applied: bool,
    ) -> Next {
        match answer {
            Ok(AppendOutcome::Appended(_)) => Next::Acknowledge,
            Ok(AppendOutcome::Repeated(stored)) => {
                assert!(may_be_applied, "the first call was answered as a repeat");
                let sent: Vec<_> = append.commits.iter().map(Append::to_commit).collect();
                assert_eq!(stored, sent, "a repeat of something else");
                Next::Acknowledge
            }
            Ok(AppendOutcome::Conflict(conflict)) => {
                // There is no other writer, so an abandoned append was applied meanwhile.
                let applied = self.acknowledge_an_abandoned_append().await;
                assert!(applied, "{conflict}");
                Next::DecideAgain
            }
            Err(EventStoreError::Unavailable {
                pending: Some(pending),
                ..
            }) => {
                assert_eq!(pending.append(), append);
                self.tally.unknown += 1;
                self.next_step_of_pending(&pending).await
            }
            Err(error) => {
                assert!(error.is_transient(), "{error:?}");
                // This call certainly applied nothing, but an earlier one still may.
                if may_be_applied {
                    return Next::SendAgain;
                }
                let ids = append.commits.iter().map(|commit| commit.commit_id);
                self.not_applied.extend(ids);
                Next::DecideAgain
            }
        }
    }

    async fn next_step_of_pending(&mut self, pending: &PendingAppend) -> Next {
        match self.servers.settle(pending).await {
            Settled::Applied(_) => Next::Acknowledge,
            Settled::Superseded => {
                let applied = self.acknowledge_an_abandoned_append().await;
                assert!(applied, "superseded, but by no append of this writer");
                Next::DecideAgain
            }
            Settled::Open if self.rng.bool() => Next::SendAgain,
            Settled::Open => Next::Abandon,
        }
    }

    fn acknowledge(&mut self, append: &AppendAll) {
        for commit in &append.commits {
            let is_of_stream = |head: &StreamHead| head.stream() == commit.head.stream();
            let stream = self.heads.iter().position(is_of_stream);
            let stream = stream.expect("a stream of this writer");
            self.acknowledged[stream].push(commit.to_commit());
            self.heads[stream] = commit.head_after();
        }
        self.tally.count_stored(append);
    }

    /// Acknowledges an abandoned append that was applied after all. Returns false if there is none.
    async fn acknowledge_an_abandoned_append(&mut self) -> bool {
        for index in 0..self.abandoned.len() {
            let pending = PendingAppend::new(self.abandoned[index].clone());
            if let Settled::Applied(_) = self.servers.settle(&pending).await {
                let append = self.abandoned.remove(index);
                self.tally.landed_late += 1;
                self.acknowledge(&append);
                return true;
            }
        }
        false
    }

    /// Reads the streams, again if an abandoned append was applied between two reads.
    async fn read_at_rest(&mut self) -> Vec<Vec<Commit>> {
        loop {
            while self.acknowledge_an_abandoned_append().await {}
            let mut stored = Vec::new();
            for head in &self.heads {
                stored.push(self.servers.read(head.stream()).await);
            }
            if !self.acknowledge_an_abandoned_append().await {
                return stored;
            }
        }
    }

    fn assert_that_the_acknowledged_is_stored(&self, stored: &[Vec<Commit>]) {
        let ids = |commits: &[Commit]| commits.iter().map(|c| c.id).collect::<Vec<_>>();
        for (stored, acknowledged) in stored.iter().zip(&self.acknowledged) {
            assert_eq!(ids(stored), ids(acknowledged), "commits");
            // Not `assert_eq`, which would print large payloads.
            assert!(stored == acknowledged, "the content of the commits");
            let is_not_applied = |commit: &Commit| self.not_applied.contains(&commit.id);
            assert!(
                !stored.iter().any(is_not_applied),
                "stored, though certainly not applied"
            );
        }
    }

    async fn assert_that_the_abandoned_is_open_or_superseded(&mut self) {
        for append in std::mem::take(&mut self.abandoned) {
            let is_superseded = self.has_moved_past(&append);
            self.tally.superseded += u64::from(is_superseded);
            let expected = match is_superseded {
                true => Settled::Superseded,
                false => Settled::Open,
            };
            let settled = self.servers.settle(&PendingAppend::new(append)).await;
            assert_eq!(settled, expected, "of an abandoned append");
        }
    }

    /// Returns true if a stream has moved past the head that an append needs.
    fn has_moved_past(&self, append: &AppendAll) -> bool {
        let commits = append.commits.iter().map(|commit| &commit.head);
        let mut needed = commits.chain(&append.unchanged);
        needed.any(|needed| {
            let mut heads = self.heads.iter();
            heads.any(|h| h.stream() == needed.stream() && h.version() > needed.version())
        })
    }
}

/// Returns a text of an answer that leaves out the payloads of its events.
fn without_payloads(answer: &Answer) -> String {
    match answer {
        Ok(AppendOutcome::Appended(heads)) => format!("appended {heads:?}"),
        Ok(AppendOutcome::Repeated(stored)) => format!("{} commits repeated", stored.len()),
        Ok(AppendOutcome::Conflict(conflict)) => conflict.to_string(),
        Err(error) => {
            let error: &dyn std::error::Error = error;
            let causes = iter::successors(Some(error), |e| e.source());
            causes
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(": ")
        }
    }
}

/// The number of times that each case was met, so that a test that meets no fault cannot pass.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    appended: u64,
    /// Appends that succeeded although the answer to their write was lost.
    lost_and_settled: u64,
    /// Appends with a commit that takes several items.
    split: u64,
    /// Appends to several streams.
    several: u64,
    /// Calls that ended with an unknown outcome.
    unknown: u64,
    /// Abandoned appends that were applied after all.
    landed_late: u64,
    /// Abandoned appends that can no longer be applied.
    superseded: u64,
}

impl Tally {
    fn count_stored(&mut self, append: &AppendAll) {
        let is_split = |commit: &Append| {
            let payloads = commit.events.iter().map(|event| event.payload.len());
            payloads.sum::<usize>() >= 2 * LARGE
        };
        self.appended += 1;
        self.several += u64::from(append.commits.len() > 1);
        self.split += u64::from(append.commits.iter().any(is_split));
    }

    /// Asserts that the writers of a whole test have met each case often enough.
    pub(super) fn assert_that_all_cases_were_met(&self) {
        for (case, met, least) in [
            ("answers lost after the write", self.lost_and_settled, 200),
            ("split commits", self.split, 50),
            ("appends to several streams", self.several, 200),
            ("unknown outcomes", self.unknown, 50),
            ("abandoned appends that were applied", self.landed_late, 1),
            ("abandoned appends that were not", self.superseded, 1),
        ] {
            assert!(met >= least, "{met} {case}, fewer than {least}: {self:?}");
        }
    }
}

impl Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            appended: self.appended + other.appended,
            lost_and_settled: self.lost_and_settled + other.lost_and_settled,
            split: self.split + other.split,
            several: self.several + other.several,
            unknown: self.unknown + other.unknown,
            landed_late: self.landed_late + other.landed_late,
            superseded: self.superseded + other.superseded,
        }
    }
}
