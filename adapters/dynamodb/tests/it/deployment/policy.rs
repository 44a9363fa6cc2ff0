//! The policies of the roles, and their comparison with recorded requests.
use super::{
    actions::{Access, accesses},
    template::{TABLES, Template},
};
use crate::support::Call;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The condition of a statement: its key, and the values that it accepts.
type Condition = Option<(String, BTreeSet<String>)>;

/// The statements of a policy, by action and resource.
#[derive(Debug)]
pub(super) struct Policy {
    allowed: BTreeMap<(String, String), Condition>,
    denied: BTreeSet<(String, String)>,
}

impl Policy {
    /// Reads the policy of a role from the template.
    pub(super) fn of(role: &str, publish_mode: &str) -> Self {
        let template = Template::read("roles.yaml", &[("PublishMode", publish_mode)]);
        let roles = template.resources("AWS::IAM::Role");
        let name = format!("{role}Policy");
        // The role has this policy and no other, apart from reads of the change stream.
        let attached = &roles[&format!("{role}Role")];
        let mut expected = vec![name];
        if role == "Publisher" && publish_mode != "poller" {
            expected.push("ChangeStreamPolicy".into());
        }
        let references = expected
            .iter()
            .map(|name| serde_json::json!({ "resource": name }));
        assert_eq!(attached["ManagedPolicyArns"], references.collect::<Value>());
        assert!(attached["Policies"].is_null());
        let policies = template.resources("AWS::IAM::ManagedPolicy");
        let documents = expected
            .iter()
            .map(|name| Self::read(&policies[name]["PolicyDocument"]));
        documents.reduce(Self::and).unwrap()
    }

    /// Returns what both policies allow a role that has both.
    fn and(mut self, other: Self) -> Self {
        self.denied.extend(other.denied);
        for (pair, theirs) in other.allowed {
            let Some(ours) = self.allowed.get_mut(&pair) else {
                self.allowed.insert(pair, theirs);
                continue;
            };
            // One policy alone must allow a request, so its values may not be spread over both. A
            // request with one value never spreads.
            let has_one_value = ["DeleteItem", "GetItem", "PutItem", "Query"];
            assert!(has_one_value.contains(&pair.0.as_str()), "{pair:?}");
            match (ours, theirs) {
                (Some((key, values)), Some((other, more))) if *key == other => {
                    let twice: Vec<_> = values.intersection(&more).collect();
                    assert!(twice.is_empty(), "{pair:?} is allowed twice: {twice:?}");
                    values.extend(more);
                }
                other => panic!("{pair:?} is allowed twice: {other:?}"),
            }
        }
        self
    }

    pub(super) fn read(document: &Value) -> Self {
        let mut policy = Self {
            allowed: BTreeMap::new(),
            denied: BTreeSet::new(),
        };
        for statement in document["Statement"].as_array().unwrap() {
            for action in list(&statement["Action"]) {
                let action = action.strip_prefix("dynamodb:").unwrap().to_owned();
                assert!(!action.contains('*'), "{action}");
                for resource in list(&statement["Resource"]) {
                    let resource = resource.strip_prefix(TABLES).expect(&resource);
                    // The label of a stream is the time at which it was enabled.
                    let table = resource.strip_suffix("/stream/*").unwrap_or(resource);
                    assert!(!table.contains('*'), "{resource}");
                    let pair = (action.clone(), resource.to_owned());
                    match statement["Effect"].as_str() {
                        Some("Deny") => {
                            assert!(statement["Condition"].is_null());
                            policy.denied.insert(pair);
                        }
                        Some("Allow") => {
                            let known = policy.allowed.insert(pair, condition(statement));
                            assert!(known.is_none(), "{action} on {resource} is allowed twice");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        policy
    }

    pub(super) fn denies(&self, action: &str, resource: &str) -> bool {
        self.denied.contains(&(action.into(), resource.into()))
    }
    pub(super) fn allows(&self, action: &str, resource: &str) -> bool {
        let pair = (action.into(), resource.into());
        self.allowed.contains_key(&pair) && !self.denied.contains(&pair)
    }

    /// Returns a line per action, resource and value of a condition that the policy allows.
    fn lines(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for ((action, resource), condition) in &self.allowed {
            match condition {
                None => drop(lines.insert(format!("{action} {resource}"))),
                Some((key, values)) => {
                    let values = values.iter();
                    lines.extend(values.map(|v| format!("{action} {resource} {key} {v}")));
                }
            }
        }
        lines
    }

    /// Returns the lines that a request needs, in the terms of this policy.
    fn lines_for(&self, access: &Access) -> Vec<String> {
        let Access {
            action, resource, ..
        } = access;
        let pair = (action.clone(), resource.clone());
        let values: Vec<String> = match self.allowed.get(&pair) {
            Some(Some((key, _))) if key == "LeadingKeys" => {
                access.leading_keys.iter().map(|k| pattern(k)).collect()
            }
            Some(Some(_)) => access.attributes.iter().cloned().collect(),
            _ => return vec![format!("{action} {resource}")],
        };
        let key = self.allowed[&pair].as_ref().map(|(key, _)| key).unwrap();
        // IAM passes a condition on all values of a request without any.
        assert!(!values.is_empty(), "{access:?}");
        let lines = values
            .iter()
            .map(|v| format!("{action} {resource} {key} {v}"));
        lines.collect()
    }

    /// Compares the policy with the requests of a role.
    ///
    /// # Errors
    /// A text if the policy allows more or less than the requests need.
    pub(super) fn compare(&self, calls: &[Call]) -> Result<(), String> {
        let needed: BTreeSet<_> = (calls.iter().flat_map(accesses))
            .flat_map(|access| self.lines_for(&access))
            .collect();
        let allowed = self.lines();
        let report = |what: &str, lines: Vec<&String>| match lines.is_empty() {
            true => String::new(),
            false => format!("{what}: {lines:#?}\n"),
        };
        let denied = calls.iter().flat_map(accesses);
        let denied: BTreeSet<_> = denied
            .filter(|a| self.denies(&a.action, &a.resource))
            .map(|a| format!("{} {}", a.action, a.resource))
            .collect();
        let text = report(
            "requested but not allowed",
            needed.difference(&allowed).collect(),
        ) + &report(
            "allowed but never requested",
            allowed.difference(&needed).collect(),
        ) + &report("requested but denied", denied.iter().collect());
        if text.is_empty() { Ok(()) } else { Err(text) }
    }
}

/// Returns the pattern under which policies list a partition of the control table.
pub(super) fn pattern(partition: &str) -> String {
    match partition.split_once('/') {
        Some((kind, _)) => format!("{kind}/*"),
        None => partition.into(),
    }
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => (many.iter())
            .map(|one| one.as_str().unwrap().to_owned())
            .collect(),
        other => panic!("{other}"),
    }
}

fn condition(statement: &Value) -> Condition {
    let operators = statement["Condition"].as_object()?;
    let mut found = None;
    for (operator, keys) in operators {
        for (key, values) in keys.as_object().unwrap() {
            match (operator.as_str(), key.as_str()) {
                ("ForAllValues:StringLike", "dynamodb:LeadingKeys")
                | ("ForAllValues:StringEquals", "dynamodb:Attributes") => {
                    let key = key.trim_start_matches("dynamodb:").to_owned();
                    let values = list(values).into_iter().collect();
                    assert!(found.replace((key, values)).is_none(), "{statement}");
                }
                // AWS: without it an update may return attributes that it does not name.
                ("StringEqualsIfExists", "dynamodb:ReturnValues") => {}
                other => panic!("the tests do not know the condition {other:?}"),
            }
        }
    }
    found
}
