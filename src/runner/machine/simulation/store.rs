//! A model of what survives a crash: effects, and the positions of streams.
use super::broker::Logged;
use crate::{
    StreamId, Version,
    runner::{DeliveryLevel, machine::StreamPosition, streams::Progress},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) durable: BTreeSet<(StreamId, u64)>,
    positions: BTreeMap<StreamId, StreamPosition>,
    /// The newest version of each stream that ever had an effect.
    newest: BTreeMap<StreamId, u64>,
}

impl Store {
    pub(super) fn look_up(&self, stream: &StreamId, level: DeliveryLevel) -> Progress {
        match self.positions.get(stream) {
            Some(position) if level == DeliveryLevel::Deduplicated => {
                Progress::at(position.version, position.commit_id)
            }
            _ => Progress::NoBase,
        }
    }

    pub(super) fn took_effect(&mut self, stream: &StreamId, version: u64) {
        let newest = self.newest.entry(stream.clone()).or_default();
        assert!(version <= *newest + 1, "{stream}: {version} after {newest}");
        *newest = (*newest).max(version);
    }

    /// An event is given up, by a letter.
    pub(super) fn given_up(&mut self, stream: &StreamId, version: u64) {
        self.took_effect(stream, version);
        self.durable.insert((stream.clone(), version));
    }

    /// Stores positions, of effects that must be durable.
    pub(super) fn store_positions(&mut self, positions: &[StreamPosition]) {
        for position in positions {
            let version = position.version.get();
            assert!(
                self.durable.contains(&(position.stream.clone(), version)),
                "the position of {} is {version}, whose effect is not durable",
                position.stream
            );
            let stored = self.positions.entry(position.stream.clone());
            let stored = stored.or_insert_with(|| position.clone());
            if stored.version < position.version {
                *stored = position.clone();
            }
        }
    }

    /// Checks records whose offsets were committed.
    pub(super) fn check_passed(&self, passed: &[Logged], level: DeliveryLevel) {
        for logged in passed {
            let (stream, version) = (&logged.stream, logged.version);
            if !logged.is_readable {
                assert!(logged.is_given_up, "past a record that cannot be read");
                continue;
            }
            assert!(
                self.durable.contains(&(stream.clone(), version)),
                "the offset of {stream} {version} is committed, and it has no durable effect"
            );
            let position = self.positions.get(stream);
            let position = position.map_or(Version::NONE, |position| position.version);
            assert!(
                level != DeliveryLevel::Deduplicated || position.get() >= version,
                "the offset of {stream} {version} is committed, and its position is {position}"
            );
        }
    }
}
