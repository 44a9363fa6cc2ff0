//! Our side: a full replay of a projector that counts.
use super::{
    SEGMENTS,
    count::{Began, Count, Scanned},
};
use crate::{BenchError, account::AccountEvent};
use foldstream::{
    replay::{Replay, ReplayReport},
    runner::{
        DeliveryLevel, EventContext, HandlerResult, ModelId, ProcessorPolicy, Projector, Runner,
    },
};
use foldstream_dynamodb::DynamoDb;
use foldstream_testkit::InMemoryMessageBus;
use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

/// The time that a sabotaged projector takes for each event.
const SLOW: Duration = Duration::from_micros(200);

/// The pace of a projector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// It only counts.
    Fast,
    /// It lets all other tasks go first at each event, so that the scan is always ahead of it, as
    /// it is of a projector that waits for its own store.
    Waits,
    /// It takes 200 microseconds for each event.
    Slow,
}

/// A projector that counts. It has no rows, so that all generations are empty.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) count: Arc<Count>,
    pub(super) pace: Pace,
}

impl Projector for Counts {
    const NAME: &'static str = "counts";
    type Events = AccountEvent;
    async fn project(&self, event: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        match self.pace {
            Pace::Fast => {}
            Pace::Waits => {
                // The runner asks twice before it lets others go first.
                for _ in 0..2 {
                    tokio::task::yield_now().await;
                }
            }
            Pace::Slow => {
                let began = Instant::now();
                while began.elapsed() < SLOW {
                    std::hint::spin_loop();
                }
            }
        }
        self.count.handled(ctx.header(), event);
        Ok(())
    }
    async fn reset(&self, _: &ModelId) -> HandlerResult {
        Ok(())
    }
}

/// Creates a bus with a topic without records, which a full replay hands over to.
pub(super) fn empty_bus() -> Arc<InMemoryMessageBus> {
    let bus = InMemoryMessageBus::new();
    bus.create_topic("GlobalEvents", 1);
    bus
}

/// A replay that is to be measured.
pub(super) struct Ours {
    /// The name of the processor, whose first replay this is.
    pub(super) name: String,
    pub(super) level: DeliveryLevel,
    pub(super) page: u32,
    pub(super) pace: Pace,
}

impl Ours {
    /// Replays the whole event store.
    pub(super) async fn run(self, stores: &DynamoDb) -> Result<Scanned, BenchError> {
        let count = Arc::new(Count::default());
        let projector = Counts {
            count: count.clone(),
            pace: self.pace,
        };
        let policy = ProcessorPolicy::projector()
            .with_name(self.name)
            .with_level(self.level);
        let runner = Runner::builder(empty_bus(), stores.control_store(), "bench")
            .with_event_store(stores.event_store())
            .projector_with(projector, policy)
            .build()
            .map_err(BenchError::other)?;
        let page = NonZeroU32::new(self.page).unwrap_or(NonZeroU32::MIN);
        let replay = Replay::all(&runner).with_segments(SEGMENTS).with_page(page);
        let began = Began::now()?;
        let report = to_the_end(replay).await?;
        began.end(&count, report.progress.read_units)
    }
}

/// Starts a replay, and waits until its scan has ended.
pub(super) async fn to_the_end(replay: Replay) -> Result<ReplayReport, BenchError> {
    let handle = replay.start().await.map_err(BenchError::other)?;
    handle.wait().await.map_err(BenchError::other)
}
