//! Dead letters: events and records that a processor has given up, whole, and why.
//!
//! ```text
//! dlq/<name>/<N>/<topic>/<partition>   <stream>\u{1f}<version:020>  or, if they cannot be read,
//!                                      !\u{1f}<offset:020>
//! ```
//! A letter is a large value of three parts: a line of JSON that lists show ([`LetterHead`]), a
//! line of JSON that says what the rest is, and then the bytes of key, value and headers as they
//! came. A person can read it, payloads cost no base64, and a list does not read them.
//!
//! A letter is written whole by the build that met the failure. Of a letter that is there already
//! the new one keeps the id, the time of the first failure and the attempts. Fields of a newer
//! build are not kept, since they would say something about another failure.
mod body;
mod fingerprint;

pub use body::{LetterBody, StoredRecord};
pub use fingerprint::Fingerprint;

use super::{
    KeyedPage, LargePut, ProcessorRows, Stored,
    hex_id::hex_id,
    processor_rows::{LetterKey, stream_query},
    rows::Races,
};
use crate::{
    StreamId, Timestamp, Version,
    ports::{ControlStoreError, PartitionId, RangeQuery, RowKey},
    runner::ErrorClass,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

hex_id! {
    /// The id of a dead letter. A letter that is written again keeps its id. One that was deleted
    /// and written again has another.
    pub LetterId, "the id of a dead letter"
}

/// The class of the failure that made a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LetterClass {
    /// A failure that was retried until its time was over.
    Transient,
    /// A failure of a service that throttled for too long.
    Throttled,
    /// A failure that no retry mends.
    Permanent,
    /// An event or record that cannot be read.
    Poison,
    /// A failure of the processor itself.
    Fatal,
    /// A class that a newer build has written.
    #[serde(other)]
    Unknown,
}

impl LetterClass {
    /// Returns the stored name of the class.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Permanent => "permanent",
            Self::Poison => "poison",
            Self::Fatal => "fatal",
            Self::Unknown => "unknown",
        }
    }
}
impl std::fmt::Display for LetterClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
impl From<ErrorClass> for LetterClass {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Transient => Self::Transient,
            ErrorClass::Throttled { .. } => Self::Throttled,
            ErrorClass::Permanent => Self::Permanent,
            ErrorClass::Poison => Self::Poison,
            ErrorClass::Fatal => Self::Fatal,
        }
    }
}

/// The failure of an event or record, from which a letter is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed<'a> {
    pub(crate) class: LetterClass,
    /// The name of the error's type, as far as it is known.
    pub(crate) error_type: &'a str,
    /// The error and all its sources, as one line.
    pub(crate) error: &'a str,
    /// The type of the event, `<aggregate type>.<name>`, if it could be read.
    pub(crate) event_type: Option<&'a str>,
    /// The stream of the event, if it could be read.
    pub(crate) stream: Option<&'a StreamId>,
    pub(crate) attempts: u32,
    /// The time of the first failure.
    pub(crate) first: Timestamp,
    /// The time of the last failure.
    pub(crate) last: Timestamp,
}

/// The part of a dead letter that lists show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LetterHead {
    /// The id of the letter.
    #[serde(rename = "i")]
    pub id: LetterId,
    /// The class of the last failure.
    #[serde(rename = "c")]
    pub class: LetterClass,
    /// The name of the error's type, as far as it is known.
    #[serde(rename = "y")]
    pub error_type: String,
    /// The last error and all its sources as one line, cut to [`MAX_ERROR`](Self::MAX_ERROR)
    /// bytes.
    #[serde(rename = "e")]
    pub error: String,
    /// The type of the event, `<aggregate type>.<name>`; `None` if it cannot be read.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The fingerprint of the last failure.
    #[serde(rename = "p")]
    pub fingerprint: Fingerprint,
    /// The number of attempts, over all redrives.
    #[serde(rename = "n")]
    pub attempts: u32,
    /// The time of the first failure.
    #[serde(rename = "f")]
    pub first: Timestamp,
    /// The time of the last failure.
    #[serde(rename = "l")]
    pub last: Timestamp,
    /// True if the policy gave the event up, and its stream went on: it was not handled, whatever
    /// the position of the processor says. False for the event at which a stream is parked.
    #[serde(rename = "g", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_given_up: bool,
}

impl LetterHead {
    /// The largest size of the stored error in bytes: 4 KiB. A longer one ends with `...`.
    pub const MAX_ERROR: usize = 4 * 1024;
    /// The largest size of the stored names of error type and event type in bytes.
    const MAX_NAME: usize = 1024;
}

/// A dead letter: the failed event or record, and its failure.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The failure.
    pub head: LetterHead,
    /// The event or record, as it came.
    pub body: LetterBody,
}

impl DeadLetter {
    /// Creates the letter of a failure. It gets its id when it is written.
    pub(crate) fn new(failed: &Failed<'_>, body: LetterBody) -> Self {
        let name = |text: &str| cut(text, LetterHead::MAX_NAME);
        let head = LetterHead {
            id: LetterId::from_u128(0),
            class: failed.class,
            error_type: name(failed.error_type),
            error: cut(failed.error, LetterHead::MAX_ERROR),
            event_type: failed.event_type.map(name),
            fingerprint: Fingerprint::of(failed),
            attempts: failed.attempts,
            first: failed.first,
            last: failed.last,
            is_given_up: false,
        };
        Self { head, body }
    }

    /// Returns the letter of an event that its stream goes on without.
    #[must_use]
    pub(crate) fn given_up(mut self) -> Self {
        self.head.is_given_up = true;
        self
    }

    /// Returns this letter in place of an older one about the same event.
    fn after(&self, older: &LetterHead) -> Self {
        let mut letter = self.clone();
        letter.head.id = older.id;
        // A redrive that fails again does not say that the event was handled meanwhile.
        letter.head.is_given_up |= older.is_given_up;
        letter.head.first = older.first.min(letter.head.first);
        letter.head.attempts = if older.last == letter.head.last {
            // The same failure, whose write is repeated since its answer was lost.
            older.attempts.max(letter.head.attempts)
        } else {
            older.attempts.saturating_add(letter.head.attempts)
        };
        letter
    }
}

/// Returns a text of at most `max` bytes.
fn cut(text: &str, max: usize) -> String {
    const MARK: &str = "...";
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max - MARK.len())
        .rev()
        .find(|at| text.is_char_boundary(*at));
    format!("{}{MARK}", &text[..end.unwrap_or(0)])
}

impl ProcessorRows {
    fn letter_key(&self, partition: &PartitionId, key: &LetterKey) -> RowKey {
        RowKey::new(self.partition("dlq", partition), key.sort())
    }

    /// Returns the heads of one page of the letters of a partition.
    pub(crate) async fn letter_page(
        &self,
        partition: &PartitionId,
        after: Option<String>,
    ) -> Result<KeyedPage<LetterKey, LetterHead>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("dlq", partition)).with_after(after);
        self.letter_heads(&query).await
    }

    /// Returns the heads of a page of at most `limit` letters of a partition, for a list.
    pub(crate) async fn letter_list(
        &self,
        partition: &PartitionId,
        after: Option<String>,
        limit: NonZeroU32,
    ) -> Result<KeyedPage<LetterKey, LetterHead>, ControlStoreError> {
        let query = RangeQuery::new(self.partition("dlq", partition))
            .with_after(after)
            .with_limit(limit);
        self.letter_heads(&query).await
    }

    /// Returns the heads of one page of the letters of a stream.
    pub(crate) async fn letters_of(
        &self,
        partition: &PartitionId,
        stream: &StreamId,
        after: Option<String>,
    ) -> Result<KeyedPage<LetterKey, LetterHead>, ControlStoreError> {
        let (rows, last) = (self.partition("dlq", partition), Version::new(u64::MAX));
        let query = stream_query(rows, stream, Version::NONE, last, after);
        self.letter_heads(&query).await
    }

    async fn letter_heads(
        &self,
        query: &RangeQuery,
    ) -> Result<KeyedPage<LetterKey, LetterHead>, ControlStoreError> {
        let (lines, next) = self.large.first_lines(query).await?;
        let mut rows = Vec::with_capacity(lines.len());
        for (sort, line) in lines {
            if let Some(key) = LetterKey::parse(&sort) {
                let head = head_of(&RowKey::new(&*query.partition, sort), &line)?;
                rows.push((key, head));
            }
        }
        Ok(KeyedPage { rows, next })
    }

    /// Returns the head of one letter; `None` if there is no such letter.
    pub(crate) async fn letter_head(
        &self,
        partition: &PartitionId,
        key: &LetterKey,
    ) -> Result<Option<Stored<LetterHead>>, ControlStoreError> {
        let key = self.letter_key(partition, key);
        let line = self.large.first_line(&key).await?;
        line.map(|line| head_of(&key, &line)).transpose()
    }

    /// Returns one letter, whole; `None` if there is no such letter.
    pub(crate) async fn letter_get(
        &self,
        partition: &PartitionId,
        key: &LetterKey,
    ) -> Result<Option<Stored<DeadLetter>>, ControlStoreError> {
        let key = self.letter_key(partition, key);
        let Some(Stored { value, revision }) = self.large.get(&key).await? else {
            return Ok(None);
        };
        let value = decode(&key, &value)?;
        Ok(Some(Stored { value, revision }))
    }

    /// Writes the letter of an event. A letter about the same event is replaced, so that an event
    /// that is given up twice is one entry. Returns the id of the letter.
    ///
    /// It is one operation although it reads first: only the last write has an effect, and the call
    /// may be repeated.
    pub(crate) async fn letter_write(
        &self,
        partition: &PartitionId,
        key: &LetterKey,
        letter: &DeadLetter,
    ) -> Result<LetterId, ControlStoreError> {
        let key = self.letter_key(partition, key);
        let mut races = Races::default();
        loop {
            let older = self.large.first_line(&key).await?;
            let older = older.map(|line| head_of(&key, &line)).transpose()?;
            let letter = match &older {
                Some(older) => letter.after(&older.value),
                None => {
                    let mut letter = letter.clone();
                    let fresh = self.rows.fresh_revision();
                    letter.head.id = LetterId::from_u128(fresh.as_u128());
                    letter
                }
            };
            let (line, value) = encode(&key, &letter)?;
            let seen = older.map(|older| older.revision);
            let put = self
                .large
                .put_noted(&key, &value, Some(&line), seen)
                .await?;
            if put != LargePut::Conflict {
                return Ok(letter.head.id);
            }
            self.large.lost(&mut races, &key).await?;
        }
    }

    /// Deletes the letter of an event. Returns false if there was none.
    pub(crate) async fn letter_delete(
        &self,
        partition: &PartitionId,
        key: &LetterKey,
    ) -> Result<bool, ControlStoreError> {
        self.large
            .remove_value(&self.letter_key(partition, key))
            .await
    }
}

fn head_of(key: &RowKey, line: &Stored<Bytes>) -> Result<Stored<LetterHead>, ControlStoreError> {
    let value = serde_json::from_slice(&line.value).map_err(|e| corrupt(key, &e.to_string()))?;
    let revision = line.revision;
    Ok(Stored { value, revision })
}

/// Returns the first line of a letter, and the whole.
fn encode(key: &RowKey, letter: &DeadLetter) -> Result<(String, Bytes), ControlStoreError> {
    let line = serde_json::to_string(&letter.head).map_err(|e| corrupt(key, &e.to_string()))?;
    let mut value = line.clone().into_bytes();
    value.push(b'\n');
    letter.body.write(&mut value);
    Ok((line, value.into()))
}

fn decode(key: &RowKey, value: &Bytes) -> Result<DeadLetter, ControlStoreError> {
    let end = value.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| corrupt(key, "the letter has one line only"))?;
    let head = serde_json::from_slice(&value[..end]).map_err(|e| corrupt(key, &e.to_string()))?;
    let body = LetterBody::read(&value.slice(end + 1..)).map_err(|reason| corrupt(key, &reason))?;
    Ok(DeadLetter { head, body })
}

fn corrupt(key: &RowKey, reason: &str) -> ControlStoreError {
    ControlStoreError::Corrupt {
        key: key.clone(),
        reason: reason.into(),
    }
}

#[cfg(test)]
#[path = "letter_tests.rs"]
mod tests;
