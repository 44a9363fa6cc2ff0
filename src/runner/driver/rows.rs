//! The row operations about failed events, as calls of the control store.
use crate::{
    control::{LetterKey, ProcessorRows},
    ports::{ControlStoreError, PartitionId},
    runner::{
        attempt::Shared,
        machine::{Loaded, Polled, RowAnswer, RowOp},
    },
};

/// Reads the rows of a partition. The change token is read first: a change that the rows do not
/// show moves it afterwards.
pub(super) async fn load(
    shared: &Shared,
    partition: &PartitionId,
) -> Result<Loaded, ControlStoreError> {
    let rows = &shared.rows;
    let mut loaded = Loaded {
        token: rows.token().await?,
        ..Loaded::default()
    };
    let mut after = None;
    loop {
        let page = rows.park_page(partition, after).await?;
        for (stream, row) in page.rows {
            let position = match &shared.positions {
                Some(positions) => positions.get(&stream).await?.map(|(version, _)| version),
                None => None,
            };
            loaded.parked.push((stream, row, position));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    loop {
        let page = rows.discard_page(partition, after).await?;
        loaded.discards.extend(page.rows);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    loop {
        let page = rows.letter_page(partition, after).await?;
        let keys: Vec<LetterKey> = page.rows.into_iter().map(|(key, _)| key).collect();
        loaded.letters.extend(keys);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    loop {
        let page = rows.ask_page(partition, after).await?;
        loaded.asks.extend(page.rows);
        after = page.next;
        if after.is_none() {
            return Ok(loaded);
        }
    }
}

/// Reads the change token and the request to pause.
pub(super) async fn poll(rows: &ProcessorRows) -> Result<Polled, ControlStoreError> {
    let polled = rows.poll().await?;
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
        RowOp::Park(stream, failure) => {
            RowAnswer::Park(rows.park_create(of, &stream, &failure).await?)
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
        RowOp::ReadDiscards(stream, first, last) => {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let versions = (first, last);
                let page = rows.discards_of(of, &stream, versions, after).await?;
                found.extend(page.rows);
                after = page.next;
                if after.is_none() {
                    break RowAnswer::Discards(found);
                }
            }
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
            let (crate::control::DeleteIf::Deleted | crate::control::DeleteIf::Conflict(_)) =
                rows.ask_delete(of, &key, seen).await?;
            RowAnswer::Done
        }
        RowOp::Announce => {
            rows.announce().await?;
            RowAnswer::Done
        }
    })
}
