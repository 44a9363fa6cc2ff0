//! The errors of payloads that cannot be read or written.
use crate::{BoxError, PayloadError};

/// A payload that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The name is not one of the aggregate type's events: a newer build wrote it, or it was renamed without an upcaster.
    #[error(
        "unknown event {aggregate}.{name}: deploy the build that knows it, or add an upcaster that renames or retires it"
    )]
    UnknownEvent {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
    },
    /// The payload was written by a newer build.
    #[error(
        "event {aggregate}.{name} has schema version {found}, this build reads {known}: deploy the newer build"
    )]
    TooNew {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
        /// The payload's version.
        found: u16,
        /// The version that this build reads.
        known: u16,
    },
    /// The payload is of an older schema version, and no upcaster lifts it.
    #[error(
        "event {aggregate}.{name} has schema version {found}, this build reads {known}: add an upcaster from {found}"
    )]
    NoUpcaster {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
        /// The payload's version.
        found: u16,
        /// The version that this build reads.
        known: u16,
    },
    /// The bytes are not this type's.
    #[error("the payload cannot be decoded")]
    Decode {
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The value cannot be stored: it cannot be encoded, or would not be read back as what it is.
    #[error("the payload cannot be encoded")]
    Encode {
        /// The event and the reason; never the payload.
        #[source]
        source: BoxError,
    },
    /// An upcaster failed.
    #[error("event {aggregate}.{name} of schema version {from} cannot be upcast")]
    Upcast {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
        /// The version that the failing step starts from.
        from: u16,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The payload was written by a codec that is not configured here.
    #[error(
        "the payload was written by codec {tag:?}, which is not configured here: add it with `PayloadCodecs::with_reader`"
    )]
    UnknownCodec {
        /// The stored tag.
        tag: String,
    },
    /// A payload codec could not do its work.
    #[error("payload codec {tag} failed")]
    Payload {
        /// The tag.
        tag: String,
        /// The cause.
        #[source]
        source: PayloadError,
    },
    /// A payload codec's tag cannot be stored.
    #[error(
        "{tag:?} cannot be a payload codec's tag: 1 to 64 printable ASCII characters without a comma, and not `shredded`"
    )]
    InvalidTag {
        /// The tag.
        tag: String,
    },
}

impl CodecError {
    /// Returns true if the same call may succeed later: only where a payload codec's key service is away or throttles.
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

/// Upcasters that cannot be used together with those that the event types bring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUpcasters {
    /// An upcaster was given for a name that its event type lifts itself.
    #[error(
        "event {aggregate}.{name} is lifted by the upcasters of its type: take the name out of `with_upcasters`"
    )]
    LiftedByItsType {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
    },
    /// An event type brings an upcaster for another aggregate type, which would have no effect.
    #[error(
        "an event type brings an upcaster for {aggregate}.{name}, which is not its own: move it to the event type of {aggregate}"
    )]
    Foreign {
        /// The aggregate type that the upcaster names.
        aggregate: String,
        /// The stored name.
        name: String,
    },
}
