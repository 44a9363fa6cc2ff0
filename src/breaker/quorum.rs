//! The part of a distributed breaker that several processes decide together, as a pure state
//! machine: rows and answers go in, requests to the control store come out, one at a time.
use super::{
    circuit::Circuit,
    probe_lease::{ProbeLease, Wish},
    rows::{EpochRow, ProbeRow, RowsRead, VoteRow},
    votes::Votes,
};
use crate::ports::{Expect, Revision};
use std::time::Duration;
use tokio::time::Instant;

/// The number of renew periods for which a vote counts after it was seen to change. The lease for
/// the probe has the same time.
const PERIODS: u32 = 3;

/// The time for which a refused call shows that callers are waiting.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings of one process of a distributed breaker.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    /// The name of the process, which stays the same when it starts again.
    pub(super) label: String,
    /// The name of the process in this life.
    pub(super) owner: String,
    /// The number of votes at which every process is open.
    pub(super) quorum: usize,
    /// The time between reads, and between renewals of a vote and of the lease.
    pub(super) renew: Duration,
}

/// A request to the control store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// All rows of the breaker.
    Read,
    PutEpoch(EpochRow, Expect),
    /// The vote of this process, whatever is stored there.
    PutVote(VoteRow),
    DeleteVote(String, Revision),
    PutProbe(ProbeRow, Expect),
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Read(RowsRead),
    Written(Revision),
    Deleted,
    /// The row was not as expected, so nothing was changed.
    Conflict,
    /// The store failed or did not answer: a write may have happened.
    Failed,
}

/// The answer of all processes to a wish to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Fewer processes than the quorum are open: the circuit of this process decides.
    Own,
    /// All are open, and this process may make the probe.
    Probe { epoch: u64 },
    /// All are open.
    Refused { until: Option<Instant> },
}

#[derive(Debug)]
pub(super) struct Quorum {
    member: Membership,
    votes: Votes,
    lease: ProbeLease,
    /// The epoch as it was last read or written, with the revision of its row.
    epoch: Option<(EpochRow, Option<Revision>)>,
    /// The epoch in which the circuit of this process opened.
    opened_in: Option<u64>,
    /// The epoch that a probe of this process has ended, until that is stored.
    ended: Option<u64>,
    callers: Callers,
    pace: Pace,
}

/// The callers of this process.
#[derive(Debug)]
struct Callers {
    /// The process has work that needs the service.
    serving: bool,
    /// Work is held back that would be the probe.
    waiting: bool,
    /// The time of the last refused call.
    refused: Option<Instant>,
    /// The time at which the last probe on behalf of all began.
    probed: Option<Instant>,
}

/// The times before which requests are not due.
#[derive(Debug)]
struct Pace {
    read_at: Instant,
    vote_at: Instant,
    write_at: Instant,
    in_flight: Option<Request>,
}

impl Quorum {
    pub(super) fn new(member: Membership, open_time: (Duration, Duration), now: Instant) -> Self {
        let (renew, time) = (member.renew, member.renew.saturating_mul(PERIODS));
        Self {
            votes: Votes::new(time),
            lease: ProbeLease::new(member.owner.clone(), renew, time, open_time),
            member,
            epoch: None,
            opened_in: None,
            ended: None,
            callers: Callers {
                serving: true,
                waiting: false,
                refused: None,
                probed: None,
            },
            pace: Pace {
                read_at: now,
                vote_at: now,
                write_at: now,
                in_flight: None,
            },
        }
    }

    /// Returns the epoch, once it is known.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.epoch.as_ref().map(|(row, _)| row.epoch)
    }

    /// Returns the number of votes that count.
    pub(super) fn votes(&self, now: Instant) -> usize {
        self.epoch().map_or(0, |epoch| self.votes.count(epoch, now))
    }

    /// Returns true if so many processes are open that all are. Without the store this ends by
    /// itself: votes that are not seen to change do not count for long.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.votes(now) >= self.member.quorum
    }

    /// Answers whether a call may start now. `probing` says that a probe is running in this
    /// process.
    pub(super) fn gate(&self, probing: bool, now: Instant) -> Gate {
        let Some(epoch) = self.epoch().filter(|_| self.is_open(now)) else {
            return Gate::Own;
        };
        // While the end of the epoch is being stored the answer of the service is known.
        if probing || self.ended.is_some() {
            return Gate::Refused { until: None };
        }
        match self.lease.probe_at() {
            Some(at) if at <= now => Gate::Probe { epoch },
            until => Gate::Refused { until },
        }
    }

    /// Returns the time from which this process may make the probe, if it is its turn.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.lease.probe_at()
    }

    /// Notes that a probe on behalf of all begins.
    pub(super) const fn probes(&mut self, now: Instant) {
        self.callers.probed = Some(now);
    }
    /// Notes that a caller was refused.
    pub(super) const fn refused(&mut self, now: Instant) {
        self.callers.refused = Some(now);
    }
    /// Returns true if that is a change.
    pub(super) const fn set_waiting(&mut self, waiting: bool) -> bool {
        std::mem::replace(&mut self.callers.waiting, waiting) != waiting
    }
    /// Returns true if that is a change.
    pub(super) const fn set_serving(&mut self, serving: bool) -> bool {
        std::mem::replace(&mut self.callers.serving, serving) != serving
    }

    /// Lets this process leave the others: it reads once more, since a vote whose answer was lost
    /// may stand there, then deletes its vote and hands on the lease.
    pub(super) const fn leave(&mut self, now: Instant) {
        self.callers.serving = false;
        self.pace.read_at = now;
        self.pace.write_at = now;
    }

    /// Notes that the circuit of this process has opened, which is a vote.
    pub(super) fn opened(&mut self, now: Instant) {
        self.opened_in = self.epoch();
        self.pace.vote_at = now;
    }

    /// Notes that the probe on behalf of all has found the service.
    pub(super) fn succeeded(&mut self, epoch: u64, now: Instant) {
        if self.is_open(now) {
            self.ended = Some(epoch);
        }
        self.lease.succeeded(now);
    }

    /// Notes that the probe on behalf of all has failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.lease.failed(now);
    }

    /// Returns the next request if one is due and none is on its way.
    pub(super) fn request(&mut self, circuit: &Circuit, now: Instant) -> Option<Request> {
        if self.pace.in_flight.is_some() {
            return None;
        }
        let (due, request) = self.next(circuit, now);
        if due > now {
            return None;
        }
        self.pace.in_flight = Some(request.clone());
        Some(request)
    }

    /// Returns the time at which a request is due or votes cease to count.
    pub(super) fn wake_at(&self, circuit: &Circuit, now: Instant) -> Instant {
        let due = self.next(circuit, now).0;
        let lapse = self
            .epoch()
            .filter(|_| self.is_open(now))
            .and_then(|epoch| {
                let most = self.member.quorum.saturating_sub(1);
                self.votes.lapse(epoch, most)
            });
        lapse.map_or(due, |lapse| lapse.min(due))
    }

    fn next(&self, circuit: &Circuit, now: Instant) -> (Instant, Request) {
        let read = (self.pace.read_at, Request::Read);
        match self.write(circuit, now) {
            // Everything else depends on what is stored, so a read that is due comes first.
            Some(write) if read.0 > now && write.0 < read.0 => write,
            _ => read,
        }
    }

    /// Returns the next write and when it is due.
    fn write(&self, circuit: &Circuit, now: Instant) -> Option<(Instant, Request)> {
        let (epoch, revision) = self.epoch.as_ref()?;
        let wanted = [
            // Before the vote goes, or the quorum might be lost and the other voters not told.
            self.end_of_epoch(epoch, *revision, now),
            self.withdrawal(circuit, now),
            self.vote(circuit, epoch.epoch),
            self.probe(circuit, now),
            self.forgotten(now),
        ];
        wanted
            .into_iter()
            .flatten()
            .map(|(due, request)| (due.max(self.pace.write_at), request))
            // The first of those that are due, otherwise the earliest.
            .min_by_key(|(due, _)| (*due).max(now))
    }

    /// The own vote goes when the circuit closes. Also one of an earlier life of this process, and
    /// one that was written so late that the circuit had closed meanwhile.
    fn withdrawal(&self, circuit: &Circuit, now: Instant) -> Option<(Instant, Request)> {
        if self.callers.serving && !circuit.is_closed() {
            return None;
        }
        let label = &self.member.label;
        let revision = self.votes.of(label)?;
        Some((now, Request::DeleteVote(label.clone(), revision)))
    }

    /// The end of an epoch, under the condition that it is still the one in which the probe
    /// started.
    fn end_of_epoch(
        &self,
        epoch: &EpochRow,
        revision: Option<Revision>,
        now: Instant,
    ) -> Option<(Instant, Request)> {
        self.ended
            .filter(|ended| *ended == epoch.epoch && self.is_open(now))?;
        let next = EpochRow {
            epoch: epoch.epoch.wrapping_add(1),
            ..epoch.clone()
        };
        let expect = revision.map_or(Expect::Absent, Expect::Revision);
        Some((now, Request::PutEpoch(next, expect)))
    }

    fn vote(&self, circuit: &Circuit, epoch: u64) -> Option<(Instant, Request)> {
        let is_open = self.callers.serving && !circuit.is_closed();
        let votes = is_open && self.opened_in == Some(epoch);
        votes.then_some((self.pace.vote_at, Request::PutVote(VoteRow { epoch })))
    }

    fn probe(&self, circuit: &Circuit, now: Instant) -> Option<(Instant, Request)> {
        let (due, row, expect) = self.lease.next(self.wish(circuit, now), now)?;
        Some((due, Request::PutProbe(row, expect)))
    }

    fn wish(&self, circuit: &Circuit, now: Instant) -> Wish {
        let callers = &self.callers;
        let within = |at: Option<Instant>, time: Duration| {
            at.is_some_and(|at| now.saturating_duration_since(at) < time)
        };
        let asked = within(callers.refused, PATIENCE);
        // Callers that wait for a probe which hangs must not keep other processes from trying.
        let hangs = circuit.is_probing() && !within(callers.probed, self.lease.time());
        match () {
            () if !self.is_open(now) => Wish::End,
            () if !callers.serving => Wish::Leave,
            () if hangs => Wish::Keep,
            () if callers.waiting || asked => Wish::Probe,
            () => Wish::Keep,
        }
    }

    fn forgotten(&self, now: Instant) -> Option<(Instant, Request)> {
        let (label, revision) = self.votes.forgotten(now)?;
        Some((now, Request::DeleteVote(label.to_owned(), revision)))
    }

    /// Returns the epoch of the lease for the probe as this process knows it.
    #[cfg(test)]
    pub(super) fn lease_epoch(&self) -> Option<u64> {
        self.lease.epoch()
    }

    /// Takes in the answer to the request that was on its way.
    pub(super) fn answered(&mut self, answer: Answer, circuit: &mut Circuit, now: Instant) {
        let was_open = self.is_open(now);
        let request = self.pace.in_flight.take();
        match (request, answer) {
            (Some(Request::Read), answer) => self.read(answer, circuit, now),
            (Some(request), Answer::Written(revision)) => {
                self.written(request, revision, circuit, now);
            }
            (Some(Request::DeleteVote(label, _)), Answer::Deleted) => self.votes.deleted(&label),
            (Some(_), Answer::Conflict) => self.pace.read_at = now,
            (Some(_), Answer::Failed) => self.pace.write_at = now + self.member.renew,
            (_, Answer::Read(_) | Answer::Deleted) | (None, _) => {}
        }
        if !was_open && self.is_open(now) {
            // Calls that are running began before this opening, and so did a probe of an earlier
            // one.
            circuit.next_round();
            self.ended = None;
        }
    }

    fn read(&mut self, answer: Answer, circuit: &mut Circuit, now: Instant) {
        self.pace.read_at = now + self.member.renew;
        let Answer::Read(rows) = answer else {
            return;
        };
        self.votes.read(rows.votes, now);
        self.lease.found(rows.probe, now);
        let (row, revision) = match rows.epoch {
            Some((row, revision)) => (row, Some(revision)),
            None => (EpochRow::default(), None),
        };
        self.enter(row, revision, circuit, now);
    }

    fn written(
        &mut self,
        request: Request,
        revision: Revision,
        circuit: &mut Circuit,
        now: Instant,
    ) {
        match request {
            Request::PutEpoch(row, _) => self.enter(row, Some(revision), circuit, now),
            Request::PutVote(row) => {
                self.votes.wrote(&self.member.label, row, revision, now);
                self.pace.vote_at = now + self.member.renew;
            }
            Request::PutProbe(row, _) => self.lease.found(Some((row, revision)), now),
            Request::Read | Request::DeleteVote(..) => {}
        }
    }

    /// Takes in the epoch. When it changes, the service was found to be reachable: processes
    /// without a vote close, and one with a vote tries for itself. No answer to a call that began
    /// under the old epoch counts, neither for nor against the service.
    fn enter(
        &mut self,
        row: EpochRow,
        revision: Option<Revision>,
        circuit: &mut Circuit,
        now: Instant,
    ) {
        let (before, epoch) = (self.epoch(), row.epoch);
        self.epoch = Some((row, revision));
        match before {
            Some(before) if before == epoch => {}
            Some(_) => {
                self.ended = None;
                self.opened_in = None;
                circuit.next_round();
                circuit.half_open(now);
            }
            // The circuit opened while the store was unreachable.
            None if !circuit.is_closed() => {
                self.opened_in = Some(epoch);
                self.pace.vote_at = now;
            }
            None => {}
        }
    }
}
