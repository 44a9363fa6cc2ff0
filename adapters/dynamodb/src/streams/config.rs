//! The settings of a streams reader.
use foldstream::{Backoff, publisher::SweepConfig};
use std::time::Duration;

/// The settings of a [`StreamsReader`](super::StreamsReader).
///
/// # Example
/// ```
/// use foldstream_dynamodb::streams::StreamsConfig;
/// use std::time::Duration;
///
/// let config = StreamsConfig::default().with_lease(Duration::from_secs(60));
/// assert_eq!(config.max_pages, 64);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StreamsConfig {
    /// The time after which the shards of an instance that has died are taken over. Default 30 s. A
    /// shorter time costs more writes: a lease is renewed three times in it.
    pub lease: Duration,
    /// The time between two looks at the rows of the other instances. Default 5 s. A look is a
    /// query of about three rows per shard, and a write.
    pub coordination: Duration,
    /// The time between two descriptions of the stream, which find new shards. Default 30 s. The
    /// end of a shard brings the next one forward. AWS allows ten descriptions per second for all
    /// processes together.
    pub description: Duration,
    /// The time between two requests for records of one shard while there are records. Default
    /// 200 ms, so five requests per second.
    pub min_pause: Duration,
    /// The time between two requests for records of a shard without new ones. Default 1 s. It is
    /// the most that an idle shard adds to the delay of an event, and each request costs a streams
    /// read request unit.
    pub idle_pause: Duration,
    /// The time between two checkpoints of a shard. Default 5 s. What was published after the last
    /// checkpoint is compared with the watermarks again after a crash.
    pub checkpoint: Duration,
    /// The most pages of records in memory, for all shards together. Default 64, so 64 MiB; 0
    /// counts as 1.
    pub max_pages: usize,
    /// The most pages in memory per shard. Default 4; 0 counts as 1.
    pub max_pages_per_shard: usize,
    /// The age of a record from which its stream is set aside for the sweep instead of published
    /// at once, so that the records after it do not grow too old. Default 6 h. AWS deletes
    /// records after 24 h.
    pub max_age: Duration,
    /// The time after which a stream that fails is set aside for the sweep, if other streams can be
    /// published. Default 1 min.
    pub patience: Duration,
    /// The pauses after a failed request or publish. Default: 200 ms, doubling up to 10 s, each a
    /// random part of that.
    pub backoff: Backoff,
    /// The time that a shutdown waits for what is being published. Default 10 s. What is dropped
    /// then is published again by the next instance.
    pub grace: Duration,
    /// The settings of the sweep that the reader runs. Default: every 5 min.
    pub sweep: SweepConfig,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            coordination: Duration::from_secs(5),
            description: Duration::from_secs(30),
            min_pause: Duration::from_millis(200),
            idle_pause: Duration::from_secs(1),
            checkpoint: Duration::from_secs(5),
            max_pages: 64,
            max_pages_per_shard: 4,
            max_age: Duration::from_secs(6 * 3600),
            patience: Duration::from_secs(60),
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(10)),
            grace: Duration::from_secs(10),
            sweep: SweepConfig::default(),
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $field:ident, $type:ty;)*) => {
        impl StreamsConfig {
            $($(#[$doc])*
            #[must_use]
            pub const fn $name(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            })*
        }
    };
}
setters! {
    /// Sets the time after which the shards of an instance that has died are taken over.
    with_lease: lease, Duration;
    /// Sets the time between two looks at the rows of the other instances.
    with_coordination: coordination, Duration;
    /// Sets the time between two descriptions of the stream.
    with_description: description, Duration;
    /// Sets the time between two requests for records of one shard while there are records.
    with_min_pause: min_pause, Duration;
    /// Sets the time between two requests for records of a shard without new ones.
    with_idle_pause: idle_pause, Duration;
    /// Sets the time between two checkpoints of a shard.
    with_checkpoint: checkpoint, Duration;
    /// Sets the most pages of records in memory, for all shards together.
    with_max_pages: max_pages, usize;
    /// Sets the most pages in memory per shard.
    with_max_pages_per_shard: max_pages_per_shard, usize;
    /// Sets the age of a record from which its stream is set aside.
    with_max_age: max_age, Duration;
    /// Sets the time after which a failing stream is set aside.
    with_patience: patience, Duration;
    /// Sets the pauses after a failed request or publish.
    with_backoff: backoff, Backoff;
    /// Sets the time that a shutdown waits for what is being published.
    with_grace: grace, Duration;
    /// Sets how the reader sweeps.
    with_sweep: sweep, SweepConfig;
}
