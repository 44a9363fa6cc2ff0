//! Tests that the shop can still read everything that it has ever stored.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
use foldstream::{
    CommitId, StreamHead, StreamId, Timestamp, Upcasters,
    ports::{Append, EventData},
};
use foldstream_testkit::schema::upcast_golden;
use futures::TryStreamExt;
use shop::{
    backend::Backend,
    cart::{CartEvent, CartId, CartItem},
    schema::check,
};
use std::path::Path;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn read(name: &str) -> Option<CartEvent> {
    upcast_golden(Path::new(GOLDEN).join(name), &Upcasters::new())
}

fn first_item() -> CartEvent {
    CartEvent::CartItemAdded(CartItem {
        stock_code: "85123A".into(),
        description: String::new(),
        quantity: 6,
        unit_price: "2.55".parse().unwrap(),
        invoiced_at: "2010-12-01T08:26:00Z".parse().unwrap(),
        customer: None,
        country: "Unspecified".into(),
    })
}

#[test]
fn no_stored_event_has_changed_without_a_version_and_an_upcaster() {
    check().assert();
}

#[test]
fn the_first_items_have_another_name_and_neither_description_nor_country() {
    assert_eq!(read("cart.ItemAdded@1.json"), Some(first_item()));
}

#[test]
fn the_first_orders_count_in_cents() {
    let total = "15.30".parse().unwrap();
    let expected = CartEvent::CartCheckedOut { total };
    assert_eq!(read("cart.CartCheckedOut@1.json"), Some(expected));
}

#[test]
fn looks_at_a_cart_are_forgotten() {
    assert_eq!(read("cart.CartViewed@1.json"), None);
}

/// Appends stored forms to an event store and reads them through the repository, where the
/// upcasters run too.
#[tokio::test]
async fn a_cart_of_the_first_release_is_loaded_today() {
    let backend = Backend::embedded();
    let old = |name: &'static str| {
        let file = Path::new(GOLDEN).join(format!("cart.{name}@1.json"));
        EventData::new(name, 1, std::fs::read(file).unwrap().trim_ascii().to_vec())
    };
    let stream = StreamId::new("cart", "c-1").unwrap();
    let events = ["CartViewed", "ItemAdded", "CartCheckedOut"].map(old);
    let head = StreamHead::empty(stream);
    let append = Append::after(head, CommitId::random(), Timestamp::now(), events);
    let _ = backend.store.append(&append).await.unwrap();
    let (carts, id) = (backend.carts(), CartId::from("c-1"));
    let cart = carts.load(&id).await.unwrap();
    assert_eq!(cart.version().get(), 3);
    assert!(cart.state().is_checked_out());
    let CartEvent::CartItemAdded(item) = first_item() else {
        unreachable!()
    };
    assert_eq!(cart.state().items(), [item]);
    let history: Vec<_> = carts.history(&id).try_collect().await.unwrap();
    let versions: Vec<_> = history.iter().map(|r| r.header.version.get()).collect();
    assert_eq!(versions, [2, 3]);
}
