//! The cart, which becomes an order when it is checked out: its events, its commands and its rules.
//!
//! Everything here is pure. No store, no clock, no `async`: facts from outside (what is in stock) come in with the
//! command, so a test is a function call.
use crate::money::{Money, MoneyError};
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Timestamp, id};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

id!(
    /// Names a cart; of an imported order it is the invoice's number.
    pub CartId
);

/// Some units of one product at one price, for one customer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CartItem {
    /// The product. Upper and lower case differ.
    pub stock_code: String,
    /// What the product is called; may be empty.
    pub description: String,
    /// Units; below zero in a cancellation or an adjustment.
    pub quantity: i64,
    /// Price of one unit; zero or below in an adjustment.
    pub unit_price: Money,
    /// When it was sold.
    #[serde(with = "rfc3339")]
    pub invoiced_at: Timestamp,
    /// Who bought it, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// Where the customer lives.
    pub country: String,
}

impl CartItem {
    /// Quantity times price.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`].
    pub fn amount(&self) -> Result<Money, MoneyError> {
        self.unit_price.times(self.quantity)
    }
}

/// What can happen to a cart. These are facts: once stored they never change.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart", upcasters = crate::schema::upcasters)]
pub enum CartEvent {
    /// Some units were put into the cart. An imported invoice is nothing but these, one for each line.
    CartItemAdded(CartItem),
    /// What an earlier `CartItemAdded` put in was taken out again.
    CartItemRemoved(CartItem),
    /// The customer ordered what is in the cart. Version 1 had `total_cents`; see [`schema`](crate::schema).
    #[event(version = 2)]
    CartCheckedOut {
        /// What it costs in all.
        total: Money,
    },
}

/// The state of one cart: the fold of its events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cart {
    items: Vec<CartItem>,
    is_known: bool,
    is_checked_out: bool,
}

impl Cart {
    /// What is in the cart, in the order it was put in.
    pub fn items(&self) -> &[CartItem] {
        &self.items
    }

    /// Whether the customer has ordered.
    pub const fn is_checked_out(&self) -> bool {
        self.is_checked_out
    }

    /// What the items cost in all.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`].
    pub fn total(&self) -> Result<Money, MoneyError> {
        let amounts = self.items.iter().map(CartItem::amount);
        amounts
            .into_iter()
            .try_fold(Money::ZERO, |sum, amount| sum.plus(amount?))
    }

    fn units_of(&self, stock_code: &str) -> i64 {
        let items = self
            .items
            .iter()
            .filter(|item| item.stock_code == stock_code);
        items.fold(0, |units, item| item.quantity.saturating_add(units))
    }
}

impl Aggregate for Cart {
    type Id = CartId;
    type Event = CartEvent;

    fn evolve(&mut self, event: &CartEvent) {
        self.is_known = true;
        match event {
            CartEvent::CartItemAdded(item) => self.items.push(item.clone()),
            CartEvent::CartItemRemoved(item) => {
                if let Some(at) = self.items.iter().rposition(|known| known == item) {
                    self.items.remove(at);
                }
            }
            CartEvent::CartCheckedOut { .. } => self.is_checked_out = true,
        }
    }
}

/// What a customer can ask for.
#[derive(Clone, Debug, PartialEq)]
pub enum CartCommand {
    /// Put this into the cart.
    AddItem {
        /// Product, units and price.
        item: CartItem,
        /// Units that the shop has: a fact from outside the cart, so it comes with the command.
        in_stock: i64,
    },
    /// Take out what was put in last of this product.
    RemoveItem {
        /// The product.
        stock_code: String,
    },
    /// Order what is in the cart.
    CheckOut,
}

/// Why the cart refuses a command.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CartRefusal {
    /// Nothing changes any more after the order.
    #[error("the cart is checked out already")]
    AlreadyCheckedOut,
    /// A customer cannot add zero units, or fewer.
    #[error("{quantity} units cannot be added")]
    NoUnits {
        /// What was asked for.
        quantity: i64,
    },
    /// More than the shop has, counting what is in the cart.
    #[error("only {in_stock} units of {stock_code} are in stock")]
    NotInStock {
        /// The product.
        stock_code: String,
        /// What there is.
        in_stock: i64,
    },
    /// There is nothing of it to remove.
    #[error("there is no {stock_code} in the cart")]
    NotInCart {
        /// The product.
        stock_code: String,
    },
    /// Nothing to order.
    #[error("the cart is empty")]
    Empty,
    /// The total cannot be computed.
    #[error("the cart has no exact total")]
    NoTotal(#[from] MoneyError),
}

impl Decide<CartCommand> for Cart {
    type Error = CartRefusal;

    fn decide(&self, command: &CartCommand, _: &Context) -> Decision<Self, CartRefusal> {
        if self.is_checked_out {
            return Err(CartRefusal::AlreadyCheckedOut);
        }
        match command {
            CartCommand::AddItem { item, in_stock } => {
                let (quantity, stock_code) = (item.quantity, item.stock_code.clone());
                if quantity < 1 {
                    return Err(CartRefusal::NoUnits { quantity });
                }
                if self.units_of(&stock_code).saturating_add(quantity) > *in_stock {
                    let in_stock = *in_stock;
                    return Err(CartRefusal::NotInStock {
                        stock_code,
                        in_stock,
                    });
                }
                Ok(vec![CartEvent::CartItemAdded(item.clone())])
            }
            CartCommand::RemoveItem { stock_code } => {
                let mut newest_first = self.items.iter().rev();
                let Some(item) = newest_first.find(|item| item.stock_code == *stock_code) else {
                    let stock_code = stock_code.clone();
                    return Err(CartRefusal::NotInCart { stock_code });
                };
                Ok(vec![CartEvent::CartItemRemoved(item.clone())])
            }
            CartCommand::CheckOut if self.items.is_empty() => Err(CartRefusal::Empty),
            CartCommand::CheckOut => Ok(vec![CartEvent::CartCheckedOut {
                total: self.total()?,
            }]),
        }
    }
}

/// Takes over an invoice of the old system, as it stands.
///
/// A command of its own, since its rules are others: an old invoice is a fact already, so nothing is refused. And it may
/// come again: an order that is there is left alone. That alone makes the import safe to repeat, after a crash or on a
/// whim; no list of what was imported is kept anywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportInvoice {
    /// The lines, in the order of the file.
    pub lines: Vec<CartItem>,
}

impl Decide<ImportInvoice> for Cart {
    type Error = Infallible;

    fn decide(&self, invoice: &ImportInvoice, _: &Context) -> Decision<Self, Infallible> {
        if self.is_known {
            return Ok(Vec::new());
        }
        let lines = invoice.lines.iter().cloned();
        Ok(lines.map(CartEvent::CartItemAdded).collect())
    }
}

/// Times as text, readable for whoever consumes the events.
mod rfc3339 {
    use foldstream::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        at: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CartCommand::CheckOut;
    use CartEvent::{CartCheckedOut, CartItemAdded, CartItemRemoved};
    use foldstream_testkit::Scenario;

    fn item(stock_code: &str, quantity: i64) -> CartItem {
        CartItem {
            stock_code: stock_code.into(),
            description: String::new(),
            quantity,
            unit_price: "2.55".parse().unwrap(),
            invoiced_at: Timestamp::from_micros(0),
            customer: None,
            country: "France".into(),
        }
    }

    /// Ten units of everything are in stock.
    fn add(stock_code: &str, quantity: i64) -> CartCommand {
        CartCommand::AddItem {
            item: item(stock_code, quantity),
            in_stock: 10,
        }
    }

    fn remove(stock_code: &str) -> CartCommand {
        CartCommand::RemoveItem {
            stock_code: stock_code.into(),
        }
    }

    #[test]
    fn an_item_is_added_while_it_is_in_stock() {
        Scenario::<Cart>::given([CartItemAdded(item("tea", 8))])
            .when(add("tea", 2))
            .then([CartItemAdded(item("tea", 2))])
            .when(add("tea", 1))
            .then_rejected(CartRefusal::NotInStock {
                stock_code: "tea".into(),
                in_stock: 10,
            });
    }

    #[test]
    fn less_than_one_unit_is_refused() {
        for quantity in [0, -1] {
            Scenario::<Cart>::given_nothing()
                .when(add("tea", quantity))
                .then_rejected(CartRefusal::NoUnits { quantity });
        }
    }

    #[test]
    fn what_was_added_last_is_removed_first() {
        Scenario::<Cart>::given([CartItemAdded(item("tea", 1)), CartItemAdded(item("tea", 2))])
            .when(remove("tea"))
            .then([CartItemRemoved(item("tea", 2))])
            .then_state(|cart| assert_eq!(cart.items(), [item("tea", 1)]));
    }

    #[test]
    fn stock_codes_keep_their_case() {
        Scenario::<Cart>::given([CartItemAdded(item("85123A", 1))])
            .when(remove("85123a"))
            .then_rejected(CartRefusal::NotInCart {
                stock_code: "85123a".into(),
            });
    }

    #[test]
    fn an_order_has_the_exact_total_and_is_final() {
        Scenario::<Cart>::given([CartItemAdded(item("tea", 3)), CartItemAdded(item("cup", 1))])
            .when(CheckOut)
            .then([CartCheckedOut {
                total: "10.20".parse().unwrap(),
            }])
            .when(CheckOut)
            .then_rejected(CartRefusal::AlreadyCheckedOut);
    }

    #[test]
    fn an_empty_cart_cannot_be_ordered() {
        Scenario::<Cart>::given_nothing()
            .when(CheckOut)
            .then_rejected(CartRefusal::Empty);
        Scenario::<Cart>::given([
            CartItemAdded(item("tea", 1)),
            CartItemRemoved(item("tea", 1)),
        ])
        .when(CheckOut)
        .then_rejected(CartRefusal::Empty);
    }

    #[test]
    fn an_invoice_is_imported_once_as_it_stands() {
        let invoice = ImportInvoice {
            lines: vec![item("tea", -3), item("tea", 0)],
        };
        Scenario::<Cart>::given_nothing()
            .when(invoice.clone())
            .then([
                CartItemAdded(item("tea", -3)),
                CartItemAdded(item("tea", 0)),
            ])
            .when(invoice)
            .then_nothing();
    }

    #[test]
    fn an_import_leaves_a_cart_alone_that_customers_use() {
        Scenario::<Cart>::given([
            CartItemAdded(item("tea", 1)),
            CartItemRemoved(item("tea", 1)),
        ])
        .when(ImportInvoice {
            lines: vec![item("cup", 1)],
        })
        .then_nothing();
    }

    #[test]
    fn an_item_is_stored_as_readable_json() {
        let mut stored = Vec::new();
        let event = CartItemAdded(CartItem {
            customer: Some("17850".into()),
            ..item("85123a", -6)
        });
        event.encode(&mut stored).unwrap();
        assert_eq!(
            String::from_utf8(stored.clone()).unwrap(),
            r#"{"stock_code":"85123a","description":"","quantity":-6,"unit_price":"2.55","invoiced_at":"1970-01-01T00:00:00.000000Z","customer":"17850","country":"France"}"#
        );
        assert_eq!(CartEvent::decode(0, &stored).unwrap(), event);
    }
}
