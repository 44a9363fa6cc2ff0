//! The small rows that processes share, as pure logic over
//! [`ControlStore`](crate::ports::ControlStore).
//!
//! Every row is one JSON object with short, stable names. The names are stored, so they only grow
//! in number, and readers ignore names that they do not know. Rows about streams are spread over 64
//! partitions by the stream's hash. Each kind of row has a file, and a test named
//! `the_stored_form_...` in it or beside it fixes the form.
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
pub(crate) mod ask;
mod audit;
mod boot;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
mod deferred;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
pub(crate) mod discard;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
mod generation;
pub(crate) mod hex_id;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
pub(crate) mod instance;
pub(crate) mod job;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
mod large;
mod lease;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
pub(crate) mod letters;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
mod park;
mod order;
mod position;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
pub(crate) mod processor_rows;
mod requests;
mod restore;
#[allow(dead_code, reason = "the steps of owners are called by the runner")]
mod rows;
#[cfg(test)]
pub(crate) mod test_store;
mod topic_pin;
mod watermark;

#[cfg(test)]
mod row_steps_tests;

#[allow(unused_imports, reason = "the runner names what it calls")]
pub(crate) use self::{
    ask::{AskKind, AskRow},
    audit::{AuditRow, date as audit_date},
    boot::{BootError, BootRows},
    deferred::DeferredPage,
    discard::{DiscardRow, DiscardState},
    generation::{Generations, join as join_generation},
    hex_id::InvalidHexId,
    instance::{InstanceId, InstanceRow, InstanceState},
    job::{Item, ItemPage, ItemState, ItemTarget, JobCounts, JobId, JobRow, JobState},
    letters::{
        DeadLetter, Failed, Fingerprint, LetterBody, LetterClass, LetterHead, LetterId,
        StoredRecord,
    },
    order::{LaneHash, OrderKey, OrderRow},
    park::{Followed, ParkFailure, ParkId, ParkRow, ParkState, Request, merge},
    processor_rows::{ChangeToken, LetterKey, Polled, ProcessorRows},
    requests::PauseRow,
    rows::{DeleteIf, KeyedPage, PutIf, Races, Rows},
    topic_pin::TopicPins,
};
pub use large::{LargePut, LargeRows};
pub use lease::{Contender, Lease, Leases};
pub(crate) use position::StreamPositions;
pub use restore::{
    Finding, InvalidRestoreCursor, RestoreCursor, RestoreError, RestorePage, RestoreRepair,
    WritesSinceRestore,
};
pub use rows::Stored;
pub use watermark::{Watermark, Watermarks};
