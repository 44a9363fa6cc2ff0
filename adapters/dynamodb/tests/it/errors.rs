//! The errors that users see if something is missing, wrong or expired: their kind, and their
//! remedy.
use crate::support::{Fate, Server, append_of, chain, read, stream};
use foldstream::{
    StreamHead,
    ports::{
        ControlStore as _, ControlStoreError, EventStore as _, EventStoreError, ReadFrom,
        RefusedKind, RowKey, SnapshotStore as _, SnapshotStoreError,
    },
};
use foldstream_dynamodb::{ConfigError, DynamoDb, DynamoDbConfig, DynamoDbError};

/// Returns stores whose requests to the events, the snapshots or the control row `p` are answered
/// by this error.
async fn failing(
    server: &Server,
    status: u16,
    code: &'static str,
    message: &'static str,
) -> DynamoDb {
    let (stores, _wire) = server
        .stores_over(move |call| {
            // Only the row of the format passes, since connecting reads it.
            let format = call.body["Key"]["sk"]["S"] == "format";
            if format {
                Fate::Pass
            } else {
                Fate::error(status, code, message)
            }
        })
        .await;
    stores
}

/// Returns the kinds and texts of the refusals of all three stores.
async fn refusals(stores: &DynamoDb) -> Vec<(RefusedKind, String)> {
    let stream = stream();
    let mut all = Vec::new();
    let append = append_of(&StreamHead::empty(stream.clone()), 1);
    for error in [
        stores.event_store().append(&append).await.unwrap_err(),
        read(&stores.event_store(), &stream, ReadFrom::Newest)
            .await
            .unwrap_err(),
    ] {
        assert!(!error.is_transient());
        let EventStoreError::Refused { kind, reason, .. } = error else {
            panic!("{error:?}")
        };
        all.push((kind, reason));
    }
    let error = stores.snapshot_store().load(&stream).await.unwrap_err();
    let SnapshotStoreError::Refused { kind, reason, .. } = error else {
        panic!("{error:?}")
    };
    all.push((kind, reason));
    let error = stores
        .control_store()
        .get(&RowKey::new("p", "s"))
        .await
        .unwrap_err();
    let ControlStoreError::Refused { kind, reason, .. } = error else {
        panic!("{error:?}")
    };
    all.push((kind, reason));
    all
}

#[tokio::test]
async fn a_missing_table_says_how_to_make_it() {
    let server = Server::start();
    let stores = server.stores().await;
    for table in ["events", "events-snapshots", "events-control"] {
        stores
            .client()
            .delete_table()
            .table_name(table)
            .send()
            .await
            .unwrap();
    }
    for (kind, reason) in refusals(&stores).await {
        assert_eq!(kind, RefusedKind::MissingTable);
        for part in [
            "table events",
            "create_tables",
            "EVENTSTORE_TABLE_NAME",
            "DYNAMODB_PREFIX",
        ] {
            assert!(reason.contains(part), "{reason}");
        }
    }
    let error = DynamoDb::connect(server.config()).await.unwrap_err();
    assert!(
        matches!(
            error,
            DynamoDbError::Refused {
                kind: RefusedKind::MissingTable,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn wrong_or_expired_credentials_say_what_to_check() {
    let server = Server::start();
    let said = "The security token included in the request is invalid.";
    for (code, todo) in [
        ("UnrecognizedClientException", "AWS_ACCESS_KEY_ID"),
        ("InvalidSignatureException", "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredTokenException", "expired: get new ones"),
    ] {
        for (kind, reason) in refusals(&failing(&server, 400, code, said).await).await {
            assert_eq!(kind, RefusedKind::Credentials, "{code}");
            assert!(reason.contains(said) && reason.contains(todo), "{reason}");
        }
    }
}

#[tokio::test]
async fn a_missing_permission_names_operation_and_table() {
    let stores = failing(
        &Server::start(),
        400,
        "AccessDeniedException",
        "not authorized",
    )
    .await;
    let found = refusals(&stores).await;
    let named = ["PutItem on table events", "Query on table events"];
    for ((kind, reason), named) in found.iter().zip(named) {
        assert_eq!(*kind, RefusedKind::Permission);
        assert!(reason.contains(named), "{reason}");
    }
}

#[tokio::test]
async fn a_malformed_request_is_validation() {
    let stores = failing(
        &Server::start(),
        400,
        "ValidationException",
        "bad expression",
    )
    .await;
    for (kind, reason) in refusals(&stores).await {
        assert_eq!(kind, RefusedKind::Validation);
        assert!(reason.contains("bad expression"), "{reason}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_no_dynamodb_is_named() {
    let server = Server::start();
    let (stores, _wire) = server
        .stores_over(|call| {
            let format = call.body["Key"]["sk"]["S"] == "format";
            if format {
                Fate::Pass
            } else {
                Fate::Answer(404, "<html>not here</html>".into())
            }
        })
        .await;
    let error = stores
        .event_store()
        .append(&append_of(&StreamHead::empty(stream()), 1))
        .await;
    let text = chain(&error.unwrap_err());
    assert!(
        text.contains("http://127.0.0.1") && text.contains("DYNAMODB_URL"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unavailable_server_is_named_with_operation_and_table() {
    let stores = failing(&Server::start(), 503, "ServiceUnavailable", "busy").await;
    let error = read(&stores.event_store(), &stream(), ReadFrom::Newest)
        .await
        .unwrap_err();
    assert!(
        error.is_transient() && error.is_certainly_not_applied(),
        "{error:?}"
    );
    let text = chain(&error);
    assert!(
        text.contains("Query on table events at http://127.0.0.1"),
        "{text}"
    );
}

#[tokio::test]
async fn errors_never_show_a_payload() {
    let stores = failing(&Server::start(), 400, "ValidationException", "bad").await;
    let append = {
        let head = StreamHead::empty(stream());
        let events = vec![crate::support::event("\"hunter2\"")];
        foldstream::ports::Append::after(
            head,
            foldstream::CommitId::random(),
            foldstream::Timestamp::now(),
            events,
        )
    };
    let error = stores.event_store().append(&append).await.unwrap_err();
    assert!(!format!("{error:?} {}", chain(&error)).contains("hunter2"));
}

#[tokio::test]
async fn missing_credentials_say_what_to_set() {
    use aws_credential_types::{
        credential_fn::provide_credentials_fn,
        provider::{SharedCredentialsProvider, error::CredentialsError},
    };
    use aws_sdk_dynamodb::config::{BehaviorVersion, Region};
    let empty = provide_credentials_fn(|| async { Err(CredentialsError::not_loaded("none")) });
    for provider in [None, Some(SharedCredentialsProvider::new(empty))] {
        let mut config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new("us-east-1"))
            .endpoint_url("http://127.0.0.1:9");
        config.set_credentials_provider(provider);
        let client = aws_sdk_dynamodb::Client::from_conf(config.build());
        let connected = DynamoDb::with_client(client, DynamoDbConfig::default()).await;
        let error = connected.unwrap_err();
        let text = chain(&error);
        assert!(
            matches!(
                error,
                DynamoDbError::Refused {
                    kind: RefusedKind::Credentials,
                    ..
                }
            ),
            "{text}"
        );
        assert!(text.contains("AWS_ACCESS_KEY_ID"), "{text}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_before_any_call() {
    let config = Server::start().config().with_marker_shards(0);
    let error = DynamoDb::connect(config).await.unwrap_err();
    assert!(
        matches!(error, DynamoDbError::Config(ConfigError::Invalid { .. })),
        "{error:?}"
    );
}
