//! The laws of projectors, and a whole runner, on read models.
use crate::support::Server;
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::runner::{EventContext, HandlerResult, ModelId, ResultExt as _};
use foldstream_dynamodb::{
    DynamoDb, DynamoDbConfig, ReadModel, ReadModelRow, Replication, RowKeys, TableOptions,
    create_tables,
};
use foldstream_testkit::{
    ProjectorScenario,
    domains::account::{
        Account,
        AccountCommand::{self, Close, Deposit, Open, Withdraw},
        AccountEvent::{self, AccountClosed, AccountOpened, MoneyDeposited, MoneyWithdrawn},
    },
    laws::ProjectorLaws,
};
use futures::TryStreamExt as _;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// A row per account, which is deleted when the account is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Balance {
    owner: String,
    amount: u64,
    movements: u32,
}

impl ReadModelRow for Balance {
    const NAME: &'static str = "balances";
    type Events = AccountEvent;

    fn apply(row: &mut Option<Self>, event: &AccountEvent, _: &EventContext) -> HandlerResult {
        if let AccountOpened { owner } = event {
            let (owner, amount, movements) = (owner.clone(), 0, 0);
            *row = Some(Self {
                owner,
                amount,
                movements,
            });
            return Ok(());
        }
        // An event that is left out or applied twice would make this fail, or the sum differ.
        let balance = row.as_mut().ok_or("no account was opened").permanent()?;
        balance.movements += 1;
        match event {
            MoneyDeposited { amount } => balance.amount += amount,
            MoneyWithdrawn { amount } => {
                let left = balance.amount.checked_sub(*amount);
                balance.amount = left.ok_or("less than nothing").permanent()?;
            }
            AccountClosed => *row = None,
            AccountOpened { .. } => {}
        }
        Ok(())
    }
}

/// Rows that all accounts feed: by the kind of event, and one for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sum {
    events: u32,
    amount: i64,
}

impl ReadModelRow for Sum {
    const NAME: &'static str = "sums";
    type Events = AccountEvent;
    const KEYS: RowKeys<AccountEvent> = RowKeys::Of(|event, _| match event {
        MoneyDeposited { .. } => vec!["all".into(), "deposits".into()],
        MoneyWithdrawn { .. } => vec!["withdrawals".into(), "all".into()],
        _ => vec![],
    });

    fn apply(row: &mut Option<Self>, event: &AccountEvent, _: &EventContext) -> HandlerResult {
        let sum = row.get_or_insert_default();
        sum.events += 1;
        sum.amount += match event {
            MoneyDeposited { amount } => i64::try_from(*amount)?,
            MoneyWithdrawn { amount } => -i64::try_from(*amount)?,
            _ => 0,
        };
        Ok(())
    }
}

/// Runs a future on a thread of its own, since the laws are called within a runtime.
fn block_on<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(work)
        });
        thread.join().unwrap()
    })
}

/// Returns the configuration of tables that no other model uses.
fn fresh_tables() -> DynamoDbConfig {
    static SERVER: LazyLock<Server> = LazyLock::new(Server::start);
    static TABLES: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("t{}-", TABLES.fetch_add(1, Ordering::Relaxed));
    let config = SERVER.config().with_prefix(prefix);
    config.with_replication(Replication::None)
}

/// Creates an empty model of these rows, named as the laws name it.
fn fresh<T: ReadModelRow>() -> DynamoDbConfig {
    let config = fresh_tables();
    block_on(async {
        create_tables(&config, &TableOptions::default())
            .await
            .unwrap();
        let rows = process::<T>(&config).await;
        rows.create_table(&ModelId::new(T::NAME, 1)).await.unwrap();
    });
    config
}

async fn process<T: ReadModelRow>(config: &DynamoDbConfig) -> ReadModel<T> {
    DynamoDb::connect(config.clone())
        .await
        .unwrap()
        .read_model()
}

/// Returns the stored rows as JSON. One scan is faster than a list of all partitions.
async fn rows(config: &DynamoDbConfig) -> BTreeMap<String, String> {
    let stores = DynamoDb::connect(config.clone()).await.unwrap();
    let scan = stores.client().scan();
    let scan = scan.table_name(config.read_models_table()).send().await;
    let items = scan.unwrap().items.unwrap_or_default().into_iter();
    let rows = items.filter(|item| item.contains_key("d"));
    let text = |value: &AttributeValue| value.as_s().unwrap().clone();
    rows.map(|item| (text(&item["sk"]), text(&item["d"])))
        .collect()
}

fn commands() -> impl Strategy<Value = AccountCommand> {
    prop_oneof![
        2 => Just(Open { owner: "ann".into() }),
        4 => (1u64..9).prop_map(|amount| Deposit { amount }),
        2 => (1u64..9).prop_map(|amount| Withdraw { amount }),
        1 => Just(Close),
    ]
}

fn laws_of<T: ReadModelRow<Events = AccountEvent>>() {
    ProjectorLaws::new(
        fresh::<T>,
        |config| block_on(process::<T>(config)),
        async |config: &DynamoDbConfig| rows(config).await,
    )
    .with_histories::<Account, _>(1, commands())
    .with_cases(8)
    .check();
}

#[test]
fn the_laws_of_projectors_hold_for_rows_per_stream() {
    laws_of::<Balance>();
}

#[test]
fn the_laws_of_projectors_hold_for_rows_that_several_streams_feed() {
    laws_of::<Sum>();
}

/// Runs the projector in a runner through the whole life of a read model.
#[test]
fn a_runner_delivers_each_event_once_through_duplicates_gaps_and_rebuilds() {
    let config = fresh::<Balance>();
    let projector = block_on(process::<Balance>(&config));
    ProjectorScenario::new(projector, async |rows: &ReadModel<Balance>| {
        let model = ModelId::new(Balance::NAME, 1);
        let rows: BTreeMap<String, Balance> = rows.all(&model).try_collect().await.unwrap();
        let rows = rows.into_iter();
        rows.map(|(key, row)| (key, row.amount))
            .collect::<BTreeMap<_, _>>()
    })
    .in_real_time()
    .given(
        "ann",
        [
            AccountOpened {
                owner: "ann".into(),
            },
            MoneyDeposited { amount: 10 },
        ],
    )
    .when_delivered("ann", 2)
    .then_unchanged()
    .when_applied_late("ann", 1)
    .then_unchanged()
    .given_undelivered("ann", [MoneyDeposited { amount: 4 }])
    .when("ann", [MoneyWithdrawn { amount: 1 }])
    .then([("account#ann".to_owned(), 13)])
    .when_delivered("ann", 3)
    .then_unchanged()
    .when_rebuilt()
    .then_unchanged();
}
