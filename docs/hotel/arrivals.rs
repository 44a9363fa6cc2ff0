use super::{
    booking::{BookingEvent, Status},
    room::{RoomEvent, RoomId, Stay},
};
use foldstream::{
    StreamId, Version, event_set,
    runner::{EventContext, HandlerError, HandlerResult, ModelId, Position, Projector},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

event_set! {
    pub enum HotelEvent {
        Room(RoomEvent),
        Booking(BookingEvent),
    }
}

/// The projector's knowledge of one stream, and the version up to which it goes.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    version: Version,
    fields: Fields,
}

#[derive(Clone, Debug, PartialEq)]
enum Fields {
    Room {
        beds: u8,
    },
    Booking {
        room: RoomId,
        guest: String,
        stay: Stay,
        status: Status,
    },
}

/// One line of the list at the front desk.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Arrival {
    pub guest: String,
    pub room: RoomId,
    pub beds: Option<u8>,
}

/// The read model: one row per stream. Clones share the rows, as connections to one database do.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    rows: Arc<Mutex<BTreeMap<StreamId, Row>>>,
}

impl Arrivals {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<StreamId, Row>> {
        // A row changes as a whole or not at all, so the rows are usable after a panic.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the guests who are expected on a day, and joins each with the room.
    pub fn on(&self, day: u32) -> Vec<Arrival> {
        let rows = self.rows();
        let beds_of = |room: &RoomId| {
            let stream = StreamId::new("room", room).ok()?;
            match rows.get(&stream)?.fields {
                Fields::Room { beds } => Some(beds),
                Fields::Booking { .. } => None,
            }
        };
        let bookings = rows.values().filter_map(|row| match &row.fields {
            Fields::Booking {
                room,
                guest,
                stay,
                status: Status::Placed,
            } if stay.arrival == day => Some(Arrival {
                guest: guest.clone(),
                room: room.clone(),
                beds: beds_of(room),
            }),
            _ => None,
        });
        bookings.collect()
    }
}

impl Projector for Arrivals {
    const NAME: &'static str = "arrivals";
    type Events = HotelEvent;

    async fn project(&self, event: &HotelEvent, ctx: &EventContext) -> HandlerResult {
        let mut rows = self.rows();
        let before = rows.get(ctx.stream());
        if before.is_some_and(|row| row.version >= ctx.version()) {
            return Ok(());
        }
        let fields = fields_after(before.map(|row| &row.fields), event);
        let fields =
            fields.ok_or_else(|| HandlerError::permanent("the stream's first event is missing"))?;
        let version = ctx.version();
        rows.insert(ctx.stream().clone(), Row { version, fields });
        Ok(())
    }

    async fn position(&self, _: &ModelId, stream: &StreamId) -> Result<Position, HandlerError> {
        let version = self
            .rows()
            .get(stream)
            .map_or(Version::NONE, |row| row.version);
        Ok(Position::stored(version))
    }

    async fn reset(&self, _: &ModelId) -> HandlerResult {
        self.rows().clear();
        Ok(())
    }
}

/// The fields of a stream's row after one more event; `None` if the row must exist and does not.
fn fields_after(before: Option<&Fields>, event: &HotelEvent) -> Option<Fields> {
    match event {
        HotelEvent::Room(RoomEvent::Furnished { beds }) => Some(Fields::Room { beds: *beds }),
        HotelEvent::Room(RoomEvent::Reserved { .. } | RoomEvent::Released { .. }) => {
            before.cloned()
        }
        HotelEvent::Booking(event) => booking_after(before, event),
    }
}

fn booking_after(before: Option<&Fields>, event: &BookingEvent) -> Option<Fields> {
    if let BookingEvent::Placed { room, guest, stay } = event {
        return Some(Fields::Booking {
            room: room.clone(),
            guest: guest.clone(),
            stay: *stay,
            status: Status::Placed,
        });
    }
    let mut after = before.cloned()?;
    if let Fields::Booking { status, .. } = &mut after {
        match event {
            BookingEvent::CheckedIn => *status = Status::InHouse,
            BookingEvent::CheckedOut { .. } => *status = Status::Left,
            BookingEvent::Cancelled => *status = Status::Cancelled,
            BookingEvent::Placed { .. } | BookingEvent::Charged { .. } => {}
        }
    }
    Some(after)
}
