//! The rules of the repository that depend on the stored form in DynamoDB.
use crate::support::*;
use foldstream::{
    Aggregate, Context, Decide, Decision, DomainEvent, ExpectedVersion, Repository, StreamId,
    Transaction, id,
};
use futures::future::join_all;
use std::{convert::Infallible, time::Duration};

id!(CounterId);
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart")]
enum CounterEvent {
    Counted {},
}
#[derive(Clone, Debug, Default, PartialEq)]
struct Counter {
    n: u64,
}
impl Aggregate for Counter {
    type Id = CounterId;
    type Event = CounterEvent;
    fn evolve(&mut self, CounterEvent::Counted {}: &CounterEvent) {
        self.n += 1;
    }
}
struct Count;
impl Decide<Count> for Counter {
    type Error = Infallible;
    fn decide(&self, _: &Count, _: &Context) -> Decision<Self, Infallible> {
        Ok(vec![CounterEvent::Counted {}])
    }
}

#[tokio::test]
async fn a_hundred_appends_to_any_version_at_once_from_one_repository_all_succeed() {
    let server = Server::start();
    let counters = Repository::<Counter>::new(server.stores().await.event_store());
    let id = CounterId::from("any");
    let one = [CounterEvent::Counted {}];
    let all = (0..100).map(|_| counters.append(&id, ExpectedVersion::Any, &one));
    for appended in join_all(all).await {
        appended.unwrap();
    }
    assert_eq!(counters.load(&id).await.unwrap().state().n, 100);
}

#[tokio::test]
async fn a_process_that_was_idle_while_its_table_was_restored_leaves_no_hole() {
    let server = Server::start();
    let stores = server.stores().await;
    let idle = Duration::from_millis(1);
    let live = Repository::<Counter>::new(stores.event_store())
        .with_cache(10)
        .with_confirm_after(idle);
    let id = CounterId::from("a");
    for _ in 0..5 {
        live.execute(&id, Count).await.unwrap();
    }
    // The backup is two commits old.
    let stream = StreamId::new("cart", "a").unwrap();
    for version in [4, 5] {
        delete_raw(stores.client(), &stream, version).await;
    }
    tokio::time::sleep(idle * 2).await;
    let done = live.execute(&id, Count).await.unwrap();
    assert_eq!((done.version().get(), done.state().n), (4, 4));
    let other = Repository::<Counter>::new(stores.event_store());
    assert_eq!(other.load(&id).await.unwrap().version().get(), 4);
}

#[tokio::test]
async fn two_handles_of_one_connection_are_one_store_to_a_transaction() {
    let server = Server::start();
    let stores = server.stores().await;
    let counters = Repository::<Counter>::new(stores.event_store());
    let both = Transaction::new(stores.event_store());
    for id in ["a", "b"] {
        both.execute(&counters, &id.into(), Count).await.unwrap();
    }
    assert_eq!(both.commit().await.unwrap().len(), 2);
    let elsewhere = Transaction::new(server.stores().await.event_store());
    let refused = elsewhere.execute(&counters, &"a".into(), Count).await;
    assert!(refused.is_err(), "{refused:?}");
}
