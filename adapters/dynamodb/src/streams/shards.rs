//! The decisions about shards: which are to be read, by which instance. Pure.
//!
//! ```text
//! waiting ──the parent is done──> ready ──a lease is taken──> read by its holder ──> done
//! ```
//! A shard is known from the description of its stream, from its row, or from both. The
//! description forgets a shard 24 hours after it was closed, and may list a closed shard before its
//! children. The row is written when a shard is first read, and deleted once nobody needs it.
use super::rows::ShardRow;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// The shards of one stream, as one instance knows them.
#[derive(Debug, Default)]
pub(super) struct Shards {
    /// The shards of the last complete description, and their parents.
    listed: BTreeMap<String, Option<String>>,
    rows: BTreeMap<String, ShardRow>,
}

/// The state of a shard that does not depend on who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShardState {
    /// The parent is not done.
    Waiting,
    /// The shard can be read.
    Ready {
        /// True if nobody has read the shard, and its parent is deleted and was never read: records
        /// were lost for this reader.
        is_after_loss: bool,
    },
    /// Everything in the shard is covered.
    Done,
}

/// The work of an instance until the next look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The number of shards that this instance should hold.
    pub(super) target: usize,
    /// The shards to contend for, the preferred ones first.
    pub(super) take: Vec<String>,
    /// The shards to give to other instances.
    pub(super) release: Vec<String>,
    /// The shards whose rows nobody needs any more.
    pub(super) sweep: Vec<String>,
    /// True if a shard is not done: it can be read, or waits for its parent.
    pub(super) has_work: bool,
}

impl Shards {
    /// Takes in a complete description of the stream: shards and their parents.
    pub(super) fn on_description(&mut self, shards: BTreeMap<String, Option<String>>) {
        self.listed = shards;
    }
    /// Takes in all rows of the stream.
    pub(super) fn on_rows(&mut self, rows: BTreeMap<String, ShardRow>) {
        self.rows = rows;
    }

    fn ids(&self) -> BTreeSet<&String> {
        self.listed.keys().chain(self.rows.keys()).collect()
    }
    pub(super) fn parent(&self, id: &str) -> Option<&String> {
        match self.listed.get(id) {
            Some(parent) => parent.as_ref(),
            None => self.rows.get(id)?.parent.as_ref(),
        }
    }
    pub(super) fn state(&self, id: &str) -> ShardState {
        let row = self.rows.get(id);
        if row.is_some_and(|row| row.is_done) {
            return ShardState::Done;
        }
        // A shard with a row has begun, so its parent was done then.
        let (Some(parent), None) = (self.parent(id), row) else {
            return ShardState::Ready {
                is_after_loss: false,
            };
        };
        match self.rows.get(parent) {
            Some(row) if row.is_done => ShardState::Ready {
                is_after_loss: false,
            },
            Some(_) => ShardState::Waiting,
            None if self.listed.contains_key(parent) => ShardState::Waiting,
            // The row of a shard stays until its children have rows, so this parent never had one.
            None => ShardState::Ready {
                is_after_loss: true,
            },
        }
    }
    /// Returns the numbers of shards that wait for their parents, and that are done.
    pub(super) fn counts(&self) -> (usize, usize) {
        let ids = self.ids().into_iter();
        let states: Vec<_> = ids.map(|id| self.state(id)).collect();
        let count = |wanted| states.iter().filter(|state| **state == wanted).count();
        (count(ShardState::Waiting), count(ShardState::Done))
    }

    /// Returns true if a shard is done whose children the description does not list yet.
    pub(super) fn awaits_children(&self) -> bool {
        let has_child = |id: &String| {
            let mut parents = self.listed.values().flatten();
            parents.any(|parent| parent == id)
        };
        let is_done = |id: &&String| self.state(id) == ShardState::Done;
        self.listed.keys().filter(is_done).any(|id| !has_child(id))
    }

    /// Decides what the instance `me` does. `share` tells how many of a number of shards it should
    /// read, and `held` are those that it reads.
    pub(super) fn plan(
        &self,
        me: &str,
        share: impl FnOnce(usize) -> usize,
        held: &BTreeSet<String>,
    ) -> Plan {
        let ids = self.ids();
        let is_ready = |id: &&String| matches!(self.state(id), ShardState::Ready { .. });
        let mut ready: Vec<&String> = ids.iter().copied().filter(is_ready).collect();
        // Every instance has an order of its own, so that they rarely contend for the same shard.
        ready.sort_by_key(|id| preference(me, id));
        let target = share(ready.len());
        let (mine, free): (Vec<&String>, Vec<&String>) =
            ready.into_iter().partition(|id| held.contains(*id));
        let take = if mine.len() < target {
            free
        } else {
            Vec::new()
        };
        let release = mine.into_iter().skip(target);
        Plan {
            target,
            take: take.into_iter().cloned().collect(),
            release: release.cloned().collect(),
            sweep: self
                .rows
                .keys()
                .filter(|id| self.is_useless(id))
                .cloned()
                .collect(),
            has_work: ids.iter().any(|id| self.state(id) != ShardState::Done),
        }
    }

    /// Returns true if the row of a shard tells nobody anything any more: the shard is done and no
    /// longer listed, and all of its children have rows of their own.
    fn is_useless(&self, id: &str) -> bool {
        let is_done = self.rows.get(id).is_some_and(|row| row.is_done);
        let is_child = |child: &&String| self.parent(child).is_some_and(|parent| parent == id);
        is_done
            && !self.listed.contains_key(id)
            && self
                .ids()
                .into_iter()
                .filter(is_child)
                .all(|child| self.rows.contains_key(child))
    }
}

fn preference(me: &str, shard: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (me, shard).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::{super::service::SequenceNumber, *};

    fn listed(shards: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
        let owned = |(id, parent): &(&str, Option<&str>)| ((*id).into(), parent.map(Into::into));
        shards.iter().map(owned).collect()
    }
    fn row(parent: Option<&str>, is_done: bool) -> ShardRow {
        ShardRow {
            parent: parent.map(Into::into),
            checkpoint: Some(SequenceNumber::new("7")),
            is_done,
        }
    }
    fn shards(description: &[(&str, Option<&str>)], rows: &[(&str, Option<&str>, bool)]) -> Shards {
        let mut shards = Shards::default();
        shards.on_description(listed(description));
        let rows = rows.iter();
        shards.on_rows(
            rows.map(|(id, parent, done)| ((*id).into(), row(*parent, *done)))
                .collect(),
        );
        shards
    }
    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).into()).collect()
    }
    const READY: ShardState = ShardState::Ready {
        is_after_loss: false,
    };

    #[test]
    fn a_child_is_ready_only_after_its_parent_is_done() {
        let tree = [("a", None), ("b", Some("a")), ("c", Some("b"))];
        let states = |rows| ["a", "b", "c"].map(|id| shards(&tree, rows).state(id));
        use ShardState::{Done, Waiting};
        assert_eq!(states(&[]), [READY, Waiting, Waiting]);
        assert_eq!(states(&[("a", None, false)]), [READY, Waiting, Waiting]);
        assert_eq!(states(&[("a", None, true)]), [Done, READY, Waiting]);
        let both = [("a", None, true), ("b", Some("a"), true)];
        assert_eq!(states(&both), [Done, Done, READY]);
    }

    #[test]
    fn a_child_of_a_shard_that_was_never_read_begins_after_a_loss() {
        let orphan = shards(&[("b", Some("a"))], &[]);
        let lost = ShardState::Ready {
            is_after_loss: true,
        };
        assert_eq!(orphan.state("b"), lost);
        // Its own row says that the loss was noted, or that there was none.
        let begun = shards(&[("b", Some("a"))], &[("b", Some("a"), false)]);
        assert_eq!(begun.state("b"), READY);
    }

    #[test]
    fn a_parent_that_is_no_longer_listed_is_read_to_its_end() {
        let half_read = shards(&[("b", Some("a"))], &[("a", None, false)]);
        assert_eq!(half_read.state("a"), READY);
        assert_eq!(half_read.state("b"), ShardState::Waiting);
    }

    #[test]
    fn rows_stay_until_all_children_have_rows() {
        let plan = |description: &[_], rows: &[_]| {
            let shards = shards(description, rows);
            shards.plan("m", |all| all, &set(&[])).sweep
        };
        let rows = [("a", None, true), ("b", Some("a"), false)];
        let children = [("b", Some("a")), ("c", Some("a"))];
        assert_eq!(plan(&[("a", None), children[0]], &rows), [""; 0], "listed");
        assert_eq!(plan(&children, &rows), [""; 0], "c has not begun");
        assert_eq!(plan(&children[..1], &rows), ["a"]);
        assert_eq!(plan(&[], &[("a", None, false)]), [""; 0], "not done");
    }

    #[test]
    fn an_instance_takes_and_gives_away_shards_until_it_has_its_share() {
        let description: Vec<(String, Option<String>)> =
            (0..7).map(|n| (n.to_string(), None)).collect();
        let mut all = Shards::default();
        all.on_description(description.into_iter().collect());
        // The shares of three instances, of all shards.
        let plan = |me: &str, held: &BTreeSet<String>| {
            let share = |all| {
                assert_eq!(all, 7);
                if me == "x" { 3 } else { 2 }
            };
            all.plan(me, share, held)
        };
        let targets = ["x", "y", "z"].map(|me| plan(me, &set(&[])).target);
        assert_eq!(targets, [3, 2, 2]);
        // An instance with more than its share gives the rest away, and takes nothing.
        let held = set(&["0", "1", "2", "3", "4"]);
        let much = plan("y", &held);
        assert_eq!((much.release.len(), much.take.len()), (3, 0));
        assert!(much.release.iter().all(|id| held.contains(id)));
        let little = plan("z", &set(&["5"]));
        assert_eq!((little.release.len(), little.take.len()), (0, 6));
    }

    #[test]
    fn a_stream_whose_shards_are_all_done_has_no_work() {
        let has_work = |shards: Shards| shards.plan("m", |all| all, &set(&[])).has_work;
        assert!(!has_work(shards(&[], &[])));
        assert!(!has_work(shards(&[("a", None)], &[("a", None, true)])));
        assert!(has_work(shards(&[("a", None)], &[])));
    }
}
