//! The brokers are away for longer than a session, while a process runs.
use super::{Fleet, Polling, stored, until};
use foldstream_live::{AccountEvent, AccountId, Effects, Role, WorkerSettings};
use foldstream_testkit::containers::Kafka;
use std::{collections::BTreeSet, time::Duration};

const PROCESSORS: [&str; 4] = ["statements", "ledger", "balances", "exact"];
const STREAMS: usize = 20;

async fn append(fleet: &Fleet) {
    let repository = fleet.repository();
    for n in 0..STREAMS {
        let id = AccountId::from(format!("{n}"));
        let events = vec![AccountEvent::Deposited { amount: 1 }];
        repository.execute(&id, events).await.unwrap();
    }
}

/// Waits until each processor has handled this many events of each stream, and has committed all.
async fn have_committed(fleet: &Fleet, events: u64) {
    let has_handled = async || {
        let effects = Effects::read(fleet.folder.path()).into_iter();
        let effects: BTreeSet<_> = effects
            .map(|effect| (effect.processor, effect.stream, effect.version))
            .collect();
        effects.len() == 3 * STREAMS * usize::try_from(events).unwrap()
    };
    until("the events are handled", has_handled).await;
    for processor in PROCESSORS {
        let has_committed = async || stored::lag(fleet, processor).await == Some(0);
        until("the offsets are committed", has_committed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn offsets_are_committed_again_after_a_broker_restart_by_the_same_process() {
    let kafka = Kafka::start_restartable().await.unwrap();
    let fleet = Fleet::open("outage", kafka.brokers(), 3).await;
    let polling = Polling::start(fleet.publisher());
    let mut worker = fleet.start(Role::Accounts, "worker");
    append(&fleet).await;
    have_committed(&fleet, 1).await;
    // Shorter and longer than a session, each with events that are appended meanwhile.
    let (short, long) = (Duration::from_secs(1), WorkerSettings::SESSION * 2);
    for (events, down) in [(2, short), (3, long)] {
        let (restarted, ()) = tokio::join!(kafka.restart(down), append(&fleet));
        restarted.unwrap();
        have_committed(&fleet, events).await;
        worker.assert_running();
    }
    polling.stop().await;
    worker.stop().await;
}
