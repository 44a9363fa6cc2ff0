//! Appends whose answers are lost, on a real server behind a proxy that loses them.
//!
//! Given some writers, each alone on its streams, and a proxy that lets requests and answers fail.
//! When each writer appends until its commits are stored or abandoned, then the table holds
//! exactly the commits that were acknowledged, and the store never said "not applied" of a commit
//! that is in the table.
//!
//! There are 1,000 writers, each with a seed of its own, 16 at the same time. `FOLDSTREAM_LONG=1`
//! makes them 10,000, and `FOLDSTREAM_SEED=<n>` replays a single one.
mod server;
mod writer;

use self::{
    server::{ATTEMPT_TIMEOUT, Proxy},
    writer::{Tally, Writer},
};
use foldstream::{
    Aggregate, CommitId, DomainEvent, Repository, Settled, StreamHead, StreamId, id,
    ports::{Commit, EventStore, PendingAppend, ReadFrom},
};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, DynamoDbError, TableOptions, create_tables};
use foldstream_live::dynamodb_config;
use foldstream_testkit::{containers, length};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

const WRITERS: u64 = 1_000;
const WRITERS_OF_A_LONG_TEST: u64 = 10_000;
const WRITERS_AT_ONCE: usize = 16;
/// The longest time of one writer, which takes a second or two, and of connecting.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn appends_whose_answers_are_lost_are_neither_lost_nor_doubled() {
    let seeds = length::seeds(WRITERS, WRITERS_OF_A_LONG_TEST);
    let writers = seeds.end - seeds.start;
    let servers = Servers::start().await;

    let tally = stream::iter(seeds)
        .map(|seed| tally_of_writer(&servers, seed))
        .buffer_unordered(WRITERS_AT_ONCE)
        .fold(Tally::default(), async |sum, tally| sum + tally)
        .await;

    println!("{writers} writers: {tally:?}");
    println!("requests: {:?}", servers.proxy.fates());
    if writers >= WRITERS {
        tally.assert_that_all_cases_were_met();
    }
}

/// Runs one writer. A failure names the seed that replays it.
async fn tally_of_writer(servers: &Servers, seed: u64) -> Tally {
    let run = AssertUnwindSafe(Writer::new(servers, seed).run()).catch_unwind();
    match tokio::time::timeout(PATIENCE, run).await {
        Ok(Ok(tally)) => tally,
        Ok(Err(_)) => panic!("failed: replay it with FOLDSTREAM_SEED={seed}"),
        Err(_) => panic!("did not end: replay it with FOLDSTREAM_SEED={seed}"),
    }
}

id!(LedgerId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "proxy")]
enum LedgerEvent {
    Entered { amount: u64 },
}

/// An aggregate for the repository, which settles pending appends of any stream.
#[derive(Clone, Debug, Default)]
struct Ledger;
impl Aggregate for Ledger {
    type Id = LedgerId;
    type Event = LedgerEvent;
    fn evolve(&mut self, _: &LedgerEvent) {}
}

/// The proxy and the stores on both sides of it, which all writers share.
struct Servers {
    proxy: Proxy,
    /// The store under test, which reaches the server through the proxy.
    store: Arc<dyn EventStore>,
    /// A store that reaches the server directly, and shows the truth.
    direct: Arc<dyn EventStore>,
    /// A repository over `direct`.
    ledgers: Repository<Ledger>,
}

impl Servers {
    async fn start() -> Self {
        let server = containers::DynamoDb::shared().await;
        let config = dynamodb_config(server.endpoint(), &CommitId::random().to_string());
        let options = TableOptions::default();
        create_tables(&config, &options).await.unwrap();
        let proxy = Proxy::start(server.endpoint()).await;
        let through_proxy = config
            .clone()
            .with_endpoint(proxy.endpoint())
            .with_attempt_timeout(ATTEMPT_TIMEOUT)
            .with_max_attempts(2);
        let direct = event_store(config).await;
        Self {
            proxy,
            store: event_store(through_proxy).await,
            ledgers: Repository::new(direct.clone()),
            direct,
        }
    }

    async fn read(&self, stream: &StreamId) -> Vec<Commit> {
        let start = ReadFrom::After(StreamHead::empty(stream.clone()));
        let commits = self.direct.read(stream, start, None);
        commits.try_collect().await.unwrap()
    }

    async fn settle(&self, pending: &PendingAppend) -> Settled {
        self.ledgers.settle(pending).await.unwrap()
    }
}

async fn event_store(config: DynamoDbConfig) -> Arc<dyn EventStore> {
    let stores = tokio::time::timeout(PATIENCE, connect(config)).await;
    Arc::new(stores.expect("the server answers").event_store())
}

/// Connects as soon as the server answers within the timeout of an attempt, which it may not do
/// while other tests load it.
async fn connect(config: DynamoDbConfig) -> DynamoDb {
    loop {
        match DynamoDb::connect(config.clone()).await {
            Ok(stores) => return stores,
            Err(DynamoDbError::Unavailable { .. }) => {}
            Err(error) => panic!("cannot connect: {error}"),
        }
    }
}
