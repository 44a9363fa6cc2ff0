//! The steps that a repository takes before an append, for code that stores or checks events without a repository:
//! adapters, importers and test doubles.
//!
//! A double that encodes by itself lets a test pass that fails in production. So the checks of
//! [`Repository`](crate::Repository) can be had by themselves: [`encode_events`] and [`seal_append`] for the events of a
//! commit, and [`encode_state`] for the state of a snapshot. [`Append::validate_for`] checks the limits of a store.
use crate::{
    AppendError, CodecError, DomainEvent, LoadError, PayloadCodecs, Snapshot, Upcasters,
    codec::{self, ReadBack},
    ports::{Append, EventData},
    repository,
};
use std::sync::Arc;

/// Encodes the events of one commit, and reads each of them back as a later load does.
///
/// `upcasters` are those of other crates, as [`Repository::with_upcasters`](crate::Repository::with_upcasters) takes them;
/// the upcasters of the event type are added. The event that was read back is compared with the event by
/// [`DomainEvent::equals_decoded`].
///
/// # Errors
/// - [`AppendError::Codec`] if an event cannot be encoded, or would not be read back as what it is. The error names the
///   event, never its values.
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
/// assert_eq!((stored[0].name.as_str(), &stored[0].payload[..]), ("Measured", &br#"{"celsius":21.5}"#[..]));
/// // JSON has no NaN: no reader would get it back.
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

/// Seals the payloads of an append, each bound to the place that its event will have, and opens each of them again as a
/// later load does. Without payload codecs the append is returned as it is.
///
/// # Errors
/// - [`AppendError::Store`] if [`Append::validate`] refuses the append.
/// - [`AppendError::Codec`] if a codec fails, if its tag cannot be stored, or if a reader would not get a payload back.
pub async fn seal_append(append: Append, codecs: &PayloadCodecs) -> Result<Append, AppendError> {
    repository::seal_append(append, codecs, ReadBack::Checked).await
}

/// Encodes a state for a snapshot, and reads it back as a later load does.
///
/// The state that was read back is compared with the state by [`Snapshot::equals_decoded`].
///
/// # Errors
/// [`CodecError::Encode`] if the state cannot be encoded, or would not be read back as what it is.
pub fn encode_state<A: Snapshot>(state: &A) -> Result<Vec<u8>, CodecError> {
    codec::encode_state(state, ReadBack::Checked)
}

/// Decodes the state of a snapshot that [`encode_state`] has encoded.
///
/// # Errors
/// [`CodecError::Decode`] if the payload is not a state of this build. A repository passes over such a snapshot.
pub fn decode_state<A: Snapshot>(payload: &[u8]) -> Result<A, CodecError> {
    codec::decode_state(payload)
}
