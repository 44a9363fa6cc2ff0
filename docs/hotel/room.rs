use foldstream::{Aggregate, Context, Decide, Decision, DomainEvent, id};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

id!(pub RoomId);
id!(pub BookingId);

/// The nights from `arrival` up to `departure`, which is the morning of leaving.
///
/// Days count from 1 January 2026.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    pub arrival: u32,
    pub departure: u32,
}

impl Stay {
    pub fn overlaps(self, other: Self) -> bool {
        self.arrival < other.departure && other.arrival < self.departure
    }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "room")]
pub enum RoomEvent {
    Furnished { beds: u8 },
    Reserved { booking: BookingId, stay: Stay },
    Released { booking: BookingId },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    beds: Option<u8>,
    reserved: BTreeMap<BookingId, Stay>,
}

impl Aggregate for Room {
    type Id = RoomId;
    type Event = RoomEvent;

    fn evolve(&mut self, event: &RoomEvent) {
        match event {
            RoomEvent::Furnished { beds } => self.beds = Some(*beds),
            RoomEvent::Reserved { booking, stay } => {
                self.reserved.insert(booking.clone(), *stay);
            }
            RoomEvent::Released { booking } => {
                self.reserved.remove(booking);
            }
        }
    }
}

impl Room {
    pub fn reserved(&self) -> &BTreeMap<BookingId, Stay> {
        &self.reserved
    }
}

#[derive(Clone, Debug)]
pub enum RoomCommand {
    Furnish { beds: u8 },
    Reserve { booking: BookingId, stay: Stay },
    Release { booking: BookingId },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    #[error("there is no such room")]
    Unknown,
    #[error("a stay has at least one night")]
    NoNights,
    #[error("the room is taken by booking {by}")]
    Taken { by: BookingId },
}

impl Decide<RoomCommand> for Room {
    type Error = RoomError;

    fn decide(&self, command: &RoomCommand, _: &Context) -> Decision<Self, RoomError> {
        match command {
            RoomCommand::Furnish { beds } if self.beds == Some(*beds) => Ok(vec![]),
            RoomCommand::Furnish { beds } => Ok(vec![RoomEvent::Furnished { beds: *beds }]),
            RoomCommand::Reserve { .. } if self.beds.is_none() => Err(RoomError::Unknown),
            RoomCommand::Reserve { booking, stay } => self.reserve(booking, *stay),
            RoomCommand::Release { booking } if self.reserved.contains_key(booking) => {
                let booking = booking.clone();
                Ok(vec![RoomEvent::Released { booking }])
            }
            RoomCommand::Release { .. } => Ok(vec![]),
        }
    }
}

impl Room {
    fn reserve(&self, booking: &BookingId, stay: Stay) -> Decision<Self, RoomError> {
        if stay.arrival >= stay.departure {
            return Err(RoomError::NoNights);
        }
        if self.reserved.get(booking) == Some(&stay) {
            return Ok(vec![]);
        }
        let mut others = self.reserved.iter().filter(|(id, _)| *id != booking);
        if let Some((by, _)) = others.find(|(_, taken)| taken.overlaps(stay)) {
            return Err(RoomError::Taken { by: by.clone() });
        }
        let booking = booking.clone();
        Ok(vec![RoomEvent::Reserved { booking, stay }])
    }
}
