//! The error returned by a [`PayloadCodec`](super::PayloadCodec).
use crate::BoxError;
use std::time::Duration;

/// The error returned by a [`PayloadCodec`](super::PayloadCodec).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The key service throttles; wait first.
    #[error("the key service throttles")]
    Throttled {
        /// The least pause, if it named one.
        retry_after: Option<Duration>,
        /// Its answer.
        #[source]
        source: BoxError,
    },
    /// The key service does not answer; try later.
    #[error("the key service is unavailable")]
    Unavailable {
        /// Its answer.
        #[source]
        source: BoxError,
    },
    /// It shall not be done, or something must be changed first: a permission, a setting.
    #[error("the codec refuses: {reason}")]
    Refused {
        /// A description of the refusal and of its remedy. Never the payload.
        reason: String,
        /// The cause, if the codec only passes an error on.
        #[source]
        source: Option<BoxError>,
    },
    /// These bytes are not what was stored here, or were never this codec's.
    #[error("the payload is damaged, or belongs to another place")]
    Damaged {
        /// The cause.
        #[source]
        source: BoxError,
    },
}

impl PayloadError {
    /// [`Unavailable`](Self::Unavailable).
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable {
            source: source.into(),
        }
    }
    /// [`Refused`](Self::Refused), without a source.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
            source: None,
        }
    }
    /// [`Damaged`](Self::Damaged).
    pub fn damaged(source: impl Into<BoxError>) -> Self {
        Self::Damaged {
            source: source.into(),
        }
    }
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
    /// The least pause before the next call, if the key service named one.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
