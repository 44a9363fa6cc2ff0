//! Read models: rows, positions, conflicts between processes, resets, queries and tables.
mod rows;
mod stored;
mod memory;
mod conflicts;
mod keyed;
mod resets;
mod queries;
mod prepare;
mod laws;
mod simulation;

use crate::support::{Call, Fate, Server, Wire};
use foldstream::{
    CommitId, DomainEvent, EventHeader, StreamId, Timestamp, Version,
    runner::{
        EventContext, EventSource, HandlerError, HandlerResult, ModelId, Position, Projector as _,
    },
};
use foldstream_dynamodb::{DynamoDb, IndexKey, ReadModel, ReadModelError, ReadModelRow, RowKeys};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The events of a notebook, which say themselves what they do to a row.
#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "notebook")]
pub(crate) enum NoteEvent {
    /// A number is noted on these boards.
    Noted { number: u64, boards: Vec<String> },
    /// A text of this length is noted.
    Filled { bytes: u64 },
    /// Nothing is noted.
    Skipped,
    /// The row is deleted.
    Erased,
    /// The row cannot take the event.
    Refused { boards: Vec<String> },
    /// The row panics.
    Panicked,
    /// The row gets a value that JSON does not have.
    Spoiled,
    /// The row takes the event only after this number.
    Follows { number: u64 },
}
pub(super) use NoteEvent::{Erased, Filled, Follows, Noted, Panicked, Refused, Skipped, Spoiled};

pub(crate) fn noted(number: u64) -> NoteEvent {
    noted_on(number, &["all"])
}
pub(super) fn noted_on(number: u64, boards: &[&str]) -> NoteEvent {
    let boards = boards.iter().map(|&board| board.into()).collect();
    Noted { number, boards }
}

/// A row per notebook, with all numbers in the order of the events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Notebook {
    pub(super) numbers: Vec<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) text: String,
    #[serde(default)]
    pub(super) ratio: f64,
}

impl ReadModelRow for Notebook {
    const NAME: &'static str = "notebooks";
    type Events = NoteEvent;

    fn apply(row: &mut Option<Self>, event: &NoteEvent, _: &EventContext) -> HandlerResult {
        match event {
            Noted { number, .. } => row.get_or_insert_default().numbers.push(*number),
            Filled { bytes } => {
                let bytes = usize::try_from(*bytes).unwrap();
                row.get_or_insert_default().text = "x".repeat(bytes);
            }
            Skipped => {}
            Erased => *row = None,
            Refused { .. } => return Err(HandlerError::permanent("refused")),
            Panicked => panic!("this event panics"),
            Spoiled => row.get_or_insert_default().ratio = f64::NAN,
            Follows { number } => {
                let last = row.as_ref().and_then(|row| row.numbers.last());
                if last != Some(number) {
                    return Err(HandlerError::permanent(format!("after {last:?}")));
                }
            }
        }
        Ok(())
    }
    /// Lists notebooks by the parity of their first number, sorted by their last.
    fn index(&self) -> Option<IndexKey> {
        let (first, last) = (self.numbers.first()?, self.numbers.last()?);
        let parity = if first % 2 == 0 { "even" } else { "odd" };
        Some(IndexKey::new(parity).with_sort(format!("{last:04}")))
    }
}

/// A row per board, with the numbers of each notebook in the order of its events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Board {
    pub(super) numbers: BTreeMap<StreamId, Vec<u64>>,
}

impl ReadModelRow for Board {
    const NAME: &'static str = "boards";
    type Events = NoteEvent;
    const KEYS: RowKeys<NoteEvent> = RowKeys::Of(|event, _| match event {
        Noted { boards, .. } | Refused { boards } => boards.clone(),
        _ => vec![],
    });

    fn apply(row: &mut Option<Self>, event: &NoteEvent, ctx: &EventContext) -> HandlerResult {
        match event {
            Noted { number, .. } => {
                let numbers = &mut row.get_or_insert_default().numbers;
                numbers
                    .entry(ctx.stream().clone())
                    .or_default()
                    .push(*number);
                Ok(())
            }
            // Only the last board refuses, after the others have taken the event.
            Refused { .. } if row.is_some() => Ok(()),
            Refused { .. } => Err(HandlerError::permanent("refused")),
            _ => Ok(()),
        }
    }
}

pub(crate) fn model() -> ModelId {
    ModelId::new("notes", 1)
}
pub(crate) fn notebook(id: impl std::fmt::Display) -> StreamId {
    StreamId::new("notebook", &id).unwrap()
}
/// Returns the context of an event. Its commit follows from stream and version.
pub(crate) fn context(stream: &StreamId, version: u64) -> EventContext {
    let commit = CommitId::from_u128(u128::from(version) << 8 | u128::from(stream.shard(251)));
    let header = EventHeader::new(
        commit.event_id(0),
        stream.clone(),
        Version::new(version),
        "Noted",
        Timestamp::from_micros(0),
    );
    EventContext::new(model(), header, EventSource::History)
}

/// One process that keeps the rows, and the requests that it sends.
pub(super) struct Process<T: ReadModelRow> {
    pub(super) rows: ReadModel<T>,
    pub(super) wire: Wire,
}

impl<T: ReadModelRow<Events = NoteEvent>> Process<T> {
    pub(super) async fn project(&self, stream: &StreamId, version: u64, event: NoteEvent) {
        self.try_project(stream, version, event).await.unwrap();
    }
    pub(super) async fn try_project(
        &self,
        stream: &StreamId,
        version: u64,
        event: NoteEvent,
    ) -> HandlerResult {
        self.rows.project(&event, &context(stream, version)).await
    }
    /// Projects an event per number, the first with this version.
    pub(super) async fn note(&self, stream: &StreamId, first: u64, numbers: &[u64]) {
        for (version, number) in (first..).zip(numbers) {
            self.project(stream, version, noted(*number)).await;
        }
    }
    pub(super) async fn flush(&self) {
        self.rows.flush(&model()).await.unwrap();
    }
    pub(super) async fn position(&self, stream: &StreamId) -> u64 {
        match self.rows.position(&model(), stream).await.unwrap() {
            Position::Stored { version, .. } => version.get(),
            other => panic!("{other:?}"),
        }
    }
    pub(super) async fn get(&self, key: &str) -> Option<T> {
        self.rows.get(&model(), key).await.unwrap()
    }
    pub(super) async fn all(&self) -> BTreeMap<String, T> {
        self.rows.all(&model()).try_collect().await.unwrap()
    }
    /// Returns the operations since the last call.
    pub(super) fn operations(&self) -> Vec<String> {
        let operations = self.wire.operations();
        self.wire.forget();
        operations
    }
}

impl Process<Notebook> {
    /// Returns the numbers of a stored notebook.
    pub(super) async fn numbers(&self, stream: &StreamId) -> Vec<u64> {
        let row = self.get(stream.as_str()).await;
        row.map(|row| row.numbers).unwrap_or_default()
    }
}

/// An empty database with the table of the model, for any number of processes.
pub(super) struct World {
    pub(super) server: Server,
}

impl World {
    pub(super) async fn new() -> Self {
        let server = Server::start();
        let stores = server.stores().await;
        let rows = stores.read_model::<Notebook>();
        rows.create_table(&model()).await.unwrap();
        Self { server }
    }
    pub(super) async fn process<T: ReadModelRow>(&self) -> Process<T> {
        self.process_over(|_| Fate::Pass).await
    }
    /// Starts a process whose requests meet the fates that `fate` decides.
    pub(super) async fn process_over<T: ReadModelRow>(
        &self,
        fate: impl Fn(&Call) -> Fate + Send + Sync + 'static,
    ) -> Process<T> {
        let config = self.server.config();
        let (stores, wire) = self.server.connect_over(config, |_| Fate::Pass).await;
        let rows = stores.unwrap().read_model();
        wire.forget();
        wire.decide(fate);
        Process { rows, wire }
    }
    pub(super) async fn stores(&self) -> DynamoDb {
        DynamoDb::connect(self.server.config()).await.unwrap()
    }
}

/// Returns the partition of a key, by FNV-1a.
pub(super) fn shard_of(key: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    key.bytes().fold(0x811c_9dc5, step) % 64
}

/// Returns the typed error behind an error of the projector.
pub(super) fn typed(error: &HandlerError) -> &ReadModelError {
    error.source().downcast_ref().unwrap()
}
