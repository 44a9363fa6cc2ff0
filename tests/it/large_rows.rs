//! Rules of values that are larger than a row.
use bytes::Bytes;
use foldstream::{
    SystemIds,
    control::{LargePut, LargeRows},
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, Expect, PutOutcome, RangeQuery, Row, RowKey,
    },
};
use foldstream_testkit::{
    InMemoryControlStore, ManualClock,
    faults::{Call, Fault, Faults, Moment, Op},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

fn key() -> RowKey {
    RowKey::new("large", "a")
}
/// Returns a value of this length that consists of `kind`.
fn value(kind: u8, bytes: usize) -> Bytes {
    vec![kind; bytes].into()
}
const LARGE: usize = 3 * Row::MAX_VALUE + 5;

struct World {
    rows: Arc<InMemoryControlStore>,
    clock: Arc<ManualClock>,
}
impl World {
    fn new() -> Self {
        let clock = ManualClock::new();
        let rows = InMemoryControlStore::with_clock(clock.clone());
        Self { rows, clock }
    }
    fn large(&self) -> LargeRows {
        self.over(self.rows.clone())
    }
    fn over(&self, rows: Arc<dyn ControlStore>) -> LargeRows {
        LargeRows::new(rows, Arc::new(SystemIds), self.clock.clone())
    }
    async fn chunks(&self) -> usize {
        let mut query = RangeQuery::new("chunk/large");
        let mut rows = 0;
        loop {
            let page = self.rows.range(&query).await.unwrap();
            rows += page.rows.len();
            if page.next.is_none() {
                return rows;
            }
            query = query.with_after(page.next);
        }
    }
}
async fn read(large: &LargeRows) -> Option<Bytes> {
    let found = large.get(&key()).await.unwrap();
    found.map(|stored| stored.value)
}
/// Writes the value over the stored one.
async fn write(large: &LargeRows, value: &Bytes) -> LargePut {
    let seen = large.get(&key()).await.unwrap().map(|s| s.revision);
    large.put(&key(), value, seen).await.unwrap()
}

#[tokio::test]
async fn a_value_of_any_size_comes_back_as_it_was_given() {
    let world = World::new();
    let large = world.large();
    for bytes in [
        0,
        1,
        Row::MAX_VALUE - 1,
        Row::MAX_VALUE,
        Row::MAX_VALUE + 1,
        LARGE,
    ] {
        let given = value(7, bytes);
        let written = write(&large, &given).await;
        let found = large.get(&key()).await.unwrap().unwrap();
        assert_eq!(found.value, given);
        assert_eq!(written, LargePut::Written(found.revision));
    }
}

#[tokio::test]
async fn a_value_is_written_only_over_the_one_that_was_seen_and_a_refused_one_leaves_nothing() {
    let world = World::new();
    let large = world.large();
    let put = async |kind: u8, seen| large.put(&key(), &value(kind, LARGE), seen).await.unwrap();
    let LargePut::Written(first) = put(1, None).await else {
        panic!("there was no value");
    };
    let chunks = world.chunks().await;
    assert_eq!(chunks, 4);
    assert_eq!(put(2, None).await, LargePut::Conflict);
    assert_eq!(read(&large).await, Some(value(1, LARGE)));
    assert_eq!(world.chunks().await, chunks);
    let LargePut::Written(second) = put(2, Some(first)).await else {
        panic!("it was seen");
    };
    assert_eq!(put(3, Some(first)).await, LargePut::Conflict);
    assert!(!large.delete(&key(), first).await.unwrap());
    assert_eq!(read(&large).await, Some(value(2, LARGE)));
    assert!(large.delete(&key(), second).await.unwrap());
    assert_eq!(read(&large).await, None);
    assert_eq!(put(3, Some(second)).await, LargePut::Conflict);
    assert!(matches!(put(3, None).await, LargePut::Written(_)));
}

#[tokio::test]
async fn a_value_that_was_deleted_stays_so_though_its_write_lands_late() {
    let world = World::new();
    let faults = Faults::none();
    let late = world.over(faults.control_store(world.rows.clone()));
    let sent = Arc::<Mutex<Option<(Row, Expect)>>>::default();
    let seen = sent.clone();
    let faults = faults.with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Put { row, expect }) = (moment, call) {
            *seen.lock().unwrap() = Some(((*row).clone(), *expect));
        }
    });
    let LargePut::Written(revision) = write(&late, &value(1, LARGE)).await else {
        panic!("there was no value");
    };
    drop(faults);
    assert!(world.large().delete(&key(), revision).await.unwrap());
    // The head is written once more, by a request that was delayed for long.
    let (row, expect) = sent.lock().unwrap().take().unwrap();
    let landed = world.rows.put(&row, expect).await.unwrap();
    assert!(matches!(landed, PutOutcome::Conflict(_)));
    assert_eq!(read(&world.large()).await, None);
}

#[tokio::test]
async fn chunks_of_a_write_that_failed_are_removed() {
    let world = World::new();
    let faults = Faults::script([Fault::Throttled(None).on(Op::Put).at(3)]);
    let large = world.over(faults.control_store(world.rows.clone()));
    let failed = large.put(&key(), &value(1, LARGE), None).await;
    assert!(failed.unwrap_err().is_transient());
    assert_eq!((world.chunks().await, read(&large).await), (0, None));
}

#[tokio::test]
async fn chunks_of_a_value_that_was_replaced_or_deleted_end_by_themselves() {
    let world = World::new();
    let large = world.large();
    let _ = write(&large, &value(1, LARGE)).await;
    let _ = write(&large, &value(2, LARGE)).await;
    assert_eq!(world.chunks().await, 8, "readers may have the old head");
    world.clock.advance(Duration::from_secs(3601));
    assert_eq!(world.chunks().await, 4);
    assert_eq!(read(&large).await, Some(value(2, LARGE)));
    let seen = large.get(&key()).await.unwrap().unwrap().revision;
    assert!(large.delete(&key(), seen).await.unwrap());
    assert_eq!(read(&large).await, None);
    world.clock.advance(Duration::from_secs(3601));
    assert_eq!(world.chunks().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_reader_sees_the_old_value_or_the_new_one_wherever_the_writer_crashes() {
    for call in 1.. {
        let world = World::new();
        let (old, new) = (value(1, LARGE), value(2, LARGE));
        let _ = write(&world.large(), &old).await;
        let faults = Faults::script([Fault::CrashBefore.anywhere().at(call)]);
        let writer = world.over(faults.control_store(world.rows.clone()));
        let done = faults.run(write(&writer, &new)).await;
        let found = read(&world.large()).await.unwrap();
        assert!(found == old || found == new, "crashed before call {call}");
        if done.is_some() {
            assert_eq!(found, new);
            assert!(call > 6, "every chunk was a call");
            break;
        }
    }
}

#[tokio::test]
async fn the_head_is_written_last() {
    let world = World::new();
    let puts = Arc::<Mutex<Vec<String>>>::default();
    let seen = puts.clone();
    let faults = Faults::none().with_probe(move |moment, call| {
        if let (Moment::Reaches, Call::Put { row, .. }) = (moment, call) {
            seen.lock().unwrap().push(row.key.partition.clone());
        }
    });
    let large = world.over(faults.control_store(world.rows.clone()));
    let _ = write(&large, &value(1, LARGE)).await;
    let chunk = "chunk/large";
    assert_eq!(*puts.lock().unwrap(), [chunk, chunk, chunk, chunk, "large"]);
}

#[tokio::test]
async fn a_missing_chunk_under_a_standing_head_is_corrupt_never_a_shorter_value() {
    let world = World::new();
    let large = world.large();
    let _ = write(&large, &value(1, LARGE)).await;
    let page = world.rows.range(&RangeQuery::new("chunk/large")).await;
    let lost = &page.unwrap().rows[2].key;
    let _ = world.rows.delete(lost, DeleteExpect::Any).await.unwrap();
    let error = large.get(&key()).await.unwrap_err();
    assert!(
        matches!(error, ControlStoreError::Corrupt { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_value_that_is_replaced_while_it_is_read_is_read_again() {
    let world = World::new();
    let _ = write(&world.large(), &value(1, LARGE)).await;
    let faults = Faults::none();
    let reader = world.over(faults.control_store(world.rows.clone()));
    // The head is read. Then its chunks expire as after an hour, and another value is stored.
    let (rows, clock) = (world.rows.clone(), world.clock.clone());
    let replaced = Mutex::new(false);
    let faults = faults.with_probe(move |moment, call| {
        let mut replaced = replaced.lock().unwrap();
        if let (Moment::Reaches, Call::GetMany(_), false) = (moment, call, *replaced) {
            *replaced = true;
            let large = LargeRows::new(rows.clone(), Arc::new(SystemIds), clock.clone());
            let write = async { write(&large, &value(2, LARGE)).await };
            let written = futures::FutureExt::now_or_never(tokio::task::unconstrained(write));
            assert!(written.is_some(), "memory answers at once");
            clock.advance(Duration::from_secs(3601));
        }
    });
    assert_eq!(read(&reader).await, Some(value(2, LARGE)));
    assert_eq!(faults.calls(Op::GetMany), 2);
}

#[tokio::test]
async fn a_key_whose_chunks_could_not_be_named_is_refused_before_any_write() {
    let world = World::new();
    let long = RowKey::new("large", "s".repeat(862));
    let refused = world.large().put(&long, &value(1, 1), None).await;
    assert!(matches!(refused, Err(ControlStoreError::Invalid { .. })));
    let longest = RowKey::new("p".repeat(1018), "s".repeat(861));
    let taken = world.large().put(&longest, &value(1, LARGE), None).await;
    assert!(matches!(taken, Ok(LargePut::Written(_))));
}
