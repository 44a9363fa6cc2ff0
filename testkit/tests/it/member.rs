//! A member of a consumer group on the in-memory bus, as tests of topics see it.
use foldstream::ports::{Consumer, ConsumerEvent, MessageBusError, RefusedKind};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Returns the next event. If the bus never reports it, the test fails instead of hanging.
pub(crate) async fn next(consumer: &Arc<dyn Consumer>) -> ConsumerEvent {
    let event = timeout(Duration::from_secs(3600), consumer.next()).await;
    event.expect("an event").unwrap()
}

/// Returns the partitions of the next event, which must be an assignment.
pub(crate) async fn assigned(consumer: &Arc<dyn Consumer>) -> Vec<u32> {
    match next(consumer).await {
        ConsumerEvent::Assigned(assignment) => {
            let partitions = assignment.partitions.iter();
            partitions.map(|p| p.partition.partition).collect()
        }
        other => panic!("expected an assignment, found {other:?}"),
    }
}

/// Returns the kind of a refusal, or `None` for any other answer.
pub(crate) fn kind<T>(answer: Result<T, MessageBusError>) -> Option<RefusedKind> {
    match answer.err()? {
        MessageBusError::Refused { kind, .. } => Some(kind),
        _ => None,
    }
}
