//! The reasons of a cancelled transaction, of which each item has its own.
use super::{Answer, Class, Failure, Target};
use aws_sdk_dynamodb::types::CancellationReason;
use foldstream::{BoxError, ports::RefusedKind};

impl Failure {
    /// Creates the failure of a cancelled transaction in which no condition failed. Nothing of it
    /// was applied.
    ///
    /// The failure is transient only if waiting helps against every reason. Otherwise a reason that
    /// needs a change decides its class.
    pub(crate) fn cancelled(
        reasons: &[CancellationReason],
        target: Target<'_>,
        source: BoxError,
    ) -> Self {
        let classes = reasons.iter().filter_map(|reason| classify(reason, target));
        let class = classes.max_by_key(rank);
        // Without any reason the remedy is unknown. DynamoDB understood the request, so it may be
        // repeated.
        Self::new(class.unwrap_or(Class::Unavailable), false, target, source)
    }
}

const fn rank(class: &Class) -> u8 {
    match class {
        Class::Unavailable => 0,
        Class::Throttled(_) => 1,
        Class::Refused(..) => 2,
    }
}

/// Classifies a reason. Reasons have other names for the failures that single requests have too.
fn classify(reason: &CancellationReason, target: Target<'_>) -> Option<Class> {
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
    Some(match answer.classify(target).0 {
        // The code alone does not say what to do.
        Class::Refused(RefusedKind::Other, _) => {
            let said = reason.message().unwrap_or("no message");
            let reason = format!(
                "{target}: cancelled by {code} ({said}); see the cancellation reasons of TransactWriteItems"
            );
            Class::Refused(RefusedKind::Other, reason)
        }
        class => class,
    })
}
