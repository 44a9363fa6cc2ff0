//! The file `TYPES` on disk: a line for every version that was ever stored.
use super::{Found, Key, Schema, SchemaProblem, states::StateKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Display, Write as _},
    io,
    path::Path,
};

/// The text in place of a shape where only golden payloads guard a payload.
pub(super) const UNTRACED: &str = "untraced";

/// The format of the files that this build writes, and the newest that it reads. Files of format 1
/// have neither a format line nor states.
const FORMAT: u32 = 2;
/// The beginning of the line that states the format. It is a comment, so that the other lines stay
/// the same in every format.
const FORMAT_LINE: &str = "# format ";

const HEADER: &str = "\
# Every schema version of every event that was ever stored, then every STATE_VERSION of the states in snapshots, each with
# a hash and the shape of its payload: `untraced` where golden payloads alone show it.
# Written by the schema check: run its test with FOLDSTREAM_BLESS=1 to add what is new. Never change or delete a line
# whose events are stored somewhere.
";

/// The recorded shapes, by event or state and version.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    pub(super) events: BTreeMap<Key, String>,
    pub(super) states: BTreeMap<StateKey, String>,
}

/// Hashes a line with FNV-1a, which never changes and notices a line that was edited by hand or
/// badly merged.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Reads the file `TYPES`. A file that does not exist is an empty one.
pub(super) fn read(
    file: &Path,
    aggregates: &[&str],
    problems: &mut Vec<SchemaProblem>,
) -> Recorded {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Recorded::default(),
        Err(source) => {
            let file = file.to_owned();
            problems.push(SchemaProblem::Io { file, source });
            return Recorded::default();
        }
    };
    if let Some(format) = text.lines().find_map(|line| line.strip_prefix(FORMAT_LINE))
        && !(format.trim().parse()).is_ok_and(|format| (1..=FORMAT).contains(&format))
    {
        problems.push(SchemaProblem::Format {
            file: file.to_owned(),
            found: format.trim().to_owned(),
            known: FORMAT,
        });
        return Recorded::default();
    }
    let mut recorded = Recorded::default();
    for (line, number) in text.lines().zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(reason) = recorded.add(line, aggregates) {
            problems.push(SchemaProblem::Malformed {
                file: file.to_owned(),
                line: number,
                reason,
            });
        }
    }
    recorded
}

impl Recorded {
    fn add(&mut self, line: &str, aggregates: &[&str]) -> Result<(), &'static str> {
        let mut parts = line.splitn(3, "  ");
        let (Some(key), Some(sum), Some(shape)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("it is not an event, a hash and a shape, with two spaces between them");
        };
        if format!("{:016x}", hash(shape)) != sum {
            return Err("the hash is not of this shape");
        }
        let shape = shape.to_owned();
        let earlier = match StateKey::parse(key) {
            Some(state) => self.states.insert(state, shape),
            None => {
                let event = Key::parse(key, aggregates);
                let event = event.ok_or(
                    "it does not begin with <aggregate>.<name>@<version> or snapshot <aggregate>@<version>",
                )?;
                self.events.insert(event, shape)
            }
        };
        match earlier {
            None => Ok(()),
            Some(_) => Err("it is there twice"),
        }
    }
}

impl Key {
    /// Parses the key of an event. Aggregate types and names may contain dots, so the known
    /// aggregate types decide where one ends.
    pub(super) fn parse(text: &str, aggregates: &[&str]) -> Option<Self> {
        let (event, version) = text.rsplit_once('@')?;
        let of = |aggregate: &&str| event.strip_prefix(aggregate)?.strip_prefix('.');
        let known = aggregates.iter().copied().filter(|a| of(a).is_some());
        let (aggregate, name) = match known.max_by_key(|a| a.len()) {
            Some(aggregate) => (aggregate, of(&aggregate)?),
            None => event.split_once('.')?,
        };
        let version = version.parse().ok()?;
        let is_whole = !aggregate.is_empty() && !name.is_empty();
        is_whole.then(|| Self {
            aggregate: aggregate.into(),
            name: name.into(),
            version,
        })
    }
}

pub(super) fn write(file: &Path, recorded: &Recorded) -> Result<(), SchemaProblem> {
    let mut text = format!("{FORMAT_LINE}{FORMAT}\n{HEADER}");
    let mut line = |key: &dyn Display, shape: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key}  {:016x}  {shape}", hash(shape));
    };
    for (key, shape) in &recorded.events {
        line(key, shape);
    }
    for (key, shape) in &recorded.states {
        line(key, shape);
    }
    let written = std::fs::write(file, text);
    written.map_err(|source| SchemaProblem::Io {
        file: file.to_owned(),
        source,
    })
}

impl Schema {
    /// Compares the recorded events with those of this build.
    pub(super) fn compare(
        &self,
        recorded: &Recorded,
        found: &[Found],
        problems: &mut Vec<SchemaProblem>,
    ) {
        for Found { key, shape, .. } in found {
            let event = key.to_string();
            match recorded.events.get(key) {
                None => problems.push(SchemaProblem::Unrecorded { event }),
                Some(known) if known != shape => problems.push(SchemaProblem::Changed {
                    event,
                    recorded: known.clone(),
                    found: shape.clone(),
                }),
                Some(_) => {}
            }
        }
        for key in recorded.events.keys() {
            problems.extend(self.left_behind(key));
        }
        self.compare_steps(recorded, problems);
        for key in &self.never_stored {
            let reason = self.was_stored(key, recorded);
            problems.extend(reason.map(|reason| SchemaProblem::NotNeverStored {
                event: key.to_string(),
                reason,
            }));
        }
    }

    /// Checks that every version below its event's newest one is lifted or was never stored.
    fn compare_steps(&self, recorded: &Recorded, problems: &mut Vec<SchemaProblem>) {
        for key in self.keys() {
            if self.has_step(&key) {
                let event = key.to_string();
                problems.push(SchemaProblem::LiftedAway { event });
            }
        }
        let known = recorded.events.keys().cloned().chain(self.keys());
        let older: BTreeSet<_> = known.flat_map(|key| key.older()).collect();
        let missing = older.into_iter().filter(|key| {
            // Recorded versions have been compared already, and events that are not in the check
            // have been reported as vanished.
            self.events(&key.aggregate).is_some()
                && !recorded.events.contains_key(key)
                && self.current(&key.aggregate, &key.name) != Some(key.version)
                && !self.never_stored.contains(key)
                && !self.has_step(key)
        });
        problems.extend(missing.map(|key| SchemaProblem::MissingStep {
            event: key.to_string(),
            aggregate: key.aggregate,
            name: key.name,
            from: key.version,
        }));
    }

    pub(super) fn has_step(&self, key: &Key) -> bool {
        let upcasters = self.lifting(&key.aggregate);
        upcasters.has_step(&key.aggregate, &key.name, key.version)
    }

    /// Returns the evidence that a version was stored, although it was declared as never stored.
    fn was_stored(&self, key: &Key, recorded: &Recorded) -> Option<&'static str> {
        if recorded.events.contains_key(key) {
            return Some("it is recorded");
        }
        if key.version == 0 {
            return Some("versions start at 1");
        }
        match self.current(&key.aggregate, &key.name) {
            Some(current) if key.version == current => Some("this build writes it"),
            Some(current) if key.version > current => {
                Some("it is newer than what this build writes")
            }
            Some(_) => None,
            None if recorded
                .events
                .keys()
                .any(|known| known.older().any(|k| k == *key)) =>
            {
                None
            }
            None => Some("the check knows no event of that name"),
        }
    }

    /// Returns the problem of a recorded version that this build does not write.
    fn left_behind(&self, key: &Key) -> Option<SchemaProblem> {
        let event = key.to_string();
        let current = self.current(&key.aggregate, &key.name);
        if current == Some(key.version) || self.has_step(key) {
            return None;
        }
        Some(match current {
            None => SchemaProblem::Vanished { event },
            Some(current) if current < key.version => {
                SchemaProblem::VersionLowered { event, current }
            }
            Some(current) => SchemaProblem::NoUpcaster {
                event,
                from: key.version,
                current,
            },
        })
    }
}
