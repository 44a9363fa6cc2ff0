//! The DynamoDB adapter on DynamoDB Local, or on the server that `FOLDSTREAM_DYNAMODB_ENDPOINT`
//! names.
//!
//! The contract suites run with tables of their own per test. The other tests need a real server.
use foldstream::CommitId;
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, PublishMode, TableOptions, create_tables};
use foldstream_live::dynamodb_config;
use foldstream_testkit::containers;
use std::sync::Arc;

async fn config() -> DynamoDbConfig {
    let server = containers::DynamoDb::shared().await;
    dynamodb_config(server.endpoint(), &CommitId::random().to_string())
}

async fn stores(config: DynamoDbConfig) -> DynamoDb {
    create_tables(&config, &TableOptions::default())
        .await
        .unwrap();
    DynamoDb::connect(config).await.unwrap()
}

mod event_store {
    use super::*;
    use foldstream::ports::EventStore;

    async fn fresh() -> Arc<dyn EventStore> {
        Arc::new(stores(config().await).await.event_store())
    }
    foldstream_testkit::event_store_contract! {
        #[ignore = "needs Docker; see CONTRIBUTING.md"]
        store = fresh,
        with = [atomic_append, unpublished],
    }
}

mod event_store_driven_by_the_change_stream {
    use super::*;
    use foldstream::ports::EventStore;

    async fn fresh() -> Arc<dyn EventStore> {
        let config = config().await.with_publish_mode(PublishMode::Stream);
        Arc::new(stores(config).await.event_store())
    }
    foldstream_testkit::event_store_contract! {
        #[ignore = "needs Docker; see CONTRIBUTING.md"]
        store = fresh,
        with = [atomic_append],
    }
}

mod snapshot_store {
    use super::*;
    use foldstream::ports::SnapshotStore;

    async fn fresh() -> Arc<dyn SnapshotStore> {
        Arc::new(stores(config().await).await.snapshot_store())
    }
    foldstream_testkit::snapshot_store_contract! {
        #[ignore = "needs Docker; see CONTRIBUTING.md"]
        store = fresh
    }
}

mod control_store {
    use super::*;
    use foldstream::ports::ControlStore;

    async fn fresh() -> Arc<dyn ControlStore> {
        Arc::new(stores(config().await).await.control_store())
    }
    foldstream_testkit::control_store_contract! {
        #[ignore = "needs Docker; see CONTRIBUTING.md"]
        store = fresh
    }
}

mod tables {
    use super::*;
    use foldstream::ports::RefusedKind;
    use foldstream_dynamodb::{BillingMode, DynamoDbError, TableClass};

    #[tokio::test]
    #[ignore = "needs Docker; see CONTRIBUTING.md"]
    async fn making_tables_again_with_every_option_changes_nothing() {
        let config = config().await;
        let options = TableOptions::default()
            .with_billing_mode(BillingMode::Provisioned { read: 5, write: 5 })
            .with_deletion_protection(Some(false))
            .with_table_class(Some(TableClass::Standard));
        create_tables(&config, &options).await.unwrap();
        create_tables(&config, &options).await.unwrap();
        DynamoDb::connect(config).await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs Docker; see CONTRIBUTING.md"]
    async fn an_option_that_the_server_lacks_is_refused_by_name() {
        let options = TableOptions::default().with_point_in_time_recovery(Some(true));
        match create_tables(&config().await, &options).await {
            // An AWS account has continuous backups.
            Ok(()) => {}
            Err(DynamoDbError::Refused {
                kind: RefusedKind::Unsupported,
                reason,
                ..
            }) => assert!(reason.contains("UpdateContinuousBackups"), "{reason}"),
            Err(error) => panic!("{error:?}"),
        }
    }

    #[tokio::test]
    #[ignore = "needs Docker; see CONTRIBUTING.md"]
    async fn missing_tables_say_how_to_make_them() {
        let error = DynamoDb::connect(config().await).await.unwrap_err();
        assert!(error.to_string().contains("create_tables"), "{error}");
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
}
