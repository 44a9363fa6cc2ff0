//! The steps of a repository before an append, taken without a repository.
mod read_in_pages;

use crate::{
    payload::Vault,
    support::{Account, AccountCommand, AccountEvent, stream},
};
use foldstream::{
    AppendError, CodecError, CommitId, DomainEvent, PayloadCodecs, Repository, StreamHead,
    Timestamp, Upcast, Upcasters,
    adapter::{decode_state, encode_events, encode_state, seal_append},
    ports::{Append, EventStore, EventStoreError, ReadFrom},
};
use foldstream_testkit::InMemoryEventStore;
use futures::TryStreamExt;

fn deposits(count: usize) -> Vec<AccountEvent> {
    vec![AccountEvent::Deposited { amount: 2 }; count]
}

fn append_of(events: &[AccountEvent]) -> Append {
    let encoded = encode_events(events, &Upcasters::new()).unwrap();
    let head = StreamHead::empty(stream("ann"));
    Append::after(head, CommitId::random(), Timestamp::now(), encoded)
}

#[tokio::test]
async fn encoded_and_sealed_events_are_what_a_repository_stores() {
    let codecs = PayloadCodecs::new().with_writer(Vault::new());
    let store = InMemoryEventStore::new();
    let accounts = Repository::<Account>::new(store.clone()).with_payload_codecs(codecs.clone());
    let deposit = AccountCommand::Deposit { amount: 2 };
    accounts.execute(&"ann".into(), deposit).await.unwrap();
    let mut commits = store.read(&stream("ann"), ReadFrom::Newest, None);
    let stored = commits.try_next().await.unwrap().unwrap();
    // A payload is bound to its event id, and so to the commit.
    let mut append = append_of(&deposits(1));
    append.commit_id = stored.id;
    let sealed = seal_append(append, &codecs).await.unwrap();
    assert_eq!(sealed.events[0].codec.as_deref(), Some("vault"));
    assert_eq!(sealed.events, stored.events);
}

#[tokio::test]
async fn too_many_events_are_refused_and_none_is_left_out() {
    for codecs in [
        PayloadCodecs::new(),
        PayloadCodecs::new().with_writer(Vault::new()),
    ] {
        let most = append_of(&deposits(Append::MAX_EVENTS));
        let sealed = seal_append(most, &codecs).await.unwrap();
        assert_eq!(sealed.events.len(), Append::MAX_EVENTS);
        let more = append_of(&deposits(Append::MAX_EVENTS + 1));
        let refused = seal_append(more, &codecs).await;
        assert!(
            matches!(
                &refused,
                Err(AppendError::Store(EventStoreError::Invalid { .. }))
            ),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_payload_that_its_codecs_do_not_open_is_refused() {
    let vault = Vault::new();
    vault.shred("ann");
    let codecs = PayloadCodecs::new().with_writer(vault);
    assert!(seal_append(append_of(&deposits(1)), &codecs).await.is_err());
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "box", upcasters = older)]
enum BoxEvent {
    Filled { count: u32 },
}
fn older() -> Upcasters {
    Upcasters::new().with("box", "Viewed", 1, |_| Ok(Upcast::Retired))
}

#[test]
fn events_are_read_back_through_the_upcasters_of_their_type_and_those_given() {
    let filled = [BoxEvent::Filled { count: 1 }];
    assert_eq!(encode_events(&filled, &Upcasters::new()).unwrap().len(), 1);
    let retiring = Upcasters::new().with("box", "Filled", 1, |_| Ok(Upcast::Retired));
    let error = encode_events(&filled, &retiring).unwrap_err();
    assert!(
        matches!(error, AppendError::Codec(CodecError::Encode { .. })),
        "{error:?}"
    );
    // The type has an upcaster for this name already.
    let error = encode_events(&filled, &older()).unwrap_err();
    assert!(matches!(error, AppendError::Load(_)), "{error:?}");
}

#[test]
fn a_state_is_read_back_as_it_was_encoded() {
    let state = Account {
        balance: 7,
        events: 2,
    };
    let stored = encode_state(&state).unwrap();
    assert_eq!(decode_state::<Account>(&stored).unwrap(), state);
    assert!(decode_state::<Account>(b"{}").is_err());
}
