//! The decision about one record: handle it, drop it, or fill a gap first.
use super::streams::{Position, Progress};
use crate::{CommitId, StreamId, Version, ports::PartitionId};

/// The next step for one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The event is the next one of its stream.
    Handle,
    /// The event has been handled.
    Duplicate,
    /// The event is of a lower version than the newest one handled, but was never handled: a gap
    /// was passed that could not be filled. It is handled, out of order.
    Late,
    /// The version was followed under another commit id.
    Fork {
        /// The commit id that was followed.
        followed: CommitId,
    },
    /// The versions from the first to the second come before the event, and are in no record that
    /// has arrived.
    Fill(Version, Version),
}

/// The part of a record that the decision needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived<'a> {
    pub(super) version: Version,
    pub(super) commit_id: CommitId,
    /// The version of the stream's previous record, if the record names it.
    pub(super) previous: Option<Version>,
    /// The partition that delivered the record.
    pub(super) partition: &'a PartitionId,
}

/// Decides about a record of a stream with this progress.
pub(super) fn next_step(progress: &Progress, record: Arrived<'_>) -> Step {
    let Progress::At(position) = progress else {
        return Step::Handle;
    };
    if record.version <= position.version {
        return not_after(position, record);
    }
    // The versions between the previous record and this one are in no record, so only a gap before
    // the previous record is one.
    let first = position.version.next();
    let before = record.previous.map_or(record.version, Version::next);
    if before > first {
        Step::Fill(first, Version::new(before.get() - 1))
    } else {
        Step::Handle
    }
}

fn not_after(position: &Position, record: Arrived<'_>) -> Step {
    if position.is_unhandled(record.version, record.partition) {
        return Step::Late;
    }
    match position.commit_id {
        Some(followed) if record.version == position.version && followed != record.commit_id => {
            Step::Fork { followed }
        }
        _ => Step::Duplicate,
    }
}

/// The history that a processor has followed is not the history that is stored now.
#[derive(Debug, thiserror::Error)]
#[error(
    "the history of {stream} has forked: version {version} was of commit {followed}, now it is of {found}; rebuild the read model"
)]
pub(super) struct HistoryForked {
    pub(super) stream: StreamId,
    pub(super) version: Version,
    pub(super) followed: CommitId,
    pub(super) found: CommitId,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v(version: u64) -> Version {
        Version::new(version)
    }
    const fn commit(n: u128) -> CommitId {
        CommitId::from_u128(n)
    }
    fn partition(number: u32) -> PartitionId {
        PartitionId::new("t", number)
    }
    fn arrive(progress: &Progress, version: u64, partition: &PartitionId) -> Step {
        let record = Arrived {
            version: v(version),
            commit_id: commit(u128::from(version)),
            previous: None,
            partition,
        };
        next_step(progress, record)
    }
    fn handle(progress: &mut Progress, version: u64, partition: &PartitionId) {
        let id = Some(commit(u128::from(version)));
        progress.handled(v(version), id, partition);
    }

    #[test]
    fn the_next_version_is_handled_and_what_was_handled_is_dropped() {
        let (mut progress, p) = (Progress::NoBase, partition(0));
        assert_eq!(arrive(&progress, 4, &p), Step::Handle);
        handle(&mut progress, 4, &p);
        assert_eq!(arrive(&progress, 5, &p), Step::Handle);
        assert_eq!(arrive(&progress, 4, &p), Step::Duplicate);
        assert_eq!(arrive(&progress, 3, &p), Step::Duplicate);
        assert_eq!(arrive(&progress, 8, &p), Step::Fill(v(5), v(7)));
    }

    #[test]
    fn a_gap_that_the_record_explains_is_none() {
        let (mut progress, p) = (Progress::NoBase, partition(0));
        handle(&mut progress, 4, &p);
        let mut record = Arrived {
            version: v(9),
            commit_id: commit(9),
            previous: Some(v(4)),
            partition: &p,
        };
        assert_eq!(next_step(&progress, record), Step::Handle);
        record.previous = Some(v(6));
        assert_eq!(next_step(&progress, record), Step::Fill(v(5), v(6)));
        record.previous = Some(v(0));
        assert_eq!(next_step(&progress, record), Step::Handle);
    }

    #[test]
    fn a_version_of_a_gap_that_was_passed_is_late_once() {
        let (mut progress, p) = (Progress::NoBase, partition(0));
        handle(&mut progress, 2, &p);
        progress.passed(v(3), v(5));
        handle(&mut progress, 6, &p);
        assert_eq!(arrive(&progress, 4, &p), Step::Late);
        handle(&mut progress, 4, &p);
        assert_eq!(arrive(&progress, 4, &p), Step::Duplicate);
        assert_eq!(arrive(&progress, 3, &p), Step::Late);
        assert_eq!(arrive(&progress, 5, &p), Step::Late);
        assert_eq!(arrive(&progress, 2, &p), Step::Duplicate);
        assert_eq!(arrive(&progress, 7, &p), Step::Handle);
    }

    #[test]
    fn versions_before_the_first_one_seen_are_late_if_they_come_from_another_partition() {
        let (mut progress, old, new) = (Progress::NoBase, partition(0), partition(3));
        // The topic has grown: the newest record is in another partition than those before it.
        handle(&mut progress, 6, &new);
        assert_eq!(arrive(&progress, 5, &new), Step::Duplicate);
        for version in 1..=5 {
            assert_eq!(arrive(&progress, version, &old), Step::Late, "{version}");
            handle(&mut progress, version, &old);
            assert_eq!(arrive(&progress, version, &old), Step::Duplicate);
        }
        assert_eq!(arrive(&progress, 7, &new), Step::Handle);
    }

    #[test]
    fn late_versions_of_two_partitions_are_not_duplicates_of_each_other() {
        let (mut progress, newest) = (Progress::NoBase, partition(5));
        // The topic has grown twice: versions 1 and 2 are in the first partition, 3 to 5 in the
        // second, and 6 in the third, which is the first to deliver.
        let (oldest, middle) = (partition(0), partition(3));
        handle(&mut progress, 6, &newest);
        for (version, from) in [(3, &middle), (1, &oldest), (4, &middle), (2, &oldest)] {
            assert_eq!(arrive(&progress, version, from), Step::Late, "{version}");
            handle(&mut progress, version, from);
            for again in [&oldest, &middle, &newest] {
                assert_eq!(arrive(&progress, version, again), Step::Duplicate);
            }
        }
        assert_eq!(arrive(&progress, 5, &newest), Step::Duplicate);
        assert_eq!(arrive(&progress, 5, &middle), Step::Late);
    }

    #[test]
    fn a_late_version_of_a_gap_leaves_those_before_the_first_one_seen_as_they_are() {
        let (mut progress, old, new) = (Progress::NoBase, partition(0), partition(3));
        handle(&mut progress, 3, &new);
        progress.passed(v(4), v(5));
        handle(&mut progress, 6, &new);
        assert_eq!(arrive(&progress, 5, &new), Step::Late);
        handle(&mut progress, 5, &new);
        for version in [1, 2] {
            assert_eq!(arrive(&progress, version, &old), Step::Late, "{version}");
            handle(&mut progress, version, &old);
        }
        assert_eq!(arrive(&progress, 4, &old), Step::Late);
    }

    #[test]
    fn a_partition_that_repeats_older_versions_repeats_what_was_handled() {
        let (mut progress, old, new) = (Progress::NoBase, partition(0), partition(3));
        handle(&mut progress, 9, &new);
        // The first record after the committed offset is of version 4: the others were handled by
        // an earlier process, and a publisher has sent them twice.
        handle(&mut progress, 4, &old);
        for version in 1..=4 {
            assert_eq!(arrive(&progress, version, &old), Step::Duplicate);
        }
        assert_eq!(arrive(&progress, 5, &old), Step::Late);
    }

    #[test]
    fn a_version_of_another_commit_is_a_fork() {
        let (mut progress, p) = (Progress::NoBase, partition(0));
        progress.handled(v(4), Some(commit(77)), &p);
        let followed = commit(77);
        assert_eq!(arrive(&progress, 4, &p), Step::Fork { followed });
    }

    #[test]
    fn many_gaps_take_bounded_space_and_drop_no_event() {
        let (mut progress, p) = (Progress::NoBase, partition(0));
        handle(&mut progress, 1, &p);
        for n in 1..200 {
            progress.passed(v(2 * n), v(2 * n));
            handle(&mut progress, 2 * n + 1, &p);
        }
        for n in 1..200 {
            assert_eq!(arrive(&progress, 2 * n, &p), Step::Late, "{n}");
        }
    }
}
