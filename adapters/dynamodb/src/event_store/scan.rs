//! The scan of the whole table in segments.
use super::{
    cursor::{Cursor, LastItem, Listing},
    decode::{self, StoredItem, Unreadable},
    events_attribute::Names,
    gapless::Items,
    unsupported,
};
use crate::{
    attributes::{Attributes, take_text},
    client::Connection,
    error::Failure,
};
use aws_sdk_dynamodb::types::ReturnConsumedCapacity;
use foldstream::{
    StreamHead, StreamId, Version,
    ports::{Commit, EventStoreError, ScanCursor, ScanItems, ScanPage, ScanScope, Segment},
};
use std::num::NonZeroU32;

/// The attributes that tell where a commit ends.
const TAIL: &str = "pk, sk, c, n, f, p, pn";

pub(super) async fn scan(
    connection: &Connection,
    segment: Segment,
    after: Option<ScanCursor>,
    what: ScanScope,
    max_items: NonZeroU32,
) -> Result<ScanPage, EventStoreError> {
    let only_tails = match what {
        ScanScope::Commits => false,
        ScanScope::Tails => true,
        other => {
            return Err(unsupported(&format!(
                "this adapter cannot scan for {other:?}"
            )));
        }
    };
    let listing = Listing::scan(segment, only_tails);
    let cursor = listing.clone().resume(after.as_ref(), 0)?;
    let table = connection.events();
    let clamp = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let mut request = connection
        .once()
        .scan()
        .table_name(table)
        .consistent_read(true)
        .segment(clamp(segment.index()))
        .total_segments(clamp(segment.total()))
        .limit(clamp(max_items.get()))
        .return_consumed_capacity(ReturnConsumedCapacity::Total)
        .set_exclusive_start_key(cursor.last.as_ref().map(LastItem::key));
    if only_tails {
        request = request.projection_expression(TAIL);
    }
    let target = connection.at("Scan", table);
    let answer = connection
        .send(target, || request.clone().send())
        .await
        .map_err(|e| Failure::of(e, target).into_event_store())?;
    let units = answer.consumed_capacity.and_then(|c| c.capacity_units);
    let next = match &answer.last_evaluated_key {
        None => None,
        Some(key) => {
            // Without the key the scan would silently leave out the rest of the table.
            let last = LastItem::of(key).ok_or_else(|| foreign(connection, "a foreign key"))?;
            Some(Cursor::at(listing, 0, Some(last)).encode()?)
        }
    };
    let rows = answer.items.unwrap_or_default();
    let items = match only_tails {
        true => ScanItems::Tails(tails(connection, rows)?),
        false => ScanItems::Commits(commits(connection, rows).await?),
    };
    Ok(ScanPage::new(items, next).with_read_units(units))
}

fn tails(
    connection: &Connection,
    rows: Vec<Attributes>,
) -> Result<Vec<StreamHead>, EventStoreError> {
    let mut heads = Vec::with_capacity(rows.len());
    for row in rows {
        let (stream, item) = read(connection, row)?;
        heads.extend(item.head(stream));
    }
    Ok(heads)
}

/// Decodes the commits of a page. A split commit is returned where its first part is.
///
/// Its other parts are read from the table, since they may be on the next page, and a scan is not
/// isolated from the transaction that wrote them.
async fn commits(
    connection: &Connection,
    rows: Vec<Attributes>,
) -> Result<Vec<Commit>, EventStoreError> {
    let mut names = Names::default();
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let (stream, first) = read(connection, row)?;
        if first.part > 0 {
            continue;
        }
        let after = Version::new(first.first.get() - 1);
        found.push(if first.parts == 1 {
            decode::join(&stream, first, Vec::new(), &mut names)
                .map_err(|e| e.into_error(&stream, after))?
        } else {
            let mut items = Items::new(connection.clone(), stream, first.last.next(), None);
            items.complete(first, &mut names).await?
        });
    }
    Ok(found)
}

fn read(
    connection: &Connection,
    mut row: Attributes,
) -> Result<(StreamId, StoredItem), EventStoreError> {
    let pk = take_text(&mut row, "pk").ok().flatten().unwrap_or_default();
    let stream = StreamId::parse(&pk)
        .map_err(|e| foreign(connection, &format!("a row that is no commit: {e}")))?;
    let version = match row.get("sk") {
        Some(aws_sdk_dynamodb::types::AttributeValue::N(sk)) => sk.parse().unwrap_or(1),
        _ => 1_u64,
    };
    let after = Version::new(version.saturating_sub(1));
    match StoredItem::read(row) {
        Ok(item) => Ok((stream, item)),
        Err(e) => Err(Unreadable::into_error(e, &stream, after)),
    }
}

fn foreign(connection: &Connection, what: &str) -> EventStoreError {
    let table = connection.events();
    let reason = format!(
        "table {table} has {what}; only this adapter may write to it: check EVENTSTORE_TABLE_NAME"
    );
    Failure::incompatible(connection.at("Scan", table), reason).into_event_store()
}
