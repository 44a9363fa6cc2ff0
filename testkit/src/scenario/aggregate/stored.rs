//! The store's view of the events: encoded, checked, read back and folded.
use super::{Past, Scenario, with_history};
use crate::scenario::diff::short;
use bytes::Bytes;
use foldstream::{
    Aggregate, BoxError, CommitId, Context, Decoded, DomainEvent, EventName, EventSet, Metadata,
    StreamHead, StreamId, Timestamp, Upcasters, Version,
    adapter::{encode_events, observed_head},
    chain,
    ports::{Append, EventData, EventStoreError},
};
use std::sync::Arc;

/// Events as a store takes them, and as a later load reads them.
struct Encoded<E> {
    stored: Arc<[EventData]>,
    read: Vec<E>,
}

impl<A: Aggregate> Scenario<A> {
    /// Folds the given events that are not folded yet, as a load does. Typed events go through the
    /// codec first.
    #[track_caller]
    pub(super) fn fold_given(&mut self, stream: &StreamId) {
        let given = &self.history[self.folded..];
        let written = given.iter().filter_map(|past| match past {
            Past::Event(event) => Some(event.clone()),
            Past::Read(_) | Past::Retired(_) => None,
        });
        let written: Vec<_> = written.collect();
        let written = match self.stored_one_by_one(stream, &written) {
            Ok(read) => read,
            Err(error) => panic!(
                "a given event cannot be stored, so no stream can hold it: {}\n{}",
                chain(&*error),
                self.history_shown(self.history.len())
            ),
        };
        let mut written = written.into_iter();
        let given = given.iter().filter_map(|past| match past {
            Past::Event(_) => written.next(),
            Past::Read(event) => Some(event.clone()),
            Past::Retired(_) => None,
        });
        let given: Vec<_> = given.collect();
        self.fold(&given);
    }

    /// Stores the events of a command, and folds them.
    #[track_caller]
    pub(super) fn take_in(&mut self, context: &Context, events: &[A::Event]) {
        if events.is_empty() {
            return;
        }
        let stored = self.stored_together(context, events);
        let stored = stored.unwrap_or_else(|error| {
            panic!(
                "the events of the command cannot be stored: {}\n{}events: {}\n",
                chain(&*error),
                self.history_shown(self.history.len()),
                short(&events)
            )
        });
        self.history.extend(stored.iter().cloned().map(Past::Event));
        self.recorded_at = Some(context.now());
        self.fold(&stored);
    }

    /// Folds events into the state, which is then the state of the whole history.
    #[track_caller]
    fn fold(&mut self, events: &[A::Event]) {
        let mut state = self.state.clone();
        with_history(
            || {
                for event in events {
                    state.evolve(event);
                }
            },
            || self.history_shown(self.history.len()),
        );
        if let Some(through_snapshot) = self.through_snapshot {
            state = through_snapshot(&state).unwrap_or_else(|error| {
                panic!(
                    "the state cannot be stored as a snapshot: {}\n{}",
                    chain(&error),
                    self.history_shown(self.history.len())
                )
            });
        }
        self.state = state;
        self.folded = self.history.len();
    }

    /// Returns the events of one commit as a later load reads them.
    fn stored_together(
        &self,
        context: &Context,
        events: &[A::Event],
    ) -> Result<Vec<A::Event>, BoxError> {
        let Encoded { stored, read } = self.encode(events)?;
        let (version, now) = (context.version(), context.now());
        self.check_limits(context.stream(), version, now, context.metadata(), stored)?;
        Ok(read)
    }

    /// Returns events as a later load reads them. Their commits are unknown, so each event is
    /// checked as if it were a commit of its own.
    fn stored_one_by_one(
        &self,
        stream: &StreamId,
        events: &[A::Event],
    ) -> Result<Vec<A::Event>, BoxError> {
        let Encoded { stored, read } = self.encode(events)?;
        for event in &*stored {
            let alone = Arc::new([event.clone()]);
            self.check_limits(stream, self.base, self.now, &Metadata::new(), alone)?;
        }
        Ok(read)
    }

    /// Encodes events with the checks of a repository, and decodes them as a load does.
    fn encode(&self, events: &[A::Event]) -> Result<Encoded<A::Event>, BoxError> {
        let stored = encode_events(events, &self.upcasters)?;
        let upcasters = foldstream::adapter::upcasters_of::<A::Event>(&self.upcasters)?;
        let mut read = Vec::with_capacity(events.len());
        for data in &*stored {
            let past = lift(&upcasters, &data.name, data.schema_version, &data.payload)?;
            // The check above has refused an event that an upcaster retires.
            if let Past::Read(event) = past {
                read.push(event);
            }
        }
        Ok(Encoded { stored, read })
    }

    /// Checks a commit after `version` as a store does before it appends.
    fn check_limits(
        &self,
        stream: &StreamId,
        version: Version,
        now: Timestamp,
        metadata: &Metadata,
        events: Arc<[EventData]>,
    ) -> Result<(), EventStoreError> {
        const SOME_COMMIT: CommitId = CommitId::from_u128(1);
        let head = match version {
            Version::NONE => StreamHead::empty(stream.clone()),
            version => observed_head(stream.clone(), version, SOME_COMMIT, now),
        };
        let append = Append::after(head, SOME_COMMIT, now, events).with_metadata(metadata.clone());
        self.store.validate(&append)
    }

    /// Reads a stored event as a load does.
    pub(super) fn read(
        &self,
        name: &EventName,
        schema_version: u16,
        payload: &Bytes,
    ) -> Result<Past<A::Event>, BoxError> {
        let upcasters = foldstream::adapter::upcasters_of::<A::Event>(&self.upcasters)?;
        lift(&upcasters, name, schema_version, payload)
    }
}

/// Lifts and decodes one stored event.
fn lift<E: DomainEvent>(
    upcasters: &Upcasters,
    name: &EventName,
    schema_version: u16,
    payload: &Bytes,
) -> Result<Past<E>, BoxError> {
    let lifted = upcasters.apply(E::AGGREGATE, name, schema_version, payload)?;
    let Some(lifted) = lifted else {
        return Ok(Past::Retired(name.clone()));
    };
    let (name, version) = (&lifted.name, lifted.schema_version);
    match E::decode_from(E::AGGREGATE, name, version, &lifted.payload)? {
        Decoded::Event(event) => Ok(Past::Read(event)),
        Decoded::NotMine | Decoded::Unknown => {
            let known: Vec<_> = E::TYPES.iter().map(|known| known.name()).collect();
            Err(format!("this build knows no event {name}, only {known:?}").into())
        }
    }
}
