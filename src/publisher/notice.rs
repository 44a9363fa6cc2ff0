//! Notices: hints that a stream has unpublished commits.
use super::PublishError;
use crate::{
    StreamId, Version,
    ports::{Commit, CommitKey},
};
use std::{
    collections::{BTreeMap, HashMap, btree_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A hint of a trigger that a stream has unpublished commits.
///
/// Notices may be late, duplicate, reordered or missing. That affects when an event is published,
/// never which events or in what order.
///
/// # Example
/// ```
/// use foldstream::{StreamId, Version, ports::CommitKey, publisher::Notice};
///
/// let order = StreamId::new("order", "7")?;
/// let notice = Notice::from(CommitKey::new(order.clone(), Version::new(3)));
/// assert_eq!(notice.stream(), &order);
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The whole commit, as a change stream shows it. If it is the next commit of its stream, the
    /// publisher need not read it. A part of a commit that its adapter has split is never this, but
    /// a [`Key`](Self::Key).
    Commit(Commit),
    /// The stream and a version of the commit, which the publisher reads from the event store.
    Key(CommitKey),
}
impl Notice {
    /// Returns the stream that has unpublished commits.
    pub const fn stream(&self) -> &StreamId {
        match self {
            Self::Commit(commit) => &commit.stream,
            Self::Key(key) => &key.stream,
        }
    }
    const fn first_version(&self) -> Version {
        match self {
            Self::Commit(commit) => commit.first_version,
            Self::Key(key) => key.first_version,
        }
    }
}
impl From<CommitKey> for Notice {
    fn from(key: CommitKey) -> Self {
        Self::Key(key)
    }
}
impl From<Commit> for Notice {
    fn from(commit: Commit) -> Self {
        Self::Commit(commit)
    }
}

/// All notices of one stream in one call.
#[derive(Debug)]
pub(super) struct Notices {
    pub(super) stream: StreamId,
    /// True if the stream is to be published up to its tail, wherever that is.
    pub(super) is_to_tail: bool,
    /// The notices by the version of the commit's first event. A watermark at or above that version
    /// covers the whole commit, since watermarks are commit ends.
    by_version: BTreeMap<Version, Noticed>,
    /// Commits of other calls that wait for this one. They save reads, and nothing more.
    offered: BTreeMap<Version, Option<Commit>>,
}

#[derive(Debug)]
struct Noticed {
    /// The place of the first such notice in the call; `None` if the publisher found it.
    place: Option<usize>,
    commit: Option<Commit>,
}

impl Notices {
    fn empty(stream: StreamId) -> Self {
        Self {
            stream,
            is_to_tail: false,
            by_version: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }
    /// Creates a request to publish a stream up to its tail.
    pub(super) fn to_tail(stream: StreamId) -> Self {
        Self {
            is_to_tail: true,
            ..Self::empty(stream)
        }
    }
    /// Creates the notice that a stream has this version.
    pub(super) fn of_version(stream: StreamId, version: Version) -> Self {
        let mut notices = Self::empty(stream.clone());
        notices.add(None, Notice::Key(CommitKey::new(stream, version)));
        notices
    }

    /// Joins the notices of each stream. The numbers are the places of the notices in the call.
    pub(super) fn by_stream(
        notices: impl IntoIterator<Item = (Option<usize>, Notice)>,
    ) -> BTreeMap<StreamId, Self> {
        let mut streams = BTreeMap::new();
        for (place, notice) in notices {
            let of_stream = streams
                .entry(notice.stream().clone())
                .or_insert_with_key(|stream| Self::empty(StreamId::clone(stream)));
            of_stream.add(place, notice);
        }
        streams
    }

    fn add(&mut self, place: Option<usize>, notice: Notice) {
        let version = notice.first_version();
        let commit = match notice {
            Notice::Commit(commit) => Some(commit),
            Notice::Key(_) => None,
        };
        match self.by_version.entry(version) {
            btree_map::Entry::Vacant(slot) => {
                slot.insert(Noticed { place, commit });
            }
            btree_map::Entry::Occupied(mut slot) => {
                let noticed = slot.get_mut();
                noticed.place = noticed.place.min(place);
                match (&noticed.commit, commit) {
                    (None, commit) => noticed.commit = commit,
                    // Two commits claim one version: only the store knows which one is stored.
                    (Some(a), Some(b)) if a.id != b.id => noticed.commit = None,
                    _ => {}
                }
            }
        }
    }

    /// Returns the commit that starts at this version, if a notice brought it.
    pub(super) fn take_commit(&mut self, first: Version) -> Option<Commit> {
        let noticed = self.by_version.get_mut(&first);
        noticed
            .and_then(|noticed| noticed.commit.take())
            .or_else(|| self.offered.remove(&first).flatten())
    }

    /// Returns the lowest version above the watermark that a notice names.
    pub(super) fn lowest_above(&self, watermark: Version) -> Option<Version> {
        let mut above = self.by_version.range(watermark.next()..);
        above.next().map(|(version, _)| *version)
    }
    /// Returns the error of a stream whose watermark is more than `limit` events below its first
    /// notice.
    pub(super) fn far_behind(
        &self,
        watermark: Version,
        limit: Option<u64>,
    ) -> Option<PublishError> {
        let (limit, named) = (limit?, self.lowest_above(watermark)?);
        let events = named.get().saturating_sub(watermark.next().get());
        (events > limit).then(|| PublishError::FarBehind {
            stream: self.stream.clone(),
            events,
            limit,
        })
    }
    /// Returns the highest version that a notice names.
    pub(super) fn highest(&self) -> Version {
        let last = self.by_version.last_key_value();
        last.map_or(Version::NONE, |(version, _)| *version)
    }

    /// Returns the named versions at or below the watermark.
    pub(super) fn covered(&self, watermark: Version) -> impl Iterator<Item = Version> + '_ {
        self.by_version.range(..=watermark).map(|(v, _)| *v)
    }

    /// Returns the commits at or below the watermark that notices brought, the newest first.
    pub(super) fn commits_covered(&self, watermark: Version) -> impl Iterator<Item = &Commit> + '_ {
        let covered = self.by_version.range(..=watermark).rev();
        covered.filter_map(|(_, noticed)| noticed.commit.as_ref())
    }

    /// Forgets the notices that the watermark covers, once their markers are removed.
    pub(super) fn forget_covered(&mut self, watermark: Version) {
        self.by_version = self.by_version.split_off(&watermark.next());
    }

    /// Returns the place of the first notice that the watermark does not cover.
    pub(super) fn first_uncovered(&self, watermark: Version) -> Option<usize> {
        let above = self.by_version.range(watermark.next()..);
        above.filter_map(|(_, noticed)| noticed.place).min()
    }
}

/// The commits that waiting calls have brought, by stream. The call that works next takes them all,
/// so that the notices of a hot stream are published in one run and not one after the other.
#[derive(Debug, Default)]
pub(super) struct Offers(Mutex<HashMap<StreamId, Offered>>);

#[derive(Debug, Default)]
struct Offered {
    waiting: usize,
    commits: BTreeMap<Version, Option<Commit>>,
}

impl Offers {
    fn lock(&self) -> MutexGuard<'_, HashMap<StreamId, Offered>> {
        // A panic elsewhere leaves the map whole: every change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the commits of a call that is going to wait for its stream.
    pub(super) fn join(self: &Arc<Self>, notices: &Notices) -> Joined {
        let mut offers = self.lock();
        let offered = offers.entry(notices.stream.clone()).or_default();
        offered.waiting += 1;
        for (version, noticed) in &notices.by_version {
            let Some(commit) = &noticed.commit else {
                continue;
            };
            let known = offered.commits.entry(*version);
            let known = known.or_insert_with(|| Some(commit.clone()));
            if known.as_ref().is_some_and(|known| known.id != commit.id) {
                *known = None;
            }
        }
        drop(offers);
        Joined {
            offers: self.clone(),
            stream: notices.stream.clone(),
        }
    }
}

/// A call that waits for its stream, until it is dropped.
#[derive(Debug)]
pub(super) struct Joined {
    offers: Arc<Offers>,
    stream: StreamId,
}
impl Joined {
    /// Hands the commits of all waiting calls to the one that works now.
    pub(super) fn hand_to(&self, notices: &mut Notices) {
        if let Some(offered) = self.offers.lock().get_mut(&self.stream) {
            notices.offered = std::mem::take(&mut offered.commits);
        }
    }
}
impl Drop for Joined {
    fn drop(&mut self) {
        let mut offers = self.offers.lock();
        if let Some(offered) = offers.get_mut(&self.stream) {
            offered.waiting -= 1;
            if offered.waiting == 0 {
                offers.remove(&self.stream);
            }
        }
    }
}
