//! Lists of parked streams and dead letters.
use super::{
    DeadLetter, Fingerprint, JobId, LetterHead, LetterKey, ListCursor, ListPage, OperateError,
    Operator, cursor::Place,
};
use crate::{
    StreamId, Timestamp, Version,
    control::{ParkRow, ParkState},
    ports::PartitionId,
};
use std::{collections::BTreeMap, num::NonZeroU32};

/// The place of a dead letter, or of an event that waits in a parked stream.
///
/// # Example
/// ```
/// use foldstream::{StreamId, Version};
/// use foldstream::operate::{LetterAddress, LetterKey};
/// use foldstream::ports::PartitionId;
///
/// let key = LetterKey::event(StreamId::new("cart", "7")?, Version::new(3));
/// let address = LetterAddress::new("billing", 1, PartitionId::new("orders", 2), key);
/// assert_eq!(address.to_string(), "billing.g1 orders[2] cart#7 version 3");
/// # Ok::<(), foldstream::InvalidStreamId>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct LetterAddress {
    /// The name of the processor.
    pub processor: String,
    /// The generation of the processor.
    pub generation: u32,
    /// The partition of the bus that holds the record.
    pub partition: PartitionId,
    /// The event, or the record if its event cannot be read.
    pub key: LetterKey,
}

impl LetterAddress {
    /// Creates an address from its parts, which lists show.
    #[must_use]
    pub fn new(
        processor: impl Into<String>,
        generation: u32,
        partition: PartitionId,
        key: LetterKey,
    ) -> Self {
        Self {
            processor: processor.into(),
            generation,
            partition,
            key,
        }
    }
}
impl std::fmt::Display for LetterAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}.g{} {} ",
            self.processor, self.generation, self.partition
        )?;
        match &self.key {
            LetterKey::Event { stream, version } => write!(f, "{stream} version {version}"),
            LetterKey::Record(offset) => write!(f, "offset {offset}"),
        }
    }
}

/// A dead letter in a list, without the event itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedLetter {
    /// The place of the letter, with which [`Operator::letter`] shows it whole.
    pub address: LetterAddress,
    /// The failure of the letter.
    pub head: LetterHead,
}

/// A parked stream: its events wait, in order, after one that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedStream {
    /// The name of the processor.
    pub processor: String,
    /// The generation of the processor.
    pub generation: u32,
    /// The partition of the bus that holds the stream.
    pub partition: PartitionId,
    /// The stream whose events wait.
    pub stream: StreamId,
    /// The version that failed, the first that is not done.
    pub from: Version,
    /// The highest version that is known to wait.
    pub high: Version,
    /// The state of the stream.
    pub state: ParkedState,
    /// The fingerprint of the failure.
    pub fingerprint: Fingerprint,
    /// The number of attempts since the event was first handled or last redriven.
    pub attempts: u32,
    /// The time of the failure.
    pub since: Timestamp,
}

/// The state of a parked stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParkedState {
    /// The stream waits for an operator.
    Waiting,
    /// A redrive was asked for, and has not begun.
    Requested {
        /// The name of the operator.
        by: String,
        /// The job that has asked; `None` if the operator did without one.
        job: Option<JobId>,
    },
    /// The owner of the partition handles the events that wait.
    Redriving {
        /// The instance that handles them.
        owner: String,
        /// The name of the operator who has asked.
        by: String,
        /// The job that has asked. `None` without one, and once the selection of the job is done.
        job: Option<JobId>,
    },
}

impl From<ParkState> for ParkedState {
    fn from(state: ParkState) -> Self {
        match state {
            ParkState::Parked => Self::Waiting,
            ParkState::Requested(request) => Self::Requested {
                by: request.by,
                job: request.job,
            },
            ParkState::Redriving { owner, request } => Self::Redriving {
                owner,
                by: request.by,
                job: request.job,
            },
        }
    }
}

impl ParkedStream {
    fn new(place: &Place, stream: StreamId, row: ParkRow) -> Self {
        Self {
            processor: place.processor.clone(),
            generation: place.generation,
            partition: place.partition(),
            stream,
            from: row.from,
            high: row.high,
            state: row.state.into(),
            fingerprint: row.fingerprint,
            attempts: row.attempts,
            since: row.since,
        }
    }
    /// Returns the address of the event that failed, and of its letter.
    pub fn address(&self) -> LetterAddress {
        let key = LetterKey::event(self.stream.clone(), self.from);
        let partition = self.partition.clone();
        LetterAddress::new(&*self.processor, self.generation, partition, key)
    }
}

/// The dead letters that most likely have one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LetterGroup {
    /// The fingerprint that the letters share.
    pub fingerprint: Fingerprint,
    /// The number of letters in the group.
    pub letters: u64,
    /// The time of the first failure of a letter in the group.
    pub first: Timestamp,
    /// The time of the last failure of a letter in the group.
    pub last: Timestamp,
    /// The letter of the group that failed last.
    pub example: ListedLetter,
}

/// Dead letters, grouped by what has most likely caused them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LetterGroups {
    /// The groups, the largest first. There are at most [`MAX`](Self::MAX).
    pub groups: Vec<LetterGroup>,
    /// The number of letters that were found after `MAX` groups, and belong to none of them.
    pub others: u64,
}

impl LetterGroups {
    /// The largest number of groups that are counted one by one: 1,000.
    pub const MAX: usize = 1000;
}

/// The reads of one page of a list, after which it ends even if it is not full.
const READS: usize = 64;

impl Operator {
    /// Returns one page of the parked streams of a processor, of all its generations in use.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn parked(
        &self,
        processor: &str,
        after: Option<&ListCursor>,
        limit: NonZeroU32,
    ) -> Result<ListPage<ParkedStream>, OperateError> {
        let places = self.places(processor).await?;
        let read = async |place: &Place, room: NonZeroU32| {
            let rows = self.rows_of(&place.processor, place.generation);
            let after = place.after.clone();
            let page = rows.park_list(&place.partition(), after, room).await?;
            let found = page.rows.into_iter();
            let found = found.map(|(stream, row)| ParkedStream::new(place, stream, row.value));
            Ok((found.collect(), page.next))
        };
        walk(&places, after, limit, read).await
    }

    /// Returns one page of the dead letters of a processor, of all its generations in use.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn letters(
        &self,
        processor: &str,
        after: Option<&ListCursor>,
        limit: NonZeroU32,
    ) -> Result<ListPage<ListedLetter>, OperateError> {
        let places = self.places(processor).await?;
        self.letters_at(&places, after, limit).await
    }

    /// Returns one page of the dead letters of all processors.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn all_letters(
        &self,
        after: Option<&ListCursor>,
        limit: NonZeroU32,
    ) -> Result<ListPage<ListedLetter>, OperateError> {
        let mut places = Vec::new();
        for name in self.all_names().await? {
            places.extend(self.places(&name).await?);
        }
        self.letters_at(&places, after, limit).await
    }

    /// Groups the dead letters of a processor, or of all processors, by their fingerprints.
    ///
    /// # Errors
    /// - [`OperateError::UnknownProcessor`] if there is no such processor.
    /// - [`OperateError::Control`] if the control store refuses or fails.
    pub async fn letter_groups(
        &self,
        processor: Option<&str>,
    ) -> Result<LetterGroups, OperateError> {
        const PAGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);
        let mut groups = BTreeMap::new();
        let (mut others, mut after) = (0, None);
        loop {
            let page = match processor {
                Some(name) => self.letters(name, after.as_ref(), PAGE).await?,
                None => self.all_letters(after.as_ref(), PAGE).await?,
            };
            for letter in page.items {
                others += u64::from(!count(&mut groups, letter));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.letters));
        Ok(LetterGroups { groups, others })
    }

    /// Returns a dead letter, whole; `None` if there is no letter at this address.
    ///
    /// # Errors
    /// [`OperateError::Control`] if the control store refuses or fails.
    pub async fn letter(
        &self,
        address: &LetterAddress,
    ) -> Result<Option<DeadLetter>, OperateError> {
        let rows = self.rows_of(&address.processor, address.generation);
        let letter = rows.letter_get(&address.partition, &address.key).await?;
        Ok(letter.map(|letter| letter.value))
    }

    async fn letters_at(
        &self,
        places: &[Place],
        after: Option<&ListCursor>,
        limit: NonZeroU32,
    ) -> Result<ListPage<ListedLetter>, OperateError> {
        let read = async |place: &Place, room: NonZeroU32| {
            let rows = self.rows_of(&place.processor, place.generation);
            let after = place.after.clone();
            let page = rows.letter_list(&place.partition(), after, room).await?;
            let found = page.rows.into_iter().map(|(key, head)| ListedLetter {
                address: LetterAddress::new(
                    &*place.processor,
                    place.generation,
                    place.partition(),
                    key,
                ),
                head: head.value,
            });
            Ok((found.collect(), page.next))
        };
        walk(places, after, limit, read).await
    }

    /// Returns the beginnings of all partitions of a processor, in order.
    async fn places(&self, processor: &str) -> Result<Vec<Place>, OperateError> {
        let generations = self.generations(processor).await?;
        let mut places = Vec::new();
        for generation in generations.all() {
            let partitions = self.partitions(processor, generation).await?;
            places.extend(partitions.into_iter().map(|partition| Place {
                processor: processor.into(),
                generation,
                topic: partition.topic.as_ref().into(),
                partition: partition.partition,
                after: None,
            }));
        }
        places.sort();
        Ok(places)
    }
}

/// Counts a letter in its group. Returns false if there is no room for its group.
fn count(groups: &mut BTreeMap<Fingerprint, LetterGroup>, letter: ListedLetter) -> bool {
    let head = &letter.head;
    if let Some(group) = groups.get_mut(&head.fingerprint) {
        group.letters += 1;
        group.first = group.first.min(head.first);
        if head.last > group.last {
            group.last = head.last;
            group.example = letter;
        }
        return true;
    }
    if groups.len() >= LetterGroups::MAX {
        return false;
    }
    let group = LetterGroup {
        fingerprint: head.fingerprint,
        letters: 1,
        first: head.first,
        last: head.last,
        example: letter.clone(),
    };
    groups.insert(head.fingerprint, group);
    true
}

/// Reads the places one after the other, from where the cursor says, until the page is full.
pub(super) async fn walk<T>(
    places: &[Place],
    after: Option<&ListCursor>,
    limit: NonZeroU32,
    read: impl AsyncFn(&Place, NonZeroU32) -> Result<(Vec<T>, Option<String>), OperateError>,
) -> Result<ListPage<T>, OperateError> {
    let mut items = Vec::new();
    // A place sorts before the same one with a sort key.
    let begins = |cursor: &ListCursor| {
        let beginning = Place {
            after: None,
            ..cursor.0.clone()
        };
        places.partition_point(|place| *place < beginning)
    };
    let mut rest = places.iter().skip(after.map_or(0, begins));
    let Some(first) = rest.next() else {
        return Ok(ListPage { items, next: None });
    };
    let mut place = first.clone();
    if let Some(ListCursor(cursor)) = after
        && (&cursor.processor, cursor.generation) == (&place.processor, place.generation)
        && cursor.partition() == place.partition()
    {
        place = cursor.clone();
    }
    for _ in 0..READS {
        let found = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let Some(room) = NonZeroU32::new(limit.get().saturating_sub(found)) else {
            break;
        };
        let (more, next) = read(&place, room).await?;
        items.extend(more);
        if next.is_some() {
            place.after = next;
        } else if let Some(following) = rest.next() {
            place = following.clone();
        } else {
            return Ok(ListPage { items, next: None });
        }
    }
    Ok(ListPage {
        items,
        next: Some(ListCursor(place)),
    })
}
