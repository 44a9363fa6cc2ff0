//! Tables with replicas in other regions: refused if conditions do not hold there, and limited if
//! there are no transactions.
use crate::support::{Call, Fate, Server, append_of, event, stream};
use foldstream::{
    CommitId, StreamHead,
    ports::{Append, AppendAll, Capabilities, EventStore as _, EventStoreError, RefusedKind},
};
use foldstream_dynamodb::{DynamoDb, DynamoDbError, Replication, TableOptions, create_tables};

/// Reports replicas of this consistency for one table.
fn replicated(
    table: &'static str,
    consistency: Option<&'static str>,
) -> impl Fn(&Call) -> Fate + Send + Sync {
    move |call| {
        if call.operation != "DescribeTable" || call.body["TableName"] != table {
            return Fate::Pass;
        }
        Fate::Change(Box::new(move |answer| {
            answer["Table"]["Replicas"] = serde_json::json!([
                { "RegionName": "eu-central-1", "ReplicaStatus": "ACTIVE" },
                { "RegionName": "us-east-1", "ReplicaStatus": "ACTIVE" },
            ]);
            if let Some(consistency) = consistency {
                answer["Table"]["MultiRegionConsistency"] = consistency.into();
            }
        }))
    }
}
async fn server() -> Server {
    let server = Server::start();
    server.stores().await;
    server
}

#[tokio::test]
async fn asynchronous_replicas_are_refused_and_the_error_says_what_to_do() {
    let server = server().await;
    for table in ["events", "events-control"] {
        for consistency in [None, Some("EVENTUAL"), Some("SOMETHING_NEW")] {
            let (connected, _wire) = server
                .connect_over(server.config(), replicated(table, consistency))
                .await;
            let error = connected.unwrap_err();
            assert!(
                matches!(&error, DynamoDbError::AsynchronousReplicas { table: named, regions }
                    if named == table && *regions == ["eu-central-1", "us-east-1"]),
                "{error:?}"
            );
            let text = error.to_string();
            for part in [
                "eu-central-1",
                "DYNAMODB_REPLICATION=single-writing-region",
                "strong",
            ] {
                assert!(text.contains(part), "{text}");
            }
            assert!(!error.is_transient());
        }
    }
}

#[tokio::test]
async fn what_the_configuration_says_is_not_asked() {
    let server = server().await;
    for replication in [Replication::None, Replication::SingleWritingRegion] {
        let config = server.config().with_replication(replication);
        let (connected, wire) = server
            .connect_over(config, replicated("events", None))
            .await;
        let capabilities = connected.unwrap().event_store().capabilities();
        assert_eq!(capabilities.max_streams_per_append, 100);
        assert_eq!(wire.operations(), ["GetItem"], "{replication:?}");
    }
}

async fn assert_only_puts(stores: &DynamoDb) {
    let store = stores.event_store();
    let Capabilities {
        max_streams_per_append,
        max_commit_bytes,
        max_event_bytes,
        ..
    } = store.capabilities();
    assert_eq!(max_streams_per_append, 1);
    assert_eq!(
        (max_commit_bytes, max_event_bytes),
        (390 * 1024, 390 * 1024)
    );
    let one = || append_of(&StreamHead::empty(stream()), 1);
    let error = store
        .append_all(&AppendAll::new(vec![one(), one()]))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            EventStoreError::Refused {
                kind: RefusedKind::Unsupported,
                ..
            }
        ),
        "{error:?}"
    );
    let checked = AppendAll::new(vec![one()]).with_unchanged(vec![one().head]);
    assert!(store.append_all(&checked).await.is_err());
    let large = vec![event(format!("\"{}\"", "x".repeat(250_000))); 2];
    let head = StreamHead::empty(stream());
    let split = Append::after(head.clone(), CommitId::random(), head.recorded_at(), large);
    let error = store.append(&split).await.unwrap_err();
    assert!(
        matches!(error, EventStoreError::TooLarge { limit, .. } if limit == max_commit_bytes),
        "{error}"
    );
    let _ = store.append(&one()).await.unwrap();
}

#[tokio::test]
async fn strongly_consistent_replicas_are_used_without_transactions() {
    let server = server().await;
    let (connected, wire) = server
        .connect_over(server.config(), replicated("events", Some("STRONG")))
        .await;
    assert_only_puts(&connected.unwrap()).await;
    assert!(!wire.operations().contains(&"TransactWriteItems".to_owned()));
    let config = server
        .config()
        .with_replication(Replication::StronglyConsistent);
    let (connected, wire) = server.connect_over(config, |_| Fate::Pass).await;
    assert_only_puts(&connected.unwrap()).await;
    assert!(!wire.operations().contains(&"DescribeTable".to_owned()));
}

/// The contract for an adapter without transactions, whose appends touch one stream.
mod contract {
    use super::*;
    use foldstream::ports::EventStore;
    use std::sync::Arc;

    async fn fresh() -> Arc<dyn EventStore> {
        let server = Server::start();
        let config = server
            .poller()
            .with_replication(Replication::StronglyConsistent);
        Arc::new(server.stores_with(config).await.event_store())
    }
    foldstream_testkit::event_store_contract! { store = fresh, with = [unpublished] }
}

/// A table whose rows expire cannot become a strongly consistent global table.
#[tokio::test]
async fn tables_for_strong_consistency_do_not_expire_rows() {
    let server = Server::start();
    let config = server
        .config()
        .with_replication(Replication::StronglyConsistent);
    create_tables(&config, &TableOptions::default())
        .await
        .unwrap();
    let stores = DynamoDb::connect(config).await.unwrap();
    let request = stores
        .client()
        .describe_time_to_live()
        .table_name("events-control");
    let ttl = request
        .send()
        .await
        .unwrap()
        .time_to_live_description
        .unwrap();
    assert_ne!(ttl.attribute_name(), Some("x"));
}

#[tokio::test]
async fn a_missing_permission_to_ask_says_how_to_do_without() {
    let server = server().await;
    let denied = |call: &Call| match call.operation.as_str() {
        "DescribeTable" => Fate::error(400, "AccessDeniedException", "not authorized"),
        _ => Fate::Pass,
    };
    let (connected, _wire) = server.connect_over(server.config(), denied).await;
    let error = connected.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(
            error,
            DynamoDbError::Refused {
                kind: RefusedKind::Permission,
                ..
            }
        ),
        "{error:?}"
    );
    for part in ["DescribeTable on table events", "DYNAMODB_REPLICATION"] {
        assert!(text.contains(part), "{text}");
    }
}
