//! The public API of the published packages.
use crate::{
    error::CheckError,
    listing::{self, Mode},
    workspace::{Package, Workspace, cargo, output},
};

const UPDATE: &str = "cargo run -p foldstream-checks -- api --update";

/// Compares the public API of every published package, with the features that docs.rs documents, with
/// `.ci/api/<package>.txt`.
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
    // Only rustdoc may use unstable options: were the variable set for all of cargo, build scripts that look for it would run
    // again, and half of the dependencies would be compiled once more.
    let rustdoc = workspace.root.join(".ci/checks/rustdoc");
    command.env("RUSTDOC", rustdoc);
    let options = "-Z unstable-options --output-format json --cap-lints allow";
    command.env("RUSTDOCFLAGS", options);
    output(&mut command)?;
    let mut listings = Vec::new();
    for package in workspace.published() {
        listings.push((package.name.clone(), public_api(workspace, package)?));
    }
    listing::settle(&workspace.root.join(".ci/api"), &listings, mode, UPDATE)
}

/// The public items of a package, one per line.
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
    let lines: Vec<String> = api.items().map(ToString::to_string).collect();
    Ok(lines.join("\n") + "\n")
}
