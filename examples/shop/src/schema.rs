//! How the cart's events have changed since the first one was stored.
//!
//! Events are never rewritten. What was stored in an older form is lifted when it is read, by [`upcasters`], which belong to
//! the event type, so that every reader has them. The file
//! `TYPES` and the payloads in `tests/golden` hold every form there ever was, and [`check`] compares them with the code:
//! as a test, and as `cargo run -p shop --example types -- --check`.
use crate::{cart::CartEvent, money::Money};
use foldstream::{BoxError, Upcast, Upcasters};
use foldstream_testkit::Schema;
use serde_json::json;
use std::path::Path;

/// Lifts what was stored by earlier releases of the shop.
pub fn upcasters() -> Upcasters {
    Upcasters::new()
        // Renamed, since other aggregates have items too; and the shop learnt what a product is called, and of countries.
        .with_json_renamed("cart", "ItemAdded", 1, "CartItemAdded", 1, |payload| {
            payload["stock_code"] = payload["sku"].take();
            payload["description"] = json!("");
            payload["country"] = json!("Unspecified");
            Ok(())
        })
        // Whole cents were too coarse.
        .with_json("cart", "CartCheckedOut", 1, |payload| {
            let cents = payload["total_cents"].as_i64();
            let cents = cents.ok_or_else(|| BoxError::from("total_cents is no number"))?;
            *payload = json!({ "total": Money::from_cents(cents).to_string() });
            Ok(())
        })
        // Counted once to find out what is looked at; nobody asks any more.
        .with("cart", "CartViewed", 1, |_| Ok(Upcast::Retired))
}

/// What is compared with the code: `TYPES` and the golden payloads.
pub fn check() -> Schema {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    Schema::new(package.join("TYPES"))
        .with_golden(package.join("tests/golden"))
        .with_events::<CartEvent>()
}
