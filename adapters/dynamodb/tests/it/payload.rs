//! Sealed payloads and snapshots, through the repository into real items and back.
use crate::support::{Server, get_raw};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use foldstream::{
    Aggregate, Bytes, DomainEvent, ExpectedVersion, Opened, PayloadCodec, PayloadCodecs,
    PayloadContext, PayloadError, Repository, Sealed, Snapshot, SnapshotPolicy, id,
    ports::SnapshotStore as _,
};
use serde::{Deserialize, Serialize};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

id!(PersonId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "person")]
enum PersonEvent {
    Named { name: String },
    Counted {},
}
use PersonEvent::{Counted, Named};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Person {
    name: String,
    count: u64,
}
impl Aggregate for Person {
    type Id = PersonId;
    type Event = PersonEvent;
    fn evolve(&mut self, event: &PersonEvent) {
        match event {
            Named { name } => self.name = name.clone(),
            Counted {} => self.count += 1,
        }
    }
}
impl Snapshot for Person {
    const STATE_VERSION: u32 = 1;
}

/// A vault that seals names and snapshots into bytes that are not text, as long as it has a key.
#[derive(Debug, Default)]
struct Vault {
    is_shredded: AtomicBool,
}

#[async_trait]
impl PayloadCodec for Vault {
    fn tag(&self) -> &'static str {
        "vault"
    }
    async fn seal(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Sealed, PayloadError> {
        if payload == "{}" {
            return Ok(Sealed::AsItIs);
        }
        if self.is_shredded.load(Ordering::SeqCst) {
            return Err(PayloadError::refused("the key was deleted"));
        }
        let mut sealed = context.associated_data();
        sealed.extend(payload.iter().map(|b| !b));
        Ok(Sealed::Payload(sealed.into()))
    }
    async fn open(
        &self,
        context: &PayloadContext<'_>,
        payload: &Bytes,
    ) -> Result<Opened, PayloadError> {
        if self.is_shredded.load(Ordering::SeqCst) {
            return Ok(Opened::Shredded);
        }
        match payload.strip_prefix(&*context.associated_data()) {
            Some(sealed) => Ok(Opened::Payload(sealed.iter().map(|b| !b).collect())),
            None => Err(PayloadError::damaged("sealed for another place")),
        }
    }
}

#[tokio::test]
async fn sealed_payloads_and_snapshots_are_stored_loaded_and_gone_with_their_key() {
    let stores = Server::start().stores().await;
    let snapshots = Arc::new(stores.snapshot_store());
    let vault = Arc::new(Vault::default());
    let people = Repository::<Person>::new(Arc::new(stores.event_store()))
        .with_snapshots(
            snapshots.clone(),
            SnapshotPolicy::load_slower_than(std::time::Duration::ZERO),
        )
        .with_payload_codecs(PayloadCodecs::new().with_writer(vault.clone()));
    let (ann, name) = (PersonId::from("ann"), "Ann".to_owned());
    let events = [Counted {}, Named { name }, Counted {}];
    people
        .append(&ann, ExpectedVersion::NoStream, &events)
        .await
        .unwrap();

    let stream = Repository::<Person>::stream_id(&ann).unwrap();
    let row = get_raw(stores.client(), &stream, 1).await.unwrap();
    assert_eq!(row["k"], AttributeValue::S("vault".into()));
    let AttributeValue::B(stored) = &row["e"] else {
        panic!("{row:?}")
    };
    assert!(!stored.as_ref().windows(3).any(|w| w == b"Ann"));

    let loaded = people.load(&ann).await.unwrap();
    assert_eq!(
        (loaded.state().name.as_str(), loaded.state().count),
        ("Ann", 2)
    );
    people.close().await;
    let snapshot = snapshots.load(&stream).await.unwrap().unwrap();
    assert_eq!(snapshot.codec.as_deref(), Some("vault"));
    // The state comes from the snapshot.
    assert_eq!(people.load(&ann).await.unwrap().state(), loaded.state());

    vault.is_shredded.store(true, Ordering::SeqCst);
    let loaded = people.load(&ann).await.unwrap();
    assert_eq!(
        (loaded.state().name.as_str(), loaded.state().count),
        ("", 2)
    );
    assert_eq!(loaded.version().get(), 3);
    people.close().await;
    assert_eq!(snapshots.load(&stream).await.unwrap(), None);
}
