//! The Kubernetes example: its times leave the reader time to stop, and its selectors meet.
use super::template::json_of;
use foldstream_dynamodb::streams::StreamsConfig;
use serde_json::{Value, json};
use std::path::Path;
use yaml_rust2::YamlLoader;

/// Returns the objects of the example, by kind.
fn object(kind: &str) -> Value {
    let file = "../../deploy/kubernetes/streams-reader.yaml";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(file).unwrap();
    let documents = YamlLoader::load_from_str(&text).unwrap();
    let mut objects = documents.iter().map(json_of);
    objects.find(|object| object["kind"] == kind).expect(kind)
}

#[test]
fn a_process_is_killed_only_after_it_had_time_to_stop() {
    let pod = &object("Deployment")["spec"]["template"]["spec"];
    let period = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    // Checkpoints, and then leases, of 5 s at most each.
    assert!(
        period >= StreamsConfig::default().grace.as_secs() + 2 * 5,
        "{period} s"
    );
}

#[test]
fn a_drain_may_stop_one_process_and_not_the_last() {
    let (deployment, budget) = (object("Deployment"), object("PodDisruptionBudget"));
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert!(labels.is_object());
    for selector in [&deployment["spec"]["selector"], &budget["spec"]["selector"]] {
        assert_eq!(selector["matchLabels"], *labels);
    }
    let left = budget["spec"]["minAvailable"].as_u64().unwrap();
    assert!((1..deployment["spec"]["replicas"].as_u64().unwrap()).contains(&left));
    let account = &object("ServiceAccount")["metadata"]["name"];
    assert_eq!(
        deployment["spec"]["template"]["spec"]["serviceAccountName"],
        *account
    );
    assert_eq!(account, &json!("foldstream-publisher"));
}
