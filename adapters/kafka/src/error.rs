//! The conversion of librdkafka's errors into those of the port, all in one place.
use crate::worked_before::{About, Access, Uses, WorkedBefore};
use foldstream::{
    BoxError,
    ports::{Message, MessageBusError, RefusedKind},
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The class of an error, by what a caller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Waiting may help, since brokers or the client are not ready now.
    Unavailable,
    /// The record is too large, or the batch that holds only this record.
    TooLarge,
    /// The group is rebalancing, and it will be known soon if an assignment still stands.
    Rebalancing,
    /// The group has expelled this member, and all its assignments have ended, also those that it
    /// still believes in.
    Expelled,
    /// The fetch position is not in the partition.
    OutOfRange,
    /// Waiting does not help, since something must change first.
    Refused(RefusedKind),
}

/// Returns the class of an error code, no matter which call returned it.
pub(crate) fn class(code: Code) -> Class {
    use RefusedKind as Kind;
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Class::TooLarge,
        Code::RebalanceInProgress
        | Code::IllegalGeneration
        | Code::StaleMemberEpoch
        | Code::AssignmentLost => Class::Rebalancing,
        Code::UnknownMemberId | Code::FencedMemberEpoch => Class::Expelled,
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => Class::OutOfRange,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId => {
            Class::Refused(Kind::MissingTopic)
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::SSL
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::DelegationTokenExpired
        | Code::DelegationTokenNotFound => Class::Refused(Kind::Credentials),
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::DelegationTokenAuthorizationFailed
        | Code::SecurityDisabled => Class::Refused(Kind::Permission),
        Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidReplicaAssignment
        | Code::InvalidConfig
        | Code::InvalidRequest
        | Code::InvalidTimestamp
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout
        | Code::InvalidArgument
        | Code::InvalidRecord
        | Code::InconsistentGroupProtocol
        | Code::NonEmptyGroup
        | Code::TopicAlreadyExists
        | Code::PolicyViolation => Class::Refused(Kind::Validation),
        Code::FencedInstanceId | Code::UnreleasedInstanceId => {
            Class::Refused(Kind::InstanceIdInUse)
        }
        Code::UnsupportedFeature
        | Code::UnsupportedVersion
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::NotImplemented => Class::Refused(Kind::Unsupported),
        code if is_transient(code) => Class::Unavailable,
        _ => Class::Refused(Kind::Other),
    }
}

fn is_transient(code: Code) -> bool {
    matches!(
        code,
        // In the client: no answer in time, or the client is being closed.
        Code::BrokerTransportFailure
            | Code::Resolve
            | Code::AllBrokersDown
            | Code::MessageTimedOut
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::QueueFull
            | Code::ISRInsufficient
            | Code::WaitingForCoordinator
            | Code::InProgress
            | Code::PreviousInProgress
            | Code::WaitCache
            | Code::Interrupted
            | Code::Retry
            | Code::Outdated
            | Code::Partial
            | Code::NodeUpdate
            | Code::BrokerDestroy
            | Code::DestroyBroker
            | Code::PurgeQueue
            | Code::PurgeInflight
            // After a partition was added, until every broker knows it.
            | Code::UnknownPartition
            // The producer is replaced. The records that it had in flight may be stored or not.
            | Code::Fatal
            | Code::GaplessGuarantee
            | Code::OutOfOrderSequenceNumber
            | Code::DuplicateSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            // Another record of the same batch was refused.
            | Code::InvalidDifferentRecord
            // A checksum that does not match: the record was damaged on its way.
            | Code::BadMessage
            | Code::InvalidMessage
            // At the brokers: elections, loading, restarts, quotas.
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::RequestTimedOut
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::StaleControllerEpoch
            | Code::NetworkException
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::NotController
            | Code::KafkaStorageError
            | Code::ReassignmentInProgress
            | Code::FetchSessionIdNotFound
            | Code::InvalidFetchSessionEpoch
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::StaleBrokerEpoch
            | Code::OffsetNotAvailable
            | Code::PreferredLeaderNotAvailable
            | Code::EligibleLeadersNotAvailable
            | Code::ListenerNotFound
            | Code::RebootstrapRequired
            | Code::UnstableOffsetCommit
            | Code::ThrottlingQuotaExceeded
    )
}

/// Returns the subject of a refusal that may be an outage if it has worked before.
fn about(kind: RefusedKind, code: Option<Code>) -> Option<About> {
    match kind {
        RefusedKind::MissingTopic => Some(About::Existence),
        RefusedKind::Credentials => Some(About::Login),
        RefusedKind::Permission => Some(match code {
            Some(Code::TopicAuthorizationFailed) => About::TopicAccess,
            Some(Code::GroupAuthorizationFailed) => About::Group,
            _ => About::Cluster,
        }),
        _ => None,
    }
}

/// Returns the code inside an error. The accessor of rdkafka leaves out errors of administration.
pub(crate) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// The last problem that a client reported about its brokers, which a later timeout does not
/// mention.
#[derive(Clone, Debug)]
struct Problem {
    code: Option<Code>,
    text: String,
    at: Instant,
}

impl Problem {
    fn is_refusal(&self) -> bool {
        matches!(self.code.map(class), Some(Class::Refused(_)))
    }
}

/// Converts the errors of one client into those of the port, and remembers why its brokers cannot
/// be reached.
#[derive(Debug)]
pub(crate) struct Errors {
    brokers: Arc<str>,
    worked_before: Arc<WorkedBefore>,
    problem: Mutex<Option<Problem>>,
}

/// The time for which a failed login explains a timeout. It covers several of librdkafka's
/// reconnect attempts, which are at most 10 s apart.
const PROBLEM_AGE: Duration = Duration::from_secs(60);

/// The source of every error of this adapter: the action, its topic or group, and the client's own
/// words.
#[derive(Debug, thiserror::Error)]
#[error("{doing} at the Kafka brokers {brokers}{heard}{outage}")]
struct KafkaFailure {
    doing: String,
    brokers: Arc<str>,
    heard: String,
    outage: String,
    #[source]
    source: KafkaError,
}

impl Errors {
    pub(crate) fn new(brokers: &str, worked_before: Arc<WorkedBefore>) -> Self {
        Self {
            brokers: brokers.into(),
            worked_before,
            problem: Mutex::new(None),
        }
    }

    /// Returns the converter for another client of the same bus.
    pub(crate) fn of_another_client(&self) -> Self {
        Self {
            brokers: Arc::clone(&self.brokers),
            worked_before: Arc::clone(&self.worked_before),
            problem: Mutex::new(None),
        }
    }

    pub(crate) fn worked_before(&self) -> &WorkedBefore {
        &self.worked_before
    }

    /// Remembers a problem that the client reported about its connections.
    ///
    /// After each refused login the client also reports that the broker is down, which explains
    /// less. A refusal is therefore replaced by another refusal only.
    pub(crate) fn heard(&self, error: &KafkaError, text: &str) {
        let new = Problem {
            code: code(error),
            text: text.to_owned(),
            at: Instant::now(),
        };
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let explains_more = problem.as_ref().is_some_and(|old| {
            old.is_refusal() && old.at.elapsed() < PROBLEM_AGE && !new.is_refusal()
        });
        if !explains_more {
            *problem = Some(new);
        }
    }

    /// Records that a call succeeded, and forgets the reported problem.
    pub(crate) fn succeeded(&self, uses: Uses<'_>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.worked_before.succeeded(uses);
    }

    fn last_problem(&self) -> Option<Problem> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.clone().filter(|p| p.at.elapsed() < PROBLEM_AGE)
    }

    /// Converts the error of a call. `doing` names the action, and `uses` names its topics and
    /// group.
    pub(crate) fn failed(
        &self,
        doing: impl fmt::Display,
        uses: Uses<'_>,
        error: KafkaError,
    ) -> MessageBusError {
        let mut cause = code(&error);
        let mut class = cause.map_or(Class::Refused(RefusedKind::Other), class);
        match error {
            KafkaError::Canceled => class = Class::Unavailable,
            // Properties that contradict each other, which only the creation of a client detects.
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => {
                class = Class::Refused(RefusedKind::Validation);
            }
            _ => {}
        }
        let problem = self.last_problem();
        // A client whose login is refused reports that separately, and lets its requests time out.
        let login = problem.as_ref().and_then(|p| p.code);
        if let (Class::Unavailable, Some(Class::Refused(kind))) = (class, login.map(self::class)) {
            (class, cause) = (Class::Refused(kind), login);
        }
        let mut outage = String::new();
        if let Class::Refused(kind) = class
            && let Some(about) = about(kind, cause)
            && self.worked_before.refused(about, uses)
        {
            class = Class::Unavailable;
            let patience = self.worked_before.patience();
            outage = format!("; it has worked before, so it counts as an outage for {patience:?}");
        }
        let heard = problem.map_or_else(String::new, |p| format!(": {}", p.text));
        let source: BoxError = Box::new(KafkaFailure {
            doing: doing.to_string(),
            brokers: Arc::clone(&self.brokers),
            heard,
            outage,
            source: error,
        });
        match class {
            Class::Unavailable | Class::Rebalancing | Class::Expelled => {
                MessageBusError::Unavailable { source }
            }
            Class::Refused(kind) => MessageBusError::Refused {
                kind,
                reason: format!("{doing}: {}", remedy(kind)),
                source,
            },
            Class::TooLarge | Class::OutOfRange => MessageBusError::Refused {
                kind: RefusedKind::Other,
                reason: doing.to_string(),
                source,
            },
        }
    }

    /// Converts the error of a publish.
    pub(crate) fn publish_failed(&self, message: &Message, error: KafkaError) -> MessageBusError {
        if code(&error).map(class) == Some(Class::TooLarge) {
            return MessageBusError::TooLarge {
                topic: Arc::clone(&message.topic),
                bytes: message.size(),
                // The message is within the limits that were known, so the topic has another one.
                limit: None,
            };
        }
        let doing = format_args!("publishing to {}", message.topic);
        self.failed(doing, Uses::topic(Access::Write, &message.topic), error)
    }
}

/// Returns the remedy for a refusal, as a sentence for the operator.
fn remedy(kind: RefusedKind) -> &'static str {
    match kind {
        RefusedKind::MissingTopic => {
            "the topic does not exist; create it (KafkaMessageBus::create_topic or kafka-topics.sh --create), or correct its name"
        }
        RefusedKind::Credentials => {
            "the brokers do not accept the login; check security.protocol, sasl.* and ssl.*"
        }
        RefusedKind::Permission => {
            "the principal lacks a permission; grant it by an ACL (kafka-acls.sh --add)"
        }
        RefusedKind::InstanceIdInUse => {
            "another member of the group has the same instance id; give each process an id of its own"
        }
        RefusedKind::Unsupported => "the brokers do not support this; see the tested versions",
        RefusedKind::Validation => "it is called invalid; see the source of this error",
        _ => "see the source of this error",
    }
}

/// Creates the error of a request that is invalid before anything is sent.
pub(crate) fn invalid(reason: impl Into<String>) -> MessageBusError {
    MessageBusError::Invalid {
        reason: reason.into(),
    }
}

/// Creates the error of a task of this adapter that ended without an answer.
pub(crate) fn task_failed(error: tokio::task::JoinError) -> MessageBusError {
    MessageBusError::Unavailable {
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream::Timestamp;

    fn errors() -> Errors {
        let patience = Duration::from_secs(60);
        Errors::new("b:1", Arc::new(WorkedBefore::new(patience)))
    }

    fn failed(code: Code) -> MessageBusError {
        errors().failed("asking", Uses::nothing(), KafkaError::MetadataFetch(code))
    }

    fn kind(error: &MessageBusError) -> Option<RefusedKind> {
        match error {
            MessageBusError::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    #[test]
    fn what_waiting_cures_is_unavailable_and_names_the_brokers() {
        for code in [
            Code::BrokerTransportFailure,
            Code::AllBrokersDown,
            Code::MessageTimedOut,
            Code::NotLeaderForPartition,
            Code::NotEnoughReplicas,
            Code::CoordinatorNotAvailable,
            Code::Fatal,
        ] {
            let error = failed(code);
            assert!(error.is_transient(), "{code:?}: {error}");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("b:1"), "{source}");
        }
    }

    #[test]
    fn a_refused_login_is_not_hidden_by_the_report_that_the_brokers_are_down() {
        let errors = errors();
        let heard = |code, text| errors.heard(&KafkaError::Global(code), text);
        heard(Code::Authentication, "invalid credentials");
        heard(Code::AllBrokersDown, "1/1 brokers are down");
        let timed_out = KafkaError::MetadataFetch(Code::OperationTimedOut);
        let error = errors.failed("asking", Uses::nothing(), timed_out);
        assert_eq!(kind(&error), Some(RefusedKind::Credentials), "{error:?}");
        // A later success shows that the login is accepted.
        errors.succeeded(Uses::nothing());
        heard(Code::AllBrokersDown, "1/1 brokers are down");
        let timed_out = KafkaError::MetadataFetch(Code::OperationTimedOut);
        assert!(
            errors
                .failed("asking", Uses::nothing(), timed_out)
                .is_transient()
        );
    }

    #[test]
    fn an_error_that_an_operator_must_mend_is_refused_by_its_kind() {
        for (code, expected) in [
            (Code::UnknownTopicOrPartition, RefusedKind::MissingTopic),
            (Code::UnknownTopic, RefusedKind::MissingTopic),
            (Code::Authentication, RefusedKind::Credentials),
            (Code::SaslAuthenticationFailed, RefusedKind::Credentials),
            (Code::TopicAuthorizationFailed, RefusedKind::Permission),
            (Code::GroupAuthorizationFailed, RefusedKind::Permission),
            (Code::NonEmptyGroup, RefusedKind::Validation),
            (Code::UnsupportedFeature, RefusedKind::Unsupported),
        ] {
            assert_eq!(kind(&failed(code)), Some(expected), "{code:?}");
        }
    }

    #[test]
    fn a_timeout_after_a_failed_login_is_refused_for_its_credentials() {
        let errors = errors();
        let failed = || {
            let timeout = KafkaError::MetadataFetch(Code::OperationTimedOut);
            errors.failed("asking", Uses::nothing(), timeout)
        };
        errors.heard(&KafkaError::Global(Code::Authentication), "SASL says no");
        let error = failed();
        assert_eq!(kind(&error), Some(RefusedKind::Credentials));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("SASL says no"), "{source}");
        errors.succeeded(Uses::nothing());
        assert!(failed().is_transient());
    }

    #[test]
    fn a_login_that_has_worked_before_is_an_outage() {
        let errors = errors();
        errors.succeeded(Uses::nothing());
        errors.heard(&KafkaError::Global(Code::Authentication), "SASL says no");
        let timeout = KafkaError::MetadataFetch(Code::OperationTimedOut);
        let error = errors.failed("asking", Uses::nothing(), timeout);
        assert!(error.is_transient(), "{error:?}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            source.contains("SASL says no") && source.contains("worked before"),
            "{source}"
        );
    }

    #[test]
    fn every_answer_that_a_restarting_broker_may_give_is_an_outage_where_it_has_worked_before() {
        let topics = ["t".into()];
        let uses = Uses::topics(Access::Write, &topics).with_group("g");
        for code in [
            Code::UnknownTopicOrPartition,
            Code::UnknownTopic,
            Code::UnknownTopicId,
            Code::TopicAuthorizationFailed,
            Code::GroupAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
            Code::Authentication,
            Code::SaslAuthenticationFailed,
            Code::SSL,
        ] {
            let errors = errors();
            let failed = || errors.failed("asking", uses, KafkaError::MetadataFetch(code));
            assert!(!failed().is_transient(), "{code:?} on first contact");
            errors.succeeded(uses);
            assert!(failed().is_transient(), "{code:?}");
        }
    }

    #[test]
    fn a_record_that_the_brokers_find_too_large_is_too_large() {
        let message = Message::new("t", Timestamp::now())
            .with_key("k")
            .with_value(vec![0; 10]);
        let error = KafkaError::MessageProduction(Code::MessageSizeTooLarge);
        let error = errors().publish_failed(&message, error);
        assert!(
            matches!(
                error,
                MessageBusError::TooLarge {
                    bytes: 11,
                    limit: None,
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
        let error = errors().failed("looking for the topic orders", Uses::nothing(), missing);
        assert_eq!(kind(&error), Some(RefusedKind::MissingTopic));
        let text = error.to_string();
        assert!(
            text.contains("orders") && text.contains("create it"),
            "{text}"
        );
    }
}
