//! A row per stream: what is written, when, and at what cost.
use super::{
    Erased, Filled, Follows, Notebook, Panicked, Process, Refused, Skipped, Spoiled, World, model,
    notebook, noted, typed,
};
use crate::support::chain;
use foldstream::{
    Version,
    runner::{ErrorClass, Position, Projector as _},
};
use foldstream_dynamodb::ReadModelError;
use futures::FutureExt as _;
use std::panic::AssertUnwindSafe;

#[tokio::test]
async fn rows_are_stored_by_a_flush_with_the_position_of_their_stream() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[7, 8]).await;
    assert_eq!(process.get(stream.as_str()).await, None);
    assert_eq!(process.position(&stream).await, 0);
    process.flush().await;
    assert_eq!(process.numbers(&stream).await, [7, 8]);
    let stored = process.rows.position(&model(), &stream).await.unwrap();
    let commit_id = Some(super::context(&stream, 2).event_id().commit_id());
    let version = Version::new(2);
    assert_eq!(stored, Position::Stored { version, commit_id });
}

/// The costs in the adapter's README.
#[tokio::test]
async fn a_flush_writes_each_row_once_and_reads_only_rows_that_may_exist() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let (one, two) = (notebook(1), notebook(2));
    process.note(&one, 1, &[1, 2, 3]).await;
    process.flush().await;
    assert_eq!(process.operations(), ["PutItem"]);
    process.note(&one, 4, &[4, 5]).await;
    process.note(&two, 1, &[1]).await;
    process.flush().await;
    assert_eq!(process.operations(), ["GetItem", "PutItem", "PutItem"]);
    process.flush().await;
    assert!(process.operations().is_empty());
    process.position(&one).await;
    assert_eq!(process.operations(), ["GetItem"]);
}

#[tokio::test]
async fn duplicates_and_late_events_change_nothing() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    for version in [1, 2, 1, 2, 3, 3] {
        process.project(&stream, version, noted(version)).await;
        process.flush().await;
        process.project(&stream, 1, noted(1)).await;
        process.flush().await;
    }
    assert_eq!(process.numbers(&stream).await, [1, 2, 3]);
    assert_eq!(process.position(&stream).await, 3);
}

/// A late first event is not read for, and must not hide the events that are stored after it.
#[tokio::test]
async fn an_event_meets_all_events_before_it_also_after_a_late_one() {
    let world = World::new().await;
    for late in 1..=3 {
        let process: Process<Notebook> = world.process().await;
        let stream = notebook(late);
        process.note(&stream, 1, &[1, 2, 3]).await;
        process.flush().await;
        for version in 1..=late {
            process.project(&stream, version, noted(version)).await;
        }
        let follows = Follows { number: 3 };
        process.project(&stream, 4, follows).await;
        process.flush().await;
        assert_eq!(process.numbers(&stream).await, [1, 2, 3], "{late}");
        assert_eq!(process.position(&stream).await, 4, "{late}");
    }
}

/// The first event may be followed by one that the row does not take.
#[tokio::test]
async fn a_new_row_is_read_only_if_its_stream_skips_a_version() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1, 2]).await;
    assert!(process.operations().is_empty());
    for version in [4, 6] {
        process.project(&stream, version, noted(version)).await;
    }
    assert_eq!(process.operations(), ["GetItem"]);
    process.flush().await;
    assert_eq!(process.operations(), ["PutItem"]);
    assert_eq!(process.numbers(&stream).await, [1, 2, 4, 6]);
}

#[tokio::test]
async fn a_deleted_row_keeps_its_position_and_is_not_listed() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1, 2]).await;
    process.flush().await;
    process.project(&stream, 3, Erased).await;
    process.flush().await;
    assert_eq!(process.get(stream.as_str()).await, None);
    assert!(process.all().await.is_empty());
    assert_eq!(process.position(&stream).await, 3);
    // What a process that has lost its partition still writes does not bring the row back.
    process.note(&stream, 1, &[1, 2]).await;
    process.flush().await;
    assert_eq!(process.get(stream.as_str()).await, None);
    process.note(&stream, 4, &[4]).await;
    process.flush().await;
    assert_eq!(process.numbers(&stream).await, [4]);
}

#[tokio::test]
async fn an_event_that_makes_no_row_moves_the_position() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.project(&stream, 1, Skipped).await;
    process.flush().await;
    assert_eq!(process.get(stream.as_str()).await, None);
    assert_eq!(process.position(&stream).await, 1);
}

#[tokio::test]
async fn an_event_that_fails_leaves_the_events_before_it() {
    let world = World::new().await;
    for is_stored in [false, true] {
        let process: Process<Notebook> = world.process().await;
        let stream = notebook(is_stored);
        process.note(&stream, 1, &[1]).await;
        if is_stored {
            process.flush().await;
        }
        process.note(&stream, 2, &[2]).await;
        let refused = Refused { boards: vec![] };
        let error = process.try_project(&stream, 3, refused).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Permanent);
        let panic = process.try_project(&stream, 3, Panicked);
        AssertUnwindSafe(panic).catch_unwind().await.unwrap_err();
        process.flush().await;
        assert_eq!(process.numbers(&stream).await, [1, 2], "{is_stored}");
        assert_eq!(process.position(&stream).await, 2);
        process.note(&stream, 3, &[3]).await;
        process.flush().await;
        assert_eq!(process.numbers(&stream).await, [1, 2, 3], "{is_stored}");
    }
}

#[tokio::test]
async fn a_row_over_the_limit_is_a_permanent_error_of_its_event() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.project(&stream, 1, Filled { bytes: 409_400 }).await;
    process.flush().await;
    let bytes = 409_600;
    let error = process.try_project(&stream, 2, Filled { bytes }).await;
    let error = error.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(matches!(
        typed(&error),
        ReadModelError::TooLarge {
            limit: 409_600,
            bytes: 409_600..,
            ..
        }
    ));
    process.project(&stream, 2, Filled { bytes: 3 }).await;
    process.flush().await;
    assert_eq!(process.get(stream.as_str()).await.unwrap().text, "xxx");
}

#[tokio::test]
async fn a_row_that_could_not_be_read_again_is_not_stored() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1]).await;
    let error = process.try_project(&stream, 2, Spoiled).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(matches!(typed(&error), ReadModelError::Encode { .. }));
    assert!(chain(error.source()).contains("notebook#1"));
    process.flush().await;
    assert_eq!(process.numbers(&stream).await, [1]);
}

#[tokio::test]
async fn events_that_come_during_a_flush_are_in_the_next_one() {
    let world = World::new().await;
    let process: Process<Notebook> = world.process().await;
    let stream = notebook(1);
    process.note(&stream, 1, &[1]).await;
    let (flushing, meanwhile) = (process.flush(), process.note(&stream, 2, &[2, 3]));
    tokio::join!(flushing, meanwhile);
    assert_eq!(process.numbers(&stream).await, [1]);
    process.note(&stream, 4, &[4]).await;
    process.flush().await;
    assert_eq!(process.numbers(&stream).await, [1, 2, 3, 4]);
}
