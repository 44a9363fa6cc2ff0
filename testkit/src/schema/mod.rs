//! The schema check of a service: a test that fails before a deployment would make stored events
//! unreadable.
//!
//! A service checks in two things beside its code. The file `TYPES` has one line per schema version
//! of every event that was ever stored, and one per version of the states in snapshots. A directory
//! of *golden payloads* has one or more JSON files per version of an event.
//!
//! ```text
//! cart.CartItemAdded@1  639ccd8b40b6a848  {quantity: i64, stock_code: text}
//! cart.CartItemAdded@2  187fa2d5c3ffb6c1  {gift?: bool, quantity: i64, stock_code: text}
//! snapshot cart@4  a76be0a1fb1070d4  {is_checked_out: bool}
//! ```
//! [`Schema::assert`] in a test fails, and says what to do, if
//! - a payload's shape is not what its line says: raise the schema version and add an upcaster;
//! - a line's event has vanished: the variant was renamed without `#[event(name = "...")]`, or
//!   needs an upcaster;
//! - a version below an event's newest one has no upcaster, whether it was recorded or not: add
//!   one, or say that the version was [never stored](Schema::never_stored);
//! - an upcaster starts from a version that this build writes, so that no reader would see that
//!   version;
//! - the shape of a state in snapshots changed under the same `STATE_VERSION`: raise it;
//! - a golden payload cannot be read, or today's type writes it differently;
//! - something new is not recorded yet: run the test once with `FOLDSTREAM_BLESS=1`, which records
//!   it, and check in the files.
//!
//! # Adopting the check late
//! An event may be at version 3 when a service adopts the check. Versions 1 and 2 are in the store,
//! but their types are gone, so no shape can be traced. Put a stored payload of each version into
//! the directory as `<aggregate>.<name>@<version>.json` and run the test with `FOLDSTREAM_BLESS=1`.
//! The line of such a version says `untraced`, and only its golden payloads guard it.
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
//! # let name = format!("foldstream-schema-{}", std::process::id());
//! # let directory = std::env::temp_dir().join(name);
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
//! The payload type deserializes from a source without data, and what the type asks for is
//! recorded: fields, whether they may be missing, nullable values, variants of enums, elements and
//! widths of numbers, at any depth, with serde's renames, defaults and aliases. Names of Rust types
//! and the order of fields do not count, since JSON does not show them.
//! - A type that accepts only certain texts is offered many common ones. Add yours with
//!   [`Schema::with_text`].
//! - A type that looks at the data to know what it is (`#[serde(flatten)]`, `#[serde(tag =
//!   "...")]`, `#[serde(untagged)]`, `serde_json::Value`) cannot be traced. This is an error and is
//!   never passed over. Allow it with [`Schema::allow_untraced`]: then only golden payloads guard
//!   the place.
//! - Limits on values (the length of a text, the range of a number) are not part of a shape.
//! - What a type *writes* is compared with golden payloads of the current version only. Give them
//!   optional fields and several variants, in several files (`<name>@<version>-<anything>.json`).
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

/// The payloads that a service stores and reads, to be compared with what is checked in.
///
/// The [module documentation](self) says what is compared and shows a complete check.
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

/// The shape of a type, and a payload that the type accepts.
type TracedPayload = Result<(Nodes, Result<Vec<u8>, CodecError>), Untraceable>;

/// The payload that today's type writes, or `None` if the event is retired.
type Rewritten = Result<Option<Vec<u8>>, CodecError>;

/// The events of one aggregate type, without their Rust type.
#[derive(Clone, Copy)]
struct Events {
    aggregate: &'static str,
    types: &'static [foldstream::EventType],
    trace: fn(usize, &[String]) -> TracedPayload,
    /// Lifts and decodes a stored payload, and encodes it again.
    rewrite: fn(&Upcasters, &Key, &[u8]) -> Rewritten,
    /// Adds the upcasters that the event type brings.
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
    /// Returns the versions of the event before this one.
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

/// Encodes a state as a repository does for a snapshot.
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

/// Decodes a payload as every reader does: upcasters first, then the type's own decoding.
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
    /// Creates a check against the file `types`, which is usually named `TYPES` and lies beside
    /// `Cargo.toml`.
    ///
    /// In tests, a relative path is relative to the package. Add the events and states to check
    /// with [`with_events`](Self::with_events) and [`with_snapshots`](Self::with_snapshots).
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

    /// Also compares with the golden payloads in this directory.
    ///
    /// Their names are `<aggregate>.<name>@<version>.json` and
    /// `<aggregate>.<name>@<version>-<anything>.json`. Each file is one payload as it was stored.
    pub fn with_golden(mut self, directory: impl Into<PathBuf>) -> Self {
        self.golden = Some(directory.into());
        self
    }

    /// Adds the events of an aggregate type. Every aggregate type that `TYPES` names must be added
    /// exactly once.
    pub fn with_events<E: DeserializePayload>(mut self) -> Self {
        self.aggregates.push(Events {
            aggregate: E::AGGREGATE,
            types: E::TYPES,
            trace: |index, texts| {
                let traced = trace::trace(|at| E::deserialize_payload(index, at), texts)?;
                Ok((traced.nodes, encoded(&traced.sample)))
            },
            rewrite: rewrite::<E>,
            with_own: foldstream::adapter::upcasters_of::<E>,
        });
        self
    }

    /// Sets the upcasters that repositories and runners are given in addition to those of the event
    /// types.
    pub fn with_upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// Adds the state that a repository stores in snapshots.
    ///
    /// A shape that changes under the same [`STATE_VERSION`](Snapshot::STATE_VERSION) is a problem,
    /// because snapshots of the old shape would be read as the new one.
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

    /// Declares that no build has ever stored this schema version of an event, so that the version
    /// needs no upcaster.
    ///
    /// The arguments are those of an [upcaster](Upcasters::with) from that version.
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

    /// Offers this text to types that accept only certain texts, in addition to the common ones.
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.texts.push(text.into());
        self
    }

    /// Allows that the shape of a place cannot be traced.
    ///
    /// A place is a whole payload (`cart.ItemAdded`) or a part of one (`cart.ItemAdded.extra`).
    /// Only golden payloads guard it then, so the check requires them.
    pub fn allow_untraced(mut self, place: impl Into<String>) -> Self {
        self.untraced.insert(place.into());
        self
    }

    /// Compares this build with what is checked in, and changes no file.
    ///
    /// # Errors
    /// [`SchemaError`] if anything is wrong. It lists every problem.
    pub fn check(&self) -> Result<(), SchemaError> {
        let (build, mut problems) = self.found();
        let (recorded, late) = self.compared(&build, &mut problems);
        self.check_golden(&recorded, &build, &late, &mut problems);
        SchemaError::unless_empty(problems)
    }

    /// Records what is new, and changes nothing that was recorded.
    ///
    /// New are versions of this build, which get golden payloads of the plainest values, and older
    /// versions for which golden payloads were put into the directory. No file is changed while
    /// there is a problem that recording does not solve.
    ///
    /// # Errors
    /// [`SchemaError`] if there is a problem that recording does not solve. It lists all of them.
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

    /// Compares what is recorded with this build, and returns both that record and the versions to
    /// be recorded late.
    fn compared(&self, build: &Build, problems: &mut Vec<SchemaProblem>) -> (Recorded, Vec<Key>) {
        let recorded = types::read(&self.types, &self.aggregates(), problems);
        self.compare(&recorded, &build.events, problems);
        self.compare_states(&recorded, &build.states, problems);
        let late = self.late(&recorded, problems);
        (recorded, late)
    }

    /// Runs [`check`](Self::check) in a test, or [`write`](Self::write) if the environment variable
    /// `FOLDSTREAM_BLESS` is `1`.
    ///
    /// # Panics
    /// If anything is wrong. The message lists every problem and says what to do. Also if the
    /// variable is neither `1`, `0`, empty nor unset.
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

    /// Runs a command line's request, `--check` or `--write`, for a small binary that CI calls.
    ///
    /// # Errors
    /// [`SchemaError`] if the check or the recording fails, or if the argument is missing or
    /// another one.
    pub fn command(&self, argument: Option<&str>) -> Result<(), SchemaError> {
        match argument {
            Some("--check") => self.check(),
            Some("--write") => self.write(),
            _ => Err(SchemaProblem::Usage.into()),
        }
    }

    /// Returns today's events and states with their shapes, and a problem for each shape that
    /// cannot be found.
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

    /// Checks that something was added, and each aggregate type only once.
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

    /// Returns the upcasters of an aggregate type's events. Upcasters that contradict each other
    /// are reported elsewhere.
    fn lifting(&self, aggregate: &str) -> Upcasters {
        let all = (self.events(aggregate)).and_then(|e| (e.with_own)(&self.upcasters).ok());
        all.unwrap_or_else(|| self.upcasters.clone())
    }

    /// Returns a traced shape as text, if `subject` was traced as far as the schema requires.
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

    /// Returns the versions of events that this build writes.
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

    /// Returns the schema version of an event that this build writes.
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

/// The shape that a type reads, with a payload of that shape.
struct Shape {
    text: String,
    is_untraced: bool,
    sample: Option<Vec<u8>>,
}

/// The events and states that this build stores.
struct Build {
    events: Vec<Found>,
    states: Vec<FoundState>,
}

/// An event that this build stores.
struct Found {
    key: Key,
    shape: String,
    /// Set if golden payloads alone guard the payload or a part of it.
    is_untraced: bool,
    sample: Option<Vec<u8>>,
}
