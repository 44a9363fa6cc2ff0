//! Control rows: requests, lost answers, batches, and expiry by the store's clock.
use crate::support::{Fate, Server};
use foldstream::{
    Clock as _, IdSource as _, SystemIds,
    ports::{
        ControlStore, ControlStoreError, DeleteExpect, DeleteOutcome, Expect, PutOutcome,
        RangeQuery, Row, RowKey, SortBounds,
    },
};
use foldstream_testkit::ManualClock;
use std::{sync::Arc, time::Duration};

fn row(sort: &str) -> Row {
    Row::new(
        RowKey::new("p", sort),
        sort.to_owned(),
        SystemIds.revision(),
    )
}
async fn put(store: &impl ControlStore, row: &Row) {
    let outcome = store.put(row, Expect::Absent).await.unwrap();
    assert_eq!(outcome, PutOutcome::Written);
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_written() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| match (call.operation.as_str(), call.nth % 2) {
            ("PutItem", 1) => Fate::LoseAnswer,
            _ => Fate::Pass,
        })
        .await;
    let store = stores.control_store();
    let first = row("a");
    put(&store, &first).await;
    let next = row("a");
    let outcome = store
        .put(&next, Expect::Revision(first.revision))
        .await
        .unwrap();
    assert_eq!(outcome, PutOutcome::Written);
    assert_eq!(store.get(&next.key).await.unwrap(), Some(next));
    assert_eq!(
        wire.operations(),
        ["PutItem", "PutItem", "PutItem", "PutItem", "GetItem"]
    );
}

#[tokio::test]
async fn every_read_is_consistent() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let (store, key) = (stores.control_store(), row("a").key);
    store.get(&key).await.unwrap();
    store.get_many(&[key]).await.unwrap();
    store.range(&RangeQuery::new("p")).await.unwrap();
    let calls = wire.calls();
    assert_eq!(calls[0].body["ConsistentRead"], true);
    assert_eq!(
        calls[1].body["RequestItems"]["events-control"]["ConsistentRead"],
        true
    );
    assert_eq!(calls[2].body["ConsistentRead"], true);
}

#[tokio::test]
async fn what_a_batch_left_unprocessed_is_asked_for_again() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| {
            if call.operation != "BatchGetItem" || call.nth > 3 {
                return Fate::Pass;
            }
            let asked = call.body["RequestItems"].clone();
            // Two keys are answered, the others are not.
            Fate::Change(Box::new(move |answer| {
                let found = answer["Responses"]["events-control"]
                    .as_array_mut()
                    .unwrap();
                found.truncate(2);
                let found: Vec<_> = found.iter().map(|item| item["sk"].clone()).collect();
                let mut left = asked;
                let keys = left["events-control"]["Keys"].as_array_mut().unwrap();
                keys.retain(|key| !found.contains(&key["sk"]));
                answer["UnprocessedKeys"] = left;
            }))
        })
        .await;
    let store = stores.control_store();
    let rows: Vec<_> = (0..10).map(|n| row(&n.to_string())).collect();
    for row in &rows {
        put(&store, row).await;
    }
    let keys: Vec<_> = rows.iter().map(|row| row.key.clone()).collect();
    let expected: Vec<_> = rows.into_iter().map(Some).collect();
    assert_eq!(store.get_many(&keys).await.unwrap(), expected);
    let batches = wire
        .operations()
        .iter()
        .filter(|o| *o == "BatchGetItem")
        .count();
    assert_eq!(batches, 4);
}

#[tokio::test]
async fn a_batch_that_is_never_processed_is_throttled() {
    let server = Server::start();
    let (stores, wire) = server
        .stores_over(|call| {
            if call.operation != "BatchGetItem" {
                return Fate::Pass;
            }
            let answer = serde_json::json!({
                "Responses": {}, "UnprocessedKeys": call.body["RequestItems"],
            });
            Fate::Answer(200, answer.to_string())
        })
        .await;
    // No request passes over a real connection from here on.
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let error = stores
        .control_store()
        .get_many(&[row("a").key])
        .await
        .unwrap_err();
    assert!(
        matches!(error, ControlStoreError::Throttled { .. }),
        "{error:?}"
    );
    // The retries last for 5 s, with growing pauses.
    assert!(started.elapsed() >= std::time::Duration::from_secs(5));
    let asked = wire.operations().len();
    assert!((6..60).contains(&asked), "{asked}");
}

#[tokio::test]
async fn many_keys_are_read_a_hundred_at_a_time_and_each_once() {
    let server = Server::start();
    let (stores, wire) = server.stores_over(|_| Fate::Pass).await;
    let keys: Vec<_> = (0..250).map(|n| row(&n.to_string()).key).collect();
    let found = stores
        .control_store()
        .get_many(&[keys.clone(), keys].concat())
        .await
        .unwrap();
    assert_eq!(found, vec![None; 500]);
    let asked = wire.calls().into_iter().map(|call| {
        let keys = &call.body["RequestItems"]["events-control"]["Keys"];
        keys.as_array().unwrap().len()
    });
    let mut asked: Vec<_> = asked.collect();
    asked.sort_unstable();
    assert_eq!(asked, [50, 100, 100]);
}

#[tokio::test]
async fn rows_end_by_the_stores_own_clock() {
    let clock = ManualClock::new();
    let stores = Server::start().stores().await;
    let store = stores.control_store().with_clock(clock.clone());
    let minute = Duration::from_secs(60);
    let row = row("a").with_expiry(Some(clock.now().plus(minute)));
    put(&store, &row).await;
    clock.advance(minute - Duration::from_micros(1));
    assert_eq!(store.get(&row.key).await.unwrap(), Some(row.clone()));
    clock.advance(Duration::from_micros(1));
    assert_eq!(store.get(&row.key).await.unwrap(), None);
    assert_eq!(
        store
            .get_many(std::slice::from_ref(&row.key))
            .await
            .unwrap(),
        [None]
    );
    assert_eq!(store.range(&RangeQuery::new("p")).await.unwrap().rows, []);
    let delete = store
        .delete(&row.key, DeleteExpect::Revision(row.revision))
        .await
        .unwrap();
    assert_eq!(delete, DeleteOutcome::Conflict(None));
    let system = stores.control_store();
    assert_eq!(
        system.get(&row.key).await.unwrap(),
        None,
        "2026-01-01 has passed"
    );
    put(&store, &self::row("a")).await;
}

#[tokio::test]
async fn a_range_starts_anywhere_within_or_outside_of_its_bounds() {
    let stores = Server::start().stores().await;
    let store: Arc<dyn ControlStore> = Arc::new(stores.control_store());
    for sort in ["a", "b1", "b3", "c"] {
        assert_eq!(
            store.put(&row(sort), Expect::Absent).await.unwrap(),
            PutOutcome::Written
        );
    }
    let bounds = [
        SortBounds::Prefix("b".into()),
        SortBounds::Between("b".into(), "b9".into()),
    ];
    for bounds in bounds {
        for (after, expected) in [
            ("a", &["b1", "b3"][..]),
            ("b2", &["b3"]),
            ("b3", &[]),
            ("d", &[]),
        ] {
            let query = RangeQuery::new("p").with_bounds(bounds.clone());
            let page = store
                .range(&query.with_after(Some(after.into())))
                .await
                .unwrap();
            let found: Vec<_> = page.rows.iter().map(|row| row.key.sort.as_str()).collect();
            assert_eq!(found, expected, "{bounds:?} after {after}");
        }
    }
}
