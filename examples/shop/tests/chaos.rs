//! The bad day of the shop ends well, on every run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use shop::{backend::Backend, chaos};

/// The turns of the story, in order. Each is a part of a line.
const TURNS: [&str; 14] = [
    "orders are checked out and paid, each once",
    "the circuit breaker opens",
    "it is half-open",
    "the breaker closes",
    "worker-b is gone",
    "worker-a takes over its partitions",
    "commands are accepted all the same",
    "nothing has halted",
    "the projector parks this one cart",
    "they become dead letters",
    "worker-c has started",
    "is done: ",
    "every order is paid once",
    "They equal a direct aggregation",
];

async fn story(seed: u64) -> String {
    let mut told = Vec::new();
    chaos::tell(&Backend::embedded(), seed, &mut told)
        .await
        .unwrap();
    String::from_utf8(told).unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_turn_of_the_bad_day_is_told_in_order() {
    let story = story(1).await;
    let mut rest = &*story;
    for turn in TURNS {
        let (_, after) = rest
            .split_once(turn)
            .unwrap_or_else(|| panic!("{turn}: {story}"));
        rest = after;
    }
    assert!(
        story.contains(", 0 dead letters"),
        "an outage costs none: {story}"
    );
    assert!(story.contains("1 stream of sales parked"), "{story}");
    assert!(story.contains("raise the limit"), "{story}");
    assert!(
        story.contains("ann redrive sales stream"),
        "the audit names the operator: {story}"
    );
}

/// The story checks its totals itself, and fails if they differ.
#[tokio::test(start_paused = true)]
async fn the_totals_are_right_whatever_the_customers_do() {
    for seed in 2..6 {
        assert!(
            story(seed).await.contains("every order is paid once"),
            "seed {seed}"
        );
    }
}
