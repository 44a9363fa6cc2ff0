//! Traces what a payload type reads, by letting it deserialize from a source without data.
//!
//! A type asks its deserializer for what it wants: this field, a text, one of these variants.
//! [`At`] records each request under its path and makes up an answer. If a type refuses an answer
//! (such as a text that is not a date), the run is repeated with the next candidate for the value
//! that was given last. An enum is run once per variant, and each field is left out once to see
//! whether it may be missing.
use super::{
    at::{At, Fail, Run},
    shape::{Nodes, Path},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

/// Texts that many types accept, tried in this order.
const TEXTS: &[&str] = &[
    "",
    "a",
    "0",
    "1",
    "1.0",
    "true",
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00",
    "2026-01-01",
    "00:00:00",
    "PT1S",
    "UTC",
    "01920000-0000-7000-8000-000000000001",
    "01920000-0000-7000-8000-000000000001/0",
    "a#1",
    "a@example.com",
    "https://example.com/",
    "127.0.0.1",
    "::1",
    "127.0.0.1:80",
    "1.0.0",
    "EUR",
    "US",
    "en",
    "00000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "AAAAAAAAAAAAAAAAAAAAAA==",
];

/// The reason that a payload's shape cannot be traced.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Untraceable {
    pub(super) path: Path,
    pub(super) reason: String,
}

/// The result of tracing a type.
pub(super) struct Traced<E> {
    pub(super) nodes: Nodes,
    /// A value made of the first answers that the type accepted.
    pub(super) sample: E,
}

type Variants = BTreeMap<Path, usize>;

/// The answers that a run gives to a type.
#[derive(Clone, Default)]
pub(super) struct Plan {
    /// The index of each value's candidate, 0 if absent.
    pub(super) candidates: BTreeMap<Path, usize>,
    /// The fields that are aliases of an earlier field.
    pub(super) aliases: BTreeSet<Path>,
    /// The variant that a recursive enum becomes within itself, by type.
    pub(super) inner: BTreeMap<&'static str, usize>,
    /// The index of each enum's variant, 0 if absent.
    pub(super) variants: Variants,
    pub(super) omitted: Option<Path>,
}

/// Traces what `read` asks a deserializer for, over as many runs as it takes.
pub(super) fn trace<E>(
    read: impl Fn(At<'_, '_>) -> Result<E, Fail>,
    more_texts: &[String],
) -> Result<Traced<E>, Untraceable> {
    let texts: Vec<_> = TEXTS
        .iter()
        .copied()
        .chain(more_texts.iter().map(|t| &**t))
        .collect();
    let mut search = Search {
        read,
        texts: &texts,
        plan: Plan::default(),
        nodes: Nodes::default(),
        found_with: BTreeMap::new(),
    };
    let sample = search.settle(&Variants::new())?;
    let mut tried = BTreeSet::new();
    while let Some((path, variant)) = search.next_variant(&mut tried) {
        let mut variants = search.found_with.get(&path).cloned().unwrap_or_default();
        variants.insert(path, variant);
        search.settle(&variants)?;
    }
    for field in search.nodes.fields() {
        let variants = search.found_with.get(&field).cloned().unwrap_or_default();
        let plan = Plan {
            variants,
            omitted: Some(field.clone()),
            ..search.plan.clone()
        };
        if search.run(plan).0.is_ok() {
            search.nodes.optional.insert(field);
        }
    }
    let nodes = search.nodes;
    Ok(Traced { nodes, sample })
}

/// The state of all runs over one payload type.
struct Search<'t, R> {
    read: R,
    texts: &'t [&'t str],
    /// The answers that were accepted so far, without variants.
    plan: Plan,
    nodes: Nodes,
    /// The variants under which a path was reached.
    found_with: BTreeMap<Path, Variants>,
}

impl<'t, R> Search<'t, R> {
    fn run<E>(&self, plan: Plan) -> (Result<E, Fail>, Run<'t>)
    where
        R: Fn(At<'_, '_>) -> Result<E, Fail>,
    {
        let run = RefCell::new(Run {
            plan,
            texts: self.texts,
            nodes: Nodes::default(),
            last: None,
            last_field: None,
            open: Vec::new(),
            duplicate: false,
            endless: None,
            verdict: None,
        });
        let at = At::root(&run);
        let result = (self.read)(at);
        (result, run.into_inner())
    }

    /// Runs with these variants until the type accepts every answer.
    fn settle<E>(&mut self, variants: &Variants) -> Result<E, Untraceable>
    where
        R: Fn(At<'_, '_>) -> Result<E, Fail>,
    {
        loop {
            let plan = Plan {
                variants: variants.clone(),
                ..self.plan.clone()
            };
            let (result, run) = self.run(plan);
            if let Some(verdict) = run.verdict {
                return Err(verdict);
            }
            let fail = match result {
                Ok(value) => {
                    for path in self.nodes.merge(run.nodes)? {
                        self.found_with.insert(path, variants.clone());
                    }
                    return Ok(value);
                }
                Err(fail) => fail,
            };
            if let Some((name, of)) = run.endless {
                let inner = self.plan.inner.entry(name).or_default();
                *inner += 1;
                if *inner >= of {
                    let reason = format!("{name} holds itself without an end");
                    return Err(Untraceable {
                        path: Path::default(),
                        reason,
                    });
                }
                continue;
            }
            if run.duplicate
                && let Some(field) = run.last_field
            {
                self.plan.aliases.insert(field);
                continue;
            }
            let (path, count) = run.last.unwrap_or_default();
            let next = self.plan.candidates.get(&path).map_or(1, |n| n + 1);
            if next >= count {
                let reason =
                    format!("every value that was tried is refused, the last with: {fail}");
                return Err(Untraceable { path, reason });
            }
            self.plan.candidates.insert(path, next);
        }
    }

    fn next_variant(&self, tried: &mut BTreeSet<(Path, usize)>) -> Option<(Path, usize)> {
        let all = self.nodes.variants();
        all.into_iter().find(|place| tried.insert(place.clone()))
    }
}
