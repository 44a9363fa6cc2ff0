//! The facts that shapes show, and types that cannot be traced.
use super::*;
use foldstream::{DeserializePayload, DomainEvent, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

fn shapes<E: DeserializePayload>() -> Vec<String> {
    let files = Files::new();
    files.schema().with_events::<E>().write().unwrap();
    files.lines()
}

macro_rules! payloads {
    ($($item:item)*) => {
        $(#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)] $item)*
    };
}

payloads! {
    struct Inner { b: u8, a: bool }
    #[derive(PartialOrd, Eq, Ord)]
    struct Id(String);
    struct Pair(i64, Inner);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Zwei {
        deep: Option<Box<Choice>>,
        text: String,
    },
    Eins,
    Drei(Inner),
    Vier(u8, char),
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "all")]
enum All {
    Numbers {
        a: u8,
        b: i64,
        c: f64,
        d: u128,
        e: char,
        f: bool,
    },
    Nested {
        inner: Inner,
        many: Vec<Inner>,
        id: Id,
        pair: Pair,
        array: [u8; 3],
    },
    Maybe {
        plain: Option<String>,
        #[serde(default)]
        missing: u8,
        #[serde(default)]
        both: Option<Inner>,
    },
    Maps {
        by_text: BTreeMap<String, u8>,
        by_id: BTreeMap<Id, Inner>,
        by_number: BTreeMap<u16, ()>,
        set: BTreeSet<String>,
    },
    Named {
        #[serde(rename = "type")]
        kind: String,
        #[serde(alias = "old", alias = "a")]
        new: u8,
        #[serde(skip)]
        _gone: u8,
    },
    Choices {
        choice: Choice,
    },
    Newtype(Inner),
    Nothing,
}
#[test]
fn a_shape_shows_all_that_json_shows() {
    assert_eq!(
        shapes::<All>(),
        [
            "all.Choices@1 {choice: <Drei: {a: bool, b: u8} | Eins | Vier: [u8, char] | Zwei: {deep?: ^1|null, text: text}>}",
            "all.Maps@1 {by_id: {*text: {a: bool, b: u8}}, by_number: {*u16: null}, by_text: {*text: u8}, set: [text]}",
            "all.Maybe@1 {both?: {a: bool, b: u8}|null, missing?: u8, plain?: text|null}",
            "all.Named@1 {a: u8, type: text}",
            "all.Nested@1 {array: [u8, u8, u8], id: text, inner: {a: bool, b: u8}, many: [{a: bool, b: u8}], pair: [i64, {a: bool, b: u8}]}",
            "all.Newtype@1 {a: bool, b: u8}",
            "all.Nothing@1 {}",
            "all.Numbers@1 {a: u8, b: i64, c: f64, d: u128, e: char, f: bool}",
        ]
    );
}

/// A text type that accepts certain texts only, as a date does.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Code(String);
impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix("code-") {
            Some(_) => Ok(Self(text)),
            None => Err(serde::de::Error::custom("no code")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum When {
    Never,
    At(foldstream::CommitId),
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "picky")]
enum Picky {
    Added {
        at: foldstream::CommitId,
        code: Code,
        when: Vec<When>,
    },
}

#[test]
fn types_that_accept_certain_texts_are_offered_common_ones_and_those_of_the_user() {
    let files = Files::new();
    let schema = files.schema().with_events::<Picky>();
    assert_problem(&files, schema.check(), "picky.Added.code cannot be traced");
    schema.with_text("code-7").write().unwrap();
    assert_eq!(
        files.lines(),
        ["picky.Added@1 {at: text, code: text, when: [<At: text | Never>]}"]
    );
}

payloads! {
 struct Tree { children: Vec<Tree>, parent: Option<Box<Tree>>, wrapped: Wrapped<Wrapped<u8>> }

struct Endless { next: Box<Endless> }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped<T> {
    value: T,
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Sum {
    Plus(Box<Sum>, Box<Sum>),
    Number(i64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Outer {
    Through { link: Box<Link> },
    End,
}
payloads! {
    struct Link { to: Outer }
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "deep")]
enum Deep {
    Linked(Link),
    Grown(Tree),
    Summed(Sum),
}

#[test]
fn a_type_that_holds_itself_is_written_once_and_generics_are_told_apart() {
    assert_eq!(
        shapes::<Deep>(),
        [
            "deep.Grown@1 {children: [^1], parent?: ^1|null, wrapped: {value: {value: u8}}}",
            "deep.Linked@1 {to: <End | Through: {link: ^2}>}",
            "deep.Summed@1 <Number: i64 | Plus: [^1, ^1]>",
        ]
    );
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    A { a: u8 },
}
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value")]
enum Adjacent {
    A(u8),
    B(String),
}
payloads! {
 struct Flat {
    own: u8,
    #[serde(flatten)]
    rest: Inner
}
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "odd")]
enum Odd {
    Free { extra: serde_json::Value },
    Tagged { tagged: Tagged },
    Flat(Flat),
    Adjacent { adjacent: Adjacent },
}

#[derive(Clone, Debug, PartialEq, DomainEvent)]
#[event(aggregate = "endless")]
enum Endlessly {
    Happened(Endless),
}

#[test]
fn what_cannot_be_traced_is_an_error_that_names_the_place() {
    let files = Files::new();
    let schema = files.schema().with_events::<Odd>();
    let found = problems(&files, schema.check());
    let beginnings = [
        "odd.Free.extra cannot be traced: its type looks at the data",
        "odd.Tagged.tagged cannot be traced: every value that was tried is refused",
        "odd.Flat cannot be traced: a flattened struct",
        "odd.Adjacent.adjacent.value cannot be traced: what is read here depends on other values",
    ];
    for beginning in beginnings {
        assert!(
            found.iter().any(|p| p.starts_with(beginning)),
            "{beginning}: {found:#?}"
        );
    }
    assert_eq!(found.len(), 4);
    let schema = files.schema().with_events::<Endlessly>();
    assert_problem(&files, schema.check(), "endless.Happened cannot be traced");
}

#[test]
fn what_is_allowed_untraced_needs_golden_payloads_that_are_written_alike() {
    let files = Files::new();
    let schema = files.schema().with_events::<Odd>();
    let schema = schema
        .allow_untraced("odd.Free.extra")
        // A part that hides the rest leaves the whole type untraced.
        .allow_untraced("odd.Tagged.tagged")
        .allow_untraced("odd.Flat")
        .allow_untraced("odd.Adjacent");
    let found = problems(&files, schema.write());
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(
        found.iter().all(|p| p.contains("name their directory")),
        "{found:#?}"
    );

    let schema = schema.with_golden(files.golden());
    // A type that cannot be traced has no sample either.
    let found = problems(&files, schema.write());
    assert_eq!(found.len(), 3, "{found:#?}");
    put(
        &files.golden().join("odd.Tagged@1.json"),
        r#"{"tagged":{"kind":"A","a":1}}"#,
    );
    put(
        &files.golden().join("odd.Flat@1.json"),
        r#"{"own":1,"a":true,"b":2}"#,
    );
    put(
        &files.golden().join("odd.Adjacent@1.json"),
        r#"{"adjacent":{"kind":"B","value":"x"}}"#,
    );
    schema.write().unwrap();
    assert_eq!(
        files.lines(),
        [
            "odd.Adjacent@1 untraced",
            "odd.Flat@1 untraced",
            "odd.Free@1 {extra: any}",
            "odd.Tagged@1 untraced",
        ]
    );
    put(
        &files.golden().join("odd.Flat@1-more.json"),
        r#"{"own":1,"a":true,"b":2,"c":3}"#,
    );
    assert_problem(
        &files,
        schema.check(),
        "this build writes golden/odd.Flat@1-more.json differently",
    );
}

#[test]
fn a_time_is_a_text_where_it_is_written_as_one() {
    mod text {
        use super::*;
        pub(super) fn serialize<S: serde::Serializer>(
            at: &Timestamp,
            s: S,
        ) -> Result<S::Ok, S::Error> {
            s.collect_str(at)
        }
        pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
            d: D,
        ) -> Result<Timestamp, D::Error> {
            String::deserialize(d)?
                .parse()
                .map_err(serde::de::Error::custom)
        }
    }
    #[derive(Clone, Debug, PartialEq, DomainEvent)]
    #[event(aggregate = "clock")]
    enum Clock {
        Ticked {
            #[serde(with = "text")]
            at: Timestamp,
        },
    }
    assert_eq!(shapes::<Clock>(), ["clock.Ticked@1 {at: text}"]);
}
