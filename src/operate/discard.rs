//! Discard and skip: events that are not to be handled.
use super::{
    DiscardState, LetterAddress, LetterKey, OperateError, Operator, Reason,
    select::is_passed_letter,
};
use crate::{
    StreamId, Version,
    control::{AskKind, AskRow, DiscardRow, LetterHead, ParkRow, ProcessorRows, PutIf},
    kafka_partition,
    ports::{PartitionId, ReadFrom},
};
use futures::TryStreamExt;
use std::collections::BTreeMap;

/// An event by its stream and version, for [`Operator::skip`].
///
/// # Example
/// ```
/// use foldstream::{StreamId, Version, operate::EventRef};
/// let event = EventRef::new(StreamId::new("cart", "7")?, Version::new(3)).in_topic("orders");
/// assert_eq!(event.topic.as_deref(), Some("orders"));
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct EventRef {
    /// The stream of the event.
    pub stream: StreamId,
    /// The version of the event.
    pub version: Version,
    /// The topic that holds the event. `None`, the default, is the only topic of the processor.
    pub topic: Option<String>,
}

impl EventRef {
    /// Creates a reference to an event in the only topic of the processor.
    #[must_use]
    pub const fn new(stream: StreamId, version: Version) -> Self {
        Self {
            stream,
            version,
            topic: None,
        }
    }
    /// Names the topic that holds the event.
    #[must_use]
    pub fn in_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }
}

/// The answer to a discard or a skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discarded {
    /// 1 if this call has asked for it; 0 if there is nothing at the address, or if it was asked
    /// for before.
    pub affected: u64,
    /// The state of the request; `None` if there is nothing at the address.
    pub state: Option<DiscardState>,
}

impl Discarded {
    const NOTHING: Self = Self {
        affected: 0,
        state: None,
    };
}

impl Operator {
    /// Asks the owner of the partition to pass over an event that waits in a parked stream, or to
    /// delete a dead letter without handling it. What waits after the event goes on: a discard of
    /// the event at which a stream is parked redrives the stream after it.
    ///
    /// The request is kept and cannot be taken back. [`discard_state`](Self::discard_state) tells
    /// the answer. The call may be repeated: it tells the owner again.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails. The request may have been
    ///   written, and the call may be repeated.
    pub async fn discard(
        &self,
        address: &LetterAddress,
        reason: &Reason,
    ) -> Result<Discarded, OperateError> {
        let generations = self.generations(&address.processor).await?;
        let act = async {
            let answer = self.ask_for_discard(address, reason).await?;
            if answer.state.is_some() {
                // Also if the request was there already: the process that wrote it may have died
                // before it told the owner.
                self.announce(&address.processor, &generations).await?;
            }
            Ok((answer, answer.affected))
        };
        self.audited("discard", address.to_string(), reason, act)
            .await
    }

    /// Returns what became of a discard or a skip; `None` if nobody has asked for it.
    ///
    /// A record without a readable stream and version has no request of its own once its letter is
    /// deleted: look for the letter instead.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn discard_state(
        &self,
        address: &LetterAddress,
    ) -> Result<Option<DiscardState>, OperateError> {
        let rows = self.rows_of(&address.processor, address.generation);
        let at = &address.partition;
        let LetterKey::Event { stream, version } = &address.key else {
            let ask = rows.ask_get(at, &address.key).await?;
            return Ok(ask.map(|_| DiscardState::Asked));
        };
        // Before the row of the discard: an owner notes there that it passes the version over
        // before the version leaves the parked ones, and before the letter is deleted.
        let is_open = self.found(&rows, address).await?.is_open(*version);
        let row = match rows.discard_get(at, stream, *version).await? {
            Some(row) => Some(row),
            None => rows.discard_archived(at, stream, *version).await?,
        };
        Ok(row.map(|row| match row.value.state {
            DiscardState::Asked if !is_open && !row.value.is_skip => DiscardState::Handled,
            state => state,
        }))
    }

    /// Asks a processor to pass over an event, whether or not it has failed: the way past an event
    /// at which a processor halts or holds.
    ///
    /// The request holds for the generation that serves, and for the one that is being built.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::NoPartitions`] if the processor has read nothing yet.
    /// - [`OperateError::AmbiguousTopic`] if it reads several topics, and none is named.
    /// - [`OperateError::UnknownTopic`] if it does not read the named one.
    /// - [`OperateError::NoSuchEvent`] if there is an [event store](Self::with_store), and it has
    ///   no such event.
    /// - [`OperateError::Store`] if the event store refuses or fails.
    /// - [`OperateError::Control`] if the control store refuses or fails. The request may have been
    ///   written, and the call may be repeated.
    pub async fn skip(
        &self,
        processor: &str,
        event: &EventRef,
        reason: &Reason,
    ) -> Result<Discarded, OperateError> {
        let generations = self.generations(processor).await?;
        self.check_exists(event).await?;
        let mut at = Vec::new();
        for generation in generations.all() {
            at.push((
                generation,
                self.partition_of(processor, generation, event).await?,
            ));
        }
        let target = format!("{processor} {} version {}", event.stream, event.version);
        let act = async {
            let mut answer = Discarded::NOTHING;
            for (generation, partition) in at {
                let rows = self.rows_of(processor, generation);
                let row = self.discard_row(reason).skipping();
                let (stream, version) = (&event.stream, event.version);
                let asked = rows.discard_ask(&partition, stream, version, row).await?;
                let (affected, state) = asked_state(asked);
                answer.affected = answer.affected.max(affected);
                answer.state = answer.state.or(Some(state));
            }
            self.announce(processor, &generations).await?;
            Ok((answer, answer.affected))
        };
        self.audited("skip", target, reason, act).await
    }

    fn discard_row(&self, reason: &Reason) -> DiscardRow {
        DiscardRow::asked(reason.who(), reason.why(), self.clock.now())
    }

    async fn ask_for_discard(
        &self,
        address: &LetterAddress,
        reason: &Reason,
    ) -> Result<Discarded, OperateError> {
        let rows = self.rows_of(&address.processor, address.generation);
        let (at, found) = (&address.partition, self.found(&rows, address).await?);
        let mut answer = Discarded::NOTHING;
        if let LetterKey::Event { stream, version } = &address.key {
            if !found.is_open(*version) {
                answer.state = self.discard_state(address).await?;
                return Ok(answer);
            }
            let row = self.discard_row(reason);
            let mut asked = rows.discard_ask(at, stream, *version, row.clone()).await?;
            if let PutIf::Conflict(Some(old)) = &asked
                && !old.value.is_in_force()
            {
                // It was handled once, came again, and failed.
                let seen = old.revision;
                asked = rows
                    .discard_replace(at, stream, *version, row, seen)
                    .await?;
            }
            let (affected, state) = asked_state(asked);
            (answer.affected, answer.state) = (affected, Some(state));
        }
        // The letter of a stream that is not parked, or that has passed the event: no redrive of
        // the stream will meet it.
        if let Some(head) = found.letter_to_ask_for(&address.key) {
            let ask = AskRow {
                letter: head.id,
                what: AskKind::Discard,
                by: reason.who().into(),
                job: None,
                at: self.clock.now(),
            };
            let written = rows.ask_put(at, &address.key, ask).await?;
            if matches!(written, PutIf::Written(_)) {
                answer.affected = 1;
            }
            answer.state = answer.state.or(Some(DiscardState::Asked));
        }
        Ok(answer)
    }

    async fn found(
        &self,
        rows: &ProcessorRows,
        address: &LetterAddress,
    ) -> Result<Found, OperateError> {
        let at = &address.partition;
        let parked = match address.key.stream() {
            Some(stream) => rows.park_get(at, stream).await?,
            None => None,
        };
        let letter = rows.letter_head(at, &address.key).await?;
        Ok(Found {
            parked: parked.map(|row| row.value),
            letter: letter.map(|row| row.value),
        })
    }

    async fn check_exists(&self, event: &EventRef) -> Result<(), OperateError> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let none = || OperateError::NoSuchEvent {
            stream: event.stream.clone(),
            version: event.version,
        };
        if event.version == Version::NONE {
            return Err(none());
        }
        let from = ReadFrom::Event(event.version);
        let mut commits = store.read(&event.stream, from, Some(std::num::NonZeroU32::MIN));
        match commits.try_next().await? {
            Some(_) => Ok(()),
            None => Err(none()),
        }
    }

    /// Returns the partition that holds the records of a stream.
    async fn partition_of(
        &self,
        processor: &str,
        generation: u32,
        event: &EventRef,
    ) -> Result<PartitionId, OperateError> {
        let mut topics = BTreeMap::<String, u32>::new();
        // A processor that has begun reads the topics for which it has start positions.
        let begun = self.rows.boot_offsets(processor, generation).await?;
        for partition in begun.keys() {
            let count = topics.entry(partition.topic.as_ref().into()).or_default();
            *count = (*count).max(partition.partition + 1);
        }
        let pinned: BTreeMap<_, _> = self.rows.pinned_topics().await?.into_iter().collect();
        if topics.is_empty() {
            topics.clone_from(&pinned);
        }
        let names = || topics.keys().cloned().collect();
        let topic = match &event.topic {
            Some(topic) if topics.contains_key(topic) => topic.clone(),
            Some(topic) => {
                return Err(OperateError::UnknownTopic {
                    processor: processor.into(),
                    topic: topic.clone(),
                    topics: names(),
                });
            }
            None => match topics.first_key_value() {
                Some((topic, _)) if topics.len() == 1 => topic.clone(),
                Some(_) => {
                    return Err(OperateError::AmbiguousTopic {
                        stream: event.stream.clone(),
                        topics: names(),
                    });
                }
                None => {
                    return Err(OperateError::NoPartitions {
                        processor: processor.into(),
                    });
                }
            },
        };
        // A stream is in the partition that its publisher has computed from the pinned number.
        let known = topics.get(&topic).copied().unwrap_or_default();
        let count = pinned.get(&topic).copied().unwrap_or(known);
        let partition = kafka_partition(event.stream.as_str().as_bytes(), count);
        Ok(PartitionId::new(topic, partition))
    }
}

/// The rows at an address.
struct Found {
    parked: Option<ParkRow>,
    letter: Option<LetterHead>,
}

impl Found {
    /// Returns true if the version may still be passed over: it waits in a parked stream, or there
    /// is a letter of it that no redrive of the stream meets.
    fn is_open(&self, version: Version) -> bool {
        match &self.parked {
            Some(row) => row.covers(version) || self.is_passed(row, version),
            None => self.letter.is_some(),
        }
    }

    /// Returns the letter that the owner deletes on request.
    fn letter_to_ask_for(&self, key: &LetterKey) -> Option<&LetterHead> {
        let letter = self.letter.as_ref()?;
        match (&self.parked, key) {
            (Some(row), LetterKey::Event { version, .. }) if !self.is_passed(row, *version) => None,
            _ => Some(letter),
        }
    }

    fn is_passed(&self, row: &ParkRow, version: Version) -> bool {
        let letter = self.letter.as_ref();
        letter.is_some_and(|letter| is_passed_letter(row, letter, version))
    }
}

fn asked_state(asked: PutIf<DiscardRow>) -> (u64, DiscardState) {
    match asked {
        PutIf::Written(row) => (1, row.value.state),
        PutIf::Conflict(Some(row)) => (0, row.value.state),
        // The row was archived between the put and its answer: it is decided.
        PutIf::Conflict(None) => (0, DiscardState::Passed),
    }
}
