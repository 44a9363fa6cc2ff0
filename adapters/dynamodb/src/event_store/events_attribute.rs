//! The attribute `e`: the events of one item, as JSON text or as CBOR.
//!
//! Either form is an array in which the label of each event is followed by its payload. A label is
//! the name of the event and the properties that are not the default.
use crate::attributes::{BadAttribute, binary, text};
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use ciborium::Value;
use foldstream::{
    EventName,
    ports::{EventData, EventStoreError},
};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{fmt, sync::Arc};

/// The schema version of an event whose label is only its name.
const FIRST_SCHEMA: u16 = 1;

/// Shares the names and codecs of the events of a read.
///
/// A stream has only a few of them, and each event would otherwise allocate its own.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<Arc<str>>);
impl Names {
    /// The most names that are shared. It exceeds the kinds of events of most streams, and bounds
    /// the linear search.
    const KEPT: usize = 32;

    fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().find(|known| &***known == name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        if self.0.len() < Self::KEPT {
            self.0.push(name.clone());
        }
        name
    }
}

/// The way in which a payload can be embedded as JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Json {
    /// The payload is JSON that comes back byte for byte.
    Exact,
    /// The payload is JSON between white space, which a reader of the embedded value would not see.
    Padded,
    No,
}

fn inspect(payload: &[u8]) -> Json {
    match serde_json::from_slice::<&RawValue>(payload) {
        Ok(raw) if raw.get().len() == payload.len() => Json::Exact,
        Ok(_) => Json::Padded,
        Err(_) => Json::No,
    }
}

/// Encodes the events as the attribute `e`, and returns the attribute `k` if they have a codec.
///
/// # Errors
/// `Invalid` if a payload without a codec is not JSON.
pub(crate) fn encode(
    events: &[EventData],
) -> Result<(AttributeValue, Option<Arc<str>>), EventStoreError> {
    let mut as_text = true;
    for event in events {
        as_text &= match (&event.codec, inspect(&event.payload)) {
            (None, Json::No) => {
                let reason = format!(
                    "the payload of {} is not JSON: name its codec, or encode it as JSON",
                    event.name
                );
                return Err(EventStoreError::Invalid { reason });
            }
            (None, json) => json == Json::Exact,
            (Some(_), _) => false,
        };
    }
    if as_text {
        return Ok((text(encode_text(events)?), None));
    }
    let codec = events.iter().find_map(|e| e.codec.clone());
    let list = events.iter().flat_map(|event| {
        let payload = Value::Bytes(event.payload.to_vec());
        [cbor_label(event, codec.as_deref()), payload]
    });
    let mut out = Vec::new();
    ciborium::into_writer(&Value::Array(list.collect()), &mut out).map_err(|e| unencodable(&e))?;
    Ok((binary(out), codec))
}

/// Returns the most bytes that one event can take in `e`, in either form. Commits are split by this
/// weight.
pub(crate) fn weight(event: &EventData) -> usize {
    // Quotes, commas and brackets, or the headers of CBOR, and the schema version.
    const FRAME: usize = 32;
    let name = event.name.as_str();
    // JSON may escape a character of a name, which takes six bytes for a control character.
    let name = name.len() + 5 * name.bytes().filter(|b| escaped(*b)).count();
    FRAME + name + event.payload.len() + event.codec.as_deref().map_or(0, str::len)
}

const fn escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn unencodable(error: &dyn fmt::Display) -> EventStoreError {
    let reason = format!("the events cannot be encoded: {error}");
    EventStoreError::Invalid { reason }
}

/// Encodes the events as JSON text. Every payload has been inspected and is JSON in UTF-8.
fn encode_text(events: &[EventData]) -> Result<String, EventStoreError> {
    let bytes = events.iter().map(|e| e.payload.len() + e.name.len() + 4);
    let mut out = String::with_capacity(1 + bytes.sum::<usize>());
    for (i, event) in events.iter().enumerate() {
        out.push(if i == 0 { '[' } else { ',' });
        let name = serde_json::to_string(event.name.as_str()).map_err(|e| unencodable(&e))?;
        match event.schema_version {
            FIRST_SCHEMA => out.push_str(&name),
            version => out.push_str(&format!("[{name},{version}]")),
        }
        out.push(',');
        out.push_str(std::str::from_utf8(&event.payload).map_err(|e| unencodable(&e))?);
    }
    out.push(']');
    Ok(out)
}

/// Encodes the label of an event in CBOR. `codec` is that of the item.
fn cbor_label(event: &EventData, codec: Option<&str>) -> Value {
    let name = Value::Text(event.name.as_str().into());
    let (version, own) = (event.schema_version, event.codec.as_deref());
    if own != codec {
        let own = own.map_or(Value::Null, |own| Value::Text(own.into()));
        return Value::Array(vec![name, version.into(), own]);
    }
    match version {
        FIRST_SCHEMA => name,
        version => Value::Array(vec![name, version.into()]),
    }
}

/// Decodes the events of `e`. `codec` is the item's `k`: the codec of all events in CBOR whose
/// label names none.
///
/// # Errors
/// If the attribute is not of this format, or if a label has more elements than this build knows.
pub(crate) fn decode(
    events: AttributeValue,
    codec: Option<&str>,
    names: &mut Names,
) -> Result<Vec<EventData>, BadAttribute> {
    match events {
        AttributeValue::S(text) => decode_text(text, names),
        AttributeValue::B(blob) => decode_cbor(blob.as_ref(), codec, names),
        _ => Err(BadAttribute::new("e", "neither a string nor binary")),
    }
}

/// Decodes the events of the JSON text. The payloads share the text, so none is copied.
fn decode_text(text: String, names: &mut Names) -> Result<Vec<EventData>, BadAttribute> {
    let text = Bytes::from(text);
    let mut json = serde_json::Deserializer::from_slice(&text);
    let list = List { names, text: &text }.deserialize(&mut json);
    let list = list.and_then(|list| json.end().map(|()| list));
    list.map_err(|e| BadAttribute::new("e", &e))
}

/// Reads the array of labels and payloads.
struct List<'a> {
    names: &'a mut Names,
    text: &'a Bytes,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Vec<EventData>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Vec<EventData>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of labels and payloads")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::with_capacity(1);
        while let Some((name, version)) = list.next_element_seed(Label(self.names))? {
            let payload: Option<&RawValue> = list.next_element()?;
            let payload = payload.ok_or_else(|| de::Error::custom("an event has no payload"))?;
            let payload = self.text.slice_ref(payload.get().as_bytes());
            events.push(EventData::new(EventName::from(name), version, payload));
        }
        Ok(events)
    }
}

/// Reads the label of an event: its name and schema version.
struct Label<'a>(&'a mut Names);

impl<'de> DeserializeSeed<'de> for Label<'_> {
    type Value = (Arc<str>, u16);
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Label<'_> {
    type Value = (Arc<str>, u16);
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an event, or [name, schema version]")
    }
    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok((self.0.share(name), FIRST_SCHEMA))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut label: A) -> Result<Self::Value, A::Error> {
        let lacks =
            |what: &str| de::Error::custom(format!("the label of an event lacks its {what}"));
        let name = label.next_element_seed(Name(self.0))?;
        let name = name.ok_or_else(|| lacks("name"))?;
        let version = label
            .next_element()?
            .ok_or_else(|| lacks("schema version"))?;
        match label.next_element::<IgnoredAny>()? {
            None => Ok((name, version)),
            Some(_) => Err(de::Error::custom(UNKNOWN_ELEMENT)),
        }
    }
}

/// Reads the name within a label.
struct Name<'a>(&'a mut Names);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Arc<str>;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name<'_> {
    type Value = Arc<str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an event")
    }
    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.share(name))
    }
}

const UNKNOWN_ELEMENT: &str =
    "the label of an event has an element that this build does not know: a later build wrote it";

/// Decodes the events of the CBOR array.
fn decode_cbor(
    bytes: &[u8],
    codec: Option<&str>,
    names: &mut Names,
) -> Result<Vec<EventData>, BadAttribute> {
    let bad = |problem: &str| BadAttribute::new("e", problem);
    let mut rest = bytes;
    let list = ciborium::from_reader(&mut rest).map_err(|e| BadAttribute::new("e", &e))?;
    let Value::Array(list) = list else {
        return Err(bad("not an array"));
    };
    if !rest.is_empty() {
        return Err(bad("more than an array"));
    }
    let codec = codec.map(|c| names.share(c));
    let mut events = Vec::with_capacity(list.len() / 2);
    let mut list = list.into_iter();
    while let Some(label) = list.next() {
        let (name, version, codec) = decode_label(label, codec.as_ref(), names)?;
        let Some(Value::Bytes(payload)) = list.next() else {
            return Err(bad("an event has no payload"));
        };
        events.push(EventData::new(EventName::from(name), version, payload).with_codec(codec));
    }
    Ok(events)
}

/// The name, schema version and codec of an event.
type CborLabel = (Arc<str>, u16, Option<Arc<str>>);

/// Decodes the label of an event in CBOR. `codec` is that of the item.
fn decode_label(
    label: Value,
    codec: Option<&Arc<str>>,
    names: &mut Names,
) -> Result<CborLabel, BadAttribute> {
    let bad = |problem: &str| BadAttribute::new("e", problem);
    let label = match label {
        Value::Text(name) => return Ok((names.share(&name), FIRST_SCHEMA, codec.cloned())),
        Value::Array(label) => label,
        _ => return Err(bad("the label of an event is neither a name nor an array")),
    };
    let (name, version, own) = match &*label {
        [Value::Text(name), Value::Integer(version)] => (name, version, codec.cloned()),
        [Value::Text(name), Value::Integer(version), Value::Null] => (name, version, None),
        [Value::Text(name), Value::Integer(version), Value::Text(own)] => {
            (name, version, Some(names.share(own)))
        }
        [_, _, _, _, ..] => return Err(bad(UNKNOWN_ELEMENT)),
        _ => {
            return Err(bad(
                "the label of an event is not [name, schema version, codec]",
            ));
        }
    };
    let version = u16::try_from(*version).map_err(|e| BadAttribute::new("e", &e))?;
    Ok((names.share(name), version, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(events: &[EventData]) -> (AttributeValue, Vec<EventData>) {
        let (e, k) = encode(events).unwrap();
        let back = decode(e.clone(), k.as_deref(), &mut Names::default()).unwrap();
        (e, back)
    }

    #[test]
    fn json_payloads_are_embedded_as_they_are() {
        let events = [
            EventData::new("A", 1, "{ \"n\" : 1.50,\n \"s\":\"\\u00e4\" }"),
            EventData::new("B \"quoted\"", 3, "\"]}\""),
            EventData::new("C", 0, "12345678901234567890123456789"),
        ];
        let (e, back) = round_trip(&events);
        assert_eq!(back, events);
        let expected = concat!(
            r#"["A",{ "n" : 1.50,"#,
            "\n",
            r#" "s":"\u00e4" },["B \"quoted\"",3],"]}""#,
            r#",["C",0],12345678901234567890123456789]"#
        );
        assert_eq!(e, text(expected));
    }

    #[test]
    fn white_space_around_a_payload_comes_back() {
        let events = [EventData::new("A", 1, " {}\n")];
        let (e, back) = round_trip(&events);
        assert!(matches!(e, AttributeValue::B(_)));
        assert_eq!(back, events);
    }

    #[test]
    fn each_event_keeps_its_own_codec() {
        let binary =
            |codec: &str| EventData::new("A", 2, vec![0xff, 0x00]).with_codec(Some(codec.into()));
        let events = [
            EventData::new("J", 1, "{}"),
            binary("x"),
            binary("y"),
            binary("x"),
        ];
        assert_eq!(encode(&events).unwrap().1.as_deref(), Some("x"));
        assert_eq!(round_trip(&events).1, events);
    }

    #[test]
    fn a_payload_that_is_no_json_is_invalid_without_a_codec() {
        for payload in [
            &b""[..],
            b"{",
            b"{} {}",
            b"\xff",
            b"\"\xff\"",
            b"\"\n\"",
            b"01",
            b"nul",
        ] {
            let events = [EventData::new("A", 1, payload.to_vec())];
            assert!(
                matches!(encode(&events), Err(EventStoreError::Invalid { .. })),
                "{payload:?}"
            );
        }
    }

    #[test]
    fn deep_json_is_embedded_without_recursion() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let events = [EventData::new("A", 1, deep)];
        assert_eq!(round_trip(&events).1, events);
    }

    #[test]
    fn a_label_may_be_written_out() {
        let e = text(r#"[["A",1],{},"B",[]]"#);
        let events = decode(e, None, &mut Names::default()).unwrap();
        let expected = [EventData::new("A", 1, "{}"), EventData::new("B", 1, "[]")];
        assert_eq!(events, expected);
    }

    #[test]
    fn what_is_not_of_this_form_is_refused_and_never_guessed() {
        for (json, problem) in [
            (r#"["A"]"#, "an event has no payload"),
            (r#"["A",{},"B"]"#, "an event has no payload"),
            (r#"[["A",2,"later"],{}]"#, UNKNOWN_ELEMENT),
            (r#"[["A"],{}]"#, "lacks its schema version"),
            (r#"[[],{}]"#, "lacks its name"),
            (r#"[["A",65536],{}]"#, "65536"),
            (r#"[["A",-1],{}]"#, "-1"),
            (r#"[{"y":"A"},{}]"#, "expected the name of an event"),
            (r#"[7,{}]"#, "expected the name of an event"),
            (r#"{"A":{}}"#, "expected an array of labels"),
            (r#"["A",{}] []"#, "trailing characters"),
            (r#"["A",{}"#, "EOF"),
        ] {
            let error = decode(text(json), None, &mut Names::default()).unwrap_err();
            assert!(error.to_string().contains(problem), "{json}: {error}");
        }
    }

    #[test]
    fn cbor_that_is_not_of_this_form_is_refused_and_never_guessed() {
        let bytes = |n: u8| Value::Bytes(vec![n]);
        let label = |more: &[Value]| {
            let label = [&[Value::Text("A".into()), 2.into()], more].concat();
            Value::Array(vec![Value::Array(label), bytes(1)])
        };
        let encoded = |value: &Value| {
            let mut out = Vec::new();
            ciborium::into_writer(value, &mut out).unwrap();
            out
        };
        let refused = |e: Vec<u8>, problem: &str| {
            let error = decode(binary(e), Some("x"), &mut Names::default()).unwrap_err();
            assert!(error.to_string().contains(problem), "{problem}: {error}");
        };
        assert!(decode(binary(encoded(&label(&[]))), None, &mut Names::default()).is_ok());
        for (value, problem) in [
            (label(&[Value::Null, Value::Null]), UNKNOWN_ELEMENT),
            (label(&[true.into()]), "not [name, schema version, codec]"),
            (
                Value::Array(vec![bytes(1), bytes(1)]),
                "neither a name nor an array",
            ),
            (
                Value::Array(vec![Value::Text("A".into())]),
                "an event has no payload",
            ),
            (Value::Map(vec![]), "not an array"),
        ] {
            refused(encoded(&value), problem);
        }
        let mut more = encoded(&label(&[]));
        more.push(0);
        refused(more, "more than an array");
    }
}
