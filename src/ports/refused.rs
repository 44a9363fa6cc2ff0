//! The kinds of refusals that last until something is changed.

/// The thing that must be changed before a refused call can succeed. A retry alone never cures a
/// refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedKind {
    /// The table does not exist, or is not the one expected.
    MissingTable,
    /// The topic does not exist.
    MissingTopic,
    /// The topic exists, but does not have the partition that the message names.
    UnknownPartition,
    /// Another member of the group is using this member's instance id.
    InstanceIdInUse,
    /// The credentials are missing, wrong or expired.
    Credentials,
    /// The credentials are valid, but do not permit this.
    Permission,
    /// The backend calls the request malformed.
    Validation,
    /// The stored format, the topic or the table is set up in a way that this build cannot work
    /// with.
    Incompatible,
    /// The adapter cannot do this, as its capabilities say.
    Unsupported,
    /// Any other reason that waiting does not cure.
    Other,
}
