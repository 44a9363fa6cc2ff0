//! Appends to several streams: one transaction, and the outcome of each of its answers.
use crate::support::{Call, Fate, Server, append_of, chain, event, get_raw, read_all, stream};
use foldstream::{
    CommitId, StreamHead, Version,
    ports::{
        Append, AppendAll, AppendOutcome, Capabilities, EventData, EventStore, EventStoreError,
        RefusedKind,
    },
};
use serde_json::{Value, json};

type Outcome = AppendOutcome<Vec<StreamHead>>;

/// Returns an append of two commits, on streams of their own.
fn two() -> AppendAll {
    let one = || append_of(&StreamHead::empty(stream()), 1);
    AppendAll::new(vec![one(), one()])
}
fn appended(all: &AppendAll) -> Outcome {
    AppendOutcome::Appended(all.commits.iter().map(Append::head_after).collect())
}
fn repeated(all: &AppendAll) -> Outcome {
    AppendOutcome::Repeated(all.commits.iter().map(Append::to_commit).collect())
}
async fn assert_stored(server: &Server, all: &AppendAll) {
    let store = server.stores().await.event_store();
    for append in &all.commits {
        let stored = read_all(&store, append.head.stream()).await;
        assert_eq!(stored, [append.to_commit()]);
    }
}
fn conflict(outcome: Outcome) -> foldstream::VersionConflict {
    match outcome {
        AppendOutcome::Conflict(conflict) => conflict,
        other => panic!("{other:?}"),
    }
}
fn is_write(call: &Call) -> bool {
    call.operation == "TransactWriteItems"
}

/// Returns an answer of DynamoDB that cancels a transaction, with one reason per item.
fn cancelled(reasons: &[Value]) -> Fate {
    Fate::Answer(
        400,
        json!({
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "Message": "Transaction cancelled, please refer cancellation reasons for specific reasons",
            "CancellationReasons": reasons,
        })
        .to_string(),
    )
}
fn reason(code: &str) -> Value {
    match code {
        "None" => json!({ "Code": code }),
        _ => json!({ "Code": code, "Message": format!("{code} happened") }),
    }
}

#[tokio::test]
async fn several_streams_are_one_transaction_with_checks_of_those_only_read() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, checked) = (stores.event_store(), StreamHead::empty(stream()));
    let all = two().with_unchanged(vec![checked.clone()]);
    assert_eq!(store.append_all(&all).await.unwrap(), appended(&all));
    assert_eq!(wire.operations(), ["TransactWriteItems"]);
    let body = &wire.calls()[0].body;
    let check = &body["TransactItems"][2]["ConditionCheck"];
    assert_eq!(check["Key"]["pk"]["S"], checked.stream().as_str());
    assert_eq!(check["Key"]["sk"]["N"], "1");
    assert_eq!(check["ConditionExpression"], "attribute_not_exists(pk)");
    assert!(
        body["ClientRequestToken"]
            .as_str()
            .is_some_and(|t| t.len() <= 36)
    );
    assert_stored(&server, &all).await;
}

/// DynamoDB answers a known token without looking at conditions, and refuses it with other content.
#[tokio::test]
async fn every_request_has_a_token_of_its_own() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, all) = (stores.event_store(), two());
    assert_eq!(store.append_all(&all).await.unwrap(), appended(&all));
    assert_eq!(store.append_all(&all).await.unwrap(), repeated(&all));
    // The same ids have other content here.
    let mut other = all.clone();
    other.commits[1].events = vec![event("7")].into();
    assert_eq!(store.append_all(&other).await.unwrap(), repeated(&all));
    let mut tokens: Vec<_> = wire
        .calls()
        .iter()
        .filter(|c| is_write(c))
        .map(|c| c.body["ClientRequestToken"].to_string())
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
}

#[tokio::test]
async fn my_id_in_a_reason_is_a_repeat_and_any_other_a_conflict() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, all) = (stores.event_store(), two());
    let _ = store.append_all(&all).await.unwrap();
    assert_eq!(store.append_all(&all).await.unwrap(), repeated(&all));
    let fresh = append_of(&StreamHead::empty(stream()), 1);
    let stale = append_of(&all.commits[1].head, 1);
    let both = AppendAll::new(vec![fresh.clone(), stale.clone()]);
    let conflict = conflict(store.append_all(&both).await.unwrap());
    assert_eq!(&conflict.stream, stale.head.stream());
    assert_eq!(conflict.actual, Some(Version::new(1)));
    assert_eq!(wire.operations(), ["TransactWriteItems"; 3], "no read");
    assert_eq!(get_raw(stores.client(), fresh.head.stream(), 1).await, None);
}

/// A commit that was stored alone does not make a transaction that includes it a repeat.
#[tokio::test]
async fn only_some_of_my_ids_in_their_slots_is_a_conflict() {
    let server = Server::start();
    let (store, all) = (server.stores().await.event_store(), two());
    let _ = store.append(&all.commits[0]).await.unwrap();
    conflict(store.append_all(&all).await.unwrap());
    let other = all.commits[1].head.stream();
    assert_eq!(read_all(&store, other).await, []);
}

#[tokio::test]
async fn a_moved_check_alone_is_a_conflict_only_if_my_slot_is_empty() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let store = stores.event_store();
    let checked = append_of(&StreamHead::empty(stream()), 2);
    let _ = store.append(&checked).await.unwrap();
    let all = two().with_unchanged(vec![checked.head.clone()]);
    let conflict = conflict(store.append_all(&all).await.unwrap());
    assert_eq!(&conflict.stream, checked.head.stream());
    assert_eq!(conflict.actual, Some(Version::new(2)));
    assert_eq!(
        wire.operations(),
        ["PutItem", "TransactWriteItems", "GetItem"]
    );
    assert_eq!(wire.calls()[2].body["ConsistentRead"], true);
}

/// DynamoDB may name only one of the conditions that failed.
#[tokio::test]
async fn a_check_that_moved_after_my_own_lost_attempt_is_a_repeat() {
    let server = Server::start();
    let checked = append_of(&StreamHead::empty(stream()), 1);
    let all = two().with_unchanged(vec![checked.head.clone()]);
    let (stores, _wire) = server
        .stores_over(|call| {
            if is_write(call) {
                cancelled(&[
                    reason("None"),
                    reason("None"),
                    reason("ConditionalCheckFailed"),
                ])
            } else {
                Fate::Pass
            }
        })
        .await;
    let earlier = server.stores().await.event_store();
    let _ = earlier.append_all(&all).await.unwrap();
    let _ = earlier.append(&checked).await.unwrap();
    let outcome = stores.event_store().append_all(&all).await.unwrap();
    assert_eq!(outcome, repeated(&all));
}

#[tokio::test]
async fn a_lost_answer_to_a_transaction_is_settled() {
    for (lost, operations) in [
        ("answer", vec!["TransactWriteItems", "GetItem"]),
        (
            "request",
            vec!["TransactWriteItems", "GetItem", "TransactWriteItems"],
        ),
        (
            "error",
            vec!["TransactWriteItems", "GetItem", "TransactWriteItems"],
        ),
    ] {
        let server = Server::start();
        let (stores, wire) = server
            .stores_over(move |call| match (is_write(call) && call.nth == 1, lost) {
                (true, "answer") => Fate::LoseAnswer,
                (true, "request") => Fate::LoseRequest,
                (true, _) => Fate::error(500, "InternalServerError", "oops"),
                _ => Fate::Pass,
            })
            .await;
        let all = two();
        let outcome = stores.event_store().append_all(&all).await.unwrap();
        assert_eq!(outcome, appended(&all), "{lost}");
        let mut made = wire.operations();
        made.dedup();
        assert_eq!(made, operations, "{lost}");
        assert_stored(&server, &all).await;
    }
}

#[tokio::test]
async fn a_transaction_that_stays_open_is_unavailable_with_all_of_it() {
    for second in [
        "lost",
        "TransactionInProgressException",
        "TransactionConflict",
        "ThrottlingError",
    ] {
        let server = Server::start();
        let (stores, _wire) = server
            .stores_over(move |call| match (is_write(call), call.nth, second) {
                (true, 1, _) | (true, _, "lost") => Fate::LoseRequest,
                (true, _, "TransactionInProgressException") => Fate::error(400, second, "busy"),
                (true, ..) => cancelled(&[reason("None"), reason(second)]),
                _ => Fate::Pass,
            })
            .await;
        let all = two().with_unchanged(vec![StreamHead::empty(stream())]);
        let error = stores.event_store().append_all(&all).await.unwrap_err();
        let EventStoreError::Unavailable {
            pending: Some(pending),
            ..
        } = &error
        else {
            panic!("{second}: {error:?}")
        };
        assert_eq!(pending.append(), &all);
        assert!(error.is_transient() && !error.is_certainly_not_applied());
    }
}

#[tokio::test]
async fn a_lost_transaction_where_another_writers_commit_is_stored_is_a_conflict() {
    for taken in [0, 1] {
        let server = Server::start();
        let (stores, _wire) = server
            .stores_over(|call| match (is_write(call), call.nth) {
                (true, 1) => Fate::LoseRequest,
                _ => Fate::Pass,
            })
            .await;
        let all = two();
        let theirs = append_of(&all.commits[taken].head, 3);
        let _ = server
            .stores()
            .await
            .event_store()
            .append(&theirs)
            .await
            .unwrap();
        let conflict = conflict(stores.event_store().append_all(&all).await.unwrap());
        assert_eq!(&conflict.stream, theirs.head.stream());
    }
}

/// Returns the error for a cancellation reason of DynamoDB, which is the same for a transaction of
/// two streams and for a split commit.
async fn outcome_of(code: &'static str) -> EventStoreError {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(move |call| {
            if is_write(call) {
                cancelled(&[reason("None"), reason(code)])
            } else {
                Fate::Pass
            }
        })
        .await;
    let store = stores.event_store();
    let error = store.append_all(&two()).await.unwrap_err();
    assert!(error.is_certainly_not_applied(), "{code}: {error:?}");
    let sent = wire.operations().len();
    assert_eq!(sent, if error.is_transient() { 4 } else { 1 }, "{code}");
    let large = event(format!("\"{}\"", "x".repeat(300_000)));
    let head = StreamHead::empty(stream());
    let split = Append::after(
        head.clone(),
        CommitId::random(),
        head.recorded_at(),
        vec![large; 2],
    );
    let again = store.append(&split).await.unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    error
}
fn refused(error: &EventStoreError) -> (RefusedKind, &str) {
    match error {
        EventStoreError::Refused { kind, reason, .. } => (*kind, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn cancelled_by_a_transaction_conflict_is_transient() {
    let error = outcome_of("TransactionConflict").await;
    assert!(
        matches!(error, EventStoreError::Unavailable { pending: None, .. }),
        "{error:?}"
    );
}
#[tokio::test]
async fn cancelled_by_provisioned_throughput_is_throttled() {
    let error = outcome_of("ProvisionedThroughputExceeded").await;
    assert!(
        matches!(error, EventStoreError::Throttled { .. }),
        "{error:?}"
    );
}
#[tokio::test]
async fn cancelled_by_a_throttling_error_is_throttled() {
    let error = outcome_of("ThrottlingError").await;
    assert!(
        matches!(error, EventStoreError::Throttled { .. }),
        "{error:?}"
    );
}
#[tokio::test]
async fn cancelled_by_the_size_of_an_item_collection_says_what_to_change() {
    let error = outcome_of("ItemCollectionSizeLimitExceeded").await;
    let (kind, text) = refused(&error);
    assert_eq!(kind, RefusedKind::Incompatible);
    assert!(text.contains("local secondary index"), "{text}");
}
#[tokio::test]
async fn cancelled_by_a_validation_error_is_validation() {
    let error = outcome_of("ValidationError").await;
    let (kind, text) = refused(&error);
    assert_eq!(kind, RefusedKind::Validation);
    assert!(text.contains("ValidationError happened"), "{text}");
}
#[tokio::test]
async fn cancelled_by_a_missing_permission_names_operation_and_table() {
    let error = outcome_of("AccessDenied").await;
    let (kind, text) = refused(&error);
    assert_eq!(kind, RefusedKind::Permission);
    assert!(
        text.contains("TransactWriteItems on table events"),
        "{text}"
    );
}
#[tokio::test]
async fn cancelled_for_a_reason_that_nobody_knows_is_permanent_and_named() {
    let error = outcome_of("SomethingNew").await;
    let (kind, text) = refused(&error);
    assert_eq!(kind, RefusedKind::Other);
    assert!(text.contains("SomethingNew happened"), "{text}");
}

/// Waiting helps only if it helps against every reason. A failed condition is definite whatever the
/// other reasons are.
#[tokio::test]
async fn of_several_reasons_the_one_that_waiting_does_not_cure_decides() {
    for (codes, expected) in [
        (["TransactionConflict", "ThrottlingError"], "throttles"),
        (["ValidationError", "TransactionConflict"], "refuses"),
        (["ThrottlingError", "AccessDenied"], "refuses"),
    ] {
        let server = Server::start();
        let (stores, _wire) = server
            .stores_over(move |call| {
                if is_write(call) {
                    cancelled(&codes.map(reason))
                } else {
                    Fate::Pass
                }
            })
            .await;
        let error = stores.event_store().append_all(&two()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{codes:?}: {error}");
    }
    let server = Server::start();
    let all = two();
    let theirs = append_of(&all.commits[1].head, 1);
    let _ = server
        .stores()
        .await
        .event_store()
        .append(&theirs)
        .await
        .unwrap();
    let (stores, _wire) = server
        .stores_over(|call| {
            if is_write(call) {
                cancelled(&[
                    reason("TransactionConflict"),
                    reason("ConditionalCheckFailed"),
                ])
            } else {
                Fate::Pass
            }
        })
        .await;
    // Without the old item in the reason, the slot is read.
    let conflict = conflict(stores.event_store().append_all(&all).await.unwrap());
    assert_eq!(&conflict.stream, theirs.head.stream());
    assert_eq!(conflict.actual, Some(Version::new(1)));
}

/// The errors of the whole request, as the API's reference lists them.
#[tokio::test]
async fn every_error_of_the_request_is_typed() {
    for (status, code, expected) in [
        (
            400,
            "TransactionInProgressException",
            "the event store is unavailable",
        ),
        (
            400,
            "IdempotentParameterMismatchException",
            "the event store is unavailable",
        ),
        (
            400,
            "ProvisionedThroughputExceededException",
            "the event store throttles",
        ),
        (400, "RequestLimitExceeded", "the event store throttles"),
        (400, "ThrottlingException", "the event store throttles"),
        (400, "ResourceNotFoundException", "create_tables"),
        (400, "ValidationException", "malformed"),
        (400, "AccessDeniedException", "allow this action"),
        (400, "ExpiredTokenException", "get new ones"),
    ] {
        let server = Server::start();
        let (stores, _wire) = server
            .stores_over(move |call| {
                if is_write(call) {
                    Fate::error(status, code, "said so")
                } else {
                    Fate::Pass
                }
            })
            .await;
        let error = stores.event_store().append_all(&two()).await.unwrap_err();
        assert!(error.is_certainly_not_applied(), "{code}: {error:?}");
        assert!(
            error.to_string().contains(expected),
            "{code}: {}",
            chain(&error)
        );
    }
}

#[tokio::test]
async fn what_a_transaction_does_not_take_is_refused_before_any_call() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let store = stores.event_store();
    let Capabilities {
        max_streams_per_append,
        max_commit_bytes,
        ..
    } = store.capabilities();
    assert_eq!(max_streams_per_append, 100);
    let small = || append_of(&StreamHead::empty(stream()), 1);
    let streams = |n: usize| AppendAll::new((0..n).map(|_| small()).collect());
    // Checks count as items of the transaction too.
    let checked = streams(99).with_unchanged(vec![small().head, small().head]);
    for all in [streams(101), checked] {
        let error = store.append_all(&all).await.unwrap_err();
        assert_eq!(refused(&error).0, RefusedKind::Unsupported);
        assert!(error.to_string().contains("101"), "{error}");
    }
    let of = |sizes: &[usize]| {
        let events: Vec<EventData> = sizes
            .iter()
            .map(|n| event(format!("\"{}\"", "x".repeat(*n))))
            .collect();
        let head = StreamHead::empty(stream());
        Append::after(head.clone(), CommitId::random(), head.recorded_at(), events)
    };
    // Each commit fits, but all of them together do not.
    let mut all = AppendAll::new((0..13).map(|_| of(&[300_000])).collect());
    all.commits.push(of(&[301_000]));
    let largest = all.commits[13].head.stream().clone();
    match store.append_all(&all).await.unwrap_err() {
        EventStoreError::TooLarge {
            stream,
            bytes,
            limit,
        } => {
            assert_eq!((stream, limit), (largest, max_commit_bytes));
            assert!(bytes > limit);
        }
        other => panic!("{other:?}"),
    }
    // A part is an item of the transaction, and so is a check.
    let mut all = streams(98);
    all.commits.push(of(&[300_000, 300_000, 300_000]));
    let mut checked = streams(97).with_unchanged(vec![small().head]);
    checked.commits.push(of(&[300_000, 300_000, 300_000]));
    for (all, said) in [
        (
            &all,
            [
                "101 items",
                "at most 100",
                "101 for its commits",
                "1 are over 390 KiB",
                "0 for streams",
            ],
        ),
        (
            &checked,
            [
                "101 items",
                "at most 100",
                "100 for its commits",
                "1 are over 390 KiB",
                "1 for streams",
            ],
        ),
    ] {
        let error = store.append_all(all).await.unwrap_err();
        assert_eq!(refused(&error).0, RefusedKind::Unsupported);
        for part in said {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(error.is_certainly_not_applied());
    }
    assert_eq!(wire.operations(), [""; 0]);
    all.commits.truncate(97);
    all.commits.push(of(&[300_000, 300_000, 300_000]));
    assert_eq!(store.append_all(&all).await.unwrap(), appended(&all));
}

#[tokio::test]
async fn one_commit_without_checks_is_a_plain_put() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let mut all = two();
    all.commits.truncate(1);
    let outcome = stores.event_store().append_all(&all).await.unwrap();
    assert_eq!(outcome, appended(&all));
    assert_eq!(wire.operations(), ["PutItem"]);
}
