//! The links of all tracked Markdown files.
//!
//! The readers of a file decide which links work. On GitHub, links to files of the repository and
//! to their headings work, and names of Rust items do not. The README of a published package is
//! also its page on crates.io and docs.rs, which do not have the files beside it. A guide that is
//! compiled into the documentation is read there, and rustdoc checks its links to items.
mod anchors;
mod markdown;

use crate::{error::CheckError, workspace::Workspace};
use markdown::{Document, Link};
use std::{collections::BTreeMap, fs, path::Path};

/// The places where a Markdown file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// The file is read on GitHub alone.
    GitHub,
    /// The file is read on GitHub, crates.io and docs.rs.
    Everywhere,
    /// The file is read in the documentation that rustdoc makes.
    Rustdoc,
}

/// The targets that a link may have.
struct Site<'a> {
    workspace: &'a Workspace,
    documents: BTreeMap<String, Document>,
    /// The names of the libraries whose documentation is on docs.rs.
    libraries: Vec<String>,
}

/// Checks all links of all tracked Markdown files. Only the form of links to other sites is
/// checked.
pub(crate) fn check(workspace: &Workspace) -> Result<(), CheckError> {
    let mut documents = BTreeMap::new();
    for file in workspace.tracked.iter().filter(|f| f.ends_with(".md")) {
        if let Some(text) = workspace.text(file)? {
            documents.insert(file.clone(), Document::parse(&text));
        }
    }
    let libraries = workspace.published().iter().map(|p| p.library()).collect();
    let site = Site {
        workspace,
        documents,
        libraries,
    };
    let mut problems = Vec::new();
    let mut count = 0;
    for (file, document) in &site.documents {
        let readers = site.readers(file)?;
        for link in &document.links {
            count += 1;
            if let Err(problem) = site.check(file, readers, link) {
                problems.push(format!("{file}:{}: {}: {problem}", link.line, link.shown()));
            }
        }
    }
    if problems.is_empty() {
        println!("{count} links in {} files", site.documents.len());
        return Ok(());
    }
    Err(CheckError::Failed(problems.join("\n")))
}

impl Site<'_> {
    fn readers(&self, file: &str) -> Result<Readers, CheckError> {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        let published = self.workspace.published();
        if name == "README.md" && published.iter().any(|p| p.folder == folder) {
            return Ok(Readers::Everywhere);
        }
        let include = format!("/{name}\")]");
        for source in self.workspace.tracked.iter().filter(|f| f.ends_with(".rs")) {
            let is_of_package = published.iter().any(|p| {
                !p.folder.is_empty() && source.starts_with(&p.folder) && file.starts_with(&p.folder)
            });
            if !is_of_package {
                continue;
            }
            if self
                .workspace
                .text(source)?
                .is_some_and(|t| t.contains(&include))
            {
                return Ok(Readers::Rustdoc);
            }
        }
        Ok(Readers::GitHub)
    }

    fn check(&self, file: &str, readers: Readers, link: &Link) -> Result<(), String> {
        let Some(target) = &link.target else {
            return if readers == Readers::Rustdoc {
                Ok(())
            } else {
                Err("no definition: GitHub shows the brackets, since only rustdoc knows names of items".into())
            };
        };
        if let Some(anchor) = target.strip_prefix('#') {
            return self.anchor(file, anchor);
        }
        if let Some((scheme, rest)) = target
            .split_once(':')
            .filter(|(s, rest)| is_scheme(s) && !rest.starts_with(':'))
        {
            return self.outside(scheme, rest, target);
        }
        match readers {
            Readers::GitHub => self.file(file, target),
            Readers::Everywhere => Err(format!(
                "crates.io and docs.rs know no files beside a README: write {}/blob/main/...",
                self.workspace.repository
            )),
            // Names of items, which rustdoc has checked.
            Readers::Rustdoc if !target.contains('/') && !target.ends_with(".md") => Ok(()),
            Readers::Rustdoc => Err("documentation cannot link to a file".into()),
        }
    }

    /// Checks a link to a file or folder of the repository, relative to the folder of the linking
    /// file.
    fn file(&self, from: &str, target: &str) -> Result<(), String> {
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let is_item =
            path.contains("::") || path.starts_with("crate") || !path.contains(['/', '.']);
        let folder = Path::new(from).parent().unwrap_or(Path::new(""));
        let path = normal(&folder.join(path)).ok_or("leads out of the repository")?;
        if !self.exists(&path) {
            let hint = if is_item {
                ", and only rustdoc knows names of items"
            } else {
                ""
            };
            return Err(format!("there is no tracked file or folder {path}{hint}"));
        }
        if anchor.is_empty() {
            Ok(())
        } else {
            self.anchor(&path, anchor)
        }
    }

    fn exists(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        let tracked = &self.workspace.tracked;
        path.is_empty() || tracked.contains(path) || tracked.iter().any(|f| f.starts_with(&folder))
    }

    fn anchor(&self, file: &str, anchor: &str) -> Result<(), String> {
        match self.documents.get(file) {
            Some(document) if document.anchors.contains(anchor) => Ok(()),
            Some(_) => Err(format!("{file} has no heading #{anchor}")),
            None => Err(format!("{file} is not Markdown and has no headings")),
        }
    }

    /// Checks a link with a scheme. A target in this repository or its documentation is looked up.
    fn outside(&self, scheme: &str, rest: &str, target: &str) -> Result<(), String> {
        if scheme == "mailto" {
            return if rest.contains('@') {
                Ok(())
            } else {
                Err("not an address".into())
            };
        }
        let host = rest.strip_prefix("//").unwrap_or_default();
        let host = host.split(['/', '#', '?']).next().unwrap_or_default();
        let is_url = matches!(scheme, "http" | "https")
            && host.contains('.')
            && !target.contains(char::is_whitespace);
        if !is_url {
            return Err("not a URL".into());
        }
        let repository = format!("{}/", self.workspace.repository);
        if let Some(path) = target.strip_prefix(&repository) {
            let path = ["blob/main/", "tree/main/"]
                .iter()
                .find_map(|p| path.strip_prefix(p));
            return match path {
                Some(path) => self.file("", path),
                None => Err("only blob/main/ and tree/main/ of this repository are checked".into()),
            };
        }
        match target.strip_prefix("https://docs.rs/") {
            Some(path) => self.documentation(path),
            None => Ok(()),
        }
    }

    /// Checks a link into the documentation of a published package, which `cargo doc` has made.
    ///
    /// Links into other packages are not looked up.
    fn documentation(&self, path: &str) -> Result<(), String> {
        let (path, anchor) = path.split_once('#').unwrap_or((path, ""));
        let mut parts = path.splitn(4, '/');
        let package = parts.next().unwrap_or_default();
        let library = package.replace('-', "_");
        if !self.libraries.contains(&library) {
            return Ok(());
        }
        match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => return Ok(()),
            (Some("latest"), Some(name), Some(_)) if name == library => {}
            _ => {
                return Err(format!(
                    "write https://docs.rs/{package}/latest/{library}/..."
                ));
            }
        }
        let page = path.splitn(3, '/').nth(2).unwrap_or_default();
        let page = self.workspace.target.join("doc").join(page);
        let page = if page.extension().is_some() {
            page
        } else {
            page.join("index.html")
        };
        let html = fs::read_to_string(&page).map_err(|_| {
            format!(
                "there is no {}; is it public, and did `cargo doc` run?",
                page.display()
            )
        })?;
        if anchor.is_empty() || html.contains(&format!("id=\"{anchor}\"")) {
            Ok(())
        } else {
            Err(format!("{} has no item #{anchor}", page.display()))
        }
    }
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase())
}

/// Resolves `.` and `..`. Returns `None` if the path leads out of its root.
pub(crate) fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => {
                parts.pop()?;
            }
            std::path::Component::CurDir => {}
            std::path::Component::RootDir | std::path::Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests;
