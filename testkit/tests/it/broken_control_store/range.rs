//! Stores that break a rule of ranges.
use super::{Page, Put, Store, Suspects, all, broken};
use async_trait::async_trait;
use foldstream::ports::{
    ControlStore, Direction, Expect, RangeQuery, Row, RowKey, RowPage, SortBounds,
};
use foldstream_testkit::intercept::ControlStoreLayer;
use std::{num::NonZeroU32, sync::Mutex};

pub(super) fn suspects() -> Suspects {
    vec![
        broken::<ReadsPartitionsByPrefix>(&["a_range_returns_the_rows_of_its_partition_only"])
            .and_by(&["keys_over_their_limits_are_invalid"]),
        broken::<OrdersByUtf16>(&["a_range_is_ordered_bytewise"]),
        broken::<OrdersWithoutCase>(&["a_range_is_ordered_bytewise"]),
        broken::<FindsPrefixesWithin>(&["a_prefix_takes_the_rows_that_begin_so"]).and_by(&[
            "after_and_bounds_hold_together",
            "pages_return_each_row_once",
        ]),
        broken::<EndsPrefixesAtZ>(&["a_prefix_takes_the_rows_that_begin_so"]),
        broken::<ExcludesTheEnd>(&["between_includes_both_ends"]).and_by(&[
            "large_rows_come_back_together",
            "after_and_bounds_hold_together",
        ]),
        broken::<UncrossesTheEnds>(&["between_includes_both_ends"]),
        broken::<IgnoresAfter>(&["after_continues_after_a_sort_key"])
            .and_by(&["after_and_bounds_hold_together"]),
        broken::<AfterIsUpwardsOnly>(&["after_continues_after_a_sort_key"]).and_by(&[
            "expired_rows_are_not_in_a_range",
            "a_walk_continues_after_a_deleted_row",
        ]),
        broken::<AfterReplacesTheBounds>(&["after_and_bounds_hold_together"]),
        broken::<IgnoresTheLimit>(&["pages_return_each_row_once"]).and_by(&[
            "expired_rows_are_not_in_a_range",
            "a_range_is_ordered_bytewise",
            "a_prefix_takes_the_rows_that_begin_so",
            "between_includes_both_ends",
            "after_continues_after_a_sort_key",
        ]),
        broken::<EndsAtAFullPage>(&["pages_return_each_row_once"]),
        broken::<LooksForTheRowAfter>(&["a_walk_continues_after_a_deleted_row"]).and_by(&[
            "expired_rows_are_not_in_a_range",
            "after_continues_after_a_sort_key",
        ]),
        broken::<EndsAtAnEmptyPage>(&["expired_rows_are_not_in_a_range"]),
        broken::<RangesOneMegabyte>(&["large_rows_come_back_together"]),
    ]
}

/// Cuts a page out of all rows in the given order.
fn page_of(rows: Vec<Row>, query: &RangeQuery) -> RowPage {
    let at = query.after.as_ref().and_then(|after| {
        let mut sorts = rows.iter().map(|row| &row.key.sort);
        sorts.position(|sort| sort == after)
    });
    let start = at.map_or(0, |at| at + 1);
    let limit = query.limit.get() as usize;
    let has_more = rows.len() > start + limit;
    let page: Vec<_> = rows.into_iter().skip(start).take(limit).collect();
    let next = page.last().map(|row| row.key.sort.clone());
    RowPage::new(page, next.filter(|_| has_more))
}

/// Returns the same rows in another order.
async fn ordered<K: Ord>(
    store: &Store,
    query: &RangeQuery,
    key: impl Fn(&str) -> K + Send + Sync,
) -> Page {
    let everything = query.clone().with_after(None);
    let mut rows = all(store, &everything).await;
    rows.sort_by_key(|row| key(&row.key.sort));
    if query.direction == Direction::Descending {
        rows.reverse();
    }
    Ok(page_of(rows, query))
}

#[derive(Debug, Default)]
struct ReadsPartitionsByPrefix {
    partitions: Mutex<Vec<String>>,
}
#[async_trait]
impl ControlStoreLayer for ReadsPartitionsByPrefix {
    async fn put(&self, store: &Store, row: &Row, expect: Expect) -> Put {
        let partition = row.key.partition.clone();
        self.partitions.lock().unwrap().push(partition);
        store.put(row, expect).await
    }
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        let all = self.partitions.lock().unwrap().clone();
        let other = all.into_iter().find(|partition| {
            *partition != query.partition && partition.starts_with(&query.partition)
        });
        if let Some(other) = other.filter(|_| page.rows.is_empty()) {
            let mut query = query.clone();
            query.partition = other;
            page = store.range(&query).await?;
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct OrdersByUtf16;
#[async_trait]
impl ControlStoreLayer for OrdersByUtf16 {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        if query.bounds != SortBounds::All || query.after.is_some() {
            return store.range(query).await;
        }
        ordered(store, query, |sort| sort.encode_utf16().collect::<Vec<_>>()).await
    }
}

#[derive(Debug, Default)]
struct OrdersWithoutCase;
#[async_trait]
impl ControlStoreLayer for OrdersWithoutCase {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        if query.bounds != SortBounds::All || query.after.is_some() {
            return store.range(query).await;
        }
        ordered(store, query, str::to_lowercase).await
    }
}

#[derive(Debug, Default)]
struct FindsPrefixesWithin;
#[async_trait]
impl ControlStoreLayer for FindsPrefixesWithin {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let SortBounds::Prefix(prefix) = &query.bounds else {
            return store.range(query).await;
        };
        let everything = query.clone().with_bounds(SortBounds::All);
        let mut rows = all(store, &everything.with_after(None)).await;
        rows.retain(|row| row.key.sort.contains(prefix));
        Ok(page_of(rows, query))
    }
}

/// Ends a prefix at a letter after which some texts are sorted.
#[derive(Debug, Default)]
struct EndsPrefixesAtZ;
#[async_trait]
impl ControlStoreLayer for EndsPrefixesAtZ {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        match &query.bounds {
            SortBounds::Prefix(prefix) => {
                let bounds = SortBounds::Between(prefix.clone(), format!("{prefix}z"));
                store.range(&query.clone().with_bounds(bounds)).await
            }
            _ => store.range(query).await,
        }
    }
}

#[derive(Debug, Default)]
struct ExcludesTheEnd;
#[async_trait]
impl ControlStoreLayer for ExcludesTheEnd {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        if let SortBounds::Between(_, last) = &query.bounds {
            page.rows.retain(|row| row.key.sort != *last);
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct UncrossesTheEnds;
#[async_trait]
impl ControlStoreLayer for UncrossesTheEnds {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        match &query.bounds {
            SortBounds::Between(first, last) if first > last => {
                let bounds = SortBounds::Between(last.clone(), first.clone());
                store.range(&query.clone().with_bounds(bounds)).await
            }
            _ => store.range(query).await,
        }
    }
}

#[derive(Debug, Default)]
struct IgnoresAfter;
#[async_trait]
impl ControlStoreLayer for IgnoresAfter {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let everything = query.clone().with_after(None);
        let rows = all(store, &everything).await;
        // A page's own `next` names an existing row. Only a key without a row loses its position.
        Ok(page_of(rows, query))
    }
}

#[derive(Debug, Default)]
struct AfterIsUpwardsOnly;
#[async_trait]
impl ControlStoreLayer for AfterIsUpwardsOnly {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        if query.direction == Direction::Descending
            && let Some(after) = &query.after
            && store
                .get(&RowKey::new(&query.partition, after))
                .await?
                .is_none()
        {
            page.rows.clear();
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct AfterReplacesTheBounds;
#[async_trait]
impl ControlStoreLayer for AfterReplacesTheBounds {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        if query.after.is_some() && query.limit.get() > 100 {
            return store
                .range(&query.clone().with_bounds(SortBounds::All))
                .await;
        }
        store.range(query).await
    }
}

#[derive(Debug, Default)]
struct IgnoresTheLimit;
#[async_trait]
impl ControlStoreLayer for IgnoresTheLimit {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let many = query.limit.max(NonZeroU32::new(10).unwrap());
        store.range(&query.clone().with_limit(many)).await
    }
}

/// Takes a full page for the last one.
#[derive(Debug, Default)]
struct EndsAtAFullPage;
#[async_trait]
impl ControlStoreLayer for EndsAtAFullPage {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        if query.limit.get() >= 4 && page.rows.len() == query.limit.get() as usize {
            page.next = None;
        }
        Ok(page)
    }
}

/// Continues at the row that `after` names, and starts again if that row is gone.
#[derive(Debug, Default)]
struct LooksForTheRowAfter;
#[async_trait]
impl ControlStoreLayer for LooksForTheRowAfter {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        if let Some(after) = &query.after {
            let key = RowKey::new(&query.partition, after);
            if store.get(&key).await?.is_none() {
                return Ok(RowPage::new(Vec::new(), None));
            }
        }
        store.range(query).await
    }
}

#[derive(Debug, Default)]
struct EndsAtAnEmptyPage;
#[async_trait]
impl ControlStoreLayer for EndsAtAnEmptyPage {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        if page.rows.is_empty() {
            page.next = None;
        }
        Ok(page)
    }
}

#[derive(Debug, Default)]
struct RangesOneMegabyte;
#[async_trait]
impl ControlStoreLayer for RangesOneMegabyte {
    async fn range(&self, store: &Store, query: &RangeQuery) -> Page {
        let mut page = store.range(query).await?;
        // The in-memory store also ends a page at a megabyte, and says so.
        if page.rows.iter().map(|row| row.value.len()).sum::<usize>() > 900_000 {
            page.next = None;
        }
        Ok(page)
    }
}
