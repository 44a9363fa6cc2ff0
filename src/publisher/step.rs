//! The steps of publishing one stream, and the states between them.
use super::PublishError;
use crate::{
    CommitId, Version,
    control::Watermark,
    ports::{Commit, CommitKey},
};

/// The next step of the driver.
#[derive(Debug)]
pub(super) enum Step {
    /// Read the row of the watermark.
    ReadWatermark,
    /// Read the newest commit that ends at or below this version.
    Compare(Version),
    /// Look whether the open read is at its end, without waiting.
    Peek,
    /// Take the next commit from the open read, or from a read after [`Machine::read_from`].
    Read,
    /// Make the messages of a commit.
    Prepare(Commit),
    /// Send the next messages of the queue, this many.
    Send(usize),
    /// Move the watermark.
    Advance(Watermark),
    /// Remove the markers of these commits.
    Clear(Vec<CommitKey>),
    /// Read which events after the watermark operators have skipped: the event of this version
    /// cannot be published.
    ReadSkips,
    /// Wait before the stream is read again: it does not show what a notice names.
    Wait(PublishError),
    /// The work ends here.
    Done(Result<(), PublishError>),
}

#[derive(Debug)]
pub(super) enum Phase {
    /// The watermark is not known.
    Row,
    /// The watermark is to be compared with the stored history.
    Compare(Then),
    Work,
}

/// The way on if the watermark fits the stored history.
#[derive(Debug)]
pub(super) enum Then {
    /// The work begins. A watermark from memory may be wrong where its row is right.
    Work { from_memory: bool },
    /// A notice names what the store does not show.
    NotVisible,
    /// The history itself cannot be read.
    Fail(PublishError),
}

/// The judgement of the notices about the stored history.
pub(super) enum Check {
    Fits,
    Compare,
    Forked((Version, CommitId)),
}

/// The place of a commit that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// The commit is the next one.
    Next,
    /// The commit is to be passed over.
    Known,
}
