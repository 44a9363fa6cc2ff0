//! An old till, which writes events that no release of the shop has ever read.
//!
//! It stands for whatever stores an event that a handler cannot read: a tool from before, a newer
//! build, another team. The event is stored, so it cannot be changed. A release with an
//! [upcaster](upcasters) can read it.
use crate::{
    backend::Backend,
    cart::{CartId, CartItem},
};
use foldstream::{
    BoxError, CommitId, Timestamp, Upcasters,
    ports::{Append, AppendOutcome, EventData},
};
use serde_json::json;

/// The name of the till's events.
const NAME: &str = "CartLineRung";

/// Stores an item in a cart as the till does, behind the back of the aggregate.
///
/// # Errors
/// The error of the event store, or a conflict with another writer.
pub async fn ring_up(backend: &Backend, cart: &CartId, item: &CartItem) -> Result<(), BoxError> {
    let head = backend.carts().load(cart).await?.head().clone();
    let line = json!({
        "article": item.stock_code,
        "pieces": item.quantity,
        "price": item.unit_price,
        "rung_at": item.invoiced_at.to_string(),
        "country": item.country,
    });
    let events = [EventData::new(NAME, 1, serde_json::to_vec(&line)?)];
    let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    match backend.store.append(&append).await? {
        AppendOutcome::Appended(_) => Ok(()),
        other => Err(format!("the till could not store its line: {other:?}").into()),
    }
}

/// Returns the upcaster that reads the events of the till as items of today.
pub fn upcasters() -> Upcasters {
    Upcasters::new().with_json_renamed("cart", NAME, 1, "CartItemAdded", 1, |line| {
        *line = json!({
            "stock_code": line["article"],
            "description": "",
            "quantity": line["pieces"],
            "unit_price": line["price"],
            "invoiced_at": line["rung_at"],
            "country": line["country"],
        });
        Ok(())
    })
}
