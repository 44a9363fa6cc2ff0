//! Everything at once, from a seed: crashes at every await, lost and late answers, reordered,
//! duplicate and lost notices, two publishers.
//!
//! The network asserts at each step that nothing is marked or cleared too early.
use super::world::{World, stream};
use fastrand::Rng;
use foldstream::{
    ports::Commit,
    publisher::{Notice, Publisher},
};
use foldstream_testkit::{
    faults::{Fault, Op, Rule},
    length,
};
use std::{future::Future, pin::pin, time::Duration};

fn run<F: Future<Output = ()>>(future: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future);
}

/// Polls a future at most this many times. Returns true if it was ready.
async fn polled(future: impl Future, mut times: usize) -> bool {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        if times == 0 {
            return std::task::Poll::Ready(false);
        }
        times -= 1;
        future.as_mut().poll(context).map(|_| true)
    })
    .await
}

#[test]
fn a_crash_at_any_await_loses_and_reorders_nothing() {
    // Once with new stores, and once after a process has already published.
    for earlier in [0, 2] {
        for awaits in 1.. {
            let mut done = false;
            run(async {
                let world = World::new();
                for _ in 0..earlier {
                    world.append(&stream("a"), 2).await;
                }
                world.publisher().publish_pending().await.unwrap();
                for id in ["a", "b", "a", "a"] {
                    world.append(&stream(id), 2).await;
                }
                let publisher = world.publisher().with_concurrency(1);
                done = polled(publisher.publish_pending(), awaits).await;
                world.assert_order();
                world.publisher().publish_pending().await.unwrap();
                world.assert_at_rest().await;
            });
            if done {
                assert!(
                    awaits > 30,
                    "only {awaits} awaits: the crashes were not where they should be"
                );
                break;
            }
        }
    }
}

/// Makes one call in five fail in some way, and delays each.
fn faulty() -> [Rule; 4] {
    let ms = Duration::from_millis;
    [
        Fault::Unavailable.anywhere().one_in(15),
        Fault::LoseReply.anywhere().one_in(15),
        Fault::ApplyLate(ms(60))
            .on([Op::Publish, Op::Put])
            .one_in(15)
            .jittered(),
        Fault::Delay(ms(4)).anywhere().jittered(),
    ]
}

/// Picks some notices of the stored commits, in any order, some duplicate, some missing, some as
/// commits.
fn bells(rng: &mut Rng, commits: &[Commit]) -> Vec<Notice> {
    let mut bells = Vec::new();
    for commit in commits.iter().rev().take(12) {
        for _ in 0..rng.usize(0..3) {
            bells.push(if rng.bool() {
                Notice::Commit(commit.clone())
            } else {
                Notice::Key(commit.key())
            });
        }
    }
    rng.shuffle(&mut bells);
    bells
}

/// Runs a process that publishes until it is killed at any point.
async fn process(publisher: &Publisher, bells: Vec<Notice>, lives: Duration, lists: bool) {
    let work = async {
        if lists {
            // The next process does what this one could not.
            let _ = publisher.publish_pending().await;
        } else {
            let _ = publisher.publish(bells).await;
        }
    };
    let _ = tokio::time::timeout(lives, work).await;
}

async fn simulate(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let world = World::seeded(seed);
    world.faults.set(faulty());
    let streams: Vec<_> = (0..rng.usize(1..4))
        .map(|n| stream(&n.to_string()))
        .collect();
    let mut publishers = [world.publisher(), world.publisher()];
    let mut commits = Vec::new();
    for _ in 0..25 {
        for _ in 0..rng.usize(0..4) {
            let stream = &streams[rng.usize(..streams.len())];
            commits.push(world.append(stream, rng.usize(1..4)).await);
        }
        let mut lives = || Duration::from_millis(rng.u64(0..150));
        let lives = [lives(), lives()];
        let rung = [bells(&mut rng, &commits), bells(&mut rng, &commits)];
        let lists = [rng.u8(0..4) == 0, rng.u8(0..4) == 0];
        let [first, second] = rung;
        tokio::join!(
            process(&publishers[0], first, lives[0], lists[0]),
            process(&publishers[1], second, lives[1], lists[1]),
        );
        world.assert_order();
        if rng.u8(0..3) == 0 {
            // A new process remembers nothing.
            publishers[rng.usize(..2)] = world.publisher();
        }
    }
    // Late sends and writes arrive. Then the faults end, and the list makes up for every lost
    // notice.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.heal();
    for publisher in &publishers {
        let report = publisher.publish_pending().await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
    }
    world.assert_at_rest().await;
}

#[test]
fn whatever_happens_first_occurrences_are_in_order_and_at_rest_everything_is_published() {
    for seed in length::seeds(300, 5_000) {
        run(simulate(seed));
    }
}

#[test]
fn a_seed_replays_bit_for_bit() {
    let history = |seed| {
        let mut history = Vec::new();
        run(async {
            let world = World::seeded(seed);
            world.faults.set(faulty());
            for n in 0..20 {
                world.append(&stream(&(n % 3).to_string()), 1 + n % 2).await;
            }
            for _ in 0..5 {
                let _ = world.publisher().publish_pending().await;
            }
            history = world.network.done();
        });
        assert!(history.len() > 20);
        history
    };
    assert_eq!(history(7), history(7));
    assert_ne!(history(7), history(8));
}
