//! The plan of a replay: which projectors, and the whole history or a part of it.
use super::ReplayError;
use crate::{
    StreamId,
    control::{RunFilter, RunRow},
    runner::{
        PartialReplay, ReplayPart,
        rebuild::{Candidate, Only},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

/// The projectors of a replay, and the part of the history.
pub(super) struct Plan {
    pub(super) projectors: Vec<Candidate>,
    /// The part of the history; `None` for a full replay.
    pub(super) part: Option<ReplayPart>,
}

impl Plan {
    /// Chooses projectors by name, or all.
    pub(super) fn new(
        candidates: Vec<Candidate>,
        names: Option<&[String]>,
        part: &ReplayPart,
    ) -> Result<Self, ReplayError> {
        let projectors = match names {
            None => candidates
                .into_iter()
                .filter(Candidate::is_projector)
                .collect(),
            Some(names) => chosen(&candidates, names)?,
        };
        if projectors.is_empty() {
            return Err(ReplayError::NoProjector);
        }
        check_names(&projectors, part)?;
        let (whole, parts): (Vec<_>, Vec<_>) = projectors.iter().partition(|of| covers(part, of));
        if let (Some(whole), Some(part)) = (whole.first(), parts.first()) {
            return Err(ReplayError::Mixed {
                whole: whole.name().to_string(),
                part: part.name().to_string(),
            });
        }
        let refused = parts
            .iter()
            .find(|of| of.partial_replay() == PartialReplay::Refused);
        if let Some(refused) = refused {
            return Err(ReplayError::PartRefused {
                name: refused.name().to_string(),
            });
        }
        let part = (!parts.is_empty()).then(|| part.clone());
        Ok(Self { projectors, part })
    }

    /// Returns the plan with which a run goes on.
    pub(super) fn of_run(
        run: super::RunId,
        row: &RunRow,
        candidates: &[Candidate],
    ) -> Result<Self, ReplayError> {
        let names: Vec<_> = row.processors.iter().map(|of| of.name.clone()).collect();
        let projectors = chosen(candidates, &names)?;
        for (of, candidate) in row.processors.iter().zip(&projectors) {
            if of.model != candidate.model() {
                return Err(ReplayError::WrongModel {
                    run,
                    processor: of.name.clone(),
                    expected: candidate.model(),
                    found: of.model,
                });
            }
        }
        let part = row.filter.as_ref().map(part_of);
        Ok(Self { projectors, part })
    }

    pub(super) fn filter(&self) -> Option<RunFilter> {
        self.part.as_ref().map(|part| RunFilter {
            events: part.events.clone(),
            streams: part
                .streams
                .as_ref()
                .map(|of| of.iter().map(ToString::to_string).collect()),
            aggregates: part.aggregates.clone(),
            from: part.from,
            until: part.until,
        })
    }

    /// Returns the part of the history in the form in which events are compared with it.
    pub(super) fn only(&self) -> Option<Only> {
        self.part.as_ref().map(|part| Only {
            events: part.events.as_deref().map(set),
            streams: part.streams.as_deref().map(set),
            aggregates: part.aggregates.as_deref().map(set),
            from: part.from,
            until: part.until,
        })
    }
}

fn set<T: Clone + Eq + std::hash::Hash>(of: &[T]) -> Arc<HashSet<T>> {
    Arc::new(of.iter().cloned().collect())
}

/// Returns a filter as users know it.
pub(crate) fn part_of(filter: &RunFilter) -> ReplayPart {
    // A stream id was written by this library, and is readable.
    let streams = filter.streams.as_ref();
    let streams = streams.map(|of| of.iter().filter_map(|s| StreamId::parse(s).ok()).collect());
    ReplayPart {
        events: filter.events.clone(),
        streams,
        aggregates: filter.aggregates.clone(),
        from: filter.from,
        until: filter.until,
    }
}

fn chosen(candidates: &[Candidate], names: &[String]) -> Result<Vec<Candidate>, ReplayError> {
    let mut found = BTreeMap::new();
    for name in names {
        match candidates.iter().find(|of| **of.name() == **name) {
            Some(of) if of.is_projector() => drop(found.insert(name, of.clone())),
            Some(_) => return Err(ReplayError::NotAProjector { name: name.clone() }),
            None => {
                let projectors = candidates.iter().filter(|of| of.is_projector());
                let known: Vec<_> = projectors.map(|of| of.name().to_string()).collect();
                return Err(ReplayError::UnknownProcessor {
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
        }
    }
    // In the order in which they were named, each once.
    let mut order = BTreeSet::new();
    let unique = names.iter().filter(|name| order.insert(*name));
    Ok(unique.filter_map(|name| found.remove(name)).collect())
}

/// Checks that each chosen name is subscribed to: a name that was mistyped would be a replay of
/// nothing.
fn check_names(projectors: &[Candidate], part: &ReplayPart) -> Result<(), ReplayError> {
    let (mut events, mut aggregates) = (BTreeSet::new(), BTreeSet::new());
    for (aggregate, types) in projectors.iter().flat_map(Candidate::subscriptions) {
        aggregates.insert(aggregate);
        events.extend(types);
    }
    let check = |names: Option<&Vec<String>>, known: &BTreeSet<&str>| {
        let mut names = names.into_iter().flatten();
        match names.find(|name| !known.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => Err(ReplayError::NotSubscribed {
                name: name.clone(),
                known: known.iter().copied().collect::<Vec<_>>().join(", "),
            }),
        }
    };
    check(part.events.as_ref(), &events)?;
    check(part.aggregates.as_ref(), &aggregates)?;
    let streams = part.streams.iter().flatten();
    let strange = streams
        .into_iter()
        .find(|s| !aggregates.contains(s.aggregate()));
    match strange {
        None => Ok(()),
        Some(stream) => Err(ReplayError::NotSubscribed {
            name: stream.to_string(),
            known: aggregates.iter().copied().collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Returns true if the part is all that a projector subscribes to.
fn covers(part: &ReplayPart, of: &Candidate) -> bool {
    if part.streams.is_some() || part.from.is_some() || part.until.is_some() {
        return false;
    }
    let has = |names: Option<&Vec<String>>, name: &str| {
        names.is_none_or(|names| names.iter().any(|of| of == name))
    };
    of.subscriptions().iter().all(|(aggregate, types)| {
        has(part.aggregates.as_ref(), aggregate)
            && types.iter().all(|name| has(part.events.as_ref(), name))
    })
}
