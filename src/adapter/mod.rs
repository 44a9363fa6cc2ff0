//! Functions for code that implements a port, and for code that stores or sends events without a
//! [`Repository`](crate::Repository) or a [`Publisher`](crate::publisher::Publisher): adapters,
//! importers and test doubles.
//!
//! A service that writes aggregates, handlers and projectors calls nothing of this module. The
//! traits that an adapter implements, and the values that they carry, are in
//! [`ports`](crate::ports).
//!
//! | for | functions |
//! |---|---|
//! | the encoding and the checks of a repository | [`encode_events`], [`seal_append`], [`encode_state`], [`decode_state`], [`upcasters_of`] |
//! | an event store | [`append_alone`], [`append_answer`], [`read_in_pages`], [`write_cursor`], [`read_cursor`], [`observed_head`], [`version_conflict`], [`unsupported`] |
//! | a message bus | [`check_topic`], [`check_group`], [`check_subscription`], [`check_run`], [`kafka_partition`], [`murmur2`], [`MessageCopier`] |
//! | records without a publisher or a runner | [`to_message`], [`to_message_after`], [`from_message`], [`previous_record`], [`recorded_event`] |
//!
//! A test double that encodes by itself lets a test pass that fails in production. Therefore the
//! checks of a repository are functions of their own.
//! [`Append::validate_for`](crate::ports::Append::validate_for) checks the limits of a store.
mod encoded;
mod append;
mod read;
mod cursor;
mod copier;
mod values;

pub use crate::{
    hash::{kafka_partition, murmur2},
    wire::{WireError, from_message, previous_record, to_message, to_message_after},
};
pub use append::{append_alone, append_answer};
pub use copier::MessageCopier;
pub use cursor::{read_cursor, write_cursor};
pub use encoded::{decode_state, encode_events, encode_state, seal_append, upcasters_of};
pub use read::read_in_pages;
pub use values::{
    check_group, check_run, check_subscription, check_topic, observed_head, recorded_event,
    unsupported, version_conflict,
};
