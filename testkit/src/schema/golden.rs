//! Golden payloads: what was stored once, kept as files that every build must read.
use super::{Found, Key, Schema, SchemaProblem, decode, types::Recorded};
use foldstream::{DomainEvent, Upcasters};
use std::{
    collections::BTreeSet,
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
        let written = match (events.rewrite)(&self.upcasters, key, golden.as_bytes()) {
            Ok(Some(written)) => written,
            Ok(None) => return None,
            Err(source) => return Some(SchemaProblem::Unreadable { file, source }),
        };
        let is_current = self.current(&key.aggregate, &key.name) == Some(key.version)
            && !(self.upcasters).has_step(&key.aggregate, &key.name, key.version);
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

/// The same JSON, whatever its spaces and the order of its fields; or the same bytes.
fn is_same(golden: &[u8], written: &[u8]) -> bool {
    type Json = serde_json::Value;
    match (
        serde_json::from_slice::<Json>(golden),
        serde_json::from_slice::<Json>(written),
    ) {
        (Ok(golden), Ok(written)) => golden == written,
        _ => golden == written,
    }
}

/// What a golden payload means today, to assert on what upcasters make of it. None: it is retired.
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
    match decode::<E>(upcasters, &key, golden.trim().as_bytes()) {
        Ok(event) => event,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                text = format!("{text}: {source}");
                cause = source.source();
            }
            panic!("{shown} cannot be read by this build: {text}")
        }
    }
}
