//! The way from an event, as an operator names it, to the address of its row.
use super::CommandError;
use foldstream::{
    StreamId, Version,
    operate::{LetterAddress, LetterKey, ListCursor, Operator, ParkedStream},
    ports::{Offset, PartitionId},
};
use std::{fmt, num::NonZeroU32, str::FromStr};

/// The number of rows that are read at once.
pub(super) const PAGE: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

/// An event or a record, as an operator names it: `cart#c0001@3`, or `GlobalEvents[2]@17` where the
/// event of a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An event: its stream and version.
    Event(StreamId, Version),
    /// A record: its partition and offset.
    Record(PartitionId, Offset),
}

/// The error of a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The text names neither an event nor a record.
    #[error("{0:?} is neither an event as in cart#c0001@3 nor a record as in GlobalEvents[2]@17")]
    Text(String),
    /// Nothing is set aside under this name.
    #[error(
        "{processor} has set aside nothing at {target}: `shop letters list {processor}` and `shop parked {processor}` show what there is"
    )]
    NotFound {
        /// The name of the processor.
        processor: String,
        /// The event or record.
        target: Target,
    },
    /// An operation needs a stream and a version.
    #[error("{0} is a record; name the event, as in cart#c0001@3")]
    NoEvent(Target),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let read = || {
            let (at, number) = text.rsplit_once('@')?;
            let number = number.parse().ok()?;
            if let Ok(stream) = StreamId::parse(at) {
                return (number > 0).then(|| Self::Event(stream, Version::new(number)));
            }
            let (topic, partition) = at.strip_suffix(']')?.rsplit_once('[')?;
            let partition = PartitionId::new(topic, partition.parse().ok()?);
            Some(Self::Record(partition, Offset::new(number)))
        };
        read().ok_or_else(|| TargetError::Text(text.into()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(stream, version) => write!(f, "{stream}@{version}"),
            Self::Record(partition, offset) => write!(f, "{partition}@{offset}"),
        }
    }
}

impl Target {
    /// Returns the target at the address of a letter; `None` for a kind of letter that this build
    /// does not know.
    fn of(address: &LetterAddress) -> Option<Self> {
        Some(match &address.key {
            LetterKey::Event { stream, version } => Self::Event(stream.clone(), *version),
            LetterKey::Record(offset) => Self::Record(address.partition.clone(), *offset),
            _ => return None,
        })
    }

    /// Returns the address of a letter as an operator would name it.
    pub(super) fn text(address: &LetterAddress) -> String {
        Self::of(address).map_or_else(|| address.to_string(), |target| target.to_string())
    }

    fn is_at(&self, address: &LetterAddress) -> bool {
        Self::of(address).as_ref() == Some(self)
    }

    /// Finds the row of this target among the dead letters and parked streams of a processor.
    ///
    /// # Errors
    /// - [`TargetError::NotFound`] if there is no such row.
    /// - The error of the operator.
    pub(super) async fn find(
        &self,
        operator: &Operator,
        processor: &str,
    ) -> Result<LetterAddress, CommandError> {
        let mut after: Option<ListCursor> = None;
        loop {
            let page = operator.letters(processor, after.as_ref(), PAGE).await?;
            let mut found = page.items.into_iter().map(|letter| letter.address);
            if let Some(address) = found.find(|address| self.is_at(address)) {
                return Ok(address);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // An event that waits after the one that failed has no letter of its own.
        while let Self::Event(stream, version) = self {
            let page = operator.parked(processor, after.as_ref(), PAGE).await?;
            let covers = |parked: &ParkedStream| {
                parked.stream == *stream && (parked.from..=parked.high).contains(version)
            };
            if let Some(parked) = page.items.into_iter().find(covers) {
                let key = LetterKey::event(stream.clone(), *version);
                let (generation, at) = (parked.generation, parked.partition);
                return Ok(LetterAddress::new(processor, generation, at, key));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Err(TargetError::NotFound {
            processor: processor.into(),
            target: self.clone(),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_written_as_it_is_shown() {
        for text in ["cart#c0001@3", "cart#a@b@1", "GlobalEvents[2]@17", "t[0]@0"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_text_that_names_nothing_is_refused() {
        for text in [
            "",
            "cart#c0001",
            "cart#c0001@",
            "cart#c0001@0",
            "c@3",
            "t[x]@1",
            "t[1]@-1",
        ] {
            assert_eq!(
                text.parse::<Target>(),
                Err(TargetError::Text(text.into())),
                "{text}"
            );
        }
    }
}
