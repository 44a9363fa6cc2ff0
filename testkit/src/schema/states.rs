//! The states in snapshots: one recorded shape per `STATE_VERSION`.
use super::{Recorded, Schema, SchemaProblem, TracedPayload, encoded_json, golden, trace};
use foldstream::{DomainEvent, Snapshot};
use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

/// The state of one aggregate type, without its Rust type.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) aggregate: &'static str,
    version: u32,
    trace: fn(&[String]) -> TracedPayload,
    /// Decodes a stored state and encodes it again.
    rewrite: fn(&[u8]) -> Result<Vec<u8>, serde_json::Error>,
}

impl State {
    pub(super) fn of<A: Snapshot>() -> Self {
        Self {
            aggregate: A::Event::AGGREGATE,
            version: A::STATE_VERSION,
            trace: |texts| {
                let traced = trace::trace(|at| A::deserialize(at), texts)?;
                Ok((traced.nodes, encoded_json(&traced.sample)))
            },
            rewrite: |payload| {
                let state: A = serde_json::from_slice(payload)?;
                serde_json::to_vec(&state)
            },
        }
    }
}

/// One version of a state, shown `snapshot <aggregate>@<version>`. An aggregate type has no spaces,
/// so no event is shown this way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StateKey {
    pub(super) aggregate: String,
    pub(super) version: u32,
}

const PREFIX: &str = "snapshot ";

impl fmt::Display for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}@{}", self.aggregate, self.version)
    }
}

impl StateKey {
    /// Returns the key that a text shows, or `None` if the text does not name a state.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (aggregate, version) = text.strip_prefix(PREFIX)?.rsplit_once('@')?;
        let version = version.parse().ok()?;
        (!aggregate.is_empty()).then(|| Self {
            aggregate: aggregate.into(),
            version,
        })
    }

    fn golden(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{self}.json"))
    }
}

/// A state that this build stores.
pub(super) struct FoundState {
    pub(super) key: StateKey,
    pub(super) shape: String,
    is_untraced: bool,
    sample: Option<Vec<u8>>,
}

impl Schema {
    /// Returns today's states with their shapes.
    pub(super) fn found_states(&self, problems: &mut Vec<SchemaProblem>) -> Vec<FoundState> {
        let mut all = Vec::new();
        for state in &self.states {
            let key = StateKey {
                aggregate: state.aggregate.into(),
                version: state.version,
            };
            let traced = (state.trace)(&self.texts);
            match self.shape_of(&format!("{PREFIX}{}", state.aggregate), traced) {
                Ok(shape) => all.push(FoundState {
                    key,
                    shape: shape.text,
                    is_untraced: shape.is_untraced,
                    sample: shape.sample,
                }),
                Err(problem) => problems.push(problem),
            }
        }
        all
    }

    /// Compares the recorded states with those of this build.
    pub(super) fn compare_states(
        &self,
        recorded: &Recorded,
        found: &[FoundState],
        problems: &mut Vec<SchemaProblem>,
    ) {
        for FoundState { key, shape, .. } in found {
            let state = key.to_string();
            match recorded.states.get(key) {
                None => problems.push(SchemaProblem::Unrecorded { event: state }),
                Some(known) if known != shape => problems.push(SchemaProblem::StateChanged {
                    state,
                    recorded: known.clone(),
                    found: shape.clone(),
                }),
                Some(_) => {}
            }
        }
        for key in recorded.states.keys() {
            let state = key.to_string();
            let current = self.states.iter().find(|s| s.aggregate == key.aggregate);
            match current.map(|state| state.version) {
                None => problems.push(SchemaProblem::StateVanished {
                    state,
                    aggregate: key.aggregate.clone(),
                }),
                Some(current) if current < key.version => {
                    problems.push(SchemaProblem::StateVersionLowered { state, current });
                }
                Some(_) => {}
            }
        }
    }

    /// Reads the golden states, and takes their files out of `files`. Only a state that cannot be
    /// traced needs one, and only of the current version, since snapshots of other versions are
    /// ignored.
    pub(super) fn check_golden_states(
        &self,
        recorded: &Recorded,
        found: &[FoundState],
        directory: &Path,
        files: &mut BTreeSet<String>,
        problems: &mut Vec<SchemaProblem>,
    ) {
        for state in &self.states {
            let key = StateKey {
                aggregate: state.aggregate.into(),
                version: state.version,
            };
            let mine = golden::take_of(&key.to_string(), files);
            let found = found.iter().find(|found| found.key == key);
            if mine.is_empty()
                && recorded.states.contains_key(&key)
                && found.is_some_and(|found| found.is_untraced)
            {
                problems.push(SchemaProblem::NoGolden {
                    event: key.to_string(),
                    file: key.golden(directory),
                    is_made: found.is_some_and(|found| found.sample.is_some()),
                });
            }
            for name in mine {
                problems.extend(state.check_one(directory.join(name)));
            }
        }
        for key in recorded.states.keys() {
            // A golden state of an older version is never read again.
            golden::take_of(&key.to_string(), files);
        }
    }

    /// Writes golden states of those states that cannot be traced and have none.
    pub(super) fn write_golden_states(
        &self,
        found: &[FoundState],
        directory: &Path,
        files: &BTreeSet<String>,
        problems: &mut Vec<SchemaProblem>,
    ) {
        for FoundState { key, sample, .. } in found.iter().filter(|found| found.is_untraced) {
            golden::write_one(
                &key.to_string(),
                sample.as_deref(),
                directory,
                files,
                problems,
            );
        }
    }

    /// Returns a problem per state that only golden payloads can guard, for a check without a
    /// directory of them.
    pub(super) fn unguarded_states(found: &[FoundState]) -> impl Iterator<Item = SchemaProblem> {
        let unguarded = found.iter().filter(|found| found.is_untraced);
        unguarded.map(|found| SchemaProblem::NoGoldenDirectory {
            event: found.key.to_string(),
        })
    }
}

impl State {
    fn check_one(&self, file: PathBuf) -> Option<SchemaProblem> {
        let golden = match fs::read_to_string(&file) {
            Ok(golden) => golden,
            Err(source) => return Some(SchemaProblem::Io { file, source }),
        };
        let golden = golden.trim();
        match (self.rewrite)(golden.as_bytes()) {
            Ok(written) if golden::is_same(golden.as_bytes(), &written) => None,
            Ok(written) => Some(SchemaProblem::StateRewritten {
                file,
                golden: golden.into(),
                written: String::from_utf8_lossy(&written).into_owned(),
            }),
            Err(source) => Some(SchemaProblem::StateUnreadable { file, source }),
        }
    }
}
