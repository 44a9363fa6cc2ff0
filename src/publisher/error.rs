//! The errors of publishing: of a stream, a topic, the poller.
use super::OutboxError;
use crate::{
    CommitId, StreamId, Version,
    control::{PublisherName, Watermark},
    ports::{ControlStoreError, EventStoreError, MessageBusError, RefusedKind},
    resilience::{Failure, FailureClass},
};
use std::sync::Arc;

/// The error of a stream that could not be brought up to date. Other streams are not affected, and
/// nothing is lost: what was not acknowledged keeps its marker and is above the watermark.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The events could not be read.
    #[error("the events of {stream} cannot be read")]
    Store {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The error behind the failure.
        #[source]
        source: EventStoreError,
    },
    /// The bus did not acknowledge an event.
    #[error("event {version} of {stream} cannot be sent")]
    Bus {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The version of the event.
        version: Version,
        /// The error behind the failure.
        #[source]
        source: MessageBusError,
    },
    /// An event is larger than the topic takes. Nothing of its commit was sent.
    #[error(
        "event {version} of {stream} makes a message of {bytes} bytes, topic {topic} takes {limit}: raise max.message.bytes"
    )]
    TooLarge {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The version of the event.
        version: Version,
        /// The topic that the event should go to.
        topic: Arc<str>,
        /// The size of the message, without what the bus adds to it.
        bytes: u64,
        /// The largest size of a message that topic and producer take.
        limit: u64,
    },
    /// The outbox cannot tell how an event is published. No later event of the stream is sent.
    #[error("event {version} of {stream} has no public form")]
    Outbox {
        /// The stream of the event.
        stream: StreamId,
        /// The version of the event.
        version: Version,
        /// The error of the outbox.
        #[source]
        source: OutboxError,
    },
    /// A bootstrap has begun and is not done, so that nobody knows yet where publishing begins.
    #[error(
        "{stream} is not published: the bootstrap is not done; let Publisher::bootstrap finish"
    )]
    NotBootstrapped {
        /// The stream that was to be published.
        stream: StreamId,
    },
    /// The watermark could not be read or moved.
    #[error("the watermark of {stream} cannot be moved")]
    Watermark {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The error behind the failure.
        #[source]
        source: ControlStoreError,
    },
    /// The events are published and the watermark has moved, but they are still listed as
    /// unpublished.
    #[error("the published commits of {stream} cannot be cleared")]
    Clear {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The error behind the failure.
        #[source]
        source: EventStoreError,
    },
    /// Nothing can be published to the topic of the stream.
    #[error("{stream} cannot be published")]
    Topic {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The error behind the failure.
        #[source]
        source: TopicError,
    },
    /// The store's history of the stream is not the one that was published. Publishing more of it
    /// would give consumers two different events under one version, so the stream stops until an
    /// operator decides.
    #[error(
        "the history of {stream} has forked: version {} was published as commit {}, the store has {}: was a backup restored? Bring the watermark down to where both agree and rebuild the consumers",
        watermark.version, watermark.commit_id,
        found.map_or_else(|| "nothing there".into(), |(v, id)| format!("version {v} by commit {id}"))
    )]
    HistoryForked {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The watermark: the commit that was published.
        watermark: Watermark,
        /// The newest commit end at or below the watermark, or what contradicts it.
        found: Option<(Version, CommitId)>,
    },
    /// The publisher was asked to stop before the stream was up to date.
    #[error(
        "the publisher was stopped after version {version} of {stream}, which is not up to date"
    )]
    Interrupted {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The last version that the bus has acknowledged; 0 if there is none.
        version: Version,
    },
    /// The stream has a longer backlog than a call with a deadline takes on. A sweep publishes it.
    #[error(
        "{stream} has {events} unpublished events before those of the notices, and a call with a deadline takes on {limit}; a sweep publishes it"
    )]
    FarBehind {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The number of events between the watermark and the first notice above it.
        events: u64,
        /// The limit, from [`Publisher::with_max_behind`](super::Publisher::with_max_behind).
        limit: u64,
    },
    /// A notice names an event that the store does not show.
    #[error(
        "the store does not show version {named} of {stream}, which a notice names; it ends at {tail}"
    )]
    NotVisible {
        /// The stream that is not up to date.
        stream: StreamId,
        /// The version that was named.
        named: Version,
        /// The version at which the store's stream ends.
        tail: Version,
    },
}

impl PublishError {
    /// Returns true if the same notice may succeed later although nobody changes anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store { source, .. } | Self::Clear { source, .. } => source.is_transient(),
            Self::Bus { source, .. } => source.is_transient(),
            Self::Watermark { source, .. } => source.is_transient(),
            Self::Topic { source, .. } => source.is_transient(),
            Self::Outbox { source, .. } => source.is_transient(),
            Self::NotVisible { .. } | Self::Interrupted { .. } | Self::FarBehind { .. } => true,
            Self::TooLarge { .. } | Self::HistoryForked { .. } | Self::NotBootstrapped { .. } => {
                false
            }
        }
    }

    /// Returns true if no stream can be published until an operator changes the set-up, so that a
    /// poller ends. A topic that cannot be used is not such an error: it concerns only the streams
    /// that go there.
    pub const fn is_set_up_wrong(&self) -> bool {
        match self {
            Self::Store { source, .. } | Self::Clear { source, .. } => match source {
                EventStoreError::Refused { kind, .. } => concerns_all(*kind),
                // Watermarks may be of the old table. They are checked before anything else is
                // published.
                EventStoreError::Replaced { .. } => true,
                _ => false,
            },
            Self::Bus { source, .. } => match source {
                MessageBusError::Refused { kind, .. } => {
                    concerns_all(*kind) && !concerns_one_topic(*kind)
                }
                _ => false,
            },
            Self::Watermark { source, .. } => match source {
                ControlStoreError::Refused { kind, .. } => concerns_all(*kind),
                _ => false,
            },
            Self::Topic { source, .. } => match source {
                TopicError::Bus {
                    source: MessageBusError::Refused { kind, .. },
                    ..
                } => concerns_all(*kind) && !concerns_one_topic(*kind),
                TopicError::Control {
                    source: ControlStoreError::Refused { kind, .. },
                    ..
                } => concerns_all(*kind),
                _ => false,
            },
            Self::NotBootstrapped { .. } => true,
            Self::TooLarge { .. }
            | Self::Outbox { .. }
            | Self::HistoryForked { .. }
            | Self::Interrupted { .. }
            | Self::FarBehind { .. }
            | Self::NotVisible { .. } => false,
        }
    }

    /// Returns true if the stream cannot be published until an operator changes something, while
    /// other streams can. Such a stream is noted as dirty.
    pub(super) fn is_stuck(&self) -> bool {
        !self.is_transient() && !self.is_set_up_wrong()
    }

    /// Returns the version of the event that cannot be published, if an operator may skip it:
    /// events after it might be published.
    pub const fn refused_event(&self) -> Option<Version> {
        match self {
            Self::TooLarge { version, .. } | Self::Outbox { version, .. } => Some(*version),
            Self::Bus {
                version, source, ..
            } if !source.is_transient() && !self.is_topic_unusable() && !self.is_set_up_wrong() => {
                Some(*version)
            }
            _ => None,
        }
    }

    /// Returns true if no stream of the same topic can be published until an operator changes
    /// something.
    pub(super) const fn is_topic_unusable(&self) -> bool {
        match self {
            Self::Topic { source, .. } => !source.is_transient(),
            Self::Bus {
                source: MessageBusError::Refused { kind, .. },
                ..
            } => concerns_one_topic(*kind),
            _ => false,
        }
    }
}

/// A malformed request may be one stream's fault; a missing table is not.
const fn concerns_all(kind: RefusedKind) -> bool {
    !matches!(
        kind,
        RefusedKind::Validation | RefusedKind::UnknownPartition | RefusedKind::Other
    )
}

/// A topic that is missing, denied or set up in a way that does not take the records says nothing
/// about other topics. Credentials are the same for all.
const fn concerns_one_topic(kind: RefusedKind) -> bool {
    matches!(
        kind,
        RefusedKind::MissingTopic
            | RefusedKind::UnknownPartition
            | RefusedKind::Permission
            | RefusedKind::Incompatible
            | RefusedKind::Unsupported
    )
}

/// The error returned for a topic to which events must not be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The topic may drop old records of a key.
    #[error(
        "topic {topic} is compacted, which keeps one event a stream and loses the others: set cleanup.policy=delete"
    )]
    Compacted {
        /// The name of the topic.
        topic: Arc<str>,
    },
    /// The topic takes no records that are large enough for events.
    #[error(
        "topic {topic} takes records up to {bytes} bytes: set max.message.bytes to at least {needed}"
    )]
    SmallRecords {
        /// The name of the topic.
        topic: Arc<str>,
        /// The size of the largest message that the topic takes.
        bytes: u64,
        /// The size that the topic should take.
        needed: u64,
    },
    /// The topic does not have the partitions that it had when its first event was published.
    #[error(
        "topic {topic} has {found} partitions, pinned are {pinned}: streams would move to other partitions and their events overtake each other. Publish to a topic with {pinned}, or stop all publishers, wait until every consumer group has read everything and no stream is parked, and accept the new number with accept_partitions"
    )]
    PartitionsChanged {
        /// The name of the topic.
        topic: Arc<str>,
        /// The pinned number of partitions.
        pinned: u32,
        /// The number of partitions that the topic has.
        found: u32,
    },
    /// A number of partitions was to be accepted while this publisher publishes to the topic.
    #[error(
        "{streams} streams are being published to topic {topic}: stop all publishers, wait until every consumer group has read everything, then accept the new number"
    )]
    StillPublishing {
        /// The name of the topic.
        topic: Arc<str>,
        /// The number of streams.
        streams: usize,
    },
    /// The number of partitions that was to be accepted is not that of the topic.
    #[error("topic {topic} has {found} partitions, not {accepted}: nothing was pinned")]
    NotThatMany {
        /// The name of the topic.
        topic: Arc<str>,
        /// The number of partitions that was to be accepted.
        accepted: u32,
        /// The number of partitions that the topic has.
        found: u32,
    },
    /// The bus does not describe the topic: it does not exist, or the bus cannot be asked.
    #[error("topic {topic} cannot be checked")]
    Bus {
        /// The name of the topic.
        topic: Arc<str>,
        /// The error behind the failure.
        #[source]
        source: MessageBusError,
    },
    /// The pinned number of partitions could not be read or written.
    #[error("the pinned partitions of topic {topic} cannot be read")]
    Control {
        /// The name of the topic.
        topic: Arc<str>,
        /// The error behind the failure.
        #[source]
        source: ControlStoreError,
    },
}
impl TopicError {
    /// Returns true if the same check may succeed later.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Bus { source, .. } => source.is_transient(),
            Self::Control { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}

/// The error that ended a poller. A failure that may pass by itself never ends a poller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PollError {
    /// The store keeps no list of unpublished commits.
    #[error(
        "the event store lists no unpublished commits: create its tables for a poller, or drive the publisher by a change stream"
    )]
    NoList,
    /// The publisher has a name. The list of unpublished commits belongs to the publisher without
    /// one, which removes the markers.
    #[error(
        "publisher {name} cannot poll: the markers are those of the publisher without a name; call reconcile, or drive it by a change stream"
    )]
    Named {
        /// The name of the publisher.
        name: PublisherName,
    },
    /// The list of unpublished commits cannot be read until something is changed.
    #[error("the unpublished commits cannot be listed")]
    List {
        /// The error behind the failure.
        #[source]
        source: EventStoreError,
    },
    /// The leases by which pollers share the list cannot be read or written until something is
    /// changed.
    #[error("the leases of the poller cannot be read or written")]
    Leases {
        /// The error behind the failure.
        #[source]
        source: ControlStoreError,
    },
    /// Nothing can be published to the topic until something is changed.
    #[error("nothing can be published")]
    Topic {
        /// The error behind the failure.
        #[source]
        source: TopicError,
    },
    /// A stream was refused for a reason that concerns all.
    #[error("nothing can be published")]
    Refused {
        /// The error behind the failure.
        #[source]
        source: PublishError,
    },
}

impl Failure for TopicError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Bus { source, .. } => source.failure_class(),
            Self::Control { source, .. } => source.failure_class(),
            _ => FailureClass::Permanent,
        }
    }
}
impl Failure for PublishError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Store { source, .. } | Self::Clear { source, .. } => source.failure_class(),
            Self::Bus { source, .. } => source.failure_class(),
            Self::Watermark { source, .. } => source.failure_class(),
            Self::Topic { source, .. } => source.failure_class(),
            Self::NotVisible { .. }
            | Self::Interrupted { .. }
            | Self::Outbox { .. }
            | Self::NotBootstrapped { .. }
            | Self::TooLarge { .. }
            | Self::FarBehind { .. }
            | Self::HistoryForked { .. } => self.is_transient().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_one_topics_records_says_nothing_about_other_topics() {
        for (kind, (ends_all, ends_topic)) in [
            (RefusedKind::MissingTopic, (false, true)),
            (RefusedKind::UnknownPartition, (false, true)),
            (RefusedKind::Permission, (false, true)),
            (RefusedKind::Incompatible, (false, true)),
            (RefusedKind::Unsupported, (false, true)),
            // One stream's record may be at fault.
            (RefusedKind::Validation, (false, false)),
            (RefusedKind::Other, (false, false)),
            // The same for every topic.
            (RefusedKind::Credentials, (true, false)),
        ] {
            let stream = StreamId::new("order", "1").unwrap();
            let refused = || MessageBusError::Refused {
                kind,
                reason: "no".into(),
                source: "no".into(),
            };
            let sent = PublishError::Bus {
                stream: stream.clone(),
                version: Version::new(1),
                source: refused(),
            };
            let found = (sent.is_set_up_wrong(), sent.is_topic_unusable());
            assert_eq!(found, (ends_all, ends_topic), "{kind:?}");
            let checked = PublishError::Topic {
                stream,
                source: TopicError::Bus {
                    topic: "shop.order".into(),
                    source: refused(),
                },
            };
            assert_eq!(checked.is_set_up_wrong(), ends_all, "{kind:?}");
            assert!(checked.is_topic_unusable(), "{kind:?}");
        }
    }
}
