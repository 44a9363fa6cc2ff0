//! Other processes, lost answers and failing requests.
use super::{Notebook, Process, World, model, notebook, noted, typed};
use crate::support::{Call, Fate, chain};
use foldstream::{
    StreamId,
    runner::{ErrorClass, Projector as _},
};
use foldstream_dynamodb::ReadModelError;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Semaphore;

#[tokio::test]
async fn a_process_that_has_lost_its_partition_changes_nothing() {
    let world = World::new().await;
    // The events that the process had stored, those that it had buffered, and those of the new
    // owner, who begins after what is stored.
    for (stored, buffered, new) in [(0, 1, 3), (0, 3, 3), (2, 3, 5), (2, 4, 3), (2, 5, 5)] {
        let stream = notebook(format!("{stored}-{buffered}-{new}"));
        let numbers: Vec<u64> = (1..=9).collect();
        let old: Process<Notebook> = world.process().await;
        old.note(&stream, 1, &numbers[..stored]).await;
        old.flush().await;
        old.note(&stream, stored as u64 + 1, &numbers[stored..buffered])
            .await;
        let owner: Process<Notebook> = world.process().await;
        owner
            .note(&stream, stored as u64 + 1, &numbers[stored..new])
            .await;
        owner.flush().await;
        old.flush().await;
        // The late write adds events that the owner has not had, and never takes one back.
        let last = new.max(buffered);
        assert_eq!(owner.numbers(&stream).await, numbers[..last]);
        assert_eq!(owner.position(&stream).await, last as u64);
        owner.note(&stream, new as u64 + 1, &numbers[new..6]).await;
        owner.flush().await;
        assert_eq!(owner.numbers(&stream).await, numbers[..6]);
    }
}

/// The partition came back, and the process was not told that its events had become void.
#[tokio::test]
async fn events_buffered_before_another_owner_wrote_do_not_hide_that_owners_events() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let other: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1, 2]).await;
    process.flush().await;
    process.note(&stream, 3, &[3]).await;
    other.note(&stream, 3, &[3, 4, 5]).await;
    other.flush().await;
    process.note(&stream, 6, &[6]).await;
    process.flush().await;
    assert_eq!(process.numbers(&stream).await, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn forgotten_events_are_void_and_come_again() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let (kept, lost) = (notebook("kept"), notebook("lost"));
    for stream in [&kept, &lost] {
        process.note(stream, 1, &[1]).await;
        process.flush().await;
        process.note(stream, 2, &[2]).await;
    }
    let streams = [lost.clone()];
    process
        .rows
        .forget_buffered(&model(), &streams)
        .await
        .unwrap();
    process.flush().await;
    assert_eq!(process.numbers(&kept).await, [1, 2]);
    assert_eq!(process.numbers(&lost).await, [1]);
    // The other owner has stored something else in the meantime, which this process reads.
    let other: Process<Notebook> = world.process().await;
    other.note(&lost, 2, &[2, 3]).await;
    other.flush().await;
    process.operations();
    process.note(&lost, 4, &[4]).await;
    process.flush().await;
    assert_eq!(process.operations(), ["GetItem", "PutItem"]);
    assert_eq!(process.numbers(&lost).await, [1, 2, 3, 4]);
}

/// Lets the puts of a flush wait until the test lets them pass.
fn gate(is_open: &Arc<AtomicBool>) -> impl Fn(&Call) -> Fate + Send + Sync + 'static {
    let is_open = is_open.clone();
    move |call| match call.operation.as_str() {
        "PutItem" if !is_open.load(Ordering::SeqCst) => {
            Fate::error(400, "ThrottlingException", "wait")
        }
        _ => Fate::Pass,
    }
}

#[tokio::test]
async fn forgetting_waits_for_a_running_flush() {
    let world = World::new().await;
    let is_open = Arc::new(AtomicBool::new(false));
    let process: Process<Notebook> = world.process_over(gate(&is_open)).await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1]).await;
    let streams = [stream.clone()];
    let flushed = Semaphore::new(0);
    let flush = async {
        process.flush().await;
        flushed.add_permits(1);
    };
    let forget = async {
        while process.wire.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        let model = model();
        let forgetting = process.rows.forget_buffered(&model, &streams);
        tokio::pin!(forgetting);
        assert!(futures::poll!(&mut forgetting).is_pending());
        is_open.store(true, Ordering::SeqCst);
        forgetting.await.unwrap();
        assert_eq!(flushed.available_permits(), 1);
    };
    tokio::join!(flush, forget);
    assert_eq!(process.numbers(&stream).await, [1]);
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_counts_once() {
    let world = World::new().await;
    let stream = notebook(1);
    for (version, lost) in [(1, 1), (2, 3), (3, 100)] {
        let process: Process<Notebook> = world
            .process_over(move |call| match call.operation.as_str() {
                "PutItem" if call.nth <= lost => Fate::LoseAnswer,
                _ => Fate::Pass,
            })
            .await;
        process.project(&stream, version, noted(version)).await;
        let flushed = process.rows.flush(&model()).await;
        // With every answer lost, the flush fails although the row is stored.
        if let Err(error) = flushed {
            assert_eq!((lost, error.class()), (100, ErrorClass::Transient));
            process.wire.decide(|_| Fate::Pass);
            process.flush().await;
        }
        assert_eq!(
            process.numbers(&stream).await,
            (1..=version).collect::<Vec<_>>()
        );
        // The events that follow build on the row that was stored.
        process.flush().await;
    }
}

#[tokio::test]
async fn a_flush_that_fails_keeps_its_events() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let streams: Vec<StreamId> = (0..40).map(notebook).collect();
    for stream in &streams {
        process.note(stream, 1, &[1, 2]).await;
    }
    process.wire.decide(|call| match call.nth % 3 {
        0 if call.operation == "PutItem" => Fate::error(400, "AccessDeniedException", "no"),
        _ => Fate::Pass,
    });
    let error = process.rows.flush(&model()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fatal, "{error:?}");
    assert!(chain(error.source()).contains("PutItem on table events-models"));
    process.wire.decide(|_| Fate::Pass);
    process.flush().await;
    for stream in &streams {
        assert_eq!(process.numbers(stream).await, [1, 2]);
    }
}

#[tokio::test]
async fn failures_have_the_class_that_the_runner_waits_by() {
    let world = World::new().await;
    for (status, code, expected) in [
        (400, "ThrottlingException", ErrorClass::Transient),
        (500, "InternalServerError", ErrorClass::Transient),
        (400, "AccessDeniedException", ErrorClass::Fatal),
        (400, "ValidationException", ErrorClass::Fatal),
    ] {
        let process: Process<Notebook> = world
            .process_over(move |_| Fate::error(status, code, "no"))
            .await;
        let stream = notebook(1);
        let read = process.try_project(&stream, 2, noted(2)).await;
        assert_eq!(read.unwrap_err().class(), expected, "{code}");
        process.note(&stream, 1, &[1]).await;
        let written = process.rows.flush(&model()).await;
        assert_eq!(written.unwrap_err().class(), expected, "{code}");
        let position = process.rows.position(&model(), &stream).await;
        assert_eq!(position.unwrap_err().class(), expected, "{code}");
        let reset = process.rows.reset(&model()).await;
        assert_eq!(reset.unwrap_err().class(), expected, "{code}");
    }
}

/// A model that is emptied or restored under a process lacks the events before those in memory.
#[tokio::test]
async fn a_row_that_was_removed_or_set_back_is_not_written() {
    let world = World::new().await;
    for rebuilt in [0, 1] {
        let process: Process<Notebook> = world.process().await;
        let operator: Process<Notebook> = world.process().await;
        let stream = notebook(1);
        process.note(&stream, 1, &[1, 2]).await;
        process.flush().await;
        process.note(&stream, 3, &[3]).await;
        operator.rows.reset(&model()).await.unwrap();
        let again = &[1, 2][..rebuilt];
        operator.note(&stream, 1, again).await;
        operator.flush().await;
        for _ in 0..2 {
            let error = process.rows.flush(&model()).await.unwrap_err();
            assert_eq!(error.class(), ErrorClass::Fatal);
            assert!(matches!(typed(&error), ReadModelError::SetBack { .. }));
        }
        assert_eq!(process.numbers(&stream).await, again);
        operator.rows.reset(&model()).await.unwrap();
    }
}

/// A query in a handler must not turn a pause that DynamoDB asks for into an ordinary failure.
#[tokio::test]
async fn a_failed_query_keeps_its_class_in_a_handler() {
    let world = World::new().await;
    let process: Process<Notebook> = world
        .process_over(|_| Fate::error(400, "AccessDeniedException", "no"))
        .await;
    let asked = process.rows.get(&model(), "notebook#1").await.unwrap_err();
    assert_eq!(asked.class(), ErrorClass::Fatal);
    let by_conversion = foldstream::runner::HandlerError::from(asked);
    assert_eq!(by_conversion.class(), ErrorClass::Permanent);
}
