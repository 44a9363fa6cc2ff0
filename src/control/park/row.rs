//! [`ParkRow`]: its value, its stored form, and the value that each step of an owner puts next.
use super::super::hex_id::hex_id;
use crate::{
    Timestamp, Version,
    control::{Fingerprint, JobId},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

hex_id! {
    /// The id of one parking of a stream: the revision that created the row. A stream that was
    /// released and parked again has another id.
    pub(crate) ParkId, "the id of a parking"
}

/// A request to redrive a parked stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The name of the operator who asks.
    pub(crate) by: String,
    /// The job on whose behalf the stream is redriven up to `upto`. `None` for a request without a
    /// job, and for what follows after `upto`.
    pub(crate) job: Option<JobId>,
    /// The last version that the job has selected.
    pub(crate) upto: Option<Version>,
}

/// The state of a parked stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ParkState {
    /// The stream waits for an operator.
    Parked,
    /// An operator has asked for a redrive that no owner has begun.
    Requested(Request),
    /// An owner handles the events from `from` on. Another owner of the partition goes on with it,
    /// whoever `owner` is.
    Redriving { owner: String, request: Request },
}

/// The failure at which a stream is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParkFailure {
    /// The version of the event that failed.
    pub(crate) version: Version,
    pub(crate) fingerprint: Fingerprint,
    /// The number of attempts since the event was first handled or last redriven.
    pub(crate) attempts: u32,
    pub(crate) at: Timestamp,
}

/// The facts about a stream that its owner notes when it parks the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParkNotes {
    /// The owner has no event store: it has stored the records that wait.
    pub(crate) has_records: bool,
    /// A newer event of the stream was handled before: the events that wait came late.
    pub(crate) is_late: bool,
}

/// A stream that waits since another stream of its lane has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Followed {
    /// The first version that waits.
    pub(crate) from: Version,
    /// The last version that waits.
    pub(crate) high: Version,
    /// The fingerprint of the failure for which the lane waits.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) at: Timestamp,
    pub(crate) notes: ParkNotes,
}

/// The value of a park row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredRow", into = "StoredRow")]
pub(crate) struct ParkRow {
    pub(crate) id: ParkId,
    /// The first version that is not done. All versions below are durable.
    pub(crate) from: Version,
    /// The stream has not failed: it waits since another stream of its lane has. Then `from` is
    /// the first version that the owner has met, and versions below it may not be done.
    pub(crate) is_follower: bool,
    /// The highest version whose record the owner has passed over because the stream is parked.
    pub(crate) high: Version,
    pub(crate) state: ParkState,
    /// The fingerprint of the failure at `from`.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempts: u32,
    /// The time of the failure at `from`.
    pub(crate) since: Timestamp,
    /// The last job that asked for this stream and whose redrive has failed. A job asks each stream
    /// once, also if its executor has died meanwhile.
    pub(crate) last_job: Option<JobId>,
    /// The record of each version that waits is stored in a row of its own. False if an owner with
    /// an event store has passed records over: the versions are only in the event store.
    pub(crate) has_records: bool,
    /// A newer event of the stream was handled before the stream was parked: the position in the
    /// stream tells nothing about the events that wait.
    pub(crate) is_late: bool,
    /// The fields that a newer build has written. This build keeps them.
    rest: Map<String, Value>,
}

impl ParkRow {
    pub(crate) fn new(id: ParkId, failure: &ParkFailure) -> Self {
        Self {
            id,
            from: failure.version,
            is_follower: false,
            high: failure.version,
            state: ParkState::Parked,
            fingerprint: failure.fingerprint,
            attempts: failure.attempts,
            since: failure.at,
            last_job: None,
            has_records: false,
            is_late: false,
            rest: Map::new(),
        }
    }

    /// Returns the row with the notes of the owner that parks the stream.
    #[must_use]
    pub(crate) fn noting(self, notes: ParkNotes) -> Self {
        Self {
            has_records: notes.has_records,
            is_late: notes.is_late,
            ..self
        }
    }

    /// Creates the row of a stream that waits since another stream of its lane has failed.
    pub(crate) fn following(id: ParkId, followed: &Followed) -> Self {
        let failure = ParkFailure {
            version: followed.from,
            fingerprint: followed.fingerprint,
            attempts: 0,
            at: followed.at,
        };
        Self {
            is_follower: true,
            high: followed.high.max(followed.from),
            ..Self::new(id, &failure).noting(followed.notes)
        }
    }

    /// Returns true if this version is done, so that a record of it is a duplicate.
    pub(crate) fn is_duplicate(&self, version: Version) -> bool {
        version < self.from
    }
    /// Returns true if this version is among those that are known to wait.
    pub(crate) fn covers(&self, version: Version) -> bool {
        self.from <= version && version <= self.high
    }
    /// Returns true if all that waited is done. The owner then deletes the letters below `from`,
    /// and the row if it has not changed.
    pub(crate) fn is_drained(&self) -> bool {
        self.from > self.high
    }
    /// Returns true if the row tells nothing that is not done, by what the owner knows to be done.
    /// `None`: the owner knows of nothing.
    pub(crate) fn is_stale(&self, progress: Option<Version>) -> bool {
        !self.is_late && progress.is_some_and(|done| self.high <= done)
    }
    /// Returns true if the owner of the partition has to redrive the stream, or to go on with it.
    pub(crate) fn wants_redrive(&self) -> bool {
        self.state != ParkState::Parked
    }
    /// Returns the request that is being served or waits to be.
    pub(crate) fn request(&self) -> Option<&Request> {
        match &self.state {
            ParkState::Parked => None,
            ParkState::Requested(request) | ParkState::Redriving { request, .. } => Some(request),
        }
    }

    /// Returns the versions that the redrive handles next, first and last, at most `page` of them.
    /// A page ends where the selection of a job ends. `None` if all is done.
    pub(crate) fn next_range(&self, page: u64) -> Option<(Version, Version)> {
        if self.is_drained() {
            return None;
        }
        let upto = self.request().and_then(|request| request.upto);
        let last = self.from.plus(page.max(1) - 1).min(self.high);
        let last = match upto {
            Some(upto) if upto >= self.from => last.min(upto),
            _ => last,
        };
        Some((self.from, last))
    }

    /// Returns the row once a record of this version was passed over because the stream is parked.
    #[must_use]
    pub(crate) fn deferred_to(&self, version: Version) -> Self {
        let high = self.high.max(version);
        Self {
            high,
            ..self.clone()
        }
    }
    /// Returns the row once a record of this version was passed over by an owner that has an event
    /// store, and has not stored the record.
    #[must_use]
    pub(crate) fn deferred_to_history(&self, version: Version) -> Self {
        Self {
            has_records: self.has_records && version <= self.high,
            ..self.deferred_to(version)
        }
    }
    /// Returns the row under which this owner redrives the stream; `None` if nobody has asked.
    pub(crate) fn claimed(&self, owner: &str) -> Option<Self> {
        let request = self.request()?.clone();
        Some(self.redriving(owner, request))
    }
    /// Returns the row under which this owner goes on after the version at `from`, which the
    /// operator `by` has discarded.
    #[must_use]
    pub(crate) fn claimed_for_discard(&self, owner: &str, by: &str) -> Self {
        let request = self.request().cloned().unwrap_or_else(|| Request {
            by: by.into(),
            job: None,
            upto: None,
        });
        self.redriving(owner, request)
    }
    fn redriving(&self, owner: &str, request: Request) -> Self {
        let owner = owner.into();
        let state = ParkState::Redriving { owner, request };
        Self {
            state,
            ..self.clone()
        }
    }
    /// Returns the row once all versions below `from` are done and flushed. What lies above the
    /// selection of a job is no longer redriven on behalf of the job.
    #[must_use]
    pub(crate) fn advanced(&self, from: Version) -> Self {
        let mut row = self.clone();
        row.is_follower &= row.from >= from;
        row.from = row.from.max(from);
        let (ParkState::Requested(request) | ParkState::Redriving { request, .. }) = &mut row.state
        else {
            return row;
        };
        if request.upto.is_some_and(|upto| row.from > upto) {
            (request.job, request.upto) = (None, None);
        }
        row
    }
    /// Returns the row once a version has failed and its letter is written.
    #[must_use]
    pub(crate) fn failed(&self, failure: &ParkFailure) -> Self {
        let job = self.request().and_then(|request| request.job);
        let from = if self.is_follower {
            failure.version
        } else {
            self.from.max(failure.version)
        };
        Self {
            from,
            is_follower: false,
            high: self.high.max(failure.version),
            state: ParkState::Parked,
            fingerprint: failure.fingerprint,
            attempts: failure.attempts,
            since: failure.at,
            last_job: job.or(self.last_job),
            ..self.clone()
        }
    }
    /// Returns the row once another stream of its lane has failed in a redrive: the stream waits
    /// again.
    #[must_use]
    pub(crate) fn stopped(&self) -> Self {
        let job = self.request().and_then(|request| request.job);
        Self {
            is_follower: true,
            state: ParkState::Parked,
            last_job: job.or(self.last_job),
            ..self.clone()
        }
    }
    /// Returns the row with this request of an operator or a job; `None` if the stream is being
    /// redriven already, or has such a request.
    pub(crate) fn requested(&self, request: Request) -> Option<Self> {
        let state = ParkState::Requested(request);
        (self.state == ParkState::Parked).then(|| Self {
            state,
            ..self.clone()
        })
    }
    /// Returns the row without the request of this job; `None` if the row has no request of it, or
    /// an owner has begun already.
    pub(crate) fn without_request_of(&self, job: JobId) -> Option<Self> {
        match &self.state {
            ParkState::Requested(request) if request.job == Some(job) => Some(Self {
                state: ParkState::Parked,
                ..self.clone()
            }),
            _ => None,
        }
    }
}

/// The stored form of a park row. A state that this build does not know is refused: an owner must
/// not guess.
#[derive(Serialize, Deserialize)]
struct StoredRow {
    #[serde(rename = "i")]
    id: ParkId,
    #[serde(rename = "f")]
    from: Version,
    #[serde(rename = "h")]
    high: Version,
    #[serde(rename = "s")]
    state: StoredState,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(rename = "j", default, skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    upto: Option<Version>,
    #[serde(rename = "p")]
    fingerprint: Fingerprint,
    #[serde(rename = "n")]
    attempts: u32,
    #[serde(rename = "t")]
    since: Timestamp,
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    last_job: Option<JobId>,
    #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
    is_follower: bool,
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    has_records: bool,
    #[serde(rename = "y", default, skip_serializing_if = "std::ops::Not::not")]
    is_late: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum StoredState {
    #[serde(rename = "parked")]
    Parked,
    #[serde(rename = "requested")]
    Requested,
    #[serde(rename = "redriving")]
    Redriving,
}

impl From<ParkRow> for StoredRow {
    fn from(row: ParkRow) -> Self {
        let (state, owner, request) = match row.state {
            ParkState::Parked => (StoredState::Parked, None, None),
            ParkState::Requested(request) => (StoredState::Requested, None, Some(request)),
            ParkState::Redriving { owner, request } => {
                (StoredState::Redriving, Some(owner), Some(request))
            }
        };
        let (by, job, upto) = match request {
            Some(Request { by, job, upto }) => (Some(by), job, upto),
            None => (None, None, None),
        };
        Self {
            id: row.id,
            from: row.from,
            high: row.high,
            state,
            owner,
            by,
            job,
            upto,
            fingerprint: row.fingerprint,
            attempts: row.attempts,
            since: row.since,
            last_job: row.last_job,
            is_follower: row.is_follower,
            has_records: row.has_records,
            is_late: row.is_late,
            rest: row.rest,
        }
    }
}

impl TryFrom<StoredRow> for ParkRow {
    type Error = &'static str;
    fn try_from(row: StoredRow) -> Result<Self, &'static str> {
        let StoredRow { job, upto, .. } = row;
        let request = row.by.map(|by| Request { by, job, upto });
        let state = match (row.state, request, row.owner) {
            (StoredState::Parked, ..) => ParkState::Parked,
            (StoredState::Requested, Some(request), _) => ParkState::Requested(request),
            (StoredState::Redriving, Some(request), Some(owner)) => {
                ParkState::Redriving { owner, request }
            }
            (StoredState::Requested, None, _) => return Err("the request names nobody"),
            (StoredState::Redriving, ..) => return Err("the redrive names no owner or operator"),
        };
        Ok(Self {
            id: row.id,
            from: row.from,
            high: row.high,
            state,
            fingerprint: row.fingerprint,
            attempts: row.attempts,
            since: row.since,
            last_job: row.last_job,
            is_follower: row.is_follower,
            has_records: row.has_records,
            is_late: row.is_late,
            rest: row.rest,
        })
    }
}

#[cfg(test)]
#[path = "row_tests.rs"]
mod tests;
