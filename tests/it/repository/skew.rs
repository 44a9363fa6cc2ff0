//! Clocks that are far apart, and times that could not be read back.
use super::load::Warnings;
use crate::support::{Account, AccountCommand::Deposit, AccountEvent, AccountId};
use foldstream::{
    Clock, ExecuteError, ExpectedVersion, Repository, Timestamp, ports::EventStoreError,
};
use foldstream_testkit::{InMemoryEventStore, ManualClock};
use std::{sync::Arc, time::Duration};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SECOND: Duration = Duration::from_secs(1);

fn world() -> (Arc<ManualClock>, Repository<Account>, Warnings) {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let clock = ManualClock::at(now);
    let accounts = Repository::new(InMemoryEventStore::new()).with_clock(clock.clone());
    (clock, accounts, Warnings::default())
}

fn about_clocks(warnings: &Warnings) -> usize {
    let texts = warnings.take().into_iter();
    texts.filter(|text| text.contains("the clock of")).count()
}

#[tokio::test]
async fn a_head_more_than_a_day_ahead_of_the_clock_warns_once_per_stream() {
    let (clock, accounts, warnings) = world();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let present = clock.now();
    let deposit = Deposit { amount: 1 };
    let ids = ["a", "b", "c"].map(AccountId::from);
    for (id, ahead) in ids.iter().zip([DAY, DAY + SECOND, 300 * DAY]) {
        clock.set(present.plus(ahead));
        accounts.execute(id, deposit.clone()).await.unwrap();
    }
    assert_eq!(about_clocks(&warnings), 0);
    clock.set(present);
    for _ in 0..3 {
        for (id, expected) in ids.iter().zip([DAY, DAY + SECOND, 300 * DAY]) {
            let done = accounts.execute(id, deposit.clone()).await.unwrap();
            assert_eq!(done.head().recorded_at(), present.plus(expected));
        }
    }
    assert_eq!(about_clocks(&warnings), 2);
}

#[tokio::test]
async fn an_append_of_facts_warns_too() {
    let (clock, accounts, warnings) = world();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let present = clock.now();
    let (id, facts) = (
        AccountId::from("a"),
        [AccountEvent::Deposited { amount: 1 }],
    );
    clock.set(present.plus(2 * DAY));
    let any = ExpectedVersion::Any;
    accounts.append(&id, any.clone(), &facts).await.unwrap();
    clock.set(present);
    accounts.append(&id, any, &facts).await.unwrap();
    assert_eq!(about_clocks(&warnings), 1);
}

#[tokio::test]
async fn a_clock_that_counts_nanoseconds_stores_nothing_and_harms_no_stream() {
    let (clock, accounts, _) = world();
    let (present, id) = (clock.now(), AccountId::from("a"));
    clock.set(Timestamp::from_micros(1_767_225_600_000_000_000));
    let refused = accounts.execute(&id, Deposit { amount: 1 }).await;
    let Err(ExecuteError::Store(EventStoreError::Invalid { reason })) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("clock"), "{reason}");
    clock.set(present);
    let done = accounts.execute(&id, Deposit { amount: 1 }).await.unwrap();
    assert_eq!(done.head().recorded_at(), present);
}
