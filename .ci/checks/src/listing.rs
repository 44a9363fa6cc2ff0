//! Checked-in listings, and their differences from the current state.
use crate::error::CheckError;
use std::{collections::BTreeSet, fs, path::Path};

/// The reaction to a listing that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A difference is an error.
    Compare,
    /// The listing is written again.
    Update,
}

/// Compares or writes listings, one file per package.
///
/// A file of a package that does not exist is also an error, or is removed.
pub(crate) fn compare_or_update(
    folder: &Path,
    listings: &[(String, String)],
    mode: Mode,
    update: &str,
) -> Result<(), CheckError> {
    let mut problems = Vec::new();
    for (name, found) in listings {
        let path = folder.join(format!("{name}.txt"));
        if mode == Mode::Update {
            fs::create_dir_all(folder).map_err(CheckError::file(folder))?;
            fs::write(&path, found).map_err(CheckError::file(&path))?;
            continue;
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if expected != *found {
            problems.push(difference(&path, &expected, found));
        }
    }
    for entry in fs::read_dir(folder).map_err(CheckError::file(folder))? {
        let path = entry.map_err(CheckError::file(folder))?.path();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy());
        let is_listing = path.extension().is_some_and(|e| e == "txt");
        let is_known = listings
            .iter()
            .any(|(name, _)| stem.as_deref() == Some(name));
        if !is_listing || is_known {
            continue;
        }
        if mode == Mode::Update {
            fs::remove_file(&path).map_err(CheckError::file(&path))?;
        } else {
            problems.push(format!("{} is of no published package", path.display()));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(CheckError::Failed(format!(
        "{}\nIf this is meant, run `{update}` and commit the listings",
        problems.join("\n")
    )))
}

/// Returns the lines that only one of two listings has.
fn difference(path: &Path, expected: &str, found: &str) -> String {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) =
        (expected.lines().collect(), found.lines().collect());
    let mut lines = vec![format!("{} is not what is there:", path.display())];
    lines.extend(old.difference(&new).map(|line| format!("- {line}")));
    lines.extend(new.difference(&old).map(|line| format!("+ {line}")));
    if lines.len() == 1 {
        lines.push("the same lines in another order or number".into());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listings(text: &str) -> Vec<(String, String)> {
        vec![("core".into(), text.into())]
    }

    #[test]
    fn a_listing_that_differs_is_an_error_that_shows_the_lines() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        compare_or_update(at, &listings("a\nb\n"), Mode::Update, "u").unwrap();
        compare_or_update(at, &listings("a\nb\n"), Mode::Compare, "u").unwrap();
        let error =
            compare_or_update(at, &listings("a\nc\n"), Mode::Compare, "update it").unwrap_err();
        let text = error.to_string();
        for part in ["- b\n", "+ c\n", "`update it`"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(compare_or_update(at, &listings("b\na\n"), Mode::Compare, "u").is_err());
    }

    #[test]
    fn a_package_needs_a_listing_and_a_listing_a_package() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        assert!(compare_or_update(at, &listings("a\n"), Mode::Compare, "u").is_err());
        compare_or_update(at, &listings("a\n"), Mode::Update, "u").unwrap();
        fs::write(at.join("gone.txt"), "a\n").unwrap();
        let error = compare_or_update(at, &listings("a\n"), Mode::Compare, "u").unwrap_err();
        assert!(error.to_string().contains("gone.txt"), "{error}");
        compare_or_update(at, &listings("a\n"), Mode::Update, "u").unwrap();
        assert!(!at.join("gone.txt").exists());
    }
}
