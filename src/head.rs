//! Heads: the place where a stream ends, and what an append may expect of it.
use crate::{CommitId, StreamId, Timestamp, Version};

/// Proof that a stream was seen to end at a version: the result of a load or an append.
///
/// An append takes its stream and version from a head. A version can therefore be used neither on
/// another stream nor above the real tail, which would leave a hole. A head exists only where a
/// commit ends.
///
/// Two heads are equal if all of their parts are, the time included. Whether a stream is still
/// where it was is another question: [`is_same_commit`](Self::is_same_commit) answers it.
///
/// # Example
/// ```
/// use foldstream::{StreamHead, StreamId, Version};
/// let new_cart = StreamHead::empty(StreamId::new("cart", "7")?);
/// assert_eq!((new_cart.version(), new_cart.commit_id()), (Version::NONE, None));
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamHead {
    stream: StreamId,
    version: Version,
    commit_id: Option<CommitId>,
    recorded_at: Timestamp,
}

impl StreamHead {
    /// Creates the head of a stream that is expected not to exist. Anyone may claim that, since the
    /// store checks it.
    pub const fn empty(stream: StreamId) -> Self {
        Self {
            stream,
            version: Version::NONE,
            commit_id: None,
            recorded_at: Timestamp::from_micros(0),
        }
    }

    /// Creates the head at which the commit `commit_id` of `stream` ends, with `version` as its
    /// last event: [`adapter::observed_head`](crate::adapter::observed_head).
    #[doc(hidden)]
    pub const fn observed(
        stream: StreamId,
        version: Version,
        commit_id: CommitId,
        recorded_at: Timestamp,
    ) -> Self {
        Self {
            stream,
            version,
            commit_id: Some(commit_id),
            recorded_at,
        }
    }

    /// Moves this head to the end of the next commit of the same stream.
    pub(crate) const fn advance(
        &mut self,
        version: Version,
        commit_id: CommitId,
        recorded_at: Timestamp,
    ) {
        self.version = version;
        self.commit_id = Some(commit_id);
        self.recorded_at = recorded_at;
    }

    /// Returns the stream of this head.
    pub const fn stream(&self) -> &StreamId {
        &self.stream
    }
    /// Returns the last version seen; 0 for an empty stream.
    pub const fn version(&self) -> Version {
        self.version
    }
    /// Returns the id of the commit that ends here; `None` for an empty stream.
    pub const fn commit_id(&self) -> Option<CommitId> {
        self.commit_id
    }
    /// Returns the time of the commit that ends here. The next commit is never earlier. For an
    /// empty stream the time is 1970, which limits nothing.
    pub const fn recorded_at(&self) -> Timestamp {
        self.recorded_at
    }
    /// Returns true if both heads are the end of the same commit of the same stream: the versions
    /// and the commit ids are equal.
    ///
    /// This is the comparison that an event store makes where it checks heads. The version alone
    /// does not identify the history, since another commit can end there after a restore. The time
    /// does not count: a caller who has read a head's version and commit id from elsewhere, for
    /// example from a watermark, may not know it.
    ///
    /// # Example
    /// ```
    /// use foldstream::{CommitId, StreamId, Timestamp, Version, adapter::observed_head};
    /// let cart = StreamId::new("cart", "7")?;
    /// let head = |id, micros| {
    ///     let (id, at) = (CommitId::from_u128(id), Timestamp::from_micros(micros));
    ///     observed_head(cart.clone(), Version::new(3), id, at)
    /// };
    /// assert!(head(1, 5).is_same_commit(&head(1, 0)));
    /// assert!(!head(1, 5).is_same_commit(&head(2, 5)));
    /// # Ok::<(), foldstream::InvalidStreamId>(())
    /// ```
    #[must_use]
    pub fn is_same_commit(&self, other: &Self) -> bool {
        (&self.stream, self.version, self.commit_id)
            == (&other.stream, other.version, other.commit_id)
    }
    /// Returns the time of the next commit: `now`, but never before the commit that ends here, even
    /// if the clock of this host is slow.
    pub(crate) fn next_at(&self, now: Timestamp) -> Timestamp {
        match self.commit_id {
            Some(_) => now.max(self.recorded_at),
            None => now,
        }
    }
}

/// The state in which a writer expects a stream, for
/// [`Repository::append`](crate::Repository::append) and
/// [`Repository::execute_at`](crate::Repository::execute_at).
///
/// # Example
/// ```
/// use foldstream::{ExpectedVersion, Version};
/// // `If-Match: "7"` in a request.
/// let expected = ExpectedVersion::from(Version::new(7));
/// assert_eq!(expected, ExpectedVersion::Number(Version::new(7)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpectedVersion {
    /// Any state of the stream. The append is tried again when another writer extends the stream
    /// first.
    Any,
    /// The stream must not exist.
    NoStream,
    /// The head that a load or an append returned. It costs no read.
    Head(StreamHead),
    /// A version from outside the process, which a read verifies: it counts only if a commit *ends*
    /// there. 0 is [`NoStream`](Self::NoStream).
    Number(Version),
}
impl ExpectedVersion {
    /// Returns the conflict of an append at this head if the stream is not in the expected state.
    pub(crate) fn conflict(&self, head: &StreamHead) -> Option<VersionConflict> {
        let expected = match self {
            Self::Any => return None,
            Self::NoStream => Version::NONE,
            // The version alone does not identify the history.
            Self::Head(expected) if expected.commit_id() == head.commit_id() => return None,
            Self::Head(expected) => expected.version(),
            Self::Number(expected) => *expected,
        };
        let is_elsewhere = matches!(self, Self::Head(_)) || expected != head.version();
        is_elsewhere
            .then(|| VersionConflict::new(head.stream().clone(), expected, Some(head.version())))
    }

    /// Returns a description of the mistake if the expected head belongs to another stream.
    pub(crate) fn head_of_another(&self, stream: &StreamId) -> Option<String> {
        match self {
            Self::Head(head) if head.stream() != stream => Some(format!(
                "the head of {} is not a head of {stream}",
                head.stream()
            )),
            _ => None,
        }
    }
}
impl From<Version> for ExpectedVersion {
    fn from(version: Version) -> Self {
        Self::Number(version)
    }
}
impl From<StreamHead> for ExpectedVersion {
    fn from(head: StreamHead) -> Self {
        Self::Head(head)
    }
}
impl From<&StreamHead> for ExpectedVersion {
    fn from(head: &StreamHead) -> Self {
        Self::Head(head.clone())
    }
}

/// The conflict of an append: another writer extended the stream first, or no commit ends at the
/// expected version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("version conflict on {stream}: expected {expected}, found {}", actual.map_or_else(|| "another".into(), |v| format!("at least {v}")))]
#[non_exhaustive]
pub struct VersionConflict {
    /// The stream that was not extended.
    pub stream: StreamId,
    /// The version that the writer had seen.
    pub expected: Version,
    /// A lower bound of the stream's version; `None` if the store did not report one without
    /// another read.
    pub actual: Option<Version>,
}
impl VersionConflict {
    /// Creates a conflict from a failed condition:
    /// [`adapter::version_conflict`](crate::adapter::version_conflict).
    #[doc(hidden)]
    #[must_use]
    pub const fn new(stream: StreamId, expected: Version, actual: Option<Version>) -> Self {
        Self {
            stream,
            expected,
            actual,
        }
    }
}
