//! Appends: their requests, and the resolution of lost answers.
use crate::support::{Fate, Server, append_of, chain, event, read_all, stream};
use foldstream::{
    StreamHead,
    ports::{Append, AppendAll, AppendOutcome, Commit, EventStore as _, EventStoreError},
};

fn appended(append: &Append) -> AppendOutcome {
    AppendOutcome::Appended(append.head_after())
}
fn repeated(append: &Append) -> AppendOutcome {
    AppendOutcome::Repeated(vec![append.to_commit()])
}
async fn stored(server: &Server, append: &Append) -> Vec<Commit> {
    let store = server.stores().await.event_store();
    read_all(&store, append.head.stream()).await
}
fn first() -> Append {
    append_of(&StreamHead::empty(stream()), 2)
}

#[tokio::test]
async fn an_append_is_one_request() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let append = first();
    assert_eq!(
        stores.event_store().append(&append).await.unwrap(),
        appended(&append)
    );
    assert_eq!(wire.operations(), ["PutItem"]);
    let body = &wire.calls()[0].body;
    assert_eq!(body["ConditionExpression"], "attribute_not_exists(pk)");
    assert_eq!(body["ReturnValuesOnConditionCheckFailure"], "ALL_OLD");
}

#[tokio::test]
async fn a_conflict_and_a_repeat_cost_no_read() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, append) = (stores.event_store(), first());
    let _ = store.append(&append).await.unwrap();
    assert_eq!(store.append(&append).await.unwrap(), repeated(&append));
    let stale = append_of(&append.head, 1);
    let AppendOutcome::Conflict(conflict) = store.append(&stale).await.unwrap() else {
        panic!("a stale head was taken")
    };
    assert_eq!(conflict.actual, Some(append.head_after().version()));
    assert_eq!(wire.operations(), ["PutItem"; 3]);
}

/// Some emulators do not return the item in the slot.
#[tokio::test]
async fn a_refusal_without_the_old_item_is_settled_by_reading_the_slot() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::error(400, "ConditionalCheckFailedException", "no"),
            _ => Fate::Pass,
        })
        .await;
    let (store, stored) = (stores.event_store(), first());
    let others = server.stores().await.event_store();
    let _ = others.append(&stored).await.unwrap();
    assert_eq!(store.append(&stored).await.unwrap(), repeated(&stored));
    let stale = append_of(&stored.head, 1);
    let AppendOutcome::Conflict(conflict) = store.append(&stale).await.unwrap() else {
        panic!("a stale head was taken")
    };
    assert_eq!(conflict.actual, Some(stored.head_after().version()));
    assert_eq!(
        wire.operations(),
        ["PutItem", "GetItem", "PutItem", "GetItem"]
    );
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_reading_the_slot() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::LoseAnswer,
            _ => Fate::Pass,
        })
        .await;
    let append = first();
    assert_eq!(
        stores.event_store().append(&append).await.unwrap(),
        appended(&append)
    );
    assert_eq!(wire.operations(), ["PutItem", "GetItem"]);
    assert_eq!(wire.calls()[1].body["ConsistentRead"], true);
    assert_eq!(stored(&server, &append).await, [append.to_commit()]);
}

#[tokio::test]
async fn a_server_error_after_the_write_is_settled_too() {
    let server = Server::start();
    let append = first();
    let applied = server.stores().await.event_store();
    let (stores, _wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::error(500, "InternalServerError", "oops"),
            _ => Fate::Pass,
        })
        .await;
    // The server applied the append before it failed.
    let _ = applied.append(&append).await.unwrap();
    assert_eq!(
        stores.event_store().append(&append).await.unwrap(),
        appended(&append)
    );
}

#[tokio::test]
async fn a_lost_request_is_sent_once_more() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match (call.operation.as_str(), call.nth) {
            ("PutItem", 1) => Fate::LoseRequest,
            _ => Fate::Pass,
        })
        .await;
    let append = first();
    assert_eq!(
        stores.event_store().append(&append).await.unwrap(),
        appended(&append)
    );
    assert_eq!(wire.operations(), ["PutItem", "GetItem", "PutItem"]);
    let calls = wire.calls();
    assert_eq!(
        calls[0].body["Item"], calls[2].body["Item"],
        "the same bytes"
    );
    assert_eq!(stored(&server, &append).await, [append.to_commit()]);
}

#[tokio::test]
async fn an_answer_lost_twice_is_settled_when_the_second_write_landed() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match (call.operation.as_str(), call.nth) {
            ("PutItem", 1) => Fate::LoseRequest,
            ("PutItem", _) => Fate::LoseAnswer,
            _ => Fate::Pass,
        })
        .await;
    let append = first();
    assert_eq!(
        stores.event_store().append(&append).await.unwrap(),
        appended(&append)
    );
    assert_eq!(
        wire.operations(),
        ["PutItem", "GetItem", "PutItem", "GetItem"]
    );
}

#[tokio::test]
async fn what_stays_open_is_unavailable_with_the_append_in_it() {
    let server = Server::start();
    for then in [
        None,
        Some("ExpiredTokenException"),
        Some("ThrottlingException"),
    ] {
        let (stores, wire) = server
            .stores_over(
                move |call| match (call.operation.as_str(), call.nth, then) {
                    ("PutItem", 2, Some(code)) => Fate::error(400, code, "no"),
                    ("PutItem", ..) => Fate::LoseRequest,
                    _ => Fate::Pass,
                },
            )
            .await;
        let append = first();
        let error = stores.event_store().append(&append).await.unwrap_err();
        let EventStoreError::Unavailable {
            pending: Some(pending),
            ..
        } = &error
        else {
            panic!("{then:?}: {error:?}")
        };
        assert_eq!(pending.append(), &AppendAll::new(vec![append]));
        assert!(error.is_transient() && !error.is_certainly_not_applied());
        assert_eq!(
            wire.operations(),
            ["PutItem", "GetItem", "PutItem", "GetItem"]
        );
    }
}

#[tokio::test]
async fn a_slot_that_cannot_be_read_stays_open() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::LoseAnswer,
            "GetItem" if call.body["TableName"] == "events" => {
                Fate::error(400, "AccessDeniedException", "no")
            }
            _ => Fate::Pass,
        })
        .await;
    let error = stores.event_store().append(&first()).await.unwrap_err();
    assert!(!error.is_certainly_not_applied(), "{error:?}");
    assert_eq!(wire.operations(), ["PutItem", "GetItem"]);
}

#[tokio::test]
async fn a_lost_answer_where_another_writers_commit_is_stored_is_a_conflict() {
    let server = Server::start();
    let (stores, _wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::LoseRequest,
            _ => Fate::Pass,
        })
        .await;
    let theirs = first();
    let others = server.stores().await.event_store();
    let _ = others.append(&theirs).await.unwrap();
    let mine = append_of(&theirs.head, 1);
    let AppendOutcome::Conflict(conflict) = stores.event_store().append(&mine).await.unwrap()
    else {
        panic!("a stale head was taken")
    };
    assert_eq!(conflict.actual, Some(theirs.head_after().version()));
}

/// Another process may have stored other events under the id of an idempotent command.
#[tokio::test]
async fn a_lost_answer_and_other_events_under_my_id_is_a_repeat_of_the_stored_ones() {
    let server = Server::start();
    let (stores, _wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::LoseRequest,
            _ => Fate::Pass,
        })
        .await;
    let theirs = first();
    let others = server.stores().await.event_store();
    let _ = others.append(&theirs).await.unwrap();
    let head = theirs.head.clone();
    let mine = Append::after(head, theirs.commit_id, theirs.recorded_at, vec![event("0")]);
    assert_eq!(
        stores.event_store().append(&mine).await.unwrap(),
        repeated(&theirs)
    );
}

#[tokio::test]
async fn what_was_certainly_not_applied_is_repeated() {
    for code in [
        "ThrottlingException",
        "ProvisionedThroughputExceededException",
        "TransactionConflictException",
    ] {
        let server = Server::start();
        let (stores, wire) = server
            .stores_over(move |call| match (call.operation.as_str(), call.nth) {
                ("PutItem", 1..3) => Fate::error(400, code, "later"),
                _ => Fate::Pass,
            })
            .await;
        let append = first();
        assert_eq!(
            stores.event_store().append(&append).await.unwrap(),
            appended(&append)
        );
        assert_eq!(wire.operations(), ["PutItem"; 3], "{code}");
    }
}

#[tokio::test]
async fn throttling_that_does_not_end_is_the_callers() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::error(400, "ThrottlingException", "later"),
            _ => Fate::Pass,
        })
        .await;
    let append = first();
    let error = stores.event_store().append(&append).await.unwrap_err();
    assert!(
        matches!(error, EventStoreError::Throttled { .. }),
        "{error:?}"
    );
    assert!(error.is_certainly_not_applied());
    assert_eq!(wire.operations(), ["PutItem"; 4]);
}

#[tokio::test]
async fn an_unreachable_server_certainly_applied_nothing_and_is_named() {
    let server = Server::start();
    let config = server.config().with_max_attempts(1);
    let stores = server.stores_with(config.clone()).await;
    drop(stores);
    // The port was free a moment ago, so that nothing listens on it.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let endpoint = format!("http://{closed}");
    let error = foldstream_dynamodb::DynamoDb::connect(config.with_endpoint(&endpoint))
        .await
        .unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(chain(&error).contains(&endpoint), "{}", chain(&error));
}
