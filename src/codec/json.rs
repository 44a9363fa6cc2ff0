//! JSON payloads: encoding, decoding, and upcasting steps that keep the texts of numbers.
use super::CodecError;
use crate::BoxError;
use serde::Serialize;
use serde_json::{
    Value,
    ser::{CompactFormatter, Formatter},
    value::RawValue,
};
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    io,
};

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

/// Returns a description of the mistake and its place, without the value that was found: the value
/// may be personal, and errors are logged and kept.
fn without_values(error: serde_json::Error) -> BoxError {
    if !error.is_data() {
        // An error about the form of the text; it quotes nothing.
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
        // `string "Ann"`, `integer `5``: only the kind, without the value.
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

/// Runs a step on a JSON document. A number that the step does not change keeps its text, even if
/// the step moves the number. If the document has several texts of one number, they are kept only
/// where the step does not move them.
///
/// A [`Value`] holds a number as `u64`, `i64` or `f64` and writes its own text of it. It cannot
/// read `1e400`, loses the last digits of a `u128`, and makes `1.5` of `1.50`. Therefore the texts
/// of such numbers are set aside. In place of a number that no `f64` can hold, the step sees the
/// closest `f64` that no other number of the document has. Where the step leaves that `f64`, the
/// text is put back.
///
/// serde_json's feature `arbitrary_precision` would keep the texts too. But a feature is enabled
/// for all crates of a program at once, and this one changes how they see numbers.
pub(super) fn edit(
    payload: &[u8],
    step: impl FnOnce(&mut Value) -> Result<(), BoxError>,
) -> Result<Vec<u8>, BoxError> {
    let (text, mut texts) = set_aside(std::str::from_utf8(payload)?);
    let mut value: Value = serde_json::from_str(&text)?;
    step(&mut value)?;
    if texts.values().any(Option::is_none) {
        tell_apart(&text, &mut texts, &mut value)?;
    }
    let mut out = Vec::with_capacity(payload.len() + 64);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PutBack(&texts));
    value.serialize(&mut serializer)?;
    Ok(out)
}

/// The texts of numbers by the bits of the `f64` that the step sees; `None` if the number has
/// several texts.
type Texts<'a> = HashMap<u64, Option<&'a str>>;

/// Replaces each number that no `f64` can hold with a stand-in.
fn set_aside(document: &str) -> (Cow<'_, str>, Texts<'_>) {
    let mut texts = Texts::new();
    let mut held = Vec::new();
    for (_, text) in numbers(document) {
        match Held::of(text) {
            Held::Integer | Held::Invalid => {}
            Held::Float(value) => {
                let known = texts.entry(value.to_bits()).or_insert(Some(text));
                *known = known.filter(|known| *known == text);
            }
            Held::Rounded(value) => held.push((text, value)),
        }
    }
    if held.is_empty() {
        return (Cow::Borrowed(document), texts);
    }
    let values: HashMap<&str, f64> = held.into_iter().collect();
    let mut stand_ins = HashMap::new();
    let out = replaced(document, |text| {
        values.get(text).map(|value| {
            *stand_ins.entry(text).or_insert_with(|| {
                let free = free_near(*value, &texts);
                texts.insert(free.to_bits(), Some(text));
                free
            })
        })
    });
    (Cow::Owned(out), texts)
}

/// Replaces each number whose value has several texts in the document with a stand-in for its text,
/// if the step left it in its place. The step itself must not see such a stand-in: to the step,
/// `1.5` and `1.50` are one number.
fn tell_apart<'a>(
    document: &'a str,
    texts: &mut Texts<'a>,
    edited: &mut Value,
) -> Result<(), BoxError> {
    let several: HashSet<u64> = texts
        .iter()
        .filter_map(|(bits, text)| text.is_none().then_some(*bits))
        .collect();
    // A number that the step has written keeps the text that the step gave it.
    for (_, text) in numbers(&serde_json::to_string(edited)?) {
        texts.entry(text.parse::<f64>()?.to_bits()).or_insert(None);
    }
    let mut stand_ins = HashMap::new();
    let mut stood_for = HashMap::new();
    let stand_ins = replaced(document, |text| {
        let Held::Float(value) = Held::of(text) else {
            return None;
        };
        several.contains(&value.to_bits()).then(|| {
            *stand_ins.entry(text).or_insert_with(|| {
                let free = free_near(value, texts);
                texts.insert(free.to_bits(), Some(text));
                stood_for.insert(free.to_bits(), value.to_bits());
                free
            })
        })
    });
    put_in(edited, &serde_json::from_str(&stand_ins)?, &stood_for);
    Ok(())
}

/// Copies the stand-ins in `stand_ins` to the places where `edited` still has the number that they
/// stand for.
fn put_in(edited: &mut Value, stand_ins: &Value, stood_for: &HashMap<u64, u64>) {
    match (edited, stand_ins) {
        (Value::Object(edited), Value::Object(stand_ins)) => {
            for (name, value) in edited {
                if let Some(stand_ins) = stand_ins.get(name) {
                    put_in(value, stand_ins, stood_for);
                }
            }
        }
        (Value::Array(edited), Value::Array(stand_ins)) => {
            for (value, stand_ins) in edited.iter_mut().zip(stand_ins) {
                put_in(value, stand_ins, stood_for);
            }
        }
        (edited @ Value::Number(_), Value::Number(_)) => {
            let bits = |value: &Value| value.as_f64().map(f64::to_bits);
            let original = bits(stand_ins).and_then(|bits| stood_for.get(&bits).copied());
            if original.is_some() && edited.is_f64() && bits(edited) == original {
                *edited = stand_ins.clone();
            }
        }
        _ => {}
    }
}

/// Returns the document with some of its numbers replaced.
fn replaced<'a>(document: &'a str, mut by: impl FnMut(&'a str) -> Option<f64>) -> String {
    let mut out = String::with_capacity(document.len() + 32);
    let mut copied = 0;
    for (start, text) in numbers(document) {
        if let Some(number) = by(text) {
            // The shortest text of an `f64` in Rust has a point or an exponent, and is JSON.
            out += &document[copied..start];
            out += &format!("{number:?}");
            copied = start + text.len();
        }
    }
    out += &document[copied..];
    out
}

/// The form in which a [`Value`] holds a number.
enum Held {
    /// A `u64` or an `i64`, which has only one text.
    Integer,
    /// The same number as an `f64`, perhaps with another text.
    Float(f64),
    /// The closest finite `f64` to a number that no `f64` can hold.
    Rounded(f64),
    /// Not a number of JSON, which the parser will report.
    Invalid,
}

impl Held {
    fn of(text: &str) -> Self {
        if text != "-0" && (text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok()) {
            return Self::Integer;
        }
        let Ok(value) = text.parse::<f64>() else {
            return Self::Invalid;
        };
        let value = value.clamp(f64::MIN, f64::MAX);
        let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
        let is_zero = !mantissa.contains(|c| matches!(c, '1'..='9'));
        // An integer is not the same as a float to a reader: `-0` and `1000000000000000000000` stay
        // what they are.
        let is_float = text.contains(['.', 'e', 'E']);
        if is_float && decimal(text).is_some_and(|it| decimal(&format!("{value:?}")) == Some(it)) {
            Self::Float(value)
        } else if serde_json::from_str::<&RawValue>(text).is_ok() {
            // A step may write a zero of its own.
            let is_lost = value == 0.0 && !is_zero;
            Self::Rounded(if is_lost {
                f64::from_bits(value.to_bits() | 1)
            } else {
                value
            })
        } else {
            Self::Invalid
        }
    }
}

/// Returns the digits of a number without zeros around them, and the power of ten that the last
/// digit stands for. `None` if the exponent is too large to be computed with.
fn decimal(text: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{}{fraction}", whole.trim_start_matches('-'));
    let digits = all.trim_end_matches('0');
    let last = exponent.parse::<i64>().ok()?;
    let last = last.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let last = last.checked_add(i64::try_from(all.len() - digits.len()).ok()?)?;
    match digits.trim_start_matches('0') {
        "" => Some((String::new(), 0)),
        digits => Some((digits.to_owned(), last)),
    }
}

/// Returns the `f64` closest to `value` that stands for no other number.
fn free_near(value: f64, texts: &Texts<'_>) -> f64 {
    let sign = value.to_bits() & (1 << 63);
    let mut magnitude = value.abs().to_bits();
    while texts.contains_key(&(sign | magnitude)) {
        // Away from infinity and from zero.
        magnitude = if value.abs() < 1.0 {
            magnitude + 1
        } else {
            magnitude - 1
        };
    }
    f64::from_bits(sign | magnitude)
}

/// Returns the numbers of a JSON document and the positions at which they start.
fn numbers(document: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = document.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    at += 1;
                    while bytes.get(at).is_some_and(|b| *b != b'"') {
                        at += if bytes[at] == b'\\' { 2 } else { 1 };
                    }
                    at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    let start = at;
                    let is_part =
                        |b: &u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                    while bytes.get(at).is_some_and(is_part) {
                        at += 1;
                    }
                    return Some((start, &document[start..at]));
                }
                _ => at += 1,
            }
        }
        None
    })
}

/// Serializes a document with the texts that were set aside in place of their stand-ins.
struct PutBack<'a>(&'a Texts<'a>);

impl Formatter for PutBack<'_> {
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        match self.0.get(&value.to_bits()) {
            Some(Some(text)) => writer.write_all(text.as_bytes()),
            _ => CompactFormatter.write_f64(writer, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(document: &str, step: impl Fn(&mut Value)) -> String {
        let edited = edit(document.as_bytes(), |value| {
            step(value);
            Ok(())
        });
        String::from_utf8(edited.unwrap()).unwrap()
    }

    /// Numbers that a `Value` would write differently, and some that it would not.
    const NUMBERS: &[&str] = &[
        "0",
        "-0",
        "-0.0",
        "0.0",
        "-1",
        "5",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "340282366920938463463374607431768211455",
        "1000000000000000000000",
        "1000000000000000000001",
        "1000000000000000000002",
        "1e400",
        "-1e400",
        "1e401",
        "1e-400",
        "1e99999999999999999999",
        "1.50",
        "2E3",
        "1e+2",
        "130.65331632653061",
        "0.9999999999999999",
        "0.1234567890123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        "179769313486231570000000000000000000000",
    ];

    #[test]
    fn numbers_that_a_step_leaves_alone_keep_their_text() {
        for number in NUMBERS {
            let document =
                format!(r#"{{"a":{number},"b":[{number},{{"c":{number}}}],"d\"1e5":"-{number}"}}"#);
            let added = edited(&document, |v| v["z"] = 7.into());
            assert_eq!(added, document.replace("\"}", "\",\"z\":7}"), "{number}");
        }
        let document = format!("[{}]", NUMBERS.join(","));
        assert_eq!(edited(&document, |_| ()), document);
    }

    #[test]
    fn several_texts_of_one_number_stay_where_a_step_leaves_them_alone() {
        for (one, other) in [
            ("1.5", "1.50"),
            ("100.0", "1e2"),
            ("0.00", "0.0"),
            ("1e400", "10e399"),
        ] {
            let document = format!(r#"{{"a":{one},"b":[{other},{{"c":{one}}}],"z":{other}}}"#);
            assert_eq!(edited(&document, |_| ()), document);
            let added = edited(&document, |v| {
                let seen = v["a"].as_f64().unwrap();
                assert!(v["b"][0].as_f64().unwrap() - seen <= seen * 1e-9);
                v["a0"] = 1.500_000_000_000_000_2.into();
                v["z"] = 2.5.into();
            });
            assert_eq!(
                added,
                format!(
                    r#"{{"a":{one},"a0":1.5000000000000002,"b":[{other},{{"c":{one}}}],"z":2.5}}"#
                )
            );
        }
        // To the step they are one number, and it may move them.
        let moved = edited(r#"{"a":1.5,"b":1.50}"#, |v| {
            assert_eq!(v["a"], v["b"]);
            v["c"] = v["a"].take();
        });
        assert_eq!(moved, r#"{"a":null,"b":1.50,"c":1.5}"#);
    }

    #[test]
    fn numbers_that_a_step_moves_keep_their_text() {
        for number in NUMBERS {
            let moved = edited(&format!(r#"{{"old":{number},"other":2.5}}"#), |v| {
                v["new"] = v["old"].take();
            });
            assert_eq!(
                moved,
                format!(r#"{{"new":{number},"old":null,"other":2.5}}"#)
            );
        }
    }

    #[test]
    fn a_step_sees_the_closest_f64_and_what_it_writes_counts() {
        let seen = |number: &str| {
            let value = std::cell::Cell::new(0.0);
            edited(number, |v| value.set(v.as_f64().unwrap()));
            value.get()
        };
        assert_eq!(seen("1000000000000000000001"), 1e21);
        assert_eq!(seen("1.50"), 1.5);
        assert_eq!(seen("1e400"), f64::MAX);
        let doubled = |v: &mut Value| *v = (v.as_f64().unwrap() * 2.0).into();
        assert_eq!(edited("1000000000000000000001", doubled), "2e+21");
        assert_eq!(edited("1.50", doubled), "3.0");
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for document in [
            "01",
            "1.",
            "-",
            "1e",
            "[1.2.3]",
            "0123456789012345678901234567890",
            "\"",
            "",
            "[1e400",
            "\"\\",
        ] {
            assert!(edit(document.as_bytes(), |_| Ok(())).is_err(), "{document}");
        }
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
}
