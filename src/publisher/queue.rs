//! The messages of one stream that are ready to be sent, and the commit ends among them.
use crate::{Timestamp, Version, control::Watermark, ports::Message};
use std::collections::VecDeque;

/// The most bytes of a run. A single message may be larger.
pub(super) const RUN_BYTES: usize = 1 << 20;

/// The messages of a commit, as they are sent.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The version and the size of each message. Private events have none.
    pub(super) messages: Vec<(Version, usize, Message)>,
    pub(super) end: CommitEnd,
}

/// The end of a commit whose messages are in the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CommitEnd {
    /// The version of the commit's first event.
    pub(super) first: Version,
    pub(super) recorded_at: Timestamp,
    /// The watermark once all messages of the commit are acknowledged.
    pub(super) watermark: Watermark,
}

/// The messages that are not acknowledged yet, in version order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    messages: Vec<Message>,
    /// The version and size of each message.
    of: Vec<(Version, usize)>,
    /// The number of messages, from the first, that are acknowledged.
    done: usize,
    /// The bytes of the messages that are not acknowledged.
    bytes: usize,
    /// The commit ends, each with the number of messages up to it.
    ends: VecDeque<(usize, CommitEnd)>,
    /// The number of messages up to the last commit end that was taken.
    last_end: usize,
}

impl Queue {
    pub(super) fn push(&mut self, commit: Prepared) {
        for (version, bytes, message) in commit.messages {
            self.bytes += bytes;
            self.of.push((version, bytes));
            self.messages.push(message);
        }
        self.ends.push_back((self.messages.len(), commit.end));
    }
    /// Forgets what is not acknowledged.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.done == self.messages.len()
    }
    /// Returns true if no more messages would fit into the next run of this length.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        self.messages.len() - self.done >= limit || self.bytes >= RUN_BYTES
    }
    /// Returns the version of the next message.
    pub(super) fn next_version(&self) -> Option<Version> {
        self.of.get(self.done).map(|(version, _)| *version)
    }
    /// Returns the time of the oldest commit that is not acknowledged.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.ends.front().map(|(_, end)| end.recorded_at)
    }
    /// Returns the number of messages that complete a commit of which others are acknowledged. It
    /// is 0 if what is acknowledged ends with a commit.
    pub(super) fn rest_of_commit(&self) -> usize {
        match self.ends.front() {
            Some((after, _)) if self.done > self.last_end => after - self.done,
            _ => 0,
        }
    }

    /// Returns the number of messages of the next run. The run ends with a commit if possible, so
    /// that the watermark can move after it.
    pub(super) fn next_run(&self, limit: usize) -> usize {
        let (mut count, mut bytes, mut to_end) = (0, 0, 0);
        let mut ends = self.ends.iter().map(|(after, _)| *after).peekable();
        for (_, size) in &self.of[self.done..] {
            if count >= limit.max(1) || count > 0 && bytes + size > RUN_BYTES {
                break;
            }
            count += 1;
            bytes += size;
            while ends.next_if(|end| *end < self.done + count).is_some() {}
            if ends.peek() == Some(&(self.done + count)) {
                to_end = count;
            }
        }
        if to_end > 0 { to_end } else { count }
    }

    /// Returns the next messages, with the time of sending.
    pub(super) fn run(&mut self, count: usize, now: Timestamp) -> &[Message] {
        let end = self.messages.len().min(self.done + count);
        let run = &mut self.messages[self.done..end];
        for message in &mut *run {
            message.timestamp = now;
        }
        run
    }
    /// Returns the versions and bytes of the next messages.
    pub(super) fn described(&self, count: usize) -> impl Iterator<Item = (Version, usize)> + '_ {
        self.of.iter().skip(self.done).take(count).copied()
    }

    /// Notes that the next messages are acknowledged.
    pub(super) fn acknowledge(&mut self, count: usize) {
        let count = count.min(self.messages.len() - self.done);
        let bytes = self.described(count).map(|(_, bytes)| bytes);
        self.bytes -= bytes.sum::<usize>();
        self.done += count;
    }

    /// Returns the next commit end before which everything is acknowledged.
    pub(super) fn take_end(&mut self) -> Option<CommitEnd> {
        let (after, end) = *self.ends.front()?;
        if after > self.done {
            return None;
        }
        self.ends.pop_front();
        self.last_end = after;
        if self.ends.is_empty() && self.is_empty() {
            self.clear();
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CommitId;

    /// Creates a commit with one message of this size per version; 0 is a private event.
    fn commit(first: u64, sizes: &[usize]) -> Prepared {
        let versions = (first..).map(Version::new);
        let messages = versions.zip(sizes).filter(|(_, size)| **size > 0);
        let messages = messages
            .map(|(version, size)| (version, *size, Message::new("t", Timestamp::default())));
        let last = Version::new(first + sizes.len() as u64 - 1);
        Prepared {
            messages: messages.collect(),
            end: CommitEnd {
                first: Version::new(first),
                recorded_at: Timestamp::default(),
                watermark: Watermark::new(last, CommitId::from_u128(1)),
            },
        }
    }
    fn ends(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.take_end())
            .map(|end| end.watermark.version.get())
            .collect()
    }

    #[test]
    fn a_run_ends_with_a_commit_if_one_ends_within_its_limits() {
        let mut queue = Queue::default();
        queue.push(commit(1, &[10, 10]));
        queue.push(commit(3, &[10, 10, 10]));
        assert_eq!(
            [1, 2, 3, 4, 5, 9].map(|limit| queue.next_run(limit)),
            [1, 2, 2, 2, 5, 5]
        );
        queue.acknowledge(1);
        assert_eq!((ends(&mut queue), queue.rest_of_commit()), (vec![], 1));
        queue.acknowledge(1);
        assert_eq!((ends(&mut queue), queue.rest_of_commit()), (vec![2], 0));
        assert_eq!(queue.next_version(), Some(Version::new(3)));
        queue.acknowledge(3);
        assert_eq!((ends(&mut queue), queue.is_empty()), (vec![5], true));
    }

    #[test]
    fn a_run_has_a_mebibyte_or_one_message() {
        let mut queue = Queue::default();
        queue.push(commit(1, &[RUN_BYTES / 2, RUN_BYTES / 2, 1]));
        queue.push(commit(4, &[3 * RUN_BYTES, 1]));
        assert!(queue.is_full(1000));
        for expected in [2, 1, 1, 1] {
            assert_eq!(queue.next_run(1000), expected);
            queue.acknowledge(expected);
        }
        assert_eq!(ends(&mut queue), [3, 5]);
    }

    #[test]
    fn private_commits_end_once_what_is_before_them_is_acknowledged() {
        let mut queue = Queue::default();
        queue.push(commit(1, &[0]));
        assert_eq!(ends(&mut queue), [1]);
        queue.push(commit(2, &[1, 0]));
        queue.push(commit(4, &[0, 0]));
        assert_eq!(ends(&mut queue), [0_u64; 0]);
        queue.acknowledge(1);
        assert_eq!(ends(&mut queue), [3, 5]);
    }
}
