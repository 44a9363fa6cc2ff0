//! Proves before an append that the stored payload can be decoded to the same value.
//!
//! serde writes values that it cannot read again: NaN becomes `null`, a field that
//! `skip_serializing_if` left out is missing, and `Some(None)` becomes `None`. Once such an event
//! is stored, every load of its stream fails or folds another value. Therefore each new event first
//! passes through every step of a reader: upcasters, decoding and a comparison.
use super::{CodecError, Upcasters, decode, decode_json, encode_json};
use crate::{BoxError, DomainEvent, Snapshot, ports::EventData};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// The repository's setting: whether payloads are decoded again before they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReadBack {
    #[default]
    Checked,
    Unchecked,
}

/// The source of [`CodecError::Encode`] if a value would not survive being stored.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be stored")]
struct NotStorable {
    /// The event's name and index, or the state's type. Never the value.
    what: String,
    #[source]
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("it cannot be encoded")]
    NotEncoded(#[source] BoxError),
    #[error("encoding it panicked")]
    EncodePanicked,
    #[error("what was encoded cannot be decoded, so no reader could ever read it")]
    NotDecoded(#[source] CodecError),
    #[error("decoding what was encoded panicked")]
    DecodePanicked,
    #[error("an upcaster retires it as soon as it is read")]
    Retired,
    #[error(
        "it is decoded as a different value: look for a skipped field, an `Option` in an `Option`, NaN in an `Option`, and an `f32` in a tagged enum, which is rounded twice"
    )]
    Different,
    #[error("its payload codecs open it as different bytes")]
    OpenedDifferent,
    #[error("its payload codecs cannot open what they have sealed")]
    NotOpened(#[source] CodecError),
    #[error("its payload codecs take it for shredded as soon as it is read")]
    Shredded,
    #[error("a payload codec panicked")]
    SealPanicked,
}

/// Calls code of the user. A panic in it becomes the error `panicked`; the panic hook has reported
/// its place.
fn guarded<T>(panicked: Reason, run: impl FnOnce() -> Result<T, Reason>) -> Result<T, Reason> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(panicked))
}

/// Encodes new events, and decodes each of them again as `check` says.
///
/// # Errors
/// [`CodecError::Encode`] if an event cannot be stored. It names the first such event and the
/// reason.
pub(crate) fn encode_events<E: DomainEvent>(
    events: &[E],
    upcasters: &Upcasters,
    check: ReadBack,
) -> Result<Arc<[EventData]>, CodecError> {
    let encoded = events.iter().enumerate().map(|(index, event)| {
        encode_event(event, upcasters, check).map_err(|reason| {
            let place = format!("{} of {}", index + 1, events.len());
            not_storable(
                format!("event {}.{} ({place})", E::AGGREGATE, name_of(event)),
                reason,
            )
        })
    });
    encoded.collect()
}

/// Returns the event's name for an error. The index may be the very reason of the error: it is not
/// in `TYPES`, or computing it panics.
fn name_of<E: DomainEvent>(event: &E) -> &'static str {
    let index = catch_unwind(AssertUnwindSafe(|| event.type_index()));
    let kind = index.ok().and_then(|index| E::TYPES.get(index));
    kind.map_or("?", |kind| kind.name())
}

fn encode_event<E: DomainEvent>(
    event: &E,
    upcasters: &Upcasters,
    check: ReadBack,
) -> Result<EventData, Reason> {
    let data = guarded(Reason::EncodePanicked, || {
        let mut payload = Vec::with_capacity(128);
        event.encode(&mut payload).map_err(not_encoded)?;
        let kind = event.event_type();
        Ok(EventData::new(kind.name(), kind.schema_version(), payload))
    })?;
    if check == ReadBack::Checked {
        guarded(Reason::DecodePanicked, || {
            let (name, version) = (&data.name, data.schema_version);
            match decode::<E>(upcasters, E::AGGREGATE, name, version, &data.payload) {
                Ok(Some(decoded)) if event.equals_decoded(&decoded) => Ok(()),
                Ok(Some(_)) => Err(Reason::Different),
                Ok(None) => Err(Reason::Retired),
                Err(error) => Err(Reason::NotDecoded(error)),
            }
        })?;
    }
    Ok(data)
}

/// Encodes a state for a snapshot, and decodes it again as `check` says.
///
/// # Errors
/// As [`encode_events`].
pub(crate) fn encode_state<A: Snapshot>(state: &A, check: ReadBack) -> Result<Vec<u8>, CodecError> {
    let encoded = guarded(Reason::EncodePanicked, || {
        let mut payload = Vec::new();
        encode_json(state, &mut payload).map_err(not_encoded)?;
        Ok(payload)
    });
    let checked = encoded.and_then(|payload| {
        if check == ReadBack::Checked {
            guarded(Reason::DecodePanicked, || {
                match decode_json::<A>(&payload) {
                    Ok(decoded) if state.equals_decoded(&decoded) => Ok(()),
                    Ok(_) => Err(Reason::Different),
                    Err(error) => Err(Reason::NotDecoded(error)),
                }
            })?;
        }
        Ok(payload)
    });
    checked.map_err(|reason| not_storable(format!("the state of {}", A::Event::AGGREGATE), reason))
}

/// Decodes the state of a snapshot. A panic in its `Deserialize` is an error too, since a snapshot
/// may have been written by an older build.
pub(crate) fn decode_state<A: Snapshot>(payload: &[u8]) -> Result<A, CodecError> {
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_json(payload)));
    decoded.unwrap_or_else(|_| {
        let source = "decoding the state panicked".into();
        Err(CodecError::Decode { source })
    })
}

fn not_encoded(error: CodecError) -> Reason {
    Reason::NotEncoded(match error {
        CodecError::Encode { source } => source,
        other => other.into(),
    })
}

fn not_storable(what: String, reason: Reason) -> CodecError {
    let source = NotStorable { what, reason }.into();
    CodecError::Encode { source }
}

/// Returns the error for a payload that its codecs cannot open as it was.
pub(crate) fn not_opened(what: impl Into<String>, opened: SealedBut) -> CodecError {
    let reason = match opened {
        SealedBut::Different => Reason::OpenedDifferent,
        SealedBut::Shredded => Reason::Shredded,
        SealedBut::Failed(error) => Reason::NotOpened(error),
        SealedBut::Panicked => Reason::SealPanicked,
    };
    not_storable(what.into(), reason)
}

/// The way in which opening a payload fails that was just sealed.
#[derive(Debug)]
pub(crate) enum SealedBut {
    Different,
    Shredded,
    Failed(CodecError),
    Panicked,
}
