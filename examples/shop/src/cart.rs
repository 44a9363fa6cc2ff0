//! The cart, which becomes an order when it is checked out: its events, its commands and its rules.
//!
//! Everything here is pure, without a store, a clock or `async`. Facts from outside, such as the
//! units in stock, come with the command. A test is therefore a function call.
use crate::money::{Money, MoneyError};
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Timestamp, id};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

id!(
    /// The id of a cart. For an imported order it is the invoice's number.
    pub CartId
);

/// Some units of one product at one price, for one customer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CartItem {
    /// The code of the product, which is case-sensitive.
    pub stock_code: String,
    /// The name of the product; may be empty.
    pub description: String,
    /// The number of units; negative in a cancellation or an adjustment.
    pub quantity: i64,
    /// The price of one unit; zero or negative in an adjustment.
    pub unit_price: Money,
    /// The time of the sale.
    #[serde(with = "rfc3339")]
    pub invoiced_at: Timestamp,
    /// The number of the customer, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    /// The country of the customer.
    pub country: String,
}

impl CartItem {
    /// Multiplies the quantity by the price.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`] if the product cannot be held exactly.
    pub fn amount(&self) -> Result<Money, MoneyError> {
        self.unit_price.times(self.quantity)
    }
}

/// An event of a cart. Events are facts: a stored event never changes.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "cart", upcasters = crate::schema::upcasters)]
pub enum CartEvent {
    /// Some units were put into the cart. An imported invoice consists of these events, one per
    /// line.
    CartItemAdded(CartItem),
    /// The units of an earlier `CartItemAdded` were taken out again.
    CartItemRemoved(CartItem),
    /// The customer ordered the content of the cart. Version 1 had `total_cents`; see
    /// [`schema`](crate::schema).
    #[event(version = 2)]
    CartCheckedOut {
        /// The total of the order.
        total: Money,
    },
}

/// The state of one cart: the fold of its events. Operators read it as JSON, by `shop history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cart {
    items: Vec<CartItem>,
    is_known: bool,
    is_checked_out: bool,
}

impl Cart {
    /// Returns the items in the cart, in the order in which they were added.
    pub fn items(&self) -> &[CartItem] {
        &self.items
    }

    /// Returns true if the customer has ordered.
    pub const fn is_checked_out(&self) -> bool {
        self.is_checked_out
    }

    /// Sums the amounts of all items.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`] if the sum cannot be held exactly.
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

/// A command that a customer sends to a cart.
#[derive(Clone, Debug, PartialEq)]
pub enum CartCommand {
    /// Puts an item into the cart.
    AddItem {
        /// The product, its units and its price.
        item: CartItem,
        /// The units that the shop has. This fact is from outside the cart, so it comes with the
        /// command.
        in_stock: i64,
    },
    /// Takes out the item of this product that was added last.
    RemoveItem {
        /// The code of the product.
        stock_code: String,
    },
    /// Orders the content of the cart.
    CheckOut,
}

/// A reason for which the cart refuses a command.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CartRefusal {
    /// The cart is an order, and an order does not change.
    #[error("the cart is checked out already")]
    AlreadyCheckedOut,
    /// The customer asked for zero or fewer units.
    #[error("{quantity} units cannot be added")]
    NoUnits {
        /// The units that the customer asked for.
        quantity: i64,
    },
    /// The cart would hold more units than the shop has.
    #[error("only {in_stock} units of {stock_code} are in stock")]
    NotInStock {
        /// The code of the product.
        stock_code: String,
        /// The units that the shop has.
        in_stock: i64,
    },
    /// The cart holds no item of this product.
    #[error("there is no {stock_code} in the cart")]
    NotInCart {
        /// The code of the product.
        stock_code: String,
    },
    /// The cart is empty and cannot be ordered.
    #[error("the cart is empty")]
    Empty,
    /// The total cannot be computed exactly.
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

/// Takes over an invoice of the old system without changes.
///
/// This is a command with rules of its own. An old invoice is a fact, so nothing in it is refused.
/// A cart that has events already is left alone, so repeating an import is safe, also after a
/// crash. The import needs no list of the invoices that are done.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportInvoice {
    /// The invoice's lines, in the order of the file.
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

/// Stores times as text that consumers of the events can read.
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

    /// Adds units of a product that has ten units in stock.
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
