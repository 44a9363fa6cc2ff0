//! Generated customers: the same seed always yields the same commands.
use crate::{
    cart::{CartCommand, CartId, CartItem},
    money::Money,
};
use fastrand::Rng;
use foldstream::Timestamp;
use std::time::Duration;

/// The products of the shop, taken from the sample data: code, name, price in pence, units in
/// stock.
const PRODUCTS: [(&str, &str, i64, i64); 12] = [
    ("84077", "WORLD WAR 2 GLIDERS ASSTD DESIGNS", 21, 288),
    ("85123A", "WHITE HANGING HEART T-LIGHT HOLDER", 295, 48),
    ("22423", "REGENCY CAKESTAND 3 TIER", 1275, 6),
    ("21212", "PACK OF 72 RETROSPOT CAKE CASES", 55, 96),
    ("22197", "SMALL POPCORN HOLDER", 85, 72),
    ("84879", "ASSORTED COLOUR BIRD ORNAMENT", 169, 64),
    ("22386", "JUMBO BAG PINK POLKADOT", 195, 40),
    ("20727", "LUNCH BAG  BLACK SKULL.", 165, 40),
    ("22469", "HEART OF WICKER SMALL", 165, 48),
    ("22741", "FUNKY DIVA PEN", 85, 48),
    ("21485", "RETROSPOT HEART HOT WATER BOTTLE", 495, 12),
    ("22112", "CHOCOLATE HOT WATER BOTTLE", 495, 12),
];

/// The countries of the customers. The home market is as likely as all others together.
const COUNTRIES: [&str; 8] = [
    "United Kingdom",
    "United Kingdom",
    "United Kingdom",
    "United Kingdom",
    "France",
    "Germany",
    "EIRE",
    "Norway",
];

/// The time of the first customer, 2010-12-01T08:26:00Z.
const OPENING: Timestamp = Timestamp::from_micros(1_291_191_960_000_000);

/// Generates the commands of `customers`, each with a cart of their own, in the order in which they
/// reach the shop.
///
/// Some customers ask for too many units, for none, or order twice. The cart must refuse those
/// commands.
pub fn shopping(seed: u64, customers: u32, cart_prefix: &str) -> Vec<(CartId, CartCommand)> {
    let mut rng = Rng::with_seed(seed);
    let mut waiting: Vec<_> = (1..=customers)
        .map(|number| {
            let id = CartId::new(format!("{cart_prefix}{number:04}"));
            let mut wishes = wishes(&mut rng, number);
            wishes.reverse();
            (id, wishes)
        })
        .collect();
    let mut commands = Vec::new();
    while !waiting.is_empty() {
        // Customers shop concurrently: the next command is that of a random customer.
        let at = rng.usize(..waiting.len());
        let (id, wishes) = &mut waiting[at];
        match wishes.pop() {
            Some(command) => commands.push((id.clone(), command)),
            None => drop(waiting.swap_remove(at)),
        }
    }
    commands
}

/// Generates the commands of one customer, first to last.
fn wishes(rng: &mut Rng, number: u32) -> Vec<CartCommand> {
    let country = COUNTRIES[rng.usize(..COUNTRIES.len())];
    let mut wishes = Vec::new();
    for _ in 0..rng.usize(1..=6) {
        let (stock_code, description, pence, in_stock) = PRODUCTS[rng.usize(..PRODUCTS.len())];
        let most = (in_stock / 3).max(1);
        let quantity = match rng.u8(..20) {
            0 => 0,
            1 => in_stock + 1,
            _ => rng.i64(1..=most),
        };
        let minutes = u64::from(number) * 3 + wishes.len() as u64;
        let item = CartItem {
            stock_code: stock_code.into(),
            description: description.into(),
            quantity,
            unit_price: Money::from_cents(pence),
            invoiced_at: OPENING.plus(Duration::from_secs(60 * minutes)),
            customer: Some(format!("{}", 12_000 + number)),
            country: country.into(),
        };
        wishes.push(CartCommand::AddItem { item, in_stock });
        if rng.u8(..8) == 0 {
            let (stock_code, ..) = PRODUCTS[rng.usize(..PRODUCTS.len())];
            // The product is often not the one that was added. The cart then has nothing to take
            // out.
            let stock_code = if rng.bool() {
                stock_code
            } else {
                last_added(&wishes)
            }
            .into();
            wishes.push(CartCommand::RemoveItem { stock_code });
        }
    }
    // One customer in ten never orders, and one in ten orders twice.
    for _ in 0..[0, 1, 1, 1, 1, 1, 1, 1, 1, 2][rng.usize(..10)] {
        wishes.push(CartCommand::CheckOut);
    }
    wishes
}

fn last_added(wishes: &[CartCommand]) -> &str {
    let added = wishes.iter().rev().find_map(|wish| match wish {
        CartCommand::AddItem { item, .. } => Some(item.stock_code.as_str()),
        _ => None,
    });
    added.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_the_shopping_and_another_does_not() {
        assert_eq!(shopping(1, 20, "c"), shopping(1, 20, "c"));
        assert_ne!(shopping(1, 20, "c"), shopping(2, 20, "c"));
    }

    #[test]
    fn every_customer_has_a_cart() {
        let carts: std::collections::BTreeSet<_> =
            shopping(7, 50, "c").into_iter().map(|(id, _)| id).collect();
        assert_eq!(carts.len(), 50);
        assert_eq!(carts.first().map(CartId::as_str), Some("c0001"));
    }
}
