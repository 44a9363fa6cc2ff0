//! What a payload reads, place by place, and how it is written in a line.
use super::trace::Untraceable;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

/// A place in a payload: fields, variants, elements from the outermost in.
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
    /// `items.[].price`; the steps into newtypes and options are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|s| !matches!(s.as_str(), "" | "?"));
        f.write_str(&shown.cloned().collect::<Vec<_>>().join("."))
    }
}

/// What is read at a place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Leaf(&'static str),
    /// What lies within, or null.
    Option,
    Seq,
    Map,
    Tuple(usize),
    Struct(Vec<&'static str>),
    Enum(Vec<&'static str>),
    /// A variant without content.
    Nothing,
    /// A newtype: JSON shows what lies within.
    Same,
    /// The type so many types further out.
    Again(usize),
}
impl Node {
    /// A place where the type looks at the data to know what it is.
    pub(super) const ANY: &str = "any";
}

/// What is read at all places.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: BTreeMap<Path, Node>,
    /// Fields that may be missing.
    pub(super) optional: BTreeSet<Path>,
}

impl Nodes {
    /// Fails if something else is read at this place.
    pub(super) fn record(&mut self, path: &Path, node: Node) -> Result<(), Untraceable> {
        match self.nodes.get(path) {
            None => {
                self.nodes.insert(path.clone(), node);
                Ok(())
            }
            Some(known) if *known == node => Ok(()),
            // A tuple struct says twice that it is a tuple; an alias is noticed only after the first look.
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

    /// Takes over what another run has seen, and says which places are new.
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

    /// Every variant of every enum.
    pub(super) fn variants(&self) -> Vec<(Path, usize)> {
        let enums = self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Enum(variants) => Some((path, variants.len())),
            _ => None,
        });
        enums
            .flat_map(|(path, count)| (0..count).map(|n| (path.clone(), n)))
            .collect()
    }

    /// Every field of every struct.
    pub(super) fn fields(&self) -> Vec<Path> {
        let structs = self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Struct(fields) => Some(fields.iter().map(|field| path.child(field))),
            _ => None,
        });
        structs.flatten().collect()
    }

    /// Places where the type looks at the data to know what it is.
    pub(super) fn untraced(&self) -> Vec<Path> {
        let any = self
            .nodes
            .iter()
            .filter(|(_, n)| **n == Node::Leaf(Node::ANY));
        any.map(|(path, _)| path.clone()).collect()
    }

    /// One line. Fields and variants are in alphabetical order, since their order in the source means nothing in JSON.
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
