//! Partitions that start or leave hold up no other.
use super::harness::*;
use crate::support::stream;
use foldstream::{
    adapter::kafka_partition,
    ports::{MessageBus, MessageBusError, PartitionOffsets, Subscription},
    runner::{EventContext, HandlerResult, Listener},
};
use foldstream_testkit::{
    InMemoryMessageBus,
    faults::{Call, Fault, Faults, Op},
    intercept::{self, MessageBusLayer, async_trait},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Returns an id whose stream is in this partition of two.
fn id_in(number: u32, name: &str) -> String {
    let in_it = |id: &String| kafka_partition(stream(id).as_str().as_bytes(), 2) == number;
    let mut ids = (0..).map(|n: u32| format!("{name}{n}"));
    ids.find(in_it).expect("there is one")
}

/// Notes the time at which each event was handled. Events of slow streams take ten seconds.
#[derive(Clone, Default)]
struct Timed(Arc<Mutex<Vec<(String, Instant)>>>);
impl Timed {
    fn at(&self, id: &str) -> Option<Instant> {
        let handled = self.0.lock().unwrap();
        handled.iter().find(|(of, _)| of == id).map(|(_, at)| *at)
    }
}
impl Listener for Timed {
    const NAME: &'static str = "seen";
    type Events = crate::support::AccountEvent;
    async fn handle(&self, _: &Self::Events, ctx: &EventContext) -> HandlerResult {
        if ctx.stream().id().starts_with("slow") {
            tokio::time::sleep(10 * SECOND).await;
        }
        let handled = (ctx.stream().id().to_owned(), Instant::now());
        self.0.lock().unwrap().push(handled);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_given_up_does_not_stop_the_one_that_stays() {
    let world = World::on(InMemoryMessageBus::with_grace(20 * SECOND), 2);
    // Who joins second gets the second partition.
    let (slow, quick) = (id_in(1, "slow"), id_in(0, "quick"));
    let seen = Timed::default();
    let runner = world
        .builder()
        .listener_with(seen.clone(), from_beginning());
    let runner = runner.build().unwrap();
    let sent = Mutex::new(None);
    let work = async {
        tokio::time::sleep(SECOND).await;
        world.deposit(&slow).await;
        tokio::time::sleep(SECOND).await;
        let other = world.bus.subscribe(Subscription::new(SEEN, [TOPIC]));
        let other = other.await.unwrap();
        tokio::time::sleep(SECOND).await;
        *sent.lock().unwrap() = Some(Instant::now());
        world.deposit(&quick).await;
        tokio::time::sleep(20 * SECOND).await;
        drop(other);
    };
    runner.run(work).await.into_result().unwrap();
    let (sent, handled) = (sent.lock().unwrap().unwrap(), seen.at(&quick).unwrap());
    assert!(handled - sent < SECOND, "{:?}", handled - sent);
    assert!(
        seen.at(&slow).unwrap() > handled,
        "the other one was still draining"
    );
    let committed = world.bus.committed(SEEN, TOPIC).await.unwrap();
    let of_slow = committed.iter().find(|(p, _)| *p == partition(1)).unwrap();
    assert_eq!(of_slow.1.unwrap().get(), 1, "it drained, and was committed");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_cannot_start_does_not_stop_the_others() {
    let world = World::new(2);
    let (waits, goes) = (id_in(1, "waits"), id_in(0, "goes"));
    for id in [&waits, &goes] {
        world.deposit(id).await;
    }
    let starts_second = |call: &Call<'_>| {
        notes_the_start(call)
            && matches!(call, Call::Put { row, .. } if row.key.sort.ends_with("00001"))
    };
    let away = Fault::Unavailable.on(Op::Put).matching(starts_second);
    let (faults, seen) = (Faults::script([away]), Seen::new());
    let runner = world.faulty_builder(&faults);
    let runner = runner.listener_with(seen.clone(), from_beginning());
    let work = async {
        tokio::time::sleep(600 * SECOND).await;
        assert!(
            !faults.log().is_empty(),
            "the second partition is not started"
        );
        assert_eq!((seen.of(&waits), seen.of(&goes)), (vec![], vec![1]));
        faults.set([]);
        tokio::time::sleep(60 * SECOND).await;
    };
    runner
        .build()
        .unwrap()
        .run(work)
        .await
        .into_result()
        .unwrap();
    assert_eq!((seen.of(&waits), seen.of(&goes)), (vec![1], vec![1]));
}

/// A bus that does not tell of the second partition, and counts how often the group is joined.
#[derive(Default)]
struct HidesThePartition(AtomicU32);
#[async_trait]
impl MessageBusLayer for HidesThePartition {
    async fn subscribe(
        &self,
        inner: &Arc<dyn MessageBus>,
        subscription: Subscription,
    ) -> Result<Arc<dyn foldstream::ports::Consumer>, MessageBusError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        inner.subscribe(subscription).await
    }
    async fn offsets(
        &self,
        inner: &Arc<dyn MessageBus>,
        topic: &str,
    ) -> Result<Vec<PartitionOffsets>, MessageBusError> {
        let mut offsets = inner.offsets(topic).await?;
        offsets.retain(|offsets| offsets.partition == partition(0));
        Ok(offsets)
    }
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_joins_again_for_a_partition_without_a_start_backs_off() {
    let world = World::new(2);
    let goes = id_in(0, "goes");
    world.deposit(&goes).await;
    let bus = intercept::message_bus(world.bus.clone(), HidesThePartition::default());
    let control = world.control.clone();
    let seen = Seen::new();
    let runner = foldstream::runner::Runner::builder(bus.clone(), control, "example-group");
    let runner = runner.listener_with(seen.clone(), from_beginning());
    let work = async {
        for _ in 0..60 {
            tokio::time::sleep(10 * SECOND).await;
            world.deposit(&goes).await;
        }
        tokio::time::sleep(20 * SECOND).await;
    };
    runner
        .build()
        .unwrap()
        .run(work)
        .await
        .into_result()
        .unwrap();
    // The pauses are drawn from 0 to a bound that grows to ten seconds, although the first
    // partition starts well each time, and its events are handled and committed.
    let joins = bus.layer().0.load(Ordering::SeqCst);
    assert!((20..250).contains(&joins), "{joins}");
    assert_eq!(seen.of(&goes), (1..=61).collect::<Vec<_>>());
}
