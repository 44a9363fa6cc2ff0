//! The mapping from the change stream to the publisher on Lambda.
use super::template::Template;
use serde_json::{Value, json};

/// Reported in solita/solita.github.com PR 376, KensioSoftware/yulin#1219 and #370, and
/// fhir-works-on-aws-deployment#38: records that were written before the mapping are never read,
/// records that Lambda gives up are lost, and the publisher's own writes wake it again.
#[test]
fn the_mapping_starts_at_the_oldest_record_gives_none_up_and_wakes_for_inserts_alone() {
    let template = Template::read("lambda-publisher.yaml", &[]);
    let mapping = &template.written("Mapping")["Properties"];
    let expected = [
        ("StartingPosition", json!("TRIM_HORIZON")),
        ("MaximumRetryAttempts", json!(-1)),
        ("MaximumRecordAgeInSeconds", json!(-1)),
        ("FunctionResponseTypes", json!(["ReportBatchItemFailures"])),
    ];
    for (property, value) in expected {
        assert_eq!(mapping[property], value, "{property}");
    }
    let filters = mapping["FilterCriteria"]["Filters"].as_array().unwrap();
    let [filter] = &filters[..] else {
        panic!("records that match one of several filters wake the function: {filters:?}");
    };
    let pattern: Value = serde_json::from_str(filter["Pattern"].as_str().unwrap()).unwrap();
    assert_eq!(pattern, json!({ "eventName": ["INSERT"] }));
}
