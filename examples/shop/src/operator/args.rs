//! The command line of the operator.
use super::{CommandError, Target};
use clap::{Args, Subcommand};
use foldstream::{
    StreamId, Timestamp,
    operate::{Fingerprint, JobId, Reason},
};
use std::num::NonZeroU32;

/// A command of the operator.
#[derive(Clone, Debug, Subcommand)]
pub enum OperatorCommand {
    /// Lists the processors with their state, lag and instances.
    Processors,
    /// Lists the streams of a processor that wait after an event that failed.
    Parked {
        /// The processor, as in sales.
        processor: String,
    },
    /// Shows dead letters: events that failed and were set aside.
    #[command(subcommand)]
    Letters(LetterCommand),
    /// Has events that were set aside handled again, in order.
    Redrive(RedriveArgs),
    /// Shows, continues or aborts redrives.
    #[command(subcommand)]
    Jobs(JobCommand),
    /// Gives an event that was set aside up for good. What waits after it goes on.
    Discard(EventArgs),
    /// Passes over an event, also one that has not failed yet or halts its processor.
    Skip(EventArgs),
    /// Lets no instance of a processor begin to handle an event.
    Pause {
        /// The processor, as in sales.
        processor: String,
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
    /// Ends a pause.
    Resume {
        /// The processor, as in sales.
        processor: String,
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
    /// Lists the circuit breakers that processes share, with their votes. Takes some seconds while
    /// there are votes, because a vote counts only if it is renewed.
    Breakers,
    /// Shows and repairs what publishes the events.
    #[command(subcommand)]
    Publisher(PublisherCommand),
    /// Lists who did what on a day, and why; the newest first.
    Audit(AuditArgs),
}

/// A command about dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum LetterCommand {
    /// Lists dead letters.
    List {
        /// The processor; all processors without it.
        processor: Option<String>,
    },
    /// Groups dead letters by what has most likely caused them.
    Groups {
        /// The processor; all processors without it.
        processor: Option<String>,
    },
    /// Shows one dead letter with its event and its whole error.
    Show {
        /// The processor, as in sales.
        processor: String,
        /// The event, as in cart#c0001@3, or the record, as in `GlobalEvents[2]@17`.
        event: Target,
    },
}

/// The operator who acts, and why. Both are in the audit.
#[derive(Clone, Debug, Args)]
pub struct By {
    /// The reason, for later readers.
    #[arg(long, value_name = "TEXT")]
    pub why: String,
    /// The name of the operator.
    #[arg(long, value_name = "NAME", env = "USER")]
    pub who: Option<String>,
}

impl By {
    /// Returns operator and reason for the audit.
    ///
    /// # Errors
    /// - [`CommandError::Nobody`] if no operator is named.
    /// - [`CommandError::Operate`] if one of them is empty.
    pub fn reason(&self) -> Result<Reason, CommandError> {
        let who = self.who.as_deref().ok_or(CommandError::Nobody)?;
        Ok(Reason::new(who, &*self.why)?)
    }
}

/// The arguments of a redrive.
#[derive(Clone, Debug, Args)]
pub struct RedriveArgs {
    /// The processor, as in sales.
    pub processor: String,
    /// The events to handle again.
    #[command(subcommand)]
    pub target: RedriveTarget,
}

/// The events that a redrive selects.
#[derive(Clone, Debug, Subcommand)]
pub enum RedriveTarget {
    /// One event, or the stream that waits after it.
    Event {
        /// The event, as in cart#c0001@3, or the record, as in `GlobalEvents[2]@17`.
        event: Target,
        /// The way in which they are redriven.
        #[command(flatten)]
        how: How,
    },
    /// All of one stream.
    Stream {
        /// The stream, as in cart#c0001.
        stream: StreamId,
        /// The way in which they are redriven.
        #[command(flatten)]
        how: How,
    },
    /// All with one fingerprint.
    Group {
        /// The fingerprint, as `letters groups` shows it.
        fingerprint: Fingerprint,
        /// The way in which they are redriven.
        #[command(flatten)]
        how: How,
    },
    /// All of the processor.
    All {
        /// The way in which they are redriven.
        #[command(flatten)]
        how: How,
    },
}

/// The way in which events are redriven.
#[derive(Clone, Debug, Args)]
pub struct How {
    /// Shows how much would be redriven, and does nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// The most events per second that are asked for.
    #[arg(long, value_name = "EVENTS")]
    pub rate: Option<NonZeroU32>,
    /// The reason, for later readers.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    pub why: Option<String>,
    /// The name of the operator.
    #[arg(long, value_name = "NAME", env = "USER")]
    pub who: Option<String>,
}

/// A command about redrives.
#[derive(Clone, Debug, Subcommand)]
pub enum JobCommand {
    /// Lists the redrives of a processor, the newest first.
    List {
        /// The processor, as in sales.
        processor: String,
    },
    /// Continues a redrive whose process was stopped.
    Run {
        /// The processor, as in sales.
        processor: String,
        /// The id of the redrive.
        job: JobId,
    },
    /// Aborts a redrive. What was begun is ended.
    Abort {
        /// The processor, as in sales.
        processor: String,
        /// The id of the redrive.
        job: JobId,
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
}

/// A command about publishers, streams that they publish, and topics.
#[derive(Clone, Debug, Subcommand)]
pub enum PublisherCommand {
    /// Lists the running publishers with their numbers, and what the last reconciliation found.
    Status,
    /// Lists the streams, each with the version up to which it is published.
    Streams,
    /// Lists the streams that were set aside, with the last error.
    Dirty,
    /// Lists the topics with their pinned numbers of partitions.
    Topics,
    /// Tries the streams that were set aside again.
    Sweep {
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
    /// Compares all streams with the topic, and publishes those that are behind.
    Reconcile {
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
    /// Keeps an event out of the topic that cannot be published. What waits after it goes on.
    Skip {
        /// The stream, as in cart#c0001.
        stream: StreamId,
        /// The version of the event.
        version: u64,
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
    /// Accepts that a topic has another number of partitions.
    AcceptPartitions {
        /// The name of the topic.
        topic: String,
        /// The number that the topic has now.
        partitions: u32,
        /// The operator who acts.
        #[command(flatten)]
        by: By,
    },
}

/// One event of one processor.
#[derive(Clone, Debug, Args)]
pub struct EventArgs {
    /// The processor, as in sales.
    pub processor: String,
    /// The event, as in cart#c0001@3, or the record, as in `GlobalEvents[2]@17`.
    pub event: Target,
    /// The operator who acts.
    #[command(flatten)]
    pub by: By,
}

/// The arguments of the audit.
#[derive(Clone, Debug, Args)]
pub struct AuditArgs {
    /// A time on the day, as in 2026-01-31T00:00:00Z. Default: today, in UTC.
    #[arg(long, value_name = "TIME")]
    pub day: Option<Timestamp>,
}
