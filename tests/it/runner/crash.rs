//! Crashes at any moment, with duplicates and holes on the bus, on backends that fail and lose
//! answers.
//!
//! A stored position takes each event exactly once.
use super::harness::*;
use std::{sync::Arc, time::Duration};

async fn history(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::new(3);
    let mut commits = Vec::new();
    for _ in 0..30 {
        let id = rng.u32(0..4).to_string();
        commits.push(world.store(&id, rng.usize(1..4)).await);
    }
    let model = Arc::new(Model::default());
    let faults = unreliable(seed);
    let mut published = 0;
    while published < commits.len() {
        // A few commits, some duplicate, some never sent (which the publisher would not do). The
        // last of each stream is always sent.
        for _ in 0..rng.usize(1..6) {
            let Some(commit) = commits.get(published) else {
                break;
            };
            let is_last = !commits[published + 1..]
                .iter()
                .any(|c| c.stream == commit.stream);
            for _ in 0..if is_last { 1 } else { rng.usize(0..3) } {
                world.publish(commit).await;
            }
            published += 1;
        }
        // The process ends after this many steps of the scheduler or this time. All that it has in
        // memory is lost.
        let runner = world
            .faulty_builder(&faults)
            .with_event_store(world.store.clone())
            .projector(model.clone())
            .build()
            .unwrap();
        let death = async {
            if rng.bool() {
                tokio::time::sleep(Duration::from_millis(rng.u64(0..3_000))).await;
            }
            for _ in 0..rng.u32(0..300) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = death => {}
            report = runner.run(std::future::pending()) => panic!("seed {seed}: {report:?}"),
        }
    }
    let runner = world
        .faulty_builder(&faults)
        .with_event_store(world.store.clone())
        .projector(model.clone())
        .build()
        .unwrap();
    runner.run_until_caught_up().await.into_result().unwrap();
    for commit in &commits {
        let id = commit.stream.id();
        let last = commits
            .iter()
            .rfind(|c| c.stream == commit.stream)
            .unwrap()
            .last_version();
        let expected: Vec<_> = (1..=last.get()).collect();
        assert_eq!(model.versions(id), expected, "seed {seed}, stream {id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stored_position_gives_each_event_exactly_once_whenever_the_process_dies() {
    for seed in foldstream_testkit::length::seeds(150, 3_000) {
        history(seed).await;
    }
}
