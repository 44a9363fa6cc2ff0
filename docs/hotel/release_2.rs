use super::room::{BookingId, RoomId, Stay};
use foldstream::{Aggregate, DomainEvent, Upcast, Upcasters};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "booking", upcasters = older_events)]
pub enum BookingEvent {
    Placed {
        room: RoomId,
        guest: String,
        stay: Stay,
    },
    GuestArrived,
    #[event(version = 2)]
    Charged {
        item: String,
        cents: u64,
        currency: String,
    },
    CheckedOut {
        paid_cents: u64,
    },
    Cancelled,
}

/// Lifts what earlier releases have stored.
pub fn older_events() -> Upcasters {
    Upcasters::new()
        // Every bill was in euros once.
        .with_json("booking", "Charged", 1, |payload| {
            payload["currency"] = "EUR".into();
            Ok(())
        })
        // "Check in" is what guests do on their phones now; this was always the arrival.
        .with("booking", "CheckedIn", 1, |payload| {
            let name = "GuestArrived".into();
            Ok(Upcast::Renamed {
                name,
                schema_version: 1,
                payload,
            })
        })
        // Wake-up calls were recorded before the first release of this book. Nothing reads them.
        .with("booking", "WokenUp", 1, |_| Ok(Upcast::Retired))
}

/// The part of the booking that changes: what is owed, by currency.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bill {
    pub has_arrived: bool,
    pub owed_cents: BTreeMap<String, u64>,
}

impl Aggregate for Bill {
    type Id = BookingId;
    type Event = BookingEvent;

    fn evolve(&mut self, event: &BookingEvent) {
        match event {
            BookingEvent::GuestArrived => self.has_arrived = true,
            BookingEvent::Charged {
                cents, currency, ..
            } => {
                *self.owed_cents.entry(currency.clone()).or_default() += cents;
            }
            BookingEvent::CheckedOut { .. } => self.owed_cents.clear(),
            BookingEvent::Placed { .. } | BookingEvent::Cancelled => {}
        }
    }
}
