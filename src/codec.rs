//! From stored bytes to today's events: upcasters, and the JSON codec that the derive uses.
use crate::{BoxError, Decoded, EventName, EventSet, PayloadError};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

/// A payload that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The name is not one of the aggregate type's events: a newer build wrote it, or it was renamed without an upcaster.
    #[error(
        "unknown event {aggregate}.{name}: deploy the build that knows it, or add an upcaster that renames or retires it"
    )]
    UnknownEvent {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
    },
    /// The payload was written by a newer build.
    #[error(
        "event {aggregate}.{name} has schema version {found}, this build reads {known}: deploy the newer build"
    )]
    TooNew {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
        /// The payload's version.
        found: u16,
        /// The version that this build reads.
        known: u16,
    },
    /// The payload is of an older schema version, and no upcaster lifts it.
    #[error(
        "event {aggregate}.{name} has schema version {found}, this build reads {known}: add an upcaster from {found}"
    )]
    NoUpcaster {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
        /// The payload's version.
        found: u16,
        /// The version that this build reads.
        known: u16,
    },
    /// The bytes are not this type's.
    #[error("the payload cannot be decoded")]
    Decode {
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The value cannot be stored.
    #[error("the payload cannot be encoded")]
    Encode {
        /// Why.
        #[source]
        source: BoxError,
    },
    /// An upcaster failed.
    #[error("event {aggregate}.{name} of schema version {from} cannot be upcast")]
    Upcast {
        /// The aggregate type.
        aggregate: String,
        /// The stored name.
        name: String,
        /// The version that the failing step starts from.
        from: u16,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The payload was written by a codec that is not configured here.
    #[error(
        "the payload was written by codec {tag:?}, which is not configured here: add it with `PayloadCodecs::with_reader`"
    )]
    UnknownCodec {
        /// The stored tag.
        tag: String,
    },
    /// A payload codec could not do its work.
    #[error("payload codec {tag} failed")]
    Payload {
        /// Which.
        tag: String,
        /// Why.
        #[source]
        source: PayloadError,
    },
    /// A payload codec's tag cannot be stored.
    #[error(
        "{tag:?} cannot be a payload codec's tag: 1 to 64 printable ASCII characters without a comma, and not `shredded`"
    )]
    InvalidTag {
        /// The tag.
        tag: String,
    },
}

impl CodecError {
    /// Whether the same call may succeed later: only where a payload codec's key service is away or throttles.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Payload { source, .. } if source.is_transient())
    }

    pub(crate) fn schema(aggregate: &str, name: &str, found: u16, known: u16) -> Self {
        let (aggregate, name) = (aggregate.into(), name.into());
        if found > known {
            Self::TooNew {
                aggregate,
                name,
                found,
                known,
            }
        } else {
            Self::NoUpcaster {
                aggregate,
                name,
                found,
                known,
            }
        }
    }
}

#[doc(hidden)]
pub fn encode_json(
    value: &(impl serde::Serialize + ?Sized),
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    serde_json::to_writer(out, value).map_err(|e| CodecError::Encode { source: e.into() })
}

#[doc(hidden)]
pub fn decode_json<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    // One check of the whole text is faster than serde_json's of each string in it.
    let text = std::str::from_utf8(payload).map_err(|e| CodecError::Decode { source: e.into() })?;
    serde_json::from_str(text).map_err(|e| CodecError::Decode {
        source: without_values(e),
    })
}

/// What is wrong and where, without the value that was found: it may be personal, and errors are logged and kept.
fn without_values(error: serde_json::Error) -> BoxError {
    if !error.is_data() {
        // About the text's form; quotes nothing.
        return error.into();
    }
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&place).unwrap_or(&text);
    let starts = |beginnings: &[&str]| beginnings.iter().any(|b| what.starts_with(b));
    let shown = if starts(&["missing field ", "duplicate field ", "invalid length "]) {
        what.to_owned()
    } else if starts(&["invalid type: ", "invalid value: ", "unknown variant "])
        && let Some((found, expected)) = what.rsplit_once(", expected ")
    {
        // `string "Ann"`, `integer `5``: the kind without the value.
        let kind = found.split(['"', '`']).next().unwrap_or_default();
        format!("{}, expected {expected}", kind.trim_end())
    } else {
        "a value is refused by its type".to_owned()
    };
    format!("{shown}{place}").into()
}

#[doc(hidden)]
pub fn bad_index(index: usize) -> CodecError {
    CodecError::Decode {
        source: format!("no event type has index {index}").into(),
    }
}

/// What an upcaster made of an older payload.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Upcast {
    /// The next schema version's payload.
    Payload(Bytes),
    /// Another name, with its schema version and payload.
    Renamed {
        /// The new stored name.
        name: EventName,
        /// The schema version of the payload under that name.
        schema_version: u16,
        /// The payload.
        payload: Bytes,
    },
    /// The event no longer means anything: handlers and folds skip it, its version stays taken.
    Retired,
}

/// A payload after every upcaster that applies.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifted {
    /// The stored name, or the one it was renamed to.
    pub name: EventName,
    /// The schema version that the payload now has.
    pub schema_version: u16,
    /// The payload.
    pub payload: Bytes,
}

type Step = Arc<dyn Fn(Bytes) -> Result<Upcast, BoxError> + Send + Sync>;

/// By name, then by the schema version that a step starts from.
type StepsByName = HashMap<String, BTreeMap<u16, Step>>;

/// Lifts stored payloads, one schema version at a time, to what today's types read. One registry serves load, runner
/// and replay. Cloning is a reference count.
///
/// An upcaster never turns one event into several: versions would move.
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
    /// By aggregate type; nested, so that a look-up allocates nothing.
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
    /// Steps that one event may take. More is a cycle of renames.
    const MAX_STEPS: usize = 1000;

    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lifts `aggregate`.`name` from schema version `from` to the next, on bytes. A later step for the same place replaces an earlier one.
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

    /// The same on a JSON value.
    #[must_use]
    pub fn with_json(
        self,
        aggregate: &str,
        name: &str,
        from: u16,
        step: impl Fn(&mut serde_json::Value) -> Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.with(aggregate, name, from, move |payload| {
            let mut value = serde_json::from_slice(&payload)?;
            step(&mut value)?;
            Ok(Upcast::Payload(serde_json::to_vec(&value)?.into()))
        })
    }

    /// Whether a step starts from this name in this schema version.
    pub fn has_step(&self, aggregate: &str, name: &str, schema_version: u16) -> bool {
        let steps = self.steps.get(aggregate).and_then(|names| names.get(name));
        steps.is_some_and(|steps| steps.contains_key(&schema_version))
    }

    /// Whether any step starts from this name.
    pub(crate) fn know(&self, aggregate: &str, name: &str) -> bool {
        let names = self.steps.get(aggregate);
        names.is_some_and(|names| names.contains_key(name))
    }

    /// Runs every step that applies. `None`: the event is retired.
    ///
    /// # Errors
    /// [`CodecError::Upcast`] if a step fails, or if renames run in a circle.
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

/// The way from an opened payload to an event, the same for every reader: upcasters, then the types' own decoding.
/// None: retired, or of an aggregate type that is not in the set. An unknown name is [`CodecError::UnknownEvent`].
pub(crate) fn decode<E: EventSet>(
    upcasters: &Upcasters,
    aggregate: &str,
    name: &EventName,
    schema_version: u16,
    payload: &Bytes,
) -> Result<Option<E>, CodecError> {
    // Most events are of today's schema: they are decoded where they lie, without a copy of name or payload.
    if !upcasters.has_step(aggregate, name, schema_version) {
        return decode_lifted(aggregate, name, schema_version, payload);
    }
    match upcasters.apply(aggregate, name, schema_version, payload)? {
        Some(lifted) => {
            let (name, version) = (&lifted.name, lifted.schema_version);
            decode_lifted(aggregate, name, version, &lifted.payload)
        }
        None => Ok(None),
    }
}

fn decode_lifted<E: EventSet>(
    aggregate: &str,
    name: &str,
    schema_version: u16,
    payload: &[u8],
) -> Result<Option<E>, CodecError> {
    match E::decode_from(aggregate, name, schema_version, payload)? {
        Decoded::Event(event) => Ok(Some(event)),
        Decoded::NotMine => Ok(None),
        Decoded::Unknown => Err(CodecError::UnknownEvent {
            aggregate: aggregate.into(),
            name: name.to_string(),
        }),
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
    fn an_error_says_what_is_wrong_and_where_but_never_what_was_found() {
        #[derive(Debug, serde::Deserialize)]
        struct Person {
            _age: u8,
            _kind: Option<Kind>,
            _at: Option<crate::CommitId>,
        }
        #[derive(Debug, serde::Deserialize)]
        enum Kind {
            Child,
        }
        for (payload, expected) in [
            (
                r#"{"_age":"Ann, expected 5"}"#,
                "invalid type: string, expected u8 at line 1 column 25",
            ),
            (
                r#"{"_age":4711}"#,
                "invalid value: integer, expected u8 at line 1 column 12",
            ),
            (
                r#"{"_kind":"Ann"}"#,
                "unknown variant, expected `Child` at line 1 column 14",
            ),
            (
                r#"{"_at":"Ann"}"#,
                "a value is refused by its type at line 1 column 13",
            ),
            (
                r#"{"_kind":null}"#,
                "missing field `_age` at line 1 column 14",
            ),
            (
                r#"{"_age":1"#,
                "EOF while parsing an object at line 1 column 9",
            ),
        ] {
            let error = decode_json::<Person>(payload.as_bytes()).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(source, expected, "{payload}");
        }
    }

    #[test]
    fn events_of_other_aggregates_are_left_alone() {
        let upcasters = Upcasters::new().with("order", "A", 1, |_| Ok(Upcast::Retired));
        assert_eq!(apply(&upcasters, "A").unwrap().unwrap().name, "A");
    }
}
