//! Runs the program on a small workspace: each check passes, and fails once something is broken.
// The lint lets test functions unwrap, but not their helpers.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use tempfile::TempDir;

const MANIFEST: &str = r#"[package]
name = "mini"
version = "0.1.0"
edition = "2024"
description = "A package."
license = "MIT"
exclude = ["/.ci"]
repository = "https://github.com/mini/mini"

[features]
more = []

[package.metadata.docs.rs]
all-features = true
"#;

/// A workspace of one package, tracked by git.
struct Mini(TempDir);

impl Mini {
    fn new() -> Self {
        let mini = Self(tempfile::tempdir().unwrap());
        mini.write("Cargo.toml", MANIFEST);
        mini.write(".gitignore", "target\n");
        mini.write("README.md", "# Mini\n\nSee [below](#below).\n\n## Below\n");
        mini.write("LICENSE-MIT", "MIT\n");
        mini.write("LICENSE-APACHE", "Apache\n");
        mini.write(
            "src/lib.rs",
            "//! A package.\nmod a;\nmod b;\npub use a::A;\n",
        );
        mini.write("src/a.rs", "/// A.\npub struct A;\n");
        mini.write("src/b.rs", "\n");
        mini.run("git", &["init", "--quiet"]);
        mini.run("cargo", &["generate-lockfile", "--quiet", "--offline"]);
        mini.track();
        mini
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.current_dir(self.path()).args(arguments);
        // A git hook, or a build with another target directory, sets variables that must not reach
        // the tests.
        for variable in [
            "GIT_DIR",
            "GIT_WORK_TREE",
            "CARGO_TARGET_DIR",
            "RUSTDOCFLAGS",
        ] {
            command.env_remove(variable);
        }
        command.output().unwrap()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = self.output(program, arguments);
        assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
    }

    fn track(&self) {
        self.run("git", &["add", "--all"]);
    }

    /// Returns the complaint of a check, or `None` if it passes.
    fn complaint(&self, check: &[&str]) -> Option<String> {
        let done = self.output(env!("CARGO_BIN_EXE_foldstream-checks"), check);
        let text = String::from_utf8(done.stderr).unwrap();
        (!done.status.success()).then_some(text)
    }
}

/// The dep-info of an earlier build still names the file.
#[test]
fn a_file_whose_mod_is_gone_is_found_although_it_was_compiled_before() {
    let mini = Mini::new();
    let files = ["files", "mini/more"];
    assert_eq!(mini.complaint(&files), None);
    mini.write("src/lib.rs", "//! A package.\nmod a;\npub use a::A;\n");
    let complaint = mini.complaint(&files).unwrap();
    assert!(
        complaint.contains("src/b.rs: no target compiles"),
        "{complaint}"
    );
    assert!(!complaint.contains("src/a.rs"), "{complaint}");
}

#[test]
fn a_changed_public_item_is_found_until_the_listing_is_updated() {
    let mini = Mini::new();
    assert!(
        mini.complaint(&["api"]).is_some(),
        "there is no listing yet"
    );
    assert_eq!(mini.complaint(&["api", "--update"]), None);
    assert_eq!(mini.complaint(&["api"]), None);
    mini.write("src/a.rs", "/// A.\npub struct A(pub u8);\n");
    let complaint = mini.complaint(&["api"]).unwrap();
    assert!(
        complaint.contains("+ pub struct mini::A(pub u8)"),
        "{complaint}"
    );
    assert_eq!(mini.complaint(&["api", "--update"]), None);
    assert_eq!(mini.complaint(&["api"]), None);
}

#[test]
fn a_package_with_another_file_or_without_a_licence_is_found() {
    let mini = Mini::new();
    assert_eq!(mini.complaint(&["packages", "--update"]), None);
    assert_eq!(mini.complaint(&["packages"]), None);
    mini.write("secret.txt", "");
    let complaint = mini.complaint(&["packages"]).unwrap();
    assert!(complaint.contains("+ secret.txt"), "{complaint}");
    fs::remove_file(mini.path().join("LICENSE-MIT")).unwrap();
    let complaint = mini.complaint(&["packages", "--update"]).unwrap();
    assert!(complaint.contains("no LICENSE-MIT"), "{complaint}");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let mini = Mini::new();
    assert_eq!(mini.complaint(&["links"]), None);
    mini.write("README.md", "# Mini\n\n[below](#below) and [`A`]\n");
    let complaint = mini.complaint(&["links"]).unwrap();
    for part in ["README.md:3: #below", "README.md:3: [`A`]"] {
        assert!(complaint.contains(part), "{complaint}");
    }
}
