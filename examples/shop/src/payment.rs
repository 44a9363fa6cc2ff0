//! The payment of an order: what was asked for, and what became of it.
//!
//! The aggregate is the memory of the process in [`saga`](crate::saga). Each of its commands may
//! come again, or come late, and then changes nothing.
use crate::{cart::CartId, money::Money};
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent};
use serde::Serialize;

/// An event of a payment. The payment of an order has the order's id.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "payment")]
pub enum PaymentEvent {
    /// The order is to be paid.
    PaymentRequested {
        /// The total of the order.
        amount: Money,
    },
    /// The provider has taken the money.
    PaymentSettled {
        /// The number by which the provider knows the payment.
        receipt: String,
    },
    /// The order was not paid.
    PaymentDeclined {
        /// The reason, in words for the customer.
        reason: String,
    },
}

/// The state of one payment: the fold of its events. Operators read it as JSON, by `shop history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub enum Payment {
    /// Nobody has asked for a payment.
    #[default]
    NotRequested,
    /// The payment is on its way.
    Pending {
        /// The total of the order.
        amount: Money,
    },
    /// The order is paid.
    Settled {
        /// The number by which the provider knows the payment.
        receipt: String,
    },
    /// The order was not paid. The customer may try again.
    Declined,
}

impl Aggregate for Payment {
    type Id = CartId;
    type Event = PaymentEvent;

    fn evolve(&mut self, event: &PaymentEvent) {
        *self = match event {
            PaymentEvent::PaymentRequested { amount } => Self::Pending { amount: *amount },
            PaymentEvent::PaymentSettled { receipt } => Self::Settled {
                receipt: receipt.clone(),
            },
            PaymentEvent::PaymentDeclined { .. } => Self::Declined,
        };
    }
}

/// A command of the saga, of a customer who tries again, or of a timer.
#[derive(Clone, Debug, PartialEq)]
pub enum PaymentCommand {
    /// Asks for the payment of an order.
    Request {
        /// The total of the order.
        amount: Money,
    },
    /// Records that the provider has taken the money.
    Settle {
        /// The number by which the provider knows the payment.
        receipt: String,
    },
    /// Records that the provider has declined.
    Decline {
        /// The reason, in words for the customer.
        reason: String,
    },
    /// Gives up a payment that has taken too long. A timer sends it, and need not know whether the
    /// order was paid in the meantime.
    Expire,
}

/// A reason for which a payment refuses a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaymentRefusal {
    /// The money was taken for a payment that is over. Somebody must look, and pay it back.
    #[error("receipt {receipt} is for a payment that is over: pay the money back")]
    NotPending {
        /// The number by which the provider knows the payment.
        receipt: String,
    },
}

impl Decide<PaymentCommand> for Payment {
    type Error = PaymentRefusal;

    fn decide(&self, command: &PaymentCommand, _: &Context) -> Decision<Self, PaymentRefusal> {
        Ok(match (command, self) {
            (PaymentCommand::Request { amount }, Self::NotRequested | Self::Declined) => {
                vec![PaymentEvent::PaymentRequested { amount: *amount }]
            }
            (PaymentCommand::Settle { receipt }, Self::Pending { .. }) => {
                let receipt = receipt.clone();
                vec![PaymentEvent::PaymentSettled { receipt }]
            }
            (PaymentCommand::Settle { receipt }, state) => match state {
                Self::Settled { receipt: known } if known == receipt => Vec::new(),
                _ => {
                    let receipt = receipt.clone();
                    return Err(PaymentRefusal::NotPending { receipt });
                }
            },
            (PaymentCommand::Decline { reason }, Self::Pending { .. }) => {
                let reason = reason.clone();
                vec![PaymentEvent::PaymentDeclined { reason }]
            }
            (PaymentCommand::Expire, Self::Pending { .. }) => {
                let reason = "it was not paid in time".into();
                vec![PaymentEvent::PaymentDeclined { reason }]
            }
            (
                PaymentCommand::Request { .. }
                | PaymentCommand::Decline { .. }
                | PaymentCommand::Expire,
                _,
            ) => Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PaymentCommand::{Decline, Expire, Request, Settle};
    use PaymentEvent::{PaymentDeclined, PaymentRequested, PaymentSettled};
    use foldstream_testkit::Scenario;

    fn amount() -> Money {
        Money::from_cents(1020)
    }

    fn requested() -> PaymentEvent {
        PaymentRequested { amount: amount() }
    }

    fn settle(receipt: &str) -> PaymentCommand {
        let receipt = receipt.into();
        Settle { receipt }
    }

    #[test]
    fn a_payment_is_requested_and_settled_once() {
        let receipt = "r-1".to_owned();
        Scenario::<Payment>::given_nothing()
            .when(Request { amount: amount() })
            .then([requested()])
            .when(Request { amount: amount() })
            .then_nothing()
            .when(settle("r-1"))
            .then([PaymentSettled { receipt }])
            .when(settle("r-1"))
            .then_nothing();
    }

    #[test]
    fn a_timer_that_comes_too_late_changes_nothing() {
        let receipt = "r-1".into();
        Scenario::<Payment>::given([requested(), PaymentSettled { receipt }])
            .when(Expire)
            .then_nothing();
    }

    #[test]
    fn money_for_a_payment_that_has_expired_is_not_recorded_as_paid() {
        let receipt = "r-1".into();
        Scenario::<Payment>::given([requested()])
            .when(Expire)
            .then([PaymentDeclined {
                reason: "it was not paid in time".into(),
            }])
            .when(settle("r-1"))
            .then_rejected(PaymentRefusal::NotPending { receipt });
    }

    #[test]
    fn a_customer_whose_card_was_declined_may_try_again() {
        let reason = || "no cover".to_owned();
        Scenario::<Payment>::given([requested()])
            .when(Decline { reason: reason() })
            .then([PaymentDeclined { reason: reason() }])
            .when(Request { amount: amount() })
            .then([requested()]);
    }
}
