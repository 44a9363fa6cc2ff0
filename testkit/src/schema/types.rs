//! The file `TYPES`: what was stored, ever.
use super::{Found, Key, Schema, SchemaProblem};
use std::{collections::BTreeMap, fmt::Write as _, io, path::Path};

/// Instead of a shape, where golden payloads alone guard a payload.
pub(super) const UNTRACED: &str = "untraced";

const HEADER: &str = "\
# Every schema version of every event that was ever stored, with a hash and the shape of its payload.
# Written by the schema check: run its test with FOLDSTREAM_BLESS=1 to add what is new. Never change or delete a line
# whose events are stored somewhere.
";

/// Shapes by event and version.
pub(super) type Recorded = BTreeMap<Key, String>;

/// FNV-1a: stable for ever, and enough to notice a line that was changed by hand or badly merged.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A file that is not there is an empty one.
pub(super) fn read(
    file: &Path,
    aggregates: &[&str],
    problems: &mut Vec<SchemaProblem>,
) -> Recorded {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Recorded::new(),
        Err(source) => {
            let file = file.to_owned();
            problems.push(SchemaProblem::Io { file, source });
            return Recorded::new();
        }
    };
    let mut recorded = Recorded::new();
    for (line, number) in text.lines().zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let added =
            parse(line, aggregates).and_then(|(key, shape)| match recorded.insert(key, shape) {
                None => Ok(()),
                Some(_) => Err("it is there twice"),
            });
        if let Err(reason) = added {
            problems.push(SchemaProblem::Malformed {
                file: file.to_owned(),
                line: number,
                reason,
            });
        }
    }
    recorded
}

fn parse(line: &str, aggregates: &[&str]) -> Result<(Key, String), &'static str> {
    let mut parts = line.splitn(3, "  ");
    let (Some(key), Some(sum), Some(shape)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it is not an event, a hash and a shape, with two spaces between them");
    };
    let key =
        Key::parse(key, aggregates).ok_or("it does not begin with <aggregate>.<name>@<version>")?;
    if format!("{:016x}", hash(shape)) != sum {
        return Err("the hash is not of this shape");
    }
    Ok((key, shape.to_owned()))
}

impl Key {
    /// Aggregate types and names may hold dots, so the known aggregate types say where one ends.
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
    let mut text = HEADER.to_owned();
    for (key, shape) in recorded {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key}  {:016x}  {shape}", hash(shape));
    }
    let written = std::fs::write(file, text);
    written.map_err(|source| SchemaProblem::Io {
        file: file.to_owned(),
        source,
    })
}

impl Schema {
    /// Compares what was recorded with what this build has.
    pub(super) fn compare(
        &self,
        recorded: &Recorded,
        found: &[Found],
        problems: &mut Vec<SchemaProblem>,
    ) {
        for Found { key, shape, .. } in found {
            let event = key.to_string();
            match recorded.get(key) {
                None => problems.push(SchemaProblem::Unrecorded { event }),
                Some(known) if known != shape => problems.push(SchemaProblem::Changed {
                    event,
                    recorded: known.clone(),
                    found: shape.clone(),
                }),
                Some(_) => {}
            }
        }
        for key in recorded.keys() {
            problems.extend(self.left_behind(key));
        }
    }

    /// What is wrong with a recorded version that this build does not write.
    fn left_behind(&self, key: &Key) -> Option<SchemaProblem> {
        let event = key.to_string();
        let current = self.current(&key.aggregate, &key.name);
        if current == Some(key.version)
            || self
                .lifting(&key.aggregate)
                .has_step(&key.aggregate, &key.name, key.version)
        {
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
