//! Read models are built again while the service goes on, and while the replaying process is
//! killed.
//!
//! Two projectors, one at `Deduplicated` and one at `ExactlyOnceEffect`, have a history of 20,000
//! events. A process replays them and is killed three times; each successor goes on from the
//! cursors. Commands go on all the time, a second instance joins while the new generation catches
//! up, and the end of one partition is the marker of a transaction. At the end the new models are
//! what the events table adds up to, and the old ones are the part that they saw before the switch.
//!
//! `FOLDSTREAM_LONG=1` replays 200,000 events with ten kills, and waits until the old models and
//! groups are deleted.
use super::{
    Fleet, PATIENCE, Polling, Worker, publish_the_rest, stored, until, until_none_is_left,
};
use foldstream::{adapter::kafka_partition, ports::PartitionId};
use foldstream_live::{AccountEvent, AccountId, Balance, Role, Step};
use foldstream_testkit::{containers::Kafka, length};
use futures::{StreamExt as _, stream};
use std::{
    io::Write as _,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PROCESSORS: [&str; 2] = ["balances", "exact"];
const PARTITIONS: u32 = 6;
const EVENTS_PER_COMMIT: u64 = 10;
/// The pause between two commands during the replay. Two generations of each model must handle the
/// events faster than they come, or the new ones never catch up.
const PAUSE: Duration = Duration::from_millis(100);
/// The partition to which nothing is appended during the replay, and whose end is a marker.
const QUIET: u32 = 0;

fn events(n: u64) -> Vec<AccountEvent> {
    let event = |amount| match amount % 3 {
        0 => AccountEvent::Withdrawn { amount },
        _ => AccountEvent::Deposited { amount },
    };
    (n..n + EVENTS_PER_COMMIT).map(event).collect()
}

fn account(n: u64) -> AccountId {
    AccountId::from(format!("a{n}"))
}

fn is_quiet(n: u64) -> bool {
    let key = format!("account#{}", account(n));
    kafka_partition(key.as_bytes(), PARTITIONS) == QUIET
}

/// Appends the history: ten commits to each of so many accounts.
async fn append_history(fleet: &Fleet, accounts: u64) {
    let repository = &fleet.repository();
    let append = |n: u64| async move {
        for commit in 0..10 {
            let done = repository.execute(&account(n), events(commit * 100)).await;
            done.unwrap();
        }
    };
    stream::iter(0..accounts)
        .for_each_concurrent(16, append)
        .await;
}

/// Appends to one account after the other until it is stopped, and returns the number of commits.
fn start_load(fleet: &Fleet, accounts: u64, stop: CancellationToken) -> JoinHandle<u64> {
    let repository = fleet.repository();
    tokio::spawn(async move {
        let (mut commits, busy) = (0, (0..accounts).filter(|n| !is_quiet(*n)));
        for n in busy.cycle() {
            if stop.is_cancelled() {
                break;
            }
            repository.execute(&account(n), events(7)).await.unwrap();
            commits += 1;
            tokio::time::sleep(PAUSE).await;
        }
        commits
    })
}

/// Starts a process that replays, and waits until so many events are durable.
async fn replay_until(fleet: &Fleet, instance: &str, events: u64) -> Worker {
    let mut worker = fleet.start(Role::Replayer, instance);
    let process = worker.id();
    let progress = async || {
        worker.assert_running();
        let steps = Step::read(&fleet.settings);
        let mut own = steps.iter().filter(|step| step.process == process);
        own.any(|step| step.events >= events)
    };
    until("a process replays", progress).await;
    worker
}

async fn generation(fleet: &Fleet, processor: &str) -> u32 {
    let status = fleet.operator().processor(processor).await.unwrap();
    status.generation
}

async fn lag(fleet: &Fleet, processor: &str, generation: u32) -> Option<u64> {
    let group = format!("{}.{processor}.g{generation}", fleet.settings.name);
    stored::lag_of(fleet, &group).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker; see CONTRIBUTING.md"]
async fn a_replay_that_is_killed_is_resumed_while_the_service_goes_on() {
    let (accounts, kills) = (
        length::of("accounts", 200, 2_000),
        length::of("kills", 3, 10),
    );
    let kafka = Kafka::shared().await;
    let fleet = Fleet::with_own_database("replay", kafka.brokers(), PARTITIONS).await;
    append_history(&fleet, accounts).await;
    let polling = Polling::start(fleet.publisher());
    publish_the_rest(&fleet).await;
    let quiet = PartitionId::new(fleet.settings.name.as_str(), QUIET);
    crate::kafka::abort_a_transaction(kafka.brokers(), &quiet).await;
    let mut first = fleet.start(Role::Models, "models-1");
    let live = async || {
        let operator = fleet.operator();
        operator.processor(PROCESSORS[1]).await.is_ok()
    };
    until("the live models are started", live).await;

    let stop = CancellationToken::new();
    let load = start_load(&fleet, accounts, stop.clone());
    for kill in 0..kills {
        // The first half of the history, in equal parts.
        let part = accounts * 10 * EVENTS_PER_COMMIT * (kill + 1) / (2 * kills);
        let replayer = replay_until(&fleet, &format!("replayer-{kill}"), part).await;
        replayer.kill().await;
    }
    let replayer = fleet.start(Role::Replayer, "replayer-last");
    // Partitions of the new generation move while it catches up.
    let catching_up = async || {
        let status = fleet.operator().processor(PROCESSORS[0]).await.unwrap();
        status.next.is_some()
    };
    until("the scan is whole", catching_up).await;
    let mut second = fleet.start(Role::Models, "models-2");
    replayer.wait().await;
    for processor in PROCESSORS {
        let switched = async || generation(&fleet, processor).await == 2;
        until("the new generation serves", switched).await;
    }
    stop.cancel();
    let commits = load.await.unwrap();
    polling.stop().await;
    publish_the_rest(&fleet).await;
    for processor in PROCESSORS {
        let left = async || lag(&fleet, processor, 2).await;
        until_none_is_left("records to commit", left).await;
    }
    first.assert_running();
    second.assert_running();
    check(&fleet, accounts * 10 + commits).await;
    let resumed = resumed(&fleet);
    tell(accounts, &resumed, commits);
    assert_eq!(resumed.len() as u64, kills, "replays were resumed");
    if length::is_long() {
        until_the_old_ones_are_gone(&fleet).await;
    }
    first.stop().await;
    second.stop().await;
}

/// Returns the events at which each process went on with the work of another, and fails if one of
/// them began at the first event.
fn resumed(fleet: &Fleet) -> Vec<u64> {
    let (mut resumed, mut last) = (Vec::new(), None::<Step>);
    // A process says 0 before it has read the cursors.
    for step in Step::read(&fleet.settings)
        .into_iter()
        .filter(|step| step.events > 0)
    {
        if let Some(last) = last.filter(|last| last.process != step.process) {
            assert!(step.events >= last.events, "{step:?} comes after {last:?}");
            resumed.push(step.events);
        }
        last = Some(step);
    }
    resumed
}

/// Compares the models of both generations with the events table.
async fn check(fleet: &Fleet, commits: u64) {
    let events = stored::events(fleet).await;
    let count: u64 = events.values().map(|events| events.len() as u64).sum();
    assert_eq!(count, commits * EVENTS_PER_COMMIT);
    for model in PROCESSORS {
        let new = stored::rows_of_generation::<Balance>(fleet, model, 2).await;
        assert_eq!(new.len(), events.len(), "{model}");
        for (stream, events) in &events {
            let expected = (stored::fold(events), events.len() as u64);
            assert_eq!(new[stream], expected, "{model} {stream}");
        }
        let old = stored::rows_of_generation::<Balance>(fleet, model, 1).await;
        assert!(!old.is_empty(), "{model}");
        for (stream, (row, version)) in &old {
            let seen = &events[stream][..row.versions.len()];
            assert_eq!(*row, stored::fold(seen), "{model} {stream}");
            assert_eq!(*version, seen.len() as u64, "{model} {stream}");
        }
    }
}

/// Waits for the deletion of the models that the switch has left, ten minutes after it.
async fn until_the_old_ones_are_gone(fleet: &Fleet) {
    let (started, most) = (Instant::now(), Duration::from_secs(700) + PATIENCE);
    for model in PROCESSORS {
        loop {
            let rows = stored::rows_of_generation::<Balance>(fleet, model, 1).await;
            if rows.is_empty() {
                break;
            }
            assert!(started.elapsed() < most, "{model}.g1 is left");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// Prints what has happened, also if the test passes.
fn tell(accounts: u64, resumed: &[u64], commits: u64) {
    let history = accounts * 10 * EVENTS_PER_COMMIT;
    let text = format!(
        "replay: {history} events before, {} during the replay; {} kills, after which it went on at event {resumed:?}\n\
         replay:   both new models equal the events table\n",
        commits * EVENTS_PER_COMMIT,
        resumed.len(),
    );
    // The harness captures what a test prints by the macros.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
