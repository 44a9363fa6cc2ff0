//! The shape of a payload: what is read at each place, and how it is written in one line.
use super::trace::Untraceable;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

/// A place in a payload: fields, variants and elements, from the outermost to the innermost.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path(Vec<String>);

impl Path {
    pub(super) fn push(&mut self, step: String) {
        self.0.push(step);
    }
    pub(super) fn parent(&self) -> Self {
        let above = self.0.len().saturating_sub(1);
        Self(self.0[..above].to_vec())
    }
    pub(super) fn child(&self, step: &str) -> Self {
        let mut child = self.clone();
        child.push(step.into());
        child
    }
}
impl fmt::Display for Path {
    /// Writes the path as `items.[].price`. The steps into newtypes and options are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|s| !matches!(s.as_str(), "" | "?"));
        f.write_str(&shown.cloned().collect::<Vec<_>>().join("."))
    }
}

/// The kind of value that is read at a place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Leaf(&'static str),
    /// The value within, or null.
    Option,
    Seq,
    Map,
    Tuple(usize),
    Struct(Vec<&'static str>),
    Enum(Vec<&'static str>),
    /// A variant without any content.
    Nothing,
    /// A newtype, which JSON does not show.
    Same,
    /// The same type as the one this many types further out.
    Again(usize),
}
impl Node {
    /// The text of a place whose type looks at the data to know what it is.
    pub(super) const ANY: &str = "any";
}

/// The kinds of values that are read at all places.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: BTreeMap<Path, Node>,
    /// The fields that may be missing.
    pub(super) optional: BTreeSet<Path>,
}

impl Nodes {
    /// Records what is read at a place, and fails if something else was read there before.
    pub(super) fn record(&mut self, path: &Path, node: Node) -> Result<(), Untraceable> {
        match self.nodes.get(path) {
            None => {
                self.nodes.insert(path.clone(), node);
                Ok(())
            }
            Some(known) if *known == node => Ok(()),
            // serde announces a tuple struct twice as a tuple, and an alias is noticed only after
            // the first run.
            Some(Node::Struct(_)) if matches!(node, Node::Struct(_)) => {
                self.nodes.insert(path.clone(), node);
                Ok(())
            }
            Some(known) => Err(Untraceable {
                path: path.clone(),
                reason: format!("what is read here depends on other values: {known:?} or {node:?}"),
            }),
        }
    }

    /// Adds what another run has seen, and returns the places that are new.
    pub(super) fn merge(&mut self, other: Self) -> Result<Vec<Path>, Untraceable> {
        let mut new = Vec::new();
        for (path, node) in other.nodes {
            if !self.nodes.contains_key(&path) {
                new.push(path.clone());
            }
            self.record(&path, node)?;
        }
        Ok(new)
    }

    /// Returns every variant of every enum, as the path of the enum and the index of the variant.
    pub(super) fn variants(&self) -> Vec<(Path, usize)> {
        let enums = self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Enum(variants) => Some((path, variants.len())),
            _ => None,
        });
        enums
            .flat_map(|(path, count)| (0..count).map(|n| (path.clone(), n)))
            .collect()
    }

    /// Returns every field of every struct.
    pub(super) fn fields(&self) -> Vec<Path> {
        let structs = self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Struct(fields) => Some(fields.iter().map(|field| path.child(field))),
            _ => None,
        });
        structs.flatten().collect()
    }

    /// Returns the places whose type looks at the data to know what it is.
    pub(super) fn untraced(&self) -> Vec<Path> {
        let any = self
            .nodes
            .iter()
            .filter(|(_, n)| **n == Node::Leaf(Node::ANY));
        any.map(|(path, _)| path.clone()).collect()
    }

    /// Writes the shape in one line. Fields and variants are in alphabetical order, since their
    /// order in the source means nothing in JSON.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        if self.nodes.is_empty() {
            return "{}".into();
        }
        self.write(&Path::default(), &mut out);
        out
    }

    fn write(&self, path: &Path, out: &mut String) {
        // Writing to a String cannot fail.
        match self.nodes.get(path) {
            None => out.push_str("ignored"),
            Some(Node::Leaf(kind)) => out.push_str(kind),
            Some(Node::Nothing) => {}
            Some(Node::Again(levels)) => {
                let _ = write!(out, "^{levels}");
            }
            Some(Node::Same) => self.write(&path.child(""), out),
            Some(Node::Option) => {
                self.write(&path.child("?"), out);
                out.push_str("|null");
            }
            Some(Node::Seq) => {
                out.push('[');
                self.write(&path.child("[]"), out);
                out.push(']');
            }
            Some(Node::Map) => {
                out.push_str("{*");
                self.write(&path.child("key"), out);
                out.push_str(": ");
                self.write(&path.child("{}"), out);
                out.push('}');
            }
            Some(Node::Tuple(len)) => {
                self.list(
                    out,
                    ('[', ", ", ']'),
                    (0..*len).map(|n| n.to_string()),
                    |n, out| {
                        self.write(&path.child(n), out);
                    },
                );
            }
            Some(Node::Struct(fields)) => {
                self.list(out, ('{', ", ", '}'), sorted(fields), |field, out| {
                    let at = path.child(field);
                    out.push_str(field);
                    out.push_str(if self.optional.contains(&at) {
                        "?: "
                    } else {
                        ": "
                    });
                    self.write(&at, out);
                });
            }
            Some(Node::Enum(variants)) => {
                self.list(out, ('<', " | ", '>'), sorted(variants), |variant, out| {
                    let at = path.child(variant);
                    out.push_str(variant);
                    if self.nodes.get(&at) != Some(&Node::Nothing) {
                        out.push_str(": ");
                        self.write(&at, out);
                    }
                });
            }
        }
    }

    fn list(
        &self,
        out: &mut String,
        (open, between, close): (char, &str, char),
        names: impl Iterator<Item = String>,
        write: impl Fn(&str, &mut String),
    ) {
        out.push(open);
        for (n, name) in names.enumerate() {
            if n > 0 {
                out.push_str(between);
            }
            write(&name, out);
        }
        out.push(close);
    }
}

fn sorted(names: &[&'static str]) -> impl Iterator<Item = String> + use<> {
    let mut names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    names.sort_unstable();
    names.into_iter()
}
