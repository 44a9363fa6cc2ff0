//! The states of a stream, event by event.
use super::*;
use crate::payload::{Vault, sealed_accounts, writing};
use foldstream::{
    Aggregate, AsOf, StateStep, StepEffect, TimelineError, TimelineStep, chain, ports::BoxStream,
};
use futures::StreamExt;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

type Steps<'a, T> = BoxStream<'a, Result<T, TimelineError>>;

/// Returns the steps, and the error with which they end.
async fn ended<T>(mut steps: Steps<'_, T>) -> (Vec<T>, Option<TimelineError>) {
    let mut found = Vec::new();
    while let Some(step) = steps.next().await {
        match step {
            Ok(step) => found.push(step),
            Err(error) => {
                assert!(steps.next().await.is_none(), "the error is the last item");
                return (found, Some(error));
            }
        }
    }
    (found, None)
}

/// Returns the version, the effect and the differences of each step.
fn lines(steps: &[TimelineStep]) -> Vec<String> {
    let text = |side: &Option<Value>| side.as_ref().map_or("-".into(), Value::to_string);
    let line = |step: &TimelineStep| {
        let differences = step.differences.iter();
        let differences: Vec<_> = differences
            .map(|of| format!("{} {} {}", of.path, text(&of.before), text(&of.after)))
            .collect();
        let (version, effect) = (step.header.version, step.effect);
        format!("{version} {effect:?}: {}", differences.join(", "))
    };
    steps.iter().map(line).collect()
}

fn versions(steps: &[StateStep<Account>]) -> Vec<u64> {
    steps.iter().map(|step| step.header.version.get()).collect()
}

#[tokio::test]
async fn each_event_has_its_facts_the_state_after_it_and_what_it_changed() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    let metadata = Metadata::new().with_command_id("pay-7").with_actor("bob");
    let deposit = Deposit { amount: 5 };
    accounts
        .execute_with(&ann(), deposit, metadata)
        .await
        .unwrap();
    accounts
        .execute(&ann(), DepositOnes { times: 2 })
        .await
        .unwrap();
    accounts
        .execute(&ann(), Withdraw { amount: 7 })
        .await
        .unwrap();

    let (steps, error) = ended(accounts.timeline(&ann(), ..)).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        lines(&steps),
        [
            "1 Folded: /balance 0 5, /events 0 1",
            "2 Folded: /balance 5 6, /events 1 2",
            "3 Folded: /balance 6 7, /events 2 3",
            "4 Folded: /balance 7 0, /events 3 4",
        ]
    );
    assert_eq!(steps[2].state, json!({ "balance": 7, "events": 3 }));
    let header = &steps[0].header;
    assert_eq!(
        (&*header.name, header.stream.clone()),
        ("Deposited", stream("ann"))
    );
    assert_eq!(header.metadata.command_id().unwrap().as_str(), "pay-7");
    assert_eq!(header.metadata.actor().unwrap().as_str(), "bob");
    assert_eq!(steps[1].header.commit_last, Version::new(3));
    assert_eq!(
        steps[3].header.recorded_at,
        commits(&store).await[2].recorded_at
    );
}

#[tokio::test]
async fn each_state_is_that_of_a_load_at_its_version() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    for amount in 1..5 {
        accounts.execute(&ann(), Deposit { amount }).await.unwrap();
        accounts
            .execute(&ann(), DepositOnes { times: 3 })
            .await
            .unwrap();
    }
    let steps: Vec<_> = accounts.states(&ann(), ..).try_collect().await.unwrap();
    assert_eq!(steps.len(), 16);
    for step in steps {
        let moment = AsOf::Version(step.header.version);
        let then = accounts.load_at(&ann(), moment).await.unwrap();
        assert_eq!(*then.state(), step.state, "{}", step.header.version);
    }
}

#[tokio::test]
async fn a_range_has_its_own_steps_and_nothing_is_read_after_it() {
    let store = InMemoryEventStore::new();
    let accounts = accounts(&store);
    for _ in 0..3 {
        accounts
            .execute(&ann(), DepositOnes { times: 2 })
            .await
            .unwrap();
    }
    let all = commits(&store).await;
    let events = all.iter().flat_map(|commit| commit.events.iter().cloned());
    let broken = InMemoryEventStore::new();
    let events = events.chain([json("Unknown", 1, "{}")]).collect();
    store_raw(&broken, events).await;
    let broken = super::accounts(&broken);
    let v = Version::new;
    let (steps, error) = ended(broken.timeline(&ann(), v(3)..=v(4))).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        lines(&steps),
        [
            "3 Folded: /balance 2 3, /events 2 3",
            "4 Folded: /balance 3 4, /events 3 4",
        ]
    );
    for (range, expected) in [
        (accounts.states(&ann(), v(5)..), vec![5, 6]),
        (accounts.states(&ann(), ..v(3)), vec![1, 2]),
        (accounts.states(&ann(), v(2)..v(3)), vec![2]),
        (accounts.states(&ann(), v(7)..), vec![]),
        (accounts.states(&ann(), ..v(1)), vec![]),
        (accounts.states(&ann(), v(0)..=v(0)), vec![]),
    ] {
        let (steps, error) = ended(range).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(versions(&steps), expected);
    }
}

/// A store of which a test counts the commits that were taken from its reads.
struct Counted(Arc<AtomicU32>);

#[async_trait]
impl EventStoreLayer for Counted {
    async fn read<'a>(
        &'a self,
        inner: &'a Arc<dyn EventStore>,
        read: Read,
    ) -> Result<Commits<'a>, EventStoreError> {
        let count = |_: &_| _ = self.0.fetch_add(1, Ordering::SeqCst);
        let commits = inner.read(&read.stream, read.from, read.limit);
        Ok(commits.inspect(count).boxed().into())
    }
}

#[tokio::test]
async fn commits_are_taken_only_as_their_steps_are() {
    let taken = Arc::new(AtomicU32::new(0));
    let (_, accounts) = with_layer(Counted(taken.clone()));
    for _ in 0..10 {
        accounts
            .execute(&ann(), DepositOnes { times: 2 })
            .await
            .unwrap();
    }
    taken.store(0, Ordering::SeqCst);
    let mut steps = accounts.timeline(&ann(), ..);
    assert_eq!(taken.load(Ordering::SeqCst), 0);
    for step in 1..=20u32 {
        steps.next().await.unwrap().unwrap();
        assert_eq!(taken.load(Ordering::SeqCst), step.div_ceil(2));
    }
    drop(steps);
    taken.store(0, Ordering::SeqCst);
    let first = ..=Version::new(4);
    accounts
        .timeline(&ann(), first)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
    assert_eq!(taken.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn retired_events_and_those_that_are_lifted_are_as_everywhere() {
    let store = InMemoryEventStore::new();
    let events = vec![
        json("Deposited", 1, r#"{"amount":5}"#),
        json("Greeted", 1, "{}"),
        json("PaidIn", 1, r#"{"amount":2}"#),
    ];
    store_raw(&store, events).await;
    let upcasters = Upcasters::new()
        .with("account", "Greeted", 1, |_| Ok(Upcast::Retired))
        .with("account", "PaidIn", 1, |payload| {
            Ok(Upcast::Renamed {
                name: "Deposited".into(),
                schema_version: 1,
                payload,
            })
        });
    let accounts = accounts(&store).with_upcasters(upcasters);
    let (steps, error) = ended(accounts.timeline(&ann(), ..)).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        lines(&steps),
        [
            "1 Folded: /balance 0 5, /events 0 1",
            "2 Retired: ",
            "3 Folded: /balance 5 7, /events 1 2",
        ]
    );
    assert_eq!(steps[1].state, steps[0].state);
    let names: Vec<_> = steps.iter().map(|step| &*step.header.name).collect();
    assert_eq!(
        names,
        ["Deposited", "Greeted", "PaidIn"],
        "as they are stored"
    );
}

#[tokio::test]
async fn a_stream_of_which_a_part_is_shredded_goes_on() {
    let (store, vault) = (InMemoryEventStore::new(), Vault::new());
    let accounts = sealed_accounts(&store, &writing(&vault));
    for amount in [5, 1, 7] {
        accounts.execute(&ann(), Deposit { amount }).await.unwrap();
    }
    vault.shred("ann");
    let (steps, error) = ended(accounts.timeline(&ann(), ..)).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(
        lines(&steps),
        [
            "1 Shredded: ",
            "2 Folded: /balance 0 1, /events 0 1",
            "3 Shredded: "
        ]
    );
}

#[tokio::test]
async fn a_stream_of_which_everything_is_shredded_was_deleted() {
    let (store, vault) = (InMemoryEventStore::new(), Vault::new());
    let accounts = sealed_accounts(&store, &writing(&vault));
    for amount in [5, 7] {
        accounts.execute(&ann(), Deposit { amount }).await.unwrap();
    }
    vault.shred("ann");
    let (steps, error) = ended(accounts.states(&ann(), ..)).await;
    assert!(steps.iter().all(|step| step.effect == StepEffect::Shredded));
    assert_eq!(versions(&steps), [1, 2]);
    let Some(TimelineError::Deleted {
        stream: of,
        version,
    }) = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((of, version), (stream("ann"), Version::new(2)));
    // A range has its end, and what is known of it.
    let later = accounts.states(&ann(), Version::new(2)..);
    assert!(matches!(
        ended(later).await.1,
        Some(TimelineError::Deleted { .. })
    ));
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_an_error_and_not_an_empty_history() {
    let accounts = accounts(&InMemoryEventStore::new());
    for steps in [
        accounts.timeline(&ann(), ..),
        accounts.timeline(&ann(), Version::new(3)..),
        accounts.timeline(&ann(), ..Version::new(1)),
    ] {
        let (_, error) = ended(steps).await;
        let Some(TimelineError::UnknownStream { stream: of }) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*of, stream("ann"));
    }
    let (_, invalid) = ended(accounts.timeline(&"".into(), ..)).await;
    let invalid = invalid.unwrap();
    assert!(
        matches!(invalid, TimelineError::Load(LoadError::InvalidStreamId(_))),
        "{invalid:?}"
    );
}

#[tokio::test]
async fn an_unreadable_event_ends_the_history_after_the_steps_before_it() {
    let store = InMemoryEventStore::new();
    let events = vec![
        json("Deposited", 1, r#"{"amount":5}"#),
        json("Deposited", 1, r#"{"amount":"secret"}"#),
        json("Deposited", 1, r#"{"amount":5}"#),
    ];
    store_raw(&store, events).await;
    for first in [1, 2, 3] {
        let accounts = accounts(&store);
        let (steps, error) = ended(accounts.timeline(&ann(), Version::new(first)..)).await;
        assert_eq!(steps.len(), usize::from(first == 1));
        let Some(TimelineError::Load(LoadError::Codec { version, .. })) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*version, Version::new(2));
        let error = error.unwrap();
        assert!(!error.is_transient());
        assert!(!chain(&error).contains("secret"), "{error:?}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_ends_the_history_with_an_error_that_may_pass() {
    let faults = Faults::none();
    let (_, accounts) = faulty(&faults);
    accounts
        .execute(&ann(), Deposit { amount: 5 })
        .await
        .unwrap();
    faults.set([Fault::Unavailable.on(Op::Read)]);
    let (_, error) = ended(accounts.timeline(&ann(), ..)).await;
    let error = error.unwrap();
    assert!(
        matches!(error, TimelineError::Load(LoadError::Store(_))) && error.is_transient(),
        "{error:?}"
    );
}

/// A state that is not JSON: without `Serialize`, or with one that fails or panics.
#[derive(Clone, Debug, Default, PartialEq)]
struct Odd(u64);

impl Aggregate for Odd {
    type Id = AccountId;
    type Event = AccountEvent;
    fn evolve(&mut self, _: &AccountEvent) {
        self.0 += 1;
    }
}
impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 | 1 => serializer.serialize_u64(self.0),
            2 => Err(serde::ser::Error::custom("no form for two")),
            _ => panic!("no form for three"),
        }
    }
}

#[tokio::test]
async fn a_state_that_cannot_be_written_ends_the_history_and_a_typed_one_goes_on() {
    let store = InMemoryEventStore::new();
    accounts(&store)
        .execute(&ann(), DepositOnes { times: 3 })
        .await
        .unwrap();
    let odd = Repository::<Odd>::new(store.clone());
    for (first, steps, at, text) in [
        (1, 1, 2, "no form for two"),
        (3, 0, 2, "no form for two"),
        (4, 0, 0, ""),
    ] {
        let (found, error) = ended(odd.timeline(&ann(), Version::new(first)..)).await;
        assert_eq!(found.len(), steps);
        match error {
            Some(TimelineError::State {
                version, source, ..
            }) => {
                assert_eq!((version.get(), source.to_string().as_str()), (at, text));
            }
            other => assert!(at == 0 && other.is_none(), "{other:?}"),
        }
    }
    accounts(&store)
        .execute(&ann(), Deposit { amount: 1 })
        .await
        .unwrap();
    let (_, error) = ended(odd.timeline(&ann(), Version::new(4)..)).await;
    assert!(matches!(error, Some(TimelineError::State { version, .. }) if version.get() == 3));
    let states: Vec<_> = odd.states(&ann(), ..).try_collect().await.unwrap();
    assert_eq!(states.last().unwrap().state, Odd(4));
}
