//! The errors of a streams reader.
use super::service::StreamServiceError;
use foldstream::ports::ControlStoreError;

/// The error returned by a streams reader that cannot work until something is changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamsError {
    /// DynamoDB refuses the first requests.
    #[error("the change stream of the events table cannot be read")]
    Service(#[from] StreamServiceError),
    /// The control store refuses or fails.
    #[error("the rows of the streams reader cannot be read or written")]
    Control(#[from] ControlStoreError),
}

impl StreamsError {
    /// Returns true if another attempt may succeed.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Service(StreamServiceError::Refused { .. }) => false,
            Self::Service(_) => true,
            Self::Control(error) => error.is_transient(),
        }
    }
}
