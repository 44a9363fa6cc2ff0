//! The problems that a schema check finds, each with what to do about it.
use foldstream::{CodecError, InvalidUpcasters};
use std::{error::Error, fmt, io, path::PathBuf};

/// One problem that a schema check found.
///
/// The message of each variant says what to do. [`SchemaError::problems`] lists the problems of a
/// check.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaProblem {
    /// The shape of a payload is not what was recorded for its schema version.
    #[error(
        "the shape of {event} has changed, but events are stored in the old one:\n    recorded  {recorded}\n    now       {found}\n  Raise the version by `#[event(version = ...)]` and add an upcaster. If this version was never stored anywhere, \
         delete its line and its golden payloads, and record it again"
    )]
    Changed {
        /// The event and its version.
        event: String,
        /// The shape recorded in `TYPES`.
        recorded: String,
        /// The shape in this build.
        found: String,
    },
    /// A recorded event is not in the code, and no upcaster renames or retires it.
    #[error(
        "{event} is recorded, but this build has no such event: if the variant was renamed, keep its stored name by \
         `#[event(name = \"...\")]`; else add an upcaster that renames or retires it. Or its enum is not in the check"
    )]
    Vanished {
        /// The event and its version.
        event: String,
    },
    /// A schema version below an event's newest one has no upcaster, although it was not recorded.
    #[error(
        "{event} has no upcaster, and newer versions of it are stored: a store may hold events of an older build. Add an \
         upcaster from version {from}, or say `.never_stored({aggregate:?}, {name:?}, {from})` if no build ever stored it"
    )]
    MissingStep {
        /// The event and its version.
        event: String,
        /// The aggregate type of the event.
        aggregate: String,
        /// The stored name of the event.
        name: String,
        /// The version without an upcaster.
        from: u16,
    },
    /// A version was declared as never stored, but something shows that it was stored.
    #[error(
        "{event} is said never to have been stored, but {reason}: remove its `.never_stored(..)`"
    )]
    NotNeverStored {
        /// The event and its version.
        event: String,
        /// The evidence that the version was stored.
        reason: &'static str,
    },
    /// An upcaster starts from the version that this build writes.
    #[error(
        "an upcaster starts from {event}, which this build writes: no reader would see what is stored. Remove the upcaster, \
         or raise the version by `#[event(version = ...)]`"
    )]
    LiftedAway {
        /// The event and its version.
        event: String,
    },
    /// The shape of a state in snapshots is not what was recorded for its state version.
    #[error(
        "the shape of the state of {state} has changed, but snapshots are stored in the old one:\n    recorded  {recorded}\n    now       {found}\n  Raise its `STATE_VERSION`: snapshots of another version are ignored and replaced. If this version was \
         never stored anywhere, delete its line and its golden payloads, and record it again"
    )]
    StateChanged {
        /// The state and its version.
        state: String,
        /// The shape recorded in `TYPES`.
        recorded: String,
        /// The shape in this build.
        found: String,
    },
    /// The recorded state version is newer than the one that this build writes.
    #[error(
        "{state} is recorded, but this build's STATE_VERSION is {current}: a state version never goes back, since snapshots \
         of an earlier use of the number may be stored"
    )]
    StateVersionLowered {
        /// The state and its version.
        state: String,
        /// The state version that this build writes.
        current: u32,
    },
    /// A recorded state is not in the check.
    #[error(
        "{state} is recorded, but no state of {aggregate} is in the check: add it by `with_snapshots`. If the aggregate has \
         no snapshots any more, delete the line"
    )]
    StateVanished {
        /// The state and its version.
        state: String,
        /// The aggregate type of the state.
        aggregate: String,
    },
    /// A golden state of the current version cannot be read.
    #[error("{} cannot be read by this build: raise `STATE_VERSION`, and put a payload of the new version there", .file.display())]
    StateUnreadable {
        /// The path of the golden state.
        file: PathBuf,
        /// The error of its deserialization.
        #[source]
        source: serde_json::Error,
    },
    /// This build writes a golden state of its own version differently.
    #[error(
        "this build writes {} differently:\n    golden    {golden}\n    now       {written}\n  If the payload is as it is stored, raise `STATE_VERSION`",
        .file.display()
    )]
    StateRewritten {
        /// The path of the golden state.
        file: PathBuf,
        /// The text of the golden state.
        golden: String,
        /// The text that this build writes.
        written: String,
    },
    /// Two types of the same aggregate type were added.
    #[error(
        "{what} of the aggregate type {aggregate:?} were added twice: add each aggregate type once"
    )]
    AddedTwice {
        /// The aggregate type in question.
        aggregate: String,
        /// The kind that was added twice: `events` or `snapshots`.
        what: &'static str,
    },
    /// The check has nothing to compare: neither events nor snapshots were added.
    #[error(
        "the check has neither events nor snapshots: add them by `with_events` and `with_snapshots`"
    )]
    Empty,
    /// The format of the file `TYPES` is unknown to this build.
    #[error(
        "{} is of format {found}, and this build knows formats 1 to {known}: use the release of foldstream-testkit that wrote \
         it, or a newer one", .file.display()
    )]
    Format {
        /// The path of the file `TYPES`.
        file: PathBuf,
        /// The format that the file states.
        found: String,
        /// The newest format that this build knows.
        known: u32,
    },
    /// An older schema version has no upcaster.
    #[error(
        "{event} is recorded and this build writes version {current}: add an upcaster from version {from}"
    )]
    NoUpcaster {
        /// The event and its recorded version.
        event: String,
        /// The version without an upcaster.
        from: u16,
        /// The version that this build writes.
        current: u16,
    },
    /// The recorded schema version is newer than the one that this build writes.
    #[error(
        "{event} is recorded, but this build writes version {current}: a schema version never goes back"
    )]
    VersionLowered {
        /// The event and its recorded version.
        event: String,
        /// The version that this build writes.
        current: u16,
    },
    /// An event or a version of an event is not recorded yet.
    #[error(
        "{event} is not recorded: run with FOLDSTREAM_BLESS=1, or --write, and check in what it writes"
    )]
    Unrecorded {
        /// The event and its version.
        event: String,
    },
    /// The shape of a place cannot be traced.
    #[error(
        "{place} cannot be traced: {reason}. Offer a text that it accepts by `with_text`, or let golden payloads alone \
         guard it by `allow_untraced(\"{place}\")`, or the whole payload"
    )]
    Untraceable {
        /// The event and the place within its payload.
        place: String,
        /// The reason that the trace ended.
        reason: String,
    },
    /// A line of `TYPES` was changed since it was recorded.
    #[error("line {line} of {} is not as it was written: {reason}. Restore it from version control", .file.display())]
    Malformed {
        /// The path of the file `TYPES`.
        file: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// The difference from a recorded line.
        reason: &'static str,
    },
    /// A recorded version has no golden payload.
    #[error("{event} has no golden payload: put one, as it is stored, into {}", .file.display())]
    NoGolden {
        /// The event and its version.
        event: String,
        /// The path at which the golden payload belongs.
        file: PathBuf,
        /// Set if recording writes this golden payload. That is so only for a version that this
        /// build writes and whose shape can be traced.
        is_made: bool,
    },
    /// Golden payloads alone guard a payload, but the check has no directory of them.
    #[error(
        "{event} cannot be traced and is guarded by golden payloads alone: name their directory by `with_golden`"
    )]
    NoGoldenDirectory {
        /// The event and its version.
        event: String,
    },
    /// A golden payload cannot be read, so stored events of its version cannot be read either.
    #[error("{} cannot be read by this build: neither can events that were stored so", .file.display())]
    Unreadable {
        /// The path of the golden payload.
        file: PathBuf,
        /// The error of its decoding.
        #[source]
        source: CodecError,
    },
    /// This build writes a golden payload of its own version differently.
    #[error(
        "this build writes {} differently:\n    golden    {golden}\n    now       {written}\n  If the payload is as it is stored, raise the schema version",
        .file.display()
    )]
    Rewritten {
        /// The path of the golden payload.
        file: PathBuf,
        /// The text of the golden payload.
        golden: String,
        /// The text that this build writes.
        written: String,
    },
    /// A file is not a golden payload of any recorded version.
    #[error("{} is of no recorded event: its name must be `<aggregate>.<name>@<version>.json`, or end in `-<anything>.json`", .file.display())]
    StrayGolden {
        /// The path of the file.
        file: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{} cannot be read or written", .file.display())]
    Io {
        /// The path of the file.
        file: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Upcasters were given for an event name that its event type lifts itself.
    #[error("the upcasters cannot be used")]
    Upcasters {
        /// The error that names the event and says what to do.
        #[source]
        source: InvalidUpcasters,
    },
    /// The argument of the command line is neither `--check` nor `--write`.
    #[error("say --check, to compare, or --write, to record what is new")]
    Usage,
}

impl SchemaProblem {
    pub(super) const fn is_solved_by_recording(&self) -> bool {
        matches!(
            self,
            Self::Unrecorded { .. } | Self::NoGolden { is_made: true, .. }
        )
    }
}

/// All problems that a schema check found, at least one.
///
/// Its `Display` output lists every problem with its causes.
/// [`Schema::check`](super::Schema::check) returns it.
#[derive(Debug)]
pub struct SchemaError {
    problems: Vec<SchemaProblem>,
}

impl SchemaError {
    pub(super) fn unless_empty(problems: Vec<SchemaProblem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        Err(Self { problems })
    }
    /// Returns the problems in the order in which the check found them.
    pub fn problems(&self) -> &[SchemaProblem] {
        &self.problems
    }
}

impl From<SchemaProblem> for SchemaError {
    fn from(problem: SchemaProblem) -> Self {
        Self {
            problems: vec![problem],
        }
    }
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the schema check failed")?;
        for problem in &self.problems {
            write!(f, "\n- {problem}")?;
            // Several problems have no single source, so each is shown with its whole chain of
            // causes.
            let mut cause = problem.source();
            while let Some(source) = cause {
                write!(f, ": {source}")?;
                cause = source.source();
            }
        }
        Ok(())
    }
}
impl Error for SchemaError {}
