//! The errors of payloads that cannot be encoded or decoded.
use crate::{BoxError, PayloadError};

/// The error returned for a payload that cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The name is not one of the aggregate type's events: a newer build wrote it, or it was
    /// renamed without an upcaster.
    #[error(
        "unknown event {aggregate}.{name}: deploy the build that knows it, or add an upcaster that renames or retires it"
    )]
    UnknownEvent {
        /// The aggregate type of the event.
        aggregate: String,
        /// The stored name of the event.
        name: String,
    },
    /// The payload was written by a newer build.
    #[error(
        "event {aggregate}.{name} has schema version {found}, this build reads {known}: deploy the newer build"
    )]
    TooNew {
        /// The aggregate type of the event.
        aggregate: String,
        /// The stored name of the event.
        name: String,
        /// The schema version of the payload.
        found: u16,
        /// The schema version that this build reads.
        known: u16,
    },
    /// The payload has an older schema version, and no upcaster lifts it.
    #[error(
        "event {aggregate}.{name} has schema version {found}, this build reads {known}: add an upcaster from {found}"
    )]
    NoUpcaster {
        /// The aggregate type of the event.
        aggregate: String,
        /// The stored name of the event.
        name: String,
        /// The schema version of the payload.
        found: u16,
        /// The schema version that this build reads.
        known: u16,
    },
    /// The bytes are not a payload of the expected type.
    #[error("the payload cannot be decoded")]
    Decode {
        /// The error of the deserializer, without the payload's values.
        #[source]
        source: BoxError,
    },
    /// The value cannot be stored: it cannot be encoded, or would be decoded as another value.
    #[error("the payload cannot be encoded")]
    Encode {
        /// The event and the reason; never the payload.
        #[source]
        source: BoxError,
    },
    /// An upcaster failed on the payload.
    #[error("event {aggregate}.{name} of schema version {from} cannot be upcast")]
    Upcast {
        /// The aggregate type of the event.
        aggregate: String,
        /// The stored name of the event.
        name: String,
        /// The schema version from which the failing step starts.
        from: u16,
        /// The error of the step.
        #[source]
        source: BoxError,
    },
    /// The payload was written by a codec that is not configured here.
    #[error(
        "the payload was written by codec {tag:?}, which is not configured here: add it with `PayloadCodecs::with_reader`"
    )]
    UnknownCodec {
        /// The stored tag of the codec.
        tag: String,
    },
    /// A payload codec could not seal or open the payload.
    #[error("payload codec {tag} failed")]
    Payload {
        /// The tag of the codec.
        tag: String,
        /// The error of the codec.
        #[source]
        source: PayloadError,
    },
    /// The tag of a payload codec cannot be stored.
    #[error(
        "{tag:?} cannot be a payload codec's tag: 1 to 64 printable ASCII characters without a comma, and not `shredded`"
    )]
    InvalidTag {
        /// The tag of the codec.
        tag: String,
    },
}

impl CodecError {
    /// Returns true if the same call may succeed later. That is so only if the key service of a
    /// payload codec is unavailable or throttles.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Payload { source, .. } if source.is_transient())
    }

    pub(crate) fn schema(aggregate: &str, name: &str, found: u16, known: u16) -> Self {
        let (aggregate, name) = (aggregate.into(), name.into());
        if found > known {
            Self::TooNew {
                aggregate,
                name,
                found,
                known,
            }
        } else {
            Self::NoUpcaster {
                aggregate,
                name,
                found,
                known,
            }
        }
    }
}

/// The error returned for upcasters that cannot be used together with those that the event types
/// bring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUpcasters {
    /// An upcaster was given for a name that its event type lifts itself.
    #[error(
        "event {aggregate}.{name} is lifted by the upcasters of its type: take the name out of `with_upcasters`"
    )]
    LiftedByItsType {
        /// The aggregate type of the name.
        aggregate: String,
        /// The stored name of the event.
        name: String,
    },
    /// An event type brings an upcaster for another aggregate type, which would have no effect.
    #[error(
        "an event type brings an upcaster for {aggregate}.{name}, which is not its own: move it to the event type of {aggregate}"
    )]
    Foreign {
        /// The aggregate type that the upcaster names.
        aggregate: String,
        /// The stored name of the event.
        name: String,
    },
}
