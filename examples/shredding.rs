//! Deletes personal data from a store that never deletes events.
//!
//! Each customer's events are encrypted under a key of their own. Deleting the key makes the data
//! unreadable in the store, on the bus and in every backup.
//!
//! ```sh
//! cargo run --example shredding
//! ```
use async_trait::async_trait;
use chacha20poly1305::{
    Key, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Generate, Payload},
};
use foldstream::{
    Aggregate, BoxError, Bytes, Context, Decide, Decision, DomainEvent, ExecuteError, Opened,
    PayloadCodec, PayloadCodecs, PayloadContext, PayloadError, PayloadKind, Repository, Sealed,
    Snapshot, SnapshotPolicy, id,
};
use foldstream_testkit::{InMemoryEventStore, InMemorySnapshotStore};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

// The domain starts here. It does not know about keys.
id!(CustomerId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "customer")]
enum CustomerEvent {
    Registered { name: String, address: String },
    OrderPlaced { cents: u64 },
}
use CustomerEvent::{OrderPlaced, Registered};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Customer {
    name: Option<String>,
    spent_cents: u64,
}

impl Aggregate for Customer {
    type Id = CustomerId;
    type Event = CustomerEvent;
    // A fold must not depend on `Registered`: the event may have been shredded.
    fn evolve(&mut self, event: &CustomerEvent) {
        match event {
            Registered { name, .. } => self.name = Some(name.clone()),
            OrderPlaced { cents } => self.spent_cents += cents,
        }
    }
}

/// A command that records a fact without a decision.
struct Record(CustomerEvent);

impl Decide<Record> for Customer {
    type Error = Infallible;
    fn decide(&self, record: &Record, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![record.0.clone()])
    }
}

impl Snapshot for Customer {
    const STATE_VERSION: u32 = 1;
}
// The domain ends here.

/// A stand-in for a key service.
///
/// A real service is called over the network. Cache its keys for a short time, and return
/// [`PayloadError::Unavailable`] while it does not answer.
#[derive(Debug, Default)]
struct Keys(Mutex<HashMap<String, Option<Key>>>);

impl Keys {
    /// Returns the key of a customer, creating it on first use, or `None` after its deletion.
    fn of(&self, customer: &str) -> Option<Key> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *keys
            .entry(customer.to_owned())
            .or_insert_with(|| Some(Key::generate()))
    }
    /// Deletes the key of a customer and remembers the deletion. Otherwise the next event would
    /// create a new key.
    fn delete(&self, customer: &str) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(customer.to_owned(), None);
    }
}

/// Encrypts personal data with XChaCha20-Poly1305 under the customer's key.
///
/// The stored bytes are a nonce of 24 bytes, then the ciphertext with its tag.
#[derive(Debug)]
struct Encrypted(Arc<Keys>);

const NONCE: usize = 24;

impl Encrypted {
    fn is_personal(kind: PayloadKind<'_>) -> bool {
        // Encrypts all kinds but the listed ones, so a new kind of event is protected by default.
        !matches!(
            kind,
            PayloadKind::Event {
                name: "OrderPlaced",
                ..
            }
        )
    }
}

#[async_trait]
impl PayloadCodec for Encrypted {
    fn tag(&self) -> &'static str {
        "xchacha20poly1305"
    }

    async fn seal(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Sealed, PayloadError> {
        if !Self::is_personal(context.kind) {
            return Ok(Sealed::AsItIs);
        }
        let Some(key) = self.0.of(context.stream.id()) else {
            return Err(PayloadError::refused("the customer's data was deleted"));
        };
        // The nonce is random per call. A nonce made from the context would be unsafe: the same
        // event id can be encrypted twice with different content.
        let nonce = XNonce::generate();
        let bound = Payload {
            msg: payload,
            aad: &context.associated_data(),
        };
        let sealed = XChaCha20Poly1305::new(&key).encrypt(&nonce, bound);
        let sealed = sealed.map_err(|_| PayloadError::refused("the payload is too large"))?;
        Ok(Sealed::Payload([&nonce[..], &sealed].concat().into()))
    }

    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError> {
        let Some(key) = self.0.of(context.stream.id()) else {
            return Ok(Opened::Shredded);
        };
        let Some((nonce, sealed)) = payload.split_first_chunk::<NONCE>() else {
            return Err(PayloadError::damaged("it is shorter than a nonce"));
        };
        let bound = Payload {
            msg: sealed,
            aad: &context.associated_data(),
        };
        match XChaCha20Poly1305::new(&key).decrypt(&XNonce::from(*nonce), bound) {
            Ok(opened) => Ok(Opened::Payload(opened.into())),
            Err(_) => Err(PayloadError::damaged("it cannot be authenticated")),
        }
    }
}

/// The most bytes of a decompressed payload. It limits what damaged bytes can make a reader
/// allocate.
const MOST_BYTES: usize = 16 << 20;

/// Compresses payloads that get smaller.
#[derive(Debug)]
struct Compressed;

#[async_trait]
impl PayloadCodec for Compressed {
    fn tag(&self) -> &'static str {
        "lz4"
    }
    async fn seal(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Sealed, PayloadError> {
        let packed = lz4_flex::compress_prepend_size(payload);
        Ok(match packed.len() < payload.len() {
            true => Sealed::Payload(packed.into()),
            false => Sealed::AsItIs,
        })
    }
    async fn open(&self, _: &PayloadContext<'_>, payload: &Bytes) -> Result<Opened, PayloadError> {
        let (bytes, packed) =
            lz4_flex::block::uncompressed_size(payload).map_err(PayloadError::damaged)?;
        if bytes > MOST_BYTES {
            return Err(PayloadError::damaged(
                "it claims to be larger than any payload",
            ));
        }
        let plain = lz4_flex::decompress(packed, bytes).map_err(PayloadError::damaged)?;
        Ok(Opened::Payload(plain.into()))
    }
}

/// Returns the codecs in order: compression first, because encrypted data does not compress.
fn codecs(keys: &Arc<Keys>) -> PayloadCodecs {
    PayloadCodecs::new()
        .with_writer(Arc::new(Compressed))
        .with_writer(Arc::new(Encrypted(keys.clone())))
}

fn registered() -> Record {
    Record(Registered {
        name: "Ann Example".into(),
        address: "1 Long Street, ".repeat(20),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let keys = Arc::new(Keys::default());
    let customers = Repository::<Customer>::new(InMemoryEventStore::new())
        .with_snapshots(InMemorySnapshotStore::new(), SnapshotPolicy::every(2))
        .with_cache(100)
        .with_payload_codecs(codecs(&keys));
    let ann = CustomerId::from("c-1");

    customers.execute(&ann, registered()).await?;
    let order = || Record(OrderPlaced { cents: 4200 });
    customers.execute(&ann, order()).await?;
    println!("before: {:?}", customers.load(&ann).await?.state());

    // The customer asks to be forgotten. The key is deleted first, then the copies in this process
    // and in the snapshots.
    keys.delete("c-1");
    customers.forget(&ann).await?;
    println!("after:  {:?}", customers.load(&ann).await?.state());

    // Events without personal data are still stored. Those with personal data are refused.
    let done = customers.execute(&ann, order()).await?;
    println!("version {}: {:?}", done.version(), done.state());
    match customers.execute(&ann, registered()).await {
        Err(ExecuteError::Codec(error)) => println!("refused: {error}"),
        other => return Err(format!("a name was stored without a key: {other:?}").into()),
    }
    customers.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream::{
        StreamHead,
        ports::{EventStore, ReadFrom},
    };
    use futures::TryStreamExt;

    #[test]
    fn the_example_runs() {
        main().unwrap();
    }

    #[tokio::test]
    async fn what_is_personal_is_not_in_the_store_and_what_is_not_can_be_read_by_everybody() {
        let store = InMemoryEventStore::new();
        let customers =
            Repository::<Customer>::new(store.clone()).with_payload_codecs(codecs(&Arc::default()));
        let ann = CustomerId::from("c-1");
        customers.execute(&ann, registered()).await.unwrap();
        let order = Record(OrderPlaced { cents: 1 });
        customers.execute(&ann, order).await.unwrap();
        let stream = Repository::<Customer>::stream_id(&ann).unwrap();
        let all = ReadFrom::After(StreamHead::empty(stream.clone()));
        let commits: Vec<_> = store.read(&stream, all, None).try_collect().await.unwrap();
        let personal = &commits[0].events[0];
        assert_eq!(personal.codec.as_deref(), Some("lz4,xchacha20poly1305"));
        assert!(!personal.payload.windows(3).any(|w| w == b"Ann"));
        assert!(personal.payload.len() < 200, "it was compressed first");
        let order = &commits[1].events[0];
        assert_eq!(
            (order.codec.as_deref(), &order.payload[..]),
            (None, &br#"{"cents":1}"#[..])
        );
    }

    mod encrypted {
        use super::*;
        use foldstream::StreamId;
        use foldstream_testkit::contract::payload_codec::CodecFixture;

        struct Fixture(Arc<Keys>);
        #[async_trait]
        impl CodecFixture for Fixture {
            fn codec(&self) -> Arc<dyn PayloadCodec> {
                Arc::new(Encrypted(self.0.clone()))
            }
            async fn shred(&self, stream: &StreamId) {
                self.0.delete(stream.id());
            }
        }
        async fn fresh() -> Arc<dyn CodecFixture> {
            Arc::new(Fixture(Arc::default()))
        }
        foldstream_testkit::payload_codec_contract! { fixture = fresh, with = [encrypts, shreds] }
    }

    mod compressed {
        use super::*;
        use foldstream_testkit::contract::payload_codec::CodecFixture;

        struct Fixture;
        impl CodecFixture for Fixture {
            fn codec(&self) -> Arc<dyn PayloadCodec> {
                Arc::new(Compressed)
            }
        }
        async fn fresh() -> Arc<dyn CodecFixture> {
            Arc::new(Fixture)
        }
        foldstream_testkit::payload_codec_contract! { fixture = fresh }
    }
}
