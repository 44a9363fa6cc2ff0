//! Batches of the table's stream: which streams are published, which are set aside, and which
//! records come again.
use super::world::{S, TIMEOUT, World, handle, invoke, number, stream};
use foldstream::{Version, ports::TopicDescription, publisher::DirtyReason};
use foldstream_lambda::{HandlerError, InvalidEvent};
use foldstream_testkit::faults::{Call, Fault, Op};
use serde_json::{Value, json};
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

/// Refuses every row of a dirty stream.
fn no_dirty_rows() -> foldstream_testkit::faults::Rule {
    let is_dirty = |call: &Call<'_>| matches!(call, Call::Put { row, .. } if row.key.partition.starts_with("dirty/"));
    Fault::Unavailable.on(Op::Put).matching(is_dirty)
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_published_and_may_be_forgotten() {
    let (world, mut records) = (World::new(), Vec::new());
    for id in ["a", "b", "a", "c", "a"] {
        records.push(world.append(id, 2).await);
    }
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert_eq!(world.records_in_topic().await, 10);
    assert_eq!(world.watermark("a").await, 6);
    assert_eq!(world.dirty().await, []);
    assert_eq!(world.wires.reconnects.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn the_answer_has_the_form_that_lambda_reads() {
    let world = World::new();
    let record = world.append("a", 1).await;
    let event = json!({"Records": [record]});
    let done = handle(&world, &world.handler(), &event, TIMEOUT)
        .await
        .unwrap();
    let json = serde_json::to_value(&done).unwrap();
    assert_eq!(json, json!({"batchItemFailures": []}));

    world.faults.set([Fault::Unavailable.on(Op::PublishRun)]);
    let record = world.append("a", 1).await;
    let event = json!({"Records": [record]});
    let failed = handle(&world, &world.handler(), &event, TIMEOUT)
        .await
        .unwrap();
    let json = serde_json::to_value(&failed).unwrap();
    let failures = json!([{"itemIdentifier": number(&record).unwrap()}]);
    assert_eq!(json, json!({"batchItemFailures": failures}));
}

#[tokio::test(start_paused = true)]
async fn if_nothing_was_acknowledged_all_comes_again_from_the_lowest_uncovered_record() {
    let (world, mut records) = (World::new(), Vec::new());
    records.push(world.append("done", 1).await);
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    // The tenth record has a number of one more digit than those before.
    for _ in 0..6 {
        for id in ["b", "c"] {
            records.push(world.append(id, 1).await);
        }
    }
    assert!(number(&records[9]).unwrap().len() < number(&records[10]).unwrap().len());
    world.faults.set([Fault::Unavailable.on(Op::PublishRun)]);
    let first = number(&records[1]);
    // Whatever the order in which they came.
    records.reverse();
    // What an earlier invocation has published is covered. Nothing was acknowledged in this one.
    assert_eq!(invoke(&world, &world.handler(), &records).await, first);
    assert_eq!(world.dirty().await, []);

    world.faults.set([]);
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert_eq!(world.records_in_topic().await, 13);
}

#[tokio::test(start_paused = true)]
async fn streams_that_fail_beside_an_acknowledged_one_are_set_aside_for_the_sweep() {
    let (world, mut records) = (World::new(), Vec::new());
    for id in ["b", "a", "b", "c"] {
        records.push(world.append(id, 1).await);
    }
    let failing = world.fail_runs_of(&["b", "c"], Fault::Unavailable);
    world.faults.set([failing]);
    let handler = world.handler();
    assert_eq!(invoke(&world, &handler, &records).await, None);
    let dirty = world.dirty().await;
    let found: Vec<_> = dirty
        .iter()
        .map(|d| (&d.stream, d.known.get(), d.why))
        .collect();
    let backlog = DirtyReason::Backlog;
    assert_eq!(
        found,
        [(&stream("b"), 2, backlog), (&stream("c"), 1, backlog)]
    );

    world.faults.set([]);
    tokio::time::sleep(61 * S).await;
    let sweep = json!({"foldstream": "sweep"});
    handle(&world, &handler, &sweep, TIMEOUT).await.unwrap();
    assert_eq!(
        (world.records_in_topic().await, world.dirty().await),
        (4, vec![])
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_dirty_row_cannot_be_written_comes_again() {
    let (world, mut records) = (World::new(), Vec::new());
    for id in ["a", "b", "c"] {
        records.push(world.append(id, 1).await);
    }
    let failing = world.fail_runs_of(&["b", "c"], Fault::Unavailable);
    world.faults.set([failing, no_dirty_rows()]);
    assert_eq!(
        invoke(&world, &world.handler(), &records).await,
        number(&records[1])
    );
    // A row that never answers does not hold up the answer.
    let failing = world.fail_runs_of(&["c"], Fault::Unavailable);
    world.faults.set([failing, Fault::Hang.on(Op::Put)]);
    assert_eq!(
        invoke(&world, &world.handler(), &records).await,
        number(&records[1])
    );
    world.faults.set([]);
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert_eq!(world.watermark("c").await, 1);
}

/// Reported in solita/solita.github.com PR 376 and others: a record that cannot be published stops
/// its shard until all others expire.
#[tokio::test(start_paused = true)]
async fn a_stuck_record_does_not_block_its_shard() {
    let world = World::new();
    let record = world.append("a", 1).await;
    let compacted = TopicDescription::new(3).with_compacted(Some(true));
    let bus = compacted_bus(&world, compacted);
    let handler = world.handler_of(bus);
    // It is the only record, and nothing is acknowledged.
    assert_eq!(invoke(&world, &handler, &[record]).await, None);
    let dirty = world.dirty().await;
    assert_eq!(dirty[0].why, DirtyReason::Stuck);
    let error = dirty[0].error.as_deref().unwrap();
    assert!(error.contains("cleanup.policy=delete"), "{error}");
}
/// Returns a publisher that sends to a topic to which events must not be sent.
fn compacted_bus(world: &World, topic: TopicDescription) -> foldstream::publisher::Publisher {
    let bus = foldstream_testkit::InMemoryMessageBus::new();
    bus.create_topic_as("Compacted", topic);
    world
        .publisher_on(bus)
        .with_route(foldstream::publisher::TopicRoute::One("Compacted".into()))
}

/// Reported in floci-io/floci#3466: everything after the reported record comes again, also what was
/// published.
#[tokio::test(start_paused = true)]
async fn what_comes_again_after_the_reported_record_is_sent_once() {
    let (world, mut records) = (World::new(), Vec::new());
    for id in ["b", "a", "a", "c"] {
        records.push(world.append(id, 1).await);
    }
    let failing = world.fail_runs_of(&["b"], Fault::Unavailable);
    world.faults.set([failing, no_dirty_rows()]);
    let again = invoke(&world, &world.handler(), &records).await;
    assert_eq!(again, number(&records[0]));
    assert_eq!(world.records_in_topic().await, 3);
    world.faults.set([]);
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert_eq!(world.records_in_topic().await, 4);
}

/// Reported in KensioSoftware/yulin#342: a number that is not of the batch fails all of it.
#[tokio::test(start_paused = true)]
async fn a_reported_number_is_always_one_of_the_batch() {
    for fault in [Fault::Unavailable, Fault::LoseRequest, Fault::Hang] {
        for op in [
            Op::Get,
            Op::Put,
            Op::Read,
            Op::PublishRun,
            Op::DescribeTopic,
        ] {
            let (world, mut records) = (World::new(), Vec::new());
            for id in ["a", "b", "a"] {
                records.push(world.append(id, 1).await);
            }
            world.faults.set([fault.clone().on(op)]);
            let again = invoke(&world, &world.handler(), &records).await;
            assert_eq!(again, number(&records[0]), "{fault:?} {op:?}");
            world.faults.set([]);
            assert_eq!(invoke(&world, &world.handler(), &records).await, None);
            assert_eq!(
                (world.watermark("a").await, world.watermark("b").await),
                (2, 1)
            );
        }
    }
}

/// Reported in KensioSoftware/yulin#370: the publisher's own writes to the table wake it again.
#[tokio::test(start_paused = true)]
async fn only_inserts_are_published() {
    let world = World::new();
    world.append("a", 1).await;
    let records =
        ["MODIFY", "REMOVE"].map(|name| world.record(name, &stream("a"), Version::new(1)));
    let calls = world.faults.all_calls();
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert_eq!(
        (world.faults.all_calls(), world.records_in_topic().await),
        (calls, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_no_commit_is_passed_over() {
    let world = World::new();
    let mut foreign = world.record("INSERT", &stream("a"), Version::new(1));
    foreign["dynamodb"]["Keys"] = json!({"id": {"N": "7"}});
    let records = [foreign, world.append("b", 1).await];
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert_eq!(world.watermark("b").await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_older_than_six_hours_is_set_aside() {
    let world = World::new();
    let old = world.append("a", 1).await;
    let exact = {
        tokio::time::sleep(S).await;
        world.append("b", 1).await
    };
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    let records = [
        old,
        exact,
        world.append("a", 2).await,
        world.append("c", 1).await,
    ];
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    let dirty = world.dirty().await;
    assert_eq!(dirty.len(), 1);
    // The younger record of the same stream is set aside with it.
    assert_eq!(
        (&dirty[0].stream, dirty[0].known.get(), dirty[0].why),
        (&stream("a"), 2, DirtyReason::Old)
    );
    let marks = [
        world.watermark("a").await,
        world.watermark("b").await,
        world.watermark("c").await,
    ];
    assert_eq!(marks, [0, 1, 1]);
    let sweep = json!({"foldstream": "sweep"});
    handle(&world, &world.handler(), &sweep, TIMEOUT)
        .await
        .unwrap();
    assert_eq!(
        (world.records_in_topic().await, world.dirty().await),
        (5, vec![])
    );
}

#[tokio::test(start_paused = true)]
async fn an_old_record_whose_dirty_row_cannot_be_written_comes_again() {
    let world = World::new();
    let old = world.append("a", 1).await;
    tokio::time::sleep(Duration::from_secs(7 * 3600)).await;
    let records = [world.append("b", 1).await, old];
    world.faults.set([no_dirty_rows()]);
    assert_eq!(
        invoke(&world, &world.handler(), &records).await,
        number(&records[1])
    );
    assert_eq!(world.watermark("b").await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_without_a_time_is_not_old() {
    let world = World::new();
    for missing in [json!(0), Value::Null] {
        let mut record = world.append("a", 1).await;
        record["dynamodb"]["ApproximateCreationDateTime"] = missing;
        assert_eq!(invoke(&world, &world.handler(), &[record]).await, None);
    }
    assert_eq!(
        (world.watermark("a").await, world.dirty().await),
        (2, vec![])
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_more_than_a_thousand_events_behind_is_set_aside() {
    let world = World::new();
    let mut last = Vec::new();
    for (id, events) in [("a", 1_001), ("b", 1_000)] {
        world.append(id, events).await;
        last.push(world.append(id, 1).await);
    }
    assert_eq!(invoke(&world, &world.handler(), &last).await, None);
    let dirty = world.dirty().await;
    assert_eq!(dirty.len(), 1);
    assert_eq!(
        (&dirty[0].stream, dirty[0].known.get(), dirty[0].why),
        (&stream("a"), 1_002, DirtyReason::Backlog)
    );
    assert_eq!(
        (world.watermark("a").await, world.watermark("b").await),
        (0, 1_001)
    );
}

#[tokio::test(start_paused = true)]
async fn streams_are_published_concurrently() {
    let (world, mut records) = (World::new(), Vec::new());
    for n in 0..32 {
        records.push(world.append(&n.to_string(), 1).await);
    }
    world.faults.set([Fault::Delay(S).on(Op::PublishRun)]);
    let began = tokio::time::Instant::now();
    assert_eq!(invoke(&world, &world.handler(), &records).await, None);
    assert!(began.elapsed() < 2 * S, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_malformed_event_is_an_error_and_nothing_of_it_is_published() {
    let world = World::new();
    let good = world.append("a", 1).await;
    let mut bad = world.append("b", 1).await;
    bad["dynamodb"]["SequenceNumber"] = json!("");
    let event = json!({"Records": [good, bad]});
    let error = handle(&world, &world.handler(), &event, TIMEOUT)
        .await
        .unwrap_err();
    let HandlerError::Event(error) = error else {
        panic!("{error}");
    };
    assert!(matches!(
        error,
        InvalidEvent::Field {
            index: 1,
            field: "SequenceNumber",
            ..
        }
    ));
    assert_eq!(world.records_in_topic().await, 0);
}
