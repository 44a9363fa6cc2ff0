//! The error returned by a [`PayloadCodec`](super::PayloadCodec).
use crate::BoxError;
use std::time::Duration;

/// The error returned by a [`PayloadCodec`](super::PayloadCodec).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The key service throttles this client.
    #[error("the key service throttles")]
    Throttled {
        /// The shortest pause before a retry, if the key service named one.
        retry_after: Option<Duration>,
        /// The answer of the key service.
        #[source]
        source: BoxError,
    },
    /// The key service does not answer.
    #[error("the key service is unavailable")]
    Unavailable {
        /// The error of the call to the key service.
        #[source]
        source: BoxError,
    },
    /// The codec refuses, or something must be changed first, such as a permission or a setting.
    #[error("the codec refuses: {reason}")]
    Refused {
        /// A description of the refusal and of its remedy. Never the payload.
        reason: String,
        /// The cause, if the codec only passes an error on.
        #[source]
        source: Option<BoxError>,
    },
    /// The bytes are not what was stored here, or were never written by this codec.
    #[error("the payload is damaged, or belongs to another place")]
    Damaged {
        /// The error in which the damage was noticed.
        #[source]
        source: BoxError,
    },
}

impl PayloadError {
    /// Creates an [`Unavailable`](Self::Unavailable) error.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable {
            source: source.into(),
        }
    }
    /// Creates a [`Refused`](Self::Refused) error without a source.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
            source: None,
        }
    }
    /// Creates a [`Damaged`](Self::Damaged) error.
    pub fn damaged(source: impl Into<BoxError>) -> Self {
        Self::Damaged {
            source: source.into(),
        }
    }
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
    /// Returns the shortest pause before the next call, if the key service named one.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
