//! The settings of one seed.
use foldstream::{
    Backoff, RetryPolicy,
    runner::{DeliveryLevel, ProcessorPolicy, UnknownEvents},
};
use std::time::Duration;

/// The settings of one run, all drawn from its seed.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) level: DeliveryLevel,
    /// The projector buffers until it is flushed.
    pub(super) buffers: bool,
    pub(super) partitions: u32,
    pub(super) streams: u64,
    pub(super) instances: u64,
    pub(super) replayers: u64,
    /// The segments of the scan hold the commits of each stream in turn.
    pub(super) is_scattered: bool,
    pub(super) segments: u32,
    /// The most commits of a page.
    pub(super) page: u32,
    /// An operator cancels replays.
    pub(super) cancels: bool,
    /// A scan takes longer than a generation that was left is kept.
    pub(super) is_slow: bool,
    /// At the end, the time is waited for after which nothing of old generations is left.
    pub(super) waits_for_deletion: bool,
}

impl Plan {
    pub(super) fn draw(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed_0b1e);
        let level = match rng.u32(0..8) {
            0 => DeliveryLevel::AtLeastOnce,
            1..4 => DeliveryLevel::Deduplicated,
            _ => DeliveryLevel::ExactlyOnceEffect,
        };
        Self {
            seed,
            level,
            buffers: rng.bool(),
            partitions: rng.u32(1..4),
            streams: rng.u64(2..6),
            instances: rng.u64(1..4),
            replayers: rng.u64(1..4),
            is_scattered: rng.bool(),
            segments: rng.u32(1..4),
            page: rng.u32(1..5),
            cancels: rng.u32(0..3) == 0,
            is_slow: rng.u32(0..48) == 0,
            waits_for_deletion: rng.u32(0..12) == 0,
        }
    }

    pub(super) fn policy(&self) -> ProcessorPolicy {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let retry = RetryPolicy::default().with_backoff(backoff.with_seed(self.seed));
        ProcessorPolicy::projector()
            .with_level(self.level)
            .with_unknown_events(UnknownEvents::Skip)
            .with_commit_interval(Duration::from_millis(900))
            .with_retry(retry)
            .with_drain(Duration::from_millis(300))
            .with_attempt_timeout(Duration::from_secs(3))
            .with_concurrency(3)
    }
}
