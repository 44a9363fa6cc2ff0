//! The end of a call, and what it says about the service.
use crate::{resilience::FailureClass, runner::ErrorClass};
use std::time::Duration;

/// The end of a call, as a circuit breaker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Transient,
    Throttled {
        /// The pause that the service asked for; zero if it named none.
        retry_after: Duration,
    },
    /// The service answered, and refused this request.
    Permanent,
    /// The request could not be read, so the service was not called.
    Poison,
    /// The call was given up before its end.
    Cancelled,
}

impl From<FailureClass> for Outcome {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::Transient => Self::Transient,
            FailureClass::Throttled { retry_after } => Self::Throttled { retry_after },
            FailureClass::Permanent => Self::Permanent,
        }
    }
}

impl From<ErrorClass> for Outcome {
    /// Converts the class of a handler's error. A fatal error says that the processor is broken,
    /// which says nothing about the service.
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Transient => Self::Transient,
            ErrorClass::Throttled { retry_after } => Self::Throttled { retry_after },
            ErrorClass::Permanent => Self::Permanent,
            ErrorClass::Poison => Self::Poison,
            ErrorClass::Fatal => Self::Cancelled,
        }
    }
}

/// The statement of a probe about the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Reachable {
        /// The pause that the service asked for; zero if it asked for none.
        pause: Duration,
    },
    Failed,
    /// The probe ended without an answer of the service.
    Unknown,
}

impl Outcome {
    /// Returns what a probe says that ended like this. `slow` says that the probe took longer than
    /// the policy allows.
    pub(super) const fn verdict(self, slow: bool) -> Verdict {
        match self {
            Self::Success if slow => Verdict::Failed,
            Self::Success | Self::Permanent => Verdict::Reachable {
                pause: Duration::ZERO,
            },
            Self::Throttled { retry_after } => Verdict::Reachable { pause: retry_after },
            Self::Transient => Verdict::Failed,
            Self::Poison | Self::Cancelled => Verdict::Unknown,
        }
    }

    /// Returns true if the call counts as failed in the window, false if it counts as one that did
    /// not fail, and `None` if it does not count.
    pub(super) const fn counts_as_failed(self) -> Option<bool> {
        match self {
            Self::Success => Some(false),
            Self::Transient | Self::Throttled { .. } => Some(true),
            Self::Permanent | Self::Poison | Self::Cancelled => None,
        }
    }
}
