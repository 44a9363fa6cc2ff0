//! Payload codecs of events in the repository.
use super::*;
use crate::support::{AccountCommand::*, AccountEvent::Deposited};
use foldstream::{
    AsOf, ExecuteError, ExpectedVersion, LoadError, Metadata, Transaction, Version,
    ports::{Append, AppendOutcome, EventData},
};
use foldstream_testkit::InMemoryControlStore;
use foldstream_testkit::faults::{Call, Fault, Faults, Moment, Op};
use futures::FutureExt;
use std::time::Duration;

#[tokio::test]
async fn a_sealed_payload_is_stored_under_its_tag_and_read_as_it_was() {
    let store = InMemoryEventStore::new();
    let accounts = sealed_accounts(&store, &writing(&Vault::new()));
    let done = accounts.execute(&ann(), Deposit { amount: 3 }).await;
    assert_eq!(done.unwrap().state().balance, 3);
    accounts
        .append(&ann(), ExpectedVersion::Any, &[Deposited { amount: 4 }])
        .await
        .unwrap();
    assert_eq!(
        forms(&store, "ann").await,
        vec![(Some("vault".into()), false); 2]
    );
    assert_eq!(accounts.load(&ann()).await.unwrap().state().balance, 7);
    let then = AsOf::Version(Version::new(1));
    let then = accounts.load_at(&ann(), then).await.unwrap();
    assert_eq!(then.state().balance, 3);
    let history: Vec<_> = accounts.history(&ann()).try_collect().await.unwrap();
    assert_eq!(history[1].event, Deposited { amount: 4 });
    // After a conflict, these events are read back before the next attempt.
    let others = sealed_accounts(&store, &writing(&Vault::new())).with_cache(10);
    others
        .execute(&ann(), Withdraw { amount: 2 })
        .await
        .unwrap();
    accounts
        .execute(&ann(), Deposit { amount: 10 })
        .await
        .unwrap();
    let done = others
        .execute(&ann(), Withdraw { amount: 15 })
        .await
        .unwrap();
    assert_eq!(done.state().balance, 0);
}

#[tokio::test]
async fn what_a_codec_leaves_alone_is_stored_without_its_tag() {
    let store = InMemoryEventStore::new();
    let both = PayloadCodecs::new()
        .with_writer(Vault::new())
        .with_writer(Arc::new(Reverse("reverse")));
    let accounts = sealed_accounts(&store, &writing(&Vault::new()));
    let events = [Deposited { amount: 5 }, Deposited { amount: 1 }];
    let head = accounts
        .append(&ann(), Version::NONE, &events)
        .await
        .unwrap();
    let turned = sealed_accounts(&store, &both);
    turned.append(&ann(), head, &events[1..]).await.unwrap();
    assert_eq!(
        forms(&store, "ann").await,
        [
            (Some("vault".into()), false),
            (None, true),
            (Some("reverse".into()), false)
        ]
    );
    assert_eq!(turned.load(&ann()).await.unwrap().state().balance, 7);
}

#[tokio::test]
async fn writers_work_in_order_and_are_undone_from_the_last() {
    let store = InMemoryEventStore::new();
    let codecs = PayloadCodecs::new()
        .with_writer(Arc::new(Reverse("reverse")))
        .with_writer(Vault::new());
    let accounts = sealed_accounts(&store, &codecs);
    accounts
        .execute(&ann(), Deposit { amount: 12 })
        .await
        .unwrap();
    assert_eq!(
        forms(&store, "ann").await,
        [(Some("reverse,vault".into()), false)]
    );
    assert_eq!(accounts.load(&ann()).await.unwrap().state().balance, 12);
}

#[tokio::test]
async fn an_old_tag_stays_readable_when_another_codec_writes() {
    let store = InMemoryEventStore::new();
    let old = Vault::new();
    sealed_accounts(&store, &writing(&old))
        .execute(&ann(), Deposit { amount: 4 })
        .await
        .unwrap();
    let codecs = PayloadCodecs::new()
        .with_reader(old)
        .with_writer(Arc::new(Reverse("new")));
    let accounts = sealed_accounts(&store, &codecs);
    let done = accounts.execute(&ann(), Deposit { amount: 2 }).await;
    assert_eq!(done.unwrap().state().balance, 6);
    let forms = forms(&store, "ann").await;
    assert_eq!(
        forms,
        [(Some("vault".into()), false), (Some("new".into()), false)]
    );
}

#[tokio::test]
async fn a_tag_without_its_codec_is_an_error_that_says_what_to_do() {
    let store = InMemoryEventStore::new();
    let sealed = sealed_accounts(&store, &writing(&Vault::new()));
    let events = [Deposited { amount: 1 }, Deposited { amount: 2 }];
    sealed.append(&ann(), Version::NONE, &events).await.unwrap();
    let other = PayloadCodecs::new().with_writer(Arc::new(Reverse("reverse")));
    for codecs in [PayloadCodecs::new(), other] {
        let failed = sealed_accounts(&store, &codecs).load(&ann()).await;
        let failed = failed.unwrap_err();
        assert!(!failed.is_transient());
        let LoadError::Codec {
            version, source, ..
        } = failed
        else {
            panic!("{failed:?}")
        };
        assert_eq!(version.get(), 2);
        assert_eq!(
            source.to_string(),
            "the payload was written by codec \"vault\", which is not configured here: add it with \
             `PayloadCodecs::with_reader`"
        );
    }
}

#[tokio::test]
async fn a_shredded_event_folds_as_retired_and_keeps_its_version() {
    let (store, vault) = (InMemoryEventStore::new(), Vault::new());
    let accounts = sealed_accounts(&store, &writing(&vault));
    let events = [5, 1, 6].map(|amount| Deposited { amount });
    accounts
        .append(&ann(), Version::NONE, &events)
        .await
        .unwrap();
    accounts
        .execute(&"bob".into(), Deposit { amount: 9 })
        .await
        .unwrap();
    vault.shred("ann");
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!((loaded.state().balance, loaded.version().get()), (1, 3));
    let history: Vec<_> = accounts.history(&ann()).try_collect().await.unwrap();
    let history: Vec<_> = history
        .iter()
        .map(|r| (r.header.version.get(), &r.event))
        .collect();
    assert_eq!(history, [(2, &Deposited { amount: 1 })]);
    // The stream continues with events without personal data.
    let done = accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (2, 4));
    let bob = accounts.load(&"bob".into()).await.unwrap();
    assert_eq!(bob.state().balance, 9);
}

#[tokio::test]
async fn the_tag_shredded_needs_no_codec() {
    let store = InMemoryEventStore::new();
    let gone = EventData::new("Deposited", 1, Bytes::new())
        .with_codec(Some(PayloadCodecs::SHREDDED.into()));
    let kept = EventData::new("Deposited", 1, &br#"{"amount":2}"#[..]);
    crate::repository::store_raw(&store, vec![gone, kept]).await;
    let accounts = sealed_accounts(&store, &PayloadCodecs::new());
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!((loaded.state().balance, loaded.version().get()), (2, 2));
}

#[tokio::test]
async fn what_cannot_be_sealed_is_not_stored() {
    let (store, vault) = (InMemoryEventStore::new(), Vault::new());
    let accounts = sealed_accounts(&store, &writing(&vault)).with_cache(10);
    vault.fail([PayloadError::unavailable("no route to the key service")]);
    let failed = accounts.execute(&ann(), Deposit { amount: 5 }).await;
    let failed = failed.unwrap_err();
    assert!(failed.is_transient(), "{failed:?}");
    assert!(matches!(
        failed,
        ExecuteError::Codec(CodecError::Payload { .. })
    ));
    vault.shred("bob");
    let failed = accounts
        .execute(&"bob".into(), Deposit { amount: 5 })
        .await
        .unwrap_err();
    assert!(!failed.is_transient(), "{failed:?}");
    assert_eq!(stored(&store, "ann").await.len(), 0);
    assert_eq!(stored(&store, "bob").await.len(), 0);
    let done = accounts.execute(&ann(), Deposit { amount: 5 }).await;
    assert_eq!(done.unwrap().version().get(), 1);
}

#[tokio::test]
async fn a_key_service_that_is_away_fails_a_load_transiently() {
    let (store, vault) = (InMemoryEventStore::new(), Vault::new());
    let accounts = sealed_accounts(&store, &writing(&vault));
    accounts
        .execute(&ann(), Deposit { amount: 5 })
        .await
        .unwrap();
    vault.fail([PayloadError::unavailable("no route")]);
    assert!(accounts.load(&ann()).await.unwrap_err().is_transient());
    assert_eq!(accounts.load(&ann()).await.unwrap().state().balance, 5);
}

#[tokio::test]
async fn a_ciphertext_that_was_moved_to_another_event_is_damaged() {
    let store = InMemoryEventStore::new();
    let codecs = writing(&Vault::new());
    let accounts = sealed_accounts(&store, &codecs);
    let events = [5, 6].map(|amount| Deposited { amount });
    accounts
        .append(&ann(), Version::NONE, &events)
        .await
        .unwrap();
    let commit = stored(&store, "ann").await.remove(0);
    let swapped = vec![commit.events[1].clone(), commit.events[0].clone()];
    let forged = InMemoryEventStore::new();
    let head = StreamHead::empty(stream("ann"));
    let append = Append::after(head, commit.id, commit.recorded_at, swapped);
    let _ = forged.append(&append).await.unwrap();
    let failed = sealed_accounts(&forged, &codecs).load(&ann()).await;
    let failed = failed.unwrap_err();
    assert!(!failed.is_transient());
    assert!(
        matches!(
            failed,
            LoadError::Codec {
                source: CodecError::Payload {
                    source: PayloadError::Damaged { .. },
                    ..
                },
                ..
            }
        ),
        "{failed:?}"
    );
}

#[tokio::test]
async fn a_tag_that_cannot_be_stored_is_refused_before_anything_is() {
    for tag in ["", "a,b", "größe", "shredded", "new\nline"] {
        let store = InMemoryEventStore::new();
        let codecs = PayloadCodecs::new().with_writer(Arc::new(Reverse(tag)));
        let failed = sealed_accounts(&store, &codecs)
            .execute(&ann(), Deposit { amount: 5 })
            .await
            .unwrap_err();
        let is_named = matches!(
            &failed,
            ExecuteError::Codec(CodecError::InvalidTag { tag: named }) if named == tag
        );
        assert!(is_named, "{failed:?}");
        assert_eq!(stored(&store, "ann").await.len(), 0);
    }
}

fn over(inner: &Arc<InMemoryEventStore>, faults: &Faults) -> Repository<Account> {
    let store = faults.event_store(inner.clone());
    Repository::new(store).with_payload_codecs(writing(&Vault::new()))
}

#[tokio::test]
async fn a_repeated_append_returns_the_stored_events_opened() {
    let store = InMemoryEventStore::new();
    let done = over(&store, &Faults::script([Fault::Duplicate.on(Op::Append)]))
        .execute(&ann(), Deposit { amount: 5 })
        .await
        .unwrap();
    assert!(done.is_repeat());
    assert_eq!(done.events(), [Deposited { amount: 5 }]);
    assert_eq!(done.state().balance, 5);
}

#[tokio::test]
async fn facts_that_were_overtaken_are_sealed_anew_for_their_new_place() {
    let store = InMemoryEventStore::new();
    let plain = EventData::new("Deposited", 1, &br#"{"amount":2}"#[..]);
    let head = StreamHead::empty(stream("ann"));
    let id = foldstream::CommitId::random();
    let other = Append::after(head, id, foldstream::Timestamp::now(), [plain]);
    let (below, other) = (store.clone(), Mutex::new(Some(other)));
    let faults = Faults::none().with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Append(_)) = (moment, call)
            && let Some(other) = other.lock().unwrap().take()
        {
            let stored = tokio::task::unconstrained(below.append(&other)).now_or_never();
            assert!(matches!(stored, Some(Ok(AppendOutcome::Appended(_)))));
        }
    });
    let accounts = over(&store, &faults);
    accounts
        .append(&ann(), ExpectedVersion::Any, &[Deposited { amount: 5 }])
        .await
        .unwrap();
    assert_eq!(accounts.load(&ann()).await.unwrap().state().balance, 7);
}

#[tokio::test]
async fn an_idempotent_command_returns_its_stored_events_opened() {
    let store = InMemoryEventStore::new();
    let accounts = sealed_accounts(&store, &writing(&Vault::new()))
        .with_idempotency(InMemoryControlStore::new(), Duration::from_secs(60));
    for is_repeat in [false, true] {
        let done = accounts
            .execute_with(
                &ann(),
                Deposit { amount: 5 },
                Metadata::new().with_command_id("payment"),
            )
            .await
            .unwrap();
        assert_eq!(done.is_repeat(), is_repeat);
        assert_eq!(done.events(), [Deposited { amount: 5 }]);
        assert_eq!(done.state().balance, 5);
    }
    assert_eq!(forms(&store, "ann").await, [(Some("vault".into()), false)]);
}

#[tokio::test]
async fn a_transaction_seals_for_every_stream() {
    let store: Arc<InMemoryEventStore> = InMemoryEventStore::new();
    let shared: Arc<dyn EventStore> = store.clone();
    let accounts =
        Repository::<Account>::new(shared.clone()).with_payload_codecs(writing(&Vault::new()));
    let transaction = Transaction::new(shared);
    for (id, amount) in [("ann", 3), ("bob", 4)] {
        transaction
            .execute(&accounts, &id.into(), Deposit { amount })
            .await
            .unwrap();
    }
    transaction.commit().await.unwrap();
    for (id, amount) in [("ann", 3), ("bob", 4)] {
        assert_eq!(forms(&store, id).await, [(Some("vault".into()), false)]);
        let loaded = accounts.load(&id.into()).await.unwrap();
        assert_eq!(loaded.state().balance, amount);
    }
}
