//! Circuit breakers that processes share, as operators see them.
use super::world::World;
use foldstream::{
    breaker::{BreakerPolicy, CircuitBreaker, DistributedBreaker},
    operate::{BreakerStatus, OperateError, VoteState},
};
use foldstream_testkit::{
    SeededIds,
    faults::{Fault, Op},
};
use std::{future::ready, time::Duration};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);

struct Process {
    breaker: CircuitBreaker,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Process {
    fn start(world: &World, name: &str, instance: &str, quorum: usize) -> Self {
        let control = world.faults.control_store(world.rows.clone());
        let part = DistributedBreaker::new(name, instance, BreakerPolicy::default(), control);
        let part = part.unwrap().with_quorum(quorum).unwrap();
        // Two processes never draw the same revision.
        let seed = instance
            .bytes()
            .fold(7, |seed, byte| seed * 31 + u64::from(byte));
        let part = part.with_ids(SeededIds::new(seed));
        let (breaker, stop) = (part.breaker(), CancellationToken::new());
        let task = tokio::spawn(part.run(stop.clone()));
        Self {
            breaker,
            task,
            stop,
        }
    }
    async fn fail(&self) {
        for _ in 0..5 {
            let call = ready(Err::<(), _>("busy"));
            assert!(self.breaker.call_when(call, |_| true).await.is_err());
        }
    }
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn votes(status: &BreakerStatus) -> Vec<(&str, u64, VoteState)> {
    let votes = status.votes.iter();
    votes
        .map(|vote| (&*vote.instance, vote.epoch, vote.state))
        .collect()
}

#[tokio::test]
async fn a_breaker_is_shown_with_its_settings_epoch_votes_and_probe() {
    let world = World::new(1).await;
    world.put("breaker", "pay", r#"{"q":3,"r":5000}"#).await;
    world.put("breaker/pay", "!epoch", r#"{"e":4}"#).await;
    world.put("breaker/pay", "vote/b", r#"{"e":4}"#).await;
    world.put("breaker/pay", "vote/a#1", r#"{"e":3}"#).await;
    world.put("breaker/pay", "vote/odd", "no json").await;
    let probe = r#"{"e":9,"o":"node#1#0123","t":15000,"w":2000}"#;
    world.put("breaker/pay", "probe", probe).await;
    let operator = world.operator();

    let status = operator.breaker("pay").await.unwrap();
    assert_eq!((&*status.name, status.epoch), ("pay", 4));
    assert_eq!((status.quorum, status.renew), (Some(3), Some(5 * SECOND)));
    let expected = [
        ("a#1", 3, VoteState::Outdated),
        ("b", 4, VoteState::Unknown),
    ];
    assert_eq!(votes(&status), expected);
    let probe = status.probe.unwrap();
    assert_eq!(
        probe.owner.as_deref(),
        Some("node#1"),
        "without its random part"
    );
    assert_eq!(
        (probe.epoch, probe.open_time, probe.lease_time),
        (9, 2 * SECOND, 15 * SECOND)
    );

    world
        .put("breaker/pay", "probe", r#"{"e":9,"t":15000,"w":2000}"#)
        .await;
    let released = operator.breaker("pay").await.unwrap().probe.unwrap();
    assert_eq!(released.owner, None);
}

#[tokio::test]
async fn a_vote_counts_for_an_operator_only_if_it_was_renewed_between_two_reads() {
    let world = World::new(1).await;
    world.put("breaker", "pay", r#"{"q":1,"r":5000}"#).await;
    world.put("breaker/pay", "!epoch", r#"{"e":1}"#).await;
    for (label, epoch) in [("crashed", 1), ("lives", 1), ("old", 0)] {
        let vote = format!(r#"{{"e":{epoch}}}"#);
        world
            .put("breaker/pay", &format!("vote/{label}"), &vote)
            .await;
    }
    let operator = world.operator();
    let first = operator.breaker("pay").await.unwrap();
    assert_eq!((first.counting(), first.is_open()), (0, false), "seen once");
    let again = operator.breaker("pay").await.unwrap().compared_with(&first);
    assert_eq!(
        (again.counting(), again.is_open()),
        (0, false),
        "seen twice, the same"
    );

    // One vote of each kind is written again, and another process votes for the first time.
    world.put("breaker/pay", "vote/lives", r#"{"e":1}"#).await;
    world.put("breaker/pay", "vote/old", r#"{"e":0}"#).await;
    world.put("breaker/pay", "vote/new", r#"{"e":1}"#).await;
    let second = operator.breaker("pay").await.unwrap().compared_with(&first);
    let expected = [
        ("crashed", 1, VoteState::Still),
        ("lives", 1, VoteState::Counts),
        ("new", 1, VoteState::Unknown),
        ("old", 0, VoteState::Outdated),
    ];
    assert_eq!(votes(&second), expected);
    assert_eq!((second.counting(), second.is_open()), (1, true));
}

#[tokio::test]
async fn a_breaker_that_is_not_there_is_an_error_that_names_the_others() {
    let world = World::new(1).await;
    world.put("breaker", "pay", r#"{"q":2,"r":5000}"#).await;
    let operator = world.operator();
    for name in ["ship", ""] {
        let error = operator.breaker(name).await.unwrap_err();
        assert!(
            matches!(error, OperateError::UnknownBreaker { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("known are pay"), "{error}");
    }
    // Processes of an older build vote without having listed the breaker.
    world.put("breaker/ship", "vote/a", r#"{"e":0}"#).await;
    let status = operator.breaker("ship").await.unwrap();
    assert_eq!(
        (status.quorum, status.renew, status.is_open()),
        (None, None, false)
    );
    assert_eq!(votes(&status), [("a", 0, VoteState::Unknown)]);
}

#[tokio::test]
async fn breakers_are_listed_by_pages() {
    let world = World::new(1).await;
    for n in 0..7 {
        world
            .put("breaker", &format!("b{n}"), r#"{"q":2,"r":1000}"#)
            .await;
    }
    world.put("breaker/b3", "!epoch", r#"{"e":5}"#).await;
    // Backends return empty pages, too.
    world.faults.set([Fault::EmptyPage.on(Op::Range).every(2)]);
    let all = world.operator().breakers().await.unwrap();
    let found: Vec<_> = all.iter().map(|b| (&*b.name, b.epoch)).collect();
    let expected = [
        ("b0", 0),
        ("b1", 0),
        ("b2", 0),
        ("b3", 5),
        ("b4", 0),
        ("b5", 0),
        ("b6", 0),
    ];
    assert_eq!(found, expected);
}

#[tokio::test(start_paused = true)]
async fn an_operator_sees_how_processes_vote_and_stop() {
    let world = World::new(1).await;
    let operator = world.operator();
    let processes = ["node-1", "node-2", "node-3"];
    let [first, second, third] = processes.map(|name| Process::start(&world, "pay", name, 2));
    sleep(SECOND).await;
    let names: Vec<_> = operator.breakers().await.unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!((names[0].votes.len(), names[0].is_open()), (0, false));

    first.fail().await;
    second.fail().await;
    sleep(SECOND).await;
    let early = operator.breaker("pay").await.unwrap();
    sleep(early.renew.unwrap()).await;
    let status = operator.breaker("pay").await.unwrap().compared_with(&early);
    let expected = [
        ("node-1", 0, VoteState::Counts),
        ("node-2", 0, VoteState::Counts),
    ];
    assert_eq!(votes(&status), expected);
    assert!(status.is_open());
    for process in [first, second, third] {
        process.stop().await;
    }
    let status = operator.breaker("pay").await.unwrap();
    assert!(status.votes.is_empty() && !status.is_open());
}

#[tokio::test(start_paused = true)]
async fn a_process_lists_its_breaker_as_soon_as_the_store_lets_it() {
    let world = World::new(1).await;
    world.faults.set([Fault::Unavailable.on(Op::Put)]);
    let process = Process::start(&world, "pay", "node-1", 2);
    sleep(20 * SECOND).await;
    assert!(world.texts("breaker").await.is_empty());
    world.faults.set([]);
    sleep(6 * SECOND).await;
    let row = |value: &str| vec![("pay".to_owned(), value.to_owned())];
    assert_eq!(world.texts("breaker").await, row(r#"{"q":2,"r":5000}"#));
    process.stop().await;

    // The process that starts last says how many votes it takes, and keeps what it does not know.
    world
        .put("breaker", "pay", r#"{"q":2,"r":5000,"new":1}"#)
        .await;
    let process = Process::start(&world, "pay", "node-2", 3);
    sleep(SECOND).await;
    let expected = row(r#"{"q":3,"r":5000,"new":1}"#);
    assert_eq!(world.texts("breaker").await, expected);
    process.stop().await;
}
