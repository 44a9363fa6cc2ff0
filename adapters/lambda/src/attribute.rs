//! Attribute values in the JSON of a Lambda event.
use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::collections::HashMap;

/// Converts the attributes of an item. `None` if they are not written as DynamoDB writes them.
pub(crate) fn attributes(json: &Value) -> Option<HashMap<String, AttributeValue>> {
    let object = json.as_object()?.iter();
    object
        .map(|(name, json)| Some((name.clone(), attribute(json)?)))
        .collect()
}

fn attribute(json: &Value) -> Option<AttributeValue> {
    let object = json.as_object()?;
    let (kind, value) = object.iter().next().filter(|_| object.len() == 1)?;
    Some(match kind.as_str() {
        "S" => AttributeValue::S(text(value)?),
        "N" => AttributeValue::N(text(value)?),
        "B" => AttributeValue::B(bytes(value)?),
        "BOOL" => AttributeValue::Bool(value.as_bool()?),
        "NULL" => AttributeValue::Null(value.as_bool()?),
        "M" => AttributeValue::M(attributes(value)?),
        "L" => AttributeValue::L(list(value, attribute)?),
        "SS" => AttributeValue::Ss(list(value, text)?),
        "NS" => AttributeValue::Ns(list(value, text)?),
        "BS" => AttributeValue::Bs(list(value, bytes)?),
        _ => return None,
    })
}

fn text(json: &Value) -> Option<String> {
    json.as_str().map(str::to_owned)
}
fn bytes(json: &Value) -> Option<Blob> {
    STANDARD.decode(json.as_str()?).ok().map(Blob::new)
}
fn list<T>(json: &Value, of: fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    json.as_array()?.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_attribute_is_read() {
        let item = json!({
            "s": {"S": "x"}, "n": {"N": "1"}, "b": {"B": "AP8="}, "bool": {"BOOL": true},
            "null": {"NULL": true}, "m": {"M": {"a": {"S": "y"}}}, "l": {"L": [{"N": "2"}]},
            "ss": {"SS": ["a"]}, "ns": {"NS": ["3"]}, "bs": {"BS": ["AA=="]},
        });
        let read = attributes(&item).unwrap();
        let expected = [
            ("s", AttributeValue::S("x".into())),
            ("n", AttributeValue::N("1".into())),
            ("b", AttributeValue::B(Blob::new([0, 255]))),
            ("bool", AttributeValue::Bool(true)),
            ("null", AttributeValue::Null(true)),
            (
                "m",
                AttributeValue::M(
                    [("a".to_owned(), AttributeValue::S("y".into()))]
                        .into_iter()
                        .collect(),
                ),
            ),
            ("l", AttributeValue::L(vec![AttributeValue::N("2".into())])),
            ("ss", AttributeValue::Ss(vec!["a".into()])),
            ("ns", AttributeValue::Ns(vec!["3".into()])),
            ("bs", AttributeValue::Bs(vec![Blob::new([0])])),
        ];
        assert_eq!(read.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(read[name], value, "{name}");
        }
    }

    #[test]
    fn an_attribute_of_an_unknown_kind_is_not_read() {
        for item in [
            json!({"a": {"X": "1"}}),
            json!({"a": {"S": "1", "N": "1"}}),
            json!({"a": {}}),
            json!({"a": {"N": 1}}),
            json!({"a": {"B": "%"}}),
            json!([]),
        ] {
            assert_eq!(attributes(&item), None, "{item}");
        }
    }
}
