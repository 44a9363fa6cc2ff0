#![doc = include_str!("../README.md")]

mod event;
mod stream;
mod head;
mod aggregate;
mod codec;
mod payload;
mod repository;
mod snapshot;
mod metadata;
pub mod ports;
pub mod adapter;
mod wire;
mod source_uri;
pub mod publisher;
pub mod runner;
pub mod replay;
pub mod operate;
pub mod control;
pub mod resilience;
pub mod breaker;
mod keyed;
mod hash;
mod hex;
mod host;
mod clock;
mod chain;
mod text;
mod trace;
mod shared_str;

pub use aggregate::{Aggregate, Context, Decide, Decision, Snapshot};
pub use bytes::Bytes;
pub use chain::chain;
pub use clock::{Clock, IdSource, InvalidTimestamp, SystemClock, SystemIds, Timestamp};
pub use codec::{CodecError, InvalidUpcasters, Lifted, Upcast, Upcasters};
pub use event::{
    Decoded, DeserializePayload, DomainEvent, EventHeader, EventName, EventSelector, EventSet,
    EventType, Recorded, RecordedEvent,
};
pub use foldstream_macros::DomainEvent;
pub(crate) use hash::{kafka_partition, murmur2};
pub use head::{ExpectedVersion, StreamHead, VersionConflict};
pub use metadata::{
    ActorId, CausationId, CommandId, CommitId, CorrelationId, EventId, InvalidId, Metadata,
};
pub use payload::{
    Opened, PayloadCodec, PayloadCodecs, PayloadContext, PayloadError, PayloadKind, Sealed,
};
pub use repository::{
    AppendError, AsOf, Committed, Difference, ExecuteError, ExecuteResult, Executed, FoldError,
    ForgetError, Historical, InapplicableDifference, LoadError, LoadMetrics, Loaded, Rejection,
    Repository, RepositoryMetrics, Settled, SnapshotMetrics, StateStep, StepEffect, TimelineError,
    TimelineStep, Transaction, TransactionExecuted, TransactionLoaded,
};
pub use resilience::{
    backoff::Backoff,
    policy::{ConflictRetry, RetryPolicy},
};
pub use snapshot::{LoadPolicy, SinceSnapshot, SnapshotPolicy};
pub use source_uri::{InvalidSourceUri, SourceUri};
pub use stream::{InvalidStreamId, StreamId, Version};
pub use trace::TraceContext;
pub(crate) use wire::{WireError, from_message, to_message, write as write_record};

/// The boxed error type in which every `source` is kept.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

#[doc(hidden)]
pub mod __private {
    pub use crate::codec::{
        bad_index, data_hash, decode_json, encode_json, event_equals_decoded,
        fields::{
            HasDeserialize, HasSerde, HasSerialize, NoSerde, Read, ReadAny, ReadSerde, Write,
            WriteAny, WriteSerde,
        },
    };
    pub use serde;
}
