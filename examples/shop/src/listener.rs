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
    sync::{Arc, Mutex, PoisonError},
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
    sent: Arc<Mutex<BTreeMap<EventId, Confirmation>>>,
}

impl MailService {
    /// Sends a mail, unless one of this id was sent before.
    pub fn send(&self, id: EventId, mail: Confirmation) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.entry(id).or_insert(mail);
    }

    /// Every mail that was sent.
    pub fn sent(&self) -> Vec<Confirmation> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.values().cloned().collect()
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
