//! A circuit breaker that several processes share through a control store.
use foldstream::{
    breaker::{BreakerPolicy, CircuitBreaker, CircuitState, DistributedBreaker},
    ports::{ControlStore, Expect, RangeQuery, Revision, Row, RowKey},
};
use foldstream_testkit::{
    InMemoryControlStore, SeededIds,
    faults::{Fault, Faults, Op},
    length,
};
use std::{
    cell::Cell,
    collections::BTreeMap,
    future::{pending, ready},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);

/// A process with its part of the breaker.
struct Process {
    breaker: CircuitBreaker,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

fn distributed(control: Arc<dyn ControlStore>, instance: &str, seed: u64) -> DistributedBreaker {
    let policy = BreakerPolicy::default();
    let breaker = DistributedBreaker::new("pay", instance, policy, control);
    breaker.unwrap().with_ids(SeededIds::new(seed))
}

impl Process {
    fn start(control: &Arc<dyn ControlStore>, instance: &str, seed: u64) -> Self {
        let part = distributed(control.clone(), instance, seed);
        let (breaker, stop) = (part.breaker(), CancellationToken::new());
        let task = spawn_local(part.run(stop.clone()));
        Self {
            breaker,
            task,
            stop,
        }
    }
    async fn fail(&self, calls: usize) {
        for _ in 0..calls {
            let call = self
                .breaker
                .call_when(ready(Err::<(), _>("busy")), |_| true);
            assert!(call.await.is_err());
        }
    }
    fn is_closed(&self) -> bool {
        self.breaker.state() == CircuitState::Closed
    }
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
    fn crash(self) {
        self.task.abort();
    }
}

fn in_memory() -> Arc<dyn ControlStore> {
    InMemoryControlStore::new()
}
fn start(control: &Arc<dyn ControlStore>, instances: usize) -> Vec<Process> {
    (0..instances)
        .map(|n| Process::start(control, &format!("node-{n}"), n as u64))
        .collect()
}

/// Starts three processes and lets two of them fail, so that the circuits of all are open.
async fn open_by_two_of_three(control: &Arc<dyn ControlStore>) -> Vec<Process> {
    let processes = start(control, 3);
    sleep(SECOND).await;
    processes[0].fail(5).await;
    processes[1].fail(5).await;
    sleep(12 * SECOND).await;
    assert!(!processes[2].is_closed());
    processes
}

/// The rows of the breaker, as they are stored.
async fn rows(control: &Arc<dyn ControlStore>) -> BTreeMap<String, String> {
    let page = control
        .range(&RangeQuery::new("breaker/pay"))
        .await
        .unwrap();
    let text = |row: Row| (row.key.sort, String::from_utf8_lossy(&row.value).into());
    page.rows.into_iter().map(text).collect()
}
async fn votes(control: &Arc<dyn ControlStore>) -> usize {
    let rows = rows(control).await;
    rows.keys().filter(|key| key.starts_with("vote/")).count()
}
async fn put(control: &Arc<dyn ControlStore>, sort: &str, value: &'static str, revision: u128) {
    let key = RowKey::new("breaker/pay", sort);
    let row = Row::new(key, value, Revision::from_u128(revision));
    let _ = control.put(&row, Expect::Any).await.unwrap();
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn at_two_votes_all_processes_are_open_and_one_probe_closes_them() {
    local(async {
        let control = in_memory();
        let processes = open_by_two_of_three(&control).await;
        assert_eq!(votes(&control).await, 2);

        // The service is well again. Of all calls until the circuits close only the probe is made,
        // here by the process that has not failed itself.
        let made = Cell::new(0);
        let until = Instant::now() + 60 * SECOND;
        while !processes[2].is_closed() {
            assert!(Instant::now() < until);
            let call = async {
                made.set(made.get() + 1);
                Ok::<_, ()>(())
            };
            let _ = processes[2].breaker.call_when(call, |()| true).await;
            sleep(SECOND / 100).await;
        }
        assert_eq!(made.get(), 1);
        assert_eq!(rows(&control).await["!epoch"], r#"{"e":1}"#);
        // The processes that have failed try for themselves as soon as they have a caller.
        sleep(6 * SECOND).await;
        for process in &processes[..2] {
            assert_eq!(process.breaker.state(), CircuitState::HalfOpen);
            let tried = process.breaker.call_when(ready(Ok::<_, ()>(7)), |()| true);
            assert_eq!(tried.await.ok(), Some(7));
        }
        sleep(10 * SECOND).await;
        assert!(processes.iter().all(Process::is_closed));
        assert_eq!(votes(&control).await, 0);
        let lease = &rows(&control).await["probe"];
        assert!(!lease.contains(r#""o":"#), "released: {lease}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_many_waiters_in_all_processes_exactly_one_probes() {
    local(async {
        let control = in_memory();
        let processes = open_by_two_of_three(&control).await;

        // Ten callers of each process try all the time, and a call takes longer than their pauses.
        let made = Rc::new(Cell::new(0));
        let callers = processes
            .iter()
            .flat_map(|process| vec![process.breaker.clone(); 10]);
        let callers: Vec<_> = callers
            .map(|breaker| {
                let made = made.clone();
                spawn_local(async move {
                    loop {
                        let call = async {
                            made.set(made.get() + 1);
                            sleep(3 * SECOND).await;
                            Ok::<_, ()>(())
                        };
                        let _ = breaker.call_when(call, |()| true).await;
                        sleep(SECOND / 10).await;
                    }
                })
            })
            .collect();
        let until = Instant::now() + 60 * SECOND;
        while !rows(&control).await.contains_key("!epoch") {
            assert!(Instant::now() < until && made.get() <= 1, "{}", made.get());
            sleep(SECOND / 100).await;
        }
        assert_eq!(made.get(), 1);
        for caller in callers {
            caller.abort();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_bad_process_never_stops_the_good_ones_also_when_it_starts_again() {
    local(async {
        let control = in_memory();
        let good = start(&control, 2);
        for life in 0..10 {
            let bad = Process::start(&control, "bad", 100 + life);
            for _ in 0..30 {
                let call = bad.breaker.call_when(ready(Err::<(), _>(())), |()| true);
                assert!(call.await.is_err());
                for process in &good {
                    let call = process.breaker.call_when(ready(Ok::<_, ()>(())), |()| true);
                    assert!(call.await.is_ok());
                }
                sleep(SECOND).await;
            }
            assert_eq!(votes(&control).await, 1);
            bad.crash();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_is_not_stopped_by_votes_that_were_left_behind() {
    local(async {
        let control = in_memory();
        put(&control, "vote/gone-1", r#"{"e":0}"#, 1).await;
        put(&control, "vote/gone-2", r#"{"e":0}"#, 2).await;
        let processes = start(&control, 2);
        for _ in 0..60 {
            sleep(SECOND).await;
            assert!(processes.iter().all(Process::is_closed));
        }
        // They are deleted by a process that has seen them stand still for an hour.
        sleep(3600 * SECOND).await;
        assert_eq!(votes(&control).await, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn votes_of_an_epoch_that_has_ended_never_count() {
    local(async {
        let control = in_memory();
        put(&control, "!epoch", r#"{"e":7}"#, 1).await;
        let processes = start(&control, 2);
        for renewal in 0..30 {
            put(&control, "vote/old-1", r#"{"e":6}"#, 100 + renewal).await;
            put(&control, "vote/old-2", r#"{"e":6}"#, 200 + renewal).await;
            sleep(2 * SECOND).await;
            assert!(processes.iter().all(Process::is_closed));
        }
        // The same votes in the present epoch count.
        for renewal in 0..10 {
            put(&control, "vote/old-1", r#"{"e":7}"#, 300 + renewal).await;
            put(&control, "vote/old-2", r#"{"e":7}"#, 400 + renewal).await;
            sleep(2 * SECOND).await;
        }
        assert!(!processes.iter().any(Process::is_closed));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_the_store_every_process_decides_alone() {
    local(async {
        let faults = Faults::none();
        let control = faults.control_store(InMemoryControlStore::new());
        let processes = open_by_two_of_three(&control).await;
        faults.set([Fault::Unavailable.on([Op::Get, Op::Put, Op::Delete, Op::Range])]);
        // Three renew periods, and one more in which a vote may have been seen to change.
        sleep(16 * SECOND).await;
        assert!(processes[2].is_closed());
        assert_eq!(processes[0].breaker.state(), CircuitState::HalfOpen);
        let probe = processes[0]
            .breaker
            .call_when(ready(Ok::<_, ()>(())), |()| true);
        assert!(probe.await.is_ok());
        assert!(processes[0].is_closed());
        // The vote that could not be deleted is deleted when the store is back.
        faults.set([]);
        processes[1].fail(1).await;
        sleep(10 * SECOND).await;
        assert_eq!(votes(&control).await, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_takes_its_vote_with_it() {
    local(async {
        let faults = Faults::none();
        let control = faults.control_store(InMemoryControlStore::new());
        let mut processes = start(&control, 2);
        sleep(SECOND).await;
        // The answers to the vote, and to its repeat, are lost.
        faults.set([Fault::LoseReply.on(Op::Put).first(2)]);
        processes[0].fail(5).await;
        sleep(SECOND).await;
        assert_eq!(votes(&control).await, 1);
        processes.remove(0).stop().await;
        assert_eq!(votes(&control).await, 0);
        processes.remove(0).stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_keeps_no_process_from_stopping() {
    local(async {
        let faults = Faults::none();
        let control = faults.control_store(InMemoryControlStore::new());
        let process = start(&control, 1).remove(0);
        sleep(SECOND).await;
        faults.set([Fault::Hang.on([Op::Get, Op::Put, Op::Delete, Op::Range])]);
        process.fail(5).await;
        sleep(60 * SECOND).await;
        let probe = process.breaker.call_when(ready(Ok::<_, ()>(())), |()| true);
        assert!(probe.await.is_ok(), "nor from calling");
        let stopped = Instant::now();
        process.stop().await;
        assert!(stopped.elapsed() <= 3 * SECOND);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_unreadable_or_newer_do_not_stop_a_process_from_reading_the_others() {
    local(async {
        let control = in_memory();
        put(&control, "!epoch", r#"{"e":1,"x":[2]}"#, 1).await;
        put(&control, "vote/broken", "?", 2).await;
        put(&control, "weight/node-0", r#"{"new":true}"#, 3).await;
        let processes = open_by_two_of_three(&control).await;
        let until = Instant::now() + 60 * SECOND;
        while !processes[2].is_closed() {
            assert!(Instant::now() < until);
            let call = processes[2]
                .breaker
                .call_when(ready(Ok::<_, ()>(())), |()| true);
            let _ = call.await;
            sleep(SECOND / 10).await;
        }
        // What a newer build has added to the row is still there.
        assert_eq!(rows(&control).await["!epoch"], r#"{"e":2,"x":[2]}"#);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_in_one_process_is_taken_over_by_another() {
    local(async {
        let control = in_memory();
        let processes = start(&control, 2);
        sleep(SECOND).await;
        for process in &processes {
            process.fail(5).await;
        }
        sleep(12 * SECOND).await;
        // Each caller of the first process would wait forever, and new ones come all the time.
        let hangs = processes[0].breaker.clone();
        let probe = spawn_local(async move {
            loop {
                let breaker = hangs.clone();
                spawn_local(async move {
                    let call = pending::<Result<(), ()>>();
                    breaker.call_when(call, |()| true).await.is_ok()
                });
                sleep(SECOND / 10).await;
            }
        });
        sleep(20 * SECOND).await;
        assert_eq!(processes[0].breaker.state(), CircuitState::HalfOpen);
        let until = Instant::now() + 180 * SECOND;
        while !processes[1].is_closed() {
            assert!(Instant::now() < until);
            let call = processes[1]
                .breaker
                .call_when(ready(Ok::<_, ()>(())), |()| true);
            let _ = call.await;
            sleep(SECOND / 10).await;
        }
        assert!(rows(&control).await["probe"].starts_with(r#"{"e":2,"#));
        probe.abort();
    })
    .await;
}

#[test]
fn names_and_settings_that_cannot_work_are_refused() {
    let new = |name: &str, instance: &str| {
        let policy = BreakerPolicy::default();
        DistributedBreaker::new(name, instance, policy, InMemoryControlStore::new())
    };
    let long = "x".repeat(1100);
    for (name, instance, field) in [
        ("", "a", "name"),
        (&*long, "a", "name"),
        ("a\n", "a", "name"),
        ("a", "", "instance"),
        ("a", &*long, "instance"),
        ("a", "\u{1f}", "instance"),
    ] {
        assert_eq!(new(name, instance).unwrap_err().field, field);
    }
    let breaker = || new("pay", "node-1").unwrap();
    assert_eq!(breaker().with_quorum(0).unwrap_err().field, "quorum");
    for renew in [Duration::ZERO, Duration::MAX] {
        assert_eq!(breaker().with_renew(renew).unwrap_err().field, "renew");
    }
    let policy = BreakerPolicy::default().with_min_calls(0);
    let control = InMemoryControlStore::new();
    let invalid = DistributedBreaker::new("pay", "node-1", policy, control);
    assert_eq!(invalid.unwrap_err().field, "min_calls");
}

/// The whole with its driver, under faults of the store: what the simulation of the machine leaves
/// out are the driver and the real rows.
#[test]
fn processes_close_again_whatever_the_store_does() {
    let mut opened = 0;
    for seed in length::seeds(60, 5_000) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(local(async {
            let faults = Faults::seeded(seed)
                .with(Fault::LoseReply.on([Op::Put, Op::Delete]).one_in(8))
                .with(
                    Fault::LoseRequest
                        .on([Op::Put, Op::Delete, Op::Range])
                        .one_in(8),
                )
                .with(
                    Fault::ApplyLate(7 * SECOND)
                        .on([Op::Put, Op::Delete])
                        .one_in(12),
                )
                .with(Fault::Delay(SECOND).on([Op::Put, Op::Range]).one_in(4));
            let control = faults.control_store(InMemoryControlStore::new());
            let down = Rc::new(Cell::new(false));
            let processes = start(&control, 3);
            for process in &processes {
                let (breaker, down) = (process.breaker.clone(), down.clone());
                spawn_local(async move {
                    loop {
                        let answer = if down.get() { Err(()) } else { Ok(()) };
                        let _ = breaker.call_when(ready(answer), |()| true).await;
                        sleep(SECOND / 2).await;
                    }
                });
            }
            for _ in 0..2 {
                down.set(true);
                sleep(40 * SECOND).await;
                opened += processes
                    .iter()
                    .filter(|process| !process.is_closed())
                    .count();
                down.set(false);
                sleep(10 * SECOND).await;
            }
            faults.disable();
            sleep(180 * SECOND).await;
            assert!(processes.iter().all(Process::is_closed), "seed {seed}");
            assert_eq!(votes(&control).await, 0, "seed {seed}");
            for process in processes {
                process.stop().await;
            }
        }));
    }
    assert!(opened > 0);
}
