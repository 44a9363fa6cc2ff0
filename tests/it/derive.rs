//! The payloads that the derive writes and reads.
use foldstream::{DomainEvent, EventType};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::BTreeMap, fmt::Display, str::FromStr};

/// Generic, so it takes a reference to the field itself.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
/// A trait that only the number has, and not a reference to it.
trait Number: Display + FromStr<Err: Display> {}
impl Number for u64 {}
mod as_text {
    use super::*;
    pub(super) fn serialize<T: Number, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }
    pub(super) fn deserialize<'de, T: Number, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
const fn three() -> u8 {
    3
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    zip_code: u32,
}
/// A field type without serde, which must be skipped.
#[derive(Clone, Debug, Default, PartialEq)]
struct Local;

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "shape")]
enum ShapeEvent {
    Plain {
        a: u8,
        b: Option<u8>,
        r#type: String,
    },
    Attributes {
        #[serde(default, skip_serializing_if = "is_default")]
        count: u32,
        #[serde(with = "as_text")]
        number: u64,
        #[serde(rename = "called", alias = "old")]
        name: String,
        #[serde(default = "three")]
        three: u8,
        #[serde(skip)]
        local: Local,
        #[serde(flatten)]
        place: Place,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "optional")]
        maybe: Option<u64>,
    },
    Open {
        id: u8,
        #[serde(flatten)]
        rest: BTreeMap<String, u8>,
    },
    // The names of generated items must not collide.
    A1 {
        b: u8,
    },
    A {
        c: u8,
        d: u8,
    },
    Inner(Place),
    Perhaps(Option<u8>),
    #[event(name = "Gone", version = 7)]
    Unit,
    Empty {},
}
mod optional {
    use super::*;
    pub(super) fn serialize<S: Serializer>(value: &Option<u64>, s: S) -> Result<S::Ok, S::Error> {
        value.map(|value| value * 2).serialize(s)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
        Ok(Option::deserialize(d)?.map(|value: u64| value / 2))
    }
}

fn attributes(count: u32, maybe: Option<u64>) -> ShapeEvent {
    ShapeEvent::Attributes {
        count,
        number: 12,
        name: "x".into(),
        three: 3,
        local: Local,
        place: Place { zip_code: 9 },
        maybe,
    }
}
fn plain(b: Option<u8>) -> ShapeEvent {
    let r#type = "t".into();
    ShapeEvent::Plain { a: 1, b, r#type }
}

#[test]
fn a_payload_is_what_serde_makes_of_the_fields() {
    for (event, payload) in [
        (plain(Some(2)), r#"{"a":1,"b":2,"type":"t"}"#),
        (plain(None), r#"{"a":1,"b":null,"type":"t"}"#),
        (
            attributes(0, None),
            r#"{"number":"12","called":"x","three":3,"zipCode":9}"#,
        ),
        (
            attributes(5, Some(4)),
            r#"{"count":5,"number":"12","called":"x","three":3,"zipCode":9,"maybe":8}"#,
        ),
        (
            ShapeEvent::Open {
                id: 1,
                rest: [("b".into(), 2)].into(),
            },
            r#"{"id":1,"b":2}"#,
        ),
        (ShapeEvent::A1 { b: 1 }, r#"{"b":1}"#),
        (ShapeEvent::A { c: 1, d: 2 }, r#"{"c":1,"d":2}"#),
        (ShapeEvent::Inner(Place { zip_code: 9 }), r#"{"zipCode":9}"#),
        (ShapeEvent::Perhaps(None), "null"),
        (ShapeEvent::Unit, "{}"),
        (ShapeEvent::Empty {}, "{}"),
    ] {
        let mut out = Vec::new();
        event.encode(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), payload);
        let decoded = ShapeEvent::decode(event.type_index(), payload.as_bytes()).unwrap();
        assert_eq!(decoded, event);
    }
    assert_eq!(ShapeEvent::Unit.event_type(), &EventType::new("Gone", 7));
}

#[test]
fn a_field_that_is_missing_is_read_as_serde_reads_it() {
    let decode = |event: ShapeEvent, payload: &str| {
        ShapeEvent::decode(event.type_index(), payload.as_bytes())
    };
    let plain_of = |payload| decode(plain(None), payload);
    assert_eq!(plain_of(r#"{"a":1,"type":"t"}"#).unwrap(), plain(None));
    assert!(
        plain_of(r#"{"type":"t"}"#).is_err(),
        "only an `Option` may be missing"
    );
    let old = r#"{"number":"12","old":"x","zipCode":9}"#;
    assert_eq!(
        decode(attributes(0, None), old).unwrap(),
        attributes(0, None)
    );
}

/// Field types that are named as the type parameters of serde usually are.
mod short_names {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct S(pub(super) u8);
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct D(pub(super) u8);
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct E(pub(super) u8);
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct T(pub(super) u8);

    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "short")]
    pub(super) enum ShortEvent {
        Fields { s: S, d: D, e: E, t: T },
        Written(S),
        Read(D),
        // If the variants are imported, these hide those of `Result`.
        Ok,
        Err { e: E },
    }
    #[allow(unused_imports, reason = "what the derive generates could take them")]
    use ShortEvent::*;
}

/// Writes and reads an event, and returns its payload.
#[track_caller]
fn round_trip<E: DomainEvent + std::fmt::Debug + PartialEq>(event: &E) -> String {
    let mut out = Vec::new();
    event.encode(&mut out).unwrap();
    assert_eq!(&E::decode(event.type_index(), &out).unwrap(), event);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_field_type_may_have_any_name() {
    use short_names::{D, E, S, ShortEvent, T};
    let fields = ShortEvent::Fields {
        s: S(1),
        d: D(2),
        e: E(3),
        t: T(4),
    };
    assert_eq!(round_trip(&fields), r#"{"s":1,"d":2,"e":3,"t":4}"#);
    assert_eq!(round_trip(&ShortEvent::Written(S(1))), "1");
    assert_eq!(round_trip(&ShortEvent::Read(D(2))), "2");
    assert_eq!(round_trip(&ShortEvent::Ok), "{}");
    assert_eq!(round_trip(&ShortEvent::Err { e: E(3) }), r#"{"e":3}"#);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "nested")]
enum NestedEvent {
    Leaf,
    Many { of: Vec<Self> },
    Pair(Box<(Self, Self)>),
}

#[test]
fn a_field_type_may_name_the_enum_as_self() {
    let of = vec![NestedEvent::Leaf];
    let many = NestedEvent::Many { of };
    assert_eq!(round_trip(&many), r#"{"of":["Leaf"]}"#);
    let pair = NestedEvent::Pair(Box::new((many, NestedEvent::Leaf)));
    assert_eq!(round_trip(&pair), r#"[{"Many":{"of":["Leaf"]}},"Leaf"]"#);
}

/// A trait for every type, in scope at the enum, with methods of common names.
mod common_methods {
    use super::*;

    #[allow(dead_code, reason = "in scope is enough")]
    trait Common: Sized {
        fn write<W>(&self, _: W) {}
        fn read<R>(&self, _: R) {}
        fn serialize<Z>(&self, _: Z) {}
        fn deserialize<Z>(_: Z) {}
        fn map<M>(self, _: M) {}
        fn extend_from_slice(&mut self, _: &[u8]) {}
    }
    impl<T> Common for T {}

    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "common")]
    pub(super) enum CommonEvent {
        Fields { a: u8, b: Option<u8> },
        Value(u8),
        Unit,
    }
}

#[test]
fn a_trait_in_scope_does_not_change_what_is_written_and_read() {
    use common_methods::CommonEvent;
    let fields = CommonEvent::Fields { a: 1, b: None };
    assert_eq!(round_trip(&fields), r#"{"a":1,"b":null}"#);
    assert_eq!(round_trip(&CommonEvent::Value(1)), "1");
    assert_eq!(round_trip(&CommonEvent::Unit), "{}");
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "raw")]
enum r#RawEvent {
    r#Tried { r#type: u8 },
    r#Yield(u8),
    r#Done,
}

#[test]
fn a_raw_name_is_stored_without_its_prefix() {
    let names: Vec<_> = RawEvent::TYPES.iter().map(EventType::name).collect();
    assert_eq!(names, ["Tried", "Yield", "Done"]);
    let tried = RawEvent::Tried { r#type: 1 };
    assert_eq!(round_trip(&tried), r#"{"type":1}"#);
    assert_eq!(round_trip(&RawEvent::Yield(1)), "1");
    assert_eq!(round_trip(&RawEvent::Done), "{}");
}

/// Events that are still read but no longer written.
#[deny(deprecated)]
mod outdated {
    use super::*;

    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "outdated")]
    pub(super) enum OutdatedEvent {
        #[deprecated]
        Fields { a: u8 },
        #[deprecated]
        Value(u8),
        #[deprecated]
        Unit,
        Partly {
            #[deprecated]
            a: u8,
        },
    }
}

#[test]
#[allow(deprecated, reason = "they are made here")]
fn a_deprecated_event_does_not_warn_of_generated_code() {
    use outdated::OutdatedEvent;
    for (event, payload) in [
        (OutdatedEvent::Fields { a: 1 }, r#"{"a":1}"#),
        (OutdatedEvent::Value(1), "1"),
        (OutdatedEvent::Unit, "{}"),
        (OutdatedEvent::Partly { a: 1 }, r#"{"a":1}"#),
    ] {
        assert_eq!(round_trip(&event), payload);
    }
}

/// Generated code repeats names whose lints the user has allowed.
#[deny(warnings)]
mod unusual_names {
    use super::*;

    #[allow(non_camel_case_types)]
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "allowed")]
    pub(super) enum AllowedEvent {
        Item_Added {
            a: u8,
        },
        Item_Gone(u8),
        #[allow(non_snake_case)]
        r#yield {
            someField: u8,
        },
    }

    #[expect(non_camel_case_types, reason = "the names of another system")]
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "expected")]
    pub(super) enum ExpectedEvent {
        #[expect(non_snake_case)]
        Item_Added { someField: u8 },
        #[event(name = "Gone")]
        Item_Gone(u8),
    }
}

#[test]
fn a_lint_that_is_allowed_at_the_enum_is_allowed_in_generated_code() {
    use unusual_names::{AllowedEvent, ExpectedEvent};
    let names: Vec<_> = AllowedEvent::TYPES.iter().map(EventType::name).collect();
    assert_eq!(names, ["Item_Added", "Item_Gone", "yield"]);
    assert_eq!(round_trip(&AllowedEvent::Item_Added { a: 1 }), r#"{"a":1}"#);
    assert_eq!(round_trip(&AllowedEvent::Item_Gone(1)), "1");
    let raw = AllowedEvent::r#yield { someField: 1 };
    assert_eq!(round_trip(&raw), r#"{"someField":1}"#);
    let added = ExpectedEvent::Item_Added { someField: 1 };
    assert_eq!(round_trip(&added), r#"{"someField":1}"#);
    assert_eq!(round_trip(&ExpectedEvent::Item_Gone(1)), "1");
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct OnlyWritten(u8);
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct OnlyRead(u8);

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "half")]
enum HalfEvent {
    Halves {
        #[serde(serialize_with = "write_seven")]
        a: OnlyRead,
        #[serde(deserialize_with = "read_seven")]
        b: OnlyWritten,
        #[serde(skip_serializing, default)]
        c: OnlyRead,
        #[serde(skip_deserializing)]
        d: OnlyWritten,
        #[serde(serialize_with = "write_seven", rename = "f")]
        e: Option<OnlyRead>,
    },
}
fn write_seven<T, S: Serializer>(_: &T, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u8(7)
}
fn read_seven<'de, D: Deserializer<'de>>(d: D) -> Result<OnlyWritten, D::Error> {
    u8::deserialize(d).map(|_| OnlyWritten(7))
}

#[test]
fn a_field_whose_attributes_do_one_half_needs_the_other_of_its_type() {
    let event = |e: Option<u8>| HalfEvent::Halves {
        a: OnlyRead(7),
        b: OnlyWritten(7),
        c: OnlyRead(0),
        d: OnlyWritten(0),
        e: e.map(OnlyRead),
    };
    assert_eq!(round_trip(&event(Some(7))), r#"{"a":7,"b":7,"d":0,"f":7}"#);
    let missing = HalfEvent::decode(0, br#"{"a":7,"b":1,"d":5}"#);
    assert_eq!(missing.unwrap(), event(None));
    let given = HalfEvent::decode(0, br#"{"a":7,"b":1,"c":0,"d":5,"f":7}"#);
    assert_eq!(given.unwrap(), event(Some(7)));
}
