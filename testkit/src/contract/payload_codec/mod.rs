//! The contract of [`PayloadCodec`], case by case.
mod cases;
mod secret;

use super::run::{Case, collect_cases, publish_cases};
use async_trait::async_trait;
use foldstream::{Bytes, PayloadCodec, StreamId};
use std::{future::Future, sync::Arc};

/// A codec under test, and the operations that only its author can provide.
#[async_trait]
pub trait CodecFixture: Send + Sync + 'static {
    /// Returns the codec over the fixture's keys: a new instance per call, as another process would
    /// have it.
    fn codec(&self) -> Arc<dyn PayloadCodec>;

    /// Returns a payload that the codec seals. Default: a kilobyte of JSON, which compression makes
    /// smaller.
    fn payload(&self) -> Bytes {
        format!("{{\"text\":\"{}\"}}", "the quick brown fox ".repeat(50)).into()
    }

    /// Returns the stored name of an event that the codec seals. Default: `Happened`.
    fn event_name(&self) -> &'static str {
        "Happened"
    }

    /// Returns an unused stream of a kind that the codec seals, by a unique id. Default:
    /// `contract#<id>`.
    ///
    /// # Panics
    /// If the id does not name a stream.
    fn stream(&self, id: &str) -> StreamId {
        StreamId::new("contract", id).expect("the suite's ids name streams")
    }

    /// Deletes the key of this stream, and returns after every instance knows. Required only of a
    /// codec that declares `shreds`.
    async fn shred(&self, stream: &StreamId) {
        panic!("a fixture that declares `shreds` deletes the key of {stream}")
    }
}

/// The only list of the cases of the [`PayloadCodec`](foldstream::PayloadCodec) contract.
#[doc(hidden)]
#[macro_export]
macro_rules! __payload_codec_cases {
    (always, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context always [
            cases::the_tag_can_be_stored_and_never_changes,
            cases::what_was_sealed_is_opened_to_the_same_bytes,
            cases::another_instance_opens_what_was_sealed,
            cases::a_snapshot_is_opened_to_the_same_bytes_or_refused,
            cases::several_tasks_at_once_do_not_disturb_each_other,
            cases::foreign_bytes_are_an_error_or_a_payload_but_never_a_panic,
        ] }
    };
    (encrypts, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context encrypts [
            secret::a_sealed_payload_does_not_show_its_text,
            secret::the_same_payload_is_never_sealed_to_the_same_bytes,
            secret::in_another_context_a_payload_is_damaged,
            secret::a_changed_byte_is_damage,
            secret::a_payload_cut_short_is_damaged,
        ] }
    };
    (shreds, [$($then:tt)*] $context:tt) => {
        $($then)*! { $context shreds [
            secret::without_its_key_a_payload_is_shredded,
            secret::sealing_without_the_key_is_refused,
            secret::other_streams_keep_their_keys,
        ] }
    };
}

__payload_codec_cases! { always, [publish_cases] {} }
__payload_codec_cases! { encrypts, [publish_cases] {} }
__payload_codec_cases! { shreds, [publish_cases] {} }

/// Returns all cases of all groups.
pub fn cases() -> Vec<Case<Arc<dyn CodecFixture>>> {
    let mut list = Vec::new();
    __payload_codec_cases! { always, [collect_cases] { list } }
    __payload_codec_cases! { encrypts, [collect_cases] { list } }
    __payload_codec_cases! { shreds, [collect_cases] { list } }
    list
}

#[doc(hidden)]
pub async fn ready(fresh: impl Future<Output = Arc<dyn CodecFixture>>) -> Arc<dyn CodecFixture> {
    fresh.await
}

/// Generates one `#[test]` per rule of the [`PayloadCodec`](foldstream::PayloadCodec) contract.
///
/// `fixture` is an `async fn() -> Arc<dyn CodecFixture>`, called once per test in the test's own
/// runtime. Attributes before `fixture` are put on every test. `with` declares what the codec
/// promises, in this order:
/// - `encrypts`: a payload is unreadable without a key, and bound to its context;
/// - `shreds`: a key can be deleted, which only an encrypting codec can declare.
///
/// # Example
/// ```
/// # #[allow(dead_code)]
/// mod payload_codec {
///     use foldstream::{Bytes, Opened, PayloadCodec, PayloadContext, PayloadError, Sealed};
///     use foldstream_testkit::contract::payload_codec::CodecFixture;
///     use std::sync::Arc;
///
///     /// Payloads back to front, for whoever likes it so.
///     #[derive(Debug)]
///     struct Reversed;
///     #[async_trait::async_trait]
///     impl PayloadCodec for Reversed {
///         fn tag(&self) -> &'static str { "reversed" }
///         async fn seal(
///             &self,
///             _: &PayloadContext<'_>,
///             payload: &Bytes,
///         ) -> Result<Sealed, PayloadError> {
///             Ok(Sealed::Payload(payload.iter().rev().copied().collect()))
///         }
///         async fn open(
///             &self,
///             _: &PayloadContext<'_>,
///             payload: &Bytes,
///         ) -> Result<Opened, PayloadError> {
///             Ok(Opened::Payload(payload.iter().rev().copied().collect()))
///         }
///     }
///
///     struct Fixture;
///     impl CodecFixture for Fixture {
///         fn codec(&self) -> Arc<dyn PayloadCodec> { Arc::new(Reversed) }
///     }
///     async fn fresh() -> Arc<dyn CodecFixture> { Arc::new(Fixture) }
///     foldstream_testkit::payload_codec_contract! { fixture = fresh }
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! payload_codec_contract {
    ($(#[$attribute:meta])* fixture = $fixture:path $(, with = [$($group:ident),* $(,)?])? $(,)?) => {
        $crate::payload_codec_contract! {
            @groups [$($($group)*)?] { payload_codec $fixture; $(#[$attribute])* }
        }
    };
    (@groups [] $context:tt) => {
        $crate::payload_codec_contract! { @cases $context always }
    };
    (@groups [encrypts] $context:tt) => {
        $crate::payload_codec_contract! { @cases $context always encrypts }
    };
    (@groups [encrypts shreds] $context:tt) => {
        $crate::payload_codec_contract! { @cases $context always encrypts shreds }
    };
    (@groups $unknown:tt $context:tt) => {
        ::core::compile_error!("`with` takes `encrypts`, and after it `shreds`");
    };
    (@cases $context:tt $($group:ident)*) => {
        $crate::__contract_report! { $context $($group)* }
        $($crate::__payload_codec_cases! { $group, [$crate::__contract_tests] $context })*
    };
}
