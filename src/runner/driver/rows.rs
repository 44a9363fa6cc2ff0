//! The row operations about failed events, as calls of the control store.
use crate::{
    StreamId, Version,
    control::{
        DeleteIf, DiscardState, Generations, KeyedPage, ParkRow, ProcessorRows, PutIf, Stored,
    },
    ports::{ControlStoreError, PartitionId},
    runner::{
        Position,
        attempt::Shared,
        machine::{Durable, Load, Loaded, Polled, RowAnswer, RowOp, Sweep},
    },
};
use futures::FutureExt;
use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
};
use tokio::sync::watch;

/// The most rows that are swept when a partition is taken up. The rest is swept the next time.
const SWEPT: usize = 1_000;

/// Reads all pages of a list.
async fn all<K, T, F>(
    mut page: impl FnMut(Option<String>) -> F,
) -> Result<Vec<(K, Stored<T>)>, ControlStoreError>
where
    F: Future<Output = Result<KeyedPage<K, T>, ControlStoreError>>,
{
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let next = page(after).await?;
        rows.extend(next.rows);
        after = next.next;
        if after.is_none() {
            return Ok(rows);
        }
    }
}

/// Reads the rows of a partition. The change token is read first: a change that the rows do not
/// show moves it afterwards.
pub(super) async fn load(shared: &Shared, load: &Load) -> Result<Loaded, ControlStoreError> {
    let (rows, partition) = (&shared.rows, &load.partition);
    let token = rows.token().await?;
    let mut parked = Vec::new();
    for (stream, row) in all(|after| rows.park_page(partition, after)).await? {
        let position = position(shared, &stream).await?;
        parked.push((stream, row, position));
    }
    let discards = all(|after| rows.discard_page(partition, after)).await?;
    let mut positions = BTreeMap::new();
    for ((stream, _), row) in &discards {
        if row.value.state == DiscardState::Handled || positions.contains_key(stream) {
            continue;
        }
        let position = match position_of_model(shared, stream).await {
            Some(of_model) => Some(of_model),
            None => position(shared, stream).await?.map(|version| Durable {
                version,
                is_of_model: false,
            }),
        };
        if let Some(position) = position {
            positions.insert(stream.clone(), position);
        }
    }
    let letters = all(|after| rows.letter_page(partition, after)).await?;
    let asks = all(|after| rows.ask_page(partition, after)).await?;
    if let Some(sweep) = load.sweep {
        let parked = parked.iter();
        let parked = parked.map(|(stream, row, _)| (stream.clone(), row.value.clone()));
        sweep_deferred(rows, partition, &parked.collect(), sweep).await?;
    }
    Ok(Loaded {
        token,
        parked,
        discards,
        positions,
        letters: letters
            .into_iter()
            .map(|(key, head)| (key, head.value.is_given_up))
            .collect(),
        asks,
    })
}

/// Returns the position that the read model stores with its rows, or `None` if it stores none. A
/// read model that cannot tell it now is asked again when the rows are read the next time.
async fn position_of_model(shared: &Shared, stream: &StreamId) -> Option<Durable> {
    let position = shared.processor.position(&shared.model, stream);
    let position = AssertUnwindSafe(position).catch_unwind();
    let version = match tokio::time::timeout(shared.rules.timeout, position).await {
        Ok(Ok(Ok(Position::KeptByRunner))) => return None,
        Ok(Ok(Ok(Position::Stored { version, .. }))) => version,
        Ok(Ok(Err(_)) | Err(_)) | Err(_) => Version::NONE,
    };
    Some(Durable {
        version,
        is_of_model: true,
    })
}

async fn position(
    shared: &Shared,
    stream: &StreamId,
) -> Result<Option<Version>, ControlStoreError> {
    let Some(positions) = &shared.positions else {
        return Ok(None);
    };
    let stored = positions.get(stream).await?;
    Ok(stored.map(|(version, _)| version))
}

/// Deletes the rows of deferred records that nobody needs: their owner died after it had handled
/// them and before it deleted them, or has lost a race with another owner.
///
/// A row below `from` of a park row was handled: `from` is durable, whoever has moved it. A row
/// without a park row was handled, too, once the offset has passed its record. Before that it may
/// be the row of another owner that is about to write the park row, or that has given the record
/// back to its lane because the park row was gone. The owner after this one deletes it.
async fn sweep_deferred(
    rows: &ProcessorRows,
    of: &PartitionId,
    parked: &HashMap<StreamId, ParkRow>,
    sweep: Sweep,
) -> Result<(), ControlStoreError> {
    let is_left = |stream: &StreamId, version, offset| match parked.get(stream) {
        // The first `from` of a stream that follows others of its lane is no position.
        Some(row) => !row.is_follower && row.is_duplicate(version),
        None => offset < sweep.starts_at,
    };
    let (mut left, mut after) = (0, None);
    let mut is_more = sweep.has_records;
    while is_more {
        let page = rows.deferred_keys(of, after).await?;
        for key in page.keys {
            if left < SWEPT && is_left(&key.stream, key.version, key.offset) {
                left += 1;
                rows.deferred_delete(of, &key.stream, key.version).await?;
            }
        }
        after = page.next;
        is_more = after.is_some() && left < SWEPT;
    }
    (is_more, after) = (sweep.has_places, None);
    while is_more {
        let page = rows.order_page(of, after).await?;
        for (key, row) in page.rows {
            if left < SWEPT && is_left(&row.value.stream, row.value.version, key.1) {
                left += 1;
                rows.order_delete(of, key).await?;
            }
        }
        after = page.next;
        is_more = after.is_some() && left < SWEPT;
    }
    if left > 0 {
        tracing::info!(processor = %rows.processor(), partition = %of, rows = left, "rows of deferred records that were handled before are deleted");
    }
    Ok(())
}

/// Reads the change token and the request to pause. Passes on the generations, which are read with
/// the token.
pub(super) async fn poll(
    rows: &ProcessorRows,
    found: &watch::Sender<Option<Stored<Generations>>>,
) -> Result<Polled, ControlStoreError> {
    let polled = rows.poll().await?;
    if polled.generations.is_some() {
        found.send_replace(polled.generations);
    }
    let pause = rows.rows.pause_get(rows.processor()).await?;
    Ok(Polled {
        token: polled.token,
        pause: pause.map(|row| row.value),
    })
}

/// Does one operation on the rows of a partition.
pub(super) async fn perform(
    rows: &ProcessorRows,
    of: &PartitionId,
    op: RowOp,
) -> Result<RowAnswer, ControlStoreError> {
    Ok(match op {
        RowOp::WriteLetter(key, letter) => {
            rows.letter_write(of, &key, &letter).await?;
            RowAnswer::Done
        }
        RowOp::GetLetter(key) => {
            let letter = rows.letter_get(of, &key).await?;
            RowAnswer::Letter(letter.map(|letter| Box::new(letter.value)))
        }
        RowOp::DeleteLetter(key) => {
            rows.letter_delete(of, &key).await?;
            RowAnswer::Done
        }
        RowOp::Park(stream, failure, notes) => {
            RowAnswer::Park(rows.park_create(of, &stream, &failure, notes).await?)
        }
        RowOp::Follow(stream, followed) => {
            RowAnswer::Park(rows.park_follower(of, &stream, &followed).await?)
        }
        RowOp::ReplacePark(stream, row, seen) => {
            RowAnswer::Park(rows.park_replace(of, &stream, row, seen).await?)
        }
        RowOp::DeletePark(stream, seen) => {
            RowAnswer::ParkDeleted(rows.park_delete(of, &stream, seen).await?)
        }
        RowOp::PutDiscard(stream, version, row) => {
            RowAnswer::Discard(rows.discard_ask(of, &stream, version, row).await?)
        }
        RowOp::ReplaceDiscard(stream, version, row, seen) => {
            let put = rows.discard_replace(of, &stream, version, row, seen);
            RowAnswer::Discard(put.await?)
        }
        RowOp::ArchiveDiscard(stream, version, row) => {
            // Without a condition there is no conflict.
            let (PutIf::Written(_) | PutIf::Conflict(_)) =
                rows.discard_archive(of, &stream, version, row).await?;
            RowAnswer::Done
        }
        RowOp::DeleteDiscard(stream, version, seen) => {
            match rows.discard_delete(of, &stream, version, seen).await? {
                DeleteIf::Deleted => RowAnswer::Done,
                DeleteIf::Conflict(row) => RowAnswer::Discard(PutIf::Conflict(Some(row))),
            }
        }
        RowOp::Audit(entry) => {
            rows.rows.audit_put(entry).await?;
            RowAnswer::Done
        }
        RowOp::ReadDiscards(stream, first, last) => {
            let of_stream = all(|after| rows.discards_of(of, &stream, (first, last), after));
            RowAnswer::Discards(of_stream.await?)
        }
        RowOp::PutDeferred(stream, version, record) => {
            rows.deferred_put(of, &stream, version, &record).await?;
            RowAnswer::Done
        }
        RowOp::DeleteDeferred(stream, version) => {
            rows.deferred_delete(of, &stream, version).await?;
            RowAnswer::Done
        }
        RowOp::PutOrder(key, row) => {
            rows.order_put(of, key, row).await?;
            RowAnswer::Done
        }
        RowOp::ReadOrder(lane, after) => RowAnswer::Order(rows.order_of(of, lane, after).await?),
        RowOp::DeleteOrder(key) => {
            rows.order_delete(of, key).await?;
            RowAnswer::Done
        }
        RowOp::DeleteAsk(key, seen) => {
            // A newer request is served when the rows are read again.
            let (DeleteIf::Deleted | DeleteIf::Conflict(_)) =
                rows.ask_delete(of, &key, seen).await?;
            RowAnswer::Done
        }
        RowOp::Announce => {
            rows.announce().await?;
            RowAnswer::Done
        }
    })
}
