//! A shopping cart whose items are added, taken out, and ordered.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};

id!(
    /// The identity of a cart.
    pub CartId
);

/// The events of a [`Cart`].
#[derive(Clone, Debug, PartialEq, Eq, DomainEvent)]
#[event(aggregate = "cart")]
pub enum CartEvent {
    /// Units of a product were put into the cart.
    CartItemAdded {
        /// The name of the product.
        product: String,
        /// The number of units, at least 1.
        quantity: u32,
    },
    /// Units of a product were taken out of the cart.
    CartItemRemoved {
        /// The name of the product.
        product: String,
        /// The number of units, at most as many as were in the cart.
        quantity: u32,
    },
    /// The customer ordered the items in the cart.
    CartCheckedOut,
}

/// The commands that a customer gives.
///
/// # Example
/// ```
/// use foldstream_testkit::{Scenario, domains::cart::{Cart, CartCommand, CartEvent}};
///
/// Scenario::<Cart>::given([CartEvent::CartItemAdded { product: "tea".into(), quantity: 3 }])
///     .when(CartCommand::ReduceItem { product: "tea".into(), to: 1 })
///     .then([CartEvent::CartItemRemoved { product: "tea".into(), quantity: 2 }]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CartCommand {
    /// Puts units of a product into the cart.
    AddItem {
        /// The name of the product.
        product: String,
        /// The number of units; 0 is refused.
        quantity: u32,
    },
    /// Takes out units of a product until at most `to` are left. Changes nothing if there are no
    /// more than that.
    ReduceItem {
        /// The name of the product.
        product: String,
        /// The number of units that may stay; 0 takes the product out.
        to: u32,
    },
    /// Orders the items in the cart.
    CheckOut,
}

/// The refusals of a [`Cart`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CartError {
    /// The cart was ordered, and does not change anymore.
    #[error("the cart is checked out")]
    CheckedOut,
    /// The command adds zero units.
    #[error("zero units cannot be added")]
    NoUnits,
    /// The cart would hold more than [`Cart::MAX_UNITS`] units of one product.
    #[error("a cart holds at most {max} units of {product}", max = Cart::MAX_UNITS)]
    TooMany {
        /// The name of the product.
        product: String,
    },
    /// The cart to order is empty.
    #[error("the cart is empty")]
    Empty,
}

/// The units of one product in a cart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CartItem {
    /// The name of the product.
    pub product: String,
    /// The number of units, at least 1.
    pub quantity: u32,
}

/// The state of a shopping cart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cart {
    items: Vec<CartItem>,
    is_checked_out: bool,
}

impl Cart {
    /// The highest number of units of one product that a cart may hold.
    pub const MAX_UNITS: u32 = 99;

    /// Returns the items in the order in which the products were first put in.
    pub fn items(&self) -> &[CartItem] {
        &self.items
    }
    /// Returns true if the cart was ordered.
    pub const fn is_checked_out(&self) -> bool {
        self.is_checked_out
    }
    /// Returns the number of units of a product, which is 0 if the cart has none.
    pub fn quantity_of(&self, product: &str) -> u32 {
        let item = self.items.iter().find(|item| item.product == product);
        item.map_or(0, |item| item.quantity)
    }
}

impl Aggregate for Cart {
    type Id = CartId;
    type Event = CartEvent;

    fn evolve(&mut self, event: &CartEvent) {
        match event {
            CartEvent::CartItemAdded { product, quantity } => {
                match self.items.iter_mut().find(|item| item.product == *product) {
                    Some(item) => item.quantity = item.quantity.saturating_add(*quantity),
                    None => self.items.push(CartItem {
                        product: product.clone(),
                        quantity: *quantity,
                    }),
                }
            }
            CartEvent::CartItemRemoved { product, quantity } => {
                for item in self.items.iter_mut().filter(|i| i.product == *product) {
                    item.quantity = item.quantity.saturating_sub(*quantity);
                }
                self.items.retain(|item| item.quantity > 0);
            }
            CartEvent::CartCheckedOut => self.is_checked_out = true,
        }
    }
}

impl Decide<CartCommand> for Cart {
    type Error = CartError;

    fn decide(&self, command: &CartCommand, _: &Context) -> Decision<Self, CartError> {
        if self.is_checked_out {
            return Err(CartError::CheckedOut);
        }
        match command {
            CartCommand::AddItem { quantity: 0, .. } => Err(CartError::NoUnits),
            CartCommand::AddItem { product, quantity } => {
                let (product, quantity) = (product.clone(), *quantity);
                let units = self.quantity_of(&product).saturating_add(quantity);
                if units > Self::MAX_UNITS {
                    return Err(CartError::TooMany { product });
                }
                Ok(vec![CartEvent::CartItemAdded { product, quantity }])
            }
            CartCommand::ReduceItem { product, to } => {
                let surplus = self.quantity_of(product).saturating_sub(*to);
                if surplus == 0 {
                    return Ok(Vec::new());
                }
                Ok(vec![CartEvent::CartItemRemoved {
                    product: product.clone(),
                    quantity: surplus,
                }])
            }
            CartCommand::CheckOut if self.items.is_empty() => Err(CartError::Empty),
            CartCommand::CheckOut => Ok(vec![CartEvent::CartCheckedOut]),
        }
    }
}

impl Snapshot for Cart {
    const STATE_VERSION: u32 = 1;
}
