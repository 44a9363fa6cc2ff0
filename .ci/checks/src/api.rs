//! The public API of the published packages.
use crate::{
    error::CheckError,
    listing::{self, Mode},
    workspace::{Package, Workspace, cargo, output},
};
use std::collections::BTreeSet;

const UPDATE: &str = "cargo run -p foldstream-checks -- api --update";

/// Compares the public API of every published package, with the features that docs.rs documents,
/// with `.ci/api/<package>.txt`.
pub(crate) fn check(workspace: &Workspace, mode: Mode) -> Result<(), CheckError> {
    let features = workspace.docs_features()?.join(",");
    let mut command = cargo();
    command.current_dir(&workspace.root);
    command.args([
        "doc",
        "--quiet",
        "--no-deps",
        "--lib",
        "--features",
        &features,
    ]);
    for package in workspace.published() {
        command.args(["-p", &package.name]);
    }
    // Only rustdoc may use unstable options. If the variable were set for all of cargo, build
    // scripts that look for it would run again, and half of the dependencies would be compiled
    // again.
    let rustdoc = concat!(env!("CARGO_MANIFEST_DIR"), "/rustdoc");
    command.env("RUSTDOC", rustdoc);
    let options = "-Z unstable-options --output-format json --cap-lints allow";
    command.env("RUSTDOCFLAGS", options);
    output(&mut command)?;
    let mut listings = Vec::new();
    for package in workspace.published() {
        listings.push((package.name.clone(), public_api(workspace, package)?));
    }
    listing::compare_or_update(&workspace.root.join(".ci/api"), &listings, mode, UPDATE)
}

/// Lists the public items of a package, one per line.
fn public_api(workspace: &Workspace, package: &Package) -> Result<String, CheckError> {
    let json = workspace
        .target
        .join(format!("doc/{}.json", package.library()));
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .build()
        .map_err(|source| CheckError::PublicApi {
            package: package.name.clone(),
            source,
        })?;
    let items: Vec<_> = api.items().map(|item| (item, item.to_string())).collect();
    let is_of_a_trait = |line: &str| line.starts_with("impl") && line.contains(" for ");
    let implementations: BTreeSet<_> = items
        .iter()
        .filter(|(_, line)| is_of_a_trait(line))
        .map(|(item, _)| item.id())
        .collect();
    // The list of implemented traits implies the functions of those implementations.
    let lines = items.iter().filter(|(item, line)| {
        let is_function = line.contains(" fn ");
        let is_implied = item
            .parent_id()
            .is_some_and(|id| implementations.contains(&id));
        // Part of every derived `PartialEq`.
        let is_structural = line.starts_with("impl core::marker::StructuralPartialEq for ");
        !(is_function && is_implied || is_structural)
    });
    let lines: Vec<&str> = lines.map(|(_, line)| line.as_str()).collect();
    Ok(lines.join("\n") + "\n")
}
