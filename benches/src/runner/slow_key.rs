//! Memory while a million records wait for one slow key.
use super::{
    meter::{Meter, resident},
    ours::{Counts, Projects},
    topic::{Broker, Contents},
};
use crate::{
    BenchError,
    table::{Bound, Goal, Row},
};
use clap::Args;
use foldstream::runner::{ProcessorPolicy, Runner};
use foldstream_kafka::{KafkaConfig, KafkaMessageBus};
use foldstream_testkit::InMemoryControlStore;
use std::{sync::Arc, time::Duration};

/// The work and its goals.
pub(super) const WORK: (&str, &[Goal]) = (
    "slow-key",
    &[Goal {
        measure: "memory",
        unit: "MiB",
        bound: Bound::AtMost,
        goal: 16.0,
        is_ratio: false,
    }],
);

/// The time for which the processor reads as much as it takes.
const READS: Duration = Duration::from_secs(15);
/// The time that each event takes.
const PAUSE: Duration = Duration::from_millis(100);

/// The process whose memory is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct SlowKey {
    brokers: String,
    topic: String,
    group: String,
    /// Holds as much as there is.
    #[arg(long)]
    unbounded: bool,
}

/// Fills a topic with events of one stream, and measures the memory of a process that reads it.
pub(super) async fn rows(
    queued: u64,
    broker: &mut Broker,
    is_sabotaged: bool,
) -> Result<Vec<Row>, BenchError> {
    let contents = Contents {
        events: queued,
        streams: 1,
        partitions: 1,
    };
    let topic = broker.fill(contents).await?;
    let group = broker.new_name("slow-key");
    let mut arguments = vec![
        "slow-key".into(),
        broker.address().to_owned(),
        topic.name.to_string(),
        group,
    ];
    if is_sabotaged {
        arguments.push("--unbounded".into());
    }
    let bytes = tokio::task::spawn_blocking(move || crate::measured(&arguments));
    let bytes = bytes.await.map_err(BenchError::other)??;
    let rows = WORK.1.iter().map(|goal| {
        let row = Row::new(WORK.0, *goal, vec![bytes / 1024.0 / 1024.0], Vec::new());
        row.with_note(format!(
            "resident memory of a process after {READS:?} with {queued} records of one key in its partition, {PAUSE:?} each, above that before the start"
        ))
    });
    Ok(rows.collect())
}

/// Reads for a while, and prints how much the memory of this process has grown.
pub(crate) fn work_off(args: &SlowKey) -> Result<bool, BenchError> {
    let runtime = crate::runtime().map_err(crate::io("no runtime"))?;
    let unknown = || BenchError::other("/proc does not tell the memory of this process");
    let grown = runtime.block_on(async {
        let config = KafkaConfig::default().with_brokers(&*args.brokers);
        let bus = KafkaMessageBus::new(config).map_err(BenchError::other)?;
        let meter = Arc::new(Meter::new(u64::MAX));
        let counts = Counts {
            meter: meter.clone(),
            pause: Some(PAUSE),
            is_slowed: false,
        };
        let mut policy = ProcessorPolicy::projector();
        if args.unbounded {
            policy = policy
                .with_window(usize::MAX, usize::MAX)
                .with_max_memory(usize::MAX);
        }
        let runner = Runner::builder(bus, InMemoryControlStore::new(), &*args.group)
            .with_topics([&*args.topic])
            .projector_with(Projects(counts), policy)
            .build()
            .map_err(BenchError::other)?;
        let before = resident().ok_or_else(unknown)?;
        let handle = runner.start();
        tokio::time::sleep(READS).await;
        let after = resident().ok_or_else(unknown)?;
        handle.stop();
        let report = handle.wait().await;
        report.into_result().map_err(BenchError::other)?;
        if meter.count() == 0 {
            return Err(BenchError::other("nothing was handled"));
        }
        Ok(after - before)
    })?;
    println!("{grown}");
    Ok(true)
}
