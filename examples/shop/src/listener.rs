//! A listener: it does something in the world, so it is never run by a replay.
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
    /// The order.
    pub order: CartId,
    /// What it costs.
    pub total: Money,
}

/// A mail service that takes each message id once, as good ones do: a listener is called *at least* once.
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
    /// Sends a mail, unless one of this id was sent before.
    pub fn send(&self, id: EventId, mail: Confirmation) {
        let mut mails = self.lock();
        if mails.sent.insert(id, mail).is_some() {
            mails.repeated += 1;
        }
    }

    /// Mails that were sent, and mails that came again and were not.
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
    /// Sends through `mails`.
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
            // The event's id is the same on every delivery: the key by which the service knows a repetition.
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
