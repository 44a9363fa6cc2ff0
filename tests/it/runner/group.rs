//! Several instances of one processor.
use super::harness::*;
use foldstream::{
    ports::MessageBus,
    runner::{EventContext, HandlerError, HandlerResult, Listener},
};
use foldstream_testkit::InMemoryMessageBus;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

#[tokio::test(start_paused = true)]
async fn instances_share_the_partitions_and_lose_nothing_when_they_come_and_go() {
    let world = Arc::new(World::new(6));
    let seen = Seen::new();
    let stop_first = CancellationToken::new();
    let run = |stop: CancellationToken, seen: Seen| {
        let runner = world
            .builder()
            .listener_with(seen, from_beginning())
            .build()
            .unwrap();
        tokio::spawn(async move { runner.run(stop.cancelled_owned()).await })
    };
    let first = run(stop_first.clone(), seen.clone());
    let write = |from: u64| {
        let world = world.clone();
        async move {
            for _ in from..from + 10 {
                for id in 0..12 {
                    world.deposit(&id.to_string()).await;
                }
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        }
    };
    write(0).await;
    let stop_second = CancellationToken::new();
    let second = run(stop_second.clone(), seen.clone());
    write(10).await;
    stop_first.cancel();
    first.await.unwrap().into_result().unwrap();
    write(20).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    stop_second.cancel();
    second.await.unwrap().into_result().unwrap();
    assert_eq!(world.committed(SEEN).await, world.ends().await);
    for id in 0..12 {
        // All partitions were handed over in order, so no event is repeated.
        assert_eq!(
            seen.of(&id.to_string()),
            (1..=30).collect::<Vec<_>>(),
            "stream {id}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_expelled_commits_nothing_and_what_it_had_comes_again() {
    let world = Arc::new(World::new(1));
    for _ in 0..3 {
        world.deposit("a").await;
    }
    let seen = Seen::new();
    let runner = world
        .builder()
        .listener_with(
            seen.clone(),
            from_beginning().with_commit_interval(Duration::from_secs(60)),
        )
        .build()
        .unwrap();
    let work = async {
        // The first tick of the commit timer is immediate, and the next is a minute away.
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(seen.of("a"), [1, 2, 3]);
        world.bus.expel(SEEN);
        tokio::time::sleep(Duration::from_secs(100)).await;
    };
    runner.run(work).await.into_result().unwrap();
    // Delivery is at least once: the three events come again under the new assignment, in order.
    assert_eq!(seen.of("a"), [1, 2, 3, 1, 2, 3]);
    assert_eq!(world.committed(SEEN).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_kept_when_an_older_one_of_a_partition_that_was_lost_ends() {
    let world = Arc::new(World::new(1));
    world.deposit("a").await;
    let pause = Duration::from_secs(60);
    let attempts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let times = attempts.clone();
    let seen = Seen::failing(move |_, _, _| {
        times.lock().unwrap().push(tokio::time::Instant::now());
        Err(HandlerError::throttled(pause, "slow down"))
    });
    let runner = world.builder().listener_with(seen, from_beginning());
    let work = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        world.bus.expel(SEEN);
        tokio::time::sleep(Duration::from_secs(150)).await;
    };
    let report = runner.build().unwrap().run(work).await;
    assert!(report.into_result().is_ok());
    let attempts = attempts.lock().unwrap();
    // The first event is handled at once, because it came again. After that, the pauses count.
    let waits: Vec<_> = attempts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(waits.len() >= 2, "{waits:?}");
    assert!(waits[1..].iter().all(|wait| *wait >= pause), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_goes_during_the_drain_is_given_up_in_time_and_the_others_are_committed() {
    let bus = InMemoryMessageBus::with_grace(Duration::from_secs(1));
    let world = World::on(bus, 2);
    for n in 0..10 {
        world.deposit(&n.to_string()).await;
    }
    let policy = from_beginning().with_commit_interval(Duration::from_secs(600));
    let last = Arc::new(tokio::sync::Notify::new());
    let busy = BusyAtTheEnd(Seen::new(), last.clone());
    let runner = world.builder().listener_with(busy, policy);
    let joins = async {
        // This is after the first tick of the commit timer, which is immediate.
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.deposit("slow").await;
        last.notified().await;
        let wish = foldstream::ports::Subscription::new(SEEN, [TOPIC]);
        let other = world.bus.subscribe(wish).await.unwrap();
        // The consumer is held until the end: it takes one of the two partitions while the first
        // instance still drains.
        std::mem::forget(other);
    };
    let report = runner.build().unwrap().run(joins).await;
    assert!(report.into_result().is_ok());
    let committed = world.bus.committed(SEEN, TOPIC).await.unwrap();
    let kept: Vec<_> = committed
        .iter()
        .map(|(_, next)| next.unwrap().get())
        .collect();
    let ends = world.bus.offsets(TOPIC).await.unwrap();
    assert_eq!(kept[0], ends[0].end.get(), "{committed:?}");
    // The handler of the other partition takes five seconds, and the group waits for one: the
    // partition that goes is committed at once.
    assert_eq!(kept[1], ends[1].end.get(), "{committed:?}");
}

/// A listener that takes five seconds per event of the stream named slow.
struct BusyAtTheEnd(Seen, Arc<tokio::sync::Notify>);
impl Listener for BusyAtTheEnd {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, event: &Self::Events, ctx: &EventContext) -> HandlerResult {
        if ctx.stream().id() == "slow" {
            self.1.notify_one();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        self.0.handle(event, ctx).await
    }
}
