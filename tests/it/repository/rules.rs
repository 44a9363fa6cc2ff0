//! The rules of load, execute, append, history and settle.
use super::*;
use foldstream_testkit::faults::{Call, Moment};

#[tokio::test]
async fn a_stream_that_does_not_exist_is_the_default_state_at_version_0() {
    let loaded = accounts(&InMemoryEventStore::new())
        .load(&ann())
        .await
        .unwrap();
    assert_eq!(
        (loaded.state(), loaded.version()),
        (&Account::default(), Version::NONE)
    );
}

#[tokio::test]
async fn a_command_stores_its_facts_and_returns_the_new_state() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    accounts
        .execute(&ann(), Deposit { amount: 10 })
        .await
        .unwrap();
    let done = accounts
        .execute(&ann(), Withdraw { amount: 4 })
        .await
        .unwrap();
    assert_eq!((done.state().balance, done.version().get()), (6, 2));
    assert_eq!(done.events(), [AccountEvent::Withdrawn { amount: 4 }]);
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!((loaded.state(), loaded.head()), (done.state(), done.head()));
}

#[tokio::test]
async fn a_rejected_command_and_one_with_nothing_to_do_store_nothing() {
    let store = InMemoryEventStore::new();
    let rejected = accounts(&store)
        .execute(&ann(), Withdraw { amount: 1 })
        .await;
    assert!(matches!(
        rejected,
        Err(ExecuteError::Rejected(InsufficientFunds))
    ));
    let nothing = accounts(&store)
        .execute(&ann(), Deposit { amount: 0 })
        .await
        .unwrap();
    assert!(nothing.events().is_empty());
    assert!(commits(&store).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_one_stream_lose_nothing() {
    let store = InMemoryEventStore::new();
    let retry = ConflictRetry::default()
        .with_max_elapsed(std::time::Duration::from_secs(60))
        .with_backoff(foldstream::Backoff::new(Duration::ZERO, Duration::ZERO));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let accounts = accounts(&store).with_conflict_retry(retry);
        tasks.spawn(async move {
            for _ in 0..25 {
                accounts
                    .execute(&ann(), Deposit { amount: 1 })
                    .await
                    .unwrap();
            }
        });
    }
    tasks.join_all().await;
    let loaded = accounts(&store).load(&ann()).await.unwrap();
    assert_eq!((loaded.state().balance, loaded.version().get()), (200, 200));
}

/// Another writer withdraws just before each of the first appends.
fn overtaken(times: u32) -> (Arc<InMemoryEventStore>, Repository<Account>) {
    let (inner, left) = (InMemoryEventStore::new(), AtomicU32::new(times));
    let below = inner.clone();
    let faults = Faults::none().with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Append(append)) = (moment, call)
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
        {
            let other = json("Withdrawn", 1, r#"{"amount":6}"#);
            let (head, id) = (append.head.clone(), CommitId::random());
            store_at_once(&below, &Append::after(head, id, Timestamp::now(), [other]));
        }
    });
    let accounts = Repository::new(faults.event_store(inner.clone()));
    (inner, accounts)
}

#[tokio::test]
async fn a_conflict_decides_again_on_the_newer_state() {
    let (store, overtaken) = overtaken(1);
    accounts(&store)
        .execute(&ann(), Deposit { amount: 10 })
        .await
        .unwrap();
    let refused = overtaken.execute(&ann(), Withdraw { amount: 6 }).await;
    assert!(
        matches!(refused, Err(ExecuteError::Rejected(InsufficientFunds))),
        "{refused:?}"
    );
    assert_eq!(
        accounts(&store).load(&ann()).await.unwrap().state().balance,
        4
    );
}

#[tokio::test(start_paused = true)]
async fn conflicts_beyond_the_policy_are_an_error() {
    let (store, overtaken) = overtaken(2);
    accounts(&store)
        .execute(&ann(), Deposit { amount: 100 })
        .await
        .unwrap();
    let shortest = std::time::Duration::from_millis(1);
    let overtaken =
        overtaken.with_conflict_retry(ConflictRetry::default().with_max_elapsed(shortest));
    let conflict = overtaken.execute(&ann(), Deposit { amount: 1 }).await;
    assert!(
        matches!(conflict, Err(ExecuteError::Conflict(_))),
        "{conflict:?}"
    );
    assert_eq!(commits(&store).await.len(), 3);
}

#[tokio::test]
async fn where_the_commit_was_stored_before_the_stored_facts_count() {
    // The slot already holds this commit, with events that an earlier attempt decided.
    let inner = InMemoryEventStore::new();
    let below = inner.clone();
    let faults = Faults::none().with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Append(append)) = (moment, call) {
            let mut earlier = (*append).clone();
            earlier.events = [json("Deposited", 1, r#"{"amount":7}"#)].into();
            store_at_once(&below, &earlier);
        }
    });
    let accounts = Repository::<Account>::new(faults.event_store(inner));
    let done = accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    assert!(done.is_repeat());
    assert_eq!(done.events(), [AccountEvent::Deposited { amount: 7 }]);
    assert_eq!(done.state().balance, 7);
}

fn pending(
    result: Result<foldstream::Executed<Account>, ExecuteError<InsufficientFunds>>,
) -> PendingAppend {
    match result {
        Err(ExecuteError::Store(EventStoreError::Unavailable {
            pending: Some(pending),
            ..
        })) => pending,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_settled_by_what_is_in_the_slot() {
    let (store, applied) = faulty(&Faults::script([Fault::LoseReply.on(Op::Append)]));
    let unknown = pending(applied.execute(&ann(), Deposit { amount: 1 }).await);
    let head = commits(&store).await[0].head();
    assert_eq!(
        applied.settle(&unknown).await.unwrap(),
        Settled::Applied(vec![head])
    );

    let (store, lost) = faulty(&Faults::script([Fault::LoseRequest.on(Op::Append)]));
    let unknown = pending(lost.execute(&ann(), Deposit { amount: 1 }).await);
    assert_eq!(lost.settle(&unknown).await.unwrap(), Settled::Open);
    accounts(&store)
        .execute(&ann(), Deposit { amount: 5 })
        .await
        .unwrap();
    assert_eq!(lost.settle(&unknown).await.unwrap(), Settled::Superseded);
}

#[tokio::test]
async fn a_commits_time_is_never_below_the_previous_commits() {
    let store = InMemoryEventStore::new();
    let clock = ManualClock::at(Timestamp::from_micros(2_000));
    let accounts = accounts(&store).with_clock(clock.clone());
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    clock.set(Timestamp::from_micros(1_000));
    accounts
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    let times: Vec<_> = commits(&store)
        .await
        .iter()
        .map(|c| c.recorded_at.as_micros())
        .collect();
    assert_eq!(times, [2_000, 2_000]);
}

#[tokio::test]
async fn an_append_holds_what_the_caller_expects() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    let one = [AccountEvent::Deposited { amount: 1 }];
    let two = [one[0].clone(), one[0].clone()];
    let first = accounts
        .append(&ann(), ExpectedVersion::NoStream, &two)
        .await
        .unwrap();
    assert_eq!(first.version().get(), 2);
    let conflict = |result| matches!(result, Err(AppendError::Conflict(_)));
    assert!(conflict(
        accounts
            .append(&ann(), ExpectedVersion::NoStream, &one)
            .await
    ));
    // Version 1 exists, but no commit ends there.
    assert!(conflict(
        accounts.append(&ann(), Version::new(1), &one).await
    ));
    assert!(conflict(
        accounts.append(&ann(), Version::new(3), &one).await
    ));
    let second = accounts
        .append(&ann(), Version::new(2), &one)
        .await
        .unwrap();
    assert!(conflict(accounts.append(&ann(), &first, &one).await));
    accounts.append(&ann(), second, &one).await.unwrap();
    let last = accounts
        .append(&ann(), ExpectedVersion::Any, &one)
        .await
        .unwrap();
    assert_eq!(last.version().get(), 5);
    assert_eq!(accounts.load(&ann()).await.unwrap().version().get(), 5);
}

#[tokio::test]
async fn an_append_of_nothing_or_after_another_streams_head_is_invalid() {
    let accounts = accounts(&InMemoryEventStore::new());
    let invalid = |result| {
        matches!(
            result,
            Err(AppendError::Store(EventStoreError::Invalid { .. }))
        )
    };
    assert!(invalid(
        accounts.append(&ann(), ExpectedVersion::Any, &[]).await
    ));
    let other = StreamHead::empty(stream("bob"));
    let one = [AccountEvent::Deposited { amount: 1 }];
    assert!(invalid(accounts.append(&ann(), other, &one).await));
}

#[tokio::test]
async fn history_comes_decoded_with_its_headers() {
    let store = InMemoryEventStore::new();
    let metadata = Metadata::new().with_correlation_id("r-1").with_actor("ann");
    let done = accounts(&store)
        .execute_with(&ann(), DepositOnes { times: 3 }, metadata.clone())
        .await
        .unwrap();
    let history: Vec<_> = accounts(&store)
        .history(&ann())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(history.len(), 3);
    for (i, recorded) in history.iter().enumerate() {
        let header = &recorded.header;
        assert_eq!(header.version.get(), i as u64 + 1);
        assert_eq!(header.commit_last, done.version());
        assert_eq!(
            header.event_id.commit_id(),
            done.head().commit_id().unwrap()
        );
        assert_eq!(header.metadata, metadata);
        assert_eq!(recorded.event, AccountEvent::Deposited { amount: 1 });
    }
}

#[tokio::test]
async fn a_retired_event_keeps_its_version() {
    let store = InMemoryEventStore::new();
    let audited = json("Audited", 1, "{}");
    let deposited = json("Deposited", 1, r#"{"amount":3}"#);
    store_raw(&store, vec![audited.clone(), deposited, audited]).await;
    let upcasters = Upcasters::new().with("account", "Audited", 1, |_| Ok(Upcast::Retired));
    let accounts = accounts(&store).with_upcasters(upcasters);
    let loaded = accounts.load(&ann()).await.unwrap();
    assert_eq!(
        (
            loaded.state().balance,
            loaded.state().events,
            loaded.version().get()
        ),
        (3, 1, 3)
    );
    let history: Vec<_> = accounts.history(&ann()).try_collect().await.unwrap();
    assert_eq!(
        history
            .iter()
            .map(|r| r.header.version.get())
            .collect::<Vec<_>>(),
        [2]
    );
    assert_eq!(
        accounts
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap()
            .version()
            .get(),
        4
    );
}

#[tokio::test]
async fn events_that_cannot_be_read_are_typed_errors() {
    async fn load(event: EventData) -> CodecError {
        let store = InMemoryEventStore::new();
        store_raw(&store, vec![event]).await;
        match accounts(&store).load(&ann()).await {
            Err(LoadError::Codec {
                source, version, ..
            }) if version.get() == 1 => source,
            other => panic!("{other:?}"),
        }
    }
    let unknown = load(json("Frozen", 1, "{}")).await;
    assert!(matches!(unknown, CodecError::UnknownEvent { .. }));
    let newer = load(json("Deposited", 2, r#"{"amount":1}"#)).await;
    assert!(matches!(
        newer,
        CodecError::TooNew {
            found: 2,
            known: 1,
            ..
        }
    ));
    let foreign = load(json("Deposited", 1, r#"{"amount":"x"}"#)).await;
    assert!(matches!(foreign, CodecError::Decode { .. }));
}

#[tokio::test]
async fn a_history_with_a_hole_is_an_error_and_never_a_shorter_history() {
    let (store, holey) = faulty(&Faults::script([
        Fault::HoleAt(Version::new(2)).on(Op::Read)
    ]));
    for _ in 0..3 {
        accounts(&store)
            .execute(&ann(), Deposit { amount: 1 })
            .await
            .unwrap();
    }
    let error = holey.load(&ann()).await.unwrap_err();
    assert!(
        matches!(error, LoadError::NotContiguous { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn metadata_that_no_bus_could_carry_is_refused_before_it_is_stored() {
    let store = InMemoryEventStore::new();
    let metadata = Metadata::new().with("a\0b", "x");
    let refused = accounts(&store)
        .execute_with(&ann(), Deposit { amount: 1 }, metadata)
        .await;
    assert!(matches!(
        refused,
        Err(ExecuteError::Store(EventStoreError::Invalid { .. }))
    ));
    assert!(commits(&store).await.is_empty());
}
