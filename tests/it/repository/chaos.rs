//! Repositories over stores that lose, delay, repeat and throttle calls, in processes that crash.
//!
//! In every run an acknowledged command is stored once, a command that certainly failed is not
//! stored, and nothing is stored twice.
use super::*;
use crate::support::AccountCommand;
use foldstream::{IdSource, Transaction};
use foldstream_testkit::{InMemoryControlStore, SeededIds, length};
use std::{collections::BTreeMap, future::Future, sync::Mutex};

const STREAMS: [&str; 2] = ["ann", "bob"];

/// The client's knowledge of one command that it sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Stored,
    NotStored,
    /// The process died before it returned an answer.
    Nothing,
}

/// The durable state and the sent commands, which all processes share.
struct World {
    faults: Faults,
    store: Arc<InMemoryEventStore>,
    snapshots: Arc<InMemorySnapshotStore>,
    marks: Arc<InMemoryControlStore>,
    ids: Arc<SeededIds>,
    /// The outcomes by the correlation id of each command.
    sent: Mutex<BTreeMap<String, Known>>,
}

/// A process that can die at any call.
struct Process {
    faults: Faults,
    store: Arc<dyn EventStore>,
    accounts: Repository<Account>,
}

/// The configuration of a world's repositories.
#[derive(Clone, Copy)]
struct Setup {
    cache: usize,
    has_snapshots: bool,
    is_idempotent: bool,
}
const PLAIN: Setup = Setup {
    cache: 0,
    has_snapshots: false,
    is_idempotent: false,
};

impl World {
    fn new(seed: u64) -> Arc<Self> {
        let soon = Duration::from_millis(20);
        let faults = Faults::seeded(seed)
            .with(Fault::LoseReply.anywhere().one_in(12))
            .with(Fault::LoseRequest.anywhere().one_in(20))
            .with(Fault::Unavailable.anywhere().one_in(30))
            .with(Fault::Throttled(None).anywhere().one_in(30))
            .with(Fault::ApplyLate(soon).anywhere().one_in(15).jittered())
            .with(Fault::Duplicate.anywhere().one_in(15))
            .with(Fault::CrashBefore.anywhere().one_in(60))
            .with(Fault::CrashAfter.anywhere().one_in(60))
            .with(Fault::Delay(soon).anywhere().one_in(2).jittered());
        Self::over(faults, seed)
    }
    fn over(faults: Faults, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            faults,
            store: InMemoryEventStore::new(),
            snapshots: InMemorySnapshotStore::new(),
            marks: InMemoryControlStore::new(),
            ids: SeededIds::new(seed),
            sent: Mutex::default(),
        })
    }

    fn process(&self, setup: Setup) -> Process {
        let faults = self.faults.restart();
        let store = faults.event_store(self.store.clone());
        let ids: Arc<dyn IdSource> = self.ids.clone();
        let pause = foldstream::Backoff::new(Duration::from_millis(5), Duration::from_millis(20));
        let mut accounts = Repository::<Account>::new(store.clone())
            .with_ids(ids)
            .with_conflict_retry(ConflictRetry::default().with_backoff(pause.with_seed(1)))
            .with_cache(setup.cache);
        if setup.has_snapshots {
            let snapshots = faults.snapshot_store(self.snapshots.clone());
            accounts = accounts.with_snapshots(snapshots, SnapshotPolicy::every(3));
        }
        if setup.is_idempotent {
            let marks = faults.control_store(self.marks.clone());
            accounts = accounts.with_idempotency(marks, Duration::from_secs(86_400));
        }
        Process {
            faults,
            store,
            accounts,
        }
    }

    fn learn(&self, tag: &str, known: Known) {
        self.sent.lock().unwrap().insert(tag.to_owned(), known);
    }

    /// Makes one attempt in a process. If the process dies, another replaces it, and the outcome is
    /// unknown.
    async fn attempt<T>(
        &self,
        process: &mut Process,
        setup: Setup,
        work: impl AsyncFnOnce(&Process) -> T,
    ) -> Option<T> {
        let done = process.faults.run(work(process)).await;
        if done.is_none() {
            *process = self.process(setup);
        }
        done
    }

    /// Returns the streams on which each command is stored, once per occurrence.
    ///
    /// It also asserts that the histories are whole and that every state was allowed.
    async fn stored(&self) -> BTreeMap<String, Vec<&'static str>> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for id in STREAMS {
            let start = ReadFrom::After(StreamHead::empty(stream(id)));
            let read = self.store.read(&stream(id), start, None);
            let commits: Vec<Commit> = read.try_collect().await.unwrap();
            let mut next = Version::new(1);
            for commit in &commits {
                assert_eq!(commit.first_version, next, "{id}");
                next = commit.last_version().next();
                let tag = commit.metadata.correlation_id().unwrap();
                found.entry(tag.as_str().to_owned()).or_default().push(id);
            }
            let folded = accounts(&self.store).load(&id.into()).await.unwrap();
            let mut balance = 0u64;
            for event in commits.iter().flat_map(|c| c.events.iter()) {
                let payload: serde_json::Value = serde_json::from_slice(&event.payload).unwrap();
                let amount = payload["amount"].as_u64().unwrap();
                balance = match &*event.name {
                    "Deposited" => balance + amount,
                    _ => balance.checked_sub(amount).expect("never below zero"),
                };
            }
            assert_eq!(folded.state().balance, balance);
            // Loads through snapshots give the same state.
            let snapshots = self.snapshots.clone();
            let quick = accounts(&self.store).with_snapshots(snapshots, SnapshotPolicy::never());
            assert_eq!(
                quick.load(&id.into()).await.unwrap().state(),
                folded.state()
            );
        }
        found
    }

    /// Asserts the invariants, after all late calls have arrived.
    async fn check(&self, times: usize) {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let stored = self.stored().await;
        let sent = self.sent.lock().unwrap();
        for (tag, known) in sent.iter() {
            let found = stored.get(tag).map_or(0, Vec::len);
            let is_right = match known {
                Known::Stored => found == times,
                Known::NotStored => found == 0,
                Known::Nothing => found == 0 || found == times,
            };
            assert!(
                is_right,
                "{tag} is known as {known:?} and stored {found} times"
            );
        }
        let unsent = stored.keys().find(|tag| !sent.contains_key(*tag));
        assert_eq!(unsent, None, "nobody has sent it");
    }
}

/// Returns what an answer says. If the outcome is unknown, sends the same append again to settle
/// it.
async fn known<T: std::fmt::Debug, E: std::fmt::Debug>(
    process: &Process,
    answer: Result<T, ExecuteError<E>>,
) -> Known {
    let pending = match answer {
        Ok(_) => return Known::Stored,
        Err(ExecuteError::Store(EventStoreError::Unavailable {
            pending: Some(pending),
            ..
        })) => pending,
        Err(error) => {
            let is_answer = matches!(error, ExecuteError::Rejected(_));
            assert!(is_answer || error.is_transient(), "{error:?}");
            return Known::NotStored;
        }
    };
    for _ in 0..1_000 {
        match process.accounts.settle(&pending).await {
            Ok(Settled::Applied(_)) => return Known::Stored,
            Ok(Settled::Superseded) => return Known::NotStored,
            Ok(Settled::Open) => {
                // The answer is not needed, because the loop looks again.
                let _ = process.store.append_all(pending.append()).await;
            }
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
    panic!("{pending:?} is not settled");
}

fn tagged(tag: &str) -> Metadata {
    Metadata::new().with_correlation_id(tag)
}

/// Runs clients in three processes, each with commands of its own on the same streams.
async fn clients<F: Future<Output = ()>>(
    seed: u64,
    client: impl Fn(Arc<World>, u64, fastrand::Rng) -> F,
) -> Arc<World> {
    let world = World::new(seed);
    let clients = (0..3).map(|n| {
        let rng = fastrand::Rng::with_seed(seed.wrapping_mul(31) + n);
        client(world.clone(), n, rng)
    });
    futures::future::join_all(clients).await;
    world
}

fn command(rng: &mut fastrand::Rng) -> AccountCommand {
    match rng.u32(0..3) {
        0 => Withdraw {
            amount: rng.u64(1..40),
        },
        1 => DepositOnes {
            times: rng.usize(1..4),
        },
        _ => Deposit {
            amount: rng.u64(1..40),
        },
    }
}

async fn commands_in(setup: Setup, seed: u64) {
    let world = clients(seed, |world, client, mut rng| async move {
        let mut process = world.process(setup);
        for n in 0..8 {
            let tag = format!("{client}-{n}");
            let id = AccountId::from(STREAMS[rng.usize(..2)]);
            let command = command(&mut rng);
            world.learn(&tag, Known::Nothing);
            let sent = async |process: &Process| {
                let answer = process
                    .accounts
                    .execute_with(&id, command, tagged(&tag))
                    .await;
                known(process, answer).await
            };
            if let Some(known) = world.attempt(&mut process, setup, sent).await {
                world.learn(&tag, known);
            }
        }
    })
    .await;
    world.check(1).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_a_command_that_is_acknowledged_is_stored_once() {
    for seed in length::seeds(300, 5_000) {
        commands_in(PLAIN, seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_a_cached_state_never_stands_in_for_a_history_that_it_is_not() {
    for seed in length::seeds(300, 5_000) {
        let cached = Setup {
            cache: 100,
            ..PLAIN
        };
        commands_in(cached, seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_a_snapshot_is_of_the_history_or_ignored() {
    for seed in length::seeds(300, 5_000) {
        let with_snapshots = Setup {
            has_snapshots: true,
            ..PLAIN
        };
        commands_in(with_snapshots, seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_a_command_with_an_id_that_is_sent_until_it_is_answered_is_stored_once() {
    for seed in length::seeds(300, 5_000) {
        let setup = Setup {
            cache: if seed % 2 == 0 { 0 } else { 100 },
            has_snapshots: seed % 3 == 0,
            is_idempotent: true,
        };
        let world = clients(seed, |world, client, mut rng| async move {
            let mut process = world.process(setup);
            for n in 0..5 {
                // Two clients send each command.
                let tag = format!("{}-{n}", client / 2);
                let id = AccountId::from(STREAMS[n % 2]);
                let metadata = tagged(&tag).with_command_id(&*tag);
                loop {
                    let amount = rng.u64(1..40);
                    let sent = async |process: &Process| {
                        let (accounts, metadata) = (&process.accounts, metadata.clone());
                        accounts
                            .execute_with(&id, Deposit { amount }, metadata)
                            .await
                    };
                    match world.attempt(&mut process, setup, sent).await {
                        Some(Ok(_)) => break,
                        Some(Err(error)) => assert!(error.is_transient(), "{error:?}"),
                        None => {}
                    }
                }
                world.learn(&tag, Known::Stored);
            }
        })
        .await;
        world.check(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_lost_a_transaction_is_stored_on_all_streams_or_on_none() {
    for seed in length::seeds(300, 5_000) {
        let world = clients(seed, |world, client, mut rng| async move {
            let mut process = world.process(PLAIN);
            for n in 0..6 {
                let tag = format!("{client}-{n}");
                let amount = rng.u64(1..40);
                world.learn(&tag, Known::Nothing);
                let sent = async |process: &Process| {
                    let both = Transaction::new(process.store.clone());
                    for id in STREAMS {
                        let (accounts, id) = (&process.accounts, AccountId::from(id));
                        let deposit = Deposit { amount };
                        if let Err(error) = both
                            .execute_with(accounts, &id, deposit, tagged(&tag))
                            .await
                        {
                            assert!(error.is_transient(), "{error:?}");
                            return Known::NotStored;
                        }
                    }
                    let stored = both.commit().await;
                    known(
                        process,
                        stored.map_err(ExecuteError::<InsufficientFunds>::from),
                    )
                    .await
                };
                if let Some(known) = world.attempt(&mut process, PLAIN, sent).await {
                    world.learn(&tag, known);
                }
            }
        })
        .await;
        world.check(2).await;
    }
}

/// Each process dies at its next call, one after the other, until all commands are answered.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_call_loses_and_doubles_no_command_with_an_id() {
    let setup = Setup {
        cache: 100,
        has_snapshots: true,
        is_idempotent: true,
    };
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        let mut crashes = 0;
        for call in 1.. {
            let faults = Faults::script([fault.clone().anywhere().at(call)]);
            let world = World::over(faults, 7);
            let mut process = world.process(setup);
            for n in 0..6 {
                let tag = n.to_string();
                let metadata = tagged(&tag).with_command_id(&*tag);
                let id = AccountId::from("ann");
                let sent = async |process: &Process| {
                    let (accounts, metadata) = (&process.accounts, metadata.clone());
                    let done = accounts
                        .execute_with(&id, Deposit { amount: 1 }, metadata)
                        .await;
                    accounts.close().await;
                    done.unwrap()
                };
                if world.attempt(&mut process, setup, sent).await.is_none() {
                    let again = world.attempt(&mut process, setup, sent).await;
                    again.expect("it dies once");
                }
                world.learn(&tag, Known::Stored);
            }
            world.check(1).await;
            if world.faults.log().is_empty() {
                break;
            }
            crashes += 1;
        }
        // There are six commands of two or three calls each.
        assert!(crashes > 15, "only {crashes} calls to die at");
    }
}

/// The repository's defence against a store that breaks its contract by leaving commits out of
/// reads.
///
/// Nothing is stored after such a read. If it has a hole, the repository reports the hole. If the
/// newest commits are missing, the slot is taken.
#[tokio::test(start_paused = true)]
async fn nothing_is_stored_after_a_torn_history() {
    for seed in length::seeds(200, 3_000) {
        let faults = Faults::seeded(seed)
            .with(Fault::Hole.on(Op::Read).one_in(3))
            .with(Fault::TornCommit.on(Op::Read).one_in(3))
            .with(Fault::Hide(2).on(Op::Append).one_in(3));
        let (store, accounts) = faulty(&faults);
        let mut stored = 0;
        for _ in 0..30 {
            match accounts.execute(&ann(), DepositOnes { times: 2 }).await {
                Ok(_) => stored += 1,
                Err(
                    ExecuteError::Load(
                        LoadError::NotContiguous { .. }
                        | LoadError::Store(EventStoreError::Corrupt { .. }),
                    )
                    | ExecuteError::Conflict(_),
                ) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        let commits = commits(&store).await;
        assert_eq!(commits.len(), stored);
        let mut next = Version::new(1);
        for commit in &commits {
            assert_eq!(commit.first_version, next);
            next = commit.last_version().next();
        }
    }
}
