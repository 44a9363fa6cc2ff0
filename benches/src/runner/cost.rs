//! The price of one event at each level.
use super::{
    calls::{metered, price},
    still::{Happens, publish, run},
};
use crate::{
    BenchError,
    account::AccountEvent,
    store::Cost,
    table::{Bound, Goal, Row},
};
use foldstream::runner::{DeliveryLevel, EventContext, HandlerResult, ProcessorPolicy, Runner};
use foldstream_dynamodb::ReadModelRow;
use foldstream_testkit::{InMemoryControlStore, InMemoryMessageBus};
use serde::{Deserialize, Serialize};

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

const fn units(rcu: f64, wcu: f64) -> [Goal; 2] {
    [at_most("rcu", rcu), at_most("wcu", wcu)]
}

const NOTHING: &[Goal] = &units(0.0, 0.0);
const FIRST: &[Goal] = &units(2.0, 1.0);
const KNOWN: &[Goal] = &units(1.0, 1.0);
const TEN: &[Goal] = &units(0.1, 0.1);

/// The works and their goals. An interval is the time between two checkpoints.
pub(super) const WORKS: [(&str, &[Goal]); 6] = [
    ("cost-at-least-once", NOTHING),
    // The first event that a process sees of a stream.
    ("cost-deduplicated-first", FIRST),
    // One event of a stream in an interval.
    ("cost-deduplicated", KNOWN),
    // Ten events of a stream in an interval.
    ("cost-deduplicated-10", TEN),
    // A row of a read model per stream: the first event that a process sees of it.
    ("cost-exactly-once-first", &units(1.0, 1.0)),
    ("cost-exactly-once-10", &units(0.1, 0.1)),
];

pub(super) fn rows(name: &str, goals: &[Goal], is_sabotaged: bool) -> Result<Vec<Row>, BenchError> {
    let (level, each, before) = match name {
        "cost-at-least-once" => (DeliveryLevel::AtLeastOnce, 1, 0),
        "cost-deduplicated-first" => (DeliveryLevel::Deduplicated, 1, 0),
        "cost-deduplicated" => (DeliveryLevel::Deduplicated, 1, 1),
        "cost-deduplicated-10" => (DeliveryLevel::Deduplicated, 10, 1),
        "cost-exactly-once-first" => (DeliveryLevel::ExactlyOnceEffect, 1, 0),
        _ => (DeliveryLevel::ExactlyOnceEffect, 10, 0),
    };
    let cost = if level == DeliveryLevel::ExactlyOnceEffect {
        of_read_model(each, is_sabotaged)?
    } else {
        of_control_rows(level, each, before, is_sabotaged)?
    };
    let per_event = cost / (STREAMS * each) as f64;
    let rows = goals.iter().map(|goal| {
        let value = match goal.measure {
            "rcu" => per_event.read_units,
            _ => per_event.write_units,
        };
        Row::new(name, *goal, vec![value], Vec::new())
    });
    Ok(rows.collect())
}

/// The cost of the calls that a processor makes more than one without events.
fn of_control_rows(
    level: DeliveryLevel,
    each: u64,
    before: u64,
    is_sabotaged: bool,
) -> Result<Cost, BenchError> {
    let streams = STREAMS;
    let happens = Happens::Events {
        streams,
        each,
        before,
    };
    let with = run(level, happens, is_sabotaged)?;
    let with = price(&with.calls, with.first, with.end)?;
    let happens = Happens::Events {
        streams,
        each: 0,
        before,
    };
    let without = run(level, happens, false)?;
    let without = price(&without.calls, without.first, without.end)?;
    Ok(Cost {
        trips: with.trips - without.trips,
        write_units: with.write_units - without.write_units,
        read_units: with.read_units - without.read_units,
        scan_units: with.scan_units - without.scan_units,
    })
}

/// A row per account.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Balance {
    total: u64,
}

impl ReadModelRow for Balance {
    const NAME: &'static str = "balances";
    type Events = AccountEvent;
    fn apply(
        row: &mut Option<Self>,
        AccountEvent::Deposited(deposit): &AccountEvent,
        _: &EventContext,
    ) -> HandlerResult {
        row.get_or_insert_default().total += deposit.amount;
        Ok(())
    }
}

/// The cost of the rows of a read model that store their positions. Its control rows are in memory.
fn of_read_model(each: u64, is_sabotaged: bool) -> Result<Cost, BenchError> {
    metered(async |endpoint, stores| {
        let model = stores.read_model::<Balance>();
        let (bus, control) = (InMemoryMessageBus::new(), InMemoryControlStore::new());
        bus.create_topic("GlobalEvents", 6);
        let mut policy = ProcessorPolicy::projector()
            .with_level(DeliveryLevel::ExactlyOnceEffect)
            // No checkpoint comes before all is handled.
            .with_commit_interval(std::time::Duration::from_secs(600));
        if is_sabotaged {
            // Each record is flushed and committed alone.
            policy = policy.with_window(1, 1 << 20);
        }
        let runner = Runner::builder(bus.clone(), control, "bench")
            .projector_with(model, policy)
            .build()
            .map_err(BenchError::other)?;
        // The table is made now, and not counted.
        let empty = runner.run_until_caught_up().await;
        empty.into_result().map_err(BenchError::other)?;
        endpoint.take_cost();
        let published = publish(&bus, STREAMS, 0, each).await?;
        let report = runner.run_until_caught_up().await;
        let report = report.into_result().map_err(BenchError::other)?;
        let handled: u64 = report.iter().map(|processor| processor.handled).sum();
        if handled != published {
            let text = format!("{handled} of {published} events were handled");
            return Err(BenchError::other(text));
        }
        Ok(endpoint.take_cost())
    })
}
