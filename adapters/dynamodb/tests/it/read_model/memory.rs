//! The limits of the rows in memory: 10,000 rows, and 64 MiB.
use super::{Filled, Notebook, Process, World, notebook, noted};
use crate::support::{Call, Fate};

/// The bytes of a large text, and the number of rows with it that are just below the limit.
const LARGE: u64 = 350_000;
const JUST_BELOW: u64 = 64 * 1024 * 1024 / LARGE;

/// Starts a process whose database refuses all writes, so that it need not store so much.
async fn refused(world: &World) -> Process<Notebook> {
    let refuse = |_: &Call| Fate::error(400, "AccessDeniedException", "no");
    world.process_over(refuse).await
}

/// Asserts that an event makes the process write what is in memory.
async fn assert_writes_first(process: &Process<Notebook>, stream: u64, version: u64) {
    assert!(process.operations().is_empty());
    let answer = process
        .try_project(&notebook(stream), version, noted(0))
        .await;
    assert!(answer.is_err(), "the rows cannot be written");
    let operations = process.operations();
    assert!(!operations.is_empty());
    assert!(
        operations.iter().all(|op| op == "PutItem"),
        "{operations:?}"
    );
}

#[tokio::test]
async fn at_ten_thousand_rows_in_memory_they_are_written_before_another_is_read() {
    let world = World::new().await;
    let process = refused(&world).await;
    for n in 0..10_000 {
        process.project(&notebook(n), 1, noted(n)).await;
    }
    // A row that is in memory takes more events without a write.
    process.project(&notebook(0), 2, noted(1)).await;
    assert_writes_first(&process, 10_000, 1).await;
}

#[tokio::test]
async fn at_64_mib_in_memory_rows_are_written_before_another_event_is_applied() {
    let world = World::new().await;
    let process = refused(&world).await;
    for n in 0..=JUST_BELOW {
        process
            .project(&notebook(n), 1, Filled { bytes: LARGE })
            .await;
    }
    assert_writes_first(&process, JUST_BELOW + 1, 1).await;
}

#[tokio::test]
async fn rows_that_grow_or_shrink_in_memory_count_as_they_are_now() {
    let world = World::new().await;
    let process = refused(&world).await;
    // The rows of the first notebooks become small again, and make room for as many others.
    for (version, bytes) in [(1, 1), (2, LARGE), (3, 1)] {
        for n in 0..JUST_BELOW {
            process
                .project(&notebook(n), version, Filled { bytes })
                .await;
        }
    }
    for n in JUST_BELOW..=2 * JUST_BELOW {
        for (version, bytes) in [(1, 1), (2, LARGE)] {
            process
                .project(&notebook(n), version, Filled { bytes })
                .await;
        }
    }
    // No row is read for this event: its row is in memory.
    assert_writes_first(&process, 0, 4).await;
}
