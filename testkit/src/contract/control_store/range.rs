//! Cases of ranges over one partition.
use super::given::{Store, fresh_partition, given_rows, must_put, range, row, sorts};
use crate::contract::support::ENDLESS;
use foldstream::ports::{DeleteExpect, Direction, Expect, RangeQuery, RowKey, SortBounds};
use std::num::NonZeroU32;

fn limit(rows: u32) -> NonZeroU32 {
    NonZeroU32::new(rows).unwrap()
}

fn between(first: &str, last: &str) -> SortBounds {
    SortBounds::Between(first.into(), last.into())
}

fn prefix(text: &str) -> SortBounds {
    SortBounds::Prefix(text.into())
}

/// Checks a query in both directions and with several page sizes.
async fn assert_sorts(store: &Store, query: RangeQuery, expected: &[&str]) {
    for rows in [1, 2, 3, 1000] {
        let query = query.clone().with_limit(limit(rows));
        let found = sorts(store, query.clone().with_direction(Direction::Ascending)).await;
        assert_eq!(
            found, expected,
            "ascending, pages of {rows}: {:?}",
            query.bounds
        );
        let mut found = sorts(store, query.clone().with_direction(Direction::Descending)).await;
        found.reverse();
        assert_eq!(
            found, expected,
            "descending, pages of {rows}: {:?}",
            query.bounds
        );
    }
}

/// A range returns the whole rows of its partition, and of no other.
pub async fn a_range_returns_the_rows_of_its_partition_only(store: Store) {
    let partition = fresh_partition();
    let mut rows = Vec::new();
    for sort in ["a", "b", "c"] {
        let row = row(
            &RowKey::new(&partition, sort),
            vec![0xff, sort.as_bytes()[0]],
        );
        must_put(&store, &row, Expect::Absent).await;
        rows.push(row);
    }
    for other in [
        format!("{partition}/"),
        format!("{partition}1"),
        format!("a{partition}"),
    ] {
        must_put(&store, &row(&RowKey::new(other, "a"), "other"), Expect::Any).await;
    }
    assert_eq!(range(&store, RangeQuery::new(&partition)).await, rows);
    let shorter = &partition[..partition.len() - 1];
    assert_eq!(range(&store, RangeQuery::new(shorter)).await, []);
    assert_eq!(range(&store, RangeQuery::new(fresh_partition())).await, []);
}

/// Rows are ordered by the bytes of their sort keys in both directions, not by locale, number or
/// UTF-16.
pub async fn a_range_is_ordered_bytewise(store: Store) {
    let mut all = [
        " ",
        "#",
        "-1",
        "0",
        "00",
        "1",
        "10",
        "2",
        "A",
        "B",
        "Z",
        "_",
        "a",
        "aa",
        "b",
        "z",
        "~",
        "é",
        "ÿ",
        "Ā",
        "追",
        "\u{ffee}",
        "\u{10000}",
        "🛒",
    ];
    let partition = given_rows(&store, &all).await;
    all.sort_unstable();
    assert_sorts(&store, RangeQuery::new(&partition), &all).await;
}

/// A prefix selects the rows whose sort key begins with it, and an empty prefix selects all. A row
/// that contains the prefix elsewhere does not count.
pub async fn a_prefix_takes_the_rows_that_begin_so(store: Store) {
    let all = [
        "a",
        "ab",
        "ab\u{10ffff}",
        "abc",
        "ac",
        "b",
        "bab",
        "é",
        "éa",
        "\u{10ffff}",
    ];
    let partition = given_rows(&store, &all).await;
    for (text, expected) in [
        ("", all.as_slice()),
        ("a", &["a", "ab", "abc", "ab\u{10ffff}", "ac"]),
        ("ab", &["ab", "abc", "ab\u{10ffff}"]),
        ("abc", &["abc"]),
        ("abcd", &[]),
        ("A", &[]),
        ("c", &[]),
        ("é", &["é", "éa"]),
        ("\u{10ffff}", &["\u{10ffff}"]),
    ] {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let query = RangeQuery::new(&partition).with_bounds(prefix(text));
        assert_sorts(&store, query, &expected).await;
    }
}

/// `Between` selects the rows from the first to the last, both included, and none if the bounds are
/// reversed.
pub async fn between_includes_both_ends(store: Store) {
    let partition = given_rows(&store, &["a", "b", "ba", "c", "d"]).await;
    for (first, last, expected) in [
        ("b", "c", ["b", "ba", "c"].as_slice()),
        ("a", "a", &["a"]),
        ("aa", "bz", &["b", "ba"]),
        (" ", "~", &["a", "b", "ba", "c", "d"]),
        ("e", "z", &[]),
        ("c", "b", &[]),
    ] {
        let query = RangeQuery::new(&partition).with_bounds(between(first, last));
        assert_sorts(&store, query, expected).await;
    }
}

/// `after` continues after that sort key in the direction of the query, whether such a row exists
/// or not.
pub async fn after_continues_after_a_sort_key(store: Store) {
    let partition = given_rows(&store, &["a", "b", "c", "d"]).await;
    for (after, up, down) in [
        ("b", ["c", "d"].as_slice(), ["a"].as_slice()),
        ("bb", &["c", "d"], &["b", "a"]),
        ("a", &["b", "c", "d"], &[]),
        ("d", &[], &["c", "b", "a"]),
        (" ", &["a", "b", "c", "d"], &[]),
        ("z", &[], &["d", "c", "b", "a"]),
    ] {
        for rows in [1, 100] {
            let query = RangeQuery::new(&partition)
                .with_after(Some(after.into()))
                .with_limit(limit(rows));
            let found = sorts(&store, query.clone()).await;
            assert_eq!(found, up, "after {after:?}, pages of {rows}");
            let query = query.with_direction(Direction::Descending);
            let found = sorts(&store, query).await;
            assert_eq!(found, down, "after {after:?}, pages of {rows}, descending");
        }
    }
}

/// `after` and the bounds hold together, also where `after` is outside of them.
pub async fn after_and_bounds_hold_together(store: Store) {
    let partition = given_rows(&store, &["a", "b", "b1", "b2", "b3", "c"]).await;
    for bounds in [prefix("b"), between("b", "b3")] {
        for (after, up, down) in [
            ("b1", ["b2", "b3"].as_slice(), ["b"].as_slice()),
            ("b", &["b1", "b2", "b3"], &[]),
            ("b3", &[], &["b2", "b1", "b"]),
            ("a", &["b", "b1", "b2", "b3"], &[]),
            ("c", &[], &["b3", "b2", "b1", "b"]),
        ] {
            let query = RangeQuery::new(&partition)
                .with_bounds(bounds.clone())
                .with_after(Some(after.into()));
            let found = sorts(&store, query.clone()).await;
            assert_eq!(found, up, "{bounds:?} after {after:?}");
            let found = sorts(&store, query.with_direction(Direction::Descending)).await;
            assert_eq!(found, down, "{bounds:?} after {after:?}, descending");
        }
    }
}

/// A page has at most `limit` rows, and following `next` returns each row once, also if the rows
/// fill the last page.
pub async fn pages_return_each_row_once(store: Store) {
    let names: Vec<String> = (0..12).map(|n| format!("{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let partition = given_rows(&store, &names).await;
    for rows in [1, 4, 5, 11, 12, 13] {
        let query = RangeQuery::new(&partition).with_limit(limit(rows));
        assert_eq!(sorts(&store, query.clone()).await, names, "pages of {rows}");
        let query = query.with_bounds(prefix("0"));
        assert_eq!(
            sorts(&store, query).await,
            names[..10],
            "a prefix, pages of {rows}"
        );
    }
}

/// A walk continues after a row that was deleted meanwhile, and skips no row that remains.
pub async fn a_walk_continues_after_a_deleted_row(store: Store) {
    let all = ["a", "b", "c", "d", "e", "f"];
    for direction in [Direction::Ascending, Direction::Descending] {
        let partition = given_rows(&store, &all).await;
        let mut query = RangeQuery::new(&partition)
            .with_limit(limit(1))
            .with_direction(direction);
        let mut found = Vec::new();
        for walked in 0.. {
            assert!(walked < ENDLESS, "the range does not end");
            let page = store.range(&query).await.unwrap();
            for row in page.rows {
                let _ = store.delete(&row.key, DeleteExpect::Any).await.unwrap();
                found.push(row.key.sort);
            }
            if page.next.is_none() {
                break;
            }
            query = query.with_after(page.next);
        }
        if direction == Direction::Descending {
            found.reverse();
        }
        assert_eq!(found, all, "{direction:?}");
        assert_eq!(range(&store, RangeQuery::new(&partition)).await, []);
    }
}
