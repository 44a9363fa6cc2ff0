//! Time travel: the state of a stream as of a version or a time.
use super::{LoadError, Repository, fold::Fold};
use crate::{
    Aggregate, StreamHead, Timestamp, Version,
    ports::{Commit, ReadFrom},
};
use futures::TryStreamExt;

/// A moment in the history of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsOf {
    /// The moment after this event, even inside a commit; the tail if the stream is shorter.
    Version(Version),
    /// The moment after the longest prefix whose commits were all recorded at or before this time.
    Time(Timestamp),
}

/// A state of the past. Nothing can be appended after it, so it has no head.
#[derive(Clone, Debug, PartialEq)]
pub struct Historical<A> {
    state: A,
    version: Version,
    recorded_at: Option<Timestamp>,
}

impl<A> Historical<A> {
    /// Returns the state at that moment.
    pub const fn state(&self) -> &A {
        &self.state
    }
    /// Returns the state as an owned value.
    pub fn into_state(self) -> A {
        self.state
    }
    /// Returns the version of the last event that was folded; 0 if there is none.
    pub const fn version(&self) -> Version {
        self.version
    }
    /// Returns the time at which that event was recorded; `None` if there is no event.
    pub const fn recorded_at(&self) -> Option<Timestamp> {
        self.recorded_at
    }
}

impl<A: Aggregate> Repository<A> {
    /// Returns the state as of a version or a time, folded from the first event.
    ///
    /// Snapshots and the cache are not used, so the call reads the whole history up to that moment.
    ///
    /// # Errors
    /// [`LoadError`] if the store cannot be read, or if an event cannot be decoded or folded.
    pub async fn load_at(&self, id: &A::Id, moment: AsOf) -> Result<Historical<A>, LoadError> {
        let stream = Self::stream_id(id)?;
        // Checked even for an empty stream: no call of a repository with unusable upcasters may
        // seem to work.
        let upcasters = self.upcasters()?;
        let start = StreamHead::empty(stream.clone());
        let mut fold = Fold::start(start.clone());
        let commits = self.inner.store.read(&stream, ReadFrom::After(start), None);
        let mut commits = commits.inspect_err(|error| self.met(error));
        let mut recorded_at = None;
        while let Some(commit) = commits.try_next().await? {
            let Some(commit) = until(commit, moment) else {
                break;
            };
            recorded_at = Some(commit.recorded_at);
            fold.take(&self.open(commit).await?, upcasters)?;
        }
        let loaded = fold.finish();
        Ok(Historical {
            version: loaded.version(),
            state: loaded.into_state(),
            recorded_at,
        })
    }
}

/// Returns the part of a commit that is at or before the moment.
fn until(mut commit: Commit, moment: AsOf) -> Option<Commit> {
    match moment {
        AsOf::Time(time) => (commit.recorded_at <= time).then_some(commit),
        AsOf::Version(last) if commit.first_version > last => None,
        AsOf::Version(last) if commit.last_version() > last => {
            let kept = last.get() - commit.first_version.get() + 1;
            let kept = usize::try_from(kept).unwrap_or(usize::MAX);
            commit.events = commit.events.iter().take(kept).cloned().collect();
            Some(commit)
        }
        AsOf::Version(_) => Some(commit),
    }
}
