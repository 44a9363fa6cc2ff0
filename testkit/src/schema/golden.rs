//! Golden payloads of events: stored payloads in files, which every build must read.
use super::{Build, Key, Schema, SchemaProblem, decode, types::Recorded};
use foldstream::{DomainEvent, Upcasters, chain};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

impl Key {
    fn stem(&self) -> String {
        self.to_string().replace('/', "%2F")
    }

    /// Returns the key that a file's name shows: `<aggregate>.<name>@<version>.json`, or with
    /// `-<label>` before `.json`.
    fn of_file(name: &str, aggregates: &[&str]) -> Option<Self> {
        let stem = name.strip_suffix(".json")?;
        // The label may hold any text, also one that looks like another version.
        let at = stem.match_indices('@').map(|(at, _)| at);
        at.filter_map(|at| {
            let (event, version) = (&stem[..at], &stem[at + 1..]);
            let version = version.split('-').next()?;
            Self::parse(
                &format!("{}@{version}", event.replace("%2F", "/")),
                aggregates,
            )
        })
        .next()
    }
}

/// Takes the golden payloads of one version out of the set of files.
pub(super) fn take_of(stem: &str, files: &mut BTreeSet<String>) -> Vec<String> {
    let (exact, labelled) = (format!("{stem}.json"), format!("{stem}-"));
    let is_mine =
        |name: &String| *name == exact || (name.starts_with(&labelled) && name.ends_with(".json"));
    let mine: Vec<_> = files.iter().filter(|name| is_mine(name)).cloned().collect();
    for name in &mine {
        files.remove(name);
    }
    mine
}

/// Writes a sample as the golden payload of one version, unless there is one already.
pub(super) fn write_one(
    stem: &str,
    sample: Option<&[u8]>,
    directory: &Path,
    files: &BTreeSet<String>,
    problems: &mut Vec<SchemaProblem>,
) {
    let is_there = !take_of(stem, &mut files.clone()).is_empty();
    let Some(sample) = sample.filter(|_| !is_there) else {
        return;
    };
    let file = directory.join(format!("{stem}.json"));
    if let Err(source) = fs::write(&file, [sample, &b"\n"[..]].concat()) {
        problems.push(SchemaProblem::Io { file, source });
    }
}

impl Schema {
    /// Reads every golden payload of every version that is recorded or is recorded late.
    pub(super) fn check_golden(
        &self,
        recorded: &Recorded,
        build: &Build,
        late: &[Key],
        problems: &mut Vec<SchemaProblem>,
    ) {
        let Some(directory) = self.golden_directory() else {
            let unguarded = build.events.iter().filter(|found| found.is_untraced);
            problems.extend(unguarded.map(|found| SchemaProblem::NoGoldenDirectory {
                event: found.key.to_string(),
            }));
            problems.extend(Self::unguarded_states(&build.states));
            return;
        };
        let mut files = match list(directory) {
            Ok(files) => files,
            Err(problem) => return problems.push(problem),
        };
        self.check_golden_states(recorded, &build.states, directory, &mut files, problems);
        let found = build.events.iter().map(|found| &found.key);
        let keys: BTreeSet<_> = recorded.events.keys().chain(found).chain(late).collect();
        for key in keys {
            let mine = take_of(&key.stem(), &mut files);
            // A version that is not recorded yet has been reported already.
            if mine.is_empty() && recorded.events.contains_key(key) {
                problems.push(SchemaProblem::NoGolden {
                    event: key.to_string(),
                    file: directory.join(format!("{}.json", key.stem())),
                    is_made: (build.events.iter())
                        .any(|found| found.key == *key && found.sample.is_some()),
                });
            }
            for name in mine {
                problems.extend(self.check_one(key, directory.join(&name)));
            }
        }
        let aggregates = self.aggregates();
        for name in files {
            let file = directory.join(&name);
            match Key::of_file(&name, &aggregates) {
                Some(key) if self.never_stored.contains(&key) => {
                    problems.push(SchemaProblem::NotNeverStored {
                        event: key.to_string(),
                        reason: "there is a golden payload of it",
                    });
                }
                // The missing upcaster of this version has been reported already.
                Some(key) if self.is_older(&key) => {}
                _ => problems.push(SchemaProblem::StrayGolden { file }),
            }
        }
    }

    /// Returns the versions that are not recorded but have golden payloads. An older version that
    /// upcasters lift can be recorded late.
    pub(super) fn late(&self, recorded: &Recorded, problems: &mut Vec<SchemaProblem>) -> Vec<Key> {
        let Some(directory) = self.golden_directory() else {
            return Vec::new();
        };
        let files = match list(directory) {
            Ok(files) => files,
            // The error is reported where the payloads are read.
            Err(_) => return Vec::new(),
        };
        let aggregates = self.aggregates();
        let keys = files
            .iter()
            .filter_map(|name| Key::of_file(name, &aggregates));
        let late: BTreeSet<_> = keys.filter(|key| self.is_late(key, recorded)).collect();
        problems.extend(late.iter().map(|key| SchemaProblem::Unrecorded {
            event: key.to_string(),
        }));
        late.into_iter().collect()
    }

    fn is_late(&self, key: &Key, recorded: &Recorded) -> bool {
        self.events(&key.aggregate).is_some()
            && !recorded.events.contains_key(key)
            && !self.never_stored.contains(key)
            // An upcaster from the version that this build writes is a problem of its own.
            && self.current(&key.aggregate, &key.name) != Some(key.version)
            && self.has_step(key)
    }

    fn is_older(&self, key: &Key) -> bool {
        let current = self.current(&key.aggregate, &key.name);
        key.version > 0 && current.is_some_and(|current| key.version < current)
    }

    fn check_one(&self, key: &Key, file: PathBuf) -> Option<SchemaProblem> {
        // A vanished aggregate type has been reported already.
        let events = self.events(&key.aggregate)?;
        let golden = match fs::read_to_string(&file) {
            Ok(golden) => golden,
            Err(source) => return Some(SchemaProblem::Io { file, source }),
        };
        let golden = golden.trim();
        let upcasters = self.lifting(&key.aggregate);
        let written = match (events.rewrite)(&upcasters, key, golden.as_bytes()) {
            Ok(Some(written)) => written,
            Ok(None) => return None,
            Err(source) => return Some(SchemaProblem::Unreadable { file, source }),
        };
        let is_current = self.current(&key.aggregate, &key.name) == Some(key.version)
            && !upcasters.has_step(&key.aggregate, &key.name, key.version);
        if !is_current || is_same(golden.as_bytes(), &written) {
            return None;
        }
        Some(SchemaProblem::Rewritten {
            file,
            golden: golden.into(),
            written: String::from_utf8_lossy(&written).into_owned(),
        })
    }

    /// Writes golden payloads of those events of this build that have none.
    pub(super) fn write_golden(&self, build: &Build, problems: &mut Vec<SchemaProblem>) {
        let Some(directory) = self.golden_directory() else {
            return;
        };
        if let Err(source) = fs::create_dir_all(directory) {
            let file = directory.to_owned();
            return problems.push(SchemaProblem::Io { file, source });
        }
        let files = match list(directory) {
            Ok(files) => files,
            Err(problem) => return problems.push(problem),
        };
        for found in &build.events {
            let stem = found.key.stem();
            write_one(&stem, found.sample.as_deref(), directory, &files, problems);
        }
        self.write_golden_states(&build.states, directory, &files, problems);
    }
}

/// Lists the names of the golden payloads and of files that look like one. The list is empty if the
/// directory does not exist.
fn list(directory: &Path) -> Result<BTreeSet<String>, SchemaProblem> {
    let failed = |source| SchemaProblem::Io {
        file: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy().into_owned();
        // A file that is named like a payload without ending in `.json` must not seem to be
        // checked.
        if name.ends_with(".json") || name.contains('@') {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Returns true if two payloads are the same JSON, or the same bytes. Spaces, the order of fields
/// and the notation of numbers do not count.
pub(super) fn is_same(golden: &[u8], written: &[u8]) -> bool {
    match (
        serde_json::from_slice::<&RawValue>(golden),
        serde_json::from_slice::<&RawValue>(written),
    ) {
        (Ok(golden), Ok(written)) => is_same_json(golden, written),
        _ => golden == written,
    }
}

/// Compares two JSON values. Unlike the equality of [`serde_json::Value`], this comparison sees
/// every digit of a number.
fn is_same_json(a: &RawValue, b: &RawValue) -> bool {
    type Object<'a> = BTreeMap<String, &'a RawValue>;
    fn read<'a, T: serde::Deserialize<'a>>(a: &'a RawValue, b: &'a RawValue) -> Option<(T, T)> {
        let [a, b] = [a, b].map(|json| serde_json::from_str(json.get()));
        Some((a.ok()?, b.ok()?))
    }
    if let Some((a, b)) = read::<Object<'_>>(a, b) {
        let same_keys = a.keys().eq(b.keys());
        return same_keys && a.values().zip(b.values()).all(|(a, b)| is_same_json(a, b));
    }
    if let Some((a, b)) = read::<Vec<&RawValue>>(a, b) {
        return a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| is_same_json(a, b));
    }
    if let Some((a, b)) = read::<String>(a, b) {
        return a == b;
    }
    a.get() == b.get() || (is_decimal(a) && is_decimal(b) && decimal(a.get()) == decimal(b.get()))
}

fn is_decimal(json: &RawValue) -> bool {
    json.get()
        .starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// Splits a number into its sign, its digits without zeros around them, and the power of ten of the
/// last digit.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{}{fraction}", whole.trim_start_matches('-'));
    let digits = all.trim_end_matches('0');
    let last = exponent.parse::<i64>().ok()? - i64::try_from(fraction.len()).ok()?;
    let last = last.checked_add(i64::try_from(all.len() - digits.len()).ok()?)?;
    let is_negative = text.starts_with('-');
    match digits.trim_start_matches('0') {
        "" => Some((is_negative, String::new(), 0)),
        digits => Some((is_negative, digits.to_owned(), last)),
    }
}

/// Returns the event that a golden payload is today, so that a test can assert what upcasters make
/// of the payload.
///
/// The result is `None` if the event is retired. The upcasters that the event type brings itself
/// are applied as well. The name of `file` is `<aggregate>.<name>@<version>.json`, or ends in
/// `-<anything>.json`.
///
/// # Panics
/// If the file or its name cannot be read, or if the payload cannot be lifted and decoded.
#[track_caller]
pub fn upcast_golden<E: DomainEvent>(file: impl AsRef<Path>, upcasters: &Upcasters) -> Option<E> {
    let file = file.as_ref();
    let shown = file.display();
    let golden = match fs::read_to_string(file) {
        Ok(golden) => golden,
        Err(error) => panic!("{shown} cannot be read: {error}"),
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(key) = Key::of_file(&name, &[E::AGGREGATE]) else {
        panic!("{shown} is not named <aggregate>.<name>@<version>.json");
    };
    let upcasters = match foldstream::adapter::upcasters_of::<E>(upcasters) {
        Ok(upcasters) => upcasters,
        Err(error) => panic!("{shown} cannot be read by this build: {}", chain(&error)),
    };
    match decode::<E>(&upcasters, &key, golden.trim().as_bytes()) {
        Ok(event) => event,
        Err(error) => panic!("{shown} cannot be read by this build: {}", chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn payloads_are_the_same_json_to_the_last_digit() {
        let same = |a: &str, b: &str| is_same(a.as_bytes(), b.as_bytes());
        for (a, b) in [
            (
                r#"{"a":1,"b":[1.50,"x"]}"#,
                r#" { "b": [1.5, "\u0078"], "a": 1 }"#,
            ),
            ("1e2", "100.0"),
            ("null", "null"),
            ("no JSON", "no JSON"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("1000000000000000000001", "1000000000000000000002"),
            ("0.1234567890123456789012", "0.1234567890123456789013"),
            ("-1", "1"),
            ("1", r#""1""#),
            ("[1,2]", "[2,1]"),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            ("true", "null"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
