//! The steps of owners and operators on the rows of a processor.
use super::{
    letters::{DeadLetter, Failed, LetterBody, StoredRecord},
    test_store::{Chaos, Lost, TestStore},
    *,
};
use crate::{
    StreamId, Timestamp, Version,
    ports::{Message, Offset, PartitionId, Row},
};
use std::{sync::Arc, time::Duration};

struct World {
    store: Arc<TestStore>,
    rows: ProcessorRows,
    at: PartitionId,
}

impl World {
    fn new() -> Self {
        let store = TestStore::new(7);
        let rows = ProcessorRows::over(store.clone(), store.clone(), store.clone(), "billing", 1);
        let at = PartitionId::new("orders", 2);
        Self { store, rows, at }
    }
    fn lose_each(&self) {
        self.store.lose([Lost::Reply]);
    }
}
fn cart() -> StreamId {
    StreamId::new("cart", "a").unwrap()
}
fn failure(version: u64) -> ParkFailure {
    ParkFailure {
        version: Version::new(version),
        fingerprint: Fingerprint::from_u128(9),
        attempts: 1,
        at: Timestamp::default(),
    }
}
fn record(bytes: usize) -> StoredRecord {
    let message = Message::new("orders", Timestamp::default()).with_value(vec![7; bytes]);
    StoredRecord::new(message, Offset::new(3))
}
fn letter(error: &str, bytes: usize) -> DeadLetter {
    let stream = cart();
    let failed = Failed {
        class: LetterClass::Permanent,
        error_type: "A",
        error,
        event_type: None,
        stream: Some(&stream),
        attempts: 1,
        first: Timestamp::default(),
        last: Timestamp::default(),
    };
    DeadLetter::new(&failed, LetterBody::Record(record(bytes)))
}
fn at(version: u64) -> LetterKey {
    LetterKey::event(cart(), Version::new(version))
}

#[tokio::test(start_paused = true)]
async fn the_rows_of_a_processor_have_their_keys() {
    let World {
        store,
        rows,
        at: of,
    } = World::new();
    let discard = DiscardRow::asked("ann", "no", Timestamp::default());
    let version = Version::new(7);
    let _ = rows
        .park_create(&of, &cart(), &failure(7), ParkNotes::default())
        .await
        .unwrap();
    let id = rows
        .letter_write(&of, &at(7), &letter("no", 1))
        .await
        .unwrap();
    let _ = rows
        .discard_ask(&of, &cart(), version, discard.clone())
        .await
        .unwrap();
    let _ = rows
        .discard_archive(&of, &cart(), version, discard)
        .await
        .unwrap();
    rows.deferred_put(&of, &cart(), version, &record(1))
        .await
        .unwrap();
    let ask = AskRow {
        letter: id,
        what: AskKind::Redrive,
        by: "ann".into(),
        job: None,
        at: Timestamp::default(),
    };
    let _ = rows.ask_put(&of, &at(7), ask).await.unwrap();
    rows.announce().await.unwrap();
    let versioned = "cart#a\u{1f}00000000000000000007";
    for (partition, sort) in [
        ("park/billing/1/orders/2", "cart#a"),
        ("dlq/billing/1/orders/2", versioned),
        ("discarded/billing/1/orders/2", versioned),
        ("archive/billing/1/orders/2", versioned),
        ("def/billing/1/orders/2", versioned),
        ("ask/billing/1/orders/2", versioned),
        ("park/billing/1", "!changed"),
    ] {
        let found = store.texts(partition);
        assert_eq!(found.len(), 1, "{partition}");
        assert_eq!(found[0].0, sort, "{partition}");
    }
    assert_eq!(store.partitions().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_answer_was_lost_is_this_owners_own() {
    let world = World::new();
    let World { rows, at, .. } = &world;
    world.lose_each();
    let PutIf::Written(row) = rows
        .park_create(at, &cart(), &failure(2), ParkNotes::default())
        .await
        .unwrap()
    else {
        panic!("the write was lost and found");
    };
    assert_eq!(
        row.value.id.as_u128(),
        row.revision.as_u128(),
        "the id is the revision"
    );
    world.lose_each();
    let next = row.value.deferred_to(Version::new(5));
    let put = rows
        .park_replace(at, &cart(), next, row.revision)
        .await
        .unwrap();
    let PutIf::Written(row) = put else {
        panic!("the write was lost and found");
    };
    world.lose_each();
    let deleted = rows.park_delete(at, &cart(), row.revision).await.unwrap();
    assert_eq!(deleted, DeleteIf::Deleted);
    assert_eq!(rows.park_get(at, &cart()).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_another_process_has_changed_is_neither_replaced_nor_deleted() {
    let World { rows, at, .. } = World::new();
    let PutIf::Written(mine) = rows
        .park_create(&at, &cart(), &failure(2), ParkNotes::default())
        .await
        .unwrap()
    else {
        panic!("there was no row");
    };
    let again = rows
        .park_create(&at, &cart(), &failure(4), ParkNotes::default())
        .await
        .unwrap();
    assert_eq!(again, PutIf::Conflict(Some(mine.clone())), "parked once");
    let theirs = mine.value.deferred_to(Version::new(9));
    let put = rows
        .park_replace(&at, &cart(), theirs, mine.revision)
        .await
        .unwrap();
    let PutIf::Written(theirs) = put else {
        panic!("it was as seen");
    };
    let stale = rows
        .park_replace(&at, &cart(), mine.value.clone(), mine.revision)
        .await
        .unwrap();
    assert_eq!(stale, PutIf::Conflict(Some(theirs.clone())));
    let stale = rows.park_delete(&at, &cart(), mine.revision).await.unwrap();
    assert_eq!(stale, DeleteIf::Conflict(theirs.clone()));
    let deleted = rows
        .park_delete(&at, &cart(), theirs.revision)
        .await
        .unwrap();
    assert_eq!(deleted, DeleteIf::Deleted);
    let gone = rows
        .park_replace(&at, &cart(), mine.value, theirs.revision)
        .await
        .unwrap();
    assert_eq!(gone, PutIf::Conflict(None));
    // A stream that is parked again is another parking.
    let PutIf::Written(again) = rows
        .park_create(&at, &cart(), &failure(2), ParkNotes::default())
        .await
        .unwrap()
    else {
        panic!("there was no row");
    };
    assert_ne!(again.value.id, theirs.value.id);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_given_up_twice_is_one_letter() {
    for bytes in [10, 2 * Row::MAX_VALUE] {
        let world = World::new();
        let World { rows, at: of, .. } = &world;
        let first = rows
            .letter_write(of, &at(2), &letter("first", bytes))
            .await
            .unwrap();
        if bytes < Row::MAX_VALUE {
            world.lose_each();
        }
        let mut second = letter("second", bytes);
        second.head.last = Timestamp::from_micros(1);
        let again = rows.letter_write(of, &at(2), &second).await.unwrap();
        assert_eq!(first, again);
        let page = rows.letter_page(of, None).await.unwrap();
        let [(key, head)] = &page.rows[..] else {
            panic!("one letter");
        };
        assert_eq!((key, head.value.attempts), (&at(2), 2));
        let whole = rows.letter_get(of, &at(2)).await.unwrap().unwrap();
        assert_eq!(whole.value.head, head.value);
        assert_eq!(whole.value.head.error, "second");
        assert_eq!(whole.value.body, LetterBody::Record(record(bytes)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_letter_is_in_no_list_and_one_that_comes_again_is_another() {
    for bytes in [10, 2 * Row::MAX_VALUE] {
        let world = World::new();
        let World { rows, at: of, .. } = &world;
        let first = rows
            .letter_write(of, &at(2), &letter("no", bytes))
            .await
            .unwrap();
        world.lose_each();
        assert!(rows.letter_delete(of, &at(2)).await.unwrap());
        assert!(!rows.letter_delete(of, &at(2)).await.unwrap());
        assert_eq!(rows.letter_page(of, None).await.unwrap().rows, []);
        assert_eq!(rows.letter_get(of, &at(2)).await.unwrap(), None);
        assert_eq!(rows.letter_head(of, &at(2)).await.unwrap(), None);
        let again = rows
            .letter_write(of, &at(2), &letter("no", bytes))
            .await
            .unwrap();
        assert_ne!(first, again);
        assert!(rows.letter_head(of, &at(2)).await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn what_letters_leave_behind_ends_by_itself() {
    let World {
        store,
        rows,
        at: of,
    } = World::new();
    for version in 1..=20 {
        let letter = letter("no", 2 * Row::MAX_VALUE);
        rows.letter_write(&of, &at(version), &letter).await.unwrap();
        rows.letter_delete(&of, &at(version)).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(25 * 3600)).await;
    for partition in store.partitions() {
        assert_eq!(store.texts(&partition), [], "{partition}");
    }
}

#[tokio::test(start_paused = true)]
async fn deferred_records_are_read_in_version_order_by_pages_and_kept_once() {
    let World { rows, at, .. } = World::new();
    for version in (1..=40).rev() {
        let bytes = if version % 7 == 0 {
            2 * Row::MAX_VALUE
        } else {
            10
        };
        let put = rows
            .deferred_put(&at, &cart(), Version::new(version), &record(bytes))
            .await;
        assert!(put.unwrap());
    }
    let again = rows
        .deferred_put(&at, &cart(), Version::new(9), &record(1))
        .await;
    assert!(!again.unwrap());
    let other = StreamId::new("cart", "ab").unwrap();
    rows.deferred_put(&at, &other, Version::new(5), &record(1))
        .await
        .unwrap();
    assert!(
        rows.deferred_delete(&at, &cart(), Version::new(20))
            .await
            .unwrap()
    );
    let (range, mut after) = ((Version::new(3), Version::new(35)), None);
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = rows
            .deferred_page(&at, &cart(), range, after)
            .await
            .unwrap();
        found.extend(page.records.iter().map(|(version, _)| version.get()));
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, (3..=35).filter(|v| *v != 20).collect::<Vec<_>>());
    assert!(pages > 1);
}

#[tokio::test(start_paused = true)]
async fn a_poll_reads_the_token_and_the_generations_at_once() {
    let World { store, rows, .. } = World::new();
    let polled = rows.poll().await.unwrap();
    assert_eq!((polled.token, polled.generations), (None, None));
    join_generation(store.clone(), store, "billing", 3)
        .await
        .unwrap();
    let token = rows.announce().await.unwrap();
    let polled = rows.poll().await.unwrap();
    assert_eq!(polled.token, Some(token));
    assert_eq!(polled.generations.map(|row| row.value.model), Some(3));
    assert_eq!(rows.token().await.unwrap(), Some(token));
    assert_ne!(rows.announce().await.unwrap(), token);
}

/// Raises `high`, as a checkpoint does, whatever is lost or overtaken.
async fn raise(rows: &ProcessorRows, of: &PartitionId, to: Version) {
    let mut seen = None;
    loop {
        let row: Stored<ParkRow> = match seen.take() {
            Some(row) => row,
            None => match rows.park_get(of, &cart()).await {
                Ok(Some(row)) => row,
                Ok(None) => panic!("nobody releases the stream"),
                Err(_) => continue,
            },
        };
        let next = row.value.deferred_to(to);
        match rows.park_replace(of, &cart(), next, row.revision).await {
            Ok(PutIf::Written(_)) => return,
            Ok(PutIf::Conflict(theirs)) => seen = theirs,
            Err(_) => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_owners_none_lowers_what_the_other_has_deferred() {
    for seed in 0..200 {
        let store = TestStore::new(seed);
        let rows = ProcessorRows::over(store.clone(), store.clone(), store.clone(), "billing", 1);
        let of = PartitionId::new("orders", 2);
        let _ = rows
            .park_create(&of, &cart(), &failure(1), ParkNotes::default())
            .await
            .unwrap();
        store.set_chaos(Chaos {
            lose_request: 6,
            lose_reply: 6,
            delay: Duration::from_millis(3),
        });
        let owner = |versions: std::ops::RangeInclusive<u64>| {
            let (rows, of) = (rows.clone(), of.clone());
            async move {
                for version in versions {
                    raise(&rows, &of, Version::new(version)).await;
                }
            }
        };
        tokio::join!(owner(2..=20), owner(5..=30));
        store.set_chaos(Chaos::default());
        let row = rows.park_get(&of, &cart()).await.unwrap().unwrap();
        assert_eq!(
            (row.value.from.get(), row.value.high.get()),
            (1, 30),
            "seed {seed}"
        );
    }
}
