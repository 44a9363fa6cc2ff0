//! Folding commits into a state.
use super::{FoldError, LoadError, Loaded, StepEffect};
use crate::{
    Aggregate, CodecError, DomainEvent, PayloadCodecs, Recorded, StreamHead, StreamId, Timestamp,
    Upcasters, Version, codec,
    ports::{Commit, EventData},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// The last known snapshot of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LastSnapshot {
    /// The version of the snapshot; 0 without one.
    pub(super) version: Version,
    /// The time of the event at that version; without a snapshot, of the first event.
    pub(super) recorded_at: Option<Timestamp>,
}

/// A state and the head at which it stands.
pub(super) struct Fold<A> {
    state: A,
    head: StreamHead,
    snapshot: LastSnapshot,
}

impl<A: Aggregate> Fold<A> {
    /// Creates the default state before the first event of a stream.
    pub(super) fn start(head: StreamHead) -> Self {
        Self::resume(A::default(), head, LastSnapshot::default())
    }

    /// Creates a fold from a snapshot that was checked to fit the history at `head`.
    pub(super) fn from_snapshot(state: A, head: StreamHead) -> Self {
        let snapshot = LastSnapshot {
            version: head.version(),
            recorded_at: Some(head.recorded_at()),
        };
        Self::resume(state, head, snapshot)
    }

    pub(super) const fn resume(state: A, head: StreamHead, snapshot: LastSnapshot) -> Self {
        Self {
            state,
            head,
            snapshot,
        }
    }

    pub(super) const fn head(&self) -> &StreamHead {
        &self.head
    }

    /// Returns the state as it is folded so far.
    pub(super) const fn state(&self) -> &A {
        &self.state
    }

    /// Folds the next commit. A retired event keeps its version, so the head moves by the length of
    /// the commit.
    pub(super) fn take(&mut self, commit: &Commit, upcasters: &Upcasters) -> Result<(), LoadError> {
        self.expect(commit)?;
        for (version, data) in versions(commit) {
            self.take_event(version, data, upcasters)?;
        }
        self.pass(commit);
        Ok(())
    }

    /// Checks that a commit is the next one.
    pub(super) fn expect(&self, commit: &Commit) -> Result<(), LoadError> {
        let expected = self.head.version().next();
        if commit.first_version != expected {
            return Err(LoadError::NotContiguous {
                stream: commit.stream.clone(),
                expected,
                found: commit.first_version,
            });
        }
        Ok(())
    }

    /// Folds one event of the next commit, without moving the head.
    pub(super) fn take_event(
        &mut self,
        version: Version,
        data: &EventData,
        upcasters: &Upcasters,
    ) -> Result<StepEffect, LoadError> {
        let stream = self.head.stream();
        let Some(event) = decode_at(stream, version, data, upcasters)? else {
            return Ok(if is_shredded(data) {
                StepEffect::Shredded
            } else {
                StepEffect::Retired
            });
        };
        self.evolve(version, &event)?;
        Ok(StepEffect::Folded)
    }

    /// Moves the head to the end of the next commit.
    pub(super) fn pass(&mut self, commit: &Commit) {
        let last = commit.last_version();
        self.head.advance(last, commit.id, commit.recorded_at);
        self.has_begun(commit.recorded_at);
    }

    /// Folds events that are not stored yet. The head stays where it is.
    pub(super) fn take_new(&mut self, events: &[A::Event]) -> Result<(), FoldError> {
        let first = self.head.version().next().get();
        for (version, event) in (first..).zip(events) {
            self.evolve(Version::new(version), event)?;
        }
        Ok(())
    }

    /// Moves the head: the events that were folded last were stored, and end there.
    pub(super) fn move_to(&mut self, head: StreamHead) {
        self.has_begun(head.recorded_at());
        self.head = head;
    }

    /// Folds one event into the state. After an error the state is of no use.
    fn evolve(&mut self, version: Version, event: &A::Event) -> Result<(), FoldError> {
        let state = &mut self.state;
        // The panic hook has reported the place of the panic.
        catch_unwind(AssertUnwindSafe(|| state.evolve(event))).map_err(|_| FoldError {
            stream: self.head.stream().clone(),
            version,
            name: event.event_type().name(),
        })
    }

    /// Notes the time of the first event: without a snapshot it is the oldest event that no
    /// snapshot covers.
    fn has_begun(&mut self, recorded_at: Timestamp) {
        self.snapshot.recorded_at.get_or_insert(recorded_at);
    }

    pub(super) fn finish(self) -> Loaded<A> {
        Loaded {
            state: Arc::new(self.state),
            head: self.head,
            snapshot: self.snapshot,
        }
    }
}

fn versions(commit: &Commit) -> impl Iterator<Item = (Version, &EventData)> {
    (commit.first_version.get()..)
        .map(Version::new)
        .zip(commit.events.iter())
}

fn decode_at<E: DomainEvent>(
    stream: &StreamId,
    version: Version,
    data: &EventData,
    upcasters: &Upcasters,
) -> Result<Option<E>, LoadError> {
    decode(data, upcasters).map_err(|source| LoadError::Codec {
        stream: stream.clone(),
        version,
        source,
    })
}

/// Returns true if the key of an event's payload was deleted.
fn is_shredded(data: &EventData) -> bool {
    data.codec.as_deref() == Some(PayloadCodecs::SHREDDED)
}

/// Decodes one stored event of `E`'s aggregate type, which was opened before; `None` if it is
/// retired or shredded.
pub(super) fn decode<E: DomainEvent>(
    data: &EventData,
    upcasters: &Upcasters,
) -> Result<Option<E>, CodecError> {
    if is_shredded(data) {
        return Ok(None);
    }
    codec::decode(
        upcasters,
        E::AGGREGATE,
        &data.name,
        data.schema_version,
        &data.payload,
    )
}

/// Returns the decoded events of a commit with their headers. Retired events are left out.
pub(super) fn decode_recorded<E: DomainEvent>(
    commit: &Commit,
    upcasters: &Upcasters,
) -> Vec<Result<Recorded<E>, LoadError>> {
    let events = commit.recorded().zip(commit.events.iter());
    let decoded = events.map(|(recorded, data)| {
        let event = decode_at(&commit.stream, recorded.header.version, data, upcasters)?;
        Ok(event.map(|event| Recorded::new(recorded.header, event)))
    });
    decoded.filter_map(Result::transpose).collect()
}
