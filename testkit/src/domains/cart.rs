//! A shopping cart: items are added, taken out, and ordered.
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, Snapshot, id};
use serde::{Deserialize, Serialize};

id!(
    /// Names a cart.
    pub CartId
);

/// The events of a cart.
#[derive(Clone, Debug, PartialEq, Eq, DomainEvent)]
#[event(aggregate = "cart")]
pub enum CartEvent {
    /// Units of a product were put in.
    CartItemAdded {
        /// The product.
        product: String,
        /// Units, at least 1.
        quantity: u32,
    },
    /// Units of a product were taken out.
    CartItemRemoved {
        /// The product.
        product: String,
        /// Units, at most those that were in the cart.
        quantity: u32,
    },
    /// The customer ordered what is in the cart.
    CartCheckedOut,
}

/// The commands of a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CartCommand {
    /// Put units of a product in.
    AddItem {
        /// The product.
        product: String,
        /// Units.
        quantity: u32,
    },
    /// Have at most so many units of a product; 0 takes it out.
    ReduceItem {
        /// The product.
        product: String,
        /// Units that may stay.
        to: u32,
    },
    /// Order what is in the cart.
    CheckOut,
}

/// The refusals of a cart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CartError {
    /// Nothing changes any more after the order.
    #[error("the cart is checked out")]
    CheckedOut,
    /// Zero units are no item.
    #[error("zero units cannot be added")]
    NoUnits,
    /// More than [`Cart::MAX_UNITS`] of one product.
    #[error("a cart holds at most {max} units of {product}", max = Cart::MAX_UNITS)]
    TooMany {
        /// The product.
        product: String,
    },
    /// Nothing to order.
    #[error("the cart is empty")]
    Empty,
}

/// Units of one product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CartItem {
    /// The product.
    pub product: String,
    /// Units, at least 1.
    pub quantity: u32,
}

/// The items of a cart, in the order in which they were first put in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cart {
    items: Vec<CartItem>,
    is_checked_out: bool,
}

impl Cart {
    /// Units of one product that a cart holds at most.
    pub const MAX_UNITS: u32 = 99;

    /// Returns the items.
    pub fn items(&self) -> &[CartItem] {
        &self.items
    }
    /// Returns true if the cart was ordered.
    pub const fn is_checked_out(&self) -> bool {
        self.is_checked_out
    }
    /// Units of a product.
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
