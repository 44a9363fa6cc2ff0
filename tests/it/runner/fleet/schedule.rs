//! The settings and disturbances of one run, all drawn from its seed.
use foldstream::{
    Backoff, RetryPolicy,
    runner::{DeliveryLevel, ProcessorPolicy, Start},
};
use std::time::Duration;

/// The kind of handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Listener,
    /// A projector that writes each event at once.
    Writes,
    /// A projector that buffers until it is flushed.
    Buffers,
}

/// The action of the failure policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveUp {
    Park,
    DeadLetter,
    Discard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breaker {
    Absent,
    Local,
    Distributed,
}

/// The settings of one run.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) role: Role,
    pub(super) level: DeliveryLevel,
    pub(super) has_store: bool,
    /// Several streams share a lane.
    pub(super) shares_lanes: bool,
    pub(super) max_batch: usize,
    pub(super) give_up: GiveUp,
    pub(super) breaker: Breaker,
    /// The number of parked streams and of dead letters at which an instance holds.
    pub(super) limit: Option<usize>,
    pub(super) partitions: u32,
    pub(super) streams: u32,
    pub(super) commits: usize,
    pub(super) instances: u64,
    pub(super) has_static_members: bool,
    /// Nothing dies and no port fails: instances join and leave in order.
    pub(super) is_peaceful: bool,
    /// The beginning and the length of an outage of the service that the handler calls.
    pub(super) outage: Option<(Duration, Duration)>,
    pub(super) drain: Duration,
    pub(super) concurrency: usize,
    /// The most records and bytes of a partition, and the most bytes of an instance.
    pub(super) window: usize,
    pub(super) bytes: usize,
    pub(super) memory: usize,
}

pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

impl Schedule {
    pub(super) fn draw(seed: u64, level: DeliveryLevel) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed_0f1e_e700);
        let role = match (level, rng.u32(0..3)) {
            (DeliveryLevel::ExactlyOnceEffect, 0) => Role::Buffers,
            (_, 0) => Role::Listener,
            (_, 1) => Role::Writes,
            _ => Role::Buffers,
        };
        let give_up = match (role, rng.u32(0..10)) {
            (Role::Listener, 0..5) | (_, 9) => GiveUp::DeadLetter,
            (_, 8) => GiveUp::Discard,
            _ => GiveUp::Park,
        };
        let breaker = match rng.u32(0..6) {
            0..3 => Breaker::Absent,
            3 => Breaker::Distributed,
            _ => Breaker::Local,
        };
        let is_peaceful = rng.u32(0..6) == 0;
        let outage = (rng.u32(0..4) == 0).then(|| {
            let begin = Duration::from_millis(rng.u64(1_000..8_000));
            (begin, Duration::from_millis(rng.u64(1_000..8_000)))
        });
        Self {
            seed,
            role,
            level,
            has_store: rng.bool(),
            shares_lanes: rng.u32(0..4) == 0,
            max_batch: [1, 1, 1, 3, 8][rng.usize(0..5)],
            give_up,
            breaker,
            limit: (rng.u32(0..4) == 0).then(|| rng.usize(1..4)),
            partitions: rng.u32(1..4),
            streams: rng.u32(2..6),
            commits: rng.usize(8..18),
            instances: rng.u64(1..4),
            has_static_members: rng.u32(0..6) == 0,
            is_peaceful,
            outage,
            drain: match is_peaceful {
                true => Duration::from_secs(5),
                // This is shorter than some handlers take, so that some are cancelled.
                false => Duration::from_millis(rng.u64(5..400)),
            },
            concurrency: rng.usize(1..5),
            window: [4, 10, 1_000][rng.usize(0..3)],
            bytes: [7_500, 1 << 20, 1 << 20][rng.usize(0..3)],
            memory: [12_500, 1 << 26, 1 << 26][rng.usize(0..3)],
        }
    }

    /// Returns true if the processor finds every event that has no record before that of a later
    /// version: it must know where it stands, and have the event store.
    pub(super) fn fills_gaps(&self) -> bool {
        self.has_store && self.level != DeliveryLevel::AtLeastOnce
    }

    /// Returns the lane of a stream.
    pub(super) fn lane(&self, stream: u32) -> u32 {
        if self.shares_lanes {
            stream % 2
        } else {
            stream
        }
    }

    /// Returns the policy without its failure policy and breaker.
    pub(super) fn policy(&self) -> ProcessorPolicy {
        let base = match self.role {
            Role::Listener => ProcessorPolicy::listener(),
            Role::Writes | Role::Buffers => ProcessorPolicy::projector(),
        };
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let retry = RetryPolicy::default()
            .with_backoff(backoff.with_seed(self.seed))
            .with_max_elapsed(Duration::from_secs(2));
        let mut policy = base
            .with_start(Start::Beginning)
            .with_level(self.level)
            .with_commit_interval(Duration::from_millis(700))
            .with_retry(retry)
            .with_drain(self.drain)
            .with_attempt_timeout(ATTEMPT_TIMEOUT)
            .with_concurrency(self.concurrency)
            .with_window(self.window, self.bytes)
            .with_max_memory(self.memory)
            .with_max_batch(self.max_batch)
            .without_breaker();
        if let Some(limit) = self.limit {
            policy = policy.with_limits(limit, limit + 2, limit + 1);
        }
        if self.shares_lanes {
            policy = policy.with_lane(|stream| {
                let number: u32 = stream.id().parse().unwrap_or_default();
                (number % 2).to_string()
            });
        }
        policy
    }
}
