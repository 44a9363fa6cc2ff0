//! What an operator sees of processors: dead letters, discards, jobs and instances.
pub use crate::control::{
    discard::DiscardState,
    hex_id::InvalidHexId,
    instance::{InstanceId, InstanceState},
    job::{JobCounts, JobId, JobState},
    letters::{
        DeadLetter, Fingerprint, LetterBody, LetterClass, LetterHead, LetterId, StoredRecord,
    },
    processor_rows::LetterKey,
};
