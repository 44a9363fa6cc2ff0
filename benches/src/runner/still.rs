//! A processor in memory, under paused time.
use super::{
    calls::{Call, Recorder},
    meter::Meter,
    ours::{Counts, Projects},
    topic::event,
};
use crate::BenchError;
use foldstream::{
    Backoff, RetryPolicy, SourceUri, StreamId, Timestamp, Version,
    adapter::to_message,
    ports::MessageBus,
    runner::{DeliveryLevel, ProcessorPolicy, Runner},
};
use foldstream_testkit::{InMemoryControlStore, InMemoryMessageBus, intercept};
use std::{sync::Arc, time::Duration};

const TOPIC: &str = "GlobalEvents";
const PARTITIONS: u32 = 6;
/// The time in which a processor starts, and in which it handles what was published.
const SETTLES: Duration = Duration::from_secs(60);

/// The calls of a period, in order.
pub(super) struct Period {
    pub(super) calls: Vec<Call>,
    /// The first call of the period, and the one after it.
    pub(super) first: usize,
    pub(super) end: usize,
}

/// The work that comes in the period.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happens {
    /// Nothing, for this long.
    Nothing(Duration),
    /// This many events are published of each of so many streams, after as many events were
    /// handled before.
    Events {
        streams: u64,
        each: u64,
        before: u64,
    },
}

/// Runs one processor, and returns what it called in the period.
pub(super) fn run(
    level: DeliveryLevel,
    happens: Happens,
    is_sabotaged: bool,
) -> Result<Period, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(crate::io("no runtime"))?;
    runtime.block_on(async {
        let bus = InMemoryMessageBus::new();
        bus.create_topic(TOPIC, PARTITIONS);
        let control =
            intercept::control_store(InMemoryControlStore::new(), Recorder::new(is_sabotaged));
        let meter = Arc::new(Meter::new(u64::MAX));
        let counts = Counts {
            meter: meter.clone(),
            pause: None,
            is_slowed: false,
        };
        // The jitter of polls is the same in every run.
        let retry = RetryPolicy::default().with_backoff(Backoff::default().with_seed(1));
        let policy = ProcessorPolicy::projector()
            .with_level(level)
            .with_retry(retry);
        let runner = Runner::builder(bus.clone(), control.clone(), "bench")
            .projector_with(Projects(counts), policy)
            .build()
            .map_err(BenchError::other)?;
        let handle = runner.start();
        tokio::time::sleep(SETTLES).await;
        let mut wanted = 0;
        if let Happens::Events {
            streams, before, ..
        } = happens
        {
            wanted += publish(&bus, streams, 0, before).await?;
        }
        tokio::time::sleep(SETTLES).await;
        let first = control.layer().count();
        let lasts = match happens {
            Happens::Nothing(lasts) => lasts,
            Happens::Events {
                streams,
                each,
                before,
            } => {
                wanted += publish(&bus, streams, before, each).await?;
                SETTLES
            }
        };
        tokio::time::sleep(lasts).await;
        let end = control.layer().count();
        handle.stop();
        handle
            .wait()
            .await
            .into_result()
            .map_err(BenchError::other)?;
        if meter.count() != wanted {
            let handled = meter.count();
            let text = format!("{handled} of {wanted} events were handled");
            return Err(BenchError::other(text));
        }
        let calls = control.layer().calls();
        Ok(Period { calls, first, end })
    })
}

/// Publishes the next events of each stream.
pub(super) async fn publish(
    bus: &Arc<InMemoryMessageBus>,
    streams: u64,
    before: u64,
    each: u64,
) -> Result<u64, BenchError> {
    let topic: Arc<str> = TOPIC.into();
    let source = SourceUri::new("urn:bench").map_err(BenchError::other)?;
    for n in 0..streams {
        let stream = StreamId::new("account", &format!("a-{n:06}")).map_err(BenchError::other)?;
        for version in before + 1..=before + each {
            let event = event(&stream, Version::new(version), n);
            let message = to_message(&event, &topic, &source, Timestamp::now());
            bus.publish(&message).await.map_err(BenchError::other)?;
        }
    }
    Ok(streams * each)
}
