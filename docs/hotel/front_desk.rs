use super::{
    booking::{Booking, BookingCommand, BookingError},
    room::{BookingId, Room, RoomCommand, RoomError, RoomId, Stay},
};
use foldstream::{ConflictRetry, ExecuteError, Repository, Transaction, ports::EventStore};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HotelError {
    #[error(transparent)]
    Room(RoomError),
    #[error(transparent)]
    Booking(BookingError),
}

#[derive(Clone, Debug)]
pub struct FrontDesk {
    store: Arc<dyn EventStore>,
    pub rooms: Repository<Room>,
    pub bookings: Repository<Booking>,
}

impl FrontDesk {
    pub fn new(store: Arc<dyn EventStore>) -> Self {
        Self {
            rooms: Repository::new(store.clone()),
            bookings: Repository::new(store.clone()),
            store,
        }
    }

    /// Places a booking and reserves its room: both or neither.
    ///
    /// Returns true if the booking is new.
    pub async fn book(
        &self,
        booking: &BookingId,
        room: &RoomId,
        guest: &str,
        stay: Stay,
    ) -> Result<bool, ExecuteError<HotelError>> {
        let committed = Transaction::run(&self.store, ConflictRetry::default(), |tx| async move {
            let place = BookingCommand::Place {
                room: room.clone(),
                guest: guest.into(),
                stay,
            };
            let placed = tx.execute(&self.bookings, booking, place).await;
            let placed = placed.map_err(|e| e.map_rejected(HotelError::Booking))?;
            let reserve = RoomCommand::Reserve {
                booking: booking.clone(),
                stay,
            };
            let reserved = tx.execute(&self.rooms, room, reserve).await;
            reserved.map_err(|e| e.map_rejected(HotelError::Room))?;
            Ok::<_, ExecuteError<HotelError>>(!placed.events().is_empty())
        })
        .await?;
        Ok(committed.value)
    }

    /// Cancels a booking and releases its room: both or neither.
    pub async fn cancel(&self, booking: &BookingId) -> Result<(), ExecuteError<HotelError>> {
        Transaction::run(&self.store, ConflictRetry::default(), |tx| async move {
            let cancelled = tx
                .execute(&self.bookings, booking, BookingCommand::Cancel)
                .await
                .map_err(|e| e.map_rejected(HotelError::Booking))?;
            if let Some(room) = &cancelled.after().room {
                let release = RoomCommand::Release {
                    booking: booking.clone(),
                };
                let released = tx.execute(&self.rooms, room, release).await;
                released.map_err(|e| e.map_rejected(HotelError::Room))?;
            }
            Ok::<_, ExecuteError<HotelError>>(())
        })
        .await?;
        Ok(())
    }
}
