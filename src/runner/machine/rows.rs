//! Row operations about failed events. Each is one call to the control store, so that a crash can
//! fall between any two.
use crate::{
    StreamId, Version,
    control::{
        AskRow, AuditRow, ChangeToken, DeadLetter, DeleteIf, DiscardRow, Followed, KeyedPage,
        LaneHash, LetterKey, OrderKey, OrderRow, ParkFailure, ParkNotes, ParkRow, PauseRow, PutIf,
        Stored, StoredRecord,
    },
    ports::{Offset, PartitionId, Revision},
};
use std::{collections::BTreeMap, sync::Arc};

/// One operation on the rows of a partition.
#[derive(Clone, Debug)]
pub(in crate::runner) enum RowOp {
    /// Stores a dead letter, in place of an older one of the same event.
    WriteLetter(LetterKey, Arc<DeadLetter>),
    GetLetter(LetterKey),
    DeleteLetter(LetterKey),
    /// Parks a stream, unless it is parked.
    Park(StreamId, ParkFailure, ParkNotes),
    /// Parks a stream whose lane is parked, unless the stream is parked itself.
    Follow(StreamId, Followed),
    ReplacePark(StreamId, ParkRow, Revision),
    DeletePark(StreamId, Revision),
    /// Stores that a version was passed over, unless somebody has asked for it.
    PutDiscard(StreamId, Version, DiscardRow),
    ReplaceDiscard(StreamId, Version, DiscardRow, Revision),
    /// Copies a decided discard to the archive.
    ArchiveDiscard(StreamId, Version, DiscardRow),
    /// Deletes a discard that was archived.
    DeleteDiscard(StreamId, Version, Revision),
    /// Stores an entry in the audit.
    Audit(AuditRow),
    /// Reads the discards of a stream between two versions.
    ReadDiscards(StreamId, Version, Version),
    /// Stores a record of a parked stream, where there is no event store to read it from.
    PutDeferred(StreamId, Version, Arc<StoredRecord>),
    DeleteDeferred(StreamId, Version),
    /// Stores the place of a record in a lane that several streams share.
    PutOrder(OrderKey, OrderRow),
    /// Reads a page of the places of a lane, after this key.
    ReadOrder(LaneHash, Option<String>),
    DeleteOrder(OrderKey),
    DeleteAsk(LetterKey, Revision),
    /// Tells other processes that rows have changed.
    Announce,
}

/// The answer to an operation.
#[derive(Debug)]
pub(in crate::runner) enum RowAnswer {
    Done,
    Park(PutIf<ParkRow>),
    ParkDeleted(DeleteIf<ParkRow>),
    Discard(PutIf<DiscardRow>),
    Discards(Vec<(Version, Stored<DiscardRow>)>),
    Letter(Option<Box<DeadLetter>>),
    Order(KeyedPage<OrderKey, OrderRow>),
}

/// The rows of a partition, as they are when it is taken up, and when they have changed.
#[derive(Debug, Default)]
pub(in crate::runner) struct Loaded {
    /// Read before the rows: a change that is not among them moves it.
    pub(in crate::runner) token: Option<ChangeToken>,
    /// The parked streams, each with the durable position in it, if one is stored.
    pub(in crate::runner) parked: Vec<(StreamId, Stored<ParkRow>, Option<Version>)>,
    pub(in crate::runner) discards: Vec<((StreamId, Version), Stored<DiscardRow>)>,
    /// The durable positions in streams with decided discards, where positions are stored.
    pub(in crate::runner) positions: BTreeMap<StreamId, Durable>,
    /// The dead letters, each with true if its event was given up.
    pub(in crate::runner) letters: Vec<(LetterKey, bool)>,
    pub(in crate::runner) asks: Vec<(LetterKey, Stored<AskRow>)>,
}

/// A durable position in a stream.
#[derive(Clone, Copy, Debug)]
pub(in crate::runner) struct Durable {
    pub(in crate::runner) version: Version,
    /// The read model stores it with its rows. It has not heard of versions that were passed over,
    /// so that the gap before a later record begins at this position, wherever the offset is.
    pub(in crate::runner) is_of_model: bool,
}

/// The answer to a poll.
#[derive(Debug, Default)]
pub(in crate::runner) struct Polled {
    pub(in crate::runner) token: Option<ChangeToken>,
    pub(in crate::runner) pause: Option<PauseRow>,
}

/// A set of rows of one partition that is to be read.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Load {
    pub(in crate::runner) partition: PartitionId,
    pub(in crate::runner) epoch: crate::ports::AssignmentEpoch,
    /// The number of this load: what was written after it began is newer than what it returns.
    pub(in crate::runner) number: u64,
    /// Of the first load of an assignment. Nothing of the partition is handled before the answer,
    /// so that rows of deferred records that nobody needs any more can be deleted.
    pub(in crate::runner) sweep: Option<Sweep>,
}

/// The rows of deferred records that may be left.
#[derive(Clone, Copy, Debug)]
pub(in crate::runner) struct Sweep {
    /// The offset from which on records are delivered.
    pub(in crate::runner) starts_at: Offset,
    /// Records have rows, since there is no event store.
    pub(in crate::runner) has_records: bool,
    /// Places have rows, since streams share lanes.
    pub(in crate::runner) has_places: bool,
}
