//! The command `foldstream-after-restore`, called as an operator would.
use crate::support::{Server, append_of, given, stream};
use foldstream::{
    CommitId, StreamHead, SystemIds, Version,
    control::{Watermark, Watermarks},
    ports::{EventStore as _, SnapshotStore as _, StoredSnapshot},
};
use foldstream_dynamodb::DynamoDb;
use std::{process::Command, sync::Arc};

/// Runs the command, and returns its exit status and its output.
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
    let watermark = watermarks(&stores).get(&streams[0]).await.unwrap().unwrap();
    assert_eq!(watermark.value.version, Version::new(9), "only said");

    let apply = ["--nothing-written", "--aggregate", "cart", "--apply"];
    let (status, said) = call(endpoint(), &[&apply[..], &["--limit", "3"]].concat()).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("3 things repaired"), "{said}");
    let cursor = said.split('\'').nth(1).expect("a cursor");
    let (status, said) = call(endpoint(), &[&apply[..], &["--resume", cursor]].concat()).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("3 things repaired, 0 left"), "{said}");
    for stream in &streams {
        let watermark = watermarks(&stores).get(stream).await.unwrap().unwrap();
        assert_eq!(watermark.value.version, Version::new(2));
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

/// The holes are a commit missing in the middle, a part missing from the last commit, and all items
/// missing before a commit.
#[tokio::test]
async fn streams_with_holes_are_listed_and_exported_whole() {
    use crate::support::{delete_raw, event, get_raw};
    use foldstream::ports::Append;
    let server = Server::start();
    let stores = server.stores().await;
    let (store, client) = (stores.event_store(), stores.client());
    let [whole, middle, beginning] = [stream(), stream(), stream()];
    for stream in [&whole, &middle, &beginning] {
        given(&store, stream, &[1, 2, 1, 1]).await;
    }
    delete_raw(client, &middle, 4).await;
    delete_raw(client, &beginning, 1).await;
    let events = vec![event(format!("\"{}\"", "x".repeat(300_000))); 2];
    let part = StreamHead::empty(stream());
    let split = Append::after(part.clone(), CommitId::random(), part.recorded_at(), events);
    let _ = store.append(&split).await.unwrap();
    let kept = get_raw(client, part.stream(), 1).await.unwrap();
    delete_raw(client, part.stream(), 2).await;

    let folder = std::env::temp_dir().join(format!("foldstream-{}", CommitId::random()));
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("holes.jsonl");
    let path = file.to_str().unwrap();
    let arguments = [
        "--nothing-written",
        "--holes",
        "--rate",
        "1000",
        "--export",
        path,
    ];
    let endpoint = || server.config().endpoint.unwrap();
    let (status, said) = call(endpoint(), &arguments).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(!said.contains(whole.as_str()), "{said}");
    for (stream, after) in [(&middle, 3), (&beginning, 0), (part.stream(), 0)] {
        let line = said.lines().find(|line| line.contains(stream.as_str()));
        let line = line.unwrap_or_else(|| panic!("{stream} is not listed: {said}"));
        assert!(line.contains(&format!("after version {after} ")), "{line}");
    }
    assert!(said.contains("exported 7 items of 3 streams"), "{said}");

    let lines = std::fs::read_to_string(&file).unwrap();
    let items: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(items.iter().all(|item| item["table"] == "events"));
    let of = |stream: &foldstream::StreamId| -> Vec<String> {
        let ours = items
            .iter()
            .filter(|i| i["item"]["pk"]["S"] == stream.as_str());
        ours.map(|i| i["item"]["sk"]["N"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(of(&middle), ["1", "2", "5"]);
    assert_eq!(of(&beginning), ["2", "4", "5"]);
    assert_eq!(of(part.stream()), ["1"]);
    // The export has every attribute, byte for byte.
    let exported = items
        .iter()
        .find(|i| i["item"]["pk"]["S"] == part.stream().as_str());
    let exported = exported.unwrap()["item"].as_object().unwrap();
    assert_eq!(exported.len(), kept.len());
    let stamp = kept["c"].as_b().unwrap().as_ref();
    let base64 = exported["c"]["B"].as_str().unwrap();
    assert_eq!(aws_smithy_types::base64::decode(base64).unwrap(), stamp);
    assert_eq!(
        exported["e"]["S"].as_str().unwrap(),
        kept["e"].as_s().unwrap()
    );

    // An existing export is never overwritten.
    let (status, said) = call(endpoint(), &arguments).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(path), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), lines);
    std::fs::remove_dir_all(folder).unwrap();
}
