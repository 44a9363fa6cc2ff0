//! The ids of commits and events, and the metadata that a commit carries.
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};
use uuid::Uuid;

crate::id!(
    /// The id of one command of a client. A command that is sent twice under one id is applied
    /// once.
    ///
    /// The id has 1 to 256 bytes without U+001F where it is stored.
    pub CommandId
);
crate::id!(
    /// The id of a group: everything that one request caused.
    pub CorrelationId
);
crate::id!(
    /// The id of the direct cause of a commit: an event id or a request id.
    pub CausationId
);
crate::id!(
    /// The author of a commit: a user, a service or a job.
    pub ActorId
);

/// The id of the content of one append. The same id is never sent with other events.
///
/// A commit id identifies an append whose answer was lost. It also identifies a history: a version
/// alone does not, since the stream of a restored backup reuses version numbers.
///
/// # Example
/// ```
/// use foldstream::CommitId;
/// let commit: CommitId = "0191d0a0-0000-7000-8000-000000000000".parse()?;
/// assert_eq!(commit.event_id(2).to_string(), "0191d0a0-0000-7000-8000-000000000000/2");
/// assert_ne!(CommitId::random(), CommitId::random());
/// # Ok::<(), foldstream::InvalidId>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommitId(Uuid);

impl CommitId {
    /// Creates a fresh id (UUIDv7) from the system's clock and randomness. Code that has an
    /// [`IdSource`](crate::IdSource) asks the source instead.
    pub fn random() -> Self {
        Self(Uuid::now_v7())
    }

    /// Creates a commit id from its 128 bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(Uuid::from_u128(bits))
    }

    /// Returns the 128 bits of the id.
    pub const fn as_u128(self) -> u128 {
        self.0.as_u128()
    }

    /// Returns the id of the commit of a command with a command id: a UUIDv5 of the stream, the
    /// command id and the nonce in the command's mark.
    ///
    /// Every attempt at the command that finds the mark computes the same id. A command id that is
    /// used again after its mark has expired gets another nonce, and therefore another commit id.
    pub fn of_command(stream: &crate::StreamId, command: &CommandId, nonce: u64) -> Self {
        let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, stream.as_str().as_bytes());
        // The nonce has a fixed length and comes first. No other command id and nonce give the same
        // text.
        let mut name = nonce.to_be_bytes().to_vec();
        name.extend_from_slice(command.as_str().as_bytes());
        Self(Uuid::new_v5(&namespace, &name))
    }

    /// Returns the id of the commit's event at `index`, from 0.
    pub const fn event_id(self, index: u16) -> EventId {
        EventId {
            commit_id: self,
            index,
        }
    }
}

impl From<Uuid> for CommitId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}
impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitId({})", self.0)
    }
}

/// The error returned for a text that is not a commit id or an event id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct InvalidId {
    text: String,
    expected: &'static str,
}

impl FromStr for CommitId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(Self).map_err(|_| InvalidId {
            text: text.into(),
            expected: "a commit id (a UUID)",
        })
    }
}
impl serde::Serialize for CommitId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> serde::Deserialize<'de> for CommitId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The permanent id of an event: its commit and its index in that commit, displayed as `<uuid>/<n>`
/// with n from 0.
///
/// The id is computed from the commit's, so it costs no bytes in the store. Duplicates of an event
/// on the bus have the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    commit_id: CommitId,
    index: u16,
}

impl EventId {
    /// Returns the id of the commit.
    pub const fn commit_id(self) -> CommitId {
        self.commit_id
    }
    /// Returns the index of the event in its commit, from 0.
    pub const fn index(self) -> u16 {
        self.index
    }
}
impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.commit_id, self.index)
    }
}
impl FromStr for EventId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let read = || {
            let (commit, index) = text.split_once('/')?;
            Some(Self {
                commit_id: commit.parse().ok()?,
                index: index.parse().ok()?,
            })
        };
        read().ok_or_else(|| InvalidId {
            text: text.into(),
            expected: "an event id (<uuid>/<n>)",
        })
    }
}

/// The metadata of a commit. Empty metadata takes no memory, and cloning increments a reference
/// count.
///
/// # Example
/// ```
/// use foldstream::Metadata;
///
/// let metadata = Metadata::new()
///     .with_correlation_id("request-7")
///     .with_actor("alice")
///     .with("tenant", "acme");
/// assert_eq!(metadata.get("tenant"), Some("acme"));
/// assert_eq!(metadata.actor().map(|actor| actor.as_str()), Some("alice"));
/// assert!(metadata.command_id().is_none());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Option<Arc<Entries>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entries {
    command_id: Option<CommandId>,
    command_digest: Option<Arc<str>>,
    correlation_id: Option<CorrelationId>,
    causation_id: Option<CausationId>,
    actor: Option<ActorId>,
    traceparent: Option<Arc<str>>,
    user: BTreeMap<String, String>,
}

impl Metadata {
    /// The bytes that [`Metadata::bytes`] counts for each entry beside its text. No backend adds
    /// more to an entry.
    pub const ENTRY_BYTES: usize = 16;

    /// Creates metadata without any entry.
    pub const fn new() -> Self {
        Self(None)
    }

    fn edit(mut self, change: impl FnOnce(&mut Entries)) -> Self {
        change(Arc::make_mut(self.0.get_or_insert_default()));
        self
    }

    /// Sets the id of the command.
    #[must_use]
    pub fn with_command_id(self, id: impl Into<CommandId>) -> Self {
        self.edit(|m| m.command_id = Some(id.into()))
    }
    /// Sets the digest of the command's content, for instance a hash of the request, or the request
    /// itself. The same command id with another digest is then an error
    /// ([`ExecuteError::CommandIdReused`](crate::ExecuteError::CommandIdReused)) and not a
    /// repetition.
    ///
    /// Digests are compared only if both commands have one: without a digest, another command under
    /// the same id is answered as a repetition. The digest may have any length: a UUIDv5 of its
    /// bytes is kept with the mark of the command, for as long as the mark. The digest is not part
    /// of the stored commit. It has an effect only where a command id has one, see
    /// [`Repository::with_idempotency`](crate::Repository::with_idempotency).
    #[must_use]
    pub fn with_command_digest(self, digest: impl AsRef<[u8]>) -> Self {
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, digest.as_ref());
        self.edit(|m| m.command_digest = Some(digest.simple().to_string().into()))
    }
    /// Sets the id that this commit shares with everything else that the request caused.
    #[must_use]
    pub fn with_correlation_id(self, id: impl Into<CorrelationId>) -> Self {
        self.edit(|m| m.correlation_id = Some(id.into()))
    }
    /// Sets the id of the direct cause.
    #[must_use]
    pub fn with_causation_id(self, id: impl Into<CausationId>) -> Self {
        self.edit(|m| m.causation_id = Some(id.into()))
    }
    /// Sets the author of the commit.
    #[must_use]
    pub fn with_actor(self, actor: impl Into<ActorId>) -> Self {
        self.edit(|m| m.actor = Some(actor.into()))
    }
    /// Sets the W3C trace context of the request.
    #[must_use]
    pub fn with_traceparent(self, value: impl Into<Arc<str>>) -> Self {
        self.edit(|m| m.traceparent = Some(value.into()))
    }
    /// Sets an entry of the user. A later entry with the same key replaces an earlier one.
    #[must_use]
    pub fn with(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.edit(|m| {
            m.user.insert(key.into(), value.into());
        })
    }

    /// Returns true if there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.as_deref().is_none_or(|m| *m == Entries::default())
    }
    /// Returns the id of the command.
    pub fn command_id(&self) -> Option<&CommandId> {
        self.0.as_ref()?.command_id.as_ref()
    }
    /// Returns the digest of the command's content, as the command's mark keeps it: 32 hexadecimal
    /// digits.
    pub fn command_digest(&self) -> Option<&str> {
        self.0.as_ref()?.command_digest.as_deref()
    }
    /// Returns the metadata that a commit carries: without the digest, which only the mark of the
    /// command keeps.
    pub(crate) fn of_commit(self) -> Self {
        match self.command_digest() {
            // Equal to the metadata that is read back: none at all where there was nothing but the
            // digest.
            Some(_) => match self.edit(|m| m.command_digest = None) {
                empty if empty.is_empty() => Self::new(),
                others => others,
            },
            None => self,
        }
    }
    /// Returns the correlation id, if there is one.
    pub fn correlation_id(&self) -> Option<&CorrelationId> {
        self.0.as_ref()?.correlation_id.as_ref()
    }
    /// Returns the causation id, if there is one.
    pub fn causation_id(&self) -> Option<&CausationId> {
        self.0.as_ref()?.causation_id.as_ref()
    }
    /// Returns the author of the commit, if there is one.
    pub fn actor(&self) -> Option<&ActorId> {
        self.0.as_ref()?.actor.as_ref()
    }
    /// Returns the W3C trace context, if there is one.
    pub fn traceparent(&self) -> Option<&str> {
        self.0.as_ref()?.traceparent.as_deref()
    }
    /// Returns the user's entry with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.as_ref()?.user.get(key).map(String::as_str)
    }
    /// Returns the size in bytes by which every event store limits metadata: the keys of the user
    /// and all values, and [`Metadata::ENTRY_BYTES`] for each entry.
    pub fn bytes(&self) -> usize {
        let fixed = [
            self.command_id().map(CommandId::as_str),
            self.correlation_id().map(CorrelationId::as_str),
            self.causation_id().map(CausationId::as_str),
            self.actor().map(ActorId::as_str),
            self.traceparent(),
        ];
        let fixed = fixed.into_iter().flatten().map(str::len);
        let user = self.user().map(|(key, value)| key.len() + value.len());
        fixed.chain(user).map(|b| b + Self::ENTRY_BYTES).sum()
    }
    /// Returns the entries of the user, ordered by key.
    pub fn user(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.0.as_deref().into_iter();
        entries.flat_map(|m| m.user.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_is_shown_as_commit_and_index_and_read_back() {
        let id = CommitId::random().event_id(7);
        assert!(id.to_string().ends_with("/7"));
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "x/1",
            &id.commit_id().to_string(),
            &format!("{}/65536", id.commit_id()),
        ] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_command_on_a_stream_under_one_mark_always_gets_the_same_commit_id() {
        let stream = |id: &str| crate::StreamId::new("cart", id).unwrap();
        let command = CommandId::from("c-1");
        let id = |id, nonce| CommitId::of_command(&stream(id), &command, nonce);
        assert_eq!(id("a", 1), id("a", 1));
        assert_ne!(id("a", 1), id("b", 1));
        assert_ne!(id("a", 1), id("a", 2));
    }

    #[test]
    fn metadata_emptied_of_everything_is_empty() {
        assert!(Metadata::new().is_empty());
        assert!(!Metadata::new().with("k", "v").is_empty());
        assert_eq!(
            Metadata::new().with("k", "v").with("k", "w").get("k"),
            Some("w")
        );
    }
}
