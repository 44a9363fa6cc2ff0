//! Tracked files that nothing compiles or mentions.
use crate::{
    error::CheckError,
    workspace::{Workspace, cargo, output},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Names that a tool, GitHub or a reader looks for.
const CONVENTIONAL: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "clippy.toml",
    "rustfmt.toml",
    ".gitignore",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "book.toml",
];
/// Folders whose files are all read.
///
/// GitHub, schema checks (golden payloads), this program (listings), `.ci/mutants` and
/// `.ci/servers/prepare` (one folder per server) read them.
const READ_WHOLE: [&str; 7] = [
    ".github/",
    ".ci/servers/",
    "docs/hotel/golden/",
    "examples/shop/tests/golden/",
    ".ci/packages/",
    ".ci/api/",
    "tests/mutants/",
];
/// Rust files that only rustdoc compiles: the testkit's guide, and what its examples include.
const RUSTDOC: [&str; 2] = ["testkit/src/guide.rs", "testkit/docs/account.rs"];

/// Finds Rust files that no target compiles and other files that no file mentions.
pub(crate) fn check(workspace: &Workspace, features: &str) -> Result<(), CheckError> {
    let compiled = compiled(workspace, features)?;
    let mut texts = BTreeMap::new();
    for file in &workspace.tracked {
        if let Some(text) = workspace.text(file)? {
            texts.insert(file.as_str(), text);
        }
    }
    let problems = problems(&workspace.tracked, &compiled, &texts);
    if problems.is_empty() {
        let (all, compiled) = (workspace.tracked.len(), compiled.len());
        println!("{all} tracked files, {compiled} of them compiled");
        return Ok(());
    }
    Err(CheckError::Failed(problems.join("\n")))
}

fn problems(
    tracked: &BTreeSet<String>,
    compiled: &BTreeSet<String>,
    texts: &BTreeMap<&str, String>,
) -> Vec<String> {
    let orphans = tracked.iter().filter(|file| !compiled.contains(*file));
    let problems = orphans.filter_map(|file| {
        if file.ends_with(".rs") && !RUSTDOC.contains(&file.as_str()) {
            return Some(format!(
                "{file}: no target compiles this file (a missing `mod`?)"
            ));
        }
        let name = file.rsplit('/').next().unwrap_or(file);
        let is_read =
            CONVENTIONAL.contains(&name) || READ_WHOLE.iter().any(|f| file.starts_with(f));
        let is_used = is_read || is_mentioned(file, tracked, texts);
        (!is_used).then(|| format!("{file}: no file mentions or includes this file"))
    });
    problems.collect()
}

/// Returns the tracked files that the current build has compiled or included, as the compiler
/// reports it.
///
/// The target directory may hold dep-info of earlier commits. Cargo names the artifacts of each
/// target of *this* build, also if nothing had to be built, and only the dep-info beside those
/// artifacts counts. It uses Clippy's artifacts, because CI has just made them.
fn compiled(workspace: &Workspace, features: &str) -> Result<BTreeSet<String>, CheckError> {
    let mut command = cargo();
    command.current_dir(&workspace.root);
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--message-format",
        "json",
    ]);
    command.args(["--features", features, "--", "-D", "warnings"]);
    let mut found = BTreeSet::new();
    let mut targets = 0;
    for line in output(&mut command)?.lines().filter(|l| l.starts_with('{')) {
        let message: Value = serde_json::from_str(line)?;
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        if message["reason"] != "compiler-artifact" || !manifest.starts_with(&workspace.root) {
            continue;
        }
        targets += 1;
        let artifacts = message["filenames"].as_array().into_iter().flatten();
        let info = artifacts
            .filter_map(Value::as_str)
            .find_map(|artifact| dep_info(Path::new(artifact)));
        let Some(info) = info else {
            let target = &message["target"]["name"];
            return Err(CheckError::Failed(format!(
                "no dep-info of the target {target}"
            )));
        };
        let text = fs::read_to_string(&info).map_err(CheckError::file(&info))?;
        found.extend(sources(&text, &workspace.root));
    }
    if targets == 0 {
        return Err(CheckError::Failed(
            "cargo has named no artifact of the workspace".into(),
        ));
    }
    found.retain(|file| workspace.tracked.contains(file));
    Ok(found)
}

/// Returns the dep-info beside an artifact: `libname-hash.rmeta` and `name-hash` have
/// `name-hash.d`.
fn dep_info(artifact: &Path) -> Option<PathBuf> {
    let stem = artifact.file_stem()?.to_str()?;
    let names = [stem.strip_prefix("lib").unwrap_or(stem), stem];
    let paths = names.map(|name| artifact.with_file_name(format!("{name}.d")));
    paths.into_iter().find(|path| path.exists())
}

/// Lists the sources in a dep-info file, relative to the root. Each has a line `path:`.
fn sources(dep_info: &str, root: &Path) -> Vec<String> {
    let paths = dep_info.lines().filter_map(|line| line.strip_suffix(':'));
    let paths = paths.map(|path| PathBuf::from(path.replace("\\ ", " ")));
    let relative = paths.filter_map(|path| {
        let path = path
            .strip_prefix(root)
            .map(Path::to_path_buf)
            .unwrap_or(path);
        crate::links::normal(&path)
    });
    relative.collect()
}

/// Returns true if another file names this one.
///
/// The other file may have its path, its path from a folder above both, or a name that no other
/// file has. The changelog does not count.
fn is_mentioned(file: &str, tracked: &BTreeSet<String>, texts: &BTreeMap<&str, String>) -> bool {
    let parts: Vec<&str> = file.split('/').collect();
    let name = parts[parts.len() - 1];
    let is_unique = tracked
        .iter()
        .filter(|f| f.rsplit('/').next() == Some(name))
        .count()
        == 1;
    texts.iter().any(|(other, text)| {
        if *other == file || *other == "CHANGELOG.md" {
            return false;
        }
        let above = other.rsplit_once('/').map_or("", |(folder, _)| folder);
        let below = file
            .strip_prefix(above)
            .map(|rest| rest.trim_start_matches('/'));
        let names = (2..=parts.len()).map(|n| parts[parts.len() - n..].join("/"));
        let names = names.chain(below.map(str::to_owned));
        let mut names = names.chain(is_unique.then(|| name.to_owned()));
        names.any(|name| has_word(text, &name))
    })
}

/// Returns true if the text has this path, and not only as part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    text.match_indices(word).any(|(start, _)| {
        let before = text[..start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        !before.is_some_and(|c| is_name(c) || c == '.') && !after.is_some_and(is_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&'static str, &str)], compiled: &[&str]) -> Vec<String> {
        let tracked = files.iter().map(|(file, _)| (*file).to_owned()).collect();
        let compiled = compiled.iter().map(|file| (*file).to_owned()).collect();
        let texts = files.iter().map(|(file, text)| (*file, (*text).to_owned()));
        problems(&tracked, &compiled, &texts.collect())
    }

    #[test]
    fn a_rust_file_that_nothing_compiles_is_found() {
        let files = [
            ("src/lib.rs", "mod a; // b.rs"),
            ("src/a.rs", ""),
            ("src/b.rs", ""),
        ];
        let found = found(&files, &["src/lib.rs", "src/a.rs"]);
        assert!(
            matches!(&found[..], [only] if only.starts_with("src/b.rs: no target")),
            "{found:?}"
        );
    }

    #[test]
    fn a_file_that_nothing_mentions_is_found() {
        let files = [
            ("README.md", "See docs/one.md, and [two](docs/x/two.md)."),
            ("docs/one.md", "one.md and my-three.md and four.md5"),
            ("docs/x/two.md", ""),
            ("docs/three.md", ""),
            ("docs/four.md", ""),
            ("CHANGELOG.md", "docs/five.md"),
            ("docs/five.md", "README.md CHANGELOG.md"),
            ("tests/mutants/a.patch", ""),
            ("docs/guide.md", ""),
            ("src/Cargo.toml", ""),
        ];
        let found = found(&files, &["docs/guide.md"]);
        let names: Vec<_> = found
            .iter()
            .filter_map(|f| f.split_once(':'))
            .map(|(n, _)| n)
            .collect();
        assert_eq!(names, ["docs/five.md", "docs/four.md", "docs/three.md"]);
    }

    #[test]
    fn a_name_that_two_files_have_needs_a_path() {
        let files = [
            ("a/run", ""),
            ("b/run", ""),
            ("a/Dockerfile", "COPY run /"),
            ("README.md", "a/Dockerfile run"),
        ];
        let found = found(&files, &[]);
        assert!(
            matches!(&found[..], [only] if only.starts_with("b/run")),
            "{found:?}"
        );
    }

    #[test]
    fn the_sources_of_a_dep_info_file_are_paths_of_the_repository() {
        let info = "/w/target/x.d: src/lib.rs src/../README.md\n\nsrc/lib.rs:\nsrc/../README.md:\n/w/a/b.rs:\n\n# env-dep:X\n";
        let found = sources(info, Path::new("/w"));
        assert_eq!(found, ["src/lib.rs", "README.md", "a/b.rs"]);
    }
}
