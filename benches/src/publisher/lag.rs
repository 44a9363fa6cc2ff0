//! The time from the return of an append to the acknowledgement of the record, per trigger, on one
//! Kafka broker and DynamoDB in this process.
use super::{
    changes::Changes,
    tables::{PATIENCE, Table, Trigger, handler, invoke},
};
use crate::{
    BenchError,
    runner::topic::Broker,
    store::{Endpoint, over},
    table::{Bound, Goal, Row},
};
use async_trait::async_trait;
use foldstream::{
    ports::{Message, MessageBus, RunOutcome},
    publisher::{PollConfig, Publisher, TopicRoute},
};
use foldstream_dynamodb::{
    PublishMode,
    streams::{StreamsConfig, StreamsReader},
};
use foldstream_kafka::TopicSpec;
use foldstream_testkit::intercept::{self, MessageBusLayer};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// The appends of a measurement. One follows the other after a pause of up to so long.
const APPENDS: usize = 300;
const PAUSE: Duration = Duration::from_millis(150);
const STREAMS: u64 = 20;

const fn noted(measure: &'static str) -> Goal {
    Goal {
        measure,
        unit: "ms",
        bound: Bound::Noted,
        goal: 0.0,
        is_ratio: false,
    }
}
const GOALS: [Goal; 2] = [noted("median"), noted("p99")];

/// The works.
pub(super) const WORKS: [(&str, Trigger); 3] = [
    ("lag-poller", Trigger::Poller),
    ("lag-reader", Trigger::Reader),
    ("lag-lambda", Trigger::Lambda),
];

/// Tells when records are acknowledged.
struct Acknowledged(mpsc::UnboundedSender<Instant>);
#[async_trait]
impl MessageBusLayer for Acknowledged {
    async fn publish_run(&self, inner: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        let outcome = inner.publish_run(run).await;
        for _ in 0..outcome.durable {
            // The measurement may be over.
            let _ = self.0.send(Instant::now());
        }
        outcome
    }
}

/// Measures the rows of one work.
pub(super) async fn rows(
    broker: &mut Broker,
    endpoint: &Endpoint,
    (name, trigger): (&str, Trigger),
) -> Result<Vec<Row>, BenchError> {
    let mode = match trigger {
        Trigger::Poller => PublishMode::Poller,
        _ => PublishMode::Stream,
    };
    let mut table = Table::create(endpoint, mode, STREAMS).await?;
    let topic: Arc<str> = broker.new_name("lag").into();
    let bus = broker.bus()?;
    let spec = TopicSpec::new(&*topic, super::PARTITIONS);
    bus.create_topic(&spec).await.map_err(BenchError::other)?;
    let (sender, mut acknowledged) = mpsc::unbounded_channel();
    let bus = intercept::message_bus(bus, Acknowledged(sender));
    let stores = over(&table.endpoint.direct, mode).await?;
    let publisher = Publisher::new(stores.event_store(), bus, stores.control_store())
        .with_route(TopicRoute::One(topic));
    let mut function = None;
    let task = match trigger {
        Trigger::Poller => tokio::spawn(async move {
            let forever = std::future::pending();
            let polled = publisher.poll(PollConfig::default(), forever).await;
            polled.map(drop).map_err(BenchError::other)
        }),
        Trigger::Reader => {
            let reader = StreamsReader::new(&stores, publisher).await;
            let reader = reader.map_err(BenchError::other)?;
            let reader = reader.with_config(StreamsConfig::default());
            tokio::spawn(async move {
                let read = reader.run(std::future::pending()).await;
                read.map(drop).map_err(BenchError::other)
            })
        }
        Trigger::Lambda => {
            let changes = Changes::open(&table.endpoint.direct, "events").await?;
            function = Some((handler(publisher), changes));
            tokio::spawn(std::future::pending())
        }
    };
    let mut lags = Vec::new();
    // The first events find clients that are not connected, and are not counted.
    for number in 0..APPENDS + 20 {
        table.append_to(&stores, number % STREAMS as usize).await?;
        let appended = Instant::now();
        if let Some((handler, changes)) = &mut function {
            invoke(handler, changes).await?;
        }
        let at = tokio::time::timeout(PATIENCE, acknowledged.recv()).await;
        let at = at.map_err(BenchError::other)?;
        let at = at.ok_or_else(|| BenchError::other("the bus is gone"))?;
        if number >= 20 {
            lags.push(at.saturating_duration_since(appended).as_secs_f64() * 1e3);
        }
        // A number of pauses that no trigger is in step with.
        tokio::time::sleep(PAUSE.mul_f64((number * 37 % 101) as f64 / 101.0)).await;
    }
    task.abort();
    lags.sort_by(f64::total_cmp);
    let at = |part: f64| lags[((lags.len() - 1) as f64 * part) as usize];
    let rows = GOALS.iter().map(|goal| {
        let value = match goal.measure {
            "median" => at(0.5),
            _ => at(0.99),
        };
        let note = format!("{APPENDS} single events, default settings, from the return of the append to the acknowledgement; Kafka in a container, DynamoDB in this process. A function is invoked at once: the mapping of AWS, which polls by itself, is not in lag-lambda");
        Row::new(name, *goal, vec![value], Vec::new()).with_note(note)
    });
    Ok(rows.collect())
}
