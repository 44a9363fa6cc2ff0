//! The facts that cargo and git know about the workspace.
use crate::error::CheckError;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

/// The packages and tracked files of a workspace.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The root folder of the workspace.
    pub(crate) root: PathBuf,
    /// The folder of build artifacts.
    pub(crate) target: PathBuf,
    /// The URL of the repository on GitHub.
    pub(crate) repository: String,
    /// All tracked files, relative to the root.
    pub(crate) tracked: BTreeSet<String>,
    packages: Vec<Package>,
}

/// A package of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    /// The name of the package.
    pub(crate) name: String,
    /// The folder of the package, relative to the root; empty for the root itself.
    pub(crate) folder: String,
    is_published: bool,
    /// The names of the packages of the workspace that this package needs when it is built for a
    /// user.
    needs: Vec<String>,
    features: BTreeSet<String>,
    docs_rs: Value,
}

impl Package {
    /// Returns the name of the library in Rust code.
    pub(crate) fn library(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Returns the features that docs.rs documents.
    fn docs_features(&self) -> Result<Vec<String>, CheckError> {
        let failed = |what: &str| {
            let name = &self.name;
            CheckError::Failed(format!("[package.metadata.docs.rs] of {name} {what}"))
        };
        if self.docs_rs["all-features"] == true {
            return Ok(self.features.iter().cloned().collect());
        }
        let listed = self.docs_rs["features"]
            .as_array()
            .ok_or_else(|| failed("has neither `all-features = true` nor `features`"))?;
        let listed = listed.iter().filter_map(Value::as_str);
        listed
            .map(|feature| {
                let is_known = self.features.contains(feature);
                let unknown = || failed(&format!("lists `{feature}`, which is not a feature"));
                is_known.then(|| feature.to_owned()).ok_or_else(unknown)
            })
            .collect()
    }
}

impl Workspace {
    /// Asks cargo and git about the workspace of the current folder.
    pub(crate) fn load() -> Result<Self, CheckError> {
        let arguments = ["metadata", "--no-deps", "--format-version", "1"];
        let metadata = output(cargo().args(arguments))?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        let path = |key: &str| PathBuf::from(metadata[key].as_str().unwrap_or_default());
        let root = path("workspace_root");
        let listed = output(Command::new("git").arg("-C").arg(&root).arg("ls-files"))?;
        let mut workspace = Self {
            target: path("target_directory"),
            repository: String::new(),
            tracked: listed.lines().map(str::to_owned).collect(),
            packages: Vec::new(),
            root,
        };
        for package in metadata["packages"].as_array().into_iter().flatten() {
            if let Some(url) = package["repository"].as_str() {
                url.clone_into(&mut workspace.repository);
            }
            let package = workspace.package(package);
            workspace.packages.push(package);
        }
        Ok(workspace)
    }

    fn package(&self, package: &Value) -> Package {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().unwrap_or(manifest);
        let folder = folder.strip_prefix(&self.root).unwrap_or(folder);
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let needs = dependencies.filter(|d| d["kind"] != "dev" && d["path"].is_string());
        let features = package["features"].as_object();
        Package {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            folder: folder.to_string_lossy().into_owned(),
            is_published: package["publish"].is_null(),
            needs: needs
                .filter_map(|d| d["name"].as_str().map(str::to_owned))
                .collect(),
            features: features
                .into_iter()
                .flat_map(|map| map.keys().cloned())
                .filter(|feature| feature != "default")
                .collect(),
            docs_rs: package["metadata"]["docs"]["rs"].clone(),
        }
    }

    /// Returns the published packages, each after those that it needs.
    pub(crate) fn published(&self) -> Vec<&Package> {
        let mut left: Vec<_> = self.packages.iter().filter(|p| p.is_published).collect();
        let mut ordered: Vec<&Package> = Vec::new();
        while !left.is_empty() {
            let has = |name: &String| ordered.iter().any(|p| &p.name == name);
            let next = left.iter().position(|p| p.needs.iter().all(has));
            // Cargo refuses cycles, so there always is a next package.
            ordered.push(left.remove(next.unwrap_or(0)));
        }
        ordered
    }

    /// Returns the features that docs.rs documents, each once.
    ///
    /// Cargo enables a feature in every selected package that has it. For `package/feature`, it
    /// would first look for a dependency of the root package, and the testkit is a dependency of
    /// its tests.
    pub(crate) fn docs_features(&self) -> Result<Vec<String>, CheckError> {
        let mut all = BTreeSet::new();
        for package in self.published() {
            all.extend(package.docs_features()?);
        }
        Ok(all.into_iter().collect())
    }

    /// Reads a tracked file. Returns `None` if it is not text.
    pub(crate) fn text(&self, file: &str) -> Result<Option<String>, CheckError> {
        let path = self.root.join(file);
        let bytes = std::fs::read(&path).map_err(CheckError::file(&path))?;
        Ok(String::from_utf8(bytes).ok())
    }
}

/// Returns the cargo that started this program, or the one in the path.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a program and returns its output.
pub(crate) fn output(command: &mut Command) -> Result<String, CheckError> {
    let line = format!("{command:?}");
    let done = command.output().map_err(|source| CheckError::Io {
        what: line.clone(),
        source,
    })?;
    if !done.status.success() {
        return Err(CheckError::Program {
            command: line,
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        });
    }
    Ok(String::from_utf8(done.stdout)?)
}

#[cfg(test)]
impl Workspace {
    /// Creates a workspace with these tracked files and one published package in its root.
    pub(crate) fn of_files(repository: &str, target: PathBuf, tracked: &[&str]) -> Self {
        Self {
            root: PathBuf::new(),
            target,
            repository: repository.into(),
            tracked: tracked.iter().map(|&file| file.to_owned()).collect(),
            packages: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, needs: &[&str], docs_rs: Value) -> Package {
        Package {
            name: name.into(),
            folder: String::new(),
            is_published: true,
            needs: needs.iter().map(|&name| name.to_owned()).collect(),
            features: ["tls".to_owned(), "zstd".to_owned()].into(),
            docs_rs,
        }
    }

    #[test]
    fn a_package_is_published_after_what_it_needs() {
        let mut workspace = Workspace::of_files("", PathBuf::new(), &[]);
        workspace.packages = vec![
            package("core", &["macros"], Value::Null),
            package("kafka", &["core"], Value::Null),
            package("macros", &[], Value::Null),
        ];
        workspace.packages[1].is_published = false;
        let names: Vec<_> = workspace.published().iter().map(|p| &p.name).collect();
        assert_eq!(names, ["macros", "core"]);
    }

    #[test]
    fn every_package_says_what_docs_rs_documents() {
        let features = |docs_rs| package("core", &[], docs_rs).docs_features();
        let all = features(json!({"all-features": true})).unwrap();
        assert_eq!(all, ["tls", "zstd"]);
        assert_eq!(features(json!({"features": ["zstd"]})).unwrap(), ["zstd"]);
        let error = features(json!({"features": ["ssl"]})).unwrap_err();
        assert!(error.to_string().contains("`ssl`"), "{error}");
        assert!(features(Value::Null).is_err());
    }
}
