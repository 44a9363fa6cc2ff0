//! A record of the topics, groups and permissions that have worked with these brokers. For a
//! limited time, their refusal counts as an outage.
//!
//! # Why may a refusal be an outage?
//! A broker that has just restarted knows no topic until it has heard from the controller, and
//! denies every permission until it has read the ACLs. A server that stores the users may be away
//! for a moment. Kafka's protocol answers these cases with the same code as a topic that was never
//! created, so the code alone cannot say if waiting helps.
//!
//! A subject that has worked before in this process is therefore unavailable for a limited time,
//! and refused only after it. A subject that has never worked is refused at once, since it is most
//! likely a mistake.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The time for which a call looks up a topic again that these brokers have never shown. Brokers
/// other than the one that created it learn of it a moment later.
const FIRST_CONTACT: Duration = Duration::from_secs(2);
/// The time after which a topic that was missing on first contact counts as a first contact again.
const FIRST_CONTACT_AGAIN: Duration = Duration::from_secs(60);
/// The most topics and groups that are remembered. Beyond it all are forgotten, and each counts as
/// never used.
const MOST_NAMES: usize = 10_000;

/// A kind of access to a topic that has a permission of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Describe,
    DescribeConfigs,
    Read,
    Write,
}

/// The topics and the group that a call uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uses<'a> {
    topics: &'a [Arc<str>],
    access: Option<Access>,
    group: Option<&'a str>,
}

impl<'a> Uses<'a> {
    /// Returns the uses of a call whose refusal is never an outage: it uses nothing, or it
    /// administers.
    pub(crate) fn nothing() -> Self {
        Self::default()
    }
    pub(crate) fn topics(access: Access, topics: &'a [Arc<str>]) -> Self {
        Self {
            topics,
            access: Some(access),
            group: None,
        }
    }
    pub(crate) fn topic(access: Access, topic: &'a Arc<str>) -> Self {
        Self::topics(access, std::slice::from_ref(topic))
    }
    pub(crate) fn with_group(mut self, group: &'a str) -> Self {
        self.group = Some(group);
        self
    }
}

/// The subject of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// The login of this process.
    Login,
    /// The existence of the topics.
    Existence,
    /// The permission for the access to the topics.
    TopicAccess,
    /// The permission for the group.
    Group,
    /// The permission to publish to any topic.
    Cluster,
}

/// The history of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Record {
    #[default]
    NeverWorked,
    Works,
    /// The subject worked before, and has been refused since this time.
    RefusedSince(Instant),
}

impl Record {
    /// Records a refusal, and returns true if it counts as an outage.
    fn refuse(&mut self, now: Instant, patience: Duration) -> bool {
        match *self {
            Self::NeverWorked => false,
            Self::Works => {
                *self = Self::RefusedSince(now);
                !patience.is_zero()
            }
            Self::RefusedSince(since) => now.saturating_duration_since(since) < patience,
        }
    }
}

#[derive(Debug, Default)]
struct TopicRecords {
    existence: Record,
    describe: Record,
    describe_configs: Record,
    read: Record,
    write: Record,
}

impl TopicRecords {
    fn access(&mut self, access: Access) -> &mut Record {
        match access {
            Access::Describe => &mut self.describe,
            Access::DescribeConfigs => &mut self.describe_configs,
            Access::Read => &mut self.read,
            Access::Write => &mut self.write,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    login: Record,
    cluster: Record,
    topics: HashMap<Arc<str>, TopicRecords>,
    groups: HashMap<Arc<str>, Record>,
    /// The time at which a topic that never worked was first found missing.
    missing: HashMap<Arc<str>, Instant>,
}

/// The history of all subjects of one bus, which all its clients share.
#[derive(Debug)]
pub(crate) struct WorkedBefore {
    patience: Duration,
    state: Mutex<State>,
}

impl WorkedBefore {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            state: Mutex::default(),
        }
    }

    /// Returns the time for which a refusal counts as an outage.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a call succeeded with these topics and this group.
    pub(crate) fn succeeded(&self, uses: Uses<'_>) {
        let mut state = self.lock();
        state.login = Record::Works;
        if state.topics.len() + state.groups.len() >= MOST_NAMES {
            state.topics.clear();
            state.groups.clear();
        }
        for topic in uses.topics {
            if !state.topics.contains_key(topic) {
                state.missing.remove(topic);
                state
                    .topics
                    .insert(Arc::clone(topic), TopicRecords::default());
            }
            if let (Some(records), Some(access)) = (state.topics.get_mut(topic), uses.access) {
                records.existence = Record::Works;
                *records.access(access) = Record::Works;
            }
        }
        if uses.access == Some(Access::Write) {
            state.cluster = Record::Works;
        }
        if let Some(group) = uses.group {
            match state.groups.get_mut(group) {
                Some(record) => *record = Record::Works,
                None => drop(state.groups.insert(group.into(), Record::Works)),
            }
        }
    }

    /// Records that a call was refused, and returns true if that counts as an outage.
    pub(crate) fn refused(&self, about: About, uses: Uses<'_>) -> bool {
        let (now, patience) = (Instant::now(), self.patience);
        let mut state = self.lock();
        let refuse = |record: Option<&mut Record>| record.is_some_and(|r| r.refuse(now, patience));
        match about {
            About::Login => refuse(Some(&mut state.login)),
            About::Cluster if uses.access == Some(Access::Write) => {
                refuse(Some(&mut state.cluster))
            }
            About::Cluster => false,
            About::Group => uses.group.is_some_and(|g| refuse(state.groups.get_mut(g))),
            About::Existence | About::TopicAccess => {
                let mut is_outage = !uses.topics.is_empty();
                for topic in uses.topics {
                    let records = state.topics.get_mut(topic);
                    let record = records.and_then(|records| match (about, uses.access) {
                        (About::Existence, _) => Some(&mut records.existence),
                        (_, access) => access.map(|access| records.access(access)),
                    });
                    // Each subject is recorded, also after the first one that is not an outage.
                    is_outage &= refuse(record);
                }
                is_outage
            }
        }
    }

    /// Returns true if a missing topic is to be looked up again within the same call.
    ///
    /// That is so if the topic has never been used, and was found missing for the first time a
    /// moment ago.
    pub(crate) fn is_first_contact(&self, topic: &Arc<str>) -> bool {
        let (now, patience) = (Instant::now(), FIRST_CONTACT.min(self.patience));
        let mut state = self.lock();
        if state.topics.contains_key(topic) {
            return false;
        }
        if state.missing.len() >= MOST_NAMES {
            state.missing.clear();
        }
        let since = state.missing.entry(Arc::clone(topic)).or_insert(now);
        if now.saturating_duration_since(*since) >= FIRST_CONTACT_AGAIN {
            *since = now;
        }
        now.saturating_duration_since(*since) < patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn topics(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn only_what_has_worked_before_is_an_outage() {
        let worked = WorkedBefore::new(MINUTE);
        let (used, other) = (topics(&["used"]), topics(&["other"]));
        let writing = Uses::topics(Access::Write, &used);
        let reading = Uses::topics(Access::Read, &used).with_group("g");
        for about in [
            About::Login,
            About::Existence,
            About::TopicAccess,
            About::Cluster,
        ] {
            assert!(!worked.refused(about, writing), "{about:?}");
        }
        worked.succeeded(writing);
        for about in [
            About::Login,
            About::Existence,
            About::TopicAccess,
            About::Cluster,
        ] {
            assert!(worked.refused(about, writing), "{about:?}");
        }
        assert!(
            !worked.refused(About::TopicAccess, reading),
            "another permission"
        );
        assert!(
            !worked.refused(About::Group, reading),
            "the group was not used"
        );
        assert!(!worked.refused(About::Existence, Uses::topics(Access::Write, &other)));
        worked.succeeded(reading);
        assert!(worked.refused(About::Group, reading));
        assert!(!worked.refused(About::Existence, Uses::nothing()));
    }

    #[test]
    fn an_outage_ends_with_the_patience_and_begins_again_after_a_success() {
        let worked = WorkedBefore::new(Duration::from_millis(50));
        let topics = topics(&["t"]);
        let uses = Uses::topics(Access::Describe, &topics);
        worked.succeeded(uses);
        let started = Instant::now();
        while worked.refused(About::Existence, uses) {
            assert!(started.elapsed() < MINUTE, "it never ends");
            std::thread::yield_now();
        }
        assert!(started.elapsed() >= Duration::from_millis(50));
        worked.succeeded(uses);
        assert!(worked.refused(About::Existence, uses));
    }

    #[test]
    fn one_topic_that_was_never_there_makes_a_call_refused() {
        let worked = WorkedBefore::new(MINUTE);
        let (one, both) = (topics(&["a"]), topics(&["a", "b"]));
        worked.succeeded(Uses::topics(Access::Describe, &one));
        assert!(!worked.refused(About::Existence, Uses::topics(Access::Describe, &both)));
    }

    #[test]
    fn without_patience_nothing_is_an_outage() {
        let worked = WorkedBefore::new(Duration::ZERO);
        let topics = topics(&["t"]);
        let uses = Uses::topics(Access::Write, &topics);
        worked.succeeded(uses);
        assert!(!worked.refused(About::Existence, uses));
        assert!(!worked.is_first_contact(&"new".into()));
    }

    #[test]
    fn only_a_topic_that_was_never_shown_is_looked_for_on_first_contact() {
        let worked = WorkedBefore::new(MINUTE);
        let topics = topics(&["t"]);
        assert!(worked.is_first_contact(&topics[0]));
        worked.succeeded(Uses::topics(Access::Describe, &topics));
        assert!(!worked.is_first_contact(&topics[0]));
    }

    #[test]
    fn the_names_that_are_remembered_are_bounded() {
        let worked = WorkedBefore::new(MINUTE);
        for n in 0..3 * MOST_NAMES {
            let group = n.to_string();
            worked.succeeded(Uses::nothing().with_group(&group));
            let topic = Arc::from(group);
            worked.is_first_contact(&topic);
        }
        let state = worked.lock();
        assert!(state.groups.len() <= MOST_NAMES && state.missing.len() <= MOST_NAMES);
    }
}
