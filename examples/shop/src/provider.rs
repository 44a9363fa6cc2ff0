//! A payment provider whose failures a test or a story can switch.
use crate::{cart::CartId, money::Money};
use foldstream::{EventId, runner::ErrorClass};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The error of a charge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The provider does not answer.
    #[error("the payment provider does not answer")]
    Unavailable,
    /// The card was declined. The customer may try another one.
    #[error("the card was declined: {reason}")]
    Declined {
        /// The reason, in words for the customer.
        reason: String,
    },
    /// The shop's contract with the provider does not allow the charge. An operator must act.
    #[error("the provider takes at most {limit} from this account: raise the limit")]
    AboveLimit {
        /// The largest amount of one charge.
        limit: Money,
    },
}

impl ChargeError {
    /// Returns the class that tells the runner whether a retry may help.
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable => ErrorClass::Transient,
            Self::Declined { .. } | Self::AboveLimit { .. } => ErrorClass::Permanent,
        }
    }
}

/// A provider in memory. Clones are connections to the same provider.
///
/// As real providers do, it takes an idempotency key: the same key is charged once, and gets the
/// same receipt again.
#[derive(Clone, Debug, Default)]
pub struct PaymentProvider {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_down: bool,
    limit: Option<Money>,
    latency: Duration,
    calls: u64,
    charged: BTreeMap<EventId, (CartId, Money)>,
}

impl PaymentProvider {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges the customer of an order, once per key, and returns the receipt.
    ///
    /// # Errors
    /// [`ChargeError`] if no money was taken.
    pub async fn charge(
        &self,
        key: EventId,
        order: &CartId,
        amount: Money,
    ) -> Result<String, ChargeError> {
        let latency = self.lock().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let mut state = self.lock();
        state.calls += 1;
        if state.is_down {
            return Err(ChargeError::Unavailable);
        }
        if let Some(limit) = state.limit.filter(|limit| amount > *limit) {
            return Err(ChargeError::AboveLimit { limit });
        }
        state.charged.insert(key, (order.clone(), amount));
        Ok(format!("receipt-{key}"))
    }

    /// Takes the provider down, or brings it back.
    pub fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
    }

    /// Sets the largest amount of one charge; `None` is no limit, which is the default.
    pub fn set_limit(&self, limit: Option<Money>) {
        self.lock().limit = limit;
    }

    /// Sets the time that a charge takes. Default: none.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Returns the number of calls, with those that failed and those that were repetitions.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Returns the charges, one per key.
    pub fn charges(&self) -> Vec<(CartId, Money)> {
        self.lock().charged.values().cloned().collect()
    }
}
