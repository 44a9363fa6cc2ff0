//! The rows in memory that are newer than the stored ones. Everything here is synchronous.
//!
//! A row keeps the events that are not stored yet, besides its state. If a write finds other
//! positions than the row was read with, the stored row is taken as it is and the events after its
//! positions are applied to it. One rule therefore covers the repetition of a write whose answer
//! was lost, a process that has lost its partition, and several processes that feed one row.
use super::{
    ReadModelError, ReadModelRow,
    decode::Stored,
    encode::{self, At, Positions, covers},
    error::classified,
    location::Location,
};
use crate::attributes::{Attributes, item_bytes};
use foldstream::{
    StreamId,
    runner::{EventContext, HandlerError},
};
use std::collections::{HashMap, HashSet};

/// The number of rows in memory at which they are written before another row is read.
const MAX_ROWS: usize = 10_000;
/// The number of bytes of items in memory at which they are written before another event is
/// applied.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The rows of one model that are not stored yet.
#[derive(Debug)]
pub(super) struct Buffer<T: ReadModelRow> {
    rows: HashMap<String, Entry<T>>,
    /// The positions that become durable after the rows, if they have items of their own.
    positions: Positions,
    bytes: usize,
}

#[derive(Debug)]
struct Entry<T: ReadModelRow> {
    /// The stored positions that the next write expects.
    base: Positions,
    /// Set if the row was not read, since the first event of its stream makes it. If that event
    /// came late, the row is as it was after the versions in memory, which is right for the next
    /// version and for no other.
    is_assumed: bool,
    /// The row after all events. `None`: the row must be read again, since an event failed on it
    /// or was forgotten.
    state: Option<State<T>>,
    /// The events that are not stored yet, in order.
    pending: Vec<Pending<T::Events>>,
}

#[derive(Debug)]
struct State<T> {
    row: Option<T>,
    positions: Positions,
    /// The row and the positions as an item.
    item: Attributes,
    bytes: usize,
}

#[derive(Debug)]
struct Pending<E> {
    event: E,
    ctx: EventContext,
}

/// A row that was read for a buffer.
#[derive(Debug)]
pub(super) struct Found<T> {
    /// The positions that the buffer held of the row when it asked. `None`: it had no such row.
    pub(super) asked: Option<Positions>,
    pub(super) stored: Stored<T>,
    /// Set if the row was not read: it is taken to be absent.
    pub(super) is_assumed: bool,
}

/// The outcome of giving an event to the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Applied {
    Yes,
    /// The rows with these keys must be read first. Each has the positions that the buffer holds.
    Read(Vec<(String, Option<Positions>)>),
}

/// The next step of storing a row.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing of the row is left to store.
    Nothing,
    /// The row must be read first. It has these positions in the buffer.
    Read(Positions),
    Put(Put),
}

/// A write of one row.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) item: Attributes,
    /// The stored positions under which the write takes effect.
    pub(super) base: Positions,
    /// The positions that are stored by it.
    positions: Positions,
}

/// The rows and positions that a flush writes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) keys: Vec<String>,
    pub(super) positions: Positions,
}

impl<T: ReadModelRow> Default for Buffer<T> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            positions: Positions::new(),
            bytes: 0,
        }
    }
}

impl<T: ReadModelRow> Buffer<T> {
    /// Returns true if rows must be written before another one is read.
    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= MAX_ROWS || self.is_large()
    }

    /// Returns true if rows must be written before another event is applied: it might let one that
    /// is in memory grow further.
    pub(super) fn is_large(&self) -> bool {
        self.bytes >= MAX_BYTES
    }

    /// Applies an event to its rows: to all of them or to none.
    ///
    /// `found` holds the rows that were read after an earlier [`Applied::Read`].
    ///
    /// # Errors
    /// The error of the first row that does not take the event.
    pub(super) fn apply(
        &mut self,
        location: &Location<T>,
        keys: &[String],
        event: &T::Events,
        ctx: &EventContext,
        found: HashMap<String, Found<T>>,
    ) -> Result<Applied, HandlerError> {
        let mut found = found.into_iter();
        if let Err(error) = found.try_for_each(|(key, found)| self.provide(location, key, found)) {
            self.tidy(keys);
            return Err(error);
        }
        for key in keys {
            self.doubt(key, ctx);
        }
        let missing: Vec<_> = keys
            .iter()
            .filter_map(|key| match self.rows.get(key) {
                Some(entry) if entry.state.is_some() => None,
                entry => Some((key.clone(), entry.map(|entry| entry.base.clone()))),
            })
            .collect();
        if !missing.is_empty() {
            return Ok(Applied::Read(missing));
        }
        let result = self.apply_to_all(location, keys, event, ctx);
        self.tidy(keys);
        result?;
        if !location.is_per_stream() {
            let at = at(ctx);
            let known = self.positions.entry(ctx.stream().clone()).or_insert(at);
            if known.version < at.version {
                *known = at;
            }
        }
        Ok(Applied::Yes)
    }

    /// Lets a row be read that was only assumed, if versions lie between it and this event.
    fn doubt(&mut self, key: &str, ctx: &EventContext) {
        let Some(entry) = self.rows.get_mut(key).filter(|entry| entry.is_assumed) else {
            return;
        };
        let bytes = entry.bytes();
        let known = entry.state.as_ref();
        let known = known.and_then(|state| state.positions.get(ctx.stream()));
        if known.is_some_and(|at| at.version.next() < ctx.version()) {
            entry.state = None;
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    fn apply_to_all(
        &mut self,
        location: &Location<T>,
        keys: &[String],
        event: &T::Events,
        ctx: &EventContext,
    ) -> Result<(), HandlerError> {
        // The states are out of the buffer meanwhile. If `apply` fails or panics on one of them,
        // all of these rows are read again and get their pending events, without this one.
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(state) = self.rows.get_mut(key).and_then(|entry| entry.state.take()) {
                self.bytes = self.bytes.saturating_sub(state.bytes);
                taken.push((key, state, false));
            }
        }
        for (key, state, is_new) in &mut taken {
            let known = state.positions.get(ctx.stream());
            if known.is_none_or(|at| at.version < ctx.version()) {
                state.fold(location, key, event, ctx)?;
                *is_new = true;
            }
        }
        for (key, state, is_new) in taken {
            if let Some(entry) = self.rows.get_mut(key) {
                self.bytes += state.bytes;
                entry.state = Some(state);
                if is_new {
                    entry.pending.push(Pending {
                        event: event.clone(),
                        ctx: ctx.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes a row that was read, unless the buffer knows better by now.
    fn provide(
        &mut self,
        location: &Location<T>,
        key: String,
        found: Found<T>,
    ) -> Result<(), HandlerError> {
        let Some(entry) = self.rows.get_mut(&key) else {
            let base = found.stored.positions.clone();
            let state = State::of(location, &key, found.stored).map_err(classified)?;
            self.bytes += state.bytes;
            let entry = Entry {
                base,
                is_assumed: found.is_assumed,
                state: Some(state),
                pending: Vec::new(),
            };
            self.rows.insert(key, entry);
            return Ok(());
        };
        // The row was written or read again by another task in the meantime, so what was found may
        // be older than the positions in the buffer. The caller asks again.
        if entry.state.is_some() || found.asked.as_ref() != Some(&entry.base) {
            return Ok(());
        }
        self.rebase(location, &key, found.stored)
    }

    /// Continues with the row as it is stored: applies the events after its positions, and drops
    /// the others.
    ///
    /// # Errors
    /// - [`ReadModelError::SetBack`] if the stored positions are before those that were stored.
    /// - The error of `apply`.
    fn rebase(
        &mut self,
        location: &Location<T>,
        key: &str,
        stored: Stored<T>,
    ) -> Result<(), HandlerError> {
        let Some(entry) = self.rows.get_mut(key) else {
            return Ok(());
        };
        if !covers(&stored.positions, &entry.base) {
            return Err(classified(ReadModelError::SetBack {
                model: location.model.clone(),
                key: key.into(),
            }));
        }
        self.bytes = self.bytes.saturating_sub(entry.bytes());
        entry.state = None;
        entry.base.clone_from(&stored.positions);
        entry.is_assumed = false;
        entry.drop_stored();
        let mut state = State::of(location, key, stored).map_err(classified)?;
        for pending in &entry.pending {
            state.fold(location, key, &pending.event, &pending.ctx)?;
        }
        self.bytes += state.bytes;
        entry.state = Some(state);
        Ok(())
    }

    /// Removes those of the rows that have nothing to store.
    fn tidy(&mut self, keys: &[String]) {
        for key in keys {
            if self.rows.get(key).is_some_and(|e| e.pending.is_empty()) {
                let entry = self.rows.remove(key);
                let bytes = entry.map_or(0, |entry| entry.bytes());
                self.bytes = self.bytes.saturating_sub(bytes);
            }
        }
        if self.rows.is_empty() {
            self.bytes = 0;
        }
    }

    /// Returns all that is to be stored now. Events that follow are in the next batch.
    pub(super) fn batch(&self) -> Batch {
        Batch {
            keys: self.rows.keys().cloned().collect(),
            positions: self.positions.clone(),
        }
    }

    /// Returns the next step of storing a row.
    pub(super) fn next(&self, key: &str) -> Next {
        let Some(entry) = self.rows.get(key) else {
            return Next::Nothing;
        };
        if entry.pending.is_empty() {
            return Next::Nothing;
        }
        let base = entry.base.clone();
        match &entry.state {
            None => Next::Read(base),
            Some(state) => Next::Put(Put {
                item: state.item.clone(),
                base,
                positions: state.positions.clone(),
            }),
        }
    }

    /// Takes note of a row that was read because of [`Next::Read`].
    ///
    /// # Errors
    /// The same as [`conflict`](Self::conflict).
    pub(super) fn read(
        &mut self,
        location: &Location<T>,
        key: &str,
        asked: Positions,
        stored: Stored<T>,
    ) -> Result<(), HandlerError> {
        let asked = Some(asked);
        let found = Found {
            asked,
            stored,
            is_assumed: false,
        };
        let provided = match self.rows.contains_key(key) {
            true => self.provide(location, key.into(), found),
            false => Ok(()),
        };
        self.tidy(&[key.into()]);
        provided
    }

    /// Takes note of a write that took effect.
    pub(super) fn written(&mut self, key: &str, put: Put) {
        if let Some(entry) = self.rows.get_mut(key) {
            // If an event failed during the write, the row may have been read again after it, and
            // then the positions are already later.
            if covers(&put.positions, &entry.base) {
                entry.base = put.positions;
                entry.is_assumed = false;
            }
            entry.drop_stored();
        }
        self.tidy(&[key.into()]);
    }

    /// Takes note of a write whose condition failed, and of the row that is stored.
    ///
    /// # Errors
    /// - [`ReadModelError::SetBack`] if the stored positions are before those that were stored.
    /// - The error of `apply`, if the stored row does not take the events that follow it.
    pub(super) fn conflict(
        &mut self,
        location: &Location<T>,
        key: &str,
        put: &Put,
        stored: Stored<T>,
    ) -> Result<(), HandlerError> {
        let is_current = |entry: &Entry<T>| entry.base == put.base;
        let rebased = match self.rows.get(key).is_some_and(is_current) {
            true => self.rebase(location, key, stored),
            // Another task has read the row after that write.
            false => Ok(()),
        };
        if rebased.is_ok() {
            self.tidy(&[key.into()]);
        }
        rebased
    }

    /// Takes note that these positions are stored.
    pub(super) fn stored_positions(&mut self, stored: &Positions) {
        self.positions.retain(|stream, at| {
            let stored = stored.get(stream);
            stored.is_none_or(|stored| stored.version < at.version)
        });
    }

    /// Drops the events of these streams that are not stored.
    pub(super) fn forget(&mut self, streams: &HashSet<&StreamId>) {
        self.positions.retain(|stream, _| !streams.contains(stream));
        let mut touched = Vec::new();
        for (key, entry) in &mut self.rows {
            let before = entry.pending.len();
            entry
                .pending
                .retain(|pending| !streams.contains(pending.ctx.stream()));
            if entry.pending.len() < before {
                self.bytes = self.bytes.saturating_sub(entry.bytes());
                entry.state = None;
                touched.push(key.clone());
            }
        }
        self.tidy(&touched);
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl<T: ReadModelRow> Entry<T> {
    fn bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.bytes)
    }
    /// Drops the events that the stored row contains.
    fn drop_stored(&mut self) {
        let base = &self.base;
        self.pending.retain(|pending| {
            let stored = base.get(pending.ctx.stream());
            stored.is_none_or(|stored| stored.version < pending.ctx.version())
        });
    }
}

impl<T: ReadModelRow> State<T> {
    fn of(location: &Location<T>, key: &str, stored: Stored<T>) -> Result<Self, ReadModelError> {
        let Stored { row, positions } = stored;
        let item = encode::row(location, key, row.as_ref(), &positions)?;
        Ok(Self {
            row,
            positions,
            bytes: item_bytes(&item),
            item,
        })
    }

    fn fold(
        &mut self,
        location: &Location<T>,
        key: &str,
        event: &T::Events,
        ctx: &EventContext,
    ) -> Result<(), HandlerError> {
        T::apply(&mut self.row, event, ctx)?;
        self.positions.insert(ctx.stream().clone(), at(ctx));
        self.item =
            encode::row(location, key, self.row.as_ref(), &self.positions).map_err(classified)?;
        self.bytes = item_bytes(&self.item);
        Ok(())
    }
}

fn at(ctx: &EventContext) -> At {
    At {
        version: ctx.version(),
        commit_id: Some(ctx.event_id().commit_id()),
    }
}
