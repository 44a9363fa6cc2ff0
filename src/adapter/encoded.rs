//! The checks of a repository before an append, without the repository.
use crate::{
    AppendError, CodecError, DomainEvent, EventSet, InvalidUpcasters, LoadError, PayloadCodecs,
    Snapshot, Upcasters,
    codec::{self, ReadBack},
    ports::{Append, EventData},
    repository,
};
use std::sync::Arc;

/// Encodes the events of one commit, and decodes each of them again as a later load does.
///
/// `upcasters` are those for event types of other crates, as in
/// [`Repository::with_upcasters`](crate::Repository::with_upcasters). The upcasters of the event
/// type are added. [`DomainEvent::equals_decoded`] compares the decoded event with the event.
///
/// # Errors
/// - [`AppendError::Codec`] if an event cannot be encoded, or would be decoded as another value.
///   The error names the event, never its values.
/// - [`AppendError::Load`] if an upcaster is for a name that the event type lifts itself.
///
/// # Example
/// ```
/// use foldstream::{DomainEvent, Upcasters, adapter::encode_events};
///
/// #[derive(Clone, Debug, PartialEq, DomainEvent)]
/// #[event(aggregate = "probe")]
/// enum ProbeEvent {
///     Measured { celsius: f64 },
/// }
/// use ProbeEvent::Measured;
///
/// let stored = encode_events(&[Measured { celsius: 21.5 }], &Upcasters::new())?;
/// assert_eq!(stored[0].name.as_str(), "Measured");
/// assert_eq!(stored[0].payload, r#"{"celsius":21.5}"#);
/// // JSON has no NaN, so no reader would get the value back.
/// assert!(encode_events(&[Measured { celsius: f64::NAN }], &Upcasters::new()).is_err());
/// # Ok::<(), foldstream::AppendError>(())
/// ```
pub fn encode_events<E: DomainEvent>(
    events: &[E],
    upcasters: &Upcasters,
) -> Result<Arc<[EventData]>, AppendError> {
    let upcasters = upcasters.with_own_of::<E>().map_err(LoadError::from)?;
    Ok(codec::encode_events(events, &upcasters, ReadBack::Checked)?)
}

/// Adds the steps that the event types of `E` bring themselves ([`EventSet::upcasters`]) to those
/// for event types of other crates, as repositories and runners do.
///
/// # Errors
/// - [`InvalidUpcasters::LiftedByItsType`] if a step of `upcasters` starts from a name that its
///   event type lifts itself.
/// - [`InvalidUpcasters::Foreign`] if an event type brings a step for another aggregate type.
pub fn upcasters_of<E: EventSet>(upcasters: &Upcasters) -> Result<Upcasters, InvalidUpcasters> {
    upcasters.with_own_of::<E>()
}

/// Seals the payloads of an append, and opens each of them again as a later load does.
///
/// Each payload is bound to the stream and version that its event will have. Without payload codecs
/// the append is returned as it is.
///
/// # Errors
/// - [`AppendError::Store`] if [`Append::validate`] refuses the append.
/// - [`AppendError::Codec`] if a codec fails, if its tag cannot be stored, or if a reader would not
///   get a payload back.
pub async fn seal_append(append: Append, codecs: &PayloadCodecs) -> Result<Append, AppendError> {
    repository::seal_append(append, codecs, ReadBack::Checked).await
}

/// Encodes a state for a snapshot, and decodes it again as a later load does.
///
/// [`Snapshot::equals_decoded`] compares the decoded state with the state.
///
/// # Errors
/// [`CodecError::Encode`] if the state cannot be encoded, or would be decoded as another value.
pub fn encode_state<A: Snapshot>(state: &A) -> Result<Vec<u8>, CodecError> {
    codec::encode_state(state, ReadBack::Checked)
}

/// Decodes the state of a snapshot that [`encode_state`] has encoded.
///
/// # Errors
/// [`CodecError::Decode`] if the payload is not a state of this build. A repository ignores such a
/// snapshot.
pub fn decode_state<A: Snapshot>(payload: &[u8]) -> Result<A, CodecError> {
    codec::decode_state(payload)
}
