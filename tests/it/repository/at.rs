//! Commands at a version that the caller expects.
use super::*;
use foldstream::adapter::observed_head;
use foldstream_testkit::InMemoryControlStore;

/// Runs two processes, one with a cache and one without. Returns the final balance that each sees.
#[tokio::test]
async fn a_command_is_decided_at_the_version_that_is_expected_or_is_a_conflict() {
    for cache in [0, 100] {
        let store = InMemoryEventStore::new();
        let mine = accounts(&store).with_cache(cache);
        let others = accounts(&store);
        let conflict = |result: Result<_, _>| match result {
            Err(ExecuteError::Conflict(conflict)) => (conflict.expected.get(), conflict.actual),
            other => panic!("{other:?}"),
        };
        let first = mine
            .execute_at(&ann(), ExpectedVersion::NoStream, Deposit { amount: 5 })
            .await
            .unwrap();
        let by_number = mine
            .execute_at(&ann(), first.version(), Deposit { amount: 5 })
            .await
            .unwrap();
        let by_head = mine
            .execute_at(&ann(), by_number.head(), DepositOnes { times: 2 })
            .await
            .unwrap();
        assert_eq!((by_head.version().get(), by_head.state().balance), (4, 12));

        let at = async |expected: ExpectedVersion| {
            let result = mine
                .execute_at(&ann(), expected, Withdraw { amount: 100 })
                .await;
            conflict(result)
        };
        let four = Some(Version::new(4));
        assert_eq!(at(ExpectedVersion::NoStream).await, (0, four));
        assert_eq!(at(Version::new(2).into()).await, (2, four));
        // Version 3 exists, but no commit ends there.
        assert_eq!(at(Version::new(3).into()).await, (3, four));
        assert_eq!(at(Version::new(9).into()).await, (9, four));
        assert_eq!(at(first.head().into()).await, (1, four));
        // The same version in another history.
        let (stream, version) = (stream("ann"), Version::new(4));
        let forked = observed_head(stream, version, CommitId::random(), Timestamp::now());
        assert_eq!(at(forked.into()).await, (4, four));

        // This process has not seen the other writer's commit.
        others.execute(&ann(), Deposit { amount: 1 }).await.unwrap();
        assert_eq!(at(Version::new(4).into()).await, (4, Some(Version::new(5))));
        let stale = mine
            .execute_at(&ann(), by_head.head(), Deposit { amount: 1 })
            .await;
        assert_eq!(conflict(stale).0, 4);
        let done = mine
            .execute_at(&ann(), Version::new(5), Withdraw { amount: 13 })
            .await
            .unwrap();
        assert_eq!(done.state().balance, 0);
        let refused = mine
            .execute_at(&ann(), done.version(), Withdraw { amount: 1 })
            .await;
        assert!(matches!(refused, Err(ExecuteError::Rejected(_))));
    }
}

#[tokio::test]
async fn a_command_at_the_head_of_another_stream_is_invalid() {
    let accounts = accounts(&InMemoryEventStore::new());
    let other = StreamHead::empty(stream("bob"));
    let invalid = accounts
        .execute_at(&ann(), other, Deposit { amount: 1 })
        .await;
    assert!(
        matches!(
            invalid,
            Err(ExecuteError::Store(EventStoreError::Invalid { .. }))
        ),
        "{invalid:?}"
    );
}

#[tokio::test]
async fn a_command_with_an_id_that_was_stored_at_its_version_is_answered_although_the_stream_moved()
{
    for cache in [0, 100] {
        let store = InMemoryEventStore::new();
        let accounts = accounts(&store)
            .with_cache(cache)
            .with_idempotency(InMemoryControlStore::new(), Duration::from_secs(3600));
        let pay = async |id: &str, amount| {
            accounts
                .execute_at_with(
                    &ann(),
                    ExpectedVersion::NoStream,
                    Deposit { amount },
                    Metadata::new().with_command_id(id),
                )
                .await
        };
        assert!(!pay("p", 5).await.unwrap().is_repeat());
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
        let again = pay("p", 5).await.unwrap();
        assert!(again.is_repeat());
        assert_eq!((again.state().balance, again.version().get()), (6, 2));
        // Another command meets the conflict, which is not recorded.
        for _ in 0..2 {
            let conflict = pay("q", 1).await;
            assert!(
                matches!(conflict, Err(ExecuteError::Conflict(_))),
                "{conflict:?}"
            );
        }
        assert_eq!(commits(&store).await.len(), 2);
    }
}
