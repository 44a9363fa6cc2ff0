//! Tables that are missing or replaced while a process uses them, and heads that are not the tail.
use crate::support::{Server, append_of, chain, given, read_all, stream};
use aws_sdk_dynamodb::Client;
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp, Version,
    adapter::observed_head,
    ports::{
        AppendAll, AppendOutcome, Commit, EventStore, EventStoreError, ReadFrom, RefusedKind,
        ScanScope, Segment,
    },
};
use foldstream_dynamodb::{DynamoDbConfig, DynamoDbEventStore, TableOptions, create_tables};
use futures::TryStreamExt as _;
use std::num::NonZeroU32;

async fn delete_events(client: &Client) {
    client
        .delete_table()
        .table_name("events")
        .send()
        .await
        .unwrap();
}
async fn make_again(config: &DynamoDbConfig) {
    create_tables(config, &TableOptions::default())
        .await
        .unwrap();
}
/// Returns a store and a head of a stream of three commits, whose table was then replaced by an
/// empty one. The process notices the gap by a read.
async fn replaced(server: &Server) -> (DynamoDbEventStore, StreamHead) {
    let stores = server.stores().await;
    let store = stores.event_store();
    let stream = stream();
    let commits = given(&store, &stream, &[1, 1, 1]).await;
    delete_events(stores.client()).await;
    let error = read_error(&store, &stream).await;
    assert!(is_missing(&error), "{error:?}");
    make_again(&server.config()).await;
    (store, commits[2].head())
}
async fn read_error(store: &DynamoDbEventStore, stream: &StreamId) -> EventStoreError {
    let commits = store.read(stream, ReadFrom::Newest, None);
    commits.try_collect::<Vec<Commit>>().await.unwrap_err()
}
fn is_missing(error: &EventStoreError) -> bool {
    let missing = RefusedKind::MissingTable;
    matches!(error, EventStoreError::Refused { kind, .. } if *kind == missing)
}
fn assert_replaced(error: &EventStoreError) {
    assert!(
        matches!(error, EventStoreError::Replaced { .. }),
        "{error:?}"
    );
    assert!(error.is_certainly_not_applied() && !error.is_transient());
    assert!(
        error.to_string().contains("the table was replaced"),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_table_changes_the_incarnation() {
    let server = Server::start();
    let stores = server.stores().await;
    let store = stores.event_store();
    let before = store.incarnation();
    given(&store, &stream(), &[1]).await;
    assert_eq!(store.incarnation(), before, "nothing has happened");
    delete_events(stores.client()).await;
    let error = read_error(&store, &stream()).await;
    assert!(is_missing(&error), "{error:?}");
    assert_ne!(store.incarnation(), before);
}

/// The rule holds for whatever a process requests first. The other handle stands for the other
/// tasks of the process, which share its knowledge.
#[tokio::test]
async fn every_call_that_meets_a_missing_table_changes_the_incarnation() {
    let one = NonZeroU32::MIN;
    for call in 0..7 {
        let server = Server::start();
        let stores = server.stores().await;
        let (store, other) = (stores.event_store(), stores.event_store());
        let commits = given(&store, &stream(), &[1]).await;
        let before = other.incarnation();
        delete_events(stores.client()).await;
        let append = append_of(&commits[0].head(), 1);
        let two = AppendAll::new(vec![
            append.clone(),
            append_of(&StreamHead::empty(stream()), 1),
        ]);
        let error = match call {
            0 => store.append(&append).await.unwrap_err(),
            1 => store.append_all(&two).await.unwrap_err(),
            2 => read_error(&store, &stream()).await,
            3 => store.streams("cart", None).await.unwrap_err(),
            4 => {
                let scan = store.scan(Segment::ALL, None, ScanScope::Tails, one);
                scan.await.unwrap_err()
            }
            5 => store
                .unpublished(Segment::ALL, None, one)
                .await
                .unwrap_err(),
            _ => {
                let keys = [commits[0].key()];
                store.clear_unpublished(&keys).await.unwrap_err()
            }
        };
        assert!(is_missing(&error), "call {call}: {error:?}");
        assert_ne!(other.incarnation(), before, "call {call}");
    }
}

#[tokio::test]
async fn a_head_of_the_old_table_is_refused_once_the_table_was_missing() {
    let server = Server::start();
    let (store, head) = replaced(&server).await;
    // The number grows each time, not only the first, since others may hold states of the old table
    // too.
    for _ in 0..2 {
        assert_replaced(&store.append(&append_of(&head, 1)).await.unwrap_err());
        let fresh = || append_of(&StreamHead::empty(stream()), 1);
        let together = AppendAll::new(vec![fresh(), append_of(&head, 1)]);
        assert_replaced(&store.append_all(&together).await.unwrap_err());
        let checked = AppendAll::new(vec![fresh()]).with_unchanged(vec![head.clone()]);
        assert_replaced(&store.append_all(&checked).await.unwrap_err());
    }
    assert_eq!(read_all(&store, head.stream()).await, []);
    // The new table accepts appends to the streams that are read from it.
    let commits = given(&store, head.stream(), &[2, 1]).await;
    assert_eq!(read_all(&store, head.stream()).await, commits);
}

/// A table that was restored from a backup has the same keys and other commits.
#[tokio::test]
async fn a_head_of_another_history_is_refused_once_the_table_was_missing() {
    let server = Server::start();
    let (store, head) = replaced(&server).await;
    let commits = given(&store, head.stream(), &[1, 1, 1]).await;
    assert_eq!(commits[2].head().version(), head.version());
    assert_replaced(&store.append(&append_of(&head, 1)).await.unwrap_err());
    assert_eq!(read_all(&store, head.stream()).await, commits);
    let next = append_of(&commits[2].head(), 1);
    let outcome = store.append(&next).await.unwrap();
    assert_eq!(outcome, AppendOutcome::Appended(next.head_after()));
}

/// The table was missing only for a moment, and another one exists when the process looks.
#[tokio::test]
async fn a_table_that_was_replaced_in_between_is_a_typed_error_that_says_so() {
    use crate::support::Fate;
    let server = Server::start();
    let (stores, _wire) = server
        .stores_over(|call| match (call.operation.as_str(), call.nth) {
            ("Query", 1) => Fate::error(400, "ResourceNotFoundException", "gone"),
            ("DescribeTable", 1) => Fate::Change(Box::new(|answer| {
                answer["Table"]["TableId"] = "another".into();
            })),
            _ => Fate::Pass,
        })
        .await;
    let store = stores.event_store();
    let before = store.incarnation();
    let error = read_error(&store, &stream()).await;
    assert_replaced(&error);
    assert_ne!(store.incarnation(), before);
    assert!(
        chain(&error).contains("ResourceNotFound"),
        "{}",
        chain(&error)
    );
    // The next read is of the new table.
    assert_eq!(read_all(&store, &stream()).await, []);
}

#[tokio::test]
async fn the_same_table_that_was_away_for_a_moment_is_not_replaced() {
    use crate::support::Fate;
    let server = Server::start();
    let (stores, _wire) = server
        .stores_over(|call| match (call.operation.as_str(), call.nth) {
            ("Query", 1) => Fate::error(400, "ResourceNotFoundException", "gone"),
            _ => Fate::Pass,
        })
        .await;
    let store = stores.event_store();
    let stream = stream();
    let commits = given(&store, &stream, &[1, 2]).await;
    let error = read_error(&store, &stream).await;
    assert!(is_missing(&error), "{error:?}");
    // A head that is in the table is found, and its append succeeds.
    let append = append_of(&commits[1].head(), 1);
    let outcome = store.append(&append).await.unwrap();
    assert_eq!(outcome, AppendOutcome::Appended(append.head_after()));
}

/// An unknown outcome remains unknown, since the first attempt may have reached either table.
#[tokio::test]
async fn an_append_that_was_lost_before_the_table_vanished_is_never_certainly_not_applied() {
    use crate::support::Fate;
    let server = Server::start();
    let (stores, _wire) = server
        .stores_over(|call| match call.operation.as_str() {
            "PutItem" => Fate::LoseRequest,
            "GetItem" => Fate::error(400, "ResourceNotFoundException", "gone"),
            _ => Fate::Pass,
        })
        .await;
    let store = stores.event_store();
    let before = store.incarnation();
    let append = append_of(&StreamHead::empty(stream()), 1);
    let error = store.append(&append).await.unwrap_err();
    assert!(!error.is_certainly_not_applied(), "{error:?}");
    assert_ne!(store.incarnation(), before);
}

/// Until a table is known to have been replaced, DynamoDB checks only the slot, as the port's
/// contract permits.
#[tokio::test]
async fn a_head_above_the_tail_is_stored_and_then_every_read_across_the_hole_is_corrupt() {
    let server = Server::start();
    let store = server.stores().await.event_store();
    assert!(!store.capabilities().checks_heads);
    let stream = stream();
    given(&store, &stream, &[1, 1, 1]).await;
    let above = observed_head(
        stream.clone(),
        Version::new(5),
        CommitId::random(),
        Timestamp::from_micros(1),
    );
    let outcome = store.append(&append_of(&above, 1)).await.unwrap();
    assert!(matches!(outcome, AppendOutcome::Appended(_)), "{outcome:?}");
    let error = read_error(&store, &stream).await;
    assert!(
        matches!(error, EventStoreError::Corrupt { .. }),
        "{error:?}"
    );
}
