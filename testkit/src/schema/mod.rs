//! The schema check: stored events stay readable, and CI says so before a deployment does.
//!
//! A service checks in two things beside its code: the file `TYPES`, with one line for every schema version of every
//! event that was ever stored and for every version of the states in snapshots, and a directory of *golden payloads*, one JSON
//! file or more for each version of an event.
//!
//! ```text
//! cart.CartItemAdded@1  639ccd8b40b6a848  {quantity: i64, stock_code: text}
//! cart.CartItemAdded@2  187fa2d5c3ffb6c1  {gift?: bool, quantity: i64, stock_code: text}
//! snapshot cart@4  a76be0a1fb1070d4  {is_checked_out: bool}
//! ```
//! [`Schema::assert`] in a test fails, and says what to do, when
//! - a payload's shape is not what its line says: raise the schema version and add an upcaster;
//! - a line's event has vanished: the variant was renamed without `#[event(name = "...")]`, or needs an upcaster;
//! - a version below an event's newest one has no upcaster, whether it was recorded or not: add one, or say that it was
//!   [never stored](Schema::never_stored);
//! - an upcaster starts from a version that this build writes, so that no reader would see it;
//! - the shape of a state in snapshots changed under the same `STATE_VERSION`: raise it;
//! - a golden payload cannot be read any more, or today's type writes it differently;
//! - something new is not recorded yet: run the test once with `FOLDSTREAM_BLESS=1`, which writes it down, and check it in.
//!
//! # Adopting the check late
//! An event may be at version 3 when a service adopts the check. Versions 1 and 2 are in the store, but their types are gone,
//! so no shape can be traced. Put a stored payload of each into the directory as `<aggregate>.<name>@<version>.json` and run
//! the test with `FOLDSTREAM_BLESS=1`. The line of such a version says `untraced`: its golden payloads alone guard it.
//!
//! # Example
//! ```
//! use foldstream::{DomainEvent, Upcasters};
//! use foldstream_testkit::Schema;
//!
//! #[derive(Clone, Debug, PartialEq, DomainEvent)]
//! #[event(aggregate = "cart")]
//! enum CartEvent {
//!     #[event(version = 2)]
//!     ItemAdded { sku: String, quantity: u32 },
//!     CheckedOut,
//! }
//!
//! # let directory = std::env::temp_dir().join(format!("foldstream-schema-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory)?;
//! # std::fs::write(directory.join("TYPES"), "cart.ItemAdded@1  4f69a90d2c933401  {sku: text}\n")?;
//! # std::fs::create_dir_all(directory.join("golden"))?;
//! # std::fs::write(directory.join("golden/cart.ItemAdded@1.json"), "{\"sku\":\"tea\"}\n")?;
//! let schema = Schema::new(directory.join("TYPES"))
//!     .with_golden(directory.join("golden"))
//!     .with_events::<CartEvent>()
//!     .with_upcasters(Upcasters::new().with_json("cart", "ItemAdded", 1, |payload| {
//!         payload["quantity"] = 1.into();
//!         Ok(())
//!     }));
//! // In a test, `schema.assert()`. Here the new lines are not recorded yet.
//! let problems = schema.check().unwrap_err();
//! assert!(problems.to_string().contains("cart.ItemAdded@2 is not recorded"));
//! schema.write()?;
//! schema.check()?;
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok::<(), foldstream::BoxError>(())
//! ```
//!
//! # How a shape is found, and its limits
//! The payload type is let deserialize from nothing, and what it asks for is written down: fields, whether they may be
//! missing, nullable values, variants of enums, elements, widths of numbers, however deep, with serde's renames, defaults
//! and aliases. Names of Rust types and the order of fields do not count, since JSON does not show them.
//! - A type that accepts only certain texts is offered many common ones; add yours by [`Schema::with_text`].
//! - A type that looks at the data to know what it is (`#[serde(flatten)]`, `#[serde(tag = "...")]`,
//!   `#[serde(untagged)]`, `serde_json::Value`) cannot be traced. That is an error, never silence. Allow it by
//!   [`Schema::allow_untraced`]: then golden payloads alone guard it.
//! - Limits on values (a text's length, a number's range) are not part of a shape.
//! - What a type *writes* is compared with golden payloads of the current version only: give them optional fields and
//!   several variants, in several files (`<name>@<version>-<anything>.json`).
mod at;
mod golden;
mod problem;
mod shape;
mod states;
mod trace;
mod types;

pub use golden::upcast_golden;
pub use problem::{SchemaError, SchemaProblem};

use crate::environment;
use foldstream::{
    CodecError, Decoded, DeserializePayload, EventName, EventSet, InvalidUpcasters, Snapshot,
    Upcasters,
};
use shape::Nodes;
use states::{FoundState, State};
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};
use trace::Untraceable;
use types::Recorded;

/// The payloads that a service has stored and reads, to be compared with what is checked in. See the [module](self).
#[derive(Clone)]
#[must_use = "a schema that is not checked says nothing"]
pub struct Schema {
    types: PathBuf,
    golden: Option<PathBuf>,
    aggregates: Vec<Events>,
    states: Vec<State>,
    never_stored: BTreeSet<Key>,
    upcasters: Upcasters,
    untraced: BTreeSet<String>,
    texts: Vec<String>,
}

/// Shape, and a payload that the type accepts.
type TracedPayload = Result<(Nodes, Result<Vec<u8>, CodecError>), Untraceable>;

/// What today's type writes; none if the event is retired.
type Rewritten = Result<Option<Vec<u8>>, CodecError>;

/// The events of one aggregate type, without their Rust type.
#[derive(Clone, Copy)]
struct Events {
    aggregate: &'static str,
    types: &'static [foldstream::EventType],
    trace: fn(usize, &[String]) -> TracedPayload,
    /// Lifts and decodes a stored payload, and writes it again.
    rewrite: fn(&Upcasters, &Key, &[u8]) -> Rewritten,
    /// Adds the upcasters of the events' type.
    with_own: fn(&Upcasters) -> Result<Upcasters, InvalidUpcasters>,
}

/// One schema version of one event, shown `<aggregate>.<name>@<version>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    aggregate: String,
    name: String,
    version: u16,
}
impl Key {
    /// The versions of the event before this one.
    fn older(&self) -> impl Iterator<Item = Self> + use<> {
        let newest = self.clone();
        (1..self.version).map(move |version| Self {
            version,
            ..newest.clone()
        })
    }
}
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.aggregate, self.name, self.version)
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let aggregates: Vec<_> = self.aggregates.iter().map(|e| e.aggregate).collect();
        f.debug_struct("Schema")
            .field("types", &self.types)
            .field("golden", &self.golden)
            .field("aggregates", &aggregates)
            .field("states", &self.states.len())
            .finish_non_exhaustive()
    }
}

fn encoded<E: DeserializePayload>(event: &E) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    event.encode(&mut out).map(|()| out)
}

/// As a repository writes a state.
fn encoded_json<S: serde::Serialize>(state: &S) -> Result<Vec<u8>, CodecError> {
    let written = serde_json::to_vec(state);
    written.map_err(|error| CodecError::Encode {
        source: error.into(),
    })
}

fn rewrite<E: DeserializePayload>(upcasters: &Upcasters, key: &Key, payload: &[u8]) -> Rewritten {
    let event = decode::<E>(upcasters, key, payload)?;
    event.map(|event| encoded(&event)).transpose()
}

/// As every reader does: upcasters, then the type's own decoding.
fn decode<E: EventSet>(
    upcasters: &Upcasters,
    key: &Key,
    payload: &[u8],
) -> Result<Option<E>, CodecError> {
    let name = EventName::from(key.name.clone());
    let payload = payload.to_vec().into();
    let lifted = upcasters.apply(&key.aggregate, &name, key.version, &payload)?;
    let Some(lifted) = lifted else {
        return Ok(None);
    };
    let (name, version) = (&lifted.name, lifted.schema_version);
    match E::decode_from(&key.aggregate, name, version, &lifted.payload)? {
        Decoded::Event(event) => Ok(Some(event)),
        Decoded::NotMine | Decoded::Unknown => Err(CodecError::UnknownEvent {
            aggregate: key.aggregate.clone(),
            name: name.to_string(),
        }),
    }
}

impl Schema {
    /// Compares with the file `types`, by custom named `TYPES` and beside `Cargo.toml`. A relative path is relative to
    /// the package, in tests.
    pub fn new(types: impl Into<PathBuf>) -> Self {
        Self {
            types: types.into(),
            golden: None,
            aggregates: Vec::new(),
            states: Vec::new(),
            never_stored: BTreeSet::new(),
            upcasters: Upcasters::new(),
            untraced: BTreeSet::new(),
            texts: Vec::new(),
        }
    }

    /// Also compares with the golden payloads in this directory: `<aggregate>.<name>@<version>.json` and
    /// `<aggregate>.<name>@<version>-<anything>.json`, each a payload as it was stored.
    pub fn with_golden(mut self, directory: impl Into<PathBuf>) -> Self {
        self.golden = Some(directory.into());
        self
    }

    /// Adds the events of an aggregate type. All that `TYPES` names must be added, each once.
    pub fn with_events<E: DeserializePayload>(mut self) -> Self {
        self.aggregates.push(Events {
            aggregate: E::AGGREGATE,
            types: E::TYPES,
            trace: |index, texts| {
                let traced = trace::trace(|at| E::deserialize_payload(index, at), texts)?;
                Ok((traced.nodes, encoded(&traced.sample)))
            },
            rewrite: rewrite::<E>,
            with_own: Upcasters::with_own_of::<E>,
        });
        self
    }

    /// The upcasters that repositories and runners are given beside those that the event types bring.
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// Adds the state that a repository stores in snapshots. A shape that changes under the same
    /// [`STATE_VERSION`](Snapshot::STATE_VERSION) is a problem: snapshots of the old shape would be taken for the new one.
    ///
    /// # Example
    /// ```
    /// use foldstream::{Aggregate, DomainEvent, Snapshot, id};
    /// use foldstream_testkit::Schema;
    /// use serde::{Deserialize, Serialize};
    ///
    /// id!(CartId);
    /// #[derive(Clone, Debug, PartialEq, DomainEvent)]
    /// #[event(aggregate = "cart")]
    /// enum CartEvent { CheckedOut }
    /// #[derive(Clone, Debug, Default, Serialize, Deserialize)]
    /// struct Cart { is_checked_out: bool }
    /// impl Aggregate for Cart {
    ///     type Id = CartId;
    ///     type Event = CartEvent;
    ///     fn evolve(&mut self, _: &CartEvent) { self.is_checked_out = true; }
    /// }
    /// impl Snapshot for Cart { const STATE_VERSION: u32 = 3; }
    ///
    /// # let file = std::env::temp_dir().join(format!("foldstream-states-{}", std::process::id()));
    /// let schema = Schema::new(&file).with_events::<CartEvent>().with_snapshots::<Cart>();
    /// schema.write()?;
    /// let recorded = std::fs::read_to_string(&file)?;
    /// assert!(recorded.ends_with("snapshot cart@3  a76be0a1fb1070d4  {is_checked_out: bool}\n"));
    /// # std::fs::remove_file(&file)?;
    /// # Ok::<(), foldstream::BoxError>(())
    /// ```
    pub fn with_snapshots<A: Snapshot>(mut self) -> Self {
        self.states.push(State::of::<A>());
        self
    }

    /// Says that no build has ever stored this schema version of an event, so that the version needs no upcaster. The
    /// arguments are those of an [upcaster](Upcasters::with) from that version.
    pub fn never_stored(
        mut self,
        aggregate: impl Into<String>,
        name: impl Into<String>,
        schema_version: u16,
    ) -> Self {
        self.never_stored.insert(Key {
            aggregate: aggregate.into(),
            name: name.into(),
            version: schema_version,
        });
        self
    }

    /// Offers this text to types that accept only certain ones.
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.texts.push(text.into());
        self
    }

    /// Allows that a place cannot be traced: a whole payload (`cart.ItemAdded`) or a part of it
    /// (`cart.ItemAdded.extra`). Its golden payloads alone guard it then, so they must be there.
    pub fn allow_untraced(mut self, place: impl Into<String>) -> Self {
        self.untraced.insert(place.into());
        self
    }

    /// Compares; changes nothing.
    ///
    /// # Errors
    /// [`SchemaError`], with everything that is wrong.
    pub fn check(&self) -> Result<(), SchemaError> {
        let (build, mut problems) = self.found();
        let (recorded, late) = self.compared(&build, &mut problems);
        self.check_golden(&recorded, &build, &late, &mut problems);
        SchemaError::unless_empty(problems)
    }

    /// Records what is new: versions of this build, with golden payloads of the plainest values, and older versions that
    /// golden payloads were put there for. What was recorded is not changed, and nothing is while there is a problem that
    /// recording does not solve.
    ///
    /// # Errors
    /// [`SchemaError`], with everything that recording does not solve.
    pub fn write(&self) -> Result<(), SchemaError> {
        let (build, mut problems) = self.found();
        let (mut recorded, late) = self.compared(&build, &mut problems);
        // A payload that cannot be read must not be recorded as one that can.
        if !late.is_empty() {
            self.check_golden(&recorded, &build, &late, &mut problems);
        }
        problems.retain(|problem| !problem.is_solved_by_recording());
        SchemaError::unless_empty(std::mem::take(&mut problems))?;
        for found in &build.events {
            let shape = || found.shape.clone();
            let recorded = recorded.events.entry(found.key.clone());
            recorded.or_insert_with(shape);
        }
        for found in &build.states {
            let shape = || found.shape.clone();
            let recorded = recorded.states.entry(found.key.clone());
            recorded.or_insert_with(shape);
        }
        let late = late.into_iter().map(|key| (key, types::UNTRACED.into()));
        recorded.events.extend(late);
        types::write(&self.types, &recorded).map_err(SchemaError::from)?;
        self.write_golden(&build, &mut problems);
        SchemaError::unless_empty(problems)?;
        self.check()
    }

    /// What is recorded, compared with this build, and the versions that are to be recorded late.
    fn compared(&self, build: &Build, problems: &mut Vec<SchemaProblem>) -> (Recorded, Vec<Key>) {
        let recorded = types::read(&self.types, &self.aggregates(), problems);
        self.compare(&recorded, &build.events, problems);
        self.compare_states(&recorded, &build.states, problems);
        let late = self.late(&recorded, problems);
        (recorded, late)
    }

    /// [`check`](Self::check) for a test; with the environment variable `FOLDSTREAM_BLESS=1`, [`write`](Self::write).
    ///
    /// # Panics
    /// With everything that is wrong, and what to do about it; also if the variable is neither `1`, `0`, empty nor unset.
    #[track_caller]
    pub fn assert(&self) {
        let result = if environment::is_set(environment::BLESS) {
            self.write()
        } else {
            self.check()
        };
        if let Err(error) = result {
            panic!("{error}");
        }
    }

    /// Does what a command line asks for, for a small binary that CI runs: `--check` or `--write`.
    ///
    /// # Errors
    /// [`SchemaError`]; also for any other argument.
    pub fn command(&self, argument: Option<&str>) -> Result<(), SchemaError> {
        match argument {
            Some("--check") => self.check(),
            Some("--write") => self.write(),
            _ => Err(SchemaProblem::Usage.into()),
        }
    }

    /// Today's events and states with their shapes, and what cannot be found out.
    fn found(&self) -> (Build, Vec<SchemaProblem>) {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        self.check_added(&mut problems);
        for events in &self.aggregates {
            if let Err(source) = (events.with_own)(&self.upcasters) {
                problems.push(SchemaProblem::Upcasters { source });
            }
            for (index, kind) in events.types.iter().enumerate() {
                let key = events.key(kind);
                let traced = (events.trace)(index, &self.texts);
                match self.shape_of(&format!("{}.{}", key.aggregate, key.name), traced) {
                    Ok(shape) => all.push(Found {
                        key,
                        shape: shape.text,
                        is_untraced: shape.is_untraced,
                        sample: shape.sample,
                    }),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        let states = self.found_states(&mut problems);
        let events = all;
        (Build { events, states }, problems)
    }

    /// Each aggregate type was added once, and something was.
    fn check_added(&self, problems: &mut Vec<SchemaProblem>) {
        let states = self.states.iter().map(|state| state.aggregate).collect();
        for (what, mut aggregates) in [("events", self.aggregates()), ("snapshots", states)] {
            aggregates.sort_unstable();
            let twice: BTreeSet<_> = (aggregates.windows(2))
                .filter(|two| two[0] == two[1])
                .map(|two| two[0])
                .collect();
            problems.extend(
                twice
                    .into_iter()
                    .map(|aggregate| SchemaProblem::AddedTwice {
                        aggregate: aggregate.into(),
                        what,
                    }),
            );
        }
        if self.aggregates.is_empty() && self.states.is_empty() {
            problems.push(SchemaProblem::Empty);
        }
    }

    /// The upcasters of an aggregate type's events. Those that do not go together are a problem that is told elsewhere.
    fn lifting(&self, aggregate: &str) -> Upcasters {
        let all = (self.events(aggregate)).and_then(|e| (e.with_own)(&self.upcasters).ok());
        all.unwrap_or_else(|| self.upcasters.clone())
    }

    /// Writes down a shape, if the schema may trace `subject` as far as it could be traced.
    fn shape_of(&self, subject: &str, traced: TracedPayload) -> Result<Shape, SchemaProblem> {
        let is_allowed =
            |place: &str| self.untraced.contains(subject) || self.untraced.contains(place);
        let place = |path: &shape::Path| {
            let text = format!("{subject}.{path}");
            text.trim_end_matches('.').to_owned()
        };
        match traced {
            Ok((nodes, sample)) => {
                let places: Vec<_> = nodes.untraced().iter().map(place).collect();
                let is_untraced = !places.is_empty();
                if let Some(place) = places.into_iter().find(|place| !is_allowed(place)) {
                    let reason = "its type looks at the data to know what it is".into();
                    return Err(SchemaProblem::Untraceable { place, reason });
                }
                Ok(Shape {
                    text: nodes.text(),
                    is_untraced,
                    sample: sample.ok(),
                })
            }
            Err(error) if is_allowed(&place(&error.path)) => Ok(Shape {
                text: types::UNTRACED.into(),
                is_untraced: true,
                sample: None,
            }),
            Err(Untraceable { path, reason }) => Err(SchemaProblem::Untraceable {
                place: place(&path),
                reason,
            }),
        }
    }

    /// What this build writes.
    fn keys(&self) -> impl Iterator<Item = Key> {
        let all = self.aggregates.iter();
        all.flat_map(|events| events.types.iter().map(|kind| events.key(kind)))
    }

    fn aggregates(&self) -> Vec<&'static str> {
        self.aggregates.iter().map(|e| e.aggregate).collect()
    }

    fn events(&self, aggregate: &str) -> Option<&Events> {
        self.aggregates.iter().find(|e| e.aggregate == aggregate)
    }

    /// The schema version that this build writes.
    fn current(&self, aggregate: &str, name: &str) -> Option<u16> {
        let types = self.events(aggregate)?.types;
        let kind = types.iter().find(|kind| kind.name() == name)?;
        Some(kind.schema_version())
    }

    fn golden_directory(&self) -> Option<&Path> {
        self.golden.as_deref()
    }
}

impl Events {
    fn key(&self, kind: &foldstream::EventType) -> Key {
        Key {
            aggregate: self.aggregate.into(),
            name: kind.name().into(),
            version: kind.schema_version(),
        }
    }
}

/// What a type reads, and a payload of it.
struct Shape {
    text: String,
    is_untraced: bool,
    sample: Option<Vec<u8>>,
}

/// What this build stores.
struct Build {
    events: Vec<Found>,
    states: Vec<FoundState>,
}

/// An event of this build.
struct Found {
    key: Key,
    shape: String,
    /// At least in part guarded by golden payloads alone.
    is_untraced: bool,
    sample: Option<Vec<u8>>,
}
