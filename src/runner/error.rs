//! The errors of handlers, and their classes.
use crate::{
    BoxError, CodecError, FoldError, LoadError, Rejection,
    breaker::CircuitOpen,
    ports::{ControlStoreError, EventStoreError, MessageBusError, SnapshotStoreError},
    resilience::FailureClass,
};
use std::{error::Error, fmt, time::Duration};

/// The class of a failure, which says what the runner does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// May work next time: retried.
    Transient,
    /// The other side asked for a pause of at least this long: retried after it. The wait counts
    /// only towards [`RetryPolicy::max_throttle`](crate::RetryPolicy::max_throttle).
    Throttled {
        /// The least pause.
        retry_after: Duration,
    },
    /// Will never work: no retry.
    Permanent,
    /// The event itself cannot be read: no retry.
    Poison,
    /// The processor itself is broken: it halts.
    Fatal,
}

impl ErrorClass {
    /// Returns the name of the class in lower case, for labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled { .. } => "throttled",
            Self::Permanent => "permanent",
            Self::Poison => "poison",
            Self::Fatal => "fatal",
        }
    }
}

impl From<ErrorClass> for FailureClass {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Transient => Self::Transient,
            ErrorClass::Throttled { retry_after } => Self::Throttled { retry_after },
            ErrorClass::Permanent | ErrorClass::Poison | ErrorClass::Fatal => Self::Permanent,
        }
    }
}

/// A classified failure, which `?` makes from any error.
///
/// - An error of this crate anywhere in the chain keeps its class: a store that throttles and names
///   a pause is `Throttled`, a missing table is `Permanent`, and a command that an aggregate
///   [refused](Rejection) is `Permanent`.
/// - Any other error is `Transient`. Say what it is with [`ResultExt`]: `.permanent()?`,
///   `.throttled(d)?`.
///
/// It is not itself an [`Error`], or `?` could not convert from every error.
pub struct HandlerError {
    class: ErrorClass,
    source: BoxError,
    /// The name of the error's type, as it was given.
    error_type: &'static str,
}

/// The result that handlers return.
pub type HandlerResult = Result<(), HandlerError>;

impl HandlerError {
    /// Any class.
    pub fn new<E: Into<BoxError>>(class: ErrorClass, source: E) -> Self {
        Self {
            class,
            source: source.into(),
            error_type: std::any::type_name::<E>(),
        }
    }
    /// Returns the name of the error's type, as it was given.
    pub(super) const fn error_type(&self) -> &'static str {
        self.error_type
    }
    /// Retried.
    pub fn transient(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorClass::Transient, source)
    }
    /// Retried after a pause.
    pub fn throttled(retry_after: Duration, source: impl Into<BoxError>) -> Self {
        Self::new(ErrorClass::Throttled { retry_after }, source)
    }
    /// Not retried.
    pub fn permanent(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorClass::Permanent, source)
    }
    /// Unreadable.
    pub fn poison(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorClass::Poison, source)
    }
    /// Halts the processor.
    pub fn fatal(source: impl Into<BoxError>) -> Self {
        Self::new(ErrorClass::Fatal, source)
    }
    /// The event that is to be handled cannot be read: poison, unless waiting or a permission would
    /// help.
    pub(super) fn unreadable(error: CodecError) -> Self {
        use crate::PayloadError::Refused;
        match class_of(&error) {
            ErrorClass::Permanent
                if !matches!(
                    &error,
                    CodecError::Payload {
                        source: Refused { .. },
                        ..
                    }
                ) =>
            {
                Self::poison(error)
            }
            class => Self::new(class, error),
        }
    }
    /// An attempt that took longer than it may.
    pub(super) fn timed_out(timeout: Duration) -> Self {
        Self::transient(format!(
            "it took longer than the attempt timeout of {timeout:?}"
        ))
    }
    /// Its class.
    pub const fn class(&self) -> ErrorClass {
        self.class
    }
    /// Its cause.
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }
    /// Its cause, owned.
    pub fn into_source(self) -> BoxError {
        self.source
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.class, crate::chain(&*self.source))
    }
}
impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::new(class_of(&error), error)
    }
}

/// The class of the first error in the chain that knows it; `Transient` if none does.
pub(super) fn class_of(error: &(dyn Error + 'static)) -> ErrorClass {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(class) = class_of_one(e) {
            return class;
        }
        next = e.source();
    }
    ErrorClass::Transient
}

fn class_of_one(e: &(dyn Error + 'static)) -> Option<ErrorClass> {
    let by = |is_transient: bool, retry_after: Option<Duration>| {
        Some(match retry_after {
            Some(retry_after) => ErrorClass::Throttled { retry_after },
            None if is_transient => ErrorClass::Transient,
            None => ErrorClass::Permanent,
        })
    };
    if let Some(e) = e.downcast_ref::<EventStoreError>() {
        return by(e.is_transient(), e.retry_after());
    }
    if let Some(e) = e.downcast_ref::<ControlStoreError>() {
        let retry_after = match e {
            ControlStoreError::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        };
        return by(e.is_transient(), retry_after);
    }
    if let Some(e) = e.downcast_ref::<SnapshotStoreError>() {
        let retry_after = match e {
            SnapshotStoreError::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        };
        return by(e.is_transient(), retry_after);
    }
    if let Some(e) = e.downcast_ref::<MessageBusError>() {
        return by(e.is_transient(), None);
    }
    if let Some(open) = e.downcast_ref::<CircuitOpen>() {
        let retry_after = open.retry_after.unwrap_or_default();
        return Some(ErrorClass::Throttled { retry_after });
    }
    match e.downcast_ref::<LoadError>() {
        // Its source knows more.
        Some(LoadError::Store(_) | LoadError::Codec { .. }) => return None,
        Some(e) => return by(e.is_transient(), None),
        None => {}
    }
    if let Some(e) = e.downcast_ref::<CodecError>() {
        let retry_after = match e {
            CodecError::Payload { source, .. } => source.retry_after(),
            _ => None,
        };
        return by(e.is_transient(), retry_after);
    }
    // A command that the fold does not take is refused just as well.
    (e.is::<Rejection>() || e.is::<FoldError>()).then_some(ErrorClass::Permanent)
}

/// Classifies on the way to `?`.
pub trait ResultExt<T, E>: Sized {
    /// Retried.
    ///
    /// # Errors
    /// The error, classified.
    fn transient(self) -> Result<T, HandlerError>;
    /// Retried after at least this pause.
    ///
    /// # Errors
    /// The error, classified.
    fn throttled(self, retry_after: Duration) -> Result<T, HandlerError>;
    /// Not retried.
    ///
    /// # Errors
    /// The error, classified.
    fn permanent(self) -> Result<T, HandlerError>;
    /// Halts the processor.
    ///
    /// # Errors
    /// The error, classified.
    fn fatal(self) -> Result<T, HandlerError>;
    /// By a function.
    ///
    /// # Errors
    /// The error, classified.
    fn classify(self, class: impl FnOnce(&E) -> ErrorClass) -> Result<T, HandlerError>;
}

impl<T, E: Into<BoxError>> ResultExt<T, E> for Result<T, E> {
    fn transient(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::transient)
    }
    fn throttled(self, retry_after: Duration) -> Result<T, HandlerError> {
        self.map_err(|e| HandlerError::throttled(retry_after, e))
    }
    fn permanent(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::permanent)
    }
    fn fatal(self) -> Result<T, HandlerError> {
        self.map_err(HandlerError::fatal)
    }
    fn classify(self, class: impl FnOnce(&E) -> ErrorClass) -> Result<T, HandlerError> {
        self.map_err(|e| HandlerError::new(class(&e), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExecuteError, ports::RefusedKind};

    #[derive(Debug, thiserror::Error)]
    #[error("insufficient funds")]
    struct InsufficientFunds;

    #[derive(Debug, thiserror::Error)]
    #[error("the payment failed")]
    struct PaymentFailed(#[source] ExecuteError<InsufficientFunds>);

    fn class<E: Error + Send + Sync + 'static>(error: E) -> ErrorClass {
        HandlerError::from(error).class()
    }

    #[test]
    fn a_refused_command_is_permanent_however_it_is_wrapped() {
        assert_eq!(
            class(ExecuteError::Rejected(InsufficientFunds)),
            ErrorClass::Permanent
        );
        let wrapped = PaymentFailed(ExecuteError::Rejected(InsufficientFunds));
        assert_eq!(class(wrapped), ErrorClass::Permanent);
    }

    #[test]
    fn a_command_whose_events_cannot_be_stored_is_permanent() {
        let fold = FoldError {
            stream: crate::StreamId::new("account", "ann").unwrap(),
            version: crate::Version::new(1),
            name: "Deposited",
        };
        let source = "no".into();
        let encode = CodecError::Encode { source };
        for error in [ExecuteError::Fold(fold), ExecuteError::Codec(encode)] {
            assert_eq!(class(PaymentFailed(error)), ErrorClass::Permanent);
        }
    }

    #[test]
    fn errors_of_the_ports_keep_their_class_through_a_command() {
        let retry_after = Duration::from_secs(3);
        let class_of = |e| class(ExecuteError::<InsufficientFunds>::Store(e));
        let refused = EventStoreError::Refused {
            kind: RefusedKind::MissingTable,
            reason: "no table".into(),
            source: "gone".into(),
        };
        assert_eq!(class_of(refused), ErrorClass::Permanent);
        let throttled = || EventStoreError::Throttled {
            retry_after: Some(retry_after),
            source: "slow down".into(),
        };
        let kept = ErrorClass::Throttled { retry_after };
        assert_eq!(class_of(throttled()), kept);
        assert_eq!(class(LoadError::Store(throttled())), kept);
        let control = ControlStoreError::Throttled {
            retry_after: Some(retry_after),
            source: "slow down".into(),
        };
        assert_eq!(class(control), kept);
        let unavailable = EventStoreError::Unavailable {
            pending: None,
            source: "timeout".into(),
        };
        assert_eq!(class_of(unavailable), ErrorClass::Transient);
    }

    #[test]
    fn a_state_that_cannot_be_loaded_is_permanent_unless_the_store_says_otherwise() {
        let invalid = crate::StreamId::new("account", "").unwrap_err();
        let load = ExecuteError::<InsufficientFunds>::Load(invalid.into());
        assert_eq!(class(load), ErrorClass::Permanent);
    }

    #[test]
    fn an_unknown_error_is_transient() {
        assert_eq!(class(std::io::Error::other("down")), ErrorClass::Transient);
    }

    #[test]
    fn debug_shows_the_whole_chain() {
        let error = HandlerError::from(PaymentFailed(ExecuteError::Rejected(InsufficientFunds)));
        let text = format!("{error:?}");
        assert_eq!(text, "Permanent: the payment failed: insufficient funds");
    }
}
