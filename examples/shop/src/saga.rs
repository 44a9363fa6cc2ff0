//! The saga that has orders paid: cart, payment, provider, and the payment again.
//!
//! ```text
//! cart#c1     CartCheckedOut ----.                     .---- PaymentRequested    payment#c1
//!                                v                     |            |
//!                        Request, as "request"  -------'            v
//!                                                        charge the card: provider
//!                                                                   |
//!             PaymentSettled | PaymentDeclined  <----  Settle | Decline, as "record"
//! ```
//!
//! A saga is a listener that executes commands. What it has to remember is in an aggregate, here
//! the [`Payment`]. Three things let an event come twice without effect:
//! - The command id is derived from the processor, the event and a step
//!   ([`EventContext::caused`]). A redelivered event therefore sends the *same* command, and the
//!   repository answers with the events that it has stored the first time.
//! - The provider gets the id of the event as its idempotency key.
//! - The rules of [`Payment`] refuse or ignore what comes late, also after the mark of the command
//!   id has expired.
//!
//! # Timers
//! The library has no scheduler, because every platform has one. A timer is a command that
//! something else sends later: [`expiry`] is what to store there. The scheduler may send it twice,
//! or after the order was paid. The command id settles the first, the rules of [`Payment`] settle
//! the second.
use crate::{
    cart::{CartEvent, CartId},
    payment::{Payment, PaymentCommand, PaymentEvent},
    provider::{ChargeError, PaymentProvider},
};
use foldstream::{
    CommandId, Metadata, Repository, event_set,
    runner::{EventContext, HandlerError, HandlerResult, Listener},
};

event_set! {
    /// The events of the two aggregates that take part in the saga.
    pub enum OrderEvent {
        Cart(CartEvent),
        Payment(PaymentEvent),
    }
}

/// Has every order that was checked out paid.
#[derive(Debug)]
pub struct PaymentSaga {
    payments: Repository<Payment>,
    provider: PaymentProvider,
}

impl PaymentSaga {
    /// Creates the saga. The repository must have idempotent commands
    /// ([`Repository::with_idempotency`]).
    pub const fn new(payments: Repository<Payment>, provider: PaymentProvider) -> Self {
        Self { payments, provider }
    }

    async fn execute(
        &self,
        order: &CartId,
        command: PaymentCommand,
        caused: Metadata,
    ) -> HandlerResult {
        self.payments.execute_with(order, command, caused).await?;
        Ok(())
    }
}

impl Listener for PaymentSaga {
    const NAME: &'static str = "payments";
    type Events = OrderEvent;

    async fn handle(&self, event: &OrderEvent, ctx: &EventContext) -> HandlerResult {
        let order: CartId = ctx.id()?;
        match event {
            OrderEvent::Cart(CartEvent::CartCheckedOut { total }) => {
                let request = PaymentCommand::Request { amount: *total };
                self.execute(&order, request, ctx.caused("request")).await
            }
            OrderEvent::Payment(PaymentEvent::PaymentRequested { amount }) => {
                let charged = self.provider.charge(ctx.event_id(), &order, *amount).await;
                let record = match charged {
                    Ok(receipt) => PaymentCommand::Settle { receipt },
                    // An answer as good as any other: the process goes on with it.
                    Err(ChargeError::Declined { reason }) => PaymentCommand::Decline { reason },
                    Err(error) => return Err(HandlerError::new(error.class(), error)),
                };
                self.execute(&order, record, ctx.caused("record")).await
            }
            OrderEvent::Cart(_) | OrderEvent::Payment(_) => Ok(()),
        }
    }
}

/// A command to be sent later, as a scheduler keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledExpiry {
    /// The order whose payment is given up.
    pub order: CartId,
    /// The id under which the scheduler sends the command, however often.
    pub command_id: CommandId,
}

/// Returns the timer for a payment that was requested: what to hand to the scheduler of the
/// platform, such as EventBridge Scheduler or a table of due times.
///
/// A redelivered event yields the same timer, so that the scheduler can store it by its id.
///
/// # Errors
/// `Poison` if the stream's id is not that of an order.
pub fn expiry(ctx: &EventContext) -> Result<ScheduledExpiry, HandlerError> {
    Ok(ScheduledExpiry {
        order: ctx.id()?,
        command_id: ctx.command_id("expire"),
    })
}

/// Executes a timer that is due.
///
/// # Errors
/// The classified error of the repository.
pub async fn expire(payments: &Repository<Payment>, timer: &ScheduledExpiry) -> HandlerResult {
    let metadata = Metadata::new().with_command_id(timer.command_id.clone());
    let expire = PaymentCommand::Expire;
    payments
        .execute_with(&timer.order, expire, metadata)
        .await?;
    Ok(())
}
