//! The price of one event, per trigger and publish mode, on DynamoDB in this process.
//!
//! The prices are those of work: what triggers cost while nothing happens is in `idle`.
use super::tables::{Publishing, Table, Trigger};
use crate::{
    BenchError,
    store::{Cost, Endpoint, over},
    table::{Bound, Goal, Row},
};
use async_trait::async_trait;
use foldstream::ports::{ControlStore, ControlStoreError, Expect, PutOutcome};
use foldstream_dynamodb::{DynamoDb, PublishMode};
use foldstream_testkit::{InMemoryMessageBus, intercept, intercept::ControlStoreLayer};
use std::sync::Arc;

/// The number of streams that get events.
const STREAMS: u64 = 100;

const fn at_most(measure: &'static str, goal: f64) -> Goal {
    Goal {
        measure,
        unit: "an event",
        bound: Bound::AtMost,
        goal,
        is_ratio: false,
    }
}

/// One event per stream: writes of the append, and writes and reads of publishing it.
const fn goals(append: f64, wcu: f64, rcu: f64) -> [Goal; 3] {
    [
        at_most("append-wcu", append),
        at_most("wcu", wcu),
        at_most("rcu", rcu),
    ]
}

/// The same, and then for ten commits that wait in each stream. For a reader they do not wait: it
/// publishes each commit when it comes.
const fn goals_of_ten(
    append: f64,
    [wcu, rcu]: [f64; 2],
    [ten_wcu, ten_rcu]: [f64; 2],
) -> [Goal; 5] {
    let [append, wcu, rcu] = goals(append, wcu, rcu);
    let ten = [at_most("ten-wcu", ten_wcu), at_most("ten-rcu", ten_rcu)];
    [append, wcu, rcu, ten[0], ten[1]]
}

/// The works and their goals.
pub(super) const WORKS: [(&str, Trigger, PublishMode, &[Goal]); 6] = [
    (
        "cost-stream-reader",
        Trigger::Reader,
        PublishMode::Stream,
        // The row of the reader's status, which is written every 10 s, may fall into the time.
        &goals(1.0, 1.05, 0.0),
    ),
    (
        "cost-stream-lambda",
        Trigger::Lambda,
        PublishMode::Stream,
        &goals_of_ten(1.0, [1.0, 0.0], [0.1, 0.0]),
    ),
    (
        "cost-poller-poller",
        Trigger::Poller,
        PublishMode::Poller,
        &goals_of_ten(2.0, [3.0, 1.0], [2.1, 0.12]),
    ),
    (
        "cost-both-poller",
        Trigger::Poller,
        PublishMode::Both,
        &goals_of_ten(2.0, [3.0, 1.0], [2.1, 0.12]),
    ),
    (
        "cost-both-reader",
        Trigger::Reader,
        PublishMode::Both,
        &goals(2.0, 3.05, 0.0),
    ),
    (
        "cost-both-lambda",
        Trigger::Lambda,
        PublishMode::Both,
        &goals_of_ten(2.0, [3.0, 0.0], [2.1, 0.0]),
    ),
];

/// A control store that is read before and written after each of its writes.
struct Twice;
#[async_trait]
impl ControlStoreLayer for Twice {
    async fn put(
        &self,
        inner: &Arc<dyn ControlStore>,
        row: &foldstream::ports::Row,
        expect: Expect,
    ) -> Result<PutOutcome, ControlStoreError> {
        inner.get(&row.key).await?;
        let done = inner.put(row, expect).await?;
        let _ = inner.put(row, Expect::Any).await?;
        Ok(done)
    }
}

/// Measures the rows of one work.
pub(super) async fn rows(
    [endpoint, other]: &[Endpoint; 2],
    (name, trigger, mode, goals): (&str, Trigger, PublishMode, &[Goal]),
    is_sabotaged: bool,
) -> Result<Vec<Row>, BenchError> {
    let mut table = Table::create(endpoint, mode, STREAMS).await?;
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 6);
    let control = move |stores: &DynamoDb| -> Arc<dyn ControlStore> {
        let inner = stores.control_store();
        if is_sabotaged {
            Arc::new(intercept::control_store(inner, Twice))
        } else {
            Arc::new(inner)
        }
    };
    let mut publishing = Publishing::start(trigger, &table, mode, bus, control).await?;
    // The first event of each stream, and what a publisher looks up once.
    let direct = table.direct.clone();
    table.append(&direct).await?;
    publishing.publish(&table).await?;
    // A poller that finds nothing.
    let looks = match trigger {
        Trigger::Poller => publishing.publish(&table).await?,
        _ => Cost::default(),
    };
    let metered = over(&table.endpoint.metered, mode).await?;
    // The first request of a client to each table.
    table.append(&direct).await?;
    publishing.publish(&table).await?;

    let append = match trigger {
        // The reader begins at once.
        Trigger::Reader => cost_of_append(other, mode).await?,
        _ => {
            table.append(&metered).await?;
            table.endpoint.take_cost()
        }
    };
    if trigger == Trigger::Reader {
        table.append(&direct).await?;
    }
    let one = publishing.publish(&table).await?;
    let has_ten = goals.iter().any(|goal| goal.measure == "ten-wcu");
    let mut ten = Cost::default();
    if has_ten {
        for _ in 0..10 {
            table.append(&direct).await?;
        }
        ten = publishing.publish(&table).await?;
    }
    let per = |cost: Cost, events: u64| Cost {
        trips: 0.0,
        // The last walk of two finds nothing.
        write_units: (cost.write_units - 2.0 * looks.write_units) / events as f64,
        read_units: (cost.read_units - 2.0 * looks.read_units) / events as f64,
        scan_units: 0.0,
    };
    let (one, ten) = (per(one, STREAMS), per(ten, 10 * STREAMS));
    let rows = goals.iter().map(|goal| {
        let value = match goal.measure {
            "append-wcu" => append.write_units / STREAMS as f64,
            "wcu" => one.write_units,
            "rcu" => one.read_units,
            "ten-wcu" => ten.write_units,
            _ => ten.read_units,
        };
        let note = "one event of a stream that is known, then ten commits of each of 100 streams at once; events below 1 KB; the requests of leases, looks that find nothing, and checkpoints are in the rows idle-*";
        Row::new(name, *goal, vec![value], Vec::new()).with_note(note.into())
    });
    Ok(rows.collect())
}

async fn cost_of_append(endpoint: &Endpoint, mode: PublishMode) -> Result<Cost, BenchError> {
    let mut table = Table::create(endpoint, mode, STREAMS).await?;
    let direct = table.direct.clone();
    table.append(&direct).await?;
    let metered = over(&table.endpoint.metered, mode).await?;
    table.endpoint.take_cost();
    table.append(&metered).await?;
    Ok(table.endpoint.take_cost())
}
