//! Runs of many messages, and the one limit of what is published at the same time.
use super::{
    v,
    world::{World, stream},
};
use foldstream::{
    ports::{Message, MessageBus, RefusedKind, RunOutcome},
    publisher::{Notice, PublishError, Publisher},
};
use foldstream_testkit::{
    faults::{Call, Fault, Op},
    intercept::{self, MessageBusLayer, async_trait},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

const S: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_hot_stream_is_sent_in_runs_of_up_to_a_thousand_messages() {
    let world = World::new();
    let hot = stream("hot");
    for _ in 0..250 {
        world.append(&hot, 10).await;
    }
    let publisher = world.publisher_of_runs(&world.faults);
    let report = publisher.publish_stream(&hot).await;
    assert_eq!((report.messages, report.failed.len()), (2500, 0));
    // 1, the rest of the first commit, 90, 1,000, 1,000, and what is left.
    assert!(world.faults.calls(Op::PublishRun) <= 7);
    assert_eq!(world.faults.calls(Op::Publish), 0);
    publisher.publish_pending().await.unwrap();
    world.assert_at_rest().await;
    assert_eq!(world.records().await, 2500);
}

#[tokio::test(start_paused = true)]
async fn a_run_takes_about_a_second_so_that_a_crash_repeats_no_more() {
    let world = World::new();
    let slow = stream("slow");
    for _ in 0..300 {
        world.append(&slow, 1).await;
    }
    // Each message takes 50 ms.
    world.set_fates(|call| match call {
        Call::PublishRun(run) => {
            let messages = u32::try_from(run.len()).unwrap();
            Some(Fault::Delay(Duration::from_millis(50) * messages))
        }
        _ => None,
    });
    let publisher = world.publisher_of_runs(&world.faults);
    let started = tokio::time::Instant::now();
    assert_eq!(publisher.publish_stream(&slow).await.messages, 300);
    let seconds = started.elapsed().as_secs() as usize;
    assert!(
        world.network.marks() + 2 >= seconds,
        "{} in {seconds} s",
        world.network.marks()
    );
}

#[tokio::test]
async fn a_run_that_is_cut_short_goes_on_after_what_is_durable() {
    let world = World::new();
    for n in 0..60 {
        world.append(&stream(&(n % 3).to_string()), 1 + n % 4).await;
    }
    world.cut_runs(2);
    let publisher = world.publisher_of_runs(&world.faults);
    for _ in 0..50 {
        publisher.publish_pending().await.unwrap();
        world.assert_order();
    }
    world.cut_runs(0);
    publisher.publish_pending().await.unwrap();
    world.assert_at_rest().await;
}

#[tokio::test]
async fn a_message_that_the_bus_refuses_is_found_in_its_run() {
    let world = World::new();
    let a = stream("a");
    for _ in 0..10 {
        world.append(&a, 1).await;
    }
    let publisher = world.publisher_of_runs(&world.faults);
    // So that the next run has all messages.
    for n in 0..3 {
        for _ in 0..10 {
            world.append(&stream("other"), 10).await;
        }
        assert!(
            publisher
                .publish_stream(&stream("other"))
                .await
                .failed
                .is_empty(),
            "{n}"
        );
    }
    let refused = Fault::Refused(RefusedKind::Validation).on(Op::PublishRun);
    world.faults.set([refused.matching(|call| match call {
        Call::PublishRun(run) => {
            let is_seventh = |m: &Message| m.header("ce_fsversion") == Some("7");
            call.is_about(&stream("a")) && run.iter().any(is_seventh)
        }
        _ => false,
    })]);
    let report = publisher.publish_stream(&a).await;
    let error = &report.failed[0].error;
    assert!(
        matches!(error, PublishError::Bus { version, .. } if *version == v(7)),
        "{error}"
    );
    assert_eq!(world.watermark(&a).await.unwrap().value.version, v(6));
    world.heal();
    assert_eq!(publisher.publish_stream(&a).await.messages, 4);
    publisher.publish_pending().await.unwrap();
    world.assert_at_rest().await;
}

/// Counts the runs that are under way.
#[derive(Default)]
struct InFlight {
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

#[async_trait]
impl MessageBusLayer for InFlight {
    async fn publish_run(&self, inner: &Arc<dyn MessageBus>, run: &[Message]) -> RunOutcome {
        self.most
            .fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let outcome = inner.publish_run(run).await;
        self.now.fetch_sub(1, SeqCst);
        outcome
    }
}

#[tokio::test(start_paused = true)]
async fn one_limit_of_concurrent_streams_holds_for_all_calls() {
    let world = World::new();
    let most = Arc::new(AtomicUsize::new(0));
    let in_flight = InFlight {
        most: most.clone(),
        ..InFlight::default()
    };
    let bus = intercept::message_bus(world.bus.clone(), in_flight);
    let publisher = Publisher::new(world.store.clone(), bus, world.control.clone());
    let publisher = publisher.with_concurrency(3);
    let mut calls = Vec::new();
    for n in 0..12 {
        let mut notices = Vec::new();
        for m in 0..4 {
            let id = stream(&format!("{n}-{m}"));
            notices.push(world.append(&id, 1).await);
        }
        // Clones share the limit, too.
        let publisher = publisher.clone();
        calls.push(tokio::spawn(
            async move { publisher.publish(notices).await },
        ));
    }
    for call in calls {
        assert_eq!(call.await.unwrap().messages, 4);
    }
    assert_eq!(most.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn notices_of_calls_that_wait_for_a_hot_stream_are_published_together() {
    let world = World::new();
    let hot = stream("hot");
    let publisher = world.publisher_of_runs(&world.faults);
    let first = world.append(&hot, 1).await;
    publisher.publish([first]).await;
    world.faults.set([Fault::Delay(S / 10).on(Op::PublishRun)]);
    let mut calls = Vec::new();
    for _ in 0..40 {
        let commit = world.append(&hot, 1).await;
        let publisher = publisher.clone();
        let call = async move { publisher.publish([Notice::Commit(commit)]).await };
        calls.push(tokio::spawn(call));
    }
    for call in calls {
        assert!(call.await.unwrap().failed.is_empty());
    }
    world.assert_at_rest().await;
    // The first call publishes its own commit, and the second one those of all others.
    assert!(world.network.marks() <= 6, "{}", world.network.marks());
    assert_eq!(world.network.reads(), 0);
    let status = publisher.status();
    assert_eq!((status.published, status.working, status.lag), (41, 0, 0));
    assert_eq!(status.duplicates_suppressed, 38);
}

#[tokio::test(start_paused = true)]
async fn a_hot_stream_takes_turns_with_others() {
    let world = World::new();
    let (hot, other) = (stream("hot"), stream("other"));
    for _ in 0..200 {
        world.append(&hot, 1).await;
    }
    world.append(&other, 1).await;
    // A message takes a second, so that each run has one.
    world.faults.set([Fault::Delay(2 * S).on(Op::PublishRun)]);
    let publisher = world.publisher_of_runs(&world.faults).with_concurrency(1);
    let working = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish_stream(&stream("hot")).await }
    });
    tokio::time::sleep(S).await;
    let report = publisher.publish_stream(&other).await;
    assert_eq!(report.messages, 1);
    assert!(!working.is_finished());
    let status = publisher.status();
    assert_eq!(status.working, 1);
    assert!(status.oldest_unpublished.is_some());
    assert_eq!(working.await.unwrap().messages, 200);
}
