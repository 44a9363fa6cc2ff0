//! The tests of the schema check.
mod golden;
mod shapes;
mod states;
mod steps;
mod types;

use foldstream_testkit::{Schema, schema::SchemaError};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory with `TYPES` and golden payloads.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn types(&self) -> PathBuf {
        self.0.path().join("TYPES")
    }
    fn golden(&self) -> PathBuf {
        self.0.path().join("golden")
    }
    fn schema(&self) -> Schema {
        Schema::new(self.types())
    }
    /// Returns the recorded lines without comments and hashes.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.types()).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let short = lines.map(|line| {
            let parts: Vec<_> = line.splitn(3, "  ").collect();
            format!("{} {}", parts[0], parts[2])
        });
        short.collect()
    }
}

fn put(file: &Path, text: &str) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

/// Lists the problems, one per string, without the name of the directory.
fn problems(files: &Files, result: Result<(), SchemaError>) -> Vec<String> {
    let directory = format!("{}/", files.0.path().display());
    let problems = result.expect_err("it has problems");
    let texts = problems.problems().iter().map(ToString::to_string);
    texts.map(|text| text.replace(&directory, "")).collect()
}

/// Asserts that there is one problem, which begins with this text.
#[track_caller]
fn assert_problem(files: &Files, result: Result<(), SchemaError>, beginning: &str) {
    let problems = problems(files, result);
    assert!(
        problems.len() == 1 && problems[0].starts_with(beginning),
        "{problems:#?}"
    );
}
