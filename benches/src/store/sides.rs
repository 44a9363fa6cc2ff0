//! The sides, each with its client, and the helpers that the works share.
use super::{
    Size, Work,
    catalogue::{
        CLEAR_WRITE_UNITS, Commits, FIRST_WRITE_UNITS, Kind, READ_UNITS, READ_UNITS_VS_LEAN,
        READ_UNITS_VS_SAME_FACTS, ROUND_TRIPS, States, TIME_VS_LEAN, TIME_VS_SAME_FACTS, TRIPS,
        WRITE_UNITS,
    },
    endpoint::{Cost, Endpoint},
    raw::{Form, Raw},
};
use crate::{
    BenchError,
    account::{Account, AccountId, Deposit},
};
use aws_sdk_dynamodb::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    types::StreamSpecification,
};
use foldstream::Repository;
use foldstream_dynamodb::{DynamoDb, DynamoDbConfig, PublishMode, TableOptions, create_tables};
use std::{collections::HashMap, time::Duration};

/// The samples of our side and of the other, by measure.
pub(super) type Samples = HashMap<&'static str, (Vec<f64>, Vec<f64>)>;

/// All sides over one client.
#[derive(Clone)]
pub(super) struct Sides {
    pub(super) stores: DynamoDb,
    pub(super) lean: Raw,
    pub(super) same_facts: Raw,
}

impl Sides {
    async fn over(endpoint: &str, mode: PublishMode) -> Result<Self, BenchError> {
        let stores = over(endpoint, mode).await?;
        let client = stores.client().clone();
        Ok(Self {
            stores,
            lean: Raw::new(client.clone(), Form::Lean),
            same_facts: Raw::new(client, Form::SameFacts),
        })
    }

    pub(super) const fn by_hand(&self) -> [&Raw; 2] {
        [&self.lean, &self.same_facts]
    }

    pub(super) fn accounts(&self, states: States) -> Repository<Account> {
        let accounts = Repository::new(self.stores.event_store());
        match states {
            States::None => accounts,
            States::Cached => accounts.with_cache(STREAMS),
            States::Idle => {
                let at_once = Duration::from_nanos(1);
                accounts.with_cache(STREAMS).with_confirm_after(at_once)
            }
        }
    }
}

/// The capacity of a cache, which is more than all streams of a run.
const STREAMS: usize = 100_000;

pub(super) struct Bench<'a> {
    pub(super) size: Size,
    pub(super) sabotage: Option<&'static str>,
    pub(super) endpoint: &'a Endpoint,
    pub(super) direct: Sides,
    pub(super) metered: Sides,
    pub(super) distant: Sides,
    /// The number of streams made so far. Each round has its own.
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

/// Returns the stores at an endpoint.
pub(crate) async fn over(endpoint: &str, mode: PublishMode) -> Result<DynamoDb, BenchError> {
    let stores = DynamoDb::with_client(client(endpoint), config(endpoint, mode)).await;
    stores.map_err(BenchError::other)
}

pub(crate) fn config(endpoint: &str, mode: PublishMode) -> DynamoDbConfig {
    DynamoDbConfig::default()
        .with_endpoint(endpoint)
        .with_publish_mode(mode)
}

/// Disables the change stream of a table.
///
/// The tables of the other sides have none, and the emulator, unlike DynamoDB, goes through all
/// stream records at each write.
pub(crate) async fn without_stream(stores: &DynamoDb, table: &str) -> Result<(), BenchError> {
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

impl<'a> Bench<'a> {
    pub(super) async fn start(
        size: Size,
        sabotage: Option<&'static str>,
        endpoint: &'a Endpoint,
        mode: PublishMode,
    ) -> Result<Self, BenchError> {
        let config = config(&endpoint.direct, mode);
        create_tables(&config, &TableOptions::default())
            .await
            .map_err(BenchError::other)?;
        let bench = Self {
            size,
            sabotage,
            direct: Sides::over(&endpoint.direct, mode).await?,
            metered: Sides::over(&endpoint.metered, mode).await?,
            distant: Sides::over(&endpoint.distant, mode).await?,
            endpoint,
            made: 0,
        };
        for raw in bench.direct.by_hand() {
            raw.create_table().await?;
        }
        without_stream(&bench.direct.stores, &config.events_table()).await?;
        Ok(bench)
    }

    pub(super) async fn measure(&mut self, work: &Work) -> Result<Samples, BenchError> {
        let mut samples = Samples::new();
        match work.kind {
            Kind::Command { states, at_once } => {
                self.commands(states, at_once, &mut samples).await?;
            }
            Kind::CommandWithId { states } => {
                self.commands_with_id(states, &mut samples).await?;
            }
            Kind::EncodeCheck => self.encode_check(&mut samples).await?,
            Kind::TenEvents => self.ten_events(&mut samples).await?,
            Kind::Mode(_) => self.mode(&mut samples).await?,
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

    pub(super) fn ids(&mut self, n: u64) -> Vec<String> {
        let ids = (self.made..self.made + n).map(|i| format!("account-{i:08}"));
        self.made += n;
        ids.collect()
    }

    pub(super) fn is_sabotaged(&self, measures: &[&str]) -> bool {
        self.sabotage.is_some_and(|m| measures.contains(&m))
    }

    /// Makes the additional calls of a sabotaged work.
    ///
    /// That is one more write if writes are counted. It is one more load for other counts, and four
    /// more if time is measured, because a busy machine hides a single one.
    pub(super) async fn more(
        &self,
        sides: &Sides,
        accounts: &Repository<Account>,
        id: &AccountId,
        n: u64,
    ) -> Result<(), BenchError> {
        match self.sabotage {
            Some(WRITE_UNITS | FIRST_WRITE_UNITS | CLEAR_WRITE_UNITS) => {
                let other = format!("{id}-sabotage");
                sides.lean.put(&other, n, &Deposit::number(n)).await
            }
            Some(TIME_VS_LEAN | TIME_VS_SAME_FACTS | ROUND_TRIPS) => {
                for _ in 0..4 {
                    accounts.load(id).await.map_err(BenchError::other)?;
                }
                Ok(())
            }
            Some(_) => accounts.load(id).await.map(drop).map_err(BenchError::other),
            None => Ok(()),
        }
    }
}

/// Checks that deposits 1 to `n` were made, each of its number. A side that did not do its work
/// must not be measured.
pub(super) fn assert_state(balance: u64, n: u64) -> Result<(), BenchError> {
    let expected = n * (n + 1) / 2;
    if balance == expected {
        return Ok(());
    }
    Err(BenchError::other(format!(
        "the balance is {balance} instead of {expected}"
    )))
}

/// Adds the samples of one round.
pub(super) fn add(samples: &mut Samples, measure: &'static str, ours: f64, theirs: f64) {
    let (a, b) = samples.entry(measure).or_default();
    a.push(ours);
    b.push(theirs);
}

/// Adds the times of one round. `by_hand` has the lean form first, then the one with the same
/// facts.
pub(super) fn add_times(samples: &mut Samples, ours: Duration, by_hand: [Duration; 2]) {
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    add(samples, TIME_VS_LEAN, ms(ours), ms(by_hand[0]));
    add(samples, TIME_VS_SAME_FACTS, ms(ours), ms(by_hand[1]));
}

/// Adds the costs of one round. `by_hand` has the lean form first, then the one with the same
/// facts.
pub(super) fn add_costs(samples: &mut Samples, ours: Cost, by_hand: [Cost; 2]) {
    let [lean, same_facts] = by_hand;
    add(samples, TRIPS, ours.trips, lean.trips);
    add(samples, WRITE_UNITS, ours.write_units, lean.write_units);
    add(samples, READ_UNITS, ours.read_units, lean.read_units);
    let (vs_lean, vs_same) = (READ_UNITS_VS_LEAN, READ_UNITS_VS_SAME_FACTS);
    add(samples, vs_lean, ours.read_units, lean.read_units);
    add(samples, vs_same, ours.read_units, same_facts.read_units);
}
