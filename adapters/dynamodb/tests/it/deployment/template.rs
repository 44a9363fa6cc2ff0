//! CloudFormation templates as DynamoDB and IAM get them: with parameters, conditions and
//! references resolved.
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};
use yaml_rust2::{Yaml, YamlLoader};

/// The region and account in the ARNs of a resolved template.
const PSEUDO: [(&str, &str); 3] = [
    ("AWS::Partition", "aws"),
    ("AWS::Region", "eu-central-1"),
    ("AWS::AccountId", "123456789012"),
];
/// The start of the ARN of a table.
pub(super) const TABLES: &str = "arn:aws:dynamodb:eu-central-1:123456789012:table/";

/// A template of `deploy/cloudformation`, and values for its parameters.
pub(super) struct Template {
    source: Value,
    parameters: BTreeMap<String, String>,
}

impl Template {
    /// Reads a template. Parameters without a value here have their defaults.
    pub(super) fn read(file: &str, parameters: &[(&str, &str)]) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/cloudformation");
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let source = json_of(&YamlLoader::load_from_str(&text).unwrap()[0]);
        let mut values = BTreeMap::new();
        for (name, parameter) in source["Parameters"].as_object().unwrap() {
            if let Some(default) = parameter["Default"].as_str() {
                values.insert(name.clone(), default.to_owned());
            }
        }
        for (name, value) in parameters {
            assert!(source["Parameters"][name].is_object(), "no {name}");
            values.insert((*name).into(), (*value).into());
        }
        Self {
            source,
            parameters: values,
        }
    }

    /// Returns the properties of all resources of a type, by their logical names.
    pub(super) fn resources(&self, kind: &str) -> BTreeMap<String, Value> {
        let all = self.source["Resources"].as_object().unwrap();
        let wanted = all.iter().filter(|(_, r)| {
            let condition = r["Condition"].as_str();
            r["Type"] == kind && condition.is_none_or(|name| self.holds(name))
        });
        wanted
            .map(|(name, r)| (name.clone(), self.resolve(&r["Properties"]).unwrap()))
            .collect()
    }

    /// Returns a resource as it is written.
    pub(super) fn written(&self, name: &str) -> &Value {
        &self.source["Resources"][name]
    }

    /// Returns a value without functions, or `None` for `AWS::NoValue`.
    fn resolve(&self, value: &Value) -> Option<Value> {
        match value {
            Value::Array(items) => {
                let items = items.iter().filter_map(|item| self.resolve(item));
                Some(Value::Array(items.collect()))
            }
            Value::Object(fields) => match function(fields) {
                Some(("Ref", name)) => self.reference(name.as_str().unwrap()),
                Some(("Fn::If", of)) => {
                    let branch = if self.holds(of[0].as_str().unwrap()) {
                        &of[1]
                    } else {
                        &of[2]
                    };
                    self.resolve(branch)
                }
                Some(("Fn::Sub", text)) => Some(self.substitute(text.as_str().unwrap()).into()),
                Some(("Fn::GetAtt", of)) => Some(json!({ "attribute": of })),
                Some((other, _)) => panic!("the tests do not know the function {other}"),
                None => {
                    let fields = fields
                        .iter()
                        .filter_map(|(k, v)| Some((k.clone(), self.resolve(v)?)));
                    Some(Value::Object(fields.collect::<Map<_, _>>()))
                }
            },
            other => Some(other.clone()),
        }
    }

    fn reference(&self, name: &str) -> Option<Value> {
        if name == "AWS::NoValue" {
            return None;
        }
        match self.parameters.get(name) {
            Some(value) => Some(value.clone().into()),
            None => Some(json!({ "resource": name })),
        }
    }

    fn substitute(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in PSEUDO {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        for (name, value) in &self.parameters {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        text
    }

    fn holds(&self, condition: &str) -> bool {
        let written = &self.source["Conditions"][condition];
        assert!(written.is_object(), "no condition {condition}");
        self.test(written)
    }

    fn test(&self, condition: &Value) -> bool {
        let all = |of: &Value| of.as_array().unwrap().clone();
        match function(condition.as_object().unwrap()) {
            Some(("Condition", name)) => self.holds(name.as_str().unwrap()),
            Some(("Fn::Not", of)) => !self.test(&of[0]),
            Some(("Fn::And", of)) => all(of).iter().all(|c| self.test(c)),
            Some(("Fn::Or", of)) => all(of).iter().any(|c| self.test(c)),
            Some(("Fn::Equals", of)) => self.resolve(&of[0]) == self.resolve(&of[1]),
            other => panic!("the tests do not know the condition {other:?}"),
        }
    }
}

/// Returns the function that a mapping calls.
fn function(fields: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (name, argument) = fields.iter().next().filter(|_| fields.len() == 1)?;
    let is_function =
        name.starts_with("Fn::") || (name == "Ref" || name == "Condition") && argument.is_string();
    is_function.then_some((name.as_str(), argument))
}

pub(super) fn json_of(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::String(text) => text.clone().into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Boolean(flag) => (*flag).into(),
        Yaml::Array(items) => items.iter().map(json_of).collect(),
        Yaml::Hash(fields) => {
            let fields = fields
                .iter()
                .map(|(k, v)| (k.as_str().unwrap().to_owned(), json_of(v)));
            Value::Object(fields.collect())
        }
        other => panic!("the tests do not know this part of a template: {other:?}"),
    }
}
