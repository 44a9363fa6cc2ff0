//! The laws and scenarios of the cart.
use foldstream_testkit::{
    Scenario,
    domains::cart::{
        Cart,
        CartCommand::{self, AddItem, CheckOut, ReduceItem},
        CartError,
        CartEvent::{self, CartCheckedOut, CartItemAdded, CartItemRemoved},
        CartId, CartItem,
    },
    laws::Laws,
};
use proptest::prelude::*;

fn add(product: &str, quantity: u32) -> CartCommand {
    AddItem {
        product: product.into(),
        quantity,
    }
}
fn reduce(product: &str, to: u32) -> CartCommand {
    ReduceItem {
        product: product.into(),
        to,
    }
}
fn added(product: &str, quantity: u32) -> CartEvent {
    CartItemAdded {
        product: product.into(),
        quantity,
    }
}
fn removed(product: &str, quantity: u32) -> CartEvent {
    CartItemRemoved {
        product: product.into(),
        quantity,
    }
}
fn item(product: &str, quantity: u32) -> CartItem {
    CartItem {
        product: product.into(),
        quantity,
    }
}

#[test]
fn an_item_is_added_and_more_of_it_raises_its_quantity() {
    Scenario::<Cart>::given_nothing()
        .when(add("tea", 1))
        .then([added("tea", 1)])
        .when(add("cup", 2))
        .then([added("cup", 2)])
        .when(add("tea", 3))
        .then([added("tea", 3)])
        .then_state(|cart| {
            assert_eq!(cart.items(), [item("tea", 4), item("cup", 2)]);
            assert_eq!((cart.quantity_of("cup"), cart.quantity_of("pot")), (2, 0));
            assert!(!cart.is_checked_out());
        });
}

#[test]
fn zero_units_are_refused() {
    Scenario::<Cart>::given_nothing()
        .when(add("tea", 0))
        .then_rejected(CartError::NoUnits);
}

#[test]
fn a_cart_holds_99_units_of_a_product_and_no_more() {
    Scenario::<Cart>::given([added("tea", 98), added("cup", 99)])
        .when(add("tea", 2))
        .then_rejected(CartError::TooMany {
            product: "tea".into(),
        })
        .when(add("tea", 1))
        .then([added("tea", 1)])
        .when(add("tea", u32::MAX))
        .then_rejected(CartError::TooMany {
            product: "tea".into(),
        });
}

#[test]
fn reducing_takes_out_what_is_too_much() {
    Scenario::<Cart>::given([added("tea", 5), added("cup", 1)])
        .when(reduce("tea", 5))
        .then_nothing()
        .when(reduce("tea", 2))
        .then([removed("tea", 3)])
        .then_state(|cart| assert_eq!(cart.items(), [item("tea", 2), item("cup", 1)]))
        .when(reduce("tea", 0))
        .then([removed("tea", 2)])
        .then_state(|cart| assert_eq!(cart.items(), [item("cup", 1)]))
        .when(reduce("tea", 0))
        .then_nothing();
}

#[test]
fn an_order_is_final_and_an_empty_cart_cannot_be_ordered() {
    Scenario::<Cart>::given_nothing()
        .when(CheckOut)
        .then_rejected(CartError::Empty)
        .when(add("tea", 1))
        .then([added("tea", 1)])
        .when(CheckOut)
        .then([CartCheckedOut])
        .then_state(|cart| assert!(cart.is_checked_out()))
        .when(add("tea", 1))
        .then_rejected(CartError::CheckedOut)
        .when(reduce("tea", 0))
        .then_rejected(CartError::CheckedOut)
        .when(CheckOut)
        .then_rejected(CartError::CheckedOut);
}

#[test]
fn refusals_say_why() {
    let texts = [
        (CartError::CheckedOut, "the cart is checked out"),
        (CartError::NoUnits, "zero units cannot be added"),
        (CartError::Empty, "the cart is empty"),
    ];
    for (error, text) in texts {
        assert_eq!(error.to_string(), text);
    }
    let product = "tea".into();
    assert_eq!(
        CartError::TooMany { product }.to_string(),
        "a cart holds at most 99 units of tea"
    );
}

/// Returns the units of a product that a history has put in and not taken out.
fn balance(history: &[CartEvent], wanted: &str) -> i64 {
    let change = |event: &CartEvent| match event {
        CartItemAdded { product, quantity } if product == wanted => i64::from(*quantity),
        CartItemRemoved { product, quantity } if product == wanted => -i64::from(*quantity),
        _ => 0,
    };
    history.iter().map(change).sum()
}

fn rules(laws: Laws<Cart>) -> Laws<Cart> {
    laws.with_snapshots()
        .with_invariant("every item has units, and no more than it may", |cart| {
            let units = cart.items().iter().map(|item| item.quantity);
            units
                .clone()
                .all(|units| (1..=Cart::MAX_UNITS).contains(&units))
        })
        .never("something happens after the order", |history| {
            let order = history.iter().position(|event| *event == CartCheckedOut);
            order.is_some_and(|order| order + 1 < history.len())
        })
        .never("more is taken out than was put in", |history| {
            ["tea", "cup"]
                .iter()
                .any(|product| balance(history, product) < 0)
        })
        .eventually(
            "an order that has something in it",
            [
                add("tea", 1),
                reduce("cup", 0),
                CheckOut,
                reduce("tea", 98),
                add("tea", 1),
                CheckOut,
            ],
            |history| history.last() == Some(&CartCheckedOut) && history.len() > 1,
        )
        .with_rule("added is what was asked for", |_, command, led_to| {
            match (command, led_to) {
                (AddItem { product, quantity }, Ok(events)) => {
                    *events == [added(product, *quantity)]
                }
                _ => true,
            }
        })
}

#[test]
fn the_laws_hold_on_random_commands() {
    let product = || prop_oneof![Just("tea"), Just("cup")];
    let commands = prop_oneof![
        4 => (product(), 0u32..60).prop_map(|(product, quantity)| add(product, quantity)),
        3 => (product(), 0u32..60).prop_map(|(product, to)| reduce(product, to)),
        1 => Just(CheckOut),
    ];
    let ids = "[a-z0-9-]{1,20}";
    let checked = rules(Laws::new(commands))
        .with_ids(ids.prop_map(CartId::from))
        .with_id_texts("\\PC{1,20}")
        .check();
    assert!(checked.rejected() > 0 && checked.nothing() > 0, "{checked}");
}

#[test]
fn the_laws_hold_on_all_commands_of_a_small_cart() {
    let commands = [add("tea", 1), add("cup", 98), reduce("tea", 0), CheckOut];
    let checked = rules(Laws::exhaustive(commands, 5)).check();
    assert_eq!(checked.longest(), 5, "{checked}");
}
