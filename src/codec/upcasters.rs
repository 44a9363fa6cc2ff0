//! Upcasters: the steps that lift stored payloads to the schema versions that today's types read.
use super::{CodecError, InvalidUpcasters, json};
use crate::{BoxError, EventName, EventSet};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

/// The result of one upcasting step on an older payload.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Upcast {
    /// The payload in the next schema version.
    Payload(Bytes),
    /// A payload under another name, with its schema version.
    Renamed {
        /// The new stored name of the event.
        name: EventName,
        /// The schema version of the payload under that name.
        schema_version: u16,
        /// The payload under the new name.
        payload: Bytes,
    },
    /// The event has no meaning any more. Handlers and folds skip it, but its version stays
    /// occupied.
    Retired,
}

/// A payload after every upcaster that applies to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifted {
    /// The stored name, or the name to which the event was renamed.
    pub name: EventName,
    /// The schema version that the payload has now.
    pub schema_version: u16,
    /// The payload in that schema version.
    pub payload: Bytes,
}

type Step = Arc<dyn Fn(Bytes) -> Result<Upcast, BoxError> + Send + Sync>;

/// The steps by name, then by the schema version from which a step starts.
type StepsByName = HashMap<String, BTreeMap<u16, Step>>;

/// Lifts stored payloads, one schema version at a time, to the versions that today's types read.
/// Cloning increments a reference count.
///
/// The upcasters of an event type belong to the type: `#[event(upcasters = path)]`, or
/// [`DomainEvent::upcasters`](crate::DomainEvent::upcasters). Then repositories, runners and the
/// testkit all use them, and no reader can lack them. `with_upcasters` of a repository or a runner
/// is for event types of other crates.
///
/// An upcaster never turns one event into several, because that would change versions.
///
/// # Example
/// ```
/// use foldstream::{Upcast, Upcasters};
/// let upcasters = Upcasters::new()
///     .with_json("cart", "ItemAdded", 1, |payload| {
///         payload["quantity"] = 1.into();
///         Ok(())
///     })
///     .with("cart", "Viewed", 1, |_| Ok(Upcast::Retired));
/// let lifted = upcasters.apply("cart", &"ItemAdded".into(), 1, &b"{}"[..].into())?;
/// assert_eq!(&lifted.unwrap().payload[..], br#"{"quantity":1}"#);
/// assert_eq!(upcasters.apply("cart", &"Viewed".into(), 1, &b"{}"[..].into())?, None);
/// # Ok::<(), foldstream::CodecError>(())
/// ```
#[derive(Clone, Default)]
pub struct Upcasters {
    /// The steps by aggregate type. The maps are nested, so that a look-up allocates nothing.
    steps: Arc<HashMap<String, StepsByName>>,
}

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.steps.iter().flat_map(|(aggregate, names)| {
            names.iter().flat_map(move |(name, steps)| {
                steps
                    .keys()
                    .map(move |from| format!("{aggregate}.{name}@{from}"))
            })
        });
        f.debug_set().entries(names).finish()
    }
}

impl Upcasters {
    /// The largest number of steps that one event may take. More steps are a cycle of renames.
    const MAX_STEPS: usize = 1000;

    /// Creates upcasters without any step.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step that lifts `aggregate`.`name` from schema version `from` to the next, on bytes.
    /// A later step with the same start replaces an earlier one.
    #[must_use]
    pub fn with(
        mut self,
        aggregate: &str,
        name: &str,
        from: u16,
        step: impl Fn(Bytes) -> Result<Upcast, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let names = Arc::make_mut(&mut self.steps).entry(aggregate.into());
        let steps = names.or_default().entry(name.into()).or_default();
        steps.insert(from, Arc::new(step));
        self
    }

    /// Adds a step that lifts `aggregate`.`name` from schema version `from` to the next, as a JSON
    /// value.
    ///
    /// A number that the step does not change keeps its text to the last digit, even if the step
    /// moves it. If the payload has several texts of one number, such as `1.5` and `1.50`, a moved
    /// one gets the shortest text. In place of a number that no `f64` can hold, such as a large
    /// `u128` or `1e400`, the step sees an `f64` close to it. To change such a number, use
    /// [`with`](Self::with).
    #[must_use]
    pub fn with_json(
        self,
        aggregate: &str,
        name: &str,
        from: u16,
        step: impl Fn(&mut serde_json::Value) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.with(aggregate, name, from, move |payload| {
            Ok(Upcast::Payload(json::edit(&payload, &step)?.into()))
        })
    }

    /// Returns true if a step starts from this name in this schema version.
    #[doc(hidden)]
    pub fn has_step(&self, aggregate: &str, name: &str, schema_version: u16) -> bool {
        let steps = self.steps.get(aggregate).and_then(|names| names.get(name));
        steps.is_some_and(|steps| steps.contains_key(&schema_version))
    }

    /// Adds a step that lifts a payload to another name, as a JSON value: the result of the step is
    /// a payload of `to` in `schema_version`.
    ///
    /// # Example
    /// ```
    /// use foldstream::Upcasters;
    /// let upcasters = Upcasters::new().with_json_renamed("cart", "Added", 1, "ItemAdded", 1, |payload| {
    ///     payload["sku"] = payload["article"].take();
    ///     Ok(())
    /// });
    /// let old = br#"{"article":"A","price":1.50}"#;
    /// let lifted = upcasters.apply("cart", &"Added".into(), 1, &old[..].into())?.unwrap();
    /// assert_eq!((lifted.name.as_str(), lifted.schema_version), ("ItemAdded", 1));
    /// assert_eq!(&lifted.payload[..], br#"{"article":null,"price":1.50,"sku":"A"}"#);
    /// # Ok::<(), foldstream::CodecError>(())
    /// ```
    #[must_use]
    pub fn with_json_renamed(
        self,
        aggregate: &str,
        name: &str,
        from: u16,
        to: impl Into<EventName>,
        schema_version: u16,
        step: impl Fn(&mut serde_json::Value) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        let to = to.into();
        self.with(aggregate, name, from, move |payload| {
            Ok(Upcast::Renamed {
                name: to.clone(),
                schema_version,
                payload: json::edit(&payload, &step)?.into(),
            })
        })
    }

    /// Adds all steps of `other`. A step of `other` replaces an earlier one with the same start.
    #[must_use]
    pub fn with_all(mut self, other: &Self) -> Self {
        if self.steps.is_empty() {
            return other.clone();
        }
        let all = Arc::make_mut(&mut self.steps);
        for (aggregate, names) in &*other.steps {
            let known = all.entry(aggregate.clone()).or_default();
            for (name, steps) in names {
                let known = known.entry(name.clone()).or_default();
                known.extend(steps.iter().map(|(from, step)| (*from, step.clone())));
            }
        }
        self
    }

    /// Adds the steps that the event types of `E` bring themselves ([`EventSet::upcasters`]).
    /// Repositories and runners do so with the upcasters that they are given.
    ///
    /// # Errors
    /// - [`InvalidUpcasters::LiftedByItsType`] if a step here starts from a name that its event
    ///   type lifts itself.
    /// - [`InvalidUpcasters::Foreign`] if an event type brings a step for another aggregate type.
    #[doc(hidden)]
    pub fn with_own_of<E: EventSet>(&self) -> Result<Self, InvalidUpcasters> {
        let own = E::upcasters();
        let selectors = E::selectors();
        for (aggregate, names) in &*own.steps {
            let is_foreign = !selectors.iter().any(|s| s.aggregate == aggregate);
            for name in names.keys() {
                let (aggregate, name) = (aggregate.clone(), name.clone());
                if is_foreign {
                    return Err(InvalidUpcasters::Foreign { aggregate, name });
                }
                if self.know(&aggregate, &name) {
                    return Err(InvalidUpcasters::LiftedByItsType { aggregate, name });
                }
            }
        }
        Ok(own.with_all(self))
    }

    /// Returns true if any step starts from this name.
    pub(crate) fn know(&self, aggregate: &str, name: &str) -> bool {
        let names = self.steps.get(aggregate);
        names.is_some_and(|names| names.contains_key(name))
    }

    /// Applies every step that starts from the payload's name and version. Returns `None` if the
    /// event is retired.
    ///
    /// # Errors
    /// [`CodecError::Upcast`] if a step fails, or if renames form a cycle.
    pub fn apply(
        &self,
        aggregate: &str,
        name: &EventName,
        schema_version: u16,
        payload: &Bytes,
    ) -> Result<Option<Lifted>, CodecError> {
        let mut lifted = Lifted {
            name: name.clone(),
            schema_version,
            payload: payload.clone(),
        };
        let Some(names) = self.steps.get(aggregate) else {
            return Ok(Some(lifted));
        };
        for _ in 0..Self::MAX_STEPS {
            let steps = names.get(lifted.name.as_str());
            let Some(step) = steps.and_then(|s| s.get(&lifted.schema_version)) else {
                return Ok(Some(lifted));
            };
            let failed = |source| CodecError::Upcast {
                aggregate: aggregate.into(),
                name: lifted.name.to_string(),
                from: lifted.schema_version,
                source,
            };
            match step(std::mem::take(&mut lifted.payload)).map_err(failed)? {
                Upcast::Payload(payload) => {
                    lifted.schema_version = lifted.schema_version.saturating_add(1);
                    lifted.payload = payload;
                }
                Upcast::Renamed {
                    name,
                    schema_version,
                    payload,
                } => {
                    lifted = Lifted {
                        name,
                        schema_version,
                        payload,
                    }
                }
                Upcast::Retired => return Ok(None),
            }
        }
        Err(CodecError::Upcast {
            aggregate: aggregate.into(),
            name: name.to_string(),
            from: schema_version,
            source: "the upcasters run in a circle".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(upcasters: &Upcasters, name: &'static str) -> Result<Option<Lifted>, CodecError> {
        upcasters.apply("cart", &name.into(), 1, &Bytes::from_static(b"{}"))
    }

    #[test]
    fn steps_run_one_after_the_other_through_a_rename() {
        let upcasters = Upcasters::new()
            .with_json("cart", "Old", 1, |v| {
                v["a"] = 1.into();
                Ok(())
            })
            .with("cart", "Old", 2, |payload| {
                Ok(Upcast::Renamed {
                    name: "New".into(),
                    schema_version: 4,
                    payload,
                })
            })
            .with_json("cart", "New", 4, |v| {
                v["b"] = 2.into();
                Ok(())
            });
        let lifted = apply(&upcasters, "Old").unwrap().unwrap();
        assert_eq!((lifted.name.as_str(), lifted.schema_version), ("New", 5));
        assert_eq!(&lifted.payload[..], br#"{"a":1,"b":2}"#);
    }

    #[test]
    fn a_circle_of_renames_is_an_error() {
        let to = |name: &'static str| {
            move |payload| {
                Ok(Upcast::Renamed {
                    name: name.into(),
                    schema_version: 1,
                    payload,
                })
            }
        };
        let upcasters =
            Upcasters::new()
                .with("cart", "A", 1, to("B"))
                .with("cart", "B", 1, to("A"));
        assert!(matches!(
            apply(&upcasters, "A"),
            Err(CodecError::Upcast { .. })
        ));
    }

    #[test]
    fn events_of_other_aggregates_are_left_alone() {
        let upcasters = Upcasters::new().with("order", "A", 1, |_| Ok(Upcast::Retired));
        assert_eq!(apply(&upcasters, "A").unwrap().unwrap().name, "A");
    }
}
