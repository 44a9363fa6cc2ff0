//! Durations that a configuration may use for "never".
use super::harness::*;
use std::time::Duration;

async fn with_longest(what: &str) {
    let world = World::new(1);
    world.deposit("a").await;
    let (seen, longest, mut policy) = (Seen::new(), Duration::MAX, from_beginning());
    if what == "attempt" {
        policy = policy.with_attempt_timeout(longest);
    }
    if what == "commit" {
        policy = policy.with_commit_interval(longest);
    }
    if what == "drain" {
        policy = policy.with_drain(longest);
    }
    let mut builder = world.builder().listener_with(seen.clone(), policy);
    if what == "lag" {
        builder = builder.with_lag_interval(longest);
    }
    if what == "shutdown" {
        builder = builder.with_shutdown_timeout(longest);
    }
    let runner = builder.build().unwrap();
    let report = runner
        .run(tokio::time::sleep(Duration::from_secs(60)))
        .await;
    assert!(report.processors[0].error.is_none(), "{what}: {report:?}");
    assert_eq!(
        (seen.of("a"), world.committed(SEEN).await),
        (vec![1], 1),
        "{what}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_longest_duration_means_never() {
    for what in ["attempt", "lag", "shutdown", "commit", "drain"] {
        with_longest(what).await;
    }
}
