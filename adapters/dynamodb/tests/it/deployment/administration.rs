//! The work of a deployment step, of an administrator after a restore, and of a program that
//! creates its own tables.
use crate::{
    read_model::{Notebook, model},
    support::{Call, Fate, Server, given, stream},
};
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    CommitId, SystemIds, Version,
    control::{RestoreRepair, Watermark, Watermarks, WritesSinceRestore},
    ports::{ControlStore as _, DeleteExpect, RowKey, SnapshotStore as _, StoredSnapshot},
};
use foldstream_dynamodb::{
    DynamoDb, PublishMode, TableOptions, create_tables_with_client, set_publish_mode_with_client,
};
use futures::TryStreamExt as _;
use std::{num::NonZeroU32, sync::Arc};

/// Checks the tables that CloudFormation has made, writes their settings, and returns the requests.
pub(super) async fn set_up(server: &Server, mode: PublishMode) -> Vec<Call> {
    let (client, wire) = server.wire(|_| Fate::Pass);
    let config = server.config().with_publish_mode(mode);
    let options = TableOptions::default();
    create_tables_with_client(client.clone(), &config, &options)
        .await
        .unwrap();
    // The stack has the new mode already, and with it the index.
    set_publish_mode_with_client(client, &config, mode)
        .await
        .unwrap();
    wire.calls()
}

/// Creates and changes tables without CloudFormation, and returns the requests.
pub(super) async fn create_own_tables() -> Vec<Call> {
    let server = Server::start();
    let (client, wire) = server.wire(|call| match call.operation.as_str() {
        // The emulator has no backups.
        "UpdateContinuousBackups" => Fate::Answer(200, "{}".into()),
        _ => Fate::Pass,
    });
    let options = TableOptions::default().with_point_in_time_recovery(Some(true));
    let config = server.config().with_publish_mode(PublishMode::Stream);
    create_tables_with_client(client.clone(), &config, &options)
        .await
        .unwrap();
    let both = PublishMode::Both;
    set_publish_mode_with_client(client.clone(), &config, both)
        .await
        .unwrap();
    let stores = DynamoDb::with_client(client, server.config())
        .await
        .unwrap();
    stores
        .read_model::<Notebook>()
        .create_table(&model())
        .await
        .unwrap();
    wire.calls()
}

/// Restores a history that is shorter than the watermarks and has a hole, repairs it, and returns
/// the requests.
pub(super) async fn restore(server: &Server, mode: PublishMode) -> Vec<Call> {
    let config = server.config().with_publish_mode(mode);
    let writer = DynamoDb::connect(config.clone()).await.unwrap();
    let (short, gone, broken) = (stream(), stream(), stream());
    given(&writer.event_store(), &short, &[1, 1]).await;
    given(&writer.event_store(), &broken, &[1, 1, 1]).await;
    crate::support::delete_raw(writer.client(), &broken, 2).await;
    let marks = Watermarks::new(Arc::new(writer.control_store()), Arc::new(SystemIds));
    for stream in [&short, &gone] {
        let lost = Watermark::new(Version::new(9), CommitId::random());
        marks.advance(stream, None, lost).await.unwrap();
    }
    let (seven, id) = (Version::new(7), CommitId::random());
    let snapshot = StoredSnapshot::new(short.clone(), seven, id, 1, "{}".into());
    let _ = writer.snapshot_store().save(&snapshot).await.unwrap();

    let (stores, wire) = server.connect_over(config, |_| Fate::Pass).await;
    let stores = stores.unwrap();
    let (events, control) = (stores.event_store(), stores.control_store());
    let repair = RestoreRepair::new(events, control, WritesSinceRestore::NoneYet)
        .with_snapshots(stores.snapshot_store())
        .with_aggregates(["cart"]);
    let all = NonZeroU32::new(1000).unwrap();
    let mut cursor = None;
    loop {
        let page = repair.repair(cursor.as_ref(), all).await.unwrap();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let mut scan = stores.holes();
    let mut holes = Vec::new();
    while let Some(found) = scan.next_page(all).await.unwrap() {
        holes.extend(found);
    }
    assert_eq!(holes.len(), 1);
    assert_eq!(holes[0].stream, broken);
    let items: Vec<_> = stores.items(&broken).try_collect().await.unwrap();
    assert_eq!(items.len(), 2);
    // The runbook: delete the items from the hole on, and marks of commands that cannot wait.
    let request = stores.client().delete_item().table_name("events");
    let request = request.key("pk", AttributeValue::S(broken.as_str().into()));
    request
        .key("sk", AttributeValue::N("3".into()))
        .send()
        .await
        .unwrap();
    let mark = RowKey::new("cmd/7", "cart#1");
    let _ = stores
        .control_store()
        .delete(&mark, DeleteExpect::Any)
        .await
        .unwrap();
    wire.calls()
}
