//! Each role may do what its work requests, and nothing else.
use super::{
    actions::accesses,
    administration, app,
    policy::{Policy, pattern},
    processors, publisher, replayer, tables,
};
use crate::support::{Call, Server};
use foldstream_dynamodb::PublishMode;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use tokio::sync::OnceCell;

const ROLES: [&str; 8] = [
    "App",
    "Publisher",
    "Runner",
    "Replayer",
    "Operator",
    "Viewer",
    "Restorer",
    "Setup",
];

/// Does the work of every role on the tables of the template, and returns the requests by role.
async fn work(mode: PublishMode) -> BTreeMap<&'static str, Vec<Call>> {
    let server = Server::start();
    tables::deploy(&server.client(), mode).await;
    let setup = administration::set_up(&server, mode).await;
    let publisher = publisher::work(&server, mode).await;
    let processors = processors::work(&server, mode).await;
    let replays = replayer::work(mode).await;
    BTreeMap::from([
        ("Setup", setup),
        ("Runner", [processors.runner, replays.runner].concat()),
        ("Replayer", replays.replayer),
        ("Operator", [processors.operator, replays.operator].concat()),
        ("Viewer", [processors.viewer, replays.viewer].concat()),
        ("App", app::work(&server, mode).await),
        ("Publisher", publisher),
        ("Restorer", administration::restore(&server, mode).await),
    ])
}

/// The requests in mode `both`, for the tests that look at them.
async fn work_with_both() -> &'static BTreeMap<&'static str, Vec<Call>> {
    static DONE: OnceCell<BTreeMap<&'static str, Vec<Call>>> = OnceCell::const_new();
    DONE.get_or_init(|| work(PublishMode::Both)).await
}

fn compare(mode: PublishMode, requests: &BTreeMap<&'static str, Vec<Call>>) {
    let mut wrong = String::new();
    assert_eq!(requests.len(), ROLES.len());
    for (role, calls) in requests {
        if let Err(difference) = Policy::of(role, &mode.to_string()).compare(calls) {
            wrong += &format!("{role} in mode {mode}:\n{difference}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn each_policy_is_what_the_role_requests_with_a_poller() {
    compare(PublishMode::Poller, &work(PublishMode::Poller).await);
}
#[tokio::test]
async fn each_policy_is_what_the_role_requests_with_the_change_stream() {
    compare(PublishMode::Stream, &work(PublishMode::Stream).await);
}
#[tokio::test]
async fn each_policy_is_what_the_role_requests_with_both() {
    compare(PublishMode::Both, work_with_both().await);
}

#[tokio::test]
async fn every_operation_that_the_adapter_calls_has_been_recorded() {
    let mut recorded: BTreeSet<_> = administration::create_own_tables()
        .await
        .into_iter()
        .map(|call| call.operation)
        .collect();
    let all = work_with_both().await.values().flatten();
    recorded.extend(all.map(|call| call.operation.clone()));
    assert_eq!(recorded, called_operations());
}

/// A role whose suite does not touch these rows would be compared with too little.
#[tokio::test]
async fn the_rows_of_generations_and_replays_have_been_recorded() {
    let recorded = work_with_both().await;
    for (role, expected) in [
        (
            "Runner",
            "GetItem proc, PutItem proc, GetItem run, PutItem run, PutItem boot/*, PutItem inst/*, \
             Query inst/*, PutItem old/*, Query old/*, DeleteItem old/*, DeleteItem boot/*, \
             DeleteItem pos/*, DeleteItem park/*",
        ),
        (
            "Replayer",
            "GetItem proc, PutItem proc, GetItem run, PutItem run, GetItem run/*, PutItem run/*, \
             Query seg/*, PutItem seg/*, DeleteItem chunk/*, PutItem boot/*, PutItem park/*, PutItem pos/*, \
             GetItem topic, Query skip/*",
        ),
        (
            "Operator",
            "Query run, GetItem run, PutItem run, GetItem proc, PutItem proc, PutItem old/*, \
             Query seg/*",
        ),
        ("Viewer", "Query run, GetItem run, Query seg/*, Query proc"),
    ] {
        let rows: BTreeSet<_> = recorded[role].iter().flat_map(control_rows).collect();
        let missing = expected.split(", ").filter(|row| !rows.contains(*row));
        let missing: Vec<_> = missing.collect();
        assert!(missing.is_empty(), "{role}: {missing:?} of {rows:#?}");
    }
    let deleted = recorded["Runner"].iter().flat_map(accesses);
    let of_models = deleted.filter(|access| access.resource == "events-models");
    let actions: BTreeSet<_> = of_models.map(|access| access.action).collect();
    assert!(actions.contains("BatchWriteItem"), "{actions:?}");
}

/// Returns the actions of a request on the control table, each with the kind of its rows.
fn control_rows(call: &Call) -> Vec<String> {
    let of_control = accesses(call).into_iter();
    let of_control = of_control.filter(|access| access.resource == "events-control");
    let rows = of_control.flat_map(|access| {
        let kinds = access.leading_keys.iter().map(|key| pattern(key));
        let lines = kinds.map(|kind| format!("{} {kind}", access.action));
        lines.collect::<Vec<_>>()
    });
    rows.collect()
}

/// Only a restorer deletes events, and only a poller changes them.
#[test]
fn no_other_role_deletes_or_changes_events() {
    for mode in tables::MODES {
        for role in ROLES {
            let policy = Policy::of(role, &mode.to_string());
            let deletes = role == "Restorer";
            for action in ["DeleteItem", "BatchWriteItem", "PartiQLDelete"] {
                assert_eq!(policy.denies(action, "events"), !deletes, "{role} {action}");
            }
            assert_eq!(policy.allows("DeleteItem", "events"), deletes, "{role}");
            let updates = role == "Publisher" && mode != PublishMode::Stream;
            for action in ["UpdateItem", "PartiQLUpdate"] {
                assert_eq!(policy.denies(action, "events"), !updates, "{role} {mode}");
            }
            assert_eq!(
                policy.allows("UpdateItem", "events"),
                updates,
                "{role} {mode}"
            );
        }
    }
}

/// Returns the operations of DynamoDB that the sources of the adapter call.
fn called_operations() -> BTreeSet<String> {
    let known = methods_of_the_sdk();
    let mut called = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            for (name, method) in &known {
                if source.contains(&format!(".{method}()")) {
                    called.insert(name.clone());
                }
            }
        }
    }
    called
}

/// The methods of the SDK's clients for DynamoDB and its change streams, one per operation.
const SDK: &str = "
    batch_execute_statement batch_get_item batch_write_item create_backup create_global_table
    create_table delete_backup delete_item delete_resource_policy delete_table describe_backup
    describe_continuous_backups describe_contributor_insights describe_endpoints
    describe_export describe_global_table describe_global_table_settings describe_import
    describe_kinesis_streaming_destination describe_limits describe_stream describe_table
    describe_table_replica_auto_scaling describe_time_to_live
    disable_kinesis_streaming_destination enable_kinesis_streaming_destination
    execute_statement execute_transaction export_table_to_point_in_time get_item get_records
    get_resource_policy get_shard_iterator import_table list_backups list_contributor_insights
    list_exports list_global_tables list_imports list_streams list_tables
    list_tags_of_resource put_item put_resource_policy query restore_table_from_backup
    restore_table_to_point_in_time scan search_vectors tag_resource transact_get_items
    transact_write_items untag_resource update_continuous_backups update_contributor_insights
    update_global_table update_global_table_settings update_item
    update_kinesis_streaming_destination update_table update_table_replica_auto_scaling
    update_time_to_live
";

/// Returns each operation with the method that sends it.
fn methods_of_the_sdk() -> Vec<(String, &'static str)> {
    let methods = SDK.split_whitespace();
    methods
        .map(|method| (pascal_case(method), method))
        .collect()
}

fn pascal_case(method: &str) -> String {
    let words = method.split('_').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    words.collect()
}
