//! A listener that sends mails. Because of this side effect, a replay never runs it.
use crate::{
    cart::{CartEvent, CartId},
    money::Money,
};
use foldstream::{
    EventId,
    runner::{EventContext, HandlerResult, Listener},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A mail that tells a customer of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The id of the order.
    pub order: CartId,
    /// The total of the order.
    pub total: Money,
}

/// A mail service that sends each message id once.
///
/// A listener is called *at least* once per event, so the service must detect duplicates.
#[derive(Clone, Debug, Default)]
pub struct MailService {
    mails: Arc<Mutex<Mails>>,
}

#[derive(Debug, Default)]
struct Mails {
    sent: BTreeMap<EventId, Confirmation>,
    repeated: usize,
}

impl MailService {
    /// Sends a mail unless a mail with this id was sent before.
    pub fn send(&self, id: EventId, mail: Confirmation) {
        let mut mails = self.lock();
        if mails.sent.insert(id, mail).is_some() {
            mails.repeated += 1;
        }
    }

    /// Returns the number of mails that were sent, and of duplicates that were not.
    pub fn counts(&self) -> (usize, usize) {
        let mails = self.lock();
        (mails.sent.len(), mails.repeated)
    }

    fn lock(&self) -> MutexGuard<'_, Mails> {
        self.mails.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Confirms each order by mail.
#[derive(Debug)]
pub struct ConfirmationListener {
    mails: MailService,
}

impl ConfirmationListener {
    /// Creates a listener that sends through `mails`.
    pub const fn new(mails: MailService) -> Self {
        Self { mails }
    }
}

impl Listener for ConfirmationListener {
    const NAME: &'static str = "confirmations";
    type Events = CartEvent;

    async fn handle(&self, event: &CartEvent, ctx: &EventContext) -> HandlerResult {
        if let CartEvent::CartCheckedOut { total } = event {
            let order = ctx.id()?;
            // The event's id is the same on every delivery, so the service recognizes a repeated
            // delivery by it.
            self.mails.send(
                ctx.event_id(),
                Confirmation {
                    order,
                    total: *total,
                },
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foldstream_testkit::ListenerScenario;

    #[test]
    fn an_order_that_is_delivered_twice_is_confirmed_once() {
        let ordered = CartEvent::CartCheckedOut { total: Money::ZERO };
        let mail = Confirmation {
            order: CartId::from("c1"),
            total: Money::ZERO,
        };
        let sent = async |listener: &ConfirmationListener| -> Vec<Confirmation> {
            listener.mails.lock().sent.values().cloned().collect()
        };
        ListenerScenario::new(ConfirmationListener::new(MailService::default()), sent)
            .when("c1", [ordered])
            .then([mail])
            .when_delivered("c1", 1)
            .then_unchanged()
            .then_report(|report| assert_eq!(report.handled, 1));
    }
}
