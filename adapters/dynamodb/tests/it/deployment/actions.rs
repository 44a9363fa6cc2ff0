//! The IAM actions and resources of requests. This is the only table of them: where a request is
//! described wrongly here, the policies are wrong too.
use super::super::support::Call;
use serde_json::Value;
use std::collections::BTreeSet;

/// An action on a resource, which a request needs to be allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Access {
    pub(super) action: String,
    /// `<table>`, `<table>/index/<index>` or `<table>/stream/*`.
    pub(super) resource: String,
    /// The values of the partition key, which IAM knows as `dynamodb:LeadingKeys`.
    pub(super) leading_keys: BTreeSet<String>,
    /// The attributes that the request names, which IAM knows as `dynamodb:Attributes`.
    pub(super) attributes: BTreeSet<String>,
}

impl Access {
    fn new(action: &str, resource: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            resource: resource.into(),
            leading_keys: BTreeSet::new(),
            attributes: BTreeSet::new(),
        }
    }
    /// Adds the partition key of an item or a key. All tables have one of the same name.
    fn of_item(mut self, item: &Value) -> Self {
        self.leading_keys.extend(text(&item["pk"]["S"]));
        self
    }
}

/// Returns what IAM must allow for a request.
pub(super) fn accesses(call: &Call) -> Vec<Access> {
    let (operation, body) = (call.operation.as_str(), &call.body);
    let table = || body["TableName"].as_str().unwrap().to_owned();
    match operation {
        "GetItem" | "DeleteItem" => {
            vec![Access::new(operation, table()).of_item(&body["Key"])]
        }
        "PutItem" => vec![Access::new(operation, table()).of_item(&body["Item"])],
        "UpdateItem" => {
            let mut access = Access::new(operation, table()).of_item(&body["Key"]);
            access.attributes = attributes_of(body);
            vec![access]
        }
        // An index has a resource of its own, and a query of it needs no access to the table.
        "Query" => {
            let resource = match body["IndexName"].as_str() {
                Some(index) => format!("{}/index/{index}", table()),
                None => table(),
            };
            let mut access = Access::new(operation, resource);
            access.leading_keys.extend(queried_partition(body));
            vec![access]
        }
        "Scan" => {
            assert!(body["IndexName"].is_null(), "a scan of an index: add it");
            vec![Access::new(operation, table())]
        }
        "BatchGetItem" => per_table(body)
            .map(|(table, request)| {
                let keys = request["Keys"].as_array().unwrap();
                keys.iter()
                    .fold(Access::new(operation, table), |a, key| a.of_item(key))
            })
            .collect(),
        // Its own action for deletes and puts alike.
        "BatchWriteItem" => per_table(body)
            .map(|(table, requests)| {
                let requests = requests.as_array().unwrap().iter();
                requests.fold(Access::new(operation, table), |access, request| {
                    let access = access.of_item(&request["DeleteRequest"]["Key"]);
                    access.of_item(&request["PutRequest"]["Item"])
                })
            })
            .collect(),
        // A transaction has no action of its own: each of its items has one.
        "TransactWriteItems" => {
            let items = body["TransactItems"].as_array().unwrap();
            items.iter().map(in_transaction).collect()
        }
        "DescribeTable"
        | "CreateTable"
        | "UpdateTable"
        | "DescribeTimeToLive"
        | "UpdateTimeToLive"
        | "UpdateContinuousBackups" => vec![Access::new(operation, table())],
        // A stream has a resource of its own. A request for records names the stream only by its
        // iterator, so whoever has recorded the request adds the stream.
        "DescribeStream" | "GetShardIterator" | "GetRecords" => {
            let arn = body["StreamArn"].as_str().unwrap();
            let (_, stream) = arn.split_once(":table/").unwrap();
            let (table, _label) = stream.split_once("/stream/").unwrap();
            vec![Access::new(operation, format!("{table}/stream/*"))]
        }
        other => panic!("add the IAM actions of {other} to this table"),
    }
}

fn in_transaction(item: &Value) -> Access {
    let (kind, request) = item.as_object().unwrap().iter().next().unwrap();
    let action = match kind.as_str() {
        "Put" => "PutItem",
        "Update" => "UpdateItem",
        "Delete" => "DeleteItem",
        "ConditionCheck" => "ConditionCheckItem",
        other => panic!("add the IAM action of {other} to this table"),
    };
    let access = Access::new(action, request["TableName"].as_str().unwrap());
    access.of_item(&request["Key"]).of_item(&request["Item"])
}

fn per_table(body: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let tables = body["RequestItems"].as_object().unwrap().iter();
    tables.map(|(table, request)| (table.as_str(), request))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(Into::into)
}

/// Returns the value of the partition key in the condition of a query.
fn queried_partition(body: &Value) -> Option<String> {
    let condition = body["KeyConditionExpression"].as_str().unwrap();
    let (_, placeholder) = condition.split_once(" = ").unwrap();
    let placeholder = placeholder.split(' ').next().unwrap();
    text(&body["ExpressionAttributeValues"][placeholder]["S"])
}

/// Returns the attributes in the key and in the expressions of an update.
fn attributes_of(body: &Value) -> BTreeSet<String> {
    const WORDS: [&str; 7] = [
        "SET",
        "REMOVE",
        "ADD",
        "AND",
        "OR",
        "attribute_exists",
        "attribute_not_exists",
    ];
    let keys = body["Key"].as_object().unwrap().keys().cloned();
    let mut names: BTreeSet<_> = keys.collect();
    for expression in ["UpdateExpression", "ConditionExpression"] {
        let expression = body[expression].as_str().unwrap_or_default();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '#' | ':');
        let words = expression.split(|c| !is_part(c));
        for word in words.filter(|w| !w.is_empty() && !w.starts_with(':') && !WORDS.contains(w)) {
            let name = &body["ExpressionAttributeNames"][word];
            names.insert(name.as_str().unwrap_or(word).to_owned());
        }
    }
    names
}

#[test]
fn each_item_of_a_transaction_has_the_action_of_its_kind() {
    let call = Call {
        operation: "TransactWriteItems".into(),
        body: serde_json::json!({ "TransactItems": [
            { "Put": { "TableName": "t", "Item": { "pk": { "S": "a" } } } },
            { "ConditionCheck": { "TableName": "t", "Key": { "pk": { "S": "b" } } } },
        ] }),
        nth: 1,
    };
    let found: Vec<_> = accesses(&call).into_iter().map(|a| a.action).collect();
    assert_eq!(found, ["PutItem", "ConditionCheckItem"]);
}

#[test]
fn a_query_of_an_index_needs_the_index_and_not_the_table() {
    let call = Call {
        operation: "Query".into(),
        body: serde_json::json!({
            "TableName": "t", "IndexName": "i", "KeyConditionExpression": "mk = :m AND pk > :p",
            "ExpressionAttributeValues": { ":m": { "S": "7" }, ":p": { "S": "x" } },
        }),
        nth: 1,
    };
    let found = accesses(&call);
    assert_eq!(found[0].resource, "t/index/i");
    assert_eq!(found[0].leading_keys, BTreeSet::from(["7".into()]));
}

#[test]
fn a_request_to_a_stream_needs_the_stream_and_not_the_table() {
    let arn = "arn:aws:dynamodb:us-east-1:1:table/t/stream/2026-01-01T00:00:00.000";
    let call = Call {
        operation: "GetRecords".into(),
        body: serde_json::json!({ "StreamArn": arn, "ShardIterator": "i" }),
        nth: 1,
    };
    let found: Vec<_> = accesses(&call).into_iter().map(|a| a.resource).collect();
    assert_eq!(found, ["t/stream/*"]);
}

#[test]
fn an_update_names_the_attributes_of_its_key_and_its_expressions() {
    let body = serde_json::json!({
        "Key": { "pk": { "S": "a" }, "sk": { "N": "1" } }, "TableName": "t",
        "UpdateExpression": "REMOVE mk SET #x = :y", "ConditionExpression": "attribute_exists(pk)",
        "ExpressionAttributeNames": { "#x": "note" },
    });
    let names: Vec<_> = attributes_of(&body).into_iter().collect();
    assert_eq!(names, ["mk", "note", "pk", "sk"]);
}
