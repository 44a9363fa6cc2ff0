//! Listings of streams and of unpublished commits by the sparse indexes, and the removal of
//! markers.
use super::{
    cursor::{Cursor, LastItem, Listing},
    encode,
};
use crate::{
    attributes::{Attributes, take_number, take_text, text},
    client::Connection,
    error::Failure,
};
use foldstream::{
    StreamId, Version,
    ports::{CommitKey, EventStoreError, ScanCursor, Segment, StreamPage, UnpublishedPage},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use std::num::NonZeroU32;

const STREAMS: &str = "streams";
const UNPUBLISHED: &str = "unpublished";
/// The most streams on a page.
const STREAM_PAGE: u32 = 1000;
/// The most markers that are cleared at the same time.
const CLEARING: usize = 16;

pub(super) async fn streams(
    connection: &Connection,
    aggregate: &str,
    after: Option<ScanCursor>,
) -> Result<StreamPage, EventStoreError> {
    let listing = Listing::Streams {
        aggregate: aggregate.to_owned(),
    };
    let walk = Walk {
        connection,
        index: STREAMS,
        attribute: "ls",
        shards: (0..connection.config().list_shards).collect(),
        limit: STREAM_PAGE,
    };
    let page = walk
        .page(listing, after, |shard| encode::list_shard(aggregate, shard))
        .await?;
    let streams = page.rows.into_iter().map(|row| row.stream).collect();
    Ok(StreamPage::new(streams, page.next))
}

pub(super) async fn unpublished(
    connection: &Connection,
    segment: Segment,
    after: Option<ScanCursor>,
    limit: NonZeroU32,
) -> Result<UnpublishedPage, EventStoreError> {
    let walk = Walk {
        connection,
        index: UNPUBLISHED,
        attribute: "mk",
        // The segments divide the shards among them. With more segments than shards, some segments
        // are empty.
        shards: (segment.index()..connection.config().marker_shards)
            .step_by(segment.total() as usize)
            .collect(),
        limit: limit.get(),
    };
    let listing = Listing::unpublished(segment);
    let page = walk.page(listing, after, |shard| shard.to_string()).await?;
    let mut keys = page.rows;
    // An index orders its rows by stream, but not within a stream.
    keys.sort();
    Ok(UnpublishedPage::new(keys, page.next).with_next_stream(page.next_stream))
}

pub(super) async fn clear_unpublished(
    connection: &Connection,
    commits: &[CommitKey],
) -> Result<(), EventStoreError> {
    stream::iter(commits.to_vec())
        .map(|key| async move { clear(connection, &key).await })
        .buffer_unordered(CLEARING)
        .try_collect()
        .await
}

/// Removes the marker of a commit and nothing else. Never creates an item where there is none.
async fn clear(connection: &Connection, key: &CommitKey) -> Result<(), EventStoreError> {
    let table = connection.events();
    let request = connection
        .once()
        .update_item()
        .table_name(table)
        .set_key(Some(encode::key(&key.stream, key.first_version)))
        .update_expression("REMOVE mk")
        .condition_expression("attribute_exists(pk) AND attribute_exists(mk)");
    let target = connection.at("UpdateItem", table);
    match connection.send(target, || request.clone().send()).await {
        Ok(_) => Ok(()),
        Err(e)
            if e.as_service_error()
                .is_some_and(|e| e.is_conditional_check_failed_exception()) =>
        {
            Ok(())
        }
        Err(e) => Err(Failure::of(e, target).into_event_store()),
    }
}

/// A walk through the shards of an index.
struct Walk<'a> {
    connection: &'a Connection,
    index: &'static str,
    attribute: &'static str,
    shards: Vec<u32>,
    limit: u32,
}

/// The rows of a page, and where the next one starts.
struct Page {
    rows: Vec<CommitKey>,
    next: Option<ScanCursor>,
    /// The start of the next page without the rest of the stream of the last row.
    next_stream: Option<ScanCursor>,
}

/// The row or stream after which a query of a shard starts.
enum After {
    Item(LastItem),
    Stream(StreamId),
}

impl Walk<'_> {
    /// Returns one page: the rows after the cursor, from as many shards as it takes to fill the
    /// page.
    async fn page(
        &self,
        listing: Listing,
        after: Option<ScanCursor>,
        partition: impl Fn(u32) -> String,
    ) -> Result<Page, EventStoreError> {
        let start = self.shards.first().copied().unwrap_or_default();
        let cursor = listing.clone().resume(after.as_ref(), start)?;
        let past = cursor.past.map(After::Stream);
        let mut after = cursor.last.map(After::Item).or(past);
        let mut rows: Vec<CommitKey> = Vec::new();
        let ahead = self.shards.iter().copied().filter(|&s| s >= cursor.shard);
        for shard in ahead {
            loop {
                if rows.len() >= self.limit as usize {
                    let last = match after {
                        Some(After::Item(last)) => Some(last),
                        // A shard that was not begun.
                        _ => None,
                    };
                    let next_stream = match rows.last() {
                        Some(row) if last.is_some() => {
                            Cursor::past(listing.clone(), shard, row.stream.clone())
                        }
                        _ => Cursor::at(listing.clone(), shard, None),
                    };
                    return Ok(Page {
                        rows,
                        next: Some(Cursor::at(listing, shard, last).encode()?),
                        next_stream: Some(next_stream.encode()?),
                    });
                }
                let room = self.limit as usize - rows.len();
                let more = self.query(partition(shard), after.take(), room, &mut rows);
                after = more.await?.map(After::Item);
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(Page {
            rows,
            next: None,
            next_stream: None,
        })
    }

    /// Sends one query to one shard, and returns the item after which the next query starts.
    async fn query(
        &self,
        partition: String,
        after: Option<After>,
        room: usize,
        rows: &mut Vec<CommitKey>,
    ) -> Result<Option<LastItem>, EventStoreError> {
        let table = self.connection.events();
        let target = self.connection.at("Query", table);
        let (mut start, mut past) = (None, None);
        match after {
            None => {}
            Some(After::Item(last)) => {
                let mut key = last.key();
                key.insert(self.attribute.into(), text(&*partition));
                start = Some(key);
            }
            Some(After::Stream(stream)) => past = Some(stream),
        }
        let mut condition = format!("{} = :shard", self.attribute);
        if past.is_some() {
            condition.push_str(" AND pk > :past");
        }
        let request = self
            .connection
            .once()
            .query()
            .table_name(table)
            .index_name(self.index)
            .key_condition_expression(condition)
            .expression_attribute_values(":shard", text(partition))
            .limit(i32::try_from(room).unwrap_or(i32::MAX))
            .set_exclusive_start_key(start);
        let request = match past {
            Some(stream) => request.expression_attribute_values(":past", text(stream.as_str())),
            None => request,
        };
        let answer = self
            .connection
            .send(target, || request.clone().send())
            .await
            .map_err(|e| Failure::of(e, target).into_event_store())?;
        let foreign = |what: String| {
            let reason = format!("index {} of table {table} has {what}", self.index);
            Failure::incompatible(target, reason).into_event_store()
        };
        for row in answer.items.unwrap_or_default() {
            rows.push(commit_key(row).map_err(foreign)?);
        }
        match answer.last_evaluated_key {
            None => Ok(None),
            Some(key) => LastItem::of(&key)
                .map(Some)
                .ok_or_else(|| foreign("a foreign key".into())),
        }
    }
}

fn commit_key(mut row: Attributes) -> Result<CommitKey, String> {
    let pk = take_text(&mut row, "pk").map_err(|e| e.to_string())?;
    let stream = StreamId::parse(&pk.unwrap_or_default()).map_err(|e| e.to_string())?;
    let first = take_number(&mut row, "sk").map_err(|e| e.to_string())?;
    let first = first.ok_or("a row without sk")?;
    Ok(CommitKey::new(stream, Version::new(first)))
}
