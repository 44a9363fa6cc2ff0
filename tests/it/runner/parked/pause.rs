//! A processor that an operator has paused.
use super::super::harness::*;
use super::views::*;
use foldstream::{
    Backoff, RetryPolicy,
    operate::{Operator, Reason},
    ports::ControlStore,
    runner::{HandlerError, ProcessorPolicy, Start},
};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const S: Duration = Duration::from_secs(1);

fn reason() -> Reason {
    Reason::new("ann", "the database moves").unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_starts_handles_nothing_before_it_knows_of_a_pause() {
    let shop = Shop::new(&[]);
    shop.deposits(&["a"]).await;
    let running = shop.start();
    seconds(5).await;
    running.stop().await;
    let operator = Operator::new(shop.world.control.clone() as Arc<dyn ControlStore>);
    operator.pause("views", &reason()).await.unwrap();
    shop.deposits(&["a", "a"]).await;
    let is_pause = |c: &Call<'_>| matches!(c, Call::Get(key) if key.partition.starts_with("op/"));
    for fault in [Fault::Delay(3 * S), Fault::Throttled(None)] {
        let faults = Faults::script([fault.on(Op::Get).matching(is_pause).first(1)]);
        let builder = shop.world.faulty_builder(&faults);
        let builder = builder.with_event_store(shop.world.store.clone());
        let runner = builder.projector_with(shop.views.clone(), policy());
        let running = Running::start(runner.build().unwrap());
        seconds(20).await;
        assert_eq!(shop.views.of("a"), [1]);
        running.stop().await;
    }
    operator.resume("views", &reason()).await.unwrap();
    let running = shop.start();
    seconds(20).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_pause_does_not_count_towards_the_limit_of_retries() {
    let world = World::new(1);
    let is_down = Arc::new(AtomicBool::new(true));
    let fails = is_down.clone();
    let seen = Seen::failing(move |_, _, attempt| {
        // Once it fails after the pause, too.
        if fails.load(Ordering::SeqCst) || attempt < 4 {
            return Err(HandlerError::transient("a hiccup"));
        }
        Ok(())
    });
    let retry = RetryPolicy::default()
        .with_backoff(Backoff::new(20 * S, 20 * S).with_seed(1))
        .with_immediate(0)
        .with_max_elapsed(120 * S);
    let policy = ProcessorPolicy::listener()
        .with_start(Start::Beginning)
        .with_retry(retry)
        .without_breaker();
    let runner = world.builder().listener_with(seen.clone(), policy);
    let runner = runner.build().unwrap();
    let work = async {
        seconds(5).await;
        world.deposit("a").await;
        seconds(1).await;
        let operator = Operator::new(world.control.clone() as Arc<dyn ControlStore>);
        operator.pause("seen", &reason()).await.unwrap();
        seconds(3_600).await;
        is_down.store(false, Ordering::SeqCst);
        operator.resume("seen", &reason()).await.unwrap();
        seconds(110).await;
    };
    let report = runner.run(work).await.into_result().unwrap();
    assert_eq!((seen.of("a"), report[0].dead_letters), (vec![1], 0));
    assert!(report[0].retries >= 2, "{report:?}");
}
