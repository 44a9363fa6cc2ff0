//! The tables of the template are the tables that the adapter creates.
use super::template::Template;
use crate::{
    read_model::{Notebook, model},
    support::Server,
};
use aws_sdk_dynamodb::{
    Client,
    types::{KeySchemaElement, TimeToLiveSpecification},
};
use aws_smithy_types::body::SdkBody;
use foldstream_dynamodb::{DynamoDb, PublishMode, TableOptions, create_tables};
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) const MODES: [PublishMode; 3] =
    [PublishMode::Poller, PublishMode::Stream, PublishMode::Both];

/// Creates the tables of the template, as CloudFormation would.
pub(super) async fn deploy(client: &Client, mode: PublishMode) {
    let template = Template::read("tables.yaml", &[("PublishMode", &mode.to_string())]);
    for properties in template.resources("AWS::DynamoDB::Table").into_values() {
        create(client, properties).await;
    }
}

/// Sends the properties of a table as they are: CloudFormation has the names of the API.
async fn create(client: &Client, mut properties: Value) {
    let fields = properties.as_object_mut().unwrap();
    let table = fields["TableName"].as_str().unwrap().to_owned();
    // These are requests of their own in the API. The emulator has no backups.
    let expiry = fields.remove("TimeToLiveSpecification");
    fields.remove("PointInTimeRecoverySpecification");
    if let Some(stream) = fields.get_mut("StreamSpecification") {
        stream["StreamEnabled"] = true.into();
    }
    let body = properties.to_string();
    let request = client.create_table().table_name(&table).customize();
    let request = request.mutate_request(move |request| {
        let length = body.len().to_string();
        request.headers_mut().insert("content-length", length);
        *request.body_mut() = SdkBody::from(body.clone());
    });
    request.send().await.unwrap();
    if let Some(expiry) = expiry {
        assert_eq!(expiry["Enabled"], true);
        let attribute = expiry["AttributeName"].as_str().unwrap();
        let expiry = TimeToLiveSpecification::builder()
            .enabled(true)
            .attribute_name(attribute);
        let request = client.update_time_to_live().table_name(table);
        let request = request.time_to_live_specification(expiry.build().unwrap());
        request.send().await.unwrap();
    }
}

/// Returns what defines a table, as lines.
async fn definition(client: &Client, table: &str) -> BTreeSet<String> {
    let request = client.describe_table().table_name(table);
    let found = request.send().await.unwrap().table.unwrap();
    let key = |schema: &[KeySchemaElement]| -> Vec<String> {
        let keys = schema.iter();
        keys.map(|k| format!("{} {}", k.attribute_name, k.key_type))
            .collect()
    };
    let mut lines = BTreeSet::from([
        format!("key {:?}", key(found.key_schema())),
        format!(
            "billing {:?}",
            found.billing_mode_summary().and_then(|b| b.billing_mode())
        ),
    ]);
    for attribute in found.attribute_definitions() {
        lines.insert(format!(
            "{} {}",
            attribute.attribute_name, attribute.attribute_type
        ));
    }
    for index in found.global_secondary_indexes() {
        let projection = index.projection().and_then(|p| p.projection_type());
        lines.insert(format!(
            "index {:?} {:?} {projection:?}",
            index.index_name(),
            key(index.key_schema())
        ));
    }
    if let Some(stream) = found.stream_specification() {
        lines.insert(format!("stream {:?}", stream.stream_view_type()));
    }
    let request = client.describe_time_to_live().table_name(table);
    let expiry = request.send().await.unwrap().time_to_live_description;
    if let Some(attribute) = expiry.as_ref().and_then(|e| e.attribute_name()) {
        lines.insert(format!("expires by {attribute}"));
    }
    lines
}

#[tokio::test]
async fn the_template_makes_the_tables_that_the_adapter_makes() {
    for mode in MODES {
        let (ours, theirs) = (Server::start(), Server::start());
        let config = ours.config().with_publish_mode(mode);
        let stores = ours.stores_with(config.clone()).await;
        let rows = stores.read_model::<Notebook>();
        rows.create_table(&model()).await.unwrap();
        let client = theirs.client();
        deploy(&client, mode).await;
        let tables = [
            config.events_table(),
            config.snapshots_table(),
            config.control_table(),
            config.read_models_table(),
        ];
        for table in &tables {
            let made = definition(&client, table).await;
            assert_eq!(
                made,
                definition(stores.client(), table).await,
                "{table} {mode}"
            );
        }
        let made = client.list_tables().send().await.unwrap();
        assert_eq!(made.table_names().len(), tables.len());
    }
}

#[tokio::test]
async fn the_adapter_accepts_the_tables_of_the_template() {
    for mode in MODES {
        let server = Server::start();
        deploy(&server.client(), mode).await;
        let config = server.config().with_publish_mode(mode);
        let options = TableOptions::default();
        create_tables(&config, &options).await.unwrap();
        let stores = DynamoDb::connect(config).await.unwrap();
        let rows = stores.read_model::<Notebook>();
        rows.create_table(&model()).await.unwrap();
    }
}

#[test]
fn tables_outlive_the_stack_and_what_cannot_be_made_again_has_backups() {
    let template = Template::read("tables.yaml", &[]);
    let tables = template.resources("AWS::DynamoDB::Table");
    assert_eq!(tables.len(), 4);
    for (name, properties) in tables {
        let written = template.written(&name);
        assert_eq!(written["DeletionPolicy"], "Retain", "{name}");
        assert_eq!(written["UpdateReplacePolicy"], "Retain", "{name}");
        assert_eq!(properties["DeletionProtectionEnabled"], true, "{name}");
        let backups = &properties["PointInTimeRecoverySpecification"];
        let has_backups = backups["PointInTimeRecoveryEnabled"] == true;
        let is_source = matches!(&*name, "EventsTable" | "ControlTable");
        assert_eq!(has_backups, is_source, "{name}");
    }
}
