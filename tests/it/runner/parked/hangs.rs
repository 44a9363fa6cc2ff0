//! Calls of the bus and of the control store that never return.
use super::views::*;
use foldstream_testkit::faults::{Call, Fault, Faults, Op, Rule};
use std::time::Duration;

fn of_park_row(call: &Call<'_>) -> bool {
    matches!(call, Call::Put { row, .. } if row.key.partition.starts_with("park/"))
}

fn of_pause(call: &Call<'_>) -> bool {
    matches!(call, Call::Get(key) if key.partition.starts_with("op/"))
}

/// Lets one call hang while a stream is parked, and expects that the processor goes on without it.
async fn goes_on_after(hang: Rule) {
    let shop = Shop::new(&[("a", 2)]);
    shop.deposits(&["a"]).await;
    let faults = Faults::none();
    let builder = shop.world.faulty_builder(&faults);
    let builder = builder.with_event_store(shop.world.store.clone());
    let runner = builder.projector_with(shop.views.clone(), policy());
    let running = Running::start(runner.build().unwrap());
    seconds(20).await;
    faults.set([hang]);
    shop.deposits(&["a", "a", "b"]).await;
    shop.operator.announce().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shop.views.of("b"), [1]);
    assert_eq!(shop.world.committed(VIEWS).await, shop.world.ends().await);
    shop.views.fix();
    shop.operator.redrive("a").await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shop.views.of("a"), [1, 2, 3]);
    assert_eq!(shop.operator.all("park").await.len(), 0);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_never_returns_is_repeated() {
    goes_on_after(Fault::Hang.on(Op::Get).matching(of_pause).first(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_never_returns_is_repeated() {
    goes_on_after(Fault::Hang.on(Op::Range).first(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_never_returns_is_repeated() {
    goes_on_after(Fault::Hang.on(Op::Commit).first(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_never_written_is_written_again() {
    goes_on_after(Fault::Hang.on(Op::Put).matching(of_park_row).first(1)).await;
}
