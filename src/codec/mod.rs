//! The conversion between stored bytes and today's events: upcasters, the JSON codec that the
//! derive uses, and the check that written payloads can be read.
mod error;
mod upcasters;
mod json;
mod check;
mod same;
pub(crate) mod fields;

pub use error::{CodecError, InvalidUpcasters};
pub use json::{bad_index, decode_json, encode_json};
pub use upcasters::{Lifted, Upcast, Upcasters};

pub(crate) use check::{ReadBack, decode_state, encode_events, encode_state};
pub(crate) use check::{SealedBut, not_opened};
pub(crate) use same::same_data;
pub use same::{data_hash, event_equals_decoded};

use crate::{Decoded, EventName, EventSet};
use bytes::Bytes;

/// Decodes an opened payload, in the same way for every reader: first the upcasters, then the
/// decoding of the types. `None` if the event is retired, or of an aggregate type that is not in
/// the set. An unknown name is [`CodecError::UnknownEvent`]. A newer schema version is
/// [`CodecError::TooNew`], and an older one that no upcaster lifts is [`CodecError::NoUpcaster`].
/// Neither is skipped.
pub(crate) fn decode<E: EventSet>(
    upcasters: &Upcasters,
    aggregate: &str,
    name: &EventName,
    schema_version: u16,
    payload: &Bytes,
) -> Result<Option<E>, CodecError> {
    // Most events have today's schema. They are decoded in place, without a copy of name or
    // payload.
    if !upcasters.has_step(aggregate, name, schema_version) {
        return decode_lifted(aggregate, name, schema_version, payload);
    }
    match upcasters.apply(aggregate, name, schema_version, payload)? {
        Some(lifted) => {
            let (name, version) = (&lifted.name, lifted.schema_version);
            decode_lifted(aggregate, name, version, &lifted.payload)
        }
        None => Ok(None),
    }
}

fn decode_lifted<E: EventSet>(
    aggregate: &str,
    name: &str,
    schema_version: u16,
    payload: &[u8],
) -> Result<Option<E>, CodecError> {
    match E::decode_from(aggregate, name, schema_version, payload)? {
        Decoded::Event(event) => Ok(Some(event)),
        Decoded::NotMine => Ok(None),
        Decoded::Unknown => Err(CodecError::UnknownEvent {
            aggregate: aggregate.into(),
            name: name.to_string(),
        }),
    }
}
