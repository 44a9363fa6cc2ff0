//! Reading a state: the whole history, or a snapshot and the commits after it.
//!
//! # Snapshot and newest commits together
//! One after the other, snapshot and events cost two round-trip times. Requested together they cost
//! one, but then neither answer knows of the other:
//! ```text
//! no usable snapshot
//!     the newest commits reach version 1 -> fold them
//!     else read forwards up to the oldest of them, fold that, then them
//! snapshot at or below the tail
//!     page back until its version is reached
//!     the commit that ends there has its commit id -> fold the commits after it
//!     else it is of another history: delete it, continue without
//! snapshot above the tail: it was read later than the commits, or the history forked
//!     read at its version; its commit is there -> fold the commits after it
//!     else delete it, continue without
//! ```
//! A load waits for the snapshot store for a bounded time only, and then folds the events without
//! it.
//!
//! Only a bounded number of commits is ever held in memory. What is further back than a few times
//! the requested number is read forwards and folded page by page.
use super::{
    LoadError, Loaded, Repository,
    fold::Fold,
    snapshots::{Snapshots, deadline},
};
use crate::{
    Aggregate, StreamHead, StreamId, Version,
    ports::{Commit, ReadFrom, StoredSnapshot},
};
use futures::TryStreamExt;
use std::num::NonZeroU32;
use tokio::time::Instant;

/// The factor by which more commits than were requested are paged back to reach a snapshot. A
/// snapshot that is further back is read forwards.
const PAGE_BACK: u64 = 4;

/// The snapshots, and the instant until which a load waits for them; `None` waits for any answer.
type InTime<'a, A> = (&'a Snapshots<A>, Option<Instant>);

/// A usable snapshot and its decoded state.
type Found<A> = (StoredSnapshot, A);

impl<A: Aggregate> Repository<A> {
    pub(super) async fn load_stream(&self, stream: &StreamId) -> Result<Loaded<A>, LoadError> {
        // Checked even for an empty stream: no call of a repository with unusable upcasters may
        // seem to work.
        self.upcasters()?;
        let started = Instant::now();
        let fold = match &self.inner.snapshots {
            None => self.fold_all(stream).await?,
            Some(snapshots) => {
                let found = (snapshots, deadline(self.inner.snapshot_timeout));
                match snapshots.newest(self.inner.load_policy) {
                    Some(newest) => self.load_together(stream, found, newest).await?,
                    None => self.load_in_sequence(stream, found).await?,
                }
            }
        };
        let took = started.elapsed();
        let mut loaded = fold.finish();
        let from = loaded.snapshot.version;
        let events = loaded.version().get() - from.get();
        tracing::debug!(%stream, version = %loaded.version(), snapshot = %from, events, ?took, "loaded");
        self.inner
            .counters
            .loaded(from > Version::NONE, events, took);
        if let Some(snapshots) = &self.inner.snapshots {
            snapshots.offer(&mut loaded, took, || self.inner.clock.now());
        }
        Ok(loaded)
    }

    async fn load_in_sequence(
        &self,
        stream: &StreamId,
        (snapshots, deadline): InTime<'_, A>,
    ) -> Result<Fold<A>, LoadError> {
        if let Some((snapshot, state)) = snapshots.load(stream, deadline).await {
            if let Some(fold) = self.fold_after(&snapshot, state, snapshots).await? {
                return Ok(fold);
            }
            snapshots
                .discard(&snapshot, "it is of another history", deadline)
                .await;
        }
        self.fold_all(stream).await
    }

    async fn load_together(
        &self,
        stream: &StreamId,
        (snapshots, deadline): InTime<'_, A>,
        limit: NonZeroU32,
    ) -> Result<Fold<A>, LoadError> {
        let (found, newest) = futures::join!(
            snapshots.load(stream, deadline),
            self.backwards(stream, ReadFrom::Newest, limit)
        );
        let mut newest = newest?;
        snapshots.met(&newest);
        if let Some((snapshot, state)) = found {
            let tail = newest.first().map_or(Version::NONE, Commit::last_version);
            let is_above = snapshot.version > tail;
            let fold = if is_above {
                self.fold_after(&snapshot, state, snapshots).await?
            } else {
                let found = (snapshot.clone(), state);
                self.fold_newest(found, &mut newest, limit, snapshots)
                    .await?
            };
            if let Some(fold) = fold {
                return Ok(fold);
            }
            let why = if is_above {
                "it is above the tail: the history forked"
            } else {
                "it is of another history"
            };
            snapshots.discard(&snapshot, why, deadline).await;
        }
        self.fold_with(stream, newest).await
    }

    /// Returns the state from a snapshot at or below the newest commits, which are paged back as
    /// far as the snapshot. `None` if the snapshot does not fit the history.
    async fn fold_newest(
        &self,
        (snapshot, state): Found<A>,
        newest: &mut Vec<Commit>,
        limit: NonZeroU32,
        snapshots: &Snapshots<A>,
    ) -> Result<Option<Fold<A>>, LoadError> {
        let oldest = newest.last().map_or(Version::NONE, |c| c.first_version);
        let missing = oldest.get().saturating_sub(snapshot.version.get());
        if missing > PAGE_BACK * u64::from(limit.get()) {
            return self.fold_after(&snapshot, state, snapshots).await;
        }
        // A commit has at least one event, so as many commits as events reach it.
        if let Some(missing) = u32::try_from(missing).ok().and_then(NonZeroU32::new) {
            let from = ReadFrom::NewestAtOrBelow(Version::new(oldest.get() - 1));
            newest.extend(self.backwards(&snapshot.stream, from, missing).await?);
        }
        let Some(at) = newest.iter().position(|commit| fits(&snapshot, commit)) else {
            return Ok(None);
        };
        let mut fold = Fold::from_snapshot(state, newest[at].head());
        for commit in newest.drain(..at).rev() {
            self.take(&mut fold, commit).await?;
        }
        Ok(Some(fold))
    }

    /// Returns the state from a snapshot and everything after it, read at its version. `None` if
    /// the snapshot does not fit.
    async fn fold_after(
        &self,
        snapshot: &StoredSnapshot,
        state: A,
        snapshots: &Snapshots<A>,
    ) -> Result<Option<Fold<A>>, LoadError> {
        // The commit that holds the snapshot's version shows whether the snapshot is of this
        // history.
        let start = ReadFrom::Event(snapshot.version);
        let mut commits = self.inner.store.read(&snapshot.stream, start, None);
        let Some(commit) = commits.try_next().await?.filter(|c| fits(snapshot, c)) else {
            return Ok(None);
        };
        let mut fold = Fold::from_snapshot(state, commit.head());
        while let Some(commit) = commits.try_next().await? {
            snapshots.met(std::slice::from_ref(&commit));
            self.take(&mut fold, commit).await?;
        }
        Ok(Some(fold))
    }

    /// Folds the whole history of a stream.
    async fn fold_all(&self, stream: &StreamId) -> Result<Fold<A>, LoadError> {
        self.fold_on(Fold::start(StreamHead::empty(stream.clone())))
            .await
    }

    /// Folds the whole history, of which the newest commits are known, newest first. An empty list
    /// says that there are none.
    async fn fold_with(
        &self,
        stream: &StreamId,
        newest: Vec<Commit>,
    ) -> Result<Fold<A>, LoadError> {
        let mut fold = Fold::start(StreamHead::empty(stream.clone()));
        if let Some(oldest) = newest.last() {
            fold = self.fold_up_to(fold, oldest.first_version).await?;
        }
        for commit in newest.into_iter().rev() {
            self.take(&mut fold, commit).await?;
        }
        Ok(fold)
    }

    /// Reads and folds the commits after a fold's head and before `end`.
    async fn fold_up_to(&self, mut fold: Fold<A>, end: Version) -> Result<Fold<A>, LoadError> {
        let missing = end.get().saturating_sub(fold.head().version().next().get());
        if missing == 0 {
            return Ok(fold);
        }
        let stream = fold.head().stream().clone();
        let start = ReadFrom::After(fold.head().clone());
        // A number of commits that exceeds the type of the limit is read without one.
        let limit = u32::try_from(missing).ok().and_then(NonZeroU32::new);
        let mut commits = self.inner.store.read(&stream, start, limit);
        while fold.head().version().next() < end {
            let Some(commit) = commits.try_next().await? else {
                break;
            };
            self.take(&mut fold, commit).await?;
        }
        Ok(fold)
    }

    /// Reads and folds all commits after a fold's head.
    pub(super) async fn fold_on(&self, mut fold: Fold<A>) -> Result<Fold<A>, LoadError> {
        let start = ReadFrom::After(fold.head().clone());
        let stream = fold.head().stream().clone();
        let mut commits = self.inner.store.read(&stream, start, None);
        let upcasters = self.upcasters()?;
        while let Some(commit) = commits.try_next().await? {
            // Cold commands spend their time in this loop, so a commit without payload codecs is
            // not moved into another future.
            if super::is_sealed(&commit) {
                self.take(&mut fold, commit).await?;
            } else {
                fold.take(&commit, upcasters)?;
            }
        }
        Ok(fold)
    }

    /// Opens a stored commit and folds it.
    async fn take(&self, fold: &mut Fold<A>, commit: Commit) -> Result<(), LoadError> {
        fold.take(&self.open(commit).await?, self.upcasters()?)
    }

    /// Returns at most `limit` commits, newest first.
    async fn backwards(
        &self,
        stream: &StreamId,
        from: ReadFrom,
        limit: NonZeroU32,
    ) -> Result<Vec<Commit>, LoadError> {
        let commits = self.inner.store.read(stream, from, Some(limit));
        Ok(commits.try_collect().await?)
    }
}

/// Returns true if the snapshot belongs to the history that has this commit, and stands at its end.
fn fits(snapshot: &StoredSnapshot, commit: &Commit) -> bool {
    commit.last_version() == snapshot.version && commit.id == snapshot.commit_id
}
