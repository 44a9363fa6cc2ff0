use super::room::{BookingId, RoomId, Stay};
use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent};

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "booking")]
pub enum BookingEvent {
    Placed {
        room: RoomId,
        guest: String,
        stay: Stay,
    },
    CheckedIn,
    Charged {
        item: String,
        cents: u64,
    },
    CheckedOut {
        paid_cents: u64,
    },
    Cancelled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Unknown,
    Placed,
    InHouse,
    Left,
    Cancelled,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Booking {
    pub status: Status,
    pub room: Option<RoomId>,
    pub guest: String,
    pub stay: Option<Stay>,
    pub owed_cents: u64,
}

impl Aggregate for Booking {
    type Id = BookingId;
    type Event = BookingEvent;

    fn evolve(&mut self, event: &BookingEvent) {
        match event {
            BookingEvent::Placed { room, guest, stay } => {
                self.status = Status::Placed;
                self.room = Some(room.clone());
                self.guest.clone_from(guest);
                self.stay = Some(*stay);
            }
            BookingEvent::CheckedIn => self.status = Status::InHouse,
            BookingEvent::Charged { cents, .. } => self.owed_cents += cents,
            BookingEvent::CheckedOut { paid_cents } => {
                self.status = Status::Left;
                self.owed_cents -= paid_cents;
            }
            BookingEvent::Cancelled => self.status = Status::Cancelled,
        }
    }
}

#[derive(Clone, Debug)]
pub enum BookingCommand {
    Place {
        room: RoomId,
        guest: String,
        stay: Stay,
    },
    CheckIn,
    Charge {
        item: String,
        cents: u64,
    },
    CheckOut,
    Cancel,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookingError {
    #[error("the booking id is in use")]
    InUse,
    #[error("the booking is {0:?}, which does not allow that")]
    Status(Status),
    #[error("the bill is too large")]
    BillTooLarge,
}

impl Decide<BookingCommand> for Booking {
    type Error = BookingError;

    fn decide(&self, command: &BookingCommand, _: &Context) -> Decision<Self, BookingError> {
        use BookingCommand as C;
        use Status::{Cancelled, InHouse, Left, Placed, Unknown};
        match (command, self.status) {
            (C::Place { room, guest, stay }, Unknown) => Ok(vec![BookingEvent::Placed {
                room: room.clone(),
                guest: guest.clone(),
                stay: *stay,
            }]),
            // The same booking, sent again.
            (C::Place { room, guest, stay }, Placed | InHouse | Left)
                if (self.room.as_ref(), &self.guest, self.stay)
                    == (Some(room), guest, Some(*stay)) =>
            {
                Ok(vec![])
            }
            (C::Place { .. }, _) => Err(BookingError::InUse),
            (C::CheckIn, Placed) => Ok(vec![BookingEvent::CheckedIn]),
            (C::Charge { item, cents }, InHouse) => {
                let bill = self.owed_cents.checked_add(*cents);
                bill.ok_or(BookingError::BillTooLarge)?;
                Ok(vec![BookingEvent::Charged {
                    item: item.clone(),
                    cents: *cents,
                }])
            }
            (C::CheckOut, InHouse) => Ok(vec![BookingEvent::CheckedOut {
                paid_cents: self.owed_cents,
            }]),
            (C::Cancel, Placed) => Ok(vec![BookingEvent::Cancelled]),
            // What has happened already is not done twice.
            (C::CheckIn, InHouse) | (C::CheckOut, Left) | (C::Cancel, Cancelled) => Ok(vec![]),
            (_, status) => Err(BookingError::Status(status)),
        }
    }
}
