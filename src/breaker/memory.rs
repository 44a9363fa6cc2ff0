//! The rows of a breaker in memory, as the contract of a control store has them, for tests.
use super::{
    quorum::{Answer, Request},
    rows::{EpochRow, ProbeRow, RowsRead, VoteRow},
};
use crate::ports::{Expect, Revision};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) enum Write {
    Epoch(EpochRow, Expect),
    Vote(String, VoteRow),
    DeleteVote(String, Revision),
    Probe(ProbeRow, Expect),
}

/// The rows, as the contract of a control store has them.
#[derive(Debug, Default)]
pub(super) struct Store {
    revisions: u128,
    pub(super) epoch: Option<(EpochRow, Revision)>,
    pub(super) probe: Option<(ProbeRow, Revision)>,
    pub(super) votes: BTreeMap<String, (VoteRow, Revision)>,
}

impl Write {
    /// Returns the write of a process that a request asks for; `None` for a read.
    pub(super) fn of(label: &str, request: &Request) -> Option<Self> {
        Some(match request {
            Request::Read => return None,
            Request::PutEpoch(row, expect) => Self::Epoch(row.clone(), *expect),
            Request::PutVote(row) => Self::Vote(label.to_owned(), *row),
            Request::DeleteVote(label, revision) => Self::DeleteVote(label.clone(), *revision),
            Request::PutProbe(row, expect) => Self::Probe(row.clone(), *expect),
        })
    }
}

impl Store {
    pub(super) fn read(&self) -> RowsRead {
        let votes = self.votes.iter();
        RowsRead {
            epoch: self.epoch.clone(),
            probe: self.probe.clone(),
            votes: votes.map(|(l, (v, r))| (l.clone(), *v, *r)).collect(),
        }
    }
    pub(super) fn fresh(&mut self) -> Revision {
        self.revisions += 1;
        Revision::from_u128(self.revisions)
    }
    pub(super) fn write(&mut self, write: &Write, revision: Revision) -> Answer {
        let holds = |stored: Option<Revision>, expect: &Expect| match expect {
            Expect::Any => true,
            Expect::Absent => stored.is_none(),
            Expect::Revision(revision) => stored == Some(*revision),
        };
        match write {
            Write::Epoch(row, expect) => {
                if !holds(self.epoch.as_ref().map(|(_, r)| *r), expect) {
                    return Answer::Conflict;
                }
                self.epoch = Some((row.clone(), revision));
            }
            Write::Probe(row, expect) => {
                if !holds(self.probe.as_ref().map(|(_, r)| *r), expect) {
                    return Answer::Conflict;
                }
                self.probe = Some((row.clone(), revision));
            }
            Write::Vote(label, row) => {
                self.votes.insert(label.clone(), (*row, revision));
            }
            Write::DeleteVote(label, expected) => {
                match self.votes.get(label) {
                    Some((_, stored)) if stored != expected => return Answer::Conflict,
                    _ => self.votes.remove(label),
                };
                return Answer::Deleted;
            }
        }
        Answer::Written(revision)
    }
}
