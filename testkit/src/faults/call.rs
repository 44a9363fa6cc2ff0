//! The calls of the ports, into which faults are injected.
use foldstream::{
    StreamId,
    ports::{
        Append, AppendAll, CommitKey, DeleteExpect, Expect, Message, OffsetCommit, PartitionId,
        RangeQuery, ReadFrom, Row, RowKey, Segment, StoredSnapshot, Subscription,
    },
};
use std::fmt;

/// A method of a port, for instance to choose the calls of a [`Rule`](super::Rule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Op {
    /// A call of [`EventStore::append`](foldstream::ports::EventStore::append).
    Append,
    /// A call of [`EventStore::append_all`](foldstream::ports::EventStore::append_all).
    AppendAll,
    /// A call of [`EventStore::read`](foldstream::ports::EventStore::read), when it is first
    /// polled.
    Read,
    /// A call of [`EventStore::streams`](foldstream::ports::EventStore::streams).
    Streams,
    /// A call of [`EventStore::scan`](foldstream::ports::EventStore::scan).
    Scan,
    /// A call of [`EventStore::unpublished`](foldstream::ports::EventStore::unpublished).
    Unpublished,
    /// A call of
    /// [`EventStore::clear_unpublished`](foldstream::ports::EventStore::clear_unpublished).
    ClearUnpublished,
    /// A call of [`SnapshotStore::load`](foldstream::ports::SnapshotStore::load).
    LoadSnapshot,
    /// A call of [`SnapshotStore::save`](foldstream::ports::SnapshotStore::save).
    SaveSnapshot,
    /// A call of [`SnapshotStore::delete`](foldstream::ports::SnapshotStore::delete).
    DeleteSnapshot,
    /// A call of [`ControlStore::get`](foldstream::ports::ControlStore::get).
    Get,
    /// A call of [`ControlStore::get_many`](foldstream::ports::ControlStore::get_many).
    GetMany,
    /// A call of [`ControlStore::put`](foldstream::ports::ControlStore::put).
    Put,
    /// A call of [`ControlStore::delete`](foldstream::ports::ControlStore::delete).
    Delete,
    /// A call of [`ControlStore::range`](foldstream::ports::ControlStore::range).
    Range,
    /// A call of [`MessageBus::publish`](foldstream::ports::MessageBus::publish).
    Publish,
    /// A call of [`MessageBus::publish_run`](foldstream::ports::MessageBus::publish_run).
    PublishRun,
    /// A call of [`MessageBus::subscribe`](foldstream::ports::MessageBus::subscribe).
    Subscribe,
    /// A call of [`MessageBus::offsets`](foldstream::ports::MessageBus::offsets).
    Offsets,
    /// A call of [`MessageBus::committed`](foldstream::ports::MessageBus::committed).
    Committed,
    /// A call of [`MessageBus::describe_topic`](foldstream::ports::MessageBus::describe_topic).
    DescribeTopic,
    /// A call of [`MessageBus::delete_group`](foldstream::ports::MessageBus::delete_group).
    DeleteGroup,
    /// A call of [`Consumer::next`](foldstream::ports::Consumer::next).
    Next,
    /// A call of [`Consumer::commit`](foldstream::ports::Consumer::commit).
    Commit,
    /// A call of [`Consumer::pause`](foldstream::ports::Consumer::pause).
    Pause,
    /// A call of [`Consumer::resume`](foldstream::ports::Consumer::resume).
    Resume,
    /// A call of [`Consumer::leave`](foldstream::ports::Consumer::leave).
    Leave,
}

impl Op {
    /// The methods that write durable state.
    pub const WRITES: &'static [Self] = &[
        Self::Append,
        Self::AppendAll,
        Self::ClearUnpublished,
        Self::SaveSnapshot,
        Self::DeleteSnapshot,
        Self::Put,
        Self::Delete,
        Self::Publish,
        Self::PublishRun,
        Self::Commit,
        Self::DeleteGroup,
    ];
    /// The methods that return pages with a cursor.
    pub const LISTS: &'static [Self] = &[Self::Streams, Self::Scan, Self::Unpublished, Self::Range];

    pub(super) fn is_write(self) -> bool {
        Self::WRITES.contains(&self)
    }
}

/// The methods that a [`Rule`](super::Rule) applies to.
///
/// Converts from one [`Op`], an array or a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ops(Vec<Op>);
impl Ops {
    pub(super) fn contains(&self, op: Op) -> bool {
        self.0.contains(&op)
    }
}
impl From<Op> for Ops {
    fn from(op: Op) -> Self {
        Self(vec![op])
    }
}
impl<const N: usize> From<[Op; N]> for Ops {
    fn from(ops: [Op; N]) -> Self {
        Self(ops.into())
    }
}
impl From<&[Op]> for Ops {
    fn from(ops: &[Op]) -> Self {
        Self(ops.into())
    }
}

/// A call to a port, with the arguments of the method.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the method's arguments")]
pub enum Call<'a> {
    /// A call of the method [`Op::Append`].
    Append(&'a Append),
    /// A call of the method [`Op::AppendAll`].
    AppendAll(&'a AppendAll),
    /// A call of the method [`Op::Read`].
    Read {
        stream: &'a StreamId,
        from: &'a ReadFrom,
    },
    /// A call of the method [`Op::Streams`].
    Streams { aggregate: &'a str },
    /// A call of the method [`Op::Scan`].
    Scan { segment: Segment },
    /// A call of the method [`Op::Unpublished`].
    Unpublished { segment: Segment },
    /// A call of the method [`Op::ClearUnpublished`].
    ClearUnpublished(&'a [CommitKey]),
    /// A call of the method [`Op::LoadSnapshot`].
    LoadSnapshot(&'a StreamId),
    /// A call of the method [`Op::SaveSnapshot`].
    SaveSnapshot(&'a StoredSnapshot),
    /// A call of the method [`Op::DeleteSnapshot`].
    DeleteSnapshot(&'a StreamId),
    /// A call of the method [`Op::Get`].
    Get(&'a RowKey),
    /// A call of the method [`Op::GetMany`].
    GetMany(&'a [RowKey]),
    /// A call of the method [`Op::Put`].
    Put { row: &'a Row, expect: Expect },
    /// A call of the method [`Op::Delete`].
    Delete {
        key: &'a RowKey,
        expect: DeleteExpect,
    },
    /// A call of the method [`Op::Range`].
    Range(&'a RangeQuery),
    /// A call of the method [`Op::Publish`].
    Publish(&'a Message),
    /// A call of the method [`Op::PublishRun`].
    PublishRun(&'a [Message]),
    /// A call of the method [`Op::Subscribe`].
    Subscribe(&'a Subscription),
    /// A call of the method [`Op::Offsets`].
    Offsets { topic: &'a str },
    /// A call of the method [`Op::Committed`].
    Committed { group: &'a str, topic: &'a str },
    /// A call of the method [`Op::DescribeTopic`].
    DescribeTopic { topic: &'a str },
    /// A call of the method [`Op::DeleteGroup`].
    DeleteGroup { group: &'a str },
    /// A call of the method [`Op::Next`].
    Next,
    /// A call of the method [`Op::Commit`].
    Commit(&'a [OffsetCommit]),
    /// A call of the method [`Op::Pause`].
    Pause(&'a [PartitionId]),
    /// A call of the method [`Op::Resume`].
    Resume(&'a [PartitionId]),
    /// A call of the method [`Op::Leave`].
    Leave,
}

impl Call<'_> {
    /// Returns the method that is called.
    pub const fn op(&self) -> Op {
        match self {
            Self::Append(_) => Op::Append,
            Self::AppendAll(_) => Op::AppendAll,
            Self::Read { .. } => Op::Read,
            Self::Streams { .. } => Op::Streams,
            Self::Scan { .. } => Op::Scan,
            Self::Unpublished { .. } => Op::Unpublished,
            Self::ClearUnpublished(_) => Op::ClearUnpublished,
            Self::LoadSnapshot(_) => Op::LoadSnapshot,
            Self::SaveSnapshot(_) => Op::SaveSnapshot,
            Self::DeleteSnapshot(_) => Op::DeleteSnapshot,
            Self::Get(_) => Op::Get,
            Self::GetMany(_) => Op::GetMany,
            Self::Put { .. } => Op::Put,
            Self::Delete { .. } => Op::Delete,
            Self::Range(_) => Op::Range,
            Self::Publish(_) => Op::Publish,
            Self::PublishRun(_) => Op::PublishRun,
            Self::Subscribe(_) => Op::Subscribe,
            Self::Offsets { .. } => Op::Offsets,
            Self::Committed { .. } => Op::Committed,
            Self::DescribeTopic { .. } => Op::DescribeTopic,
            Self::DeleteGroup { .. } => Op::DeleteGroup,
            Self::Next => Op::Next,
            Self::Commit(_) => Op::Commit,
            Self::Pause(_) => Op::Pause,
            Self::Resume(_) => Op::Resume,
            Self::Leave => Op::Leave,
        }
    }

    /// Returns true if an argument of the call names this stream.
    ///
    /// The stream may be that of an append, a read or a snapshot, the key of a message, or the sort
    /// key of a row.
    pub fn is_about(&self, stream: &StreamId) -> bool {
        let is_it = |found: &StreamId| found == stream;
        match self {
            Self::Append(append) => is_it(append.head.stream()),
            Self::AppendAll(all) => {
                let heads = all.commits.iter().map(|a| &a.head).chain(&all.unchanged);
                heads.map(|head| head.stream()).any(is_it)
            }
            Self::Read { stream, .. } => is_it(stream),
            Self::ClearUnpublished(keys) => keys.iter().any(|key| is_it(&key.stream)),
            Self::LoadSnapshot(stream) | Self::DeleteSnapshot(stream) => is_it(stream),
            Self::SaveSnapshot(snapshot) => is_it(&snapshot.stream),
            Self::Get(key) | Self::Delete { key, .. } => key.sort == stream.as_str(),
            Self::GetMany(keys) => keys.iter().any(|key| key.sort == stream.as_str()),
            Self::Put { row, .. } => row.key.sort == stream.as_str(),
            Self::Publish(message) => is_key_of(message, stream),
            Self::PublishRun(run) => run.iter().any(|message| is_key_of(message, stream)),
            _ => false,
        }
    }
}

/// Writes the method and its arguments in one line, without payloads.
impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.op())?;
        match self {
            Self::Append(append) => write!(f, " {}", events_of(append)),
            Self::AppendAll(all) => {
                for append in &all.commits {
                    write!(f, " {}", events_of(append))?;
                }
                all.unchanged
                    .iter()
                    .try_for_each(|head| write!(f, " {} at {}", head.stream(), head.version()))
            }
            Self::Read { stream, from } => match from {
                ReadFrom::After(head) => write!(f, " {stream} after {}", head.version()),
                other => write!(f, " {stream} {other:?}"),
            },
            Self::Streams { aggregate } => write!(f, " {aggregate}"),
            Self::Scan { segment } | Self::Unpublished { segment } => {
                write!(f, " {}/{}", segment.index(), segment.total())
            }
            Self::ClearUnpublished(keys) => keys
                .iter()
                .try_for_each(|key| write!(f, " {}@{}", key.stream, key.first_version)),
            Self::LoadSnapshot(stream) | Self::DeleteSnapshot(stream) => write!(f, " {stream}"),
            Self::SaveSnapshot(s) => write!(f, " {} at {}", s.stream, s.version),
            Self::Get(key) => write!(f, " {key}"),
            Self::GetMany(keys) => write!(f, " {} keys", keys.len()),
            Self::Put { row, expect } => write!(f, " {} over {expect:?}", row.key),
            Self::Delete { key, expect } => write!(f, " {key} over {expect:?}"),
            Self::Range(query) => write!(f, " {} {:?}", query.partition, query.bounds),
            Self::Publish(message) => write!(f, " {}", to_topic(message)),
            Self::PublishRun(run) => match run.first() {
                Some(first) => write!(f, " of {} {}", run.len(), to_topic(first)),
                None => f.write_str(" of 0"),
            },
            Self::Subscribe(subscription) => write!(f, " {}", subscription.group),
            Self::Offsets { topic } | Self::DescribeTopic { topic } => write!(f, " {topic}"),
            Self::Committed { group, topic } => write!(f, " {group} of {topic}"),
            Self::DeleteGroup { group } => write!(f, " {group}"),
            Self::Commit(commits) => commits
                .iter()
                .try_for_each(|commit| write!(f, " {} to {}", commit.partition, commit.next)),
            Self::Pause(partitions) | Self::Resume(partitions) => {
                partitions.iter().try_for_each(|p| write!(f, " {p}"))
            }
            Self::Next | Self::Leave => Ok(()),
        }
    }
}

fn is_key_of(message: &Message, stream: &StreamId) -> bool {
    message.key.as_deref() == Some(stream.as_str().as_bytes())
}

fn to_topic(message: &Message) -> String {
    let key = message.key.as_deref().map(String::from_utf8_lossy);
    format!("{} to {}", key.unwrap_or_default(), message.topic)
}

fn events_of(append: &Append) -> String {
    let (stream, version) = (append.head.stream(), append.head.version());
    format!("{} events on {stream} after {version}", append.events.len())
}
