//! Instances that start, stop, die and are expelled at any moment, on backends that fail and lose
//! answers.
use super::super::harness::*;
use crate::support::AccountEvent;
use foldstream::{
    SourceUri, StreamId, Version,
    adapter::to_message,
    ports::{Commit, MessageBus, Offset, PartitionId},
    runner::{
        EventContext, HandlerError, HandlerResult, ModelId, Position, ProcessorPolicy, Projector,
        Runner,
    },
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const MODEL: &str = "example-group.model.g1";
const STREAMS: u32 = 6;
const PARTITIONS: u32 = 4;

/// A projector that ignores an older version that arrives late. It sometimes fails, before or after
/// a change.
struct Lawful(Arc<Model>, Mutex<fastrand::Rng>);
impl Projector for Lawful {
    const NAME: &'static str = "model";
    type Events = AccountEvent;
    async fn project(&self, _: &AccountEvent, ctx: &EventContext) -> HandlerResult {
        let (fails_before, fails_after, millis) = {
            let mut rng = self.1.lock().unwrap();
            (rng.u32(0..20) == 0, rng.u32(0..20) == 0, rng.u64(0..20))
        };
        if fails_before {
            return Err(HandlerError::transient("down"));
        }
        tokio::time::sleep(Duration::from_millis(millis)).await;
        {
            let mut rows = self.0.rows.lock().unwrap();
            let row = rows.entry(ctx.stream().clone()).or_default();
            let version = ctx.version().get();
            if row.versions.last().is_none_or(|last| *last < version) {
                row.versions.push(version);
                row.commit_id = Some(ctx.event_id().commit_id());
            }
        }
        if fails_after {
            return Err(HandlerError::transient("the answer was lost"));
        }
        Ok(())
    }
    async fn reset(&self, model: &ModelId) -> HandlerResult {
        self.0.reset(model).await
    }
    async fn position(&self, model: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        self.0.position(model, stream).await
    }
}

struct Fleet {
    seed: u64,
    world: World,
    model: Arc<Model>,
    seen: Seen,
    /// The stream and version at each offset on the bus.
    places: Mutex<Vec<(PartitionId, Offset, StreamId, Version)>>,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        let seen = Seen::failing(move |_, _, _| match rng.lock().unwrap().u32(0..20) {
            0 => Err(HandlerError::transient("down")),
            _ => Ok(()),
        });
        Self {
            seed,
            world: World::new(PARTITIONS),
            model: Arc::default(),
            seen,
            places: Mutex::default(),
        }
    }

    async fn publish(&self, commit: &Commit) {
        for event in commit.recorded() {
            let message = to_message(&event, &TOPIC.into(), &SourceUri::default(), SENT_AT);
            let (partition, offset) = self.world.bus.publish(&message).await.unwrap();
            let place = (
                partition,
                offset,
                event.header.stream.clone(),
                event.header.version,
            );
            self.places.lock().unwrap().push(place);
        }
    }

    /// Writes commits in order, some of them twice, with offsets without records between them and
    /// at the ends.
    async fn write(&self) {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        for _ in 0..60 {
            let id = rng.u32(0..STREAMS).to_string();
            let commit = self.world.store(&id, rng.usize(1..4)).await;
            for _ in 0..rng.usize(1..3) {
                self.publish(&commit).await;
            }
            if rng.u32(0..4) == 0 {
                let hole = partition(rng.u32(0..PARTITIONS));
                self.world.bus.skip_offsets(&hole, rng.u64(1..4)).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(0..300))).await;
            self.check_commits().await;
        }
    }

    /// Asserts that no offset is committed whose event was not handled.
    async fn check_commits(&self) {
        for group in [SEEN, MODEL] {
            let committed = self.world.bus.committed(group, TOPIC).await.unwrap();
            for (partition, offset, stream, version) in &*self.places.lock().unwrap() {
                let (_, next) = &committed[partition.partition as usize];
                if next.is_none_or(|next| next <= *offset) {
                    continue;
                }
                let done = if group == SEEN {
                    self.seen.of(stream.id())
                } else {
                    self.model.versions(stream.id())
                };
                assert!(
                    done.contains(&version.get()),
                    "seed {}: {group} is past {stream} {version}",
                    self.seed
                );
            }
        }
    }

    fn runner(&self, seed: u64) -> Runner {
        let often = Duration::from_millis(300);
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        // This is shorter than some handlers take, so that some are cancelled.
        let drain = Duration::from_millis(10);
        let tuned = |policy: ProcessorPolicy| policy.with_commit_interval(often).with_drain(drain);
        let projector = tuned(ProcessorPolicy::projector());
        let listener = tuned(from_beginning());
        self.world
            .faulty_builder(&unreliable(seed))
            .with_event_store(self.world.store.clone())
            .projector_with(Lawful(self.model.clone(), rng), projector)
            .listener_with(self.seen.clone(), listener)
            .build()
            .unwrap()
    }

    /// Runs one instance after the other. Each is stopped or dies.
    async fn instances(&self, seed: u64, stop: &CancellationToken) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !stop.is_cancelled() {
            let runner = self.runner(rng.u64(..));
            let life = Duration::from_millis(rng.u64(1..8_000));
            if rng.bool() {
                let report = runner.run(tokio::time::sleep(life)).await;
                let result = report.into_result();
                assert!(result.is_ok(), "seed {}: {result:?}", self.seed);
            } else {
                let run = runner.run(std::future::pending());
                let died = tokio::time::timeout(life, run).await;
                assert!(died.is_err(), "seed {}: {died:?}", self.seed);
            }
        }
    }

    /// Expels a member now and then, so that it loses all its partitions.
    async fn expel(&self, stop: &CancellationToken) {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        while !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(rng.u64(1..5_000))).await;
            let group = [SEEN, MODEL][rng.usize(0..2)];
            let lost = partition(rng.u32(0..PARTITIONS));
            self.world.bus.expel_owner(group, &lost);
        }
    }

    async fn run(&self) {
        let stop = CancellationToken::new();
        let written = async {
            self.write().await;
            stop.cancel();
        };
        tokio::join!(
            written,
            self.expel(&stop),
            self.instances(self.seed * 3, &stop),
            self.instances(self.seed * 3 + 1, &stop),
            self.instances(self.seed * 3 + 2, &stop),
        );
        let last = self.runner(self.seed);
        last.run_until_caught_up().await.into_result().unwrap();
        self.check_commits().await;
        for id in (0..STREAMS).map(|id| id.to_string()) {
            let mut first_seen = Vec::new();
            for version in self.seen.of(&id) {
                if !first_seen.contains(&version) {
                    first_seen.push(version);
                }
            }
            let places = self.places.lock().unwrap();
            let of_stream = places.iter().filter(|(_, _, s, _)| s.id() == id);
            let last = of_stream.map(|(_, _, _, version)| version.get()).max();
            let all: Vec<_> = (1..=last.unwrap_or(0)).collect();
            assert_eq!(self.model.versions(&id), all, "seed {}, {id}", self.seed);
            assert_eq!(first_seen, all, "seed {}, {id}", self.seed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_comes_and_goes_misses_no_event_keeps_order_and_commits_none_too_early() {
    for seed in foldstream_testkit::length::seeds(12, 200) {
        Fleet::new(seed).run().await;
    }
}
