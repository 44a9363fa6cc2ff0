//! What a schema check finds, and what to do about it.
use foldstream::{CodecError, InvalidUpcasters};
use std::{error::Error, fmt, io, path::PathBuf};

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaProblem {
    /// A payload's shape is not what was recorded for its schema version.
    #[error(
        "the shape of {event} has changed, but events are stored in the old one:\n    recorded  {recorded}\n    now       {found}\n  Raise the version by `#[event(version = ...)]` and add an upcaster. If this version was never stored anywhere, \
         delete its line and its golden payloads, and record it again"
    )]
    Changed {
        /// Which.
        event: String,
        /// The shape in `TYPES`.
        recorded: String,
        /// The shape of this build.
        found: String,
    },
    /// An event that was recorded is not in the code, and no upcaster takes it anywhere.
    #[error(
        "{event} is recorded, but this build has no such event: if the variant was renamed, keep its stored name by \
         `#[event(name = \"...\")]`; else add an upcaster that renames or retires it. Or its enum is not in the check"
    )]
    Vanished {
        /// Which.
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
        /// The aggregate type.
        aggregate: String,
        /// The stored name of the event.
        name: String,
        /// The version without an upcaster.
        from: u16,
    },
    /// A version is said never to have been stored, and something else says that it was.
    #[error(
        "{event} is said never to have been stored, but {reason}: remove its `.never_stored(..)`"
    )]
    NotNeverStored {
        /// The event and its version.
        event: String,
        /// What says so.
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
        /// The shape in `TYPES`.
        recorded: String,
        /// The shape of this build.
        found: String,
    },
    /// A newer state version was recorded than this build writes.
    #[error(
        "{state} is recorded, but this build's STATE_VERSION is {current}: a state version never goes back, since snapshots \
         of an earlier use of the number may be stored"
    )]
    StateVersionLowered {
        /// The state and its version.
        state: String,
        /// What this build writes.
        current: u32,
    },
    /// A state that was recorded is not in the check.
    #[error(
        "{state} is recorded, but no state of {aggregate} is in the check: add it by `with_snapshots`. If the aggregate has \
         no snapshots any more, delete the line"
    )]
    StateVanished {
        /// The state and its version.
        state: String,
        /// The aggregate type.
        aggregate: String,
    },
    /// A golden state of the current version cannot be read.
    #[error("{} cannot be read by this build: raise `STATE_VERSION`, and put a payload of the new version there", .file.display())]
    StateUnreadable {
        /// The golden state.
        file: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// This build writes a golden state of its own version differently.
    #[error(
        "this build writes {} differently:\n    golden    {golden}\n    now       {written}\n  If the payload is as it is stored, raise `STATE_VERSION`",
        .file.display()
    )]
    StateRewritten {
        /// The golden state.
        file: PathBuf,
        /// Its text.
        golden: String,
        /// What this build writes.
        written: String,
    },
    /// Two types of one aggregate type were added.
    #[error(
        "{what} of the aggregate type {aggregate:?} were added twice: add each aggregate type once"
    )]
    AddedTwice {
        /// The aggregate type.
        aggregate: String,
        /// `events` or `snapshots`.
        what: &'static str,
    },
    /// Nothing was added, so nothing would be checked.
    #[error(
        "the check has neither events nor snapshots: add them by `with_events` and `with_snapshots`"
    )]
    Empty,
    /// The file is of a format that this build does not know.
    #[error(
        "{} is of format {found}, and this build knows formats 1 to {known}: use the release of foldstream-testkit that wrote \
         it, or a newer one", .file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// The format that it says it has.
        found: String,
        /// The newest format that this build knows.
        known: u32,
    },
    /// An older schema version has no upcaster.
    #[error(
        "{event} is recorded and this build writes version {current}: add an upcaster from version {from}"
    )]
    NoUpcaster {
        /// Which.
        event: String,
        /// Its version.
        from: u16,
        /// What this build writes.
        current: u16,
    },
    /// A newer schema version was recorded than this build writes.
    #[error(
        "{event} is recorded, but this build writes version {current}: a schema version never goes back"
    )]
    VersionLowered {
        /// Which.
        event: String,
        /// What this build writes.
        current: u16,
    },
    /// An event or a version is new.
    #[error(
        "{event} is not recorded: run with FOLDSTREAM_BLESS=1, or --write, and check in what it writes"
    )]
    Unrecorded {
        /// Which.
        event: String,
    },
    /// A shape cannot be found out.
    #[error(
        "{place} cannot be traced: {reason}. Offer a text that it accepts by `with_text`, or let golden payloads alone \
         guard it by `allow_untraced(\"{place}\")`, or the whole payload"
    )]
    Untraceable {
        /// The event, and where in it.
        place: String,
        /// Why.
        reason: String,
    },
    /// A line of `TYPES` is not as it was written.
    #[error("line {line} of {} is not as it was written: {reason}. Restore it from version control", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no golden payload of a recorded version.
    #[error("{event} has no golden payload: put one, as it is stored, into {}", .file.display())]
    NoGolden {
        /// Which.
        event: String,
        /// Where it belongs.
        file: PathBuf,
        /// Whether recording makes one: only for a version that this build writes, and whose shape it can trace.
        is_made: bool,
    },
    /// Golden payloads alone guard a payload, but there is no directory of them.
    #[error(
        "{event} cannot be traced and is guarded by golden payloads alone: name their directory by `with_golden`"
    )]
    NoGoldenDirectory {
        /// Which.
        event: String,
    },
    /// A golden payload cannot be read: neither can what is stored.
    #[error("{} cannot be read by this build: neither can events that were stored so", .file.display())]
    Unreadable {
        /// The golden payload.
        file: PathBuf,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// This build writes a golden payload of its own version differently.
    #[error(
        "this build writes {} differently:\n    golden    {golden}\n    now       {written}\n  If the payload is as it is stored, raise the schema version",
        .file.display()
    )]
    Rewritten {
        /// The golden payload.
        file: PathBuf,
        /// Its text.
        golden: String,
        /// What this build writes.
        written: String,
    },
    /// A golden payload belongs to no recorded version.
    #[error("{} is of no recorded event: its name must be `<aggregate>.<name>@<version>.json`, or end in `-<anything>.json`", .file.display())]
    StrayGolden {
        /// The file.
        file: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{} cannot be read or written", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Upcasters were given for a name that its event type lifts itself.
    #[error("the upcasters cannot be used")]
    Upcasters {
        /// The name, and what to do about it.
        #[source]
        source: InvalidUpcasters,
    },
    /// The command line was not understood.
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

/// Everything that a schema check found wrong; never empty.
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
    /// One by one.
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
            // Several problems have no single source: each is shown whole.
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
