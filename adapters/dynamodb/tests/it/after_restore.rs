//! The command `foldstream-after-restore`, as an operator calls it.
use crate::support::{Server, append_of, given, stream};
use foldstream::{
    CommitId, StreamHead, SystemIds, Version,
    control::{Watermark, Watermarks},
    ports::{EventStore as _, SnapshotStore as _, StoredSnapshot},
};
use foldstream_dynamodb::DynamoDb;
use std::{process::Command, sync::Arc};

/// Exit status, and what was printed.
async fn call(endpoint: String, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foldstream-after-restore"));
    command
        .env_clear()
        .env("DYNAMODB_URL", endpoint)
        .args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}
fn watermarks(stores: &DynamoDb) -> Watermarks {
    Watermarks::new(Arc::new(stores.control_store()), Arc::new(SystemIds))
}

#[tokio::test]
async fn it_says_first_what_it_does_then_and_goes_on_where_it_stopped() {
    let server = Server::start();
    let stores = server.stores().await;
    let endpoint = || server.config().endpoint.unwrap();
    let store = stores.event_store();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let stream = stream();
        given(&store, &stream, &[1, 1]).await;
        let lost = Watermark::new(Version::new(9), CommitId::random());
        watermarks(&stores)
            .advance(&stream, None, lost)
            .await
            .unwrap();
        streams.push(stream);
    }
    let snapshots = stores.snapshot_store();
    let unpublished = append_of(&StreamHead::empty(stream()), 1);
    let _ = store.append(&unpublished).await.unwrap();
    let foreign = StoredSnapshot::new(
        unpublished.head.stream().clone(),
        Version::new(7),
        CommitId::random(),
        1,
        "{}".into(),
    );
    let _ = snapshots.save(&foreign).await.unwrap();

    let (status, said) = call(endpoint(), &["--nothing-written", "--aggregate", "cart"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(
        said.matches("watermark 9 comes down to 2").count(),
        5,
        "{said}"
    );
    assert!(said.contains("snapshot at 7 goes"), "{said}");
    assert!(said.contains("6 things would be repaired"), "{said}");
    let mark = watermarks(&stores).get(&streams[0]).await.unwrap().unwrap();
    assert_eq!(mark.value.version, Version::new(9), "only said");

    let apply = ["--nothing-written", "--aggregate", "cart", "--apply"];
    let (status, said) = call(endpoint(), &[&apply[..], &["--limit", "3"]].concat()).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("3 things repaired"), "{said}");
    let cursor = said.split('\'').nth(1).expect("a cursor");
    let (status, said) = call(endpoint(), &[&apply[..], &["--resume", cursor]].concat()).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("3 things repaired, 0 left"), "{said}");
    for stream in &streams {
        let mark = watermarks(&stores).get(stream).await.unwrap().unwrap();
        assert_eq!(mark.value.version, Version::new(2));
    }
    assert_eq!(snapshots.load(&foreign.stream).await.unwrap(), None);
}

#[tokio::test]
async fn what_it_cannot_repair_ends_it_with_a_status_of_its_own() {
    let server = Server::start();
    let stores = server.stores().await;
    let endpoint = server.config().endpoint.unwrap();
    let stream = stream();
    given(&stores.event_store(), &stream, &[1, 1]).await;
    let other = Watermark::new(Version::new(2), CommitId::random());
    watermarks(&stores)
        .advance(&stream, None, other)
        .await
        .unwrap();
    let (status, said) = call(endpoint, &["--nothing-written", "--apply"]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("LEFT AS IT IS"), "{said}");
}

#[tokio::test]
async fn tables_that_are_missing_are_named() {
    let endpoint = Server::start().config().endpoint.unwrap();
    let (status, said) = call(endpoint, &["--nothing-written"]).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("create_tables"), "{said}");
}
