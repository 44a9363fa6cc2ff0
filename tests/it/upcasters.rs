//! Upcasters that belong to the event type.
use foldstream::{
    Aggregate, AsOf, CommitId, Decoded, DomainEvent, EventSet, ExpectedVersion, InvalidUpcasters,
    LoadError, Repository, StreamHead, StreamId, Timestamp, Upcast, Upcasters, Version, event_set,
    id,
    ports::{Append, AppendOutcome, EventData, EventStore},
};
use foldstream_testkit::InMemoryEventStore;
use futures::TryStreamExt;
use std::sync::Arc;

id!(BoxId);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "box", upcasters = Self::older)]
pub(crate) enum BoxEvent {
    #[event(version = 2)]
    Filled {
        with: String,
        count: u32,
    },
    Sealed,
}
impl BoxEvent {
    fn older() -> Upcasters {
        Upcasters::new()
            .with_json("box", "Filled", 1, |payload| {
                payload["count"] = 1.into();
                Ok(())
            })
            .with("box", "Viewed", 1, |_| Ok(Upcast::Retired))
    }
}
#[derive(Clone, Debug, Default, PartialEq)]
struct Chest(Vec<BoxEvent>);
impl Aggregate for Chest {
    type Id = BoxId;
    type Event = BoxEvent;
    fn evolve(&mut self, event: &BoxEvent) {
        self.0.push(event.clone());
    }
}
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "lid")]
enum LidEvent {
    Closed,
}
event_set!(
    enum AnyEvent {
        Chest(BoxEvent),
        Lid(LidEvent),
    }
);

pub(crate) fn filled(count: u32) -> BoxEvent {
    let with = "nails".into();
    BoxEvent::Filled { with, count }
}
fn ann() -> BoxId {
    "ann".into()
}

/// Creates a stream with an older event, a retired one and a current one.
pub(crate) async fn old_stream() -> Arc<InMemoryEventStore> {
    let store = InMemoryEventStore::new();
    let empty = StreamHead::empty(StreamId::new("box", "ann").unwrap());
    let events = [
        EventData::new("Filled", 1, r#"{"with":"nails"}"#),
        EventData::new("Viewed", 1, "{}"),
        EventData::new("Filled", 2, r#"{"with":"nails","count":7}"#),
    ];
    let append = Append::after(empty, CommitId::random(), Timestamp::now(), events);
    let appended = store.append(&append).await.unwrap();
    assert!(matches!(appended, AppendOutcome::Appended(_)));
    store
}

#[tokio::test]
async fn every_read_of_a_repository_uses_the_upcasters_of_the_type() {
    let chests = Repository::<Chest>::new(old_stream().await);
    let loaded = chests.load(&ann()).await.unwrap();
    assert_eq!(loaded.state().0, [filled(1), filled(7)]);
    let first = AsOf::Version(Version::new(1));
    assert_eq!(
        chests.load_at(&ann(), first).await.unwrap().state().0,
        [filled(1)]
    );
    let history: Vec<_> = chests.history(&ann()).try_collect().await.unwrap();
    let events: Vec<_> = history.into_iter().map(|recorded| recorded.event).collect();
    assert_eq!(events, [filled(1), filled(7)]);
    // Given upcasters are added to those of the type.
    let more = Upcasters::new().with("box", "Sealed", 9, |_| Ok(Upcast::Retired));
    let both = chests.with_upcasters(more).load(&ann()).await.unwrap();
    assert_eq!(both.state().0, [filled(1), filled(7)]);
}

#[tokio::test]
async fn a_name_that_the_type_lifts_itself_cannot_be_given_to_a_repository() {
    let given = Upcasters::new().with_json("box", "Filled", 3, |_| Ok(()));
    let chests = Repository::<Chest>::new(InMemoryEventStore::new()).with_upcasters(given);
    let expected = InvalidUpcasters::LiftedByItsType {
        aggregate: "box".into(),
        name: "Filled".into(),
    };
    // Every call fails, also for a stream without events.
    let loaded = chests.load(&ann()).await;
    assert!(
        matches!(&loaded, Err(LoadError::Upcasters(e)) if *e == expected),
        "{loaded:?}"
    );
    let stored = chests
        .append(&ann(), ExpectedVersion::Any, &[filled(1)])
        .await;
    let text = foldstream::chain(&stored.unwrap_err());
    assert!(
        text.contains("box.Filled") && text.contains("`with_upcasters`"),
        "{text}"
    );
    assert!(
        chests
            .load_at(&ann(), AsOf::Version(Version::new(1)))
            .await
            .is_err()
    );
    assert!(chests.history(&ann()).try_next().await.is_err());
}

#[tokio::test]
async fn upcasters_of_a_type_for_another_aggregate_are_refused() {
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "other", upcasters = BoxEvent::older)]
    enum OtherEvent {
        Made,
    }
    let invalid = foldstream::adapter::upcasters_of::<OtherEvent>(&Upcasters::new()).unwrap_err();
    assert!(matches!(invalid, InvalidUpcasters::Foreign { aggregate, .. } if aggregate == "box"));
}

#[test]
fn a_set_has_the_upcasters_of_all_its_types() {
    let all = AnyEvent::upcasters();
    assert!(all.has_step("box", "Filled", 1) && all.has_step("box", "Viewed", 1));
    let decoded = AnyEvent::decode_from("lid", "Closed", 1, b"{}").unwrap();
    assert_eq!(decoded, Decoded::Event(AnyEvent::Lid(LidEvent::Closed)));
}
