//! [`Selector`]: the items of a redrive, page by page.
use super::{OperateError, Selection};
use crate::{
    StreamId, Version,
    control::{Item, ItemState, ItemTarget, LetterHead, LetterKey, ParkRow, ProcessorRows, Stored},
    ports::PartitionId,
};
use std::num::NonZeroU32;

/// The rows that are read at once.
const PAGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

/// Lists what a selection selects. In each partition the parked streams come first, and then the
/// letters of streams that are not parked.
pub(super) struct Selector {
    rows: ProcessorRows,
    partitions: std::vec::IntoIter<PartitionId>,
    selection: Selection,
    place: Option<(PartitionId, Phase)>,
}

enum Phase {
    Streams(Option<String>),
    Letters(Option<String>),
}

type Letters = Vec<(LetterKey, Stored<LetterHead>)>;

impl Selector {
    pub(super) fn new(
        rows: ProcessorRows,
        partitions: Vec<PartitionId>,
        selection: Selection,
    ) -> Self {
        Self {
            rows,
            partitions: partitions.into_iter(),
            selection,
            place: None,
        }
    }
    pub(super) fn generation(&self) -> u32 {
        self.rows.generation()
    }

    /// Returns the next items, possibly none; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Item>>, OperateError> {
        let (at, phase) = match self.place.take() {
            Some(place) => place,
            None => match self.partitions.next() {
                Some(at) => (at, Phase::Streams(None)),
                None => return Ok(None),
            },
        };
        let (items, phase) = match phase {
            Phase::Streams(after) => {
                let (found, next) = self.parked(&at, after).await?;
                let mut items = Vec::new();
                for (stream, row) in found {
                    items.extend(self.stream_item(&at, stream, &row.value).await?);
                }
                let is_last = next.is_none();
                let phase = if is_last {
                    Phase::Letters(None)
                } else {
                    Phase::Streams(next)
                };
                (items, Some(phase))
            }
            Phase::Letters(after) => {
                let (found, next) = self.letters(&at, after).await?;
                let items = self.letter_items(&at, found).await?;
                (items, next.map(|next| Phase::Letters(Some(next))))
            }
        };
        self.place = phase.map(|phase| (at, phase));
        Ok(Some(items))
    }

    async fn parked(
        &self,
        at: &PartitionId,
        after: Option<String>,
    ) -> Result<(Vec<(StreamId, Stored<ParkRow>)>, Option<String>), OperateError> {
        let stream = match &self.selection {
            Selection::All | Selection::Group(_) => {
                let page = self.rows.park_list(at, after, PAGE).await?;
                return Ok((page.rows, page.next));
            }
            Selection::Stream(stream) => Some(stream),
            Selection::Letter(key) => key.stream(),
        };
        let Some(stream) = stream else {
            return Ok((Vec::new(), None));
        };
        let row = self.rows.park_get(at, stream).await?;
        let found = row.map(|row| (stream.clone(), row));
        Ok((found.into_iter().collect(), None))
    }

    /// Returns the item of a parked stream, if it is selected and no redrive of it is under way.
    async fn stream_item(
        &self,
        at: &PartitionId,
        stream: StreamId,
        row: &ParkRow,
    ) -> Result<Option<Item>, OperateError> {
        let high = match &self.selection {
            Selection::All | Selection::Stream(_) => row.high,
            Selection::Group(fingerprint) if *fingerprint == row.fingerprint => row.high,
            // Only the event that has failed can be redriven alone: the others wait for it.
            Selection::Letter(LetterKey::Event { version, .. }) if *version == row.from => *version,
            Selection::Group(_) | Selection::Letter(_) => return Ok(None),
        };
        if row.wants_redrive() || row.from > high {
            return Ok(None);
        }
        let discarded = self.discarded(at, &stream, (row.from, high)).await?;
        let waiting = high.get().saturating_sub(row.from.get()).saturating_add(1);
        let target = ItemTarget::Stream {
            stream,
            id: row.id,
            from: row.from,
            high,
        };
        Ok(item(at, target, waiting.saturating_sub(discarded)))
    }

    /// Returns the number of versions in a range that are discarded.
    async fn discarded(
        &self,
        at: &PartitionId,
        stream: &StreamId,
        range: (Version, Version),
    ) -> Result<u64, OperateError> {
        let (mut discarded, mut after) = (0, None);
        loop {
            let page = self.rows.discards_of(at, stream, range, after).await?;
            let in_force = page.rows.iter().filter(|(_, row)| row.value.is_in_force());
            discarded += in_force.count() as u64;
            after = page.next;
            if after.is_none() {
                return Ok(discarded);
            }
        }
    }

    async fn letters(
        &self,
        at: &PartitionId,
        after: Option<String>,
    ) -> Result<(Letters, Option<String>), OperateError> {
        let page = match &self.selection {
            Selection::All | Selection::Group(_) => self.rows.letter_list(at, after, PAGE).await?,
            Selection::Stream(stream) => self.rows.letters_of(at, stream, after).await?,
            Selection::Letter(key) => {
                let head = self.rows.letter_head(at, key).await?;
                let found = head.map(|head| (key.clone(), head));
                return Ok((found.into_iter().collect(), None));
            }
        };
        let mut found = page.rows;
        if let Selection::Group(fingerprint) = &self.selection {
            found.retain(|(_, head)| head.value.fingerprint == *fingerprint);
        }
        Ok((found, page.next))
    }

    /// Returns the items of letters of streams that are not parked, without those discarded.
    async fn letter_items(
        &self,
        at: &PartitionId,
        mut letters: Letters,
    ) -> Result<Vec<Item>, OperateError> {
        let streams = letters.iter().filter_map(|(key, _)| key.stream());
        let mut parked = self.rows.park_get_many(at, streams).await?.into_iter();
        letters.retain(|(key, head)| match key {
            LetterKey::Record(_) => true,
            LetterKey::Event { version, .. } => match parked.next() {
                Some(Some(row)) => is_passed_letter(&row.value, &head.value, *version),
                row => row.is_some(),
            },
        });
        let event = |key| match key {
            LetterKey::Event { stream, version } => Some((stream, version)),
            LetterKey::Record(_) => None,
        };
        let events: Vec<_> = letters
            .iter()
            .filter_map(|(key, _)| event(key.clone()))
            .collect();
        let events = events.iter().map(|(stream, version)| (stream, *version));
        let mut discards = self.rows.discard_get_many(at, events).await?.into_iter();
        let items = letters.into_iter().filter_map(|(key, head)| {
            if key.stream().is_some() {
                let discard = discards.next().flatten();
                if discard.is_some_and(|row| row.value.is_in_force()) {
                    return None;
                }
            }
            let id = head.value.id;
            item(at, ItemTarget::Letter { key, id }, 1)
        });
        Ok(items.collect())
    }
}

/// Returns true if the letter of a parked stream is about an event that the stream went on without
/// before it was parked: no redrive of the stream handles the event.
pub(super) fn is_passed_letter(row: &ParkRow, letter: &LetterHead, version: Version) -> bool {
    letter.is_given_up && row.is_duplicate(version)
}

fn item(at: &PartitionId, target: ItemTarget, events: u64) -> Option<Item> {
    (events > 0).then(|| Item {
        partition: at.clone(),
        target,
        events,
        state: ItemState::Waiting,
        seen: None,
        handled: 0,
    })
}
