//! The small rows that processes share, as pure logic over
//! [`ControlStore`](crate::ports::ControlStore).
//!
//! Every row is one JSON object with short, stable names. The names are stored, so they only grow
//! in number, and readers ignore names that they do not know. Rows about streams are spread over 64
//! partitions by the stream's hash. Each kind of row has a file, and a test named
//! `the_stored_form_...` in it or beside it fixes the form.
pub(crate) mod ask;
mod audit;
mod boot;
mod deferred;
pub(crate) mod discard;
mod generation;
pub(crate) mod hex_id;
pub(crate) mod instance;
pub(crate) mod job;
mod large;
mod lasting;
mod lease;
pub(crate) mod letters;
mod members;
mod park;
mod order;
mod position;
pub(crate) mod processor_rows;
pub(crate) mod publisher_rows;
mod replay;
mod requests;
mod restore;
mod retired;
mod rows;
#[cfg(test)]
pub(crate) mod test_store;
mod topic_pin;
mod watermark;

#[cfg(test)]
mod row_steps_tests;

pub(crate) use self::{
    ask::{AskKind, AskRow},
    audit::{AuditRow, date as audit_date},
    boot::{BootError, BootRows},
    discard::{DiscardRow, DiscardState},
    generation::{Generations, State as GenerationState, generations_key, join as join_generation},
    hex_id::InvalidHexId,
    instance::{InstanceId, InstanceRow, InstanceState},
    job::{Item, ItemPage, ItemState, ItemTarget, JobId, JobRow},
    lasting::Lasting,
    letters::{
        DeadLetter, Failed, Fingerprint, LetterBody, LetterClass, LetterHead, LetterId,
        StoredRecord,
    },
    order::{LaneHash, OrderKey, OrderRow},
    park::{Followed, ParkFailure, ParkId, ParkNotes, ParkRow, ParkState, Request, merge},
    processor_rows::{ChangeToken, LetterKey, ProcessorRows},
    replay::{RunFilter, RunProcessor, RunRow, SegmentCounts, SegmentRow, run_key},
    requests::PauseRow,
    rows::{DeleteIf, KeyedPage, PutIf, Races, Rows},
    topic_pin::TopicPins,
};
pub use large::{LargePut, LargeRows};
pub use lease::{Contender, Lease, Leases};
pub use members::Members;
pub(crate) use position::StreamPositions;
pub(crate) use publisher_rows::{
    BootstrapRow, DirtyRow, PollerRows, PublisherInstanceRow, PublisherRows, ReconcileRow,
    ReconcileRun, SkipRow, TopicNumbers,
};
pub use publisher_rows::{InvalidPublisherName, PublisherName};
pub use replay::{ReplayMode, RunId, RunState};
pub use restore::{
    Finding, InvalidRestoreCursor, RestoreCursor, RestoreError, RestorePage, RestoreRepair,
    WritesSinceRestore,
};
pub(crate) use retired::RetiredRow;
pub use rows::Stored;
pub use watermark::{Watermark, Watermarks};
