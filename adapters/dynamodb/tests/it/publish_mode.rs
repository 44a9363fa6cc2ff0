//! The publish mode is a property of the tables, and is changed by its own call.
use crate::support::{Server, append_of, s, stream};
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use foldstream::{
    StreamHead,
    ports::{EventStore as _, Segment},
};
use foldstream_dynamodb::{
    DynamoDb, DynamoDbError, PublishMode, TableOptions, create_tables, set_publish_mode,
};
use std::num::NonZeroU32;

const ALL: [PublishMode; 3] = [PublishMode::Poller, PublishMode::Both, PublishMode::Stream];

fn assert_names_the_mode(error: &DynamoDbError, stored: PublishMode, configured: PublishMode) {
    let text = error.to_string();
    assert!(
        matches!(
            error,
            DynamoDbError::FormatMismatch {
                field: "publish_mode",
                ..
            }
        ),
        "{text}"
    );
    for part in [
        stored.to_string(),
        configured.to_string(),
        "set_publish_mode".into(),
    ] {
        assert!(text.contains(&part), "{text}");
    }
    assert!(text.contains("DYNAMODB_PUBLISH_MODE"), "{text}");
}
async fn lists_what_it_appends(stores: &DynamoDb) -> bool {
    let store = stores.event_store();
    let append = append_of(&StreamHead::empty(stream()), 1);
    let _ = store.append(&append).await.unwrap();
    if !store.capabilities().lists_unpublished {
        return false;
    }
    let page = store.unpublished(Segment::ALL, None, NonZeroU32::MAX);
    page.await.unwrap().keys.contains(&append.to_commit().key())
}

#[tokio::test]
async fn a_process_of_another_mode_is_refused_and_told_what_to_do() {
    for stored in ALL {
        let server = Server::start();
        let config = server.config().with_publish_mode(stored);
        server.stores_with(config).await;
        for configured in ALL {
            let config = server.config().with_publish_mode(configured);
            let connected = DynamoDb::connect(config.clone()).await;
            let made = create_tables(&config, &TableOptions::default()).await;
            if configured == stored {
                connected.unwrap();
                made.unwrap();
            } else {
                assert_names_the_mode(&connected.unwrap_err(), stored, configured);
                assert_names_the_mode(&made.unwrap_err(), stored, configured);
            }
        }
    }
}

#[tokio::test]
async fn new_tables_have_the_mode_stream_unless_another_one_is_configured() {
    let server = Server::start();
    let stores = server.stores_with(server.config()).await;
    assert!(!lists_what_it_appends(&stores).await);
    let stream = server.config().with_publish_mode(PublishMode::Stream);
    DynamoDb::connect(stream).await.unwrap();
}

#[tokio::test]
async fn a_process_without_a_mode_takes_that_of_the_tables() {
    for stored in ALL {
        let server = Server::start();
        let config = server.config().with_publish_mode(stored);
        create_tables(&config, &TableOptions::default())
            .await
            .unwrap();
        // Another call without a mode does not change the mode.
        let stores = server.stores_with(server.config()).await;
        assert_eq!(
            lists_what_it_appends(&stores).await,
            stored.marks_commits(),
            "{stored}"
        );
    }
}

#[tokio::test]
async fn a_new_mode_holds_for_every_process_that_connects_from_then_on() {
    for from in ALL {
        for to in ALL {
            let server = Server::start();
            let config = server.config().with_publish_mode(from);
            server.stores_with(config.clone()).await;
            for _ in 0..2 {
                set_publish_mode(&config, to).await.unwrap();
            }
            let connected = DynamoDb::connect(config).await;
            if from != to {
                assert_names_the_mode(&connected.unwrap_err(), to, from);
            }
            // The tables may also have been created without the index of markers.
            let stores = server.stores_with(server.config()).await;
            assert_eq!(
                lists_what_it_appends(&stores).await,
                to.marks_commits(),
                "{from} to {to}"
            );
        }
    }
}

/// A later build may have written fields that this build does not know, and reads them again.
#[tokio::test]
async fn changing_the_mode_keeps_what_a_later_build_has_written_into_the_row() {
    let server = Server::start();
    let stores = server.stores().await;
    let client = stores.client();
    let row = || async {
        let get = client.get_item().table_name("events-control");
        let get = get.key("pk", s("meta")).key("sk", s("format"));
        get.send().await.unwrap().item.unwrap()
    };
    let value_of = |attribute: &AttributeValue| -> serde_json::Value {
        serde_json::from_slice(attribute.as_b().unwrap().as_ref()).unwrap()
    };
    let mut later = row().await;
    let mut value = value_of(&later["d"]);
    value["of_a_later_build"] = serde_json::json!({ "n": [7, null] });
    let blob = Blob::new(value.to_string());
    later.insert("d".into(), AttributeValue::B(blob));
    later.insert("r".into(), s("1".repeat(32)));
    later.insert("later".into(), s("attribute"));
    let put = client.put_item().table_name("events-control");
    put.set_item(Some(later.clone())).send().await.unwrap();
    set_publish_mode(&server.config(), PublishMode::Both)
        .await
        .unwrap();
    let mut changed = row().await;
    value["publish_mode"] = "both".into();
    assert_eq!(value_of(&changed["d"]), value);
    changed.remove("d");
    later.remove("d");
    assert_eq!(changed, later);
    server.stores_with(server.config()).await;
}

#[tokio::test]
async fn several_processes_change_the_mode_at_the_same_time() {
    let server = Server::start();
    let config = server.config().with_publish_mode(PublishMode::Stream);
    server.stores_with(config.clone()).await;
    let all = (0..4).map(|_| set_publish_mode(&config, PublishMode::Both));
    for changed in futures::future::join_all(all).await {
        changed.unwrap();
    }
    let both = server.config().with_publish_mode(PublishMode::Both);
    DynamoDb::connect(both).await.unwrap();
}

#[tokio::test]
async fn the_mode_of_tables_that_are_not_there_cannot_be_changed() {
    let server = Server::start();
    let error = set_publish_mode(&server.config(), PublishMode::Both)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("create_tables"), "{error}");
    let shards = server.config().with_list_shards(3);
    server.stores_with(shards).await;
    let error = set_publish_mode(&server.config(), PublishMode::Both)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            DynamoDbError::FormatMismatch {
                field: "list_shards",
                ..
            }
        ),
        "{error}"
    );
}
