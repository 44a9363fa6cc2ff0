//! Requests to the store and their answers, of which some get lost or come late.
use super::super::{
    memory::Write,
    quorum::{Answer, Request},
};
use super::{FRESH, Fate, QUORUM, World, label, sight::sighted};
use crate::ports::Revision;
use std::time::Duration;

impl World {
    pub(super) fn answer(&mut self, id: usize) {
        let Some((_, request, fate)) = self.nodes[id].request.take() else {
            return;
        };
        let now = self.now;
        let votes = self.nodes[id].machine.votes(now);
        let answer = self.perform(id, &request, fate);
        let epoch_before = self.nodes[id].epoch;
        self.see(id, &request, &answer);
        self.note(|| format!("n{id} answer {answer:?}"));
        let node = &mut self.nodes[id];
        node.machine.answered(answer, now);
        let votes_after = node.machine.votes(now);
        if votes >= QUORUM && votes_after < QUORUM && node.epoch == epoch_before {
            self.hit("a quorum ended without the end of its epoch");
        }
    }

    /// Applies a request to the store and returns the answer that arrives.
    pub(super) fn perform(&mut self, id: usize, request: &Request, fate: Fate) -> Answer {
        if self.store_down {
            self.hit("the store was unreachable");
            return Answer::Failed;
        }
        let Some(write) = Write::of(&label(id), request) else {
            return match fate {
                Fate::Answered => Answer::Read(self.store.read()),
                _ => Answer::Failed,
            };
        };
        let revision = self.store.fresh();
        match fate {
            Fate::Answered => self.apply(&write, revision, id),
            Fate::AnswerLost => {
                self.hit("an answer got lost");
                self.apply(&write, revision, id);
                Answer::Failed
            }
            Fate::RequestLost => {
                self.hit("a request got lost");
                Answer::Failed
            }
            Fate::Late => {
                let at = self.now + self.within(10, 20_000);
                self.late.push((at, write, revision, id));
                Answer::Failed
            }
        }
    }

    pub(super) fn apply(&mut self, write: &Write, revision: Revision, id: usize) -> Answer {
        let held = self.store.probe.clone().and_then(|(row, _)| row.owner);
        let epoch = self.store.epoch.as_ref().map_or(0, |(row, _)| row.epoch);
        let answer = self.store.write(write, revision);
        if matches!(answer, Answer::Conflict) {
            self.hit("a conditional write met a conflict");
            return answer;
        }
        match write {
            Write::Epoch(row, _) => {
                self.hit("an epoch ended");
                if row.epoch != epoch + 1 {
                    self.fail("the epoch did not end once");
                }
                let owner = format!("{}#", label(id));
                let proven = |(who, epoch): &(String, u64)| {
                    who.starts_with(&owner) && epoch + 1 == row.epoch
                };
                if !self.reachable.iter().any(proven) {
                    self.fail("an epoch ended without a probe that found the service in it");
                }
            }
            Write::Probe(row, _) => match (&row.owner, held) {
                (Some(owner), held) => {
                    let ready = self.now + Duration::from_millis(row.open_millis);
                    let new = (owner.clone(), ready);
                    let (first, _) = self.owners.entry(row.epoch).or_insert(new);
                    if first != owner {
                        self.fail("one epoch of the lease has two owners");
                    }
                    if held.is_some_and(|held| held != *owner) {
                        self.hit("the lease was taken over");
                    }
                }
                (None, _) => self.hit("the lease was released"),
            },
            Write::DeleteVote(..) => self.hit("a vote was deleted"),
            Write::Vote(..) if self.nodes[id].bad => self.hit("a bad process voted"),
            Write::Vote(..) => {}
        }
        answer
    }

    pub(super) fn apply_late(&mut self, index: usize) {
        let (_, write, revision, id) = self.late.swap_remove(index);
        if self.store_down {
            return;
        }
        self.note(|| format!("late {write:?}"));
        if matches!(write, Write::Vote(..)) && self.nodes[id].machine.circuit.is_closed() {
            self.hit("a late vote was written after the circuit had closed");
        }
        if !matches!(self.apply(&write, revision, id), Answer::Conflict) {
            self.hit("a write was applied late");
        }
    }

    /// Keeps what a process has seen of the votes, apart from the machine.
    pub(super) fn see(&mut self, id: usize, request: &Request, answer: &Answer) {
        let now = self.now;
        let node = &mut self.nodes[id];
        let mut once = 0;
        let mut old = 0;
        match (request, answer) {
            (Request::Read, Answer::Read(rows)) => {
                let epoch = rows.epoch.as_ref().map_or(0, |(row, _)| row.epoch);
                node.epoch = Some(epoch);
                let is_there = |label: &String| rows.votes.iter().any(|(l, _, _)| l == label);
                node.sights.retain(|label, _| is_there(label));
                for (label, row, revision) in &rows.votes {
                    sighted(&mut node.sights, label, *row, *revision, now);
                    old += u64::from(row.epoch < epoch);
                    once += u64::from(node.sights[label].changed.is_none());
                }
            }
            (Request::PutVote(row), Answer::Written(revision)) => {
                sighted(&mut node.sights, &label(id), *row, *revision, now);
            }
            (Request::DeleteVote(label, _), Answer::Deleted) => {
                node.sights.remove(label);
            }
            (Request::PutEpoch(row, _), Answer::Written(_)) => node.epoch = Some(row.epoch),
            _ => {}
        }
        let still = node.sights.values().filter(|sight| {
            sight
                .changed
                .is_some_and(|at| now.duration_since(at) >= FRESH)
        });
        let still = still.count() as u64;
        *self.hits.entry("a vote was only seen once").or_default() += once;
        *self
            .hits
            .entry("a vote of an old epoch was seen")
            .or_default() += old;
        *self.hits.entry("a vote stood still").or_default() += still;
    }
}
