//! The ids of topics, which distinguish a recreated topic from the deleted one of the same name.
//!
//! # Why are the ids read from the log?
//! librdkafka knows the id of a topic, but continues at the old offset when the id changes. It then
//! skips the first records of the new topic without an error. No call returns the id, but with the
//! debug context `metadata` the log says `Topic NAME changed id from OLD to NEW`. A fetch names the
//! topic by its id, so this line is written before the first record of a topic can arrive. Brokers
//! without topic ids (before Kafka 2.8) never cause the line, and nothing is known of their topics.
use foldstream::ports::PartitionId;
use std::collections::{HashMap, HashSet};

/// The id of a topic, as librdkafka writes it.
pub(super) type TopicId = String;

/// The id that librdkafka writes for "none".
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
/// The text before the id in the metadata of an offset commit.
const COMMIT_PREFIX: &str = "topic-id=";

/// A topic or a partition whose positions belong to deleted records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Recreated {
    Topic(String),
    /// The group's offset was committed for an earlier topic of that name.
    Partition(PartitionId),
}

/// The ids of a member's topics, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct TopicIds {
    current: HashMap<String, TopicId>,
    /// The ids that offsets were committed for, while the id of the topic is not known yet.
    expected: HashMap<PartitionId, TopicId>,
    recreated: HashSet<String>,
    news: Vec<Recreated>,
}

impl TopicIds {
    /// Reads an id from a line of the log.
    pub(super) fn hear(&mut self, text: &str) {
        let Some((topic, old, new)) = parse(text) else {
            return;
        };
        if new == NO_ID {
            return;
        }
        let before = self.current.insert(topic.to_owned(), new.to_owned());
        let before = before.or_else(|| (old != NO_ID).then(|| old.to_owned()));
        if before.is_some_and(|before| before != new) && self.recreated.insert(topic.to_owned()) {
            self.news.push(Recreated::Topic(topic.to_owned()));
        }
        let news = &mut self.news;
        self.expected.retain(|id, expected| {
            let is_of_topic = *id.topic == *topic;
            if is_of_topic && expected != new {
                news.push(Recreated::Partition(id.clone()));
            }
            !is_of_topic
        });
    }

    /// Returns true if an offset that was committed for the topic with this id cannot be used.
    ///
    /// If that is not known yet, [`take_news`](Self::take_news) reports it later.
    pub(super) fn is_outdated(&mut self, id: &PartitionId, expected: TopicId) -> bool {
        match self.current.get(&*id.topic) {
            Some(current) => *current != expected,
            None => {
                self.expected.insert(id.clone(), expected);
                false
            }
        }
    }

    /// Returns true if the topic was created again while this member was in the group.
    pub(super) fn is_recreated(&self, topic: &str) -> bool {
        self.recreated.contains(topic)
    }

    /// Returns the topics and partitions that turned out to be recreated since the last call.
    pub(super) fn take_news(&mut self) -> Vec<Recreated> {
        std::mem::take(&mut self.news)
    }

    /// Forgets the ids that the offsets of partitions were committed for.
    pub(super) fn forget(&mut self, partitions: &[PartitionId]) {
        self.expected.retain(|id, _| !partitions.contains(id));
    }

    /// Returns the metadata of an offset commit for a topic. Empty if its id is not known.
    pub(super) fn commit_metadata(&self, topic: &str) -> String {
        let id = self.current.get(topic);
        id.map_or_else(String::new, |id| format!("{COMMIT_PREFIX}{id}"))
    }
}

/// Returns the id of the topic that an offset was committed for, from its metadata.
pub(super) fn committed_for(metadata: &str) -> Option<TopicId> {
    metadata.strip_prefix(COMMIT_PREFIX).map(str::to_owned)
}

/// Returns the topic, its old id and its new id.
fn parse(text: &str) -> Option<(&str, &str, &str)> {
    let (before, ids) = text.split_once(" changed id from ")?;
    let (_, topic) = before.rsplit_once("Topic ")?;
    let (old, new) = ids.split_once(" to ")?;
    Some((topic, old, new.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(topic: &str, old: &str, new: &str) -> String {
        format!("[thrd:main]: Topic {topic} changed id from {old} to {new}")
    }

    #[test]
    fn a_first_id_is_learned_and_another_one_is_a_recreated_topic() {
        let mut ids = TopicIds::default();
        ids.hear("[thrd:main]: Topic orders [0] Leader 1 Epoch 0");
        ids.hear(&line("orders", NO_ID, "first"));
        assert_eq!(
            (ids.take_news(), ids.is_recreated("orders")),
            (vec![], false)
        );
        assert_eq!(ids.commit_metadata("orders"), "topic-id=first");
        ids.hear(&line("orders", "first", "second"));
        assert_eq!(ids.take_news(), [Recreated::Topic("orders".into())]);
        assert!(ids.is_recreated("orders") && !ids.is_recreated("other"));
        assert_eq!(ids.take_news(), []);
    }

    #[test]
    fn a_broker_that_tells_no_id_for_a_while_is_not_a_recreated_topic() {
        let mut ids = TopicIds::default();
        for (old, new) in [(NO_ID, "first"), ("first", NO_ID), (NO_ID, "first")] {
            ids.hear(&line("orders", old, new));
        }
        assert!(!ids.is_recreated("orders"));
        ids.hear(&line("orders", NO_ID, "second"));
        assert!(ids.is_recreated("orders"));
    }

    #[test]
    fn a_commit_for_another_topic_of_that_name_is_outdated_as_soon_as_the_id_is_known() {
        let mut ids = TopicIds::default();
        let (old, new) = (PartitionId::new("orders", 0), PartitionId::new("orders", 1));
        assert!(!ids.is_outdated(&old, "first".into()));
        assert!(!ids.is_outdated(&new, "second".into()));
        ids.hear(&line("orders", NO_ID, "second"));
        assert_eq!(ids.take_news(), [Recreated::Partition(old.clone())]);
        assert!(ids.is_outdated(&old, "first".into()));
        assert!(!ids.is_outdated(&new, "second".into()));
        assert!(!ids.is_recreated("orders"));
    }

    #[test]
    fn the_metadata_of_other_tools_says_nothing() {
        assert_eq!(committed_for("topic-id=x"), Some("x".to_owned()));
        assert_eq!((committed_for(""), committed_for("by hand")), (None, None));
    }
}
