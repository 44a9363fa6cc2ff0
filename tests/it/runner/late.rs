//! Events that come after newer ones of their stream, because a topic has grown.
use super::harness::*;
use crate::support::stream;
use foldstream::{adapter::kafka_partition, runner::ProcessorPolicy};
use foldstream_testkit::faults::{Call, Fault, Faults, Op};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn partition_of(id: &str, partitions: u32) -> u32 {
    kafka_partition(stream(id).as_str().as_bytes(), partitions)
}

/// Returns an id whose stream is in another partition each time that a topic grows.
fn moving(sizes: &[u32]) -> String {
    let moves = |id: &String| {
        let mut numbers: Vec<_> = sizes.iter().map(|size| partition_of(id, *size)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len() == sizes.len()
    };
    let mut ids = (0..).map(|n: u32| n.to_string());
    ids.find(moves).expect("there is one")
}

/// Publishes six events of a stream to a topic that grows before the third and the sixth.
async fn grown(id: &str) -> World {
    let world = World::new(1);
    for version in 1..=6 {
        match version {
            3 => world.bus.set_partitions(TOPIC, 4).unwrap(),
            6 => world.bus.set_partitions(TOPIC, 16).unwrap(),
            _ => {}
        }
        world.deposit(id).await;
    }
    world
}

/// Returns true for the call that lets a partition start.
fn starts(number: u32) -> impl Fn(&Call<'_>) -> bool + Send + Sync + 'static {
    move |call| {
        let suffix = format!("{number:05}");
        notes_the_start(call)
            && matches!(call, Call::Put { row, .. } if row.key.sort.ends_with(&suffix))
    }
}

#[tokio::test(start_paused = true)]
async fn late_events_of_two_partitions_are_handled_and_not_dropped_as_duplicates() {
    let sizes = [1, 4, 16];
    let id = moving(&sizes);
    let [first, second, third] = sizes.map(|size| partition_of(&id, size));
    // Each order in which the three partitions may start, without an event store.
    let orders = [
        ([first, second, third], vec![1, 2, 3, 4, 5, 6]),
        ([third, second, first], vec![6, 3, 4, 5, 1, 2]),
        ([third, first, second], vec![6, 1, 2, 3, 4, 5]),
        ([second, third, first], vec![3, 4, 5, 6, 1, 2]),
    ];
    for (order, expected) in orders {
        let world = grown(&id).await;
        let away = |number| Fault::Unavailable.on(Op::Put).matching(starts(number));
        let faults = Faults::script([away(order[1]), away(order[2])]);
        let seen = Seen::new();
        let runner = world.faulty_builder(&faults);
        let runner = runner.listener_with(seen.clone(), from_beginning());
        let work = async {
            tokio::time::sleep(60 * SECOND).await;
            faults.set([away(order[2])]);
            tokio::time::sleep(60 * SECOND).await;
            faults.set([]);
            tokio::time::sleep(60 * SECOND).await;
        };
        let report = runner.build().unwrap().run(work).await;
        let report = report.into_result().unwrap();
        assert_eq!(seen.of(&id), expected);
        assert_eq!(report[0].duplicates, 0);
        let newest = expected.iter().scan(0, |newest, version| {
            let is_late = *version < *newest;
            *newest = (*newest).max(*version);
            Some(u64::from(is_late))
        });
        assert_eq!(report[0].out_of_order, newest.sum::<u64>());
        assert_eq!(world.committed(SEEN).await, world.ends().await);
    }
}

#[tokio::test(start_paused = true)]
async fn with_an_event_store_the_same_events_are_filled_in_order_and_come_as_duplicates() {
    let sizes = [1, 4, 16];
    let id = moving(&sizes);
    let [first, second, _] = sizes.map(|size| partition_of(&id, size));
    let world = grown(&id).await;
    let model = std::sync::Arc::new(Model::default());
    let away = |number| Fault::Unavailable.on(Op::Put).matching(starts(number));
    let faults = Faults::script([away(first), away(second)]);
    let runner = world.faulty_builder(&faults);
    let runner = runner.with_event_store(world.store.clone());
    let runner = runner.projector_with(model.clone(), ProcessorPolicy::projector());
    let work = async {
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(model.versions(&id), [1, 2, 3, 4, 5, 6]);
        faults.set([]);
        tokio::time::sleep(60 * SECOND).await;
    };
    let report = runner.build().unwrap().run(work).await;
    let report = report.into_result().unwrap();
    assert_eq!(model.versions(&id), [1, 2, 3, 4, 5, 6]);
    assert_eq!((report[0].filled, report[0].duplicates), (5, 5));
}
