//! The history of the shop's event types.
//!
//! Stored events are never rewritten. [`upcasters`] convert events of an older form when they are
//! read. They belong to the event type, so every reader has them. The file `TYPES` and the payloads
//! in `tests/golden` hold every form that was ever stored. [`check`] compares them with the code,
//! as a test and as `cargo run -p shop --example types -- --check`.
use crate::{cart::CartEvent, money::Money, payment::PaymentEvent};
use foldstream::{BoxError, Upcast, Upcasters};
use foldstream_testkit::Schema;
use serde_json::json;
use std::path::Path;

/// Returns the upcasters for the events of earlier releases of the shop.
pub fn upcasters() -> Upcasters {
    Upcasters::new()
        // Renamed, because other aggregates have items too. The shop also added product names and
        // countries.
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
        // Views were counted for a statistic that no longer exists.
        .with("cart", "CartViewed", 1, |_| Ok(Upcast::Retired))
}

/// Returns the schema check over `TYPES` and the golden payloads.
pub fn check() -> Schema {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    Schema::new(package.join("TYPES"))
        .with_golden(package.join("tests/golden"))
        .with_events::<CartEvent>()
        .with_events::<PaymentEvent>()
}
