//! Why a transaction was cancelled: each of its items has a reason of its own.
use super::{Answer, Class, Failure, Place};
use aws_sdk_dynamodb::types::CancellationReason;
use foldstream::{BoxError, ports::RefusedKind};

impl Failure {
    /// Of a cancelled transaction, in which no condition failed. Nothing of it was applied.
    ///
    /// Waiting helps only where every reason is one that waiting cures: one that it does not cure decides.
    pub(crate) fn cancelled(
        reasons: &[CancellationReason],
        place: Place<'_>,
        source: BoxError,
    ) -> Self {
        let classes = reasons.iter().filter_map(|reason| classify(reason, place));
        let class = classes.max_by_key(rank);
        // Without any reason nobody knows what must change, and the request itself was understood.
        Self::new(class.unwrap_or(Class::Unavailable), false, place, source)
    }
}

const fn rank(class: &Class) -> u8 {
    match class {
        Class::Unavailable => 0,
        Class::Throttled(_) => 1,
        Class::Refused(..) => 2,
    }
}

/// Reasons have names of their own for what other requests fail with.
fn classify(reason: &CancellationReason, place: Place<'_>) -> Option<Class> {
    let code = match reason.code()? {
        "None" => return None,
        "TransactionConflict" => "TransactionConflictException",
        "ProvisionedThroughputExceeded" => "ProvisionedThroughputExceededException",
        "ThrottlingError" => "ThrottlingException",
        "ItemCollectionSizeLimitExceeded" => "ItemCollectionSizeLimitExceededException",
        "ValidationError" => "ValidationException",
        "AccessDenied" => "AccessDeniedException",
        "ResourceNotFound" => "ResourceNotFoundException",
        other => other,
    };
    let answer = Answer {
        code: Some(code),
        message: reason.message(),
        status: 400,
        retry_after: None,
    };
    Some(match answer.classify(place).0 {
        // The code is none that says what to do.
        Class::Refused(RefusedKind::Other, _) => {
            let said = reason.message().unwrap_or("no message");
            let reason = format!(
                "{place}: cancelled by {code} ({said}); see the cancellation reasons of TransactWriteItems"
            );
            Class::Refused(RefusedKind::Other, reason)
        }
        class => class,
    })
}
