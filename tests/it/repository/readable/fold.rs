//! Events that the fold does not take.
use super::*;

#[tokio::test]
async fn an_event_that_the_fold_does_not_take_is_not_stored() {
    let id = OddId::from("x");
    for cache in [0, 10] {
        let store = InMemoryEventStore::new();
        let odd = Repository::<Odd>::new(store.clone())
            .with_cache(cache)
            .with_idempotency(InMemoryControlStore::new(), Duration::from_secs(3600));
        odd.execute(&id, Do(vec![Counted { by: 1 }])).await.unwrap();
        let events = || Do(vec![Counted { by: 2 }, Counted { by: 99 }]);

        let done = odd.execute(&id, events()).await;
        let Err(ExecuteError::Fold(error)) = done else {
            panic!("{done:?}");
        };
        assert_eq!(
            error.to_string(),
            "`evolve` panicked on event 3 of odd#x, which is Counted"
        );
        let metadata = Metadata::new().with_command_id("c");
        let once = odd.execute_with(&id, events(), metadata).await;
        assert!(matches!(once, Err(ExecuteError::Fold(_))), "{once:?}");
        let transaction = Transaction::new(store.clone());
        let told = transaction.execute(&odd, &id, events()).await;
        assert!(matches!(told, Err(ExecuteError::Fold(_))));

        assert_eq!(stored_odd(&store).await, 1);
        // The state that the fold left half done is forgotten.
        let next = odd.execute(&id, Do(vec![Counted { by: 3 }])).await.unwrap();
        assert_eq!(next.state().0, [Counted { by: 1 }, Counted { by: 3 }]);
    }
}

#[tokio::test]
async fn a_stored_event_that_the_fold_does_not_take_is_an_error_of_the_load() {
    let id = OddId::from("x");
    let odd = Repository::<Odd>::new(InMemoryEventStore::new());
    // An append does not load the state, so it cannot fold.
    odd.append(&id, ExpectedVersion::Any, &[Counted { by: 99 }])
        .await
        .unwrap();
    let loaded = odd.load(&id).await;
    assert!(
        matches!(&loaded, Err(LoadError::Fold(e)) if e.version.get() == 1),
        "{loaded:?}"
    );
}

/// The state that a command leaves after each outcome of its append is the state of a load.
#[tokio::test]
async fn a_state_that_was_folded_ahead_is_kept_only_if_its_events_were_stored() {
    let id = OddId::from("x");
    let count = |by| Do(vec![Counted { by }]);
    for fault in [
        Fault::Unavailable,
        Fault::LoseReply,
        Fault::LoseRequest,
        Fault::Throttled(None),
    ] {
        let inner = InMemoryEventStore::new();
        let faults = Faults::seeded(1).with(fault.clone().on(Op::Append).at(2));
        let odd = Repository::<Odd>::new(faults.event_store(inner.clone())).with_cache(10);
        odd.execute(&id, count(1)).await.unwrap();
        let second = odd.execute(&id, count(2)).await;
        assert!(second.is_err(), "{fault:?}");
        let third = odd.execute(&id, count(3)).await.unwrap();
        let fresh = Repository::<Odd>::new(inner).load(&id).await.unwrap();
        assert_eq!(third.state(), fresh.state(), "{fault:?}");
    }
    // Conflicts: another process writes before every attempt of the first three.
    let store = InMemoryEventStore::new();
    let (cached, other) = (
        Repository::<Odd>::new(store.clone()).with_cache(10),
        Repository::<Odd>::new(store.clone()),
    );
    for by in 1..5 {
        other.execute(&id, count(by)).await.unwrap();
        let done = cached.execute(&id, count(by)).await.unwrap();
        let fresh = other.load(&id).await.unwrap();
        assert_eq!((done.state(), done.head()), (fresh.state(), fresh.head()));
    }
}
