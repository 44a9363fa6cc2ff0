//! The rows about failed events of one partition, as its owner knows them.
use super::{Rules, record::Record, shared::SharedLane};
use crate::{
    StreamId, Version,
    control::{AskRow, ChangeToken, DiscardRow, LetterKey, ParkRow, Stored},
    ports::Offset,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The rows about failed events of one partition, as this owner knows them.
#[derive(Debug, Default)]
pub(super) struct Parking {
    pub(super) parked: HashMap<StreamId, Parked>,
    pub(super) discards: BTreeMap<(StreamId, Version), Stored<DiscardRow>>,
    /// The dead letters. True for an event that the policy gave up and that its stream went on
    /// without: it was not handled, whatever a position says.
    pub(super) letters: BTreeMap<LetterKey, bool>,
    pub(super) asks: HashMap<LetterKey, Stored<AskRow>>,
    /// The given-up events that were handled once more before their records came again: the process
    /// that gave them up has died before the offset passed them.
    pub(super) redriven: BTreeSet<(StreamId, Version)>,
    /// The lanes that several streams share, of which at least one stream is parked.
    pub(super) shared: BTreeMap<Arc<str>, SharedLane>,
    /// The newest record that has arrived of each stream that is parked or has discards: its
    /// version and its offset. Once the offset is committed, no record of a version up to it comes
    /// again.
    met: BTreeMap<StreamId, (Version, Offset)>,
    /// The change token as it was before the rows were last read.
    pub(super) token: Option<ChangeToken>,
    /// The rows are being read.
    pub(super) is_loading: bool,
    /// A row may be newer than what is known here, whatever the token says.
    pub(super) is_outdated: bool,
    /// The number of loads that had begun when a discard was last read or written by itself.
    discards_after: u64,
    /// Letters that were written or deleted while the rows were being read, with the number of
    /// loads that had begun. `None`: the letter is deleted.
    letters_after: Vec<(LetterKey, Option<bool>, u64)>,
}

/// A parked stream.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) row: Stored<ParkRow>,
    /// Records that have arrived and are not covered by the durable `high`, in order.
    pub(super) deferred: Vec<Arc<Record>>,
    /// The number of loads that had begun when the row was last written here.
    pub(super) written_after: u64,
    /// Another owner has written its name: the row is left alone until it is read again.
    pub(super) is_yielded: bool,
}

impl Parked {
    pub(super) const fn new(row: Stored<ParkRow>, written_after: u64) -> Self {
        Self {
            row,
            deferred: Vec::new(),
            written_after,
            is_yielded: false,
        }
    }
}

impl Parking {
    /// Notes that a record has arrived, if its stream is parked or has discards.
    pub(super) fn meet(&mut self, record: &Record) {
        if self.parked.is_empty() && self.discards.is_empty() {
            return;
        }
        let header = &record.event.header;
        let is_followed = self.parked.contains_key(&header.stream)
            || self.discards_of(&header.stream).next().is_some();
        if is_followed
            && self
                .met_to(&header.stream)
                .is_none_or(|(to, _)| to < header.version)
        {
            let met = (header.version, record.offset);
            self.met.insert(header.stream.clone(), met);
        }
    }

    /// Returns the newest version of a stream that has arrived, and the offset of its record, if
    /// the stream is parked or has discards.
    pub(super) fn met_to(&self, stream: &StreamId) -> Option<(Version, Offset)> {
        self.met.get(stream).copied()
    }

    fn discards_of(
        &self,
        stream: &StreamId,
    ) -> impl Iterator<Item = (Version, &Stored<DiscardRow>)> {
        let key = |version| (stream.clone(), Version::new(version));
        let of = self.discards.range(key(0)..=key(u64::MAX));
        of.map(|((_, version), row)| (*version, row))
    }

    /// Notes a stream that is parked now.
    pub(super) fn note_parked(&mut self, stream: &StreamId, parked: Parked, rules: &Rules) {
        self.parked.insert(stream.clone(), parked);
        if let Some(lane) = rules.shared_lane(stream) {
            let shared = self.shared.entry(lane).or_default();
            shared.streams.insert(stream.clone());
        }
    }

    /// Returns true if a parked stream is to be redriven: somebody has asked for it, or has
    /// discarded the event that failed.
    pub(super) fn wants_redrive(&self, stream: &StreamId, parked: &Parked) -> bool {
        let row = &parked.row.value;
        let key = (stream.clone(), row.from);
        let discard = self.discards.get(&key).filter(|_| !row.is_follower);
        let is_discarded = discard.is_some_and(|discard| discard.value.is_in_force());
        !parked.is_yielded && (row.wants_redrive() || is_discarded)
    }

    /// Returns the versions of a stream that are to be passed over.
    pub(super) fn skip(&self, stream: &StreamId) -> Vec<Version> {
        if self.discards.is_empty() && self.redriven.is_empty() {
            return Vec::new();
        }
        let discarded = self.discards_of(stream);
        let discarded = discarded.filter(|(_, row)| row.value.is_in_force());
        let key = |version| (stream.clone(), Version::new(version));
        let redriven = self.redriven.range(key(0)..=key(u64::MAX));
        discarded
            .map(|(version, _)| version)
            .chain(redriven.map(|(_, version)| *version))
            .collect()
    }

    /// Notes that a letter is there.
    pub(super) fn letter_written(&mut self, key: LetterKey, is_given_up: bool, loads: u64) {
        self.letters.insert(key.clone(), is_given_up);
        self.note_letter(key, Some(is_given_up), loads);
    }

    /// Notes that a letter is deleted.
    pub(super) fn letter_deleted(&mut self, key: &LetterKey, loads: u64) {
        self.letters.remove(key);
        self.note_letter(key.clone(), None, loads);
    }

    fn note_letter(&mut self, key: LetterKey, letter: Option<bool>, loads: u64) {
        // A load that begins later reads the row as it is.
        if self.is_loading {
            self.letters_after.push((key, letter, loads));
        }
    }

    /// Takes the letters of a load. The load may have read a letter before it was deleted here, or
    /// its page before the letter was written: what was done since it began is newer.
    pub(super) fn load_letters(&mut self, letters: Vec<(LetterKey, bool)>, load: u64) {
        self.letters = letters.into_iter().collect();
        for (key, letter, after) in std::mem::take(&mut self.letters_after) {
            if after < load {
                continue;
            }
            match letter {
                Some(is_given_up) => drop(self.letters.insert(key, is_given_up)),
                None => drop(self.letters.remove(&key)),
            }
        }
    }

    /// Takes the discards of a load. What was read or written by itself since the load began is
    /// newer, and stays.
    pub(super) fn load_discards(
        &mut self,
        rows: Vec<((StreamId, Version), Stored<DiscardRow>)>,
        load: u64,
    ) {
        if self.discards_after < load {
            self.discards = rows.into_iter().collect();
            let discarded: BTreeSet<_> = self.discards.keys().map(|(of, _)| of.clone()).collect();
            let is_followed =
                |of: &StreamId| self.parked.contains_key(of) || discarded.contains(of);
            self.met.retain(|of, _| is_followed(of));
            return;
        }
        for (key, row) in rows {
            self.discards.entry(key).or_insert(row);
        }
        self.is_outdated = true;
    }

    /// Takes the discards of a stream from a version on, as they are now.
    pub(super) fn read_discards(
        &mut self,
        stream: &StreamId,
        from: Version,
        rows: &[(Version, Stored<DiscardRow>)],
        loads: u64,
    ) {
        self.discards
            .retain(|(of, version), _| of != stream || *version < from);
        for (version, row) in rows {
            self.discards
                .insert((stream.clone(), *version), row.clone());
        }
        self.discards_after = loads;
    }

    /// Notes a discard as it is now.
    pub(super) fn note_discard(
        &mut self,
        key: (StreamId, Version),
        row: Stored<DiscardRow>,
        loads: u64,
    ) {
        self.discards.insert(key, row);
        self.discards_after = loads;
    }

    /// Returns the versions of a stream that have a letter.
    pub(super) fn lettered(&self, stream: &StreamId) -> Vec<Version> {
        let letters = self.letters_of(stream, Version::new(u64::MAX));
        let versions = letters.filter_map(|(key, _)| match key {
            LetterKey::Event { version, .. } => Some(*version),
            _ => None,
        });
        versions.collect()
    }

    /// Returns the letters of the events of a stream below `below`, of which those from `from` on
    /// were handled. Lower ones were handled, too, unless they were given up.
    pub(super) fn letters_of_handled(
        &self,
        stream: &StreamId,
        from: Version,
        below: Version,
    ) -> Vec<LetterKey> {
        let first = LetterKey::event(stream.clone(), from);
        let letters = self.letters_of(stream, below);
        let of_handled = letters.filter(|(key, is_given_up)| !**is_given_up || **key >= first);
        of_handled.map(|(key, _)| key.clone()).collect()
    }

    /// The letters of a stream below a version, in order. There may be thousands of other streams.
    fn letters_of(
        &self,
        stream: &StreamId,
        below: Version,
    ) -> impl Iterator<Item = (&LetterKey, &bool)> {
        let first = LetterKey::event(stream.clone(), Version::NONE);
        self.letters
            .range(first..LetterKey::event(stream.clone(), below))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::stream;
    use super::*;

    fn letter(version: u64) -> LetterKey {
        LetterKey::event(stream("a"), Version::new(version))
    }

    #[test]
    fn a_letter_that_is_deleted_while_the_rows_are_read_does_not_come_back() {
        let mut parking = Parking::default();
        parking.letter_written(letter(1), false, 0);
        parking.letter_written(letter(2), false, 0);
        // The load has begun, and has read both.
        parking.is_loading = true;
        parking.letter_deleted(&letter(1), 1);
        parking.letter_written(letter(3), true, 1);
        parking.load_letters(vec![(letter(1), false), (letter(2), false)], 1);
        let left = BTreeMap::from([(letter(2), false), (letter(3), true)]);
        assert_eq!(parking.letters, left);
        // The next load finds what is there.
        parking.load_letters(vec![(letter(2), false)], 2);
        assert_eq!(parking.letters, BTreeMap::from([(letter(2), false)]));
    }
}
