//! The conversion of the SDK's errors into those of the ports, all in one place.
mod cancelled;

use crate::{ConfigError, incarnation::Incarnation};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_runtime_api::client::dns::ResolveDnsError;
use foldstream::{
    BoxError,
    ports::{ControlStoreError, EventStoreError, PendingAppend, RefusedKind, SnapshotStoreError},
    resilience::FailureClass,
};
use std::{error::Error, fmt, io, time::Duration};

/// The error returned when a connection cannot be established, or tables cannot be created or
/// changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DynamoDbError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// DynamoDB throttles requests. Wait before the next one.
    #[error("DynamoDB throttles")]
    Throttled {
        /// The least pause before the next request, if DynamoDB named one.
        retry_after: Option<Duration>,
        /// The answer of DynamoDB.
        #[source]
        source: BoxError,
    },
    /// DynamoDB cannot be reached, is too busy, or did not answer in time.
    #[error("DynamoDB is unavailable")]
    Unavailable {
        /// The failure, with the request that failed.
        #[source]
        source: BoxError,
    },
    /// DynamoDB refuses the request until something is changed: a table, credentials or a
    /// permission.
    #[error("DynamoDB refuses: {reason}")]
    Refused {
        /// The kind of refusal, which says what must change.
        kind: RefusedKind,
        /// A description of the refusal and of its remedy.
        reason: String,
        /// The answer of DynamoDB.
        #[source]
        source: BoxError,
    },
    /// The control table has no row `meta/format`.
    #[error(
        "table {table} has no row meta/format: run create_tables, which also completes tables made by other means"
    )]
    NoFormat {
        /// The name of the control table.
        table: String,
    },
    /// The row `meta/format` differs from the settings of this process.
    #[error(
        "table {table} was made with {field} {stored}, this process has {configured}: {remedy}"
    )]
    FormatMismatch {
        /// The name of the control table.
        table: String,
        /// The setting that differs.
        field: &'static str,
        /// The value in the row.
        stored: String,
        /// The value in this process.
        configured: String,
        /// The remedy, as a sentence for the operator.
        remedy: &'static str,
    },
    /// A table of that name exists, but is not of the form that the stores need.
    #[error("table {table} cannot be used: {reason}")]
    TableMismatch {
        /// The name of the table.
        table: String,
        /// A description of the difference and of its remedy.
        reason: String,
    },
    /// Another region may write to the table, and conditions hold only within a region.
    #[error(
        "table {table} has asynchronous replicas in {}: of two regions that write the same stream the later one silently \
         wins. Let only this region write and set DYNAMODB_REPLICATION=single-writing-region \
         (Replication::SingleWritingRegion), or make it a global table with multi-region strong consistency", regions.join(", ")
    )]
    AsynchronousReplicas {
        /// The name of the table.
        table: String,
        /// The regions of its replicas.
        regions: Vec<String>,
    },
    /// A table did not become active in time. It may still do so later.
    #[error("table {table} is still {status} after {waited:?}: {remedy}")]
    NotActive {
        /// The name of the table.
        table: String,
        /// The last status of the table.
        status: String,
        /// The time spent waiting for the table.
        waited: Duration,
        /// The remedy, as a sentence for the operator.
        remedy: &'static str,
    },
}
impl DynamoDbError {
    /// Returns true if the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Throttled { .. } | Self::Unavailable { .. } | Self::NotActive { .. }
        )
    }
}

/// The operation, the table and the endpoint of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) operation: &'static str,
    pub(crate) table: &'a str,
    pub(crate) endpoint: &'a str,
    /// The identity of the events table, if the request is about that table.
    pub(crate) incarnation: Option<&'a Incarnation>,
}
impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            table,
            endpoint,
            ..
        } = self;
        write!(f, "{operation} on table {table} at {endpoint}")
    }
}

/// The SDK's error under a sentence that names the request.
#[derive(Debug, thiserror::Error)]
#[error("{target} failed")]
struct Failed {
    target: String,
    #[source]
    source: BoxError,
}

/// A failed request in the adapter's own terms, before it becomes the error of a port.
#[derive(Debug)]
pub(crate) struct Failure {
    class: Class,
    /// True if the request may have been applied although it failed.
    maybe_applied: bool,
    source: BoxError,
}

#[derive(Clone, Debug, PartialEq)]
enum Class {
    Throttled(Option<Duration>),
    Unavailable,
    Refused(RefusedKind, String),
}

impl Class {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Throttled(after) => FailureClass::Throttled {
                retry_after: after.unwrap_or_default(),
            },
            Self::Unavailable => FailureClass::Transient,
            Self::Refused(..) => FailureClass::Permanent,
        }
    }
}

/// Returns the class of the failure, which decides if the request is repeated.
pub(crate) fn failure_class<E>(
    error: &SdkError<E, HttpResponse>,
    target: Target<'_>,
) -> FailureClass
where
    E: ProvideErrorMetadata + Error + 'static,
{
    classify(error, target).0.failure_class()
}

impl Failure {
    /// Classifies an error of the SDK.
    pub(crate) fn of<E>(error: SdkError<E, HttpResponse>, target: Target<'_>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (class, maybe_applied) = classify(&error, target);
        // Only the error is kept, never the raw response: it may hold items, and `Debug` would
        // print them.
        let source: BoxError = match error {
            SdkError::ServiceError(service) => Box::new(service.into_err()),
            other => other.into_source().unwrap_or_else(|e| e.to_string().into()),
        };
        Self::new(class, maybe_applied, target, source)
    }

    fn new(class: Class, maybe_applied: bool, target: Target<'_>, source: BoxError) -> Self {
        if let (Class::Refused(RefusedKind::MissingTable, _), Some(table)) =
            (&class, target.incarnation)
        {
            // All failures pass here before a caller sees them. A caller who asks for the
            // incarnation after this error therefore sees a new number.
            table.missing();
        }
        let target = target.to_string();
        Self {
            class,
            maybe_applied,
            source: Box::new(Failed { target, source }),
        }
    }
    /// Creates the failure of a request whose answers left out the same keys again and again.
    pub(crate) fn unprocessed(target: Target<'_>) -> Self {
        let source = "some keys were left unprocessed by every attempt".into();
        Self::new(Class::Throttled(None), false, target, source)
    }
    /// Creates the failure of an answer that DynamoDB cannot give, or of an item that this adapter
    /// did not write.
    pub(crate) fn incompatible(target: Target<'_>, reason: String) -> Self {
        let class = Class::Refused(RefusedKind::Incompatible, reason.clone());
        Self::new(class, false, target, reason.into())
    }

    pub(crate) const fn maybe_applied(&self) -> bool {
        self.maybe_applied
    }
    pub(crate) fn failure_class(&self) -> FailureClass {
        self.class.failure_class()
    }
    pub(crate) fn is_missing_table(&self) -> bool {
        matches!(self.class, Class::Refused(RefusedKind::MissingTable, _))
    }

    /// Returns the failure with its request, without its class.
    pub(crate) fn into_source(self) -> BoxError {
        self.source
    }

    /// Returns the port's error for a call that writes no commit.
    pub(crate) fn into_event_store(self) -> EventStoreError {
        let Self { class, source, .. } = self;
        match class {
            Class::Throttled(retry_after) => EventStoreError::Throttled {
                retry_after,
                source,
            },
            Class::Unavailable => EventStoreError::Unavailable {
                pending: None,
                source,
            },
            Class::Refused(kind, reason) => EventStoreError::Refused {
                kind,
                reason,
                source,
            },
        }
    }
    /// Returns the port's error for an append that was sent before, so that its outcome is unknown
    /// whatever this failure is.
    pub(crate) fn into_pending(self, pending: PendingAppend) -> EventStoreError {
        EventStoreError::Unavailable {
            pending: Some(pending),
            source: self.source,
        }
    }
    pub(crate) fn into_snapshot_store(self) -> SnapshotStoreError {
        let Self { class, source, .. } = self;
        match class {
            Class::Throttled(retry_after) => SnapshotStoreError::Throttled {
                retry_after,
                source,
            },
            Class::Unavailable => SnapshotStoreError::Unavailable { source },
            Class::Refused(kind, reason) => SnapshotStoreError::Refused {
                kind,
                reason,
                source,
            },
        }
    }
    pub(crate) fn into_control_store(self) -> ControlStoreError {
        let Self { class, source, .. } = self;
        match class {
            Class::Throttled(retry_after) => ControlStoreError::Throttled {
                retry_after,
                source,
            },
            Class::Unavailable => ControlStoreError::Unavailable { source },
            Class::Refused(kind, reason) => ControlStoreError::Refused {
                kind,
                reason,
                source,
            },
        }
    }
}
impl From<Failure> for DynamoDbError {
    fn from(failure: Failure) -> Self {
        let Failure { class, source, .. } = failure;
        match class {
            Class::Throttled(retry_after) => Self::Throttled {
                retry_after,
                source,
            },
            Class::Unavailable => Self::Unavailable { source },
            Class::Refused(kind, reason) => Self::Refused {
                kind,
                reason,
                source,
            },
        }
    }
}

/// Returns the class of an error, and true if the request may have been applied nevertheless.
fn classify<E>(error: &SdkError<E, HttpResponse>, target: Target<'_>) -> (Class, bool)
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => (
            credentials_class(error, target).unwrap_or_else(|| {
                let reason = format!(
                    "{target}: the request cannot be built; check AWS_REGION and DYNAMODB_URL"
                );
                Class::Refused(RefusedKind::Other, reason)
            }),
            false,
        ),
        SdkError::DispatchFailure(failure) => match credentials_class(error, target) {
            Some(class) => (class, false),
            None => (Class::Unavailable, !failure.is_user() && !never_sent(error)),
        },
        SdkError::ServiceError(service) => {
            let answer = Answer {
                code: service.err().code(),
                message: service.err().message(),
                status: service.raw().status().as_u16(),
                retry_after: retry_after(service.raw()),
            };
            answer.classify(target)
        }
        // A timeout, an answer that breaks off, or a kind of error that a newer SDK adds.
        _ => (Class::Unavailable, true),
    }
}

/// The code, message and status that DynamoDB answered.
#[derive(Debug)]
struct Answer<'a> {
    code: Option<&'a str>,
    message: Option<&'a str>,
    status: u16,
    retry_after: Option<Duration>,
}

impl Answer<'_> {
    fn classify(&self, target: Target<'_>) -> (Class, bool) {
        let refused = |kind, todo| {
            let said = self.message.or(self.code).unwrap_or("no reason given");
            let reason = format!("{target}: {said}; {todo}");
            (Class::Refused(kind, reason), false)
        };
        if let Some((kind, todo)) = self.refusal() {
            return refused(kind, todo);
        }
        match self.code.unwrap_or_default() {
            "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "Throttling"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "LimitExceededException" => (Class::Throttled(self.retry_after), false),
            // The request was certainly not applied: another transaction or region holds the item.
            "TransactionConflictException"
            | "TransactionInProgressException"
            | "ReplicatedWriteConflictException"
            // Every attempt has a token of its own, so the next attempt does not clash with this
            // one.
            | "IdempotentParameterMismatchException"
            | "ResourceInUseException" => (Class::Unavailable, false),
            _ => match self.status {
                429 => (Class::Throttled(self.retry_after), false),
                // The request may have been carried out before the server failed.
                500.. => (Class::Unavailable, true),
                401 => refused(RefusedKind::Credentials, "check the credentials"),
                403 => refused(RefusedKind::Permission, "allow this action to the role"),
                _ => refused(
                    RefusedKind::Other,
                    "check that DYNAMODB_URL is a DynamoDB endpoint",
                ),
            },
        }
    }

    /// Returns the kind of refusal and its remedy, if the code alone says that a retry never helps.
    fn refusal(&self) -> Option<(RefusedKind, &'static str)> {
        let no_index = || self.message.is_some_and(|m| m.contains("specified index"));
        Some(match self.code? {
            "ResourceNotFoundException" | "TableNotFoundException" => (
                RefusedKind::MissingTable,
                "run create_tables, or check EVENTSTORE_TABLE_NAME, DYNAMODB_PREFIX and AWS_REGION",
            ),
            "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" => (
                RefusedKind::Credentials,
                "the credentials have expired: get new ones (check also this machine's clock)",
            ),
            "UnrecognizedClientException"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "InvalidClientTokenId"
            | "IncompleteSignatureException"
            | "MissingAuthenticationTokenException"
            | "MissingAuthenticationToken" => (
                RefusedKind::Credentials,
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile or role in use",
            ),
            "AccessDeniedException" | "AccessDenied" | "KMSAccessDeniedException" => (
                RefusedKind::Permission,
                "allow this action to the role (the crate's documentation lists them)",
            ),
            "ValidationException" if no_index() => (
                RefusedKind::Incompatible,
                "the table was made without this index: run create_tables, which checks it against the row meta/format",
            ),
            "UnknownOperationException" => (
                RefusedKind::Unsupported,
                "this server does not have the operation: leave the option unset",
            ),
            "ItemCollectionSizeLimitExceededException" => (
                RefusedKind::Incompatible,
                "a local secondary index limits each stream to 10 GB: make the table without one",
            ),
            "ValidationException" | "SerializationException" => (
                RefusedKind::Validation,
                "DynamoDB calls the request malformed",
            ),
            _ => return None,
        })
    }
}

/// Returns the class of missing or unusable credentials, which the SDK reports as a failure to
/// dispatch.
fn credentials_class(error: &(dyn Error + 'static), target: Target<'_>) -> Option<Class> {
    let found = chain(error).find_map(|e| e.downcast_ref::<CredentialsError>());
    // A client without any provider fails with a private type of the SDK.
    let no_provider = || chain(error).any(|e| e.to_string().contains("no identity resolver"));
    Some(match found {
        None if !no_provider() => return None,
        Some(CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_)) => {
            Class::Unavailable
        }
        _ => Class::Refused(
            RefusedKind::Credentials,
            format!(
                "{target}: no usable credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
            ),
        ),
    })
}

/// Returns true if no connection was established, so that nothing can have been applied.
///
/// That is so if the name did not resolve, or if the connection was refused, not established in
/// time, or not secured. The HTTP client of the SDK reports it. For other clients only the system's
/// "connection refused" is certain: a host that becomes unreachable may end a connection that has
/// already carried the request.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|e| {
        let is_refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        e.downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(hyper_util::client::legacy::Error::is_connect)
            || e.is::<ResolveDnsError>()
            || e.downcast_ref::<io::Error>().is_some_and(is_refused)
    })
}

fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    std::iter::successors(Some(error), |&e| e.source())
}

/// Returns the pause that the service asks for: milliseconds in its own header, or seconds in the
/// standard one.
fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let number = |name| response.headers().get(name)?.trim().parse::<u64>().ok();
    number("x-amz-retry-after")
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target<'static> = Target {
        operation: "PutItem",
        table: "events",
        endpoint: "http://x",
        incarnation: None,
    };

    fn answer(code: &str, status: u16, message: &str) -> (Class, bool) {
        let (code, message) = (Some(code), Some(message));
        let retry_after = Some(Duration::from_millis(7));
        Answer {
            code,
            message,
            status,
            retry_after,
        }
        .classify(TARGET)
    }
    fn kind(code: &str) -> Option<RefusedKind> {
        match answer(code, 400, "m").0 {
            Class::Refused(kind, _) => Some(kind),
            _ => None,
        }
    }

    #[test]
    fn throttling_keeps_the_pause_and_was_not_applied() {
        for code in [
            "ProvisionedThroughputExceededException",
            "ThrottlingException",
            "RequestLimitExceeded",
        ] {
            let expected = Class::Throttled(Some(Duration::from_millis(7)));
            assert_eq!(answer(code, 400, ""), (expected, false), "{code}");
        }
    }

    #[test]
    fn only_a_server_error_may_have_been_applied() {
        for code in ["InternalServerError", "ServiceUnavailable", ""] {
            assert_eq!(answer(code, 500, ""), (Class::Unavailable, true), "{code}");
        }
        for code in [
            "TransactionConflictException",
            "TransactionInProgressException",
        ] {
            assert_eq!(answer(code, 400, ""), (Class::Unavailable, false), "{code}");
        }
    }

    #[test]
    fn refusals_have_the_kind_that_says_what_to_change() {
        for (code, expected) in [
            ("ResourceNotFoundException", RefusedKind::MissingTable),
            ("ExpiredTokenException", RefusedKind::Credentials),
            ("UnrecognizedClientException", RefusedKind::Credentials),
            ("InvalidSignatureException", RefusedKind::Credentials),
            ("AccessDeniedException", RefusedKind::Permission),
            ("ValidationException", RefusedKind::Validation),
            ("UnknownOperationException", RefusedKind::Unsupported),
            ("SomethingNew", RefusedKind::Other),
        ] {
            assert_eq!(kind(code), Some(expected), "{code}");
        }
        let message = "The table does not have the specified index: unpublished";
        assert!(matches!(
            answer("ValidationException", 400, message).0,
            Class::Refused(RefusedKind::Incompatible, _)
        ));
    }

    #[test]
    fn a_refused_connection_was_never_sent() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(never_sent(&refused));
        assert!(never_sent(&ResolveDnsError::new("no such host")));
        // Each of these may end a connection that has already carried the request.
        for kind in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::TimedOut,
        ] {
            assert!(!never_sent(&io::Error::from(kind)), "{kind:?}");
        }
    }
}
