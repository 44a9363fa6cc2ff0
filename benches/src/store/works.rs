//! The works, done by both sides in turns.
use super::{
    Commits, Kind, READ_UNITS, Size, TIME, TRIPS, WRITE_UNITS, Work,
    endpoint::{Cost, Endpoint},
    raw::Raw,
};
use crate::{
    BenchError,
    account::{Account, AccountEvent, AccountId, Deposit, Deposits},
};
use aws_sdk_dynamodb::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    types::StreamSpecification,
};
use foldstream::{Repository, SnapshotPolicy, StreamHead};
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, PublishMode, TableOptions, create_tables};
use futures::future::try_join_all;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Samples of our side and the other, by measure.
pub(super) type Samples = HashMap<&'static str, (Vec<f64>, Vec<f64>)>;

/// Commands that a stream gets in one round of commands, beside the one that makes it.
const COMMANDS: u64 = 9;
/// A snapshot is taken every so many events, and a stream with one has so many more events behind it.
const SNAPSHOT_EVERY: u64 = 100;
const BEHIND_SNAPSHOT: u64 = 20;

/// Both sides over one client.
#[derive(Clone)]
struct Sides {
    stores: DynamoDb,
    raw: Raw,
}

pub(super) struct Bench<'a> {
    size: Size,
    sabotage: Option<&'static str>,
    endpoint: &'a Endpoint,
    direct: Sides,
    metered: Sides,
    distant: Sides,
    /// Streams made so far: each round has its own.
    made: u64,
}

fn client(endpoint: &str) -> Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "bench"))
        .endpoint_url(endpoint);
    Client::from_conf(config.build())
}

impl Sides {
    async fn over(endpoint: &str) -> Result<Self, BenchError> {
        let config = config(endpoint);
        let client = client(endpoint);
        let stores = DynamoDb::with_client(client.clone(), config).await;
        Ok(Self {
            stores: stores.map_err(BenchError::other)?,
            raw: Raw::new(client),
        })
    }
    fn accounts(&self, warm: bool) -> Repository<Account> {
        let accounts = Repository::new(Arc::new(self.stores.event_store()));
        if warm {
            accounts.with_cache(100_000)
        } else {
            accounts
        }
    }
}

fn config(endpoint: &str) -> DynamoDbConfig {
    let mut config = DynamoDbConfig::default().with_endpoint(endpoint);
    config.publish_mode = Some(PublishMode::Stream);
    config
}

/// Takes the change stream off: the other side's table has none, and the emulator looks through all stream records at
/// each write, which DynamoDB does not.
async fn without_stream(stores: &DynamoDb, table: &str) -> Result<(), BenchError> {
    let off = StreamSpecification::builder().stream_enabled(false).build();
    stores
        .client()
        .update_table()
        .table_name(table)
        .stream_specification(off.map_err(BenchError::other)?)
        .send()
        .await
        .map_err(BenchError::other)?;
    Ok(())
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

impl<'a> Bench<'a> {
    pub(super) async fn start(
        size: Size,
        sabotage: Option<&'static str>,
        endpoint: &'a Endpoint,
    ) -> Result<Self, BenchError> {
        create_tables(&config(&endpoint.direct), &TableOptions::default())
            .await
            .map_err(BenchError::other)?;
        let direct = Sides::over(&endpoint.direct).await?;
        direct.raw.create_table().await?;
        without_stream(&direct.stores, &config(&endpoint.direct).events_table()).await?;
        Ok(Self {
            size,
            sabotage,
            metered: Sides::over(&endpoint.metered).await?,
            distant: Sides::over(&endpoint.distant).await?,
            direct,
            endpoint,
            made: 0,
        })
    }

    pub(super) async fn measure(&mut self, work: &Work) -> Result<Samples, BenchError> {
        let mut samples = Samples::new();
        match work.kind {
            Kind::Command { warm, at_once } => self.commands(warm, at_once, &mut samples).await?,
            Kind::TenEvents => self.ten_events(&mut samples).await?,
            Kind::Load {
                commits,
                events_each,
            } => {
                let commits = match commits {
                    Commits::These(n) => n,
                    Commits::Long => self.size.long,
                };
                self.load(commits, events_each, &mut samples).await?;
            }
            Kind::LoadWithSnapshot => self.load_with_snapshot(&mut samples).await?,
        }
        Ok(samples)
    }

    fn ids(&mut self, n: u64) -> Vec<String> {
        let ids = (self.made..self.made + n).map(|i| format!("account-{i:08}"));
        self.made += n;
        ids.collect()
    }

    fn is_sabotaged(&self, measure: &str) -> bool {
        self.sabotage == Some(measure)
    }

    /// What a sabotaged command does besides.
    async fn more(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &AccountId,
        n: u64,
    ) -> Result<(), BenchError> {
        match self.sabotage {
            Some(WRITE_UNITS) => {
                let other = format!("{id}-sabotage");
                sides.raw.put(&other, n, &Deposit::number(n)).await
            }
            Some(_) => accounts.load(id).await.map(drop).map_err(BenchError::other),
            None => Ok(()),
        }
    }

    /// Nine commands on a stream that has one event.
    async fn our_commands(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &str,
    ) -> Result<(), BenchError> {
        let id = AccountId::from(id);
        for n in 2..=COMMANDS + 1 {
            let done = accounts.execute(&id, Deposit::number(n)).await;
            let done = done.map_err(BenchError::other)?;
            assert_state(done.state().balance, n)?;
            self.more(sides, accounts, &id, n).await?;
        }
        Ok(())
    }

    async fn their_commands(raw: &Raw, id: &str) -> Result<(), BenchError> {
        for n in 2..=COMMANDS + 1 {
            let state = raw.execute(id, &Deposit::number(n)).await?;
            assert_state(state.balance, n)?;
        }
        Ok(())
    }

    /// Streams with one event on both sides, known to the cache if there is one.
    async fn begin(
        sides: &Sides,
        accounts: &Repository<Account>,
        ids: &[String],
    ) -> Result<(), BenchError> {
        for id in ids {
            let account = AccountId::from(&**id);
            let done = accounts.execute(&account, Deposit::number(1)).await;
            done.map_err(BenchError::other)?;
            sides.raw.put(id, 1, &Deposit::number(1)).await?;
        }
        Ok(())
    }

    async fn commands(
        &mut self,
        warm: bool,
        at_once: u64,
        samples: &mut Samples,
    ) -> Result<(), BenchError> {
        let sides = self.metered.clone();
        let accounts = sides.accounts(warm);
        let ids = self.ids(self.size.streams);
        Self::begin(&sides, &accounts, &ids).await?;
        for id in &ids {
            self.endpoint.take_cost();
            self.our_commands(&sides, &accounts, id).await?;
            let ours = self.endpoint.take_cost() / COMMANDS as f64;
            Self::their_commands(&sides.raw, id).await?;
            let theirs = self.endpoint.take_cost() / COMMANDS as f64;
            add_costs(samples, ours, theirs);
        }

        let sides = self.direct.clone();
        // The first round warms up and is not counted.
        for round in 0..=self.size.rounds {
            let accounts = sides.accounts(warm);
            let ids = self.ids(self.size.streams.max(at_once));
            Self::begin(&sides, &accounts, &ids).await?;
            let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
            for ids in ids.chunks(usize::try_from(at_once).unwrap_or(1)) {
                let started = Instant::now();
                let all = ids
                    .iter()
                    .map(|id| self.our_commands(&sides, &accounts, id));
                try_join_all(all).await?;
                ours += started.elapsed();
                let started = Instant::now();
                try_join_all(ids.iter().map(|id| Self::their_commands(&sides.raw, id))).await?;
                theirs += started.elapsed();
            }
            if round > 0 {
                add(samples, TIME, ms(ours), ms(theirs));
            }
        }
        Ok(())
    }

    async fn ten_events(&mut self, samples: &mut Samples) -> Result<(), BenchError> {
        let sides = self.metered.clone();
        let accounts = sides.accounts(true);
        let ids = self.ids(self.size.streams);
        Self::begin(&sides, &accounts, &ids).await?;
        for id in &ids {
            self.endpoint.take_cost();
            self.our_ten(&sides, &accounts, id, 2).await?;
            let ours = self.endpoint.take_cost();
            Self::their_ten(&sides.raw, id, 2).await?;
            add_costs(samples, ours, self.endpoint.take_cost());
        }

        let sides = self.direct.clone();
        let accounts = sides.accounts(true);
        let ids = self.ids(self.size.streams);
        Self::begin(&sides, &accounts, &ids).await?;
        for round in 0..=self.size.rounds as u64 {
            let first = round * 10 + 2;
            let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
            for id in &ids {
                let started = Instant::now();
                self.our_ten(&sides, &accounts, id, first).await?;
                ours += started.elapsed();
                let started = Instant::now();
                Self::their_ten(&sides.raw, id, first).await?;
                theirs += started.elapsed();
            }
            if round > 0 {
                add(samples, TIME, ms(ours), ms(theirs));
            }
        }
        Ok(())
    }

    /// Ten deposits in one command.
    async fn our_ten(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &str,
        first: u64,
    ) -> Result<(), BenchError> {
        let id = AccountId::from(id);
        let command = Deposits((first..first + 10).map(Deposit::number).collect());
        let done = accounts.execute(&id, command).await;
        let done = done.map_err(BenchError::other)?;
        // One read more would hardly be seen beside ten puts.
        let times = if self.is_sabotaged(TIME) { 4 } else { 1 };
        for _ in 0..times {
            self.more(sides, accounts, &id, first).await?;
        }
        assert_state(done.state().balance, first + 9)
    }

    async fn their_ten(raw: &Raw, id: &str, first: u64) -> Result<(), BenchError> {
        for n in first..first + 10 {
            raw.put(id, n, &Deposit::number(n)).await?;
        }
        Ok(())
    }

    async fn load(
        &mut self,
        commits: u64,
        each: u64,
        samples: &mut Samples,
    ) -> Result<(), BenchError> {
        let id = self.ids(1).remove(0);
        let account = AccountId::from(&*id);
        let events = commits * each;
        fill(&self.direct.accounts(false), &account, commits, each).await?;
        self.direct.raw.fill(&id, events).await?;

        let sides = self.metered.clone();
        self.endpoint.take_cost();
        self.our_load(&sides, &account, events).await?;
        let ours = self.endpoint.take_cost();
        sides.raw.load(&id).await?;
        add_costs(samples, ours, self.endpoint.take_cost());

        let sides = self.direct.clone();
        for round in 0..=self.size.rounds {
            let started = Instant::now();
            self.our_load(&sides, &account, events).await?;
            let ours = started.elapsed();
            let started = Instant::now();
            assert_state(sides.raw.load(&id).await?.balance, events)?;
            if round > 0 {
                add(samples, TIME, ms(ours), ms(started.elapsed()));
            }
        }
        Ok(())
    }

    async fn our_load(&self, sides: &Sides, id: &AccountId, events: u64) -> Result<(), BenchError> {
        let accounts = sides.accounts(false);
        let loaded = accounts.load(id).await.map_err(BenchError::other)?;
        self.more(sides, &accounts, id, 1).await?;
        assert_state(loaded.state().balance, events)
    }

    async fn load_with_snapshot(&mut self, samples: &mut Samples) -> Result<(), BenchError> {
        let id = self.ids(1).remove(0);
        let account = AccountId::from(&*id);
        let policy = SnapshotPolicy::every(SNAPSHOT_EVERY);
        let with_snapshots = |sides: &Sides| {
            let snapshots = Arc::new(sides.stores.snapshot_store());
            sides.accounts(false).with_snapshots(snapshots, policy)
        };
        let accounts = with_snapshots(&self.direct);
        for n in 1..=SNAPSHOT_EVERY + BEHIND_SNAPSHOT {
            let done = accounts.execute(&account, Deposit::number(n)).await;
            done.map_err(BenchError::other)?;
        }
        accounts.close().await;
        let accounts = with_snapshots(&self.distant);
        // Another stream of one event: its query is one round trip.
        let other = self.ids(1).remove(0);
        self.direct.raw.put(&other, 1, &Deposit::number(1)).await?;
        for round in 0..=self.size.rounds {
            let started = Instant::now();
            let loaded = accounts.load(&account).await.map_err(BenchError::other)?;
            if self.sabotage.is_some() {
                self.distant.raw.load(&other).await?;
            }
            let ours = started.elapsed();
            assert_state(loaded.state().balance, SNAPSHOT_EVERY + BEHIND_SNAPSHOT)?;
            let started = Instant::now();
            self.distant.raw.load(&other).await?;
            if round > 0 {
                add(samples, "round-trips", ms(ours), ms(started.elapsed()));
            }
        }
        Ok(())
    }
}

/// Deposits number 1 to `n` were made, each of its number: a side that did not do the work must not be measured.
fn assert_state(balance: u64, n: u64) -> Result<(), BenchError> {
    let expected = n * (n + 1) / 2;
    if balance == expected {
        return Ok(());
    }
    Err(BenchError::other(format!(
        "the balance is {balance} instead of {expected}"
    )))
}

async fn fill(
    accounts: &Repository<Account>,
    id: &AccountId,
    commits: u64,
    each: u64,
) -> Result<(), BenchError> {
    let stream = Repository::<Account>::stream_id(id).map_err(BenchError::other)?;
    let mut head = StreamHead::empty(stream);
    for commit in 0..commits {
        let numbers = commit * each + 1..=(commit + 1) * each;
        let events: Vec<_> = numbers
            .map(|n| AccountEvent::Deposited(Deposit::number(n)))
            .collect();
        let appended = accounts.append(id, head, &events).await;
        head = appended.map_err(BenchError::other)?;
    }
    Ok(())
}

fn add(samples: &mut Samples, measure: &'static str, ours: f64, theirs: f64) {
    let (a, b) = samples.entry(measure).or_default();
    a.push(ours);
    b.push(theirs);
}

fn add_costs(samples: &mut Samples, ours: Cost, theirs: Cost) {
    add(samples, TRIPS, ours.trips, theirs.trips);
    add(samples, WRITE_UNITS, ours.write_units, theirs.write_units);
    add(samples, READ_UNITS, ours.read_units, theirs.read_units);
}
