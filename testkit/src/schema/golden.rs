//! Golden payloads: what was stored once, kept as files that every build must read.
use super::{Found, Key, Schema, SchemaProblem, decode, types::Recorded};
use foldstream::{DomainEvent, Upcasters, chain};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

impl Key {
    fn golden(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.json", self.stem()))
    }
    fn stem(&self) -> String {
        self.to_string().replace('/', "%2F")
    }
}

impl Schema {
    /// Reads every golden payload of every version that is recorded.
    pub(super) fn check_golden(
        &self,
        recorded: &Recorded,
        found: &[Found],
        problems: &mut Vec<SchemaProblem>,
    ) {
        let Some(directory) = self.golden_directory() else {
            let unguarded = found.iter().filter(|found| found.is_untraced);
            problems.extend(unguarded.map(|found| SchemaProblem::NoGoldenDirectory {
                event: found.key.to_string(),
            }));
            return;
        };
        let mut files = match list(directory) {
            Ok(files) => files,
            Err(problem) => return problems.push(problem),
        };
        let keys: BTreeSet<_> = recorded
            .keys()
            .chain(found.iter().map(|f| &f.key))
            .collect();
        for key in keys {
            let (exact, labelled) = (format!("{}.json", key.stem()), format!("{}-", key.stem()));
            let mine: Vec<_> = files
                .iter()
                .filter(|name| **name == exact || name.starts_with(&labelled))
                .cloned()
                .collect();
            // What is not recorded yet has been reported.
            if mine.is_empty() && recorded.contains_key(key) {
                problems.push(SchemaProblem::NoGolden {
                    event: key.to_string(),
                    file: directory.join(exact),
                    is_made: found.iter().any(|f| f.key == *key && f.sample.is_some()),
                });
            }
            for name in mine {
                problems.extend(self.check_one(key, directory.join(&name)));
                files.remove(&name);
            }
        }
        problems.extend(files.into_iter().map(|name| SchemaProblem::StrayGolden {
            file: directory.join(name),
        }));
    }

    fn check_one(&self, key: &Key, file: PathBuf) -> Option<SchemaProblem> {
        // A vanished aggregate type has been reported.
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

    /// Makes golden payloads of this build's events that have none.
    pub(super) fn write_golden(&self, found: &[Found], problems: &mut Vec<SchemaProblem>) {
        let Some(directory) = self.golden_directory() else {
            return;
        };
        let io_problem = |file: &Path, source| SchemaProblem::Io {
            file: file.to_owned(),
            source,
        };
        if let Err(source) = fs::create_dir_all(directory) {
            return problems.push(io_problem(directory, source));
        }
        let files = match list(directory) {
            Ok(files) => files,
            Err(problem) => return problems.push(problem),
        };
        for Found { key, sample, .. } in found {
            let labelled = format!("{}-", key.stem());
            let file = key.golden(directory);
            let is_there = file.exists() || files.iter().any(|name| name.starts_with(&labelled));
            let Some(sample) = sample.as_ref().filter(|_| !is_there) else {
                continue;
            };
            if let Err(source) = fs::write(&file, [sample, &b"\n"[..]].concat()) {
                problems.push(io_problem(&file, source));
            }
        }
    }
}

/// The names of the golden payloads; none in a directory that is not there.
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
        if name.ends_with(".json") {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The same JSON, whatever its spaces, the order of its fields, and how its numbers are written; or the same bytes.
fn is_same(golden: &[u8], written: &[u8]) -> bool {
    match (
        serde_json::from_slice::<&RawValue>(golden),
        serde_json::from_slice::<&RawValue>(written),
    ) {
        (Ok(golden), Ok(written)) => is_same_json(golden, written),
        _ => golden == written,
    }
}

/// Unlike an equality of [`serde_json::Value`]s, this one knows every digit of a number.
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

/// A number's sign, its digits without zeros around them, and the power of ten of the last.
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

/// Returns the event that a golden payload is today, to assert on what upcasters make of it. None: it is retired. The upcasters of the
/// event type take part by themselves.
///
/// `file` is `<aggregate>.<name>@<version>.json`, or ends in `-<anything>.json`.
///
/// # Panics
/// If the file or its name cannot be read, or the payload cannot be lifted and decoded.
#[track_caller]
pub fn upcast_golden<E: DomainEvent>(file: impl AsRef<Path>, upcasters: &Upcasters) -> Option<E> {
    let file = file.as_ref();
    let shown = file.display();
    let golden = match fs::read_to_string(file) {
        Ok(golden) => golden,
        Err(error) => panic!("{shown} cannot be read: {error}"),
    };
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    // The version ends at the label.
    let labelled = name.rsplit_once('@').map(|(event, version)| {
        let version = version.split('-').next().unwrap_or_default();
        format!("{}@{version}", event.replace("%2F", "/"))
    });
    let Some(key) = labelled.and_then(|text| Key::parse(&text, &[E::AGGREGATE])) else {
        panic!("{shown} is not named <aggregate>.<name>@<version>.json");
    };
    let upcasters = match upcasters.with_own_of::<E>() {
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
