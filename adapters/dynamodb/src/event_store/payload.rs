//! The attribute `e`: the events of one item, as JSON text or as CBOR.
use crate::attributes::{BadAttribute, binary, text};
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use ciborium::Value;
use foldstream::{
    EventName,
    ports::{EventData, EventStoreError},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, sync::Arc};

/// Shares the names and codecs of a read: a stream has few of them, and each event would allocate its own.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<Arc<str>>);
impl Names {
    /// More than a stream's usual kinds of events; the search is linear.
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

/// What can be embedded as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Json {
    /// Comes back byte for byte.
    Exact,
    /// JSON between white space, which a reader of the embedded value would not see.
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

/// The attribute `e`, and `k` if it needs one.
///
/// # Errors
/// `Invalid` for a payload without codec that is no JSON.
pub(crate) fn encode(
    events: &[EventData],
) -> Result<(AttributeValue, Option<Arc<str>>), EventStoreError> {
    let mut as_text = true;
    for event in events {
        as_text &= match (&event.codec, inspect(&event.payload)) {
            (None, Json::No) => {
                let reason = format!(
                    "the payload of {} is no JSON: name its codec, or encode it as JSON",
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
    let list = events.iter().map(|e| cbor_event(e, codec.as_deref()));
    let mut out = Vec::new();
    ciborium::into_writer(&Value::Array(list.collect()), &mut out).map_err(|e| unencodable(&e))?;
    Ok((binary(out), codec))
}

/// The most bytes that one event can take in `e`, in either form: what a commit is split by.
pub(crate) fn weight(event: &EventData) -> usize {
    // Field names, lengths, the schema version and separators.
    const FRAME: usize = 48;
    let name = event.name.as_str();
    // In JSON a name may be escaped: six bytes for a control character.
    let name = name.len() + 5 * name.bytes().filter(|b| escaped(*b)).count();
    FRAME + name + event.payload.len() + event.codec.as_deref().map_or(0, str::len)
}

const fn escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn unencodable(error: &dyn std::fmt::Display) -> EventStoreError {
    let reason = format!("the events cannot be encoded: {error}");
    EventStoreError::Invalid { reason }
}

/// Every payload has been inspected: JSON in UTF-8.
fn encode_text(events: &[EventData]) -> Result<String, EventStoreError> {
    let mut out = String::with_capacity(
        2 + events
            .iter()
            .map(|e| e.payload.len() + e.name.len() + 24)
            .sum::<usize>(),
    );
    for (i, event) in events.iter().enumerate() {
        out.push_str(if i == 0 { "[{\"y\":" } else { ",{\"y\":" });
        out.push_str(&serde_json::to_string(event.name.as_str()).map_err(|e| unencodable(&e))?);
        if event.schema_version != 1 {
            out.push_str(",\"s\":");
            out.push_str(&event.schema_version.to_string());
        }
        out.push_str(",\"d\":");
        out.push_str(std::str::from_utf8(&event.payload).map_err(|e| unencodable(&e))?);
        out.push('}');
    }
    out.push(']');
    Ok(out)
}

fn cbor_event(event: &EventData, codec: Option<&str>) -> Value {
    let field = |name: &str, value| (Value::Text(name.into()), value);
    let mut map = vec![field("y", Value::Text(event.name.as_str().into()))];
    if event.schema_version != 1 {
        map.push(field("s", Value::Integer(event.schema_version.into())));
    }
    map.push(field("d", Value::Bytes(event.payload.to_vec())));
    if event.codec.as_deref() != codec {
        let own = event.codec.as_deref();
        map.push(field(
            "k",
            own.map_or(Value::Null, |c| Value::Text(c.into())),
        ));
    }
    Value::Map(map)
}

/// The events of `e`, whose codec is `k` where they do not say another.
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

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(borrow)]
    y: Cow<'a, str>,
    #[serde(default = "schema_1")]
    s: u16,
    #[serde(borrow)]
    d: &'a RawValue,
}
const fn schema_1() -> u16 {
    1
}

/// The payloads share the text: none is copied.
fn decode_text(text: String, names: &mut Names) -> Result<Vec<EventData>, BadAttribute> {
    let text = Bytes::from(text);
    let list: Vec<JsonEvent<'_>> =
        serde_json::from_slice(&text).map_err(|e| BadAttribute::new("e", &e))?;
    let events = list.into_iter().map(|e| {
        let payload = text.slice_ref(e.d.get().as_bytes());
        EventData::new(EventName::from(names.share(&e.y)), e.s, payload)
    });
    Ok(events.collect())
}

fn decode_cbor(
    bytes: &[u8],
    codec: Option<&str>,
    names: &mut Names,
) -> Result<Vec<EventData>, BadAttribute> {
    let bad = |problem: &str| BadAttribute::new("e", problem);
    let list = ciborium::from_reader(bytes).map_err(|e| BadAttribute::new("e", &e))?;
    let Value::Array(list) = list else {
        return Err(bad("not a list"));
    };
    let codec = codec.map(|c| names.share(c));
    let mut events = Vec::with_capacity(list.len());
    for event in list {
        let Value::Map(fields) = event else {
            return Err(bad("an event is not a map"));
        };
        let (mut name, mut payload, mut schema_version, mut own) = (None, None, 1, codec.clone());
        for (field, value) in fields {
            match (field.as_text(), value) {
                (Some("y"), Value::Text(y)) => name = Some(names.share(&y)),
                (Some("d"), Value::Bytes(d)) => payload = Some(d),
                (Some("k"), Value::Text(k)) => own = Some(names.share(&k)),
                (Some("k"), Value::Null) => own = None,
                (Some("s"), Value::Integer(s)) => {
                    schema_version = u16::try_from(s).map_err(|e| BadAttribute::new("e", &e))?;
                }
                (Some("y" | "d" | "k" | "s"), _) => return Err(bad("a field of another type")),
                _ => {}
            }
        }
        let (Some(name), Some(payload)) = (name, payload) else {
            return Err(bad("an event lacks name or payload"));
        };
        events.push(EventData::new(EventName::from(name), schema_version, payload).with_codec(own));
    }
    Ok(events)
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
            r#"[{"y":"A","d":{ "n" : 1.50,"#,
            "\n",
            r#" "s":"\u00e4" }},{"y":"B \"quoted\"","s":3,"d":"]}""#,
            r#"},{"y":"C","s":0,"d":12345678901234567890123456789}]"#
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
    fn unknown_fields_of_an_event_are_ignored() {
        let e = text(r#"[{"new":[1],"y":"A","d":{}}]"#);
        let events = decode(e, None, &mut Names::default()).unwrap();
        assert_eq!(events, [EventData::new("A", 1, "{}")]);
    }
}
