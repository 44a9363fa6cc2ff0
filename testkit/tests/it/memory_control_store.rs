//! Promises of the in-memory control store beyond the contract suite: ranges, expiry, the size of a
//! page.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
use foldstream::ports::{
    ControlStore, Direction, Expect, PutOutcome, RangeQuery, Row, RowKey, SortBounds,
};
use foldstream_testkit::{InMemoryControlStore, ManualClock};
use std::{num::NonZeroU32, time::Duration};

fn max(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}
fn row(sort: impl Into<String>, revision: u128) -> Row {
    let revision = foldstream::ports::Revision::from_u128(revision);
    Row::new(RowKey::new("p", sort), "v", revision)
}
async fn range(store: &InMemoryControlStore, query: RangeQuery) -> Vec<String> {
    let mut query = query;
    let mut sorts = Vec::new();
    loop {
        let page = store.range(&query).await.unwrap();
        assert!(page.rows.len() <= query.limit.get() as usize);
        sorts.extend(page.rows.into_iter().map(|r| r.key.sort));
        match page.next {
            None => return sorts,
            next => query = query.with_after(next),
        }
    }
}

#[tokio::test]
async fn every_range_equals_the_filter_over_all_rows() {
    let store = InMemoryControlStore::new();
    let sorts = [
        "a",
        "a\u{10ffff}",
        "a\u{10ffff}b",
        "aa",
        "ab",
        "a\u{d7ff}",
        "a\u{e000}",
        "b",
        "ba",
        "z\u{7f}",
    ];
    for (n, sort) in sorts.iter().enumerate() {
        assert_eq!(
            store
                .put(&row(*sort, n as u128), Expect::Absent)
                .await
                .unwrap(),
            PutOutcome::Written
        );
    }
    let mut cases = vec![SortBounds::All];
    for a in [
        "",
        "a",
        "a\u{10ffff}",
        "a\u{d7ff}",
        "\u{10ffff}",
        "b",
        "c",
        "z\u{7f}",
    ] {
        cases.push(SortBounds::Prefix(a.into()));
        for b in ["a", "aa", "b", "zz"] {
            cases.push(SortBounds::Between(a.into(), b.into()));
        }
    }
    let mut afters: Vec<Option<String>> = vec![
        None,
        Some("0".into()),
        Some("aaa".into()),
        Some("zzz".into()),
    ];
    afters.extend(sorts.iter().map(|s| Some((*s).to_owned())));
    for bounds in cases {
        for direction in [Direction::Ascending, Direction::Descending] {
            for after in &afters {
                let is_within = |sort: &str| match &bounds {
                    SortBounds::Prefix(p) => sort.starts_with(p.as_str()),
                    SortBounds::Between(a, b) => a.as_str() <= sort && sort <= b.as_str(),
                    _ => true,
                } && after.as_deref().is_none_or(|after| match direction {
                    Direction::Ascending => sort > after,
                    Direction::Descending => sort < after,
                });
                let mut expected: Vec<_> = sorts.iter().filter(|s| is_within(s)).collect();
                expected.sort();
                if direction == Direction::Descending {
                    expected.reverse();
                }
                for limit in [1, 3, 100] {
                    let query = RangeQuery::new("p")
                        .with_bounds(bounds.clone())
                        .with_direction(direction)
                        .with_after(after.clone())
                        .with_limit(max(limit));
                    assert_eq!(
                        range(&store, query.clone()).await,
                        expected
                            .iter()
                            .map(|s| (**s).to_owned())
                            .collect::<Vec<_>>(),
                        "{query:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn a_page_of_expired_rows_is_empty_and_not_the_end() {
    let clock = ManualClock::new();
    let store = InMemoryControlStore::with_clock(clock.clone());
    let end = foldstream::Clock::now(&*clock).plus(Duration::from_secs(1));
    for n in 0..9 {
        let one = row(n.to_string(), n).with_expiry((n < 8).then_some(end));
        assert_eq!(
            store.put(&one, Expect::Absent).await.unwrap(),
            PutOutcome::Written
        );
    }
    clock.advance(Duration::from_secs(1));
    let query = RangeQuery::new("p").with_limit(max(4));
    let page = store.range(&query).await.unwrap();
    assert!(page.rows.is_empty() && page.next.is_some(), "{page:?}");
    assert_eq!(range(&store, query.clone()).await, ["8"]);
    store.delete_expired();
    assert_eq!(store.range(&query).await.unwrap().rows.len(), 1);
}

#[tokio::test]
async fn a_page_ends_at_a_mebibyte_of_values() {
    let store = InMemoryControlStore::new();
    for n in 0..10u8 {
        let mut one = row(n.to_string(), n.into());
        one.value = vec![n; Row::MAX_VALUE].into();
        assert_eq!(
            store.put(&one, Expect::Absent).await.unwrap(),
            PutOutcome::Written
        );
    }
    let page = store.range(&RangeQuery::new("p")).await.unwrap();
    assert_eq!((page.rows.len(), page.next.as_deref()), (4, Some("3")));
    assert_eq!(range(&store, RangeQuery::new("p")).await.len(), 10);
}
