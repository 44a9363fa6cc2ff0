//! The creation of tables: idempotent, complete, and checked.
use crate::support::{Call, Fate, Server};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode as Billing, KeySchemaElement, KeyType, ScalarAttributeType,
    StreamViewType, TimeToLiveStatus,
};
use foldstream_dynamodb::{
    BillingMode, DynamoDb, DynamoDbError, PublishMode, TableOptions, create_tables,
    create_tables_with_client, set_publish_mode, set_publish_mode_with_client,
};

#[tokio::test]
async fn tables_have_indexes_change_stream_and_expiry() {
    let stores = Server::start().stores().await;
    let describe = stores.client().describe_table().table_name("events");
    let table = describe.send().await.unwrap().table.unwrap();
    let mut indexes: Vec<_> = table
        .global_secondary_indexes()
        .iter()
        .filter_map(|i| i.index_name())
        .collect();
    indexes.sort_unstable();
    assert_eq!(indexes, ["streams", "unpublished"]);
    let stream = table.stream_specification().unwrap();
    assert_eq!(stream.stream_view_type(), Some(&StreamViewType::NewImage));
    let ttl = stores
        .client()
        .describe_time_to_live()
        .table_name("events-control");
    let ttl = ttl.send().await.unwrap().time_to_live_description.unwrap();
    assert_eq!(ttl.attribute_name(), Some("x"));
    assert_eq!(ttl.time_to_live_status(), Some(&TimeToLiveStatus::Enabled));
}

#[tokio::test]
async fn tables_made_for_a_change_stream_have_no_index_of_markers() {
    let server = Server::start();
    let config = server.config().with_publish_mode(PublishMode::Stream);
    let stores = server.stores_with(config).await;
    let describe = stores.client().describe_table().table_name("events");
    let table = describe.send().await.unwrap().table.unwrap();
    assert_eq!(table.global_secondary_indexes().len(), 1);
}

#[tokio::test]
async fn an_index_that_the_mode_needs_must_be_there() {
    use aws_sdk_dynamodb::types::{
        DeleteGlobalSecondaryIndexAction, GlobalSecondaryIndexUpdate as Update,
    };
    let server = Server::start();
    let stores = server.stores().await;
    let delete = DeleteGlobalSecondaryIndexAction::builder().index_name("unpublished");
    let update = Update::builder().delete(delete.build().unwrap()).build();
    let request = stores.client().update_table().table_name("events");
    let request = request.global_secondary_index_updates(update);
    request.send().await.unwrap();
    for error in [
        DynamoDb::connect(server.config()).await.unwrap_err(),
        create_tables(&server.config(), &TableOptions::default())
            .await
            .unwrap_err(),
    ] {
        assert!(
            matches!(&error, DynamoDbError::TableMismatch { reason, .. }
                if reason.contains("unpublished") && reason.contains("KEYS_ONLY")),
            "{error}"
        );
    }
}

/// Sets the attribute by which DynamoDB deletes items of a table.
async fn expire(stores: &DynamoDb, table: &str, attribute: &str, enabled: bool) {
    use aws_sdk_dynamodb::types::TimeToLiveSpecification;
    let by = TimeToLiveSpecification::builder()
        .enabled(enabled)
        .attribute_name(attribute)
        .build()
        .unwrap();
    let request = stores.client().update_time_to_live().table_name(table);
    let request = request.time_to_live_specification(by);
    request.send().await.unwrap();
}

#[tokio::test]
async fn control_rows_that_expire_by_another_attribute_are_refused() {
    let server = Server::start();
    let stores = server.stores().await;
    expire(&stores, "events-control", "x", false).await;
    expire(&stores, "events-control", "ttl", true).await;
    let error = create_tables(&server.config(), &TableOptions::default())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, DynamoDbError::TableMismatch { .. }),
        "{text}"
    );
    for part in ["events-control", "attribute ttl", "not by x", "disable"] {
        assert!(text.contains(part), "{text}");
    }
    // The table is changed as the error advises.
    expire(&stores, "events-control", "ttl", false).await;
    server.stores().await;
}

#[tokio::test]
async fn events_and_snapshots_must_never_expire() {
    let server = Server::start();
    let stores = server.stores().await;
    for table in ["events", "events-snapshots"] {
        for attribute in ["t", "x"] {
            expire(&stores, table, attribute, true).await;
            let error = create_tables(&server.config(), &TableOptions::default())
                .await
                .unwrap_err();
            assert!(
                matches!(&error, DynamoDbError::TableMismatch { table: named, reason }
                    if named == table && reason.contains(attribute)),
                "{error}"
            );
            expire(&stores, table, attribute, false).await;
        }
    }
    server.stores().await;
}

/// Creates the events table by other means.
async fn made_by_hand(
    stores: &DynamoDb,
    table: &str,
    sort: ScalarAttributeType,
    indexes: &[(&str, &str, ScalarAttributeType)],
) {
    use aws_sdk_dynamodb::types::{GlobalSecondaryIndex, Projection, ProjectionType};
    let client = stores.client();
    client
        .delete_table()
        .table_name(table)
        .send()
        .await
        .unwrap();
    let key = |name: &str, kind| {
        let element = KeySchemaElement::builder().attribute_name(name);
        element.key_type(kind).build().unwrap()
    };
    let attribute = |name: &str, kind| {
        let defined = AttributeDefinition::builder().attribute_name(name);
        defined.attribute_type(kind).build().unwrap()
    };
    let mut create = client
        .create_table()
        .table_name(table)
        .billing_mode(Billing::PayPerRequest)
        .attribute_definitions(attribute("pk", ScalarAttributeType::S))
        .attribute_definitions(attribute("sk", sort))
        .key_schema(key("pk", KeyType::Hash))
        .key_schema(key("sk", KeyType::Range));
    for (name, hash, kind) in indexes {
        let keys_only = Projection::builder().projection_type(ProjectionType::KeysOnly);
        let index = GlobalSecondaryIndex::builder()
            .index_name(*name)
            .key_schema(key(hash, KeyType::Hash))
            .key_schema(key("pk", KeyType::Range))
            .projection(keys_only.build());
        create = create
            .attribute_definitions(attribute(hash, kind.clone()))
            .global_secondary_indexes(index.build().unwrap());
    }
    create.send().await.unwrap();
}

#[tokio::test]
async fn connect_checks_keys_indexes_and_stream_of_tables_that_it_describes() {
    use foldstream_dynamodb::Replication;
    let (text, number) = (ScalarAttributeType::S, ScalarAttributeType::N);
    let indexes = vec![
        ("streams", "ls", text.clone()),
        ("unpublished", "mk", text.clone()),
    ];
    for (sort, indexes, said) in [
        (text, Vec::new(), "sk is not of type N"),
        (number.clone(), Vec::new(), "no index streams"),
        (number, indexes, "no new images"),
    ] {
        let server = Server::start();
        let stores = server.stores().await;
        made_by_hand(&stores, "events", sort, &indexes).await;
        // Without a request for the table nothing is checked.
        let unasked = server.config().with_replication(Replication::None);
        DynamoDb::connect(unasked).await.unwrap();
        let error = DynamoDb::connect(server.config()).await.unwrap_err();
        assert_mismatch(&error, "events", said);
    }
}

/// DynamoDB would refuse every commit that is listed or marked.
#[tokio::test]
async fn an_index_whose_key_is_of_another_type_is_refused_by_all() {
    let (text, number) = (ScalarAttributeType::S, ScalarAttributeType::N);
    for (ls, mk, said) in [
        (&number, &text, "ls of its index streams is not of type S"),
        (
            &text,
            &number,
            "mk of its index unpublished is not of type S",
        ),
    ] {
        let server = Server::start();
        let (config, stores) = (server.config(), server.stores().await);
        let indexes = [
            ("streams", "ls", ls.clone()),
            ("unpublished", "mk", mk.clone()),
        ];
        made_by_hand(&stores, "events", number.clone(), &indexes).await;
        for error in [
            DynamoDb::connect(config.clone()).await.unwrap_err(),
            create_tables(&config, &TableOptions::default())
                .await
                .unwrap_err(),
            set_publish_mode(&config, PublishMode::Both)
                .await
                .unwrap_err(),
        ] {
            assert_mismatch(&error, "events", said);
        }
    }
}

fn assert_mismatch(error: &DynamoDbError, table: &str, said: &str) {
    assert!(
        matches!(error, DynamoDbError::TableMismatch { table: named, reason }
            if named == table && reason.contains(said)),
        "{error}"
    );
}

/// Each error names the call to repeat, since the other call would not do the same.
#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_become_active_is_an_error_that_names_the_call_to_repeat() {
    let server = Server::start();
    let table = r#"{"Table":{"TableStatus":"UPDATING","GlobalSecondaryIndexes":[
        {"IndexName":"unpublished","IndexStatus":"CREATING"}]}}"#;
    let client = || {
        let answer = |call: &Call| match call.operation.as_str() {
            "DescribeTable" => Fate::Answer(200, table.into()),
            _ => Fate::Answer(200, "{}".into()),
        };
        server.client_over(answer)
    };
    let (config, options) = (server.config(), TableOptions::default());
    let made = create_tables_with_client(client(), &config, &options).await;
    let changed = set_publish_mode_with_client(client(), &config, PublishMode::Both).await;
    for (error, call) in [
        (made.unwrap_err(), "run create_tables again"),
        (changed.unwrap_err(), "call set_publish_mode again"),
    ] {
        assert!(
            matches!(&error, DynamoDbError::NotActive { status, .. }
                if status == "index unpublished CREATING"),
            "{error}"
        );
        assert!(error.is_transient());
        let text = error.to_string();
        assert!(text.contains(call), "{text}");
        assert_eq!(text.matches(" again").count(), 1, "{text}");
    }
}

#[tokio::test]
async fn making_tables_again_changes_nothing() {
    let server = Server::start();
    let config = server.config().with_prefix("a-").with_table_name("b");
    let options = TableOptions::default();
    create_tables(&config, &options).await.unwrap();
    create_tables(&config, &options).await.unwrap();
    let stores = DynamoDb::connect(config).await.unwrap();
    let names = stores
        .client()
        .list_tables()
        .send()
        .await
        .unwrap()
        .table_names
        .unwrap();
    assert_eq!(names, ["a-b", "a-b-control", "a-b-snapshots"]);
}

#[tokio::test]
async fn several_processes_make_tables_at_the_same_time() {
    let server = Server::start();
    let (config, options) = (server.config(), TableOptions::default());
    let all = (0..4).map(|_| create_tables(&config, &options));
    for made in futures::future::join_all(all).await {
        made.unwrap();
    }
}

#[tokio::test]
async fn options_that_are_set_are_sent() {
    let server = Server::start();
    let options = TableOptions::default()
        .with_billing_mode(BillingMode::Provisioned { read: 3, write: 2 })
        .with_deletion_protection(Some(true));
    create_tables(&server.config(), &options).await.unwrap();
    let stores = DynamoDb::connect(server.config()).await.unwrap();
    let describe = stores.client().describe_table().table_name("events");
    let table = describe.send().await.unwrap().table.unwrap();
    assert_eq!(table.deletion_protection_enabled(), Some(true));
    let throughput = table.provisioned_throughput().unwrap();
    assert_eq!(throughput.read_capacity_units(), Some(3));
    assert_eq!(throughput.write_capacity_units(), Some(2));
}

#[tokio::test]
async fn other_shard_counts_than_the_tables_are_refused() {
    let server = Server::start();
    server.stores().await;
    for (config, field) in [
        (server.config().with_list_shards(8), "list_shards"),
        (server.config().with_marker_shards(8), "marker_shards"),
    ] {
        let options = TableOptions::default();
        for error in [
            DynamoDb::connect(config.clone()).await.unwrap_err(),
            create_tables(&config, &options).await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                matches!(error, DynamoDbError::FormatMismatch { .. }),
                "{text}"
            );
            assert!(
                text.contains(field) && text.contains("16") && text.contains('8'),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn tables_without_the_format_row_are_refused_until_they_are_completed() {
    let server = Server::start();
    let stores = server.stores().await;
    let delete = stores.client().delete_item().table_name("events-control");
    let text = |t: &str| aws_sdk_dynamodb::types::AttributeValue::S(t.into());
    delete
        .key("pk", text("meta"))
        .key("sk", text("format"))
        .send()
        .await
        .unwrap();
    let error = DynamoDb::connect(server.config()).await.unwrap_err();
    assert!(matches!(error, DynamoDbError::NoFormat { .. }), "{error:?}");
    assert!(error.to_string().contains("create_tables"));
    server.stores().await;
}

#[tokio::test]
async fn a_foreign_table_is_refused_by_name() {
    let server = Server::start();
    // Another table has the name of the events table.
    let stores = server
        .stores_with(server.config().with_prefix("other-"))
        .await;
    let key = KeySchemaElement::builder()
        .attribute_name("id")
        .key_type(KeyType::Hash);
    let id = AttributeDefinition::builder()
        .attribute_name("id")
        .attribute_type(ScalarAttributeType::S);
    let create = stores.client().create_table().table_name("events");
    let create = create.key_schema(key.build().unwrap());
    let create = create.attribute_definitions(id.build().unwrap());
    create
        .billing_mode(Billing::PayPerRequest)
        .send()
        .await
        .unwrap();
    let error = create_tables(&server.config(), &TableOptions::default())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, DynamoDbError::TableMismatch { .. }),
        "{text}"
    );
    assert!(
        text.contains("table events") && text.contains("DYNAMODB_PREFIX"),
        "{text}"
    );
}
