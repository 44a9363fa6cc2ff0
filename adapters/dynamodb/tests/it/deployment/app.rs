//! The work of an application: commands, transactions, snapshots, idempotent commands, reads of
//! past states, and queries of read models.
use crate::{
    read_model::{Notebook, context, model, notebook, noted},
    support::{Call, Fate, Server, key},
};
use foldstream::{
    Metadata, Repository, SnapshotPolicy, StreamId, Transaction, runner::Projector as _,
};
use foldstream_dynamodb::{DynamoDb, IndexQuery, PublishMode};
use foldstream_testkit::domains::account::{Account, AccountCommand, AccountId};
use futures::TryStreamExt as _;
use std::time::Duration;

/// Hides an item from all queries and scans of the events table. A reader then asks for it by its
/// key.
pub(super) fn hide(stream: &StreamId, first: u64) -> impl Fn(&Call) -> Fate + Send + Sync + use<> {
    let hidden = key(stream, first);
    let hidden = ["pk", "sk"].map(|name| hidden[name].clone());
    move |call: &Call| {
        let lists = matches!(&*call.operation, "Query" | "Scan");
        if !lists || call.body["TableName"] != "events" {
            return Fate::Pass;
        }
        let (pk, sk) = (
            hidden[0].as_s().unwrap().clone(),
            hidden[1].as_n().unwrap().clone(),
        );
        Fate::Change(Box::new(move |answer| {
            if let Some(items) = answer["Items"].as_array_mut() {
                items.retain(|item| item["pk"]["S"] != *pk || item["sk"]["N"] != *sk);
                answer["Count"] = items.len().into();
            }
        }))
    }
}

fn open() -> AccountCommand {
    AccountCommand::Open {
        owner: "Ada".into(),
    }
}
fn deposit() -> AccountCommand {
    AccountCommand::Deposit { amount: 5 }
}

/// Does the work, and returns the requests.
pub(super) async fn work(server: &Server, mode: PublishMode) -> Vec<Call> {
    let config = server.config().with_publish_mode(mode);
    let (stores, wire) = server.connect_over(config, |_| Fate::Pass).await;
    let stores = stores.unwrap();
    let (ann, bob) = (AccountId::from("ann"), AccountId::from("bob"));
    let accounts = || Repository::<Account>::new(stores.event_store());

    accounts().execute(&ann, open()).await.unwrap();
    for _ in 0..3 {
        accounts().execute(&ann, deposit()).await.unwrap();
    }
    // A reader that misses a commit asks for it.
    wire.decide(hide(&Repository::<Account>::stream_id(&ann).unwrap(), 2));
    accounts().load(&ann).await.unwrap();
    wire.decide(|_| Fate::Pass);
    let history = accounts();
    history.history(&ann).try_collect::<Vec<_>>().await.unwrap();

    let transfer = Transaction::new(stores.event_store());
    transfer.execute(&accounts(), &bob, open()).await.unwrap();
    transfer.require_unchanged(accounts().load(&ann).await.unwrap().head());
    transfer.commit().await.unwrap();

    let once = accounts().with_idempotency(stores.control_store(), Duration::from_secs(86_400));
    for _ in 0..2 {
        let metadata = Metadata::new().with_command_id("pay-7");
        once.execute_with(&ann, deposit(), metadata).await.unwrap();
    }
    let policy = SnapshotPolicy::every(1);
    let snapshots = accounts().with_snapshots(stores.snapshot_store(), policy);
    snapshots.execute(&ann, deposit()).await.unwrap();
    snapshots.close().await;
    snapshots.load(&ann).await.unwrap();
    snapshots.forget(&ann).await.unwrap();

    query(&stores, server).await;
    wire.calls()
}

/// Queries rows that a runner has written.
async fn query(stores: &DynamoDb, server: &Server) {
    let runner = DynamoDb::connect(server.config()).await.unwrap();
    let written = runner.read_model::<Notebook>();
    let stream = notebook(1);
    let event = noted(2);
    written.project(&event, &context(&stream, 1)).await.unwrap();
    written.flush(&model()).await.unwrap();

    let rows = stores.read_model::<Notebook>();
    assert!(rows.get(&model(), stream.as_str()).await.unwrap().is_some());
    let all: Vec<_> = rows.all(&model()).try_collect().await.unwrap();
    let even = IndexQuery::new("even");
    let even: Vec<_> = rows.query(&model(), &even).try_collect().await.unwrap();
    assert_eq!((all.len(), even.len()), (1, 1));
}
