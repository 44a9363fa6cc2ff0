//! Why a backend will go on refusing until somebody changes something.

/// What must be changed before a refused call can succeed. A retry alone never cures one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedKind {
    /// The table does not exist, or is not the one expected.
    MissingTable,
    /// The topic does not exist.
    MissingTopic,
    /// The credentials are missing, wrong or expired.
    Credentials,
    /// The credentials are good, but not for this.
    Permission,
    /// The backend calls the request malformed.
    Validation,
    /// The stored format, the topic or the table is set up in a way that this build cannot work with.
    Incompatible,
    /// This adapter cannot do it; its capabilities say so.
    Unsupported,
    /// Anything else that waiting does not cure.
    Other,
}
