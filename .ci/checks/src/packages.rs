//! The contents of the published packages.
use crate::{
    error::CheckError,
    listing::{self, Mode},
    workspace::{Workspace, cargo, output},
};

const SOURCES: &str = "src/**/*.rs";
/// The files that every published package must have.
const REQUIRED: [&str; 5] = [
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    SOURCES,
];
const UPDATE: &str = "cargo run -p foldstream-checks -- packages --update";

/// Compares the files of every published package with `.ci/packages/<package>.txt`.
pub(crate) fn check(workspace: &Workspace, mode: Mode) -> Result<(), CheckError> {
    let mut listings = Vec::new();
    for package in workspace.published() {
        let mut command = cargo();
        command.current_dir(&workspace.root);
        // The lock file is left out, because it names packages that may not be published yet.
        command.args([
            "package",
            "--list",
            "--allow-dirty",
            "--exclude-lockfile",
            "-p",
        ]);
        let listing = summary(&output(command.arg(&package.name))?);
        for required in REQUIRED {
            if !listing.lines().any(|line| line == required) {
                let name = &package.name;
                return Err(CheckError::Failed(format!(
                    "the package {name} has no {required}"
                )));
            }
        }
        listings.push((package.name.clone(), listing));
    }
    let folder = workspace.root.join(".ci/packages");
    listing::compare_or_update(&folder, &listings, mode, UPDATE)
}

/// Lists the files of a package, one per line, with one line for all sources.
///
/// A new module does not change the listing.
fn summary(list: &str) -> String {
    let made_by_cargo = [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml.orig"];
    let files = list.lines().filter(|file| !made_by_cargo.contains(file));
    let lines = files.map(|file| {
        let is_source = file.starts_with("src/") && file.ends_with(".rs");
        if is_source { SOURCES } else { file }
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_one_line_and_everything_else_is_listed() {
        let list = ".cargo_vcs_info.json\nCargo.toml\nCargo.toml.orig\nsrc/a/b.rs\nsrc/lib.rs\ntests/it.rs\nsrc/data.bin\n";
        assert_eq!(
            summary(list),
            "Cargo.toml\nsrc/**/*.rs\nsrc/data.bin\ntests/it.rs\n"
        );
    }
}
